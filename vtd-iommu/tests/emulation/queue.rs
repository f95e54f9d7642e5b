// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The invalidation queue: waits, errors, both widths, and invalidation by register.

use hvkit_vtd_iommu::emulation::fake::Event;
use hvkit_vtd_iommu::emulation::{Access, Options, Request, State, StateError, Unit};
use hvkit_vtd_iommu::spec::registers::{CCMD, GCMD, GSTS, ICS, IECTL, IQERCD, IQH};

use super::machine::*;

const FSTS: u32 = 0x34;

#[test]
fn a_wait_writes_its_status_and_interrupts() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    assert!(machine.unit.register(GSTS).queued_invalidation());
    machine.write32(IECTL.offset(), 0);
    machine.write32(IECTL.offset() + 4, 0x51);
    machine.write32(IECTL.offset() + 8, 0xfee0_0000);
    machine.submit(&[[0x12, 0], [0x1234_5678_0000_0025, STATUS + 4], [0x15, 0]]);
    assert_eq!(machine.ram.get(STATUS), 0x1234_5678_0000_0000);
    assert_eq!(machine.unit.register(IQH).offset(), 0x30);
    assert!(machine.unit.register(ICS).wait_complete());
    assert!(matches!(machine.host.take()[..], [Event::Message(m)] if m.data == 0x51));
    // A second completion before the first is serviced sends nothing more.
    machine.submit(&[[0x15, 0]]);
    assert!(machine.host.take().is_empty());
    machine.write32(ICS.offset(), 1);
    machine.submit(&[[0x15, 0]]);
    assert_eq!(machine.host.take().len(), 1);
}

/// "Invalidation Event Control Register", IP: it goes when the message is sent, or when software clears IWC; a write
/// that clears nothing is no service, and the message still comes.
#[test]
fn only_clearing_the_completion_withdraws_its_event() {
    for (written, sent) in [(0, 1), (2, 1), (1, 0)] {
        let mut machine = Machine::legacy(Options::new(39));
        machine.queue_on(0);
        machine.write32(IECTL.offset(), 1 << 31);
        machine.submit(&[[0x15, 0]]);
        assert_eq!(machine.unit.read32(IECTL.offset()), 3 << 30);
        machine.write32(ICS.offset(), written);
        // The half of the same word that is another register's, or none.
        machine.write32(ICS.offset() - 4, !0);
        machine.write32(IECTL.offset(), 0);
        assert_eq!(machine.host.take().len(), sent, "{written}");
    }
}

#[test]
fn the_queue_goes_round() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    for round in 0..600u64 {
        machine.submit(&[[round << 32 | 0x25, STATUS]]);
        assert_eq!(machine.ram.get(STATUS), round);
    }
    assert_eq!(machine.unit.register(IQH).offset(), 600 * 16 % 0x1000);
}

/// "IOTLB Invalidate Descriptor": bits 11:7 of the second half are reserved, and 63:32, 15:12 and 8 of the first.
#[test]
fn every_reserved_bit_of_a_page_selective_invalidation_stops_it() {
    let low = (32..64).chain(12..16).chain([8]).map(|bit| [1 << bit, 0]);
    let high = (7..12).map(|bit| [0, 1 << bit]);
    let plain = [0x7_0032, 0x1000];
    for [low, high] in low.chain(high) {
        let mut machine = Machine::legacy(Options::new(39));
        machine.queue_on(0);
        machine.submit(&[plain, [plain[0] | low, plain[1] | high]]);
        let found = (
            machine.unit.register(IQH).offset(),
            machine.unit.register(IQERCD).iqei(),
        );
        assert_eq!(found, (16, 4), "{low:#x} {high:#x}");
    }
}

#[test]
fn a_queue_that_is_off_does_nothing() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    machine.submit(&[[0x1_0000_0025, STATUS]]);
    assert_eq!(machine.ram.get(STATUS), 1);
    // QIE off; translation stays on.
    machine.write32(GCMD.offset(), machine.unit.read32(0x1c) & 0x9280_0000);
    assert!(!machine.unit.register(GSTS).queued_invalidation());
    machine.submit(&[[0x2_0000_0025, STATUS]]);
    assert_eq!(machine.ram.get(STATUS), 1);
    assert_eq!(machine.unit.read32(FSTS), 0);
}

