// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Offsets, access and fields against raw words from the register figures.

use super::*;
use crate::spec::fault::FaultRecord;

fn info(name: &str) -> &'static Info {
    ALL.iter().find(|r| r.name == name).unwrap()
}

#[test]
fn registers_are_aligned_and_apart() {
    for pair in ALL.windows(2) {
        assert!(
            pair[0].offset + u32::from(pair[0].bytes) <= pair[1].offset,
            "{} reaches into {}",
            pair[0].name,
            pair[1].name
        );
    }
    for register in ALL {
        assert_eq!(
            register.offset % u32::from(register.bytes),
            0,
            "{}",
            register.name
        );
        let Access {
            read_only,
            read_write,
            clear_by_one,
            write_only,
        } = register.access;
        assert_eq!(
            read_only.count_ones()
                + read_write.count_ones()
                + clear_by_one.count_ones()
                + write_only.count_ones(),
            register.access.defined().count_ones(),
            "{}: a bit has two kinds of access",
            register.name
        );
        if register.bytes == 4 {
            assert_eq!(register.access.defined() >> 32, 0, "{}", register.name);
        }
    }
    assert!(ALL.last().unwrap().offset < 0x1000);
}

#[test]
fn access_masks_are_the_figures() {
    let masks = |name| {
        let a = info(name).access;
        (a.read_only, a.read_write, a.clear_by_one, a.write_only)
    };
    assert_eq!(masks("GCMD"), (0, 0, 0, 0xff80_0000));
    assert_eq!(masks("GSTS"), (0xff80_0000, 0, 0, 0));
    assert_eq!(masks("RTADDR"), (0, 0xffff_ffff_ffff_fc00, 0, 0));
    assert_eq!(
        masks("CCMD"),
        (
            0x1800_0000_0000_0000,
            0xe000_0000_0000_ffff,
            0,
            0x3_ffff_0000
        )
    );
    assert_eq!(masks("FSTS"), (0xff02, 0, 0x7d, 0));
    assert_eq!(masks("FECTL"), (0x4000_0000, 0x8000_0000, 0, 0));
    assert_eq!(masks("FEADDR"), (0, 0xffff_fffc, 0, 0));
    assert_eq!(masks("PMEN"), (1, 0x8000_0000, 0, 0));
    assert_eq!(masks("IQH"), (0x7fff0, 0, 0, 0));
    assert_eq!(masks("IQT"), (0, 0x7fff0, 0, 0));
    assert_eq!(masks("IQA"), (0, 0xffff_ffff_ffff_f807, 0, 0));
    assert_eq!(masks("ICS"), (0, 0, 1, 0));
    assert_eq!(masks("IRTA"), (0, 0xffff_ffff_ffff_f80f, 0, 0));
    assert_eq!(masks("PQH"), (0, 0x7ffe0, 0, 0));
    assert_eq!(masks("PRS"), (0, 0, 3, 0));
    assert_eq!(
        IotlbInvalidate::ACCESS.read_write,
        0xb003_ffff_0000_0000,
        "IVT, IIRG, DR, DW, DID"
    );
    assert_eq!(FaultRecordHigh::ACCESS.clear_by_one, 1 << 63);
    assert_eq!(FaultRecordLow::ACCESS.read_only, !0xfff);
}

#[test]
fn a_write_changes_what_it_may() {
    let access = Access {
        read_only: 0x000f,
        read_write: 0x00f0,
        clear_by_one: 0x0f00,
        write_only: 0xf000,
    };
    assert_eq!(access.after_write(0x0f05, 0xf1ff, !0), 0x0ef5);
    assert_eq!(access.after_write(0x0f5f, 0, !0), 0x0f0f);
    assert_eq!(access.after_write(0x0f5f, 0xffff, 0xff), 0x0fff);
    assert_eq!(access.after_write(0x0f5f, 0xffff, 0xff00), 0x005f);
}

#[test]
fn capabilities_of_a_real_unit() {
    // What kernels log of a desktop of 2017 ("cap d2008c40660462 ecap f050da").
    let cap = Capability(0x00d2_008c_4066_0462);
    assert_eq!(cap.domains(), 256);
    assert_eq!(cap.guest_address_bits(), 39);
    assert!(cap.second_stage_levels(4) && !cap.second_stage_levels(3));
    assert_eq!(cap.sagaw(), 0b100);
    let ecap = ExtendedCapability(0x00f0_50da);
    assert!(!ecap.coherent() && ecap.queued_invalidation() && !ecap.device_tlb());
    assert!(ecap.interrupt_remapping() && ecap.extended_interrupt_mode());
    assert!(ecap.pass_through() && ecap.snoop_control());
    assert_eq!(ecap.iro(), 0x50);
    assert_eq!(ecap.iotlb_invalidate().offset(), 0x508);
    assert_eq!(ecap.max_handle_mask(), 15);
    assert_eq!(ecap.pasid_bits(), 0);
}

#[test]
fn each_capability_bit_has_its_place() {
    assert_eq!(Capability(0).with_caching_mode(true).0, 0x80);
    assert_eq!(Capability(0).with_sagaw(0b01110).0, 0xe00);
    assert_eq!(Capability(0).with_mgaw(56).0, 0x38_0000);
    assert_eq!(Capability(0).with_fro(0x3ff).0, 0x0000_0003_ff00_0000);
    assert_eq!(
        Capability(0).with_second_stage_large_pages(3).0,
        0x0000_000c_0000_0000
    );
    assert_eq!(Capability(0).with_page_selective(true).0, 1 << 39);
    assert_eq!(Capability(0).with_nfr(7).0, 0x0000_0700_0000_0000);
    assert_eq!(
        Capability(0).with_max_address_mask(18).0,
        0x0012_0000_0000_0000
    );
    assert_eq!(Capability(0).with_posted_interrupts(true).0, 1 << 59);
    assert_eq!(Capability(0).with_enhanced_set_root_table(true).0, 1 << 63);
    assert_eq!(ExtendedCapability(0).with_pss(19).0, 0x98_0000_0000);
    assert_eq!(ExtendedCapability(0).with_scalable_mode(true).0, 1 << 43);
    assert_eq!(ExtendedCapability(0).with_first_stage(true).0, 1 << 47);
    assert_eq!(ExtendedCapability(0).with_rid_priv(true).0, 1 << 53);
}

