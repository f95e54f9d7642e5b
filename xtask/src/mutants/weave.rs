// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many mutants in one program: each changed place asks a switch which text it is to be.
//!
//! ```text
//! a | b            (if on(7) { (a) ^ (b) } else { (a) | (b) })
//! fn f() { body }  fn f() { if on(8) { return 0; } body }
//! X => arm         X if !on(9) => arm
//! ```
//!
//! So a crate is compiled once, not once for each mutant.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::list::{Kind, Mutant};

/// What a woven place asks.
pub(super) const ASK: &str = "::hvkit_mutant_switch::on";

/// `source` with the mutants woven in, each with its number; and the numbers of those whose place is not found: nothing would ask for
/// them, and every test would pass.
pub(super) fn weave(source: &str, mutants: &[(u32, &Mutant)]) -> Result<(String, Vec<u32>)> {
    let file = syn::parse_file(source).context("does not parse")?;
    let mut wanted: HashMap<(usize, bool), Vec<(u32, &Mutant)>> = HashMap::new();
    for (id, mutant) in mutants {
        let at = offset(source, mutant.place).context("a mutant lies outside its file")?;
        let key = (at, mutant.kind == Kind::Body);
        wanted.entry(key).or_default().push((*id, mutant));
    }
    let mut finder = Finder {
        wanted,
        edits: Vec::new(),
    };
    finder.visit_file(&file);
    let edits = finder.edits;
    let woven = render(source, 0..source.len(), &edits, None);
    let ids = mutants.iter().map(|(id, _)| *id);
    let lost = ids.filter(|id| !woven.contains(&format!("{ASK}({id})")));
    let lost = lost.collect();
    Ok((woven, lost))
}

/// The byte at a line and column, both from 1, in characters.
fn offset(source: &str, (line, column): (usize, usize)) -> Option<usize> {
    let text = source.split_inclusive('\n').nth(line.checked_sub(1)?)?;
    let start = text.as_ptr() as usize - source.as_ptr() as usize;
    let within = text.char_indices().nth(column.checked_sub(1)?)?.0;
    Some(start + within)
}

/// A place that asks.
struct Edit {
    /// What it replaces.
    range: Range<usize>,
    what: What,
}

enum What {
    /// Two operands, the operator, others for it.
    Binary(Range<usize>, Range<usize>, Range<usize>, Vec<(u32, String)>),
    /// An operator, its operand.
    Unary(Range<usize>, Range<usize>, u32),
    /// Values returned at once; an empty range.
    Body(Vec<(u32, String)>),
    /// An arm that is not there; an empty range behind its pattern.
    Arm(u32),
    /// Other values of a guard.
    Guard(Vec<(u32, String)>),
}

struct Finder<'a> {
    /// By where they begin, and whether they are bodies: a body begins where its first expression does.
    wanted: HashMap<(usize, bool), Vec<(u32, &'a Mutant)>>,
    edits: Vec<Edit>,
}

