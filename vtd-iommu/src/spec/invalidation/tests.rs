// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every descriptor against raw words worked out from its figure.

use super::*;
use crate::spec::page_request::{PageGroupResponse, ResponseCode};
use crate::spec::registers::QueueError;
use crate::spec::{Pasid, RequesterId};

const DEVICE: RequesterId = RequesterId(0x1234);

fn pasid() -> Pasid {
    Pasid::new(0xa_bcde).unwrap()
}

/// Bit 63 down to 0 in the figure's order: the raw words beside what they say.
fn figures() -> [([u64; 2], Descriptor); 20] {
    let pages = Pages {
        address: 0x0000_1234_5678_9000,
        order: 9,
        leaves_only: true,
    };
    let device = DeviceTlb {
        source: DEVICE,
        physical_source: RequesterId(0xfedc),
        max_pending: 0x1f,
    };
    let both = Drain::READS | Drain::WRITES;
    let iotlb = |scope, drain| Descriptor::Iotlb { scope, drain };
    [
        (
            [0x0000_0000_0000_0011, 0],
            Descriptor::Context(ContextScope::Global),
        ),
        (
            [0x0000_0000_0007_0021, 0],
            Descriptor::Context(ContextScope::Domain { domain: 7 }),
        ),
        (
            [0x0003_1234_0007_0031, 0],
            Descriptor::Context(ContextScope::Device {
                domain: 7,
                source: DEVICE,
                function_mask: 3,
            }),
        ),
        (
            [0x0000_0000_0000_0012, 0],
            iotlb(IotlbScope::Global, Drain::empty()),
        ),
        (
            [0x0000_0000_beef_0062, 0],
            iotlb(IotlbScope::Domain { domain: 0xbeef }, Drain::WRITES),
        ),
        (
            [0x0000_0000_beef_00a2, 0],
            iotlb(IotlbScope::Domain { domain: 0xbeef }, Drain::READS),
        ),
        (
            [0x0000_0000_0007_00f2, 0x0000_1234_5678_9049],
            iotlb(IotlbScope::Pages { domain: 7, pages }, both),
        ),
        (
            [0xfed0_1234_001f_c003, 0x0000_1234_5678_9000],
            Descriptor::DeviceTlb {
                device,
                range: AtsRange {
                    address: 0x0000_1234_5678_9000,
                    order: 0,
                },
            },
        ),
        (
            // 2 MiB at 0x4000_0000: nine orders, so eight ones under the zero.
            [0xfed0_1234_001f_c003, 0x0000_0000_400f_f001],
            Descriptor::DeviceTlb {
                device,
                range: AtsRange {
                    address: 0x4000_0000,
                    order: 9,
                },
            },
        ),
        (
            [0x0000_0000_0000_0004, 0],
            Descriptor::Interrupt(InterruptScope::Global),
        ),
        (
            [0x0000_beef_7800_0014, 0],
            Descriptor::Interrupt(InterruptScope::Index {
                index: 0xbeef,
                order: 15,
            }),
        ),
        (
            [0xcafe_f00d_0000_0025, 0x0000_0001_2345_6784],
            Descriptor::Wait(Wait {
                status: Some(StatusWrite {
                    address: 0x1_2345_6784,
                    data: 0xcafe_f00d,
                }),
                ..Wait::default()
            }),
        ),
        (
            [0x0000_0000_0000_0055, 0],
            Descriptor::Wait(Wait {
                interrupt: true,
                fence: true,
                ..Wait::default()
            }),
        ),
        (
            [0x0000_0000_0000_0085, 0],
            Descriptor::Wait(Wait {
                page_drain: true,
                ..Wait::default()
            }),
        ),
        (
            [0x000a_bcde_0007_0026, 0],
            Descriptor::PasidIotlb {
                domain: 7,
                pasid: pasid(),
                scope: PasidIotlbScope::All,
            },
        ),
        (
            [0x000a_bcde_0007_0036, 0x0000_1234_5678_9049],
            Descriptor::PasidIotlb {
                domain: 7,
                pasid: pasid(),
                scope: PasidIotlbScope::Pages(pages),
            },
        ),
        (
            [0x000a_bcde_0007_0017, 0],
            Descriptor::PasidCache(PasidCacheScope::Pasid {
                domain: 7,
                pasid: pasid(),
            }),
        ),
        (
            [0x0000_0000_0000_0037, 0],
            Descriptor::PasidCache(PasidCacheScope::Global),
        ),
        (
            [0xfeda_bcde_1234_c1f8, 0x0000_0000_400f_f800],
            Descriptor::PasidDeviceTlb {
                device,
                pasid: Some(pasid()),
                range: AtsRange {
                    address: 0x4000_0000,
                    order: 9,
                },
            },
        ),
        (
            [0x000a_bcde_1234_1019, 0x0000_0000_0000_0ffc],
            Descriptor::PageGroupResponse(PageGroupResponse {
                source: DEVICE,
                pasid: Some(pasid()),
                group: 0x1ff,
                last: true,
                code: ResponseCode::INVALID_REQUEST,
            }),
        ),
    ]
}