#[test]
fn encoded_capabilities_are_decoded() {
    assert_eq!(Capability(0).domains(), 16);
    assert_eq!(Capability(6).domains(), 1 << 16);
    assert_eq!(
        Capability(7).domains(),
        1 << 16,
        "reserved, but no shift beyond the word"
    );
    let cap = Capability(0).with_fro(0x22).with_nfr(0);
    assert_eq!(cap.fault_record_offset(0), 0x220);
    assert_eq!(cap.fault_record(0).unwrap().1.offset(), 0x228);
    assert!(cap.fault_record(1).is_none());
    let ecap = ExtendedCapability(0).with_pasid(true);
    assert_eq!(ecap.with_pss(15).pasid_bits(), 16);
    assert_eq!(ecap.with_pss(31).pasid_bits(), 20);
    assert_eq!(QueueAddress(0x1807).bytes(), 512 << 10);
    assert_eq!(QueueAddress(0x1800).descriptor_bytes(), 32);
    assert_eq!(InterruptTableAddress(0x80f).entries(), 65536);
    assert_eq!(PageQueueAddress(1).bytes(), 8192);
}

#[test]
fn commands_are_spelled_as_in_the_figure() {
    assert_eq!(GlobalCommand(0).with_translation(true).0, 0x8000_0000);
    assert_eq!(GlobalCommand(0).with_set_root_table(true).0, 0x4000_0000);
    assert_eq!(
        GlobalCommand(0).with_flush_write_buffer(true).0,
        0x0800_0000
    );
    assert_eq!(
        GlobalCommand(0).with_queued_invalidation(true).0,
        0x0400_0000
    );
    assert_eq!(
        GlobalCommand(0).with_interrupt_remapping(true).0,
        0x0200_0000
    );
    assert_eq!(
        GlobalCommand(0).with_set_interrupt_table(true).0,
        0x0100_0000
    );
    assert_eq!(
        GlobalCommand(0).with_compatibility_interrupts(true).0,
        0x0080_0000
    );
    assert_eq!(GlobalStatus(0xffff_ffff).unchanged().0, 0x9680_0000);
    let invalidate = ContextCommand(0)
        .with_invalidate(true)
        .with_granularity(3)
        .with_function_mask(2)
        .with_source(0x1234)
        .with_domain(7);
    assert_eq!(invalidate.0, 0xe000_0002_1234_0007);
    let invalidate = IotlbInvalidate(0)
        .with_invalidate(true)
        .with_granularity(3)
        .with_drain_reads(true)
        .with_drain_writes(true)
        .with_domain(7);
    assert_eq!(invalidate.0, 0xb003_0007_0000_0000);
    assert_eq!(
        IotlbInvalidate(0x0600_0000_0000_0000).actual_granularity(),
        3
    );
    let address = InvalidateAddress(0)
        .with_address(0xffff_f000)
        .with_leaves_only(true)
        .with_mask(9);
    assert_eq!(address.0, 0xffff_f049);
    assert_eq!(
        RootTableAddress(0x1234_5400).mode(),
        TranslationTableMode::Scalable
    );
    for bits in 0..4 {
        assert_eq!(TranslationTableMode::from_bits(bits).bits(), bits);
    }
}

#[test]
fn queue_errors_have_names() {
    let record = QueueErrorRecord(0x1111_2222_0000_0005);
    assert_eq!(record.error(), QueueError::INVALID_WIDTH);
    assert_eq!(
        (record.time_out_source(), record.completion_source()),
        (0x2222, 0x1111)
    );
    for code in 0..16 {
        assert_eq!(QueueError(code).name().is_some(), code < 8);
    }
}

#[test]
fn halves_of_a_fault_record_agree_with_the_whole() {
    let low = FaultRecordLow(0x0123_4567_89ab_c000);
    let high = FaultRecordHigh(0xdabc_de86_e000_1234);
    let record = FaultRecord::from_halves(low, high);
    assert_eq!(record.halves(), (low, high));
    assert_eq!(u64::from(record.sid()), u64::from(high.source()));
    assert_eq!(record.fr(), high.reason());
    assert_eq!(record.pasid_value(), high.pasid());
    assert_eq!(record.information(), low.information());
    let both = FaultRecord::DEFINED;
    assert_eq!(both as u64, FaultRecordLow::DEFINED);
    assert_eq!((both >> 64) as u64, FaultRecordHigh::DEFINED);
}

#[test]
fn a_register_exists_where_its_capability_does() {
    let none = |r: &&Info| r.needs.met(Capability(0), ExtendedCapability(0));
    assert_eq!(ALL.iter().filter(none).count(), 12);
    assert!(
        ALL.iter()
            .all(|r| r.needs.met(Capability(!0), ExtendedCapability(!0)))
    );
    assert!(info("IQH").needs.met(Capability(0), ExtendedCapability(2)));
    assert!(
        info("PMEN")
            .needs
            .met(Capability(1 << 6), ExtendedCapability(0))
    );
    assert!(
        !info("PLMBASE")
            .needs
            .met(Capability(1 << 6), ExtendedCapability(0))
    );
}
