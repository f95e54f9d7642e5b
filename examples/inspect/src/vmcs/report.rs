// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is wrong with a VMCS, as text and as JSON.

use std::collections::BTreeSet;
use std::io;

use anyhow::Result;
use hvkit_vmcs::capability::Processor;
use hvkit_vmcs::check::{Checker, Outcome, Rule, Sink, Verdict, Violation};
use hvkit_vmcs::dump::Dump;
use hvkit_vmcs::encoding::Encoding;
use hvkit_vmcs::fields::find;
use hvkit_vmcs::store::{Fields, Snapshot};

use crate::page::Page;
use crate::{Form, Found};

/// A VMCS checked.
pub(crate) struct Report<'a> {
    vmcs: &'a Snapshot,
    failure: Option<Outcome>,
    /// Broken, as far as the VMCS holds what the rules look at.
    broken: Vec<Violation>,
    /// Rules that cannot be decided: the file lacks their fields, or they look at memory.
    open: Vec<&'static Rule>,
    /// Fields that the rules look at and the file lacks. Whether they apply may hang on those too.
    missing: BTreeSet<Encoding>,
    /// The verdict if only `broken` count.
    verdict: Verdict,
}

/// Gathers what the checker tells.
#[derive(Default)]
struct Gather {
    violations: Vec<Violation>,
    undecided: Vec<&'static Rule>,
    missing: BTreeSet<Encoding>,
}

impl Sink for Gather {
    fn violation(&mut self, violation: &Violation) {
        self.violations.push(*violation);
    }

    fn undecided(&mut self, rule: &'static Rule) {
        self.undecided.push(rule);
    }

    fn missing(&mut self, field: Encoding) {
        self.missing.insert(field);
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(vmcs: &'a Snapshot, processor: &Processor, failure: Option<Outcome>) -> Self {
        let mut gather = Gather::default();
        Checker::new(processor).check(vmcs, &mut gather);
        // The checker takes an absent field as zero. A rule about one says nothing here.
        let (broken, unknown): (Vec<Violation>, Vec<_>) = gather
            .violations
            .into_iter()
            .partition(|found| decided(vmcs, found));
        let mut open = gather.undecided;
        open.extend(unknown.iter().map(|violation| violation.rule));
        open.sort_by_key(|rule| rule.id);
        open.dedup_by_key(|rule| rule.id);
        let verdict = broken.iter().collect();
        Self {
            vmcs,
            failure,
            broken,
            open,
            missing: gather.missing,
            verdict,
        }
    }

    /// The broken rules that explain the failure; all, if none was given.
    fn causes(&self) -> impl Iterator<Item = &Violation> {
        let shows = |violation: &&Violation| {
            self.failure
                .is_none_or(|failure| violation.rule.shows_as(failure))
        };
        self.broken.iter().filter(shows)
    }

    pub(crate) fn print(&self, source: &str, form: Form, page: &mut Page<'_>) -> Result<Found> {
        if form.json {
            page.json(&self.json(source))?;
        } else {
            self.text(source, page)?;
        }
        Ok(self.found())
    }

    /// Whether a rule is broken.
    pub(crate) fn found(&self) -> Found {
        if self.broken.is_empty() {
            Found::Nothing
        } else {
            Found::Something
        }
    }

    /// Prints it for people.
    pub(crate) fn text(&self, source: &str, page: &mut Page<'_>) -> io::Result<()> {
        page.line(format_args!("{source}, {} fields\n", self.vmcs.len()))?;
        page.line(Dump(self.vmcs))?;
        let causes: Vec<_> = self.causes().collect();
        let count = causes.len();
        let which = match self.failure {
            Some(failure) => format!("Rules that show as \"{failure}\""),
            None => "Broken rules of VM entry".to_owned(),
        };
        page.line(format_args!("{which}: {count}"))?;
        for violation in &causes {
            page.line(format_args!("  {violation}"))?;
        }
        if let (Some(_), true) = (self.failure, causes.is_empty()) {
            page.line(
                "  none: this VMCS, the processor or the moment is not the one of the failure",
            )?;
            page.line("  all broken rules:")?;
            for violation in &self.broken {
                page.line(format_args!("  {violation}"))?;
            }
        }
        if !self.open.is_empty() {
            let open = ids(&self.open);
            page.line(format_args!(
                "Not decided, because the file does not say: {open}"
            ))?;
        }
        let outcome = self.verdict.outcome();
        let as_far = if self.missing.is_empty() && self.open.is_empty() {
            ""
        } else {
            ", as far as the file says"
        };
        page.line(format_args!("The processor will say{as_far}: {outcome}"))
    }

    /// The same for programs.
    pub(crate) fn json(&self, source: &str) -> serde_json::Value {
        serde_json::json!({
            "source": source,
            "vmcs": self.vmcs,
            "broken": self.broken,
            "causes": self.failure.map(|_| self.causes().collect::<Vec<_>>()),
            "undecided": self.open.iter().map(|rule| rule.id).collect::<Vec<_>>(),
            "missing": self.missing.iter().filter_map(|field| Some(find(*field)?.id)).collect::<Vec<_>>(),
            "outcome": self.verdict.outcome(),
        })
    }
}

fn decided(vmcs: &Snapshot, violation: &Violation) -> bool {
    let fields = violation.rule.fields;
    fields.iter().all(|field| vmcs.get(*field).is_some())
}

fn ids(rules: &[&Rule]) -> String {
    rules
        .iter()
        .map(|rule| rule.id)
        .collect::<Vec<_>>()
        .join(", ")
}
