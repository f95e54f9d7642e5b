// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stores against raw bytes.

use super::*;
use crate::fields as f;

#[test]
fn widths_and_halves() {
    let mut vmcs = Vmcs::new();
    vmcs.write(f::TSC_OFFSET, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(vmcs.get(Encoding(0x2010)), Some(0x1122_3344_5566_7788));
    assert_eq!(vmcs.get(Encoding(0x2011)), Some(0x1122_3344));
    vmcs.set(Encoding(0x2011), 0xaaaa_bbbb).unwrap();
    assert_eq!(vmcs.read(f::TSC_OFFSET), Some(0xaaaa_bbbb_5566_7788));
    vmcs.set(Encoding(0x0800), 0xdead_beef).unwrap();
    assert_eq!(vmcs.read(f::GUEST_ES_SELECTOR), Some(0xbeef));
    assert_eq!(
        vmcs.set(Encoding(0x6801), 1),
        Err(NoSuchField(Encoding(0x6801)))
    );
    assert_eq!(
        vmcs.set(Encoding(0x7000), 1),
        Err(NoSuchField(Encoding(0x7000)))
    );
    assert_eq!(vmcs.get(Encoding(0x2046)), None, "a hole in the numbering");
}

#[test]
fn every_number_is_a_field_or_an_error() {
    let (mut vmcs, mut fields) = (Vmcs::new(), 0);
    for number in 0..=0xffff {
        let encoding = Encoding(number);
        let known = f::find(encoding).is_some();
        assert_eq!(vmcs.get(encoding).is_some(), known);
        assert_eq!(vmcs.set(encoding, u64::MAX).is_ok(), known);
        fields += usize::from(known);
    }
    assert!(fields > f::COUNT);
    // All bits of every field, none beside.
    for info in &f::ALL {
        assert_eq!(vmcs.get(info.encoding), Some(info.encoding.width().mask()));
    }
}

fn vmcs12() -> [u8; 4096] {
    let mut bytes = [0; 4096];
    bytes[..4].copy_from_slice(&[0xd0, 0x7e, 0xe5, 0x11]);
    bytes
}

#[test]
fn a_vmcs12_in_raw_bytes() {
    let mut bytes = vmcs12();
    bytes[544..552].copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes()); // guest RIP
    bytes[748..752].copy_from_slice(&0x8401_e1f2_u32.to_le_bytes()); // primary controls
    bytes[966..968].copy_from_slice(&0x10_u16.to_le_bytes()); // guest CS
    bytes[996..998].copy_from_slice(&511_u16.to_le_bytes()); // PML index
    bytes[8] = 1;
    let mut read = Vmcs12::new(bytes).unwrap();
    assert_eq!(read.read(f::GUEST_RIP), Some(0x1122_3344_5566_7788));
    assert_eq!(read.read(f::PRIMARY_CONTROLS), Some(0x8401_e1f2));
    assert_eq!(read.read(f::GUEST_CS_SELECTOR), Some(0x10));
    assert_eq!(read.read(f::PML_INDEX), Some(511));
    assert_eq!(
        (read.launch_state(), read.abort(), read.is_shadow()),
        (1, 0, false)
    );
    assert_eq!(read.read(f::GUEST_FRED_CONFIG), None);
    assert_eq!(
        read.write(f::GUEST_PKRS, 1),
        Err(NoSuchField(f::GUEST_PKRS.encoding()))
    );

    read.write(f::EPT_POINTER, 0x5a5a_501e).unwrap();
    read.write(f::HOST_TR_SELECTOR, 0x40).unwrap();
    let bytes = read.into_inner();
    assert_eq!(bytes[120..128], 0x5a5a_501e_u64.to_le_bytes());
    assert_eq!(bytes[994..996], [0x40, 0]);
    assert_eq!(bytes[998], 0);
}

#[test]
fn what_is_not_a_vmcs12() {
    assert_eq!(
        Vmcs12::new([0; 4095]).unwrap_err(),
        Vmcs12Error::Length { have: 4095 }
    );
    let mut bytes = vmcs12();
    bytes[0] = 0xd1;
    assert_eq!(
        Vmcs12::new(bytes).unwrap_err(),
        Vmcs12Error::Revision { have: 0x11e5_7ed1 }
    );
    bytes = vmcs12();
    bytes[3] |= 0x80;
    assert!(Vmcs12::new(bytes).unwrap().is_shadow());
}

/// Offsets of KVM's own list, one of every group.
#[test]
fn offsets_are_kvms() {
    let offset = |encoding: Encoding| f::find(encoding).unwrap().vmcs12_offset;
    for (encoding, at) in [
        (0x2000, 40),
        (0x200a, 80),
        (0x201a, 120),
        (0x202c, 160),
        (0x2800, 176),
        (0x2812, 248),
        (0x2c04, 272),
        (0x2018, 296),
        (0x200e, 312),
        (0x2032, 328),
        (0x2044, 336),
        (0x6000, 344),
        (0x6400, 408),
        (0x6800, 424),
        (0x6822, 560),
        (0x6c00, 584),
        (0x6c16, 672),
        (0x6c18, 680),
        (0x682c, 720),
        (0x4000, 744),
        (0x401e, 804),
        (0x4400, 808),
        (0x440e, 836),
        (0x4800, 840),
        (0x4822, 908),
        (0x482e, 928),
        (0x0000, 960),
        (0x0002, 962),
        (0x0810, 980),
        (0x0c0c, 994),
    ] {
        assert_eq!(offset(Encoding(encoding)), Some(at), "{encoding:#x}");
    }
    for absent in [0x2034, 0x2818, 0x281a, 0x2c06, 0x6008, 0x4828, 0x200c] {
        assert_eq!(offset(Encoding(absent)), None, "{absent:#x}");
    }
}

