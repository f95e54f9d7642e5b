// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seeds enter, on every processor that has what they need; and nothing panics.

use proptest::prelude::*;

use super::*;

#[test]
fn every_seed_enters_on_every_processor() {
    for cpu in [
        presets::bochs_skylake_x(),
        presets::core_i7_5600u(),
        presets::core_i7_3960x(),
        presets::everything(),
    ] {
        for seed in Seed::ALL {
            let mut list = List::<1>::default();
            let verdict = Checker::new(&cpu).check(&seed.vmcs(&cpu), &mut list);
            assert!(
                verdict.enters(),
                "{seed:?}: {}",
                list.iter().next().unwrap()
            );
            assert_eq!((verdict.undecided, verdict.missing), (0, 0), "{seed:?}");
        }
    }
}

/// One that insists on bits of CR4 that the seeds have themselves: OSFXSR and OSXMMEXCPT.
#[test]
fn what_a_seed_has_and_the_processor_insists_on_stays() {
    let mut cpu = presets::core_i7_5600u();
    cpu.vmx.cr4_fixed0 |= 0x600;
    for seed in Seed::ALL {
        let vmcs = seed.vmcs(&cpu);
        assert!(Checker::new(&cpu).check(&vmcs, &mut Discard).enters());
    }
}

#[test]
fn a_vmcs12_is_checked_like_any_other() {
    let cpu = presets::core_i7_5600u();
    let mut bytes = [0_u8; 4096];
    bytes[..4].copy_from_slice(&0x11e5_7ed0_u32.to_le_bytes());
    let mut vmcs12 = crate::store::Vmcs12::new(bytes).unwrap();
    let seed = Seed::LongMode.vmcs(&cpu);
    for info in crate::fields::ALL
        .iter()
        .filter(|info| info.vmcs12_offset.is_some())
    {
        vmcs12
            .set(info.encoding, seed.get(info.encoding).unwrap())
            .unwrap();
    }
    assert!(Checker::new(&cpu).check(&vmcs12, &mut Discard).enters());
    vmcs12.set(Encoding(0x6820), 0).unwrap();
    let verdict = Checker::new(&cpu).check(&vmcs12, &mut Discard);
    assert_eq!(
        verdict.outcome().to_string(),
        "exit reason 33, VM-entry failure due to invalid guest state, qualification 0"
    );
}

proptest! {
    /// Any values whatsoever in the fields, with any processor words.
    #[test]
    fn any_vmcs_gets_a_verdict(
        values in proptest::collection::vec(any::<u64>(), crate::fields::COUNT),
        words in proptest::collection::vec(any::<u64>(), 18),
        bits in any::<(u8, u8)>(),
    ) {
        let mut vmcs = Vmcs::new();
        for (info, value) in crate::fields::ALL.iter().zip(values) {
            vmcs.set(info.encoding, value).unwrap();
        }
        let list: Vec<_> = (0x480..).zip(words).collect();
        let cpu = Processor {
            physical_address_bits: bits.0,
            linear_address_bits: bits.1,
            ..Processor::new(crate::Capabilities::from_list(&list))
        };
        let mut found = List::<0>::default();
        let verdict = Checker::new(&cpu).check(&vmcs, &mut found);
        prop_assert_eq!(verdict.violations as usize, found.count);
        prop_assert_eq!(verdict.enters(), found.count == 0);
        prop_assert!(verdict.may_report(verdict.outcome()));
    }

    /// Seeds with a few bits flipped: the verdict and the list of violations say the same.
    #[test]
    fn flipped_seeds_agree_with_themselves(
        flips in proptest::collection::vec((0..crate::fields::COUNT, 0_u32..64), 1..4),
        seed in 0..Seed::ALL.len(),
    ) {
        let cpu = presets::everything();
        let mut vmcs = Seed::ALL[seed].vmcs(&cpu);
        for (field, bit) in flips {
            let encoding = crate::fields::ALL[field].encoding;
            let value = vmcs.get(encoding).unwrap() ^ (1 << bit & encoding.width().mask());
            vmcs.set(encoding, value).unwrap();
        }
        let mut first = None;
        let verdict = Checker::new(&cpu).check(&vmcs, &mut |violation: &Violation| {
            first.get_or_insert(violation.rule.area);
        });
        let said = match first {
            None => Outcome::Enters,
            Some(Area::Controls) => Outcome::FailValid(crate::exit::InstructionError(7)),
            Some(Area::Host) => Outcome::FailValid(crate::exit::InstructionError(8)),
            Some(Area::Guest(qualification)) => Outcome::EntryFailure {
                reason: crate::exit::ExitReason(0x8000_0021),
                qualification: qualification.into(),
            },
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(verdict.outcome(), said);
    }
}