#[test]
fn an_error_stops_it_and_clearing_goes_on() {
    for (words, error) in [
        ([0x0, 0], 3),
        ([0xa, 0], 3),
        // Of device TLBs and PASIDs, which this unit has not.
        ([0x3, 0], 3),
        ([0x36, 0], 3),
        ([0x17, 0], 3),
        ([0x9, 0], 3),
        ([0x01, 0], 4),
        ([0x11, 1], 4),
        ([0x2, 0], 4),
        // AM above MAMV, IM above MHMV, PD without PDS.
        ([0x32, 19], 4),
        ([0x14 | 16 << 27, 0], 4),
        ([0xa5, STATUS], 4),
    ] {
        let mut machine = Machine::legacy(Options::new(39));
        machine.queue_on(0);
        machine.submit(&[[0x1_0000_0025, STATUS], words, [0x2_0000_0025, STATUS]]);
        assert_eq!(machine.ram.get(STATUS), 1, "{words:x?}");
        assert_eq!(machine.unit.register(IQH).offset(), 16);
        assert_eq!(machine.unit.read32(FSTS), 0x10);
        assert_eq!(machine.unit.register(IQERCD).iqei(), error, "{words:x?}");
        // The driver mends the descriptor and clears the error.
        machine.ram.set_all(QUEUE + 16, &[0x12, 0]);
        machine.write32(FSTS, 0x10);
        assert_eq!(machine.ram.get(STATUS), 2);
        assert_eq!(machine.unit.register(IQH).offset(), 0x30);
    }
}

#[test]
fn tails_and_queues_that_are_nowhere() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.queue_on(0);
    machine.write64(0x88, 0x1000);
    assert_eq!(
        (machine.unit.read32(FSTS), machine.unit.read64(0xb0)),
        (0x10, 1)
    );
    // Half of a 256-bit descriptor.
    let mut machine = Machine::legacy(Options::new(39).with_scalable_mode());
    machine.queue_on(1);
    machine.write64(0x88, 0x10);
    assert_eq!(
        (machine.unit.read32(FSTS), machine.unit.read64(0xb0)),
        (0x10, 6)
    );
    // No memory where the queue is said to be.
    let mut machine = Machine::legacy(Options::new(39));
    machine.write64(0x90, 0xffff_f000);
    machine.write32(0x18, 0x8400_0000);
    machine.write64(0x88, 0x10);
    assert_eq!(
        (machine.unit.read32(FSTS), machine.unit.read64(0xb0)),
        (0x10, 2)
    );
    // Its first half is there: what is there is done, then it stops.
    let mut machine = Machine::legacy(Options::new(39));
    machine.ram.set_all(0xf_fff0, &[0x7_0000_0025, STATUS]);
    machine.write64(0x90, 0xf_f000 | 1);
    machine.write32(0x18, 0x8400_0000);
    for at in (0xf_f000..0xf_fff0).step_by(16) {
        machine.ram.set_all(at, &[0x12, 0]);
    }
    machine.write64(0x88, 0x1010);
    assert_eq!(machine.ram.get(STATUS), 7);
    assert_eq!(
        (machine.unit.read64(0x80), machine.unit.read64(0xb0)),
        (0x1000, 2)
    );
}

#[test]
fn wide_descriptors() {
    let mut machine = Machine::legacy(Options::new(39).with_scalable_mode());
    machine.queue_on(1);
    machine.ram.set_all(QUEUE, &[0x12, 0, 0, 0]);
    machine
        .ram
        .set_all(QUEUE + 32, &[0x9_0000_0025, STATUS, 0, 0]);
    machine.ram.set_all(QUEUE + 64, &[0x12, 0, 1, 0]);
    machine.write64(0x88, 0x60);
    assert_eq!(machine.ram.get(STATUS), 9);
    assert_eq!(
        (machine.unit.read64(0x80), machine.unit.read64(0xb0)),
        (0x40, 4)
    );
}

#[test]
fn without_the_queue_registers_do() {
    let mut machine = Machine::legacy(Options::new(39));
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.ram.set(ENTRY, 0);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    // ICC with CIRG 3 for the device; CAIG says what was done.
    machine.write64(CCMD.offset(), 0xe000_0000_0018_0007);
    assert_eq!(machine.unit.read64(CCMD.offset()), 0x7800_0000_0000_0007);
    assert_eq!(machine.read(0x1000), Err(2));
    machine.ram.set(ENTRY, TOP | 1);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.ram.set(LEAVES + 8, 0);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    // IVA, then IVT with IIRG 3.
    machine.write64(0x500, 0x1000);
    machine.write64(0x508, 0xb000_0007_0000_0000);
    assert_eq!(machine.unit.read64(0x508), 0x3600_0007_0000_0000);
    assert_eq!(machine.read(0x1000), Err(6));
    // A reserved granularity, and a mask that is too large: refused.
    machine.write64(0x508, 1 << 63);
    assert_eq!(machine.unit.read64(0x508), 0);
    machine.write64(0x500, 63);
    machine.write64(0x508, 0xb000_0007_0000_0000);
    assert_eq!(machine.unit.read64(0x508), 0x3000_0007_0000_0000);
}

