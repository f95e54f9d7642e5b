// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must come of guests that reach for the hypervisor, and of a fault of its own.

use anyhow::{Context, Result, bail, ensure};

/// What an attempt gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    /// It ends without an exception, and RAX holds this.
    Rax(u64),
    /// An exception: vector, error code.
    Exception(u8, u32),
    /// It is the guest's end.
    End,
}

use Gives::{End, Exception, Rax};

/// What RAX holds before each attempt.
const UNCHANGED: Gives = Rax(0x77);
/// Half of it in a page, half in the page directory behind it.
const ACROSS: u64 = 0x83_0000_0077;
const NOTHING: Gives = Rax(0);
const UNDEFINED: Gives = Exception(6, 0);
const PROTECTED: Gives = Exception(13, 0);
const NMI: Gives = Exception(2, 0);
/// A page fault of the guest's own: an entry that reads as zeros is not present.
const ABSENT: Gives = Exception(14, 0);

/// An attempt, what it gives under EPT, and on shadow page tables.
type Attempt = (&'static str, Gives, Gives);

/// Each of them, in order.
const ATTEMPTS: &[Attempt] = &[
    // The first guest alone finds it.
    ("an NMI that came before", NMI, UNCHANGED),
    ("load from its page tables", NOTHING, NOTHING),
    ("load from its code", NOTHING, NOTHING),
    ("load from its shadow tables", NOTHING, NOTHING),
    ("store to its page tables", PROTECTED, PROTECTED),
    ("store to its code", PROTECTED, PROTECTED),
    ("store to its shadow tables", PROTECTED, PROTECTED),
    ("exchange with its code", PROTECTED, PROTECTED),
    ("jump into its code", PROTECTED, PROTECTED),
    ("another address of its code", NOTHING, NOTHING),
    ("store to another address of its code", PROTECTED, PROTECTED),
    // With accessed and dirty flags a walk by EPT counts as a write. A shadow's walk finds zeros.
    ("a page table in its code", PROTECTED, ABSENT),
    ("a page directory in its page tables", PROTECTED, ABSENT),
    ("RDMSR of IA32_VMX_BASIC", PROTECTED, PROTECTED),
    ("RDMSR of IA32_VMX_EPT_VPID_CAP", PROTECTED, PROTECTED),
    ("WRMSR to IA32_FEATURE_CONTROL", PROTECTED, PROTECTED),
    ("IA32_APIC_BASE as it is", UNCHANGED, UNCHANGED),
    ("IA32_APIC_BASE at its code", PROTECTED, PROTECTED),
    ("RDMSR of IA32_RTIT_OUTPUT_BASE", PROTECTED, PROTECTED),
    ("processor trace in CPUID", NOTHING, NOTHING),
    ("WRMSR to IA32_DS_AREA", PROTECTED, PROTECTED),
    ("WRMSR to IA32_PEBS_ENABLE", PROTECTED, PROTECTED),
    ("debug store in CPUID", NOTHING, NOTHING),
    ("VMX in CPUID", NOTHING, NOTHING),
    ("CR4.VMXE", PROTECTED, PROTECTED),
    ("VMXON", UNDEFINED, UNDEFINED),
    ("VMREAD", UNDEFINED, UNDEFINED),
    ("INVEPT", UNDEFINED, UNDEFINED),
    ("VMCALL", UNDEFINED, UNDEFINED),
    // What it writes lands where it writes it.
    (
        "a store across into a page directory",
        Rax(ACROSS),
        Rax(ACROSS),
    ),
    (
        "1100 stores across into a page directory",
        Rax(ACROSS),
        Rax(ACROSS),
    ),
    (
        "a move from ROM into a page directory, less what is in ROM",
        NOTHING,
        NOTHING,
    ),
    ("CR4.PKE less OSPKE in CPUID", NOTHING, NOTHING),
    (
        "INVPCID with a descriptor that is none",
        PROTECTED,
        PROTECTED,
    ),
    (
        "CR0.PG and CR0.NE cleared in 64-bit code",
        PROTECTED,
        PROTECTED,
    ),
    ("CR0.PG cleared in 64-bit code", PROTECTED, PROTECTED),
    // Real mode takes an unrestricted guest, which takes EPT.
    ("CR0.PE cleared, and set again", UNCHANGED, PROTECTED),
    // Under EPT a guest's CR3 is its own business, and this one's end.
    ("CR3 in its page tables", End, PROTECTED),
    ("INIT to its own processor", End, End),
];

/// How many of them a guest comes to: up to the first that is its end. What is behind cannot fail.
fn reached(attempts: impl Iterator<Item = Gives>) -> usize {
    let mut attempts = attempts.enumerate();
    let end = attempts.find(|(_, gives)| *gives == End);
    end.map_or(ATTEMPTS.len(), |(before, _)| before + 1)
}

/// Lines that must come besides.
const EPT_SAYS: &[&str] = &[
    "type1: an NMI in the hypervisor at RIP ",
    "isolation: 0x4008 reads nothing: ",
    "isolation: 0x4008 refused: ",
    "isolation: 0x200000 refused: Violation",
    "isolation: 0x480 refused: Msr",
    "isolation: 0x1b refused: Msr",
    "isolation: 0x560 refused: Msr",
    "isolation: 0x600 refused: Msr",
    "isolation: 0x3f1 refused: Msr",
    "type1: the guest shut down",
];
const SHADOW_SAYS: &[&str] = &[
    "type1: real mode refused: ",
    "isolation: 0x4008 reads nothing: ",
    "isolation: 0x4008 refused: ",
    "isolation: 0x4000 refused: PageTables",
    "isolation: 0x480 refused: Msr",
    "isolation: 0x1b refused: Msr",
    "isolation: 0x560 refused: Msr",
    "isolation: 0x600 refused: Msr",
    "isolation: 0x3f1 refused: Msr",
    "type1: the guest resets its processor by INIT",
    "exits: 1 ",
];

/// Holds what was printed against what must come; returns how many attempts there were.
pub(super) fn verify(text: &str) -> Result<usize> {
    let (ept, shadow) = text
        .split_once("type1: reach, paging Shadow")
        .context("there is no guest on shadow page tables")?;
    let attempts =
        |of: fn(&Attempt) -> Gives| ATTEMPTS.iter().map(move |attempt| (attempt.0, of(attempt)));
    one("EPT", ept, attempts(|a| a.1), EPT_SAYS)?;
    one("shadow paging", shadow, attempts(|a| a.2), SHADOW_SAYS)?;
    let [ept, shadow] = [|a: &Attempt| a.1, |a: &Attempt| a.2];
    Ok(reached(ATTEMPTS.iter().map(ept)) + reached(ATTEMPTS.iter().map(shadow)))
}

fn one<'a>(
    paging: &str,
    text: &str,
    attempts: impl ExactSizeIterator<Item = (&'a str, Gives)>,
    says: &[&str],
) -> Result<()> {
    let mut found = text.lines().filter_map(|line| line.strip_prefix("reach: "));
    for (name, gives) in attempts {
        let line = found.next().map(str::trim_end);
        let wanted = match gives {
            Rax(value) => format!("{name}: RAX {value:#x}"),
            Exception(vector, code) => {
                format!("{name}: exception {vector}, error code {code:#x}")
            }
            End => format!("{name}: did not come back"),
        };
        ensure!(
            line == Some(&wanted),
            "under {paging}: {line:?}, not \"{wanted}\""
        );
    }
    if let Some(more) = found.next() {
        bail!("under {paging}: nobody asked for \"{more}\"");
    }
    for wanted in says {
        ensure!(
            text.lines().any(|line| line.starts_with(wanted)),
            "under {paging}: no line \"{wanted}\""
        );
    }
    Ok(())
}

/// Holds what a fault of the hypervisor's own printed against what must come.
pub(super) fn verify_fault(text: &str) -> Result<()> {
    let fault = text
        .lines()
        .find_map(|line| line.strip_prefix("fault: exception 14 in the hypervisor, "));
    let fault = fault.context("no fault was told")?;
    ensure!(
        fault.contains(" at RIP 0x2") && fault.ends_with("CR2 0x123456789000"),
        "the fault was told as {fault}"
    );
    for wanted in [
        "  guest.rflags.reserved: ",
        "fault: the VMCS: ",
        "--- VMCS",
        "Guest state",
        "--- end",
    ] {
        ensure!(
            text.lines().any(|line| line.starts_with(wanted)),
            "no line \"{wanted}\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed() -> String {
        let guest = |of: fn(&Attempt) -> Gives, says: &[&str]| {
            let mut text = says.join("x\n") + "x\n";
            for attempt in ATTEMPTS {
                let what = match of(attempt) {
                    Rax(value) => format!("RAX {value:#x}"),
                    Exception(vector, code) => {
                        format!("exception {vector}, error code {code:#x}")
                    }
                    End => "did not come back".to_owned(),
                };
                text += &format!("reach: {}: {what}\r\n", attempt.0);
            }
            text
        };
        let ept = guest(|a| a.1, EPT_SAYS);
        let shadow = guest(|a| a.2, SHADOW_SAYS);
        format!("{ept}type1: reach, paging Shadow\n{shadow}")
    }

    #[test]
    fn guests_that_reach_nothing_pass_and_each_that_reaches_something_is_found() {
        // Under EPT a guest does not come to the last.
        assert_eq!(verify(&printed()).unwrap(), 2 * ATTEMPTS.len() - 1);
        for (piece, instead) in [
            ("load from its code: RAX 0x0", "load from its code: RAX 0x1"),
            ("VMXON: exception 6", "VMXON: exception 13"),
            (
                "VMXON: exception 6, error code 0x0\r\n",
                "VMXON: RAX 0x77\r\n",
            ),
            ("isolation: 0x4000 refused: PageTables", "isolation: 1"),
            ("type1: an NMI in", "type1: a fault in"),
            ("paging Shadow", "paging None"),
            ("type1: real mode refused", "type1: real mode"),
        ] {
            let text = printed();
            assert!(text.contains(piece), "{piece}");
            assert!(
                verify(&text.replacen(piece, instead, 1)).is_err(),
                "{piece}"
            );
        }
        assert!(verify(&(printed() + "reach: more: RAX 0x0\n")).is_err());
    }

    #[test]
    fn a_fault_is_told_with_where_it_was_and_the_vmcs() {
        let text = "fault: exception 14 in the hypervisor, error code 0x0, at RIP 0x2260d0, RSP 0x8efa0, RFLAGS 0x10046, CR2 0x123456789000\n\
                    the payload panicked: x\n  guest.rflags.reserved: x\nfault: the VMCS: x\n--- VMCS\nGuest state\n--- end\n";
        verify_fault(text).unwrap();
        for piece in [
            "exception 14",
            "guest.rflags",
            "--- VMCS",
            "RIP 0x2",
            "the VMCS:",
        ] {
            assert!(
                verify_fault(&text.replacen(piece, "", 1)).is_err(),
                "{piece}"
            );
        }
    }
}
