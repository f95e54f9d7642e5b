// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Records and reasons against raw words.

use alloc::{format, string::ToString};

use super::{Class, FaultReason, FaultRecord, RequestKind};
use crate::spec::{Pasid, RequesterId};

#[test]
fn a_record_is_spelled_as_in_the_figure() {
    let record = FaultRecord(0)
        .with_fault(true)
        .with_kind(RequestKind::Read)
        .with_address_type(1)
        .with_pasid(Some(Pasid::from_field(0xa_bcde)))
        .with_reason(FaultReason::SM_NO_READ)
        .with_execute(true)
        .with_supervisor(true)
        .with_source(RequesterId(0x1234))
        .with_information(0x0000_7fff_ffff_f000);
    assert_eq!(record.0, 0xdabc_de86_e000_1234_0000_7fff_ffff_f000);
    assert_eq!(FaultRecord(0).with_kind(RequestKind::Page).0, 1 << 92);
    assert_eq!(
        FaultRecord(0).with_kind(RequestKind::Atomic).0,
        1 << 92 | 1 << 126
    );
    // Bits 91:80 and 11:0 are reserved.
    assert_eq!(
        FaultRecord(u128::MAX).reserved(),
        0x0000_0000_0fff_0000_0000_0000_0000_0fff
    );
}

#[test]
fn a_record_as_qemu_leaves_it_is_read() {
    // Device 3 writes to page 0x5000 without permission, no PASID, but all ones in the PASID value.
    let record = FaultRecord(0x8fff_ff05_0000_0018_0000_0000_0000_5000);
    assert!(record.fault());
    assert_eq!(record.kind(), RequestKind::Write);
    assert_eq!(record.reason(), FaultReason::NO_WRITE);
    assert_eq!(record.source().to_string(), "00:03.0");
    assert_eq!((record.pasid(), record.address()), (None, Some(0x5000)));
    assert_eq!(record.interrupt_index(), None);
}

#[test]
fn an_interrupts_index_is_in_the_highest_bits() {
    let record = FaultRecord(0x8000_0022_0000_0018_0abc_0000_0000_0000);
    assert_eq!(
        (record.interrupt_index(), record.address()),
        (Some(0x0abc), None)
    );
    assert_eq!(
        FaultRecord(0).with_interrupt_index(0xffff).0,
        0xffff_0000_0000_0000
    );
}

#[test]
fn codes_of_the_appendix() {
    let code = |reason: FaultReason| reason.0;
    assert_eq!(code(FaultReason::ROOT_NOT_PRESENT), 1);
    assert_eq!(code(FaultReason::INTERRUPT_RANGE), 0xe);
    assert_eq!(code(FaultReason::INTERRUPT_SOURCE), 0x26);
    assert_eq!(code(FaultReason::SM_RID_PASID), 0x48);
    assert_eq!(code(FaultReason::SM_SUPERVISOR_DISABLED), 0x5d);
    assert_eq!(code(FaultReason::SM_SECOND_STAGE_NO_SNOOP_UPDATE), 0x7c);
    assert_eq!(code(FaultReason::SM_FIRST_STAGE_UPDATE_FAILED), 0x91);
    assert!(FaultReason::ALL.is_sorted());
}

#[test]
fn every_code_is_a_value() {
    for code in 0..=u8::MAX {
        let reason = FaultReason(code);
        let known = FaultReason::ALL.contains(&reason);
        assert_eq!(reason.text().is_some(), known);
        assert_eq!(reason.name().is_some(), known);
        assert!(known || !reason.is_qualified());
        assert!(!format!("{reason}{reason:?}").is_empty());
    }
    assert_eq!(FaultReason(0).class(), None);
    assert_eq!(FaultReason(0x1f).class(), Some(Class::Legacy));
    assert_eq!(FaultReason(0x20).class(), Some(Class::Interrupt));
    assert_eq!(FaultReason(0x30).class(), Some(Class::Scalable));
    assert_eq!(FaultReason(0xfe).to_string(), "fault reason 0xfe");
    assert_eq!(format!("{:?}", FaultReason::NO_READ), "NO_READ(0x06)");
}
