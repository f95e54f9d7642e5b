// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Raw words against what the figures of the paging entries say, and the laws of formats.

use hvkit_page_table::law::broken;
use hvkit_page_table::{Entry, Format};

use super::*;

fn second() -> SecondStage {
    SecondStage::new(4, 39)
        .unwrap()
        .with_large_pages(LargePages::all())
}

fn malformed(bits: u64) -> Entry<SecondStageAttributes, SecondStageRule> {
    Entry::Malformed(SecondStageRule::Reserved { bits })
}

#[test]
fn formats_keep_the_laws() {
    let rights = [
        SecondStageAttributes::READ,
        SecondStageAttributes::WRITE,
        SecondStageAttributes::READ_WRITE.with_software(0x3ff),
    ];
    for levels in 3..=5 {
        let format = SecondStage::new(levels, 46).unwrap();
        assert_eq!(broken(&format, &rights), None);
        let all = format
            .with_large_pages(LargePages::all())
            .with_snoop_control()
            .with_transient()
            .with_accessed_dirty();
        let more = [rights[0].snooping(), rights[2].transient()];
        assert_eq!(broken(&all, &rights), None);
        assert_eq!(broken(&all, &more), None);
    }
    let rights = [
        FirstStageAttributes::READ,
        FirstStageAttributes::READ_WRITE.global(),
        FirstStageAttributes::READ_WRITE.privileged(),
    ];
    for levels in 4..=5 {
        let format = FirstStage::new(levels, 52).unwrap();
        assert_eq!(broken(&format, &rights), None);
        let all = format
            .with_one_gib()
            .with_no_execute()
            .with_extended_accessed();
        assert_eq!(broken(&all, &[rights[1].no_execute()]), None);
    }
}

#[test]
fn second_stage_words() {
    let format = second();
    // Not present as long as R and W are 0, whatever else is set.
    assert_eq!(format.decode(!3, 1), Entry::Empty);
    let leaf = |target, attributes| Entry::Leaf { target, attributes };
    let read = SecondStageAttributes::READ;
    assert_eq!(format.decode(0x12_3456_7001, 1), leaf(0x12_3456_7000, read));
    // At level 1 bits 10:2, 61:52 and 63 are ignored.
    assert_eq!(
        format.decode(0xbff0_0000_0000_17fe, 1),
        leaf(0x1000, SecondStageAttributes::WRITE.with_software(0x3ff))
    );
    assert_eq!(format.decode(0x1801, 1), malformed(0x800));
    assert_eq!(format.decode(0x80_0000_1001, 1), malformed(0x80_0000_0000));
    assert_eq!(format.decode(1 << 62 | 1, 1), malformed(1 << 62));
    // Level 2: a page of 2 MiB, whose bits 20:12 are reserved.
    assert_eq!(format.decode(0x60_0081, 2), leaf(0x60_0000, read));
    assert_eq!(format.decode(0x60_1081, 2), malformed(0x1000));
    assert_eq!(format.decode(0x4000_0081, 3), leaf(0x4000_0000, read));
    assert_eq!(format.decode(0x4020_0081, 3), malformed(0x20_0000));
    // Level 4 has no pages: bit 7 is reserved.
    assert_eq!(format.decode(0x1083, 4), malformed(0x80));
    let table = Entry::Table {
        frame: 0x5000,
        attributes: SecondStageAttributes::READ_WRITE,
    };
    assert_eq!(format.decode(0x577f & !0x80, 3), table);
    // Without the capability, bit 7 is reserved at levels 2 and 3 too.
    let small = SecondStage::new(3, 39).unwrap();
    assert_eq!(small.decode(0x60_0081, 2), malformed(0x80));
    let two = small.with_large_pages(LargePages::TWO_MIB);
    assert_eq!(two.decode(0x60_0081, 2), leaf(0x60_0000, read));
    assert_eq!(two.decode(0x4000_0081, 3), malformed(0x80));
    // SNP and TM: in leaves only, and only with the capability.
    let snooping = format.with_snoop_control().with_transient();
    assert_eq!(snooping.decode(0x1801, 1), leaf(0x1000, read.snooping()));
    assert_eq!(snooping.decode(1 << 62 | 1, 1), leaf(0, read.transient()));
    assert_eq!(snooping.decode(0x1801, 3), malformed(0x800));
    assert_eq!(snooping.decode(1 << 62 | 1, 2), malformed(1 << 62));
}

#[test]
fn rights_add_up_along_the_path() {
    let format = second();
    let both = SecondStageAttributes::READ_WRITE.with_software(3);
    let folded = format.fold(SecondStageAttributes::READ, both);
    assert!(folded.reads() && !folded.writes());
    assert_eq!(folded.software(), 3);

    let format = FirstStage::new(4, 46).unwrap().with_no_execute();
    let above = FirstStageAttributes::READ.no_execute();
    let folded = format.fold(above, FirstStageAttributes::READ_WRITE.privileged());
    assert!(!folded.writes() && !folded.user() && !folded.executes());
}

#[test]
fn first_stage_words() {
    let format = FirstStage::new(4, 46).unwrap();
    let reserved = |bits| Entry::Malformed(FirstStageRule::Reserved { bits });
    assert_eq!(format.decode(!1, 1), Entry::Empty);
    let attributes = FirstStageAttributes::READ_WRITE;
    let leaf = |target| Entry::Leaf { target, attributes };
    // P, R/W, U/S, A, D, PAT, EA and bit 11.
    assert_eq!(format.decode(0x5ce7, 1), leaf(0x5000));
    assert_eq!(format.decode(1 << 46 | 1, 1), reserved(1 << 46));
    assert_eq!(format.decode(1 << 63 | 1, 1), reserved(1 << 63));
    // A page of 2 MiB: bit 12 is PAT, bits 20:13 are reserved.
    assert_eq!(format.decode(0x60_1087, 2), leaf(0x60_0000));
    assert_eq!(format.decode(0x60_2087, 2), reserved(0x2000));
    assert_eq!(format.decode(0x4000_0087, 3), reserved(0x80));
    assert_eq!(
        format.with_one_gib().decode(0x4000_0087, 3),
        leaf(0x4000_0000)
    );
    assert_eq!(format.decode(0x1087, 4), reserved(0x80));
    assert_eq!(format.shape().strip(0xffff_8000_0000_0000), Some(1 << 47));
    assert_eq!(format.shape().strip(1 << 47), None);
}

#[test]
fn what_no_unit_has_is_refused() {
    assert_eq!(SecondStage::new(2, 39), Err(Unsupported::Levels(2)));
    assert_eq!(SecondStage::new(4, 53), Err(Unsupported::HostBits(53)));
    assert_eq!(FirstStage::new(3, 39), Err(Unsupported::Levels(3)));
    assert_eq!(FirstStage::new(4, 29), Err(Unsupported::HostBits(29)));
    use hvkit_page_table::Encode;
    let format = second();
    let rule = |attributes| format.check(attributes, 1).unwrap_err();
    let read = SecondStageAttributes::READ;
    assert_eq!(rule(read.snooping()), SecondStageRule::Snoop);
    assert_eq!(rule(read.transient()), SecondStageRule::Transient);
    assert_eq!(rule(SecondStageAttributes(0)), SecondStageRule::NoRights);
    let format = FirstStage::new(4, 46).unwrap();
    let refused = format.check(FirstStageAttributes::READ.no_execute(), 1);
    assert_eq!(refused, Err(FirstStageRule::NoExecute));
}
