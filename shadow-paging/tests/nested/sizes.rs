// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How large the leaves are that a device's shadow has, word by word: as large as guest, host, hardware and tuning allow.

use hvkit_page_table::{Span, Width};
use hvkit_shadow_paging::fake::FakeHost;
use hvkit_shadow_paging::mmu::{Mmu, Top, Tuning};
use hvkit_shadow_paging::nested::Nested;
use hvkit_vtd_iommu::tables::{LargePages, SecondStage};

use crate::devices::{Domain, machine, unit};

const GIB: u64 = 1 << 30;

/// The level of the leaf for `at`, and the page it leads to: "Second-Stage Paging Entries", PS is bit 7.
fn leaf(host: &FakeHost, domain: &Domain, at: u64) -> Option<(u8, u64)> {
    let mut table = domain.root();
    for level in (1..=4).rev() {
        let index = at >> (12 + 9 * (level - 1)) & 0x1ff;
        let word = host.load((table & !0xfff) + 8 * index, Width::Eight);
        if word & 3 == 0 {
            return None;
        }
        table = word & 0x000f_ffff_ffff_f000;
        if level == 1 || word & 0x80 != 0 {
            return Some((level, table));
        }
    }
    None
}

/// A guest that maps 1 GiB, 2 MiB and a page, each with the largest entry there is; what the shadow with `shadow`'s
/// sizes and `largest` has in their places.
fn levels(shadow: LargePages, largest: u8) -> [u8; 3] {
    let host = FakeHost::new(4 * GIB);
    let set = |at: u64, value| host.store(host.host(at).unwrap(), Width::Eight, value);
    set(0x1000, 0x2003);
    set(0x2000, 0x3003);
    set(0x2008, GIB | 0x83);
    set(0x3000, 0x4003);
    set(0x3008, 0x40_0083);
    set(0x4008, 0x60_0003);
    let tuning = Tuning {
        largest,
        ..Tuning::DEVICES
    };
    let mut mmu = Mmu::new(&host, &host, 2048, tuning).unwrap();
    let format = SecondStage::new(4, 46).unwrap().with_large_pages(shadow);
    let stage = Nested::new(unit(4), format).unwrap();
    let view = host.guest();
    let machine = machine(&host, &view);
    let settle = |mmu: &mut Mmu<_, _, _>, owed| mmu.settle(owed, |_| Ok::<_, ()>(())).unwrap();
    let (domain, owed) = mmu.open(stage, Top::Table(0x1000), machine).unwrap();
    settle(&mut mmu, owed);
    // Not all of the gigabyte: without large pages that is half a million entries.
    for (start, length) in [(0, 1 << 22), (GIB + (6 << 20), 2 << 20)] {
        let owed = mmu
            .follow(&domain, machine, Span::new(start, length))
            .unwrap();
        settle(&mut mmu, owed);
    }
    let found = [(GIB + (7 << 20) + 0x5000, 3), (0x20_5000, 2), (0x1000, 1)].map(|(at, most)| {
        let guest = match most {
            3 => at,
            2 => 0x40_0000 + (at & 0x1f_ffff),
            _ => 0x60_0000,
        };
        let (level, target) = leaf(&host, &domain, at).unwrap();
        let size = 1u64 << (12 + 9 * (level - 1));
        assert_eq!(target, host.host(guest).unwrap() & !(size - 1), "{at:#x}");
        level
    });
    mmu.close(domain);
    found
}

#[test]
fn leaves_are_as_large_as_the_hardware_and_the_tuning_have_them() {
    let both = LargePages::TWO_MIB | LargePages::ONE_GIB;
    assert_eq!(levels(both, u8::MAX), [3, 2, 1]);
    assert_eq!(levels(both, 2), [2, 2, 1]);
    assert_eq!(levels(both, 1), [1, 1, 1]);
    assert_eq!(levels(both, 0), [1, 1, 1], "pages there always are");
    assert_eq!(levels(LargePages::TWO_MIB, u8::MAX), [2, 2, 1]);
    assert_eq!(levels(LargePages::empty(), u8::MAX), [1, 1, 1]);
}