impl Finder<'_> {
    fn take(&mut self, at: usize, kind: Kind) -> Vec<(u32, String)> {
        let Some(found) = self.wanted.get_mut(&(at, kind == Kind::Body)) else {
            return Vec::new();
        };
        let (taken, left) = found.drain(..).partition(|(_, mutant)| mutant.kind == kind);
        *found = left;
        let taken: Vec<(u32, &Mutant)> = taken;
        let text = |(id, mutant): (u32, &Mutant)| (id, mutant.replacement.clone());
        taken.into_iter().map(text).collect()
    }

    fn body(&mut self, block: &syn::Block) {
        let Some(first) = block.stmts.first() else {
            return;
        };
        let at = first.span().byte_range().start;
        let values = self.take(at, Kind::Body);
        if !values.is_empty() {
            self.edits.push(Edit {
                range: at..at,
                what: What::Body(values),
            });
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.body(&item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.body(&item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.body(block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_expr_binary(&mut self, expr: &'ast syn::ExprBinary) {
        let operator = expr.op.span().byte_range();
        let others = self.take(operator.start, Kind::Binary);
        if !others.is_empty() {
            let (left, right) = (&expr.left, &expr.right);
            self.edits.push(Edit {
                range: left.span().byte_range().start..right.span().byte_range().end,
                what: What::Binary(
                    left.span().byte_range(),
                    right.span().byte_range(),
                    operator,
                    others,
                ),
            });
        }
        visit::visit_expr_binary(self, expr);
    }

    fn visit_expr_unary(&mut self, expr: &'ast syn::ExprUnary) {
        let operator = expr.op.span().byte_range();
        if let Some((id, _)) = self.take(operator.start, Kind::Unary).pop() {
            let operand = expr.expr.span().byte_range();
            self.edits.push(Edit {
                range: operator.start..operand.end,
                what: What::Unary(operator, operand, id),
            });
        }
        visit::visit_expr_unary(self, expr);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if let Some((id, _)) = self.take(arm.span().byte_range().start, Kind::Arm).pop() {
            let end = arm.pat.span().byte_range().end;
            self.edits.push(Edit {
                range: end..end,
                what: What::Arm(id),
            });
        }
        if let Some((_, guard)) = &arm.guard {
            let range = guard.span().byte_range();
            let values = self.take(range.start, Kind::Guard);
            if !values.is_empty() {
                self.edits.push(Edit {
                    range,
                    what: What::Guard(values),
                });
            }
        }
        visit::visit_arm(self, arm);
    }
}

/// The text of `range`, with what lies within it woven; `within` is the edit whose part this is.
fn render(source: &str, range: Range<usize>, edits: &[Edit], within: Option<usize>) -> String {
    // What is put before an expression is not put before its first part once more.
    let again =
        |edit: &Edit| within.is_some() && edit.range.is_empty() && edit.range.start == range.start;
    let inside = |edit: &Edit| {
        edit.range.start >= range.start && edit.range.end <= range.end && !again(edit)
    };
    let mut here: Vec<usize> = (0..edits.len())
        .filter(|at| Some(*at) != within && inside(&edits[*at]))
        .collect();
    // Outermost first where several begin at one byte, and an insertion before what it precedes.
    here.sort_by_key(|at| {
        let edit = &edits[*at].range;
        let length = edit.len();
        (edit.start, length != 0, usize::MAX - length)
    });
    let mut text = String::new();
    let mut done = range.start;
    for at in here {
        let edit = &edits[at];
        if edit.range.start < done {
            continue; // Within another, which has rendered it.
        }
        text += &source[done..edit.range.start];
        text += &woven(source, at, edits);
        done = edit.range.end;
    }
    text + &source[done..range.end]
}

fn woven(source: &str, at: usize, edits: &[Edit]) -> String {
    let part = |range: &Range<usize>| render(source, range.clone(), edits, Some(at));
    let edit = &edits[at];
    match &edit.what {
        What::Binary(left, right, operator, others) => {
            let (left, right) = (part(left), part(right));
            let mut text = "(".to_owned();
            for (id, other) in others {
                text += &format!("if {ASK}({id}) {{ ({left}) {other} ({right}) }} else ");
            }
            let operator = &source[operator.clone()];
            text + &format!("{{ ({left}) {operator} ({right}) }})")
        }
        What::Unary(operator, operand, id) => {
            let (operator, operand) = (&source[operator.clone()], part(operand));
            format!("(if {ASK}({id}) {{ {operand} }} else {{ {operator}({operand}) }})")
        }
        What::Body(values) => values
            .iter()
            .map(|(id, value)| format!("if {ASK}({id}) {{ return {value}; }} "))
            .collect(),
        What::Arm(id) => format!(" if !{ASK}({id})"),
        What::Guard(values) => {
            let mut text = "(".to_owned();
            for (id, value) in values {
                text += &format!("if {ASK}({id}) {{ {value} }} else ");
            }
            text + &format!("{{ {} }})", part(&edit.range))
        }
    }
}

/// The mutants whose question comes last before each of these bytes of a woven file.
pub(super) fn asked_before(woven: &str, bytes: &[usize]) -> Vec<u32> {
    let ask = format!("{ASK}(");
    let before = |byte: &usize| {
        let head = woven.get(..*byte)?;
        let digits = &head[head.rfind(&ask)? + ask.len()..];
        let end = digits.find(')').unwrap_or(digits.len());
        digits[..end].parse().ok()
    };
    bytes.iter().filter_map(before).collect()
}

/// The mutants of the block that opens behind this byte of a woven file: a match that lacks an arm, say.
pub(super) fn asked_within(woven: &str, byte: usize) -> Vec<u32> {
    let text = woven.get(byte..).unwrap_or_default();
    let mut depth = 0u32;
    let end = text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        (c == '}' && depth == 0).then_some(at)
    });
    let block = &text[..end.unwrap_or(text.len())];
    let ask = format!("{ASK}(");
    let ids = block.split(&ask).skip(1);
    ids.filter_map(|rest| rest.split(')').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn mutant(source: &str, kind: Kind, at: &str, replacement: &str) -> Mutant {
        let before = &source[..source.find(at).unwrap()];
        let line = before.split('\n').count();
        let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
        Mutant {
            name: String::new(),
            file: PathBuf::new(),
            kind,
            place: (line, column),
            replacement: replacement.to_owned(),
        }
    }

    #[test]
    fn places_ask_and_nested_ones_ask_within() {
        let source = "fn f(é: u8, b: u8) -> u8 {\n    é | (b & 1)\n}\n";
        let mutants = [
            mutant(source, Kind::Body, "é |", "0"),
            mutant(source, Kind::Binary, "| (", "^"),
            mutant(source, Kind::Binary, "& 1", "|"),
        ];
        let numbered: Vec<_> = (1..).zip(&mutants).collect();
        let (woven, lost) = weave(source, &numbered).unwrap();
        assert!(lost.is_empty(), "{lost:?}");
        let inner = format!("((if {ASK}(3) {{ (b) | (1) }} else {{ (b) & (1) }}))");
        assert_eq!(
            woven,
            format!(
                "fn f(é: u8, b: u8) -> u8 {{\n    if {ASK}(1) {{ return 0; }} \
                 (if {ASK}(2) {{ (é) ^ ({inner}) }} else {{ (é) | ({inner}) }})\n}}\n"
            )
        );
    }

    #[test]
    fn a_mutant_that_has_no_place_is_told() {
        let source = "fn f(a: u8) -> u8 {\n    m!(a | 1) + !a\n}\n";
        let mutants = [
            // No expression: a macro's argument.
            mutant(source, Kind::Binary, "| 1", "^"),
            mutant(source, Kind::Binary, "+ !", "-"),
            // Another of the same place, which asks once.
            mutant(source, Kind::Unary, "!a", ""),
            mutant(source, Kind::Unary, "!a", "-"),
            mutant(source, Kind::Arm, "m!", ""),
        ];
        let numbered: Vec<_> = (1..).zip(&mutants).collect();
        let (woven, lost) = weave(source, &numbered).unwrap();
        assert_eq!(lost.len(), 3, "{woven}");
        assert!(lost.contains(&1) && lost.contains(&5), "{lost:?}");
        assert!(
            lost.iter()
                .all(|id| !woven.contains(&format!("{ASK}({id})")))
        );
    }

    #[test]
    fn arms_guards_and_negations() {
        let source =
            "fn f(a: u8) -> bool { match a { 1 | 2 => !true, n if n > 3 => false, _ => true } }";
        let mutants = [
            mutant(source, Kind::Arm, "1 |", ""),
            mutant(source, Kind::Unary, "!true", ""),
            mutant(source, Kind::Guard, "n > 3", "true"),
        ];
        let numbered: Vec<_> = (1..).zip(&mutants).collect();
        let (woven, lost) = weave(source, &numbered).unwrap();
        assert!(lost.is_empty(), "{lost:?}");
        for part in [
            format!("1 | 2 if !{ASK}(1) => (if {ASK}(2) {{ true }} else {{ !(true) }}),"),
            format!("n if (if {ASK}(3) {{ true }} else {{ n > 3 }}) => false"),
        ] {
            assert!(woven.contains(&part), "{part} in {woven}");
        }
        assert_eq!(asked_before(&woven, &[woven.find("n > 3").unwrap()]), [3]);
        assert!(asked_before(&woven, &[3]).is_empty());
        let found = woven.find("match").unwrap();
        assert_eq!(asked_within(&woven, found), [1, 2, 3]);
    }
}
