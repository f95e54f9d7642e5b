// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tour must print, by the manual.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

/// How many raw words an exit has: reason, qualification, instruction information, event and its error code, original event
/// and its error code, instruction length, linear and physical address.
const WORDS: usize = 10;

/// The basic exit reasons that the steps must give, in their order. SDM Vol. 3D, "VMX Basic Exit Reasons".
const REAL_MODE: &[u64] = &[10, 12, 30, 31, 28, 30, 46, 18];
const LONG_MODE: &[u64] = &[
    // CPUID, RDMSR, WRMSR, HLT, PAUSE, INVD, WBINVD, INVLPG, RDTSC, RDTSCP, RDPMC, MONITOR, MWAIT
    10, 31, 32, 12, 40, 13, 54, 14, 16, 51, 15, 39, 36, //
    // RDRAND twice, RDSEED, XSETBV, INVPCID, seven accesses to ports
    57, 57, 61, 55, 58, 30, 30, 30, 30, 30, 30, 30, //
    // CR0, CLTS, LMSW twice, CR3 twice, CR4, CR8 twice, DR7, DR3
    28, 28, 28, 28, 28, 28, 28, 28, 28, 29, 29, //
    // SGDT, SIDT, LGDT, LIDT, SLDT, STR, LLDT, LTR
    46, 46, 46, 46, 47, 47, 47, 47, //
    // VMCLEAR, VMPTRLD, VMPTRST, VMXON, VMXOFF, VMLAUNCH, VMRESUME, VMREAD twice, VMWRITE, INVEPT, INVVPID, VMFUNC
    19, 21, 22, 27, 26, 20, 24, 23, 23, 25, 50, 53, 59, //
    // A read of a hole; the write finds it filled; taken away; filled by a write; taken away; a fetch; two writes to a page
    // that cannot be written; a walk through a hole; the APIC-access page twice
    48, 18, 48, 18, 48, 48, 48, 48, 44, 44, //
    // Ten exceptions
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
    // Calls, the timer, an interrupt, the window, the triple fault, the end
    18, 18, 52, 1, 18, 7, 18, 2, 18,
];

/// The rules by which each failure must be explained, in their order, and how the processor reported it.
const PROVOKED: &[(&str, &str)] = &[
    ("execution.cr3-target-count", "error 7"),
    ("execution.eptp.walk-length", "error 7"),
    ("execution.apic-access.address", "error 7"),
    ("host.tr.not-null", "error 8"),
    ("host.base.canonical", "error 8"),
    ("guest.rflags.reserved", "qualification 0"),
    ("guest.cs.db", "qualification 0"),
    ("guest.rflags.if", "qualification 0"),
    ("guest.activity.supported", "qualification 0"),
    ("guest.link-pointer.address", "qualification 4"),
];

/// What a tour was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) exits: usize,
    pub(super) reasons: usize,
    pub(super) failures: usize,
}

/// Holds what was printed against what must come.
pub(super) fn verify(text: &str) -> Result<Seen> {
    let (real, long) = text
        .split_once("type1: 64-bit mode")
        .context("there is no 64-bit mode")?;
    let mut reasons = BTreeSet::new();
    let mut exits = 0;
    for (mode, text, expected) in [("real", real, REAL_MODE), ("64-bit", long, LONG_MODE)] {
        let found: Vec<u64> = raw_exits(text).map(|(words, _)| words[0]).collect();
        if let Some(at) =
            (0..found.len().max(expected.len())).find(|&i| found.get(i) != expected.get(i))
        {
            bail!(
                "exit {at} in {mode} mode has reason {:?}, not {:?}",
                found.get(at),
                expected.get(at)
            );
        }
        exits += found.len();
        reasons.extend(found);
        let checked = text.contains("check: no rule is broken, 0 undecided");
        ensure!(checked, "the guest in {mode} mode was not checked");
    }
    let counted = format!("exits: {} in all", LONG_MODE.len());
    ensure!(text.contains(&counted), "no \"{counted}\"");
    let failures = failures(text)?;
    ensure!(
        text.contains("provoked: nothing, and the guest runs"),
        "the VMCS was not as before"
    );
    ensure!(
        text.contains("--- VMCS\nGuest state\n"),
        "no VMCS was dumped"
    );
    ensure!(
        text.ends_with("type1: left VMX operation\n"),
        "VMX operation was not left"
    );
    Ok(Seen {
        exits,
        reasons: reasons.len(),
        failures,
    })
}