#[test]
fn descriptors_are_spelled_as_in_the_figures() {
    for (words, descriptor) in figures() {
        assert_eq!(
            descriptor.encode().narrow(),
            words,
            "{descriptor:?}: {words:#x?}"
        );
        let [low, high] = words;
        assert_eq!(descriptor.encode().wide(), [low, high, 0, 0]);
        assert_eq!(
            Descriptor::decode(RawDescriptor::from_narrow(words)),
            Ok(descriptor)
        );
        assert_eq!(
            Descriptor::decode(RawDescriptor::from_wide([low, high, 0, 0])),
            Ok(descriptor)
        );
    }
}

#[test]
fn each_reserved_bit_is_refused() {
    // Bits 63:0 and 127:64 that are reserved, from the figures.
    let reserved: [(u8, u64, u64); 9] = [
        (1, 0xfffc_0000_0000_f1c0, !0),
        (2, 0xffff_ffff_0000_f100, 0x0000_0000_0000_0f80),
        (3, 0x000f_0000_ffe0_01f0, 0x0000_0000_0000_0ffe),
        (4, 0xffff_0000_07ff_f1e0, !0),
        (5, 0x0000_0000_ffff_f100, 0x0000_0000_0000_0003),
        (6, 0xfff0_0000_0000_f1c0, 0x0000_0000_0000_0f80),
        (7, 0xfff0_0000_0000_f1c0, !0),
        (8, 0x0000_0000_0000_0000, 0x0000_0000_0000_07fe),
        (9, 0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
    ];
    for (kind, low, high) in reserved {
        // A granularity that exists, for those that have one.
        let plain: u64 = match kind {
            1 | 2 => 0x10,
            6 => 0x20,
            _ => 0,
        } | u64::from(kind);
        for bit in 0..256u32 {
            let mut words = [plain, 0, 0, 0];
            words[bit as usize / 64] ^= 1 << (bit % 64);
            let is_reserved = match bit / 64 {
                0 => low >> bit & 1 != 0,
                1 => high >> (bit - 64) & 1 != 0,
                _ => true,
            };
            let decoded = Descriptor::decode(RawDescriptor::from_wide(words));
            let refused =
                matches!(decoded, Err(DescriptorError::Reserved { kind: k, .. }) if k == kind);
            assert_eq!(refused, is_reserved, "type {kind}, bit {bit}: {decoded:x?}");
        }
    }
}

#[test]
fn types_have_seven_bits_and_nine_are_defined() {
    for kind in 0..128u64 {
        let words = [kind & 0xf | (kind >> 4) << 9 | 0x30, 0];
        let decoded = Descriptor::decode(RawDescriptor::from_narrow(words));
        let unknown = decoded == Err(DescriptorError::Kind { kind: kind as u8 });
        assert_eq!(unknown, !(1..=9).contains(&kind), "{kind}: {decoded:?}");
    }
}

#[test]
fn granularities_that_are_not_defined_are_refused() {
    for (kind, allowed) in [(1, 0b1110u8), (2, 0b1110), (6, 0b1100), (7, 0b1011)] {
        for granularity in 0..4u8 {
            let words = [u64::from(kind) | u64::from(granularity) << 4, 0];
            let decoded = Descriptor::decode(RawDescriptor::from_narrow(words));
            let expected = DescriptorError::Granularity { kind, granularity };
            assert_eq!(
                decoded == Err(expected),
                allowed >> granularity & 1 == 0,
                "{decoded:?}"
            );
        }
    }
}

#[test]
fn errors_name_what_the_unit_reports() {
    let kind = DescriptorError::Kind { kind: 0 };
    assert_eq!(kind.queue_error(), QueueError::INVALID_TYPE);
    let granularity = DescriptorError::Granularity {
        kind: 1,
        granularity: 0,
    };
    assert_eq!(granularity.queue_error(), QueueError::RESERVED_FIELD);
    let reserved = DescriptorError::Reserved {
        kind: 1,
        low: 1,
        high: 0,
    };
    assert_eq!(reserved.queue_error(), QueueError::RESERVED_FIELD);
}

#[test]
fn pages_cover_what_they_are_asked_to() {
    let pages = |start, last| Pages::covering(start, last, false);
    assert_eq!(
        (pages(0x5000, 0x5fff).address, pages(0x5000, 0x5fff).order),
        (0x5000, 0)
    );
    assert_eq!(
        (pages(0x5000, 0x6fff).address, pages(0x5000, 0x6fff).order),
        (0x4000, 2)
    );
    assert_eq!(
        (
            pages(0x20_0000, 0x3f_ffff).address,
            pages(0x20_0000, 0x3f_ffff).order
        ),
        (0x20_0000, 9)
    );
    assert_eq!(
        pages(0, u64::MAX),
        Pages {
            address: 0,
            order: 52,
            leaves_only: false
        }
    );
    assert_eq!(
        (pages(0, u64::MAX).first(), pages(0, u64::MAX).last()),
        (0, u64::MAX)
    );
    let odd = Pages {
        address: 0x5000,
        order: 2,
        leaves_only: false,
    };
    assert_eq!((odd.first(), odd.last()), (0x4000, 0x7fff));
    for order in 0..=63 {
        let pages = Pages {
            address: !0xfff,
            order,
            leaves_only: false,
        };
        assert_eq!(pages.last(), u64::MAX);
    }
}

#[test]
fn sizes_of_ats_are_the_lowest_zero() {
    // PCI Express ATS: with S set, page-number bits 0...0 mean 8 KiB, ...01 mean 16 KiB.
    assert_eq!(
        AtsRange::from_fields(0, true),
        AtsRange {
            address: 0,
            order: 1
        }
    );
    assert_eq!(
        AtsRange::from_fields(0x1000, true),
        AtsRange {
            address: 0,
            order: 2
        }
    );
    assert_eq!(
        AtsRange::from_fields(0x8000_1000, false),
        AtsRange {
            address: 0x8000_1000,
            order: 0
        }
    );
    assert_eq!(
        AtsRange::from_fields(0x7fff_ffff_ffff_f000, true),
        AtsRange::ALL
    );
    assert_eq!(
        AtsRange::from_fields(0xffff_ffff_ffff_f000, true),
        AtsRange::ALL
    );
    assert_eq!(AtsRange::ALL.fields(), (0x7fff_ffff_ffff_f000, true));
    for order in 0..=52 {
        let range = AtsRange { address: 0, order };
        let (address, sized) = range.fields();
        assert_eq!(AtsRange::from_fields(address, sized), range);
        assert_eq!(
            range.last(),
            if order == 52 {
                u64::MAX
            } else {
                (4096 << order) - 1
            }
        );
    }
}
