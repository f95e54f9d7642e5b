// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VMM and its helper use between two marks that its guest prints: processor time and exits.
//!
//! ```text
//!   @io begin NAME                     from the guest (lab/io-load), on the VMM's standard output
//!   @io end NAME requests=N ns=T
//!   @figures NAME requests=N ns=T cpu_ns=.. vcpu_ns=.. exits=..        from here
//! ```

use std::fs;

use crate::proc;

/// Of what a process and its guest used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Processor time of all threads, in nanoseconds.
    cpu_ns: u64,
    /// Of it, of the threads that run processors of the guest, the guest's own instructions included.
    vcpu_ns: u64,
    /// Exits of all guests of this host.
    exits: u64,
}

impl Sample {
    /// Looks at process `pid`, and at the helpers.
    pub(crate) fn take(pid: u32, helpers: &[u32]) -> Result<Self, String> {
        let mut sample = Self::default();
        for (index, &pid) in [pid].iter().chain(helpers).enumerate() {
            for thread in proc::threads(pid)? {
                sample.cpu_ns += thread.cpu_ns;
                if index == 0 && runs_a_processor(&thread.name) {
                    sample.vcpu_ns += thread.cpu_ns;
                }
            }
        }
        let path = "/sys/kernel/debug/kvm/exits";
        let exits = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
        sample.exits = exits
            .trim()
            .parse()
            .map_err(|e| format!("{path}: {exits}: {e}"))?;
        Ok(sample)
    }

    fn since(self, before: Self) -> Self {
        // A thread that ends takes its time with it; none does while a guest is at work.
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            vcpu_ns: self.vcpu_ns.saturating_sub(before.vcpu_ns),
            exits: self.exits.saturating_sub(before.exits),
        }
    }
}

/// Ours are called `vcpu0`, QEMU's `CPU 0/KVM`.
fn runs_a_processor(name: &str) -> bool {
    name.starts_with("vcpu") || name.starts_with("CPU ")
}

/// Follows a VMM's output.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    line: Vec<u8>,
    begun: Option<(String, Sample)>,
}

impl Marks {
    /// Takes a piece of output; returns lines to print. `sample` is called at a mark.
    pub(crate) fn feed(
        &mut self,
        piece: &[u8],
        sample: &mut dyn FnMut() -> Result<Sample, String>,
    ) -> Result<Vec<String>, String> {
        let mut said = Vec::new();
        for &byte in piece {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            if let Some(name) = line.strip_prefix("@io begin ") {
                self.begun = Some((name.to_owned(), sample()?));
            } else if let Some(end) = line.strip_prefix("@io end ") {
                let now = sample()?;
                let Some((name, before)) = self.begun.take() else {
                    return Err(format!("an end without a beginning: {line}"));
                };
                let figures = end
                    .strip_prefix(&name)
                    .ok_or(format!("{name} began, and not what ends here: {line}"))?;
                let used = now.since(before);
                said.push(format!(
                    "@figures {name}{figures} cpu_ns={} vcpu_ns={} exits={}",
                    used.cpu_ns, used.vcpu_ns, used.exits
                ));
            } else {
                said.push(line.to_owned());
            }
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_between_the_marks_is_said() {
        let mut samples = [(100, 60, 7), (350, 200, 27)]
            .map(|(cpu_ns, vcpu_ns, exits)| Sample {
                cpu_ns,
                vcpu_ns,
                exits,
            })
            .into_iter();
        let mut sample = || samples.next().ok_or("too many".to_owned());
        let mut marks = Marks::default();
        let mut said = Vec::new();
        for piece in [
            "hello\r\n@io be",
            "gin a job\r\n@io end a job requests=5 n",
            "s=9\n@io",
        ] {
            said.extend(marks.feed(piece.as_bytes(), &mut sample).unwrap());
        }
        let figures = "@figures a job requests=5 ns=9 cpu_ns=250 vcpu_ns=140 exits=20";
        assert_eq!(said, ["hello", figures]);

        let mut sample = || Ok(Sample::default());
        let wrong = ["@io end x requests=1\n", "@io begin a\n@io end b n=1\n"];
        for text in wrong {
            assert!(Marks::default().feed(text.as_bytes(), &mut sample).is_err());
        }
    }
}