/// "List of Valid Descriptor Types for Each Mode", each row; IQEI 3 is a type, 5 a width, 7 the mode.
#[test]
fn each_mode_has_its_widths_and_types() {
    let with = Options::new(39).with_scalable_mode().with_device_tlbs();
    // A unit of abort-DMA mode only, and one of neither.
    let mut abort = Options::new(39).with_device_tlbs();
    abort.extended = abort.extended.with_abort_dma_mode(true);
    let neither = Options::new(39).with_device_tlbs();
    // The types 1 to 9 as this unit has them; 0Ah is of a table that it has not.
    let all = [
        [0x11, 0],
        [0x12, 0],
        [0x18_0000_0003, 0x1000],
        [0x4, 0],
        [0x1_0000_0025, STATUS],
        [0x1_0008_0026, 0],
        [0x37, 0],
        [0x1_0018_0008, 0x1000],
        [0x18_0009, 0],
    ];
    let found = |options: Options, mode: u64, wide: u64, words: [u64; 2]| {
        let mut machine = Machine::new(options);
        machine.write64(0x20, ROOT | mode << 10);
        machine.write32(0x18, 1 << 30);
        machine.queue_on(wide);
        assert_eq!(machine.unit.read32(FSTS), 0, "nothing is there yet");
        machine.submit(&[words]);
        let stopped = machine.unit.read32(FSTS) & 0x10 != 0;
        let head = machine.unit.read64(0x80);
        assert_eq!(head == 0, stopped);
        stopped.then(|| machine.unit.read64(0xb0) & 0xf)
    };
    for (index, words) in all.into_iter().enumerate() {
        let legacy = if index < 5 { None } else { Some(3) };
        for (options, mode, wide, expected) in [
            (with, 0, 0, legacy),
            (with, 0, 1, legacy),
            (with, 1, 0, Some(5)),
            (with, 1, 1, None),
            (with, 2, 0, Some(7)),
            (with, 2, 1, Some(7)),
            (with, 3, 0, Some(5)),
            (with, 3, 1, None),
            (abort, 0, 1, legacy),
            (abort, 3, 0, Some(5)),
            (neither, 0, 0, legacy),
            (neither, 0, 1, Some(5)),
        ] {
            let seen = found(options, mode, wide, words);
            assert_eq!(seen, expected, "{words:x?} in mode {mode}, DW {wide}");
        }
    }
}

/// "Context Command Register": SID and FM are written with the lower half, ICC with the upper one.
#[test]
fn a_command_may_be_written_in_halves() {
    let mut machine = Machine::legacy(Options::new(39));
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.ram.set(ENTRY, 0);
    // Another device, by halves; then this one.
    machine.write32(0x28, 0x0020_0007);
    machine.write32(0x2c, 0xe000_0000);
    assert_eq!(machine.read(0x1000), Ok(DATA + 0x1000));
    machine.write32(0x28, 0x0018_0007);
    assert_eq!(machine.unit.read32(0x28), 7, "SID does not read back");
    let state = machine.unit.save();
    machine.write32(0x2c, 0xe000_0000);
    assert_eq!(machine.unit.read32(0x2c), 0x7800_0000);
    assert_eq!(machine.read(0x1000), Err(2));
    // A unit that goes on in between has what was written.
    let mut unit = Unit::try_from((Options::new(39), &state)).unwrap();
    assert_eq!(unit.save(), state);
    let request = Request::new(DEVICE, 0x1000, Access::Read);
    machine.ram.set(ENTRY, TOP | 1);
    unit.translate(&machine.ram, &mut machine.host, &request)
        .unwrap();
    machine.ram.set(ENTRY, 0);
    unit.write32(&machine.ram, &mut machine.host, 0x2c, 0xe000_0000);
    let refused = unit.translate(&machine.ram, &mut machine.host, &request);
    assert_eq!(refused.unwrap_err().reason.0, 2);
    // And bits that the register has not, nobody wrote.
    let bad = State {
        context_command: 7,
        ..state
    };
    let refused = Unit::try_from((Options::new(39), &bad)).unwrap_err();
    assert_eq!(refused, StateError::Pointer(7));
}
