// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errant DMA: each is a fault with the right reason, and leaves all other memory as it was.

use hvkit_page_table::{OwnEntries, Width};
use hvkit_vtd_iommu::driver::{Attachment, DestinationMode};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::{FaultReason, FaultRecord};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use lab_kit::qtest::QtestOptions;

use crate::machine::{
    DATA, EDU, Lab, LabDomain, LabUnit, NO_QEMU_11, map, newer, the_fault, with_domain,
};

const PAGE: u64 = 4096;
/// Where the domain of each case maps one page.
const MAPPED: u64 = 0x10_0000;

/// Runs `dma` and returns the one fault it must have caused. Memory outside of `except` must be as before.
fn errant(
    lab: &Lab,
    unit: &mut LabUnit<'_>,
    except: std::ops::Range<u64>,
    dma: impl FnOnce(),
) -> FaultRecord {
    let before = lab.hash(except.clone());
    dma();
    assert_eq!(lab.hash(except), before, "memory changed");
    the_fault(unit)
}

/// A domain with one page, and all memory the device could reach in vain filled with a pattern.
fn prepared(lab: &Lab) -> (LabUnit<'_>, LabDomain<'_>) {
    for page in 0..16 {
        lab.fill_memory(DATA + page * PAGE, 4096, 0xc0 | page as u8);
    }
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, MAPPED, DATA, PAGE);
    (unit, domain)
}

#[test]
fn unmapped() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, _domain) = prepared(&lab);
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(DATA, 64));
    assert_eq!(
        (fault.reason(), fault.address()),
        (FaultReason::NO_WRITE, Some(DATA))
    );
}

#[test]
fn no_write_permission() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, mut domain) = prepared(&lab);
    let read = SecondStageAttributes::READ;
    let fresh = domain.map(0x3000..0x4000, DATA + PAGE, read).unwrap();
    unit.publish(&domain, fresh).unwrap();
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(0x3008, 64));
    assert_eq!(
        (fault.reason(), fault.address()),
        (FaultReason::NO_WRITE, Some(0x3000))
    );
}

#[test]
fn beyond_the_width() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    for (iommu, address) in [
        ("aw-bits=48,intremap=on", 1u64 << 48),
        ("aw-bits=39,intremap=on", 1u64 << 39),
    ] {
        let lab = Lab::little(QtestOptions::new().iommu(iommu));
        let (mut unit, _domain) = prepared(&lab);
        let fault = errant(&lab, &mut unit, 0..0, || {
            lab.dma_write(address | MAPPED, 64);
        });
        assert_eq!(
            fault.reason(),
            FaultReason::ADDRESS_BEYOND_WIDTH,
            "{fault:x?}"
        );
        assert_eq!(fault.source(), EDU);
    }
}

#[test]
fn wrong_requester() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let second = "edu,addr=4,dma_mask=0xffffffffffffffff";
    let lab = Lab::little(QtestOptions::new().device(second));
    let (mut unit, _domain) = prepared(&lab);
    let fault = errant(&lab, &mut unit, 0..0, || {
        lab.other_dma_write(4, 0xe100_0000, MAPPED, 64);
    });
    assert_eq!(fault.reason(), FaultReason::CONTEXT_NOT_PRESENT);
    assert_eq!(fault.source(), RequesterId(0x20));
}

#[test]
fn after_unmap_and_wait() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, mut domain) = prepared(&lab);
    lab.dma_write(MAPPED, 64);
    let stale = domain.unmap(MAPPED..MAPPED + PAGE).unwrap();
    unit.settle(&domain, stale).unwrap();
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(MAPPED, 128));
    assert_eq!(
        (fault.reason(), fault.address()),
        (FaultReason::NO_WRITE, Some(MAPPED))
    );
}

#[test]
fn after_a_domain_switch() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, mut domain) = prepared(&lab);
    lab.dma_write(MAPPED, 64);
    let mut other = unit.new_domain().unwrap();
    unit.detach(&mut domain, EDU, None).unwrap();
    unit.attach(&mut other, Attachment::new(EDU)).unwrap();
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(MAPPED, 128));
    assert_eq!(
        (fault.reason(), fault.address()),
        (FaultReason::NO_WRITE, Some(MAPPED))
    );
}

#[test]
fn the_interrupt_window() {
    // QEMU 7.2 records no interrupt faults.
    let lab = newer("aw-bits=48,intremap=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = Lab::little(lab.unwrap());
    let (mut unit, _domain) = prepared(&lab);
    let _table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .unwrap();
    // Four bytes to the window are an interrupt request; with address bit 4 set, in the remappable format.
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(0xfee0_0010, 4));
    assert_eq!(fault.reason(), FaultReason::INTERRUPT_NOT_PRESENT);
    // QEMU knows the requester of messages only, not of plain writes to the window.
    assert_eq!(fault.interrupt_index(), Some(0));
}

#[test]
fn straddling_into_a_hole() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, _domain) = prepared(&lab);
    let page = DATA..DATA + PAGE;
    let fault = errant(&lab, &mut unit, page, || {
        lab.dma_write(MAPPED + PAGE - 64, 128);
    });
    assert_eq!(
        (fault.reason(), fault.address()),
        (FaultReason::NO_WRITE, Some(MAPPED + PAGE))
    );
    // What lies in the mapped page may have been written, and nothing else in it.
    assert_eq!(lab.peek(DATA, 64), [0xc0; 64]);
}

#[test]
fn address_wrap() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, mut domain) = prepared(&lab);
    map(&mut unit, &mut domain, 0, DATA + PAGE, PAGE);
    let last = u64::MAX - 7;
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(last, 8));
    assert_eq!(fault.reason(), FaultReason::ADDRESS_BEYOND_WIDTH);
}

#[test]
fn reserved_bits() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::little(QtestOptions::new());
    let (mut unit, domain) = prepared(&lab);
    // The leaf, found by the walk; bit 51 is beyond the 39 bits of this host's addresses.
    let walk = domain.table().walk(MAPPED);
    let leaf = walk.steps().last().unwrap();
    lab.write(leaf.at.unwrap(), Width::Eight, leaf.entry | 1 << 51);
    let fault = errant(&lab, &mut unit, 0..0, || lab.dma_write(MAPPED, 64));
    assert_eq!(
        (fault.reason(), fault.address()),
        (FaultReason::TABLE_RESERVED, Some(MAPPED))
    );
}
