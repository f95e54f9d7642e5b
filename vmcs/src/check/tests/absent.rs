// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A field that is not there, and is taken as zero, breaks only rules that name it: who knows which fields a file has can tell what
//! is broken from what is not decided.

use std::collections::BTreeSet;

use super::*;
use crate::store::Fields;

/// A VMCS less one field.
struct Without<'a>(&'a Vmcs, Encoding);

impl Fields for Without<'_> {
    fn get(&self, encoding: Encoding) -> Option<u64> {
        if encoding == self.1 {
            return None;
        }
        self.0.get(encoding)
    }
}

/// Memory in which every aligned word is 3: a PDPTE that is present, with a reserved bit set.
struct Threes;

impl PhysicalMemory for Threes {
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        for (number, byte) in into.iter_mut().enumerate() {
            *byte = if number % 8 == 0 { 3 } else { 0 };
        }
        Ok(())
    }
}

fn broken<M: PhysicalMemory>(
    checker: &Checker<'_, M>,
    vmcs: &impl Fields,
) -> BTreeSet<&'static str> {
    let mut ids = BTreeSet::new();
    checker.check(vmcs, &mut |violation: &Violation| {
        ids.insert(violation.rule.id);
    });
    ids
}

/// Rules, each with a field on which it depends without naming it.
fn unnamed<M: PhysicalMemory>(
    checker: &Checker<'_, M>,
    vmcs: &Vmcs,
    found: &mut BTreeSet<(&str, &str)>,
) {
    let before = broken(checker, vmcs);
    for info in crate::fields::ALL {
        let after = broken(checker, &Without(vmcs, info.encoding));
        for id in after.difference(&before) {
            let rule = find_rule(id).unwrap();
            if !rule.fields.contains(&info.encoding) {
                found.insert((rule.id, info.name));
            }
        }
    }
}

#[test]
fn a_rule_names_every_field_whose_absence_can_break_it() {
    let mut found = BTreeSet::new();
    for case in tables() {
        let checker = Checker::new(&case.cpu).at(case.moment);
        for changes in case.passes.iter().chain(&case.breaks) {
            unnamed(&checker, &case.vmcs(changes), &mut found);
        }
    }
    for cpu in [presets::bochs_skylake_x(), presets::everything()] {
        for seed in Seed::ALL {
            let mut vmcs = seed.vmcs(&cpu);
            unnamed(&Checker::new(&cpu), &vmcs, &mut found);
            // PDPTEs that do not count, in the VMCS and in memory, and what says that they do not.
            vmcs.set(Encoding(0x280a), 3).unwrap();
            unnamed(&Checker::new(&cpu), &vmcs, &mut found);
            let secondary = vmcs.get(Encoding(0x401e)).unwrap();
            let ept = [secondary | 2, secondary & !2];
            for secondary in ept {
                vmcs.set(Encoding(0x401e), secondary).unwrap();
                unnamed(&Checker::new(&cpu).with_memory(Threes), &vmcs, &mut found);
            }
        }
    }
    assert_eq!(found, BTreeSet::new());
}