/// The raw words and the step of each exit.
fn raw_exits(text: &str) -> impl Iterator<Item = ([u64; WORDS], &str)> {
    text.lines().filter_map(|line| {
        let mut parts = line.strip_prefix("exit ")?.split(" | ");
        let mut words = [0; WORDS];
        let mut given = parts.next()?.split(' ');
        for word in &mut words {
            *word = u64::from_str_radix(given.next()?, 16).ok()?;
        }
        Some((words, parts.next()?))
    })
}

/// Sees that each provoked failure was explained by its one rule.
fn failures(text: &str) -> Result<usize> {
    let parts: Vec<&str> = text.split("provoked: ").skip(1).collect();
    ensure!(
        parts.len() == PROVOKED.len() + 1,
        "{} failures were provoked",
        parts.len()
    );
    for (part, (rule, reported)) in parts.iter().zip(PROVOKED) {
        let because = part
            .lines()
            .filter_map(|line| line.strip_prefix("  because "));
        let rules: Vec<&str> = because.filter_map(|line| line.split(": ").next()).collect();
        ensure!(rules == [*rule], "explained by {rules:?}, not {rule}");
        let failure = part.lines().find(|line| line.starts_with("failure: "));
        ensure!(
            failure.is_some_and(|line| line.contains(reported)),
            "{rule} was reported as {failure:?}"
        );
    }
    Ok(PROVOKED.len())
}

/// The exits as a file: the words, and the step that gave them.
pub(super) fn record(text: &str, version: &str) -> String {
    let mut file = format!(
        "# Exits of {version}, by `cargo xtask type1 --record`.\n\
         # reason qualification instruction-information event error-code original-event original-error-code length \
         linear physical # step\n"
    );
    for (words, step) in raw_exits(text) {
        let words = words.map(|word| format!("{word:x}")).join(" ");
        file += &format!("{words} # {step}\n");
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed() -> String {
        let exits = |reasons: &[u64]| {
            let lines = reasons
                .iter()
                .map(|reason| format!("exit {reason:x} 0 0 0 0 0 0 0 0 0 | hlt | words\n"));
            lines.collect::<String>()
        };
        let check = "check: no rule is broken, 0 undecided\n";
        let failures = PROVOKED.iter().map(|(rule, reported)| {
            format!("provoked: it\nfailure: {reported}\n  because {rule}: value. [Section]\n")
        });
        format!(
            "type1: real mode\n{check}{}type1: 64-bit mode\n{check}{}exits: {} in all\n{}--- VMCS\nGuest state\n\
             provoked: nothing, and the guest runs\ntype1: left VMX operation\n",
            exits(REAL_MODE),
            exits(LONG_MODE),
            LONG_MODE.len(),
            failures.collect::<String>()
        )
    }

    #[test]
    fn a_tour_as_it_must_be_passes() {
        let seen = verify(&printed()).unwrap();
        assert_eq!(seen.exits, REAL_MODE.len() + LONG_MODE.len());
        assert_eq!(seen.failures, 10);
    }

    #[test]
    fn each_thing_that_is_missing_is_found() {
        for (piece, instead) in [
            ("exit 30 0", "exit 31 0"),
            ("exit a 0 0 0 0 0 0 0 0 0 | hlt | words\n", ""),
            (
                "check: no rule is broken, 0 undecided",
                "check: no rule is broken, 1 undecided",
            ),
            ("because host.tr.not-null", "because host.tr.null"),
            ("failure: qualification 4", "failure: qualification 0"),
            ("provoked: nothing, and the guest runs", ""),
            ("--- VMCS", ""),
            ("type1: left VMX operation\n", ""),
            ("in all", ""),
        ] {
            let text = printed();
            assert!(text.contains(piece), "{piece}");
            assert!(
                verify(&text.replacen(piece, instead, 1)).is_err(),
                "{piece}"
            );
        }
    }

    #[test]
    fn the_record_has_words_and_steps() {
        let file = record(
            "exit 30 181 0 0 0 0 0 3 300008 300008 | mov rax, [rbx] | EPT violation\n",
            "B",
        );
        assert!(file.starts_with("# Exits of B, by"));
        assert!(
            file.ends_with("\n30 181 0 0 0 0 0 3 300008 300008 # mov rax, [rbx]\n"),
            "{file}"
        );
    }
}
