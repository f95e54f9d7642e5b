// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that look into physical memory: VTPR, the linked VMCS, PDPTEs in memory, the MSR-load area.

use std::collections::BTreeMap;

use super::*;

/// Rules tested here.
pub(super) const RULES: [&str; 9] = [
    "execution.tpr-threshold.vtpr",
    "guest.link-pointer.revision",
    "guest.pdpte.memory",
    "msr-load.fs-gs-base",
    "msr-load.x2apic",
    "msr-load.smm-only",
    "msr-load.model",
    "msr-load.reserved",
    "msr-load.value",
];

/// Bytes at addresses; the rest cannot be read.
#[derive(Default)]
struct Ram(BTreeMap<u64, u8>);

impl Ram {
    fn with(mut self, address: u64, bytes: &[u8]) -> Self {
        self.0.extend((address..).zip(bytes.iter().copied()));
        self
    }
    fn msr(self, address: u64, index: u64, value: u64) -> Self {
        self.with(address, &index.to_le_bytes())
            .with(address + 8, &value.to_le_bytes())
    }
}

impl PhysicalMemory for &Ram {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        for (at, byte) in (address..).zip(into) {
            *byte = *self.0.get(&at).ok_or(Unreadable { address })?;
        }
        Ok(())
    }
}

/// The ids broken, what the processor says, and how many rules stay undecided.
fn check(case: &Case, changes: &[Change], ram: &Ram) -> (Vec<&'static str>, String, u32) {
    let mut ids = Vec::new();
    let checker = Checker::new(&case.cpu).at(case.moment).with_memory(ram);
    let verdict = checker.check(&case.vmcs(changes), &mut |violation: &Violation| {
        ids.push(violation.rule.id);
    });
    (ids, verdict.outcome().to_string(), verdict.undecided)
}

#[test]
fn tpr_threshold_against_vtpr() {
    let on = case("execution.tpr-threshold.vtpr").base([or(0x4002, 1 << 21), set(0x2012, 0x3000)]);
    let vtpr = |value: u8| Ram::default().with(0x3080, &[value]);
    let with = |threshold, ram: &Ram| check(&on, &[set(0x401c, threshold)], ram);
    let (ids, said, _) = with(4, &vtpr(0x3f));
    assert_eq!(ids, ["execution.tpr-threshold.vtpr"]);
    assert!(said.starts_with("VMfailValid: error 7"));
    assert!(with(4, &vtpr(0x40)).0.is_empty());
    // Without the page nothing can be said, but a threshold of 0 always passes.
    assert_eq!(
        with(4, &Ram::default()),
        (vec![], "the guest runs".into(), 1)
    );
    assert_eq!(with(0, &Ram::default()).2, 0);
    // Not if APIC accesses are virtualized.
    assert!(
        check(&on, &[set(0x401c, 4), or(0x401e, 1)], &vtpr(0))
            .0
            .is_empty()
    );
}

#[test]
fn the_linked_vmcs_has_the_revision_and_the_shadow_bit() {
    let on = case("guest.link-pointer.revision").base([set(0x2800, 0x7000)]);
    let header = |word: u32| Ram::default().with(0x7000, &word.to_le_bytes());
    let shadowing = [or(0x401e, 1 << 14)];
    let bad = (
        vec!["guest.link-pointer.revision"],
        "exit reason 33, VM-entry failure due to invalid guest state, qualification 4".to_owned(),
        0,
    );
    assert!(check(&on, &[], &header(0x1234)).0.is_empty());
    assert_eq!(check(&on, &[], &header(0x1235)), bad);
    assert_eq!(check(&on, &[], &header(0x8000_1234)), bad);
    assert_eq!(check(&on, &shadowing, &header(0x1234)), bad);
    assert!(check(&on, &shadowing, &header(0x8000_1234)).0.is_empty());
    assert_eq!(check(&on, &[], &Ram::default()).2, 1);
}

#[test]
fn pdptes_in_memory_without_ept() {
    let on = case("guest.pdpte.memory")
        .seed(Seed::Pae)
        .base([set(0x401e, 0), set(0x6802, 0x12_3460)]);
    let table = |last: u64| {
        Ram::default()
            .with(0x12_3460, &[0; 24])
            .with(0x12_3478, &last.to_le_bytes())
    };
    assert!(check(&on, &[], &table(0x5001)).0.is_empty());
    assert!(check(&on, &[], &table(0x5006)).0.is_empty(), "not present");
    let (ids, said, _) = check(&on, &[], &table(0x5003));
    assert_eq!(ids, ["guest.pdpte.memory"]);
    assert!(said.ends_with("qualification 2"));
    assert_eq!(check(&on, &[], &Ram::default()).2, 1);
    // Each of the four is named by its own address.
    let mut bytes = [0; 32];
    for entry in bytes.chunks_mut(8) {
        entry.copy_from_slice(&0x5003u64.to_le_bytes());
    }
    let all = Ram::default().with(0x12_3460, &bytes);
    let mut places = Vec::new();
    let checker = Checker::new(&on.cpu).at(on.moment).with_memory(&all);
    checker.check(&on.vmcs(&[]), &mut |violation: &Violation| {
        places.push(violation.place);
    });
    let expected = [0x12_3460, 0x12_3468, 0x12_3470, 0x12_3478];
    assert_eq!(places, expected.map(|address| Place::Memory { address }));
}

