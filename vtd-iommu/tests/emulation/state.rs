// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit that goes on elsewhere, and states that no unit has.

use hvkit_vtd_iommu::emulation::{Options, OptionsError, State, StateError, Unit};

use super::machine::*;

#[test]
fn a_restored_unit_goes_on() {
    let options = Options::new(39);
    let mut machine = Machine::legacy(options);
    machine.queue_on(0);
    machine.submit(&[[0x12, 0]]);
    assert_eq!(machine.read(0x70_0000), Err(6));
    // What is written to RTADDR and not taken yet is not the table in use.
    machine.write64(0x20, 0xf000);
    let state = machine.unit.save();
    let mut other = Machine::new(options);
    other.ram = machine.ram;
    other.unit = Unit::try_from((options, &state)).unwrap();
    assert_eq!(other.unit.save(), state);
    assert_eq!(other.read(0x1000), Ok(DATA + 0x1000));
    assert_eq!(other.unit.read64(0x80), 0x10);
    assert_eq!(other.unit.read32(0x34), 2);
    // The next fault goes where it would have gone.
    other.write32(0x22c, 1 << 31);
    assert_eq!(other.write(0x70_0000), Err(5));
    assert_eq!(other.unit.read32(0x34), 0x102);
}

#[test]
fn states_that_no_unit_has() {
    let options = Options::new(39);
    let good = Machine::legacy(options).unit.save();
    let refused = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        Unit::try_from((options, &state)).unwrap_err()
    };
    assert_eq!(
        refused(|s| s.registers.truncate(511)),
        StateError::Length(511)
    );
    let bits = StateError::Bits {
        offset: 0xb8,
        bits: 0x10,
    };
    assert_eq!(refused(|s| s.registers[0xb8 / 8] |= 0x10), bits);
    assert!(matches!(
        refused(|s| s.registers[1] ^= 0x80),
        StateError::OtherUnit { .. }
    ));
    assert_eq!(refused(|s| s.root |= 1), StateError::Pointer(0x1001));
    assert_eq!(refused(|s| s.next_record = 8), StateError::Record(8));
    // Eight of them, and the last is one.
    assert_eq!(options.capability.0 >> 40 & 0xff, 7);
    let last = State {
        next_record: 7,
        ..good.clone()
    };
    assert_eq!(Unit::try_from((options, &last)).unwrap().save(), last);
    let other = Options {
        host_bits: 5,
        ..options
    };
    let error = Unit::try_from((other, &good)).unwrap_err();
    assert_eq!(error, StateError::Options(OptionsError::HostBits(5)));
}