#[test]
fn a_layout_of_ones_own() {
    /// Guest RIP at 2, and a field that would not fit.
    #[derive(Debug)]
    enum Mine {}
    impl Layout for Mine {
        const SIZE: usize = 10;
        fn offset(encoding: Encoding) -> Option<usize> {
            match encoding.0 {
                0x681e => Some(2),
                0x681c => Some(3),
                0x6820 => Some(usize::MAX),
                _ => None,
            }
        }
    }
    let mut raw = Raw::<_, Mine>::new([0_u8, 0, 0xef, 0xbe, 0, 0, 0, 0, 0, 0x80]).unwrap();
    assert_eq!(raw.read(f::GUEST_RIP), Some(0x8000_0000_0000_beef));
    assert_eq!(
        (raw.read(f::GUEST_RSP), raw.read(f::GUEST_RFLAGS)),
        (None, None)
    );
    raw.write(f::GUEST_RIP, 1).unwrap();
    assert_eq!(raw.bytes(), [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        Raw::<_, Mine>::new([0; 9]).unwrap_err(),
        TooShort { have: 9, need: 10 }
    );
}

#[test]
fn a_listing_by_name_and_number() {
    let text = b"guest_rip = 0xfff0\n0x2011: 1 # high half of the TSC offset\n\nVPID 2";
    let vmcs = parse_listing(text).unwrap();
    assert_eq!(vmcs.read(f::GUEST_RIP), Some(0xfff0));
    assert_eq!(vmcs.read(f::TSC_OFFSET), None, "bits 31:0 are not known");
    assert_eq!(vmcs.get(Encoding(0x2011)), Some(1));
    assert_eq!(
        (vmcs.read(f::VPID), vmcs.read(f::GUEST_RSP)),
        (Some(2), None)
    );
    assert_eq!((vmcs.len(), vmcs.is_empty()), (3, false));
    assert!(Snapshot::new().is_empty());
    assert_eq!(Vmcs::copy_of(&vmcs).read(f::GUEST_RSP), Some(0));
    assert_eq!(Snapshot::of(&vmcs), vmcs);
}

#[test]
fn half_a_field_is_not_a_field() {
    let link = f::VMCS_LINK_POINTER;
    let mut half = Snapshot::new();
    half.set(Encoding(0x2801), 0xffff_ffff).unwrap();
    assert_eq!((half.get(Encoding(0x2800)), half.read(link)), (None, None));
    assert_eq!(half.get(Encoding(0x2801)), Some(0xffff_ffff));
    // What is known is neither lost nor taken for more, by a copy or a listing.
    assert_eq!(Snapshot::of(&half), half);
    let text = crate::dump::Listing(&half).to_string();
    assert_eq!(text, "0x2801 = 0xffffffff\n");
    assert_eq!(parse_listing(text.as_bytes()), Ok(half.clone()));
    assert_eq!((half.len(), half.is_empty()), (1, false));
    // VMWRITE of the whole in 64-bit mode, and then of its high half.
    let mut whole = parse_listing(b"vmcs_link_pointer = 0x5000").unwrap();
    assert_eq!(whole.get(Encoding(0x2801)), Some(0));
    whole.set(Encoding(0x2801), 1).unwrap();
    assert_eq!(whole.read(link), Some(0x1_0000_5000));
    half.set(Encoding(0x2800), 2).unwrap();
    assert_eq!((half.read(link), half.len()), (Some(2), 1));
}

#[test]
fn a_bad_listing_names_line_and_byte() {
    let error = |text: &[u8]| {
        let error = parse_listing(text).unwrap_err();
        (error.line, error.offset, error.problem)
    };
    let (unknown, bad) = (ListingProblem::UnknownField, ListingProblem::BadValue);
    assert_eq!(error(b"guest_rip 1\nguest_rap 1"), (2, 12, unknown));
    assert_eq!(error(b"0x2046 1"), (1, 0, unknown));
    assert_eq!(error(b"vpid"), (1, 4, bad));
    assert_eq!(error(b"vpid x"), (1, 5, bad));
    let too_wide = ListingProblem::TooWide(f::VPID.encoding());
    assert_eq!(error(b"vpid 10000"), (1, 5, too_wide));
    assert_eq!(error(b"vpid 1 2"), (1, 7, ListingProblem::Trailing));
    assert_eq!(error(b"\x80"), (1, 0, unknown));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_listing_or_an_error_inside_them(text: Vec<u8>) {
        if let Err(error) = parse_listing(&text) {
            assert!(error.offset <= text.len() && error.line <= text.len() + 1);
        }
    }

    #[test]
    fn any_4096_bytes_with_the_revision_read(mut bytes in proptest::collection::vec(0_u8.., 4096), number: u32) {
        bytes[..4].copy_from_slice(&Vmcs12::<()>::REVISION.to_le_bytes());
        let read = Vmcs12::new(&bytes).unwrap();
        let _ = read.get(Encoding(number));
        assert_eq!(Snapshot::of(&read).len(), f::ALL.iter().filter(|i| i.vmcs12_offset.is_some()).count());
    }
}