#[test]
fn msr_entries_fail_by_number() {
    const AREA: u64 = 0x9000;
    let on = |count| case("msr-load.value").base([set(0x4014, count), set(0x200a, AREA)]);
    let good =
        Ram::default()
            .msr(AREA, 0xc000_0081, 0)
            .msr(AREA + 16, 0x277, 0x0606_0606_0606_0606);
    assert_eq!(
        check(&on(2), &[], &good),
        (vec![], "the guest runs".into(), 0)
    );

    for (index, value, rule) in [
        (0xc000_0100, 0, "msr-load.fs-gs-base"),
        (0xc000_0101, 0, "msr-load.fs-gs-base"),
        (0x800, 0, "msr-load.x2apic"),
        (0x8ff, 0, "msr-load.x2apic"),
        (0x9b, 0, "msr-load.smm-only"),
        (0x79, 0, "msr-load.model"),
        (0x1_0000_0277, 0, "msr-load.reserved"),
        (1_u64 << 63, 0, "msr-load.reserved"),
        (0x277, 2, "msr-load.value"),
        (0xc000_0080, 2, "msr-load.value"),
        (0xc000_0082, 1 << 56, "msr-load.value"),
        (0x176, 1 << 62, "msr-load.value"),
        (0x1d9, 4, "msr-load.value"),
        (0x38f, 1 << 63, "msr-load.value"),
        (0x48, 1 << 3, "msr-load.value"),
        (0xc000_0084, 1 << 32, "msr-load.value"),
        (0xc000_0103, 1 << 32, "msr-load.value"),
    ] {
        let ram = Ram::default()
            .msr(AREA, 0x174, 0)
            .msr(AREA + 16, index, value)
            .msr(AREA + 32, index, value);
        let (ids, said, _) = check(&on(3), &[], &ram);
        assert_eq!(ids, [rule, rule], "{index:#x}");
        assert_eq!(
            said,
            "exit reason 34, VM-entry failure due to MSR loading, qualification 2"
        );
        // Entries beyond the count do not matter.
        assert!(check(&on(1), &[], &ram).0.is_empty());
    }
}

/// LME changes only without paging, and "IA-32e mode guest" says what it is when the list is read.
#[test]
fn an_entry_for_efer_keeps_lme_while_the_guest_pages() {
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    const NXE: u64 = 1 << 11;
    let on = |seed| {
        case("msr-load.value")
            .seed(seed)
            .base([set(0x4014, 1), set(0x200a, 0x9000)])
    };
    for (seed, value, loads) in [
        (Seed::LongMode, LME, true),
        (Seed::LongMode, LME | LMA | NXE, true),
        (Seed::LongMode, LMA | NXE, false),
        (Seed::LongMode, 0, false),
        (Seed::Pae, NXE, true),
        (Seed::Pae, LME | NXE, false),
        // No paging: as it likes.
        (Seed::RealMode, 0, true),
        (Seed::RealMode, LME, true),
    ] {
        let ram = Ram::default().msr(0x9000, 0xc000_0080, value);
        let (ids, said, _) = check(&on(seed), &[], &ram);
        let expected: &[&str] = if loads { &[] } else { &["msr-load.value"] };
        assert_eq!(ids, expected, "{seed:?} {value:#x}");
        assert!(loads || said.ends_with("due to MSR loading, qualification 1"));
    }
}

#[test]
fn smm_may_load_what_only_smm_writes() {
    let on = case("msr-load.smm-only")
        .at(Moment {
            smm: true,
            ..Moment::default()
        })
        .base([set(0x4014, 1), set(0x200a, 0x9000), set(0x200c, 0x1000)]);
    let ram = Ram::default().msr(0x9000, 0x9b, 0);
    assert_eq!(check(&on, &[], &ram), (vec![], "the guest runs".into(), 1));
}

#[test]
fn unknown_msrs_and_endless_lists_are_undecided() {
    let on = |count| case("msr-load.value").base([set(0x4014, count), set(0x200a, 0x9000)]);
    let ram = Ram::default().msr(0x9000, 0x4711, 0);
    assert_eq!(check(&on(1), &[], &ram).2, 1);
    assert_eq!(check(&on(2), &[], &ram).2, 2, "and one that cannot be read");

    // Memory without end, a list of 2^32 - 1 entries: 4096 are looked at.
    let everywhere = |_: u64, into: &mut [u8]| {
        into.fill(0);
        let index = 0x174_u32.to_le_bytes();
        into.iter_mut()
            .zip(index)
            .for_each(|(byte, new)| *byte = new);
        Ok(())
    };
    let list = case("msr-load.value").base([set(0x4014, u32::MAX.into()), set(0x200a, 0x9000)]);
    let verdict = Checker::new(&list.cpu)
        .with_memory(everywhere)
        .check(&list.vmcs(&[]), &mut |violation: &Violation| {
            panic!("{violation}")
        });
    assert_eq!((verdict.outcome(), verdict.undecided), (Outcome::Enters, 1));
}

#[test]
fn a_caller_who_knows_the_model_decides() {
    struct Model;
    impl MsrLoading for Model {
        fn load(&self, index: u32, _: u64) -> MsrVerdict {
            if index == 0x4711 {
                MsrVerdict::NotLoadable
            } else {
                MsrVerdict::Loads
            }
        }
    }
    let on = case("msr-load.model").base([set(0x4014, 2), set(0x200a, 0x9000)]);
    let ram = Ram::default().msr(0x9000, 0x4712, 0).msr(0x9010, 0x4711, 0);
    let checker = Checker::new(&on.cpu)
        .with_memory(&ram)
        .with_msr_loading(&Model);
    let mut list = List::<4>::default();
    let verdict = checker.check(&on.vmcs(&[]), &mut list);
    let first = list.iter().next().unwrap();
    assert_eq!(first.rule.id, "msr-load.model");
    assert_eq!(
        first.place,
        Place::MsrEntry {
            number: 2,
            index: 0x4711
        }
    );
    assert_eq!(
        verdict.outcome().to_string(),
        "exit reason 34, VM-entry failure due to MSR loading, qualification 2"
    );
}
