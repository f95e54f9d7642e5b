// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits by reason between the guest's marks: a histogram that the host's kernel makes of its trace event `kvm_exit`.
//!
//! The guest does its work twice. While it boots and in the second time the kernel counts, which costs instructions at each exit; in the
//! first time only KVM's own number of all exits is read, so that instructions are the guest's and KVM's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hvkit_vmcs::exit::ExitReason;
use lab_cases::type1::MARKS;

/// KVM's number of exits.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// What the event's trigger is told to count, and, after a "!", to forget it.
const HISTOGRAM: &str = "hist:keys=exit_reason";

/// Exits so far, by the number of their reason.
type Tally = BTreeMap<u32, u64>;

/// What was counted at each mark.
#[derive(Debug)]
pub(crate) struct Counts {
    /// The trace event's folder.
    event: PathBuf,
    boot: Tally,
    /// At each mark of both times: all exits so far.
    all: Vec<u64>,
    /// At each mark of the second time.
    marks: Vec<Tally>,
}

impl Counts {
    /// Begins to count, by the trace event in this folder.
    pub(crate) fn begin(event: &Path) -> Result<Self> {
        let counts = Self {
            event: event.to_owned(),
            boot: Tally::new(),
            all: Vec::new(),
            marks: Vec::new(),
        };
        counts.trigger(HISTOGRAM)?;
        Ok(counts)
    }

    /// The guest is at the next mark.
    pub(crate) fn mark(&mut self) -> Result<()> {
        let all = fs::read_to_string(EXITS).with_context(|| format!("cannot read {EXITS}"))?;
        self.all.push(all.trim().parse()?);
        match self.all.len() - 1 {
            0 => {
                self.boot = self.read()?;
                self.trigger(&format!("!{HISTOGRAM}"))?;
            }
            MARKS => {
                self.trigger(HISTOGRAM)?;
                self.marks.push(self.read()?);
            }
            number if number > MARKS => self.marks.push(self.read()?),
            _ => {}
        }
        Ok(())
    }

    fn trigger(&self, what: &str) -> Result<()> {
        let file = self.event.join("trigger");
        fs::write(&file, what).with_context(|| format!("cannot write {}", file.display()))
    }

    fn read(&self) -> Result<Tally> {
        let file = self.event.join("hist");
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        Ok(tally(&text))
    }

    /// Prints what came before the first mark, between one and the next, as the hypervisor of `examples/type1` does; and all
    /// exits of each part of the first time, for comparison.
    pub(crate) fn print(&self) {
        print(" boot", &self.boot);
        for (number, pair) in (0..).zip(self.marks.windows(2)) {
            if let [before, after] = pair {
                print(&format!(" {number}"), &since(after, before));
            }
        }
        for (number, pair) in self.all.windows(2).take(MARKS - 1).enumerate() {
            if let [before, after] = pair {
                println!("uncounted {number}: {} exits", after - before);
            }
        }
    }
}

/// What came to `after` since `before`.
fn since(after: &Tally, before: &Tally) -> Tally {
    let more = after
        .iter()
        .map(|(reason, count)| (*reason, count - before.get(reason).unwrap_or(&0)));
    more.filter(|(_, count)| *count != 0).collect()
}

fn print(of: &str, tally: &Tally) {
    for (reason, count) in tally {
        println!("exits{of}: {count} 0 {}", ExitReason(*reason));
    }
    println!("exits{of}: {} in all", tally.values().sum::<u64>());
}

/// The lines "{ exit_reason: 10 } hitcount: 123".
fn tally(text: &str) -> Tally {
    let number = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    text.lines()
        .filter_map(|line| {
            let reason = number(line, "exit_reason:")?;
            Some((u32::try_from(reason).ok()?, number(line, "hitcount:")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read() {
        let text = "# event histogram\n#\n\n{ exit_reason:          1 } hitcount:         12\n\
                    { exit_reason:         48 } hitcount:       7\n\nTotals:\n    Hits: 19\n";
        let seen = tally(text);
        assert_eq!(seen, BTreeMap::from([(1, 12), (48, 7)]));
        let before = BTreeMap::from([(1, 12), (48, 2)]);
        assert_eq!(since(&seen, &before), BTreeMap::from([(48, 5)]));
    }
}
