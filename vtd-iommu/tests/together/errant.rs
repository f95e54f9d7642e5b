// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errant DMA in every mode: the right reason, eight of them recorded, and all memory unchanged.

use hvkit_page_table::{OwnEntries, Width};
use hvkit_vtd_iommu::driver::{Attachment, DestinationMode, Mode, Options};
use hvkit_vtd_iommu::emulation;
use hvkit_vtd_iommu::emulation::Refused;
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::machine::{DATA, DEVICE, Machine, map, unmap};

const PAGE: u64 = 4096;
const MAPPED: u64 = 0x10_0000;

/// A reason in legacy and in scalable mode.
type Reasons = (FaultReason, FaultReason);

const ABSENT: Reasons = (
    FaultReason::NO_WRITE,
    FaultReason::SM_SECOND_STAGE_NO_PERMISSION,
);
const NO_WRITE: Reasons = (FaultReason::NO_WRITE, FaultReason::SM_NO_WRITE);
const BEYOND: Reasons = (
    FaultReason::ADDRESS_BEYOND_WIDTH,
    FaultReason::SM_ADDRESS_BEYOND_WIDTH,
);
const NO_CONTEXT: Reasons = (
    FaultReason::CONTEXT_NOT_PRESENT,
    FaultReason::SM_CONTEXT_NOT_PRESENT,
);
const RESERVED: Reasons = (
    FaultReason::TABLE_RESERVED,
    FaultReason::SM_SECOND_STAGE_RESERVED,
);

/// `dma` is refused for the reason of `mode`, and changes no memory.
fn errant(
    machine: &Machine,
    mode: Mode,
    reasons: Reasons,
    dma: impl FnOnce() -> Result<u64, Refused>,
) {
    let before = machine.ram.hash();
    let refused = dma().unwrap_err();
    assert_eq!(machine.ram.hash(), before, "memory changed");
    let expected = match mode {
        Mode::Legacy => reasons.0,
        Mode::Scalable => reasons.1,
    };
    assert_eq!(refused.reason, expected, "{refused:?}");
}

#[test]
fn each_kind_is_refused_and_recorded() {
    for mode in [Mode::Legacy, Mode::Scalable] {
        let (options, taken) = match mode {
            Mode::Legacy => (emulation::Options::new(46), Options::legacy(46)),
            Mode::Scalable => (
                emulation::Options::new(46).with_scalable_mode(),
                Options::scalable(46),
            ),
        };
        let machine = Machine::new(options);
        let mut unit = machine.drive(taken);
        let _table = unit
            .enable_interrupts(DestinationMode::XApic, None)
            .unwrap();
        let mut domain = unit.new_domain().unwrap();
        unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
        map(&mut unit, &mut domain, MAPPED, DATA, 2 * PAGE);
        let read = SecondStageAttributes::READ;
        let fresh = domain.map(0x3000..0x4000, DATA, read).unwrap();
        unit.publish(&domain, fresh).unwrap();
        let bits = domain.table().format().address_bits();

        errant(&machine, mode, ABSENT, || machine.write(DEVICE, DATA, 1));
        machine.read(DEVICE, 0x3000).unwrap();
        errant(&machine, mode, NO_WRITE, || {
            machine.write(DEVICE, 0x3000, 1)
        });
        errant(&machine, mode, BEYOND, || {
            machine.write(DEVICE, 1 << bits | MAPPED, 1)
        });
        errant(&machine, mode, NO_CONTEXT, || {
            machine.write(RequesterId(0x0320), MAPPED, 1)
        });
        machine.write(DEVICE, MAPPED, 1).unwrap();
        unmap(&mut unit, &mut domain, MAPPED, PAGE);
        errant(&machine, mode, ABSENT, || machine.write(DEVICE, MAPPED, 1));
        // From the mapped page into the hole behind it.
        machine.write(DEVICE, MAPPED + 2 * PAGE - 8, 1).unwrap();
        errant(&machine, mode, ABSENT, || {
            machine.write(DEVICE, MAPPED + 2 * PAGE, 1)
        });
        errant(&machine, mode, BEYOND, || {
            machine.write(DEVICE, u64::MAX - 7, 1)
        });
        let faults = unit.take_faults();
        assert!(
            !faults.records.is_empty() && !faults.overflow,
            "{faults:x?}"
        );
        // An entry that has a reserved bit, which nobody kept.
        let walk = domain.table().walk(MAPPED + PAGE);
        let leaf = walk.steps().last().unwrap();
        OwnEntries::write(
            &machine,
            leaf.at.unwrap(),
            Width::Eight,
            leaf.entry | 1 << 51,
        );
        unit.forget_everything().unwrap();
        errant(&machine, mode, RESERVED, || {
            machine.write(DEVICE, MAPPED + PAGE, 1)
        });
        // A switch to another domain.
        let mut other = unit.new_domain().unwrap();
        unit.detach(&mut domain, DEVICE, None).unwrap();
        unit.attach(&mut other, Attachment::new(DEVICE)).unwrap();
        errant(&machine, mode, ABSENT, || {
            machine.write(DEVICE, MAPPED + PAGE, 1)
        });
        // The interrupt window is no memory.
        let window = machine.write(DEVICE, 0xfee0_0000, 1).unwrap_err();
        assert_eq!(window.reason, FaultReason::INTERRUPT_RANGE);
    }
}
