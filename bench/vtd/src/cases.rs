// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The groups.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use hvkit_page_table::{Root, translate};
use hvkit_vtd_iommu::driver::Deferred;
use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::tables::{LargePages, SecondStage, SecondStageAttributes};
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};

use crate::board::Board;
use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::machine::{self, DESCRIPTORS, Machine, TOP};
use crate::qemu::Qemu;

const READ_WRITE: SecondStageAttributes = SecondStageAttributes::READ_WRITE;
const HITS: u64 = 1_000_000;
const REFILLS: u64 = 16_384;

const OURS: &str = "hvkit: emulated unit";
const STRICT: &str = "hvkit: driver, strict";
const LAZY: &str = "hvkit: driver, deferred";
const STORES: &str = "the stores, by hand";
const BY_HAND: &str = "the same stores, by hand";
const FLOOR: &str = "an array of tags, by hand";
const WALK: &str = "the walk, nothing kept";
const PEER: &str = "vm-memory 0.18: Iotlb";
const QEMU: &str = "QEMU: intel-iommu, over qtest";
const STREAM: &str = "reading the descriptors";

/// Pages at random, the same ones each time.
struct Order(u64);

impl Order {
    fn page(&mut self, pages: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * pages) >> 32
    }
}

fn case<'a>(name: &str, role: Role, run: impl FnMut() -> f64 + 'a) -> Case<'a> {
    Case {
        name: name.to_owned(),
        role,
        run: Box::new(run),
    }
}

fn iotlb(pages: u64) -> Iotlb {
    let mut iotlb = Iotlb::new();
    for page in 0..pages {
        set(&mut iotlb, page);
    }
    iotlb
}

fn set(iotlb: &mut Iotlb, page: u64) {
    let (from, to) = (
        GuestAddress(page << 12),
        GuestAddress(machine::target(page)),
    );
    iotlb
        .set_mapping(from, to, 4096, Permissions::ReadWrite)
        .expect("a mapping");
}

/// What a hit cannot do without: a tag by page number, compared, and what is beside it.
fn floor(pages: u64) -> Vec<(u64, u64)> {
    (0..pages.next_power_of_two())
        .map(|page| (page << 19 | 1, machine::target(page) | 7))
        .collect()
}

fn look(array: &[(u64, u64)], address: u64) -> u64 {
    let page = address >> 12;
    match array.get((page & (array.len() as u64 - 1)) as usize) {
        Some((tag, entry)) if *tag == page << 19 | 1 && entry & 5 == 5 => {
            entry & !0xfff | address & 0xfff
        }
        _ => 0,
    }
}

/// What a page-selective invalidation cannot do without.
fn clear(array: &mut [(u64, u64)], address: u64) {
    let (page, mask) = (address >> 12, array.len() as u64 - 1);
    if let Some((tag, _)) = array.get_mut((page & mask) as usize)
        && *tag == page << 19 | 1
    {
        *tag = 0;
    }
}

/// What a refill cannot do without, given the entry of the leaf table.
fn put(array: &mut [(u64, u64)], page: u64, leaf: u64) -> u64 {
    let mask = array.len() as u64 - 1;
    if let Some(place) = array.get_mut((page & mask) as usize) {
        *place = (page << 19 | 1, leaf | 4);
    }
    leaf & !0xfff
}

/// A translation that is kept.
pub fn hit(pages: u64, rounds: usize) -> Report {
    let mut machine = Machine::new(pages);
    let walked = Machine::new(pages);
    let format = SecondStage::new(4, 48)
        .expect("a preset")
        .with_large_pages(LargePages::all());
    let iotlb = iotlb(pages);
    let array = floor(pages);
    let cases = vec![
        case(FLOOR, Role::Limit, || {
            let mut order = Order(9);
            time(|| (0..HITS).fold(0, |sum, _| sum ^ look(&array, order.page(pages) << 12)))
        }),
        case(WALK, Role::Limit, || {
            let mut order = Order(9);
            time(|| {
                (0..HITS).fold(0, |sum, _| {
                    let address = order.page(pages) << 12;
                    let found = translate(&format, &walked.ram, Root::Table(TOP), address);
                    sum ^ found.map_or(0, |found| found.target)
                })
            })
        }),
        case(OURS, Role::Ours, || {
            let mut order = Order(9);
            time(|| (0..HITS).fold(0, |sum, _| sum ^ machine.translate(order.page(pages) << 12)))
        }),
        case(PEER, Role::Peer, || {
            let mut order = Order(9);
            time(|| {
                (0..HITS).fold(0, |sum, _| {
                    let address = GuestAddress(order.page(pages) << 12);
                    let found = Iotlb::lookup(&iotlb, address, 64, Permissions::Read);
                    let found = found.ok().and_then(|mut found| found.next());
                    sum ^ found.map_or(0, |found| found.base.0)
                })
            })
        }),
    ];
    let title = format!("a hit among {pages} pages, at random");
    let aims = [Aim {
        case: OURS,
        limit: None,
        at_most: 3.0,
    }];
    compare(&title, "translation", HITS as f64, rounds, cases, &aims)
}

/// `f`, done twice: only the second time counts, when this machine's caches hold what it needs and not what the case
/// before it left.
fn warm<R>(mut f: impl FnMut() -> R) -> f64 {
    std::hint::black_box(f());
    time(f)
}

/// A page invalidated through the queue, then translated again through its table.
pub fn refill(pages: u64, rounds: usize) -> Report {
    let mut machine = Machine::new(pages);
    let plan =
        |order: &mut Order| -> Vec<u64> { (0..REFILLS).map(|_| order.page(pages)).collect() };
    let chosen = plan(&mut Order(5));
    machine.fill_queue(REFILLS + 1, |i| chosen[i as usize]);
    let peer = RefCell::new(iotlb(pages));
    let by_hand = Machine::new(pages);
    by_hand.fill_queue(REFILLS + 1, |i| chosen[i as usize]);
    let mut array = floor(pages);
    let cases = vec![
        case(BY_HAND, Role::Limit, || {
            warm(|| {
                by_hand.each_descriptor(REFILLS, |address| clear(&mut array, address));
                chosen.iter().fold(0, |sum, page| {
                    sum ^ put(&mut array, *page, by_hand.leaf(*page))
                })
            })
        }),
        case(OURS, Role::Ours, || {
            warm(|| {
                machine.rewind();
                machine.ring(REFILLS + 1);
                chosen
                    .iter()
                    .fold(0, |sum, page| sum ^ machine.translate(page << 12))
            })
        }),
        case(PEER, Role::Peer, || {
            let mut iotlb = peer.borrow_mut();
            warm(|| {
                for page in &chosen {
                    iotlb.invalidate_mapping(GuestAddress(page << 12), 4096);
                    set(&mut iotlb, *page);
                }
            })
        }),
    ];
    let title = format!("a page of {pages} invalidated and filled again");
    let aims = [Aim {
        case: OURS,
        limit: None,
        at_most: 12.0,
    }];
    compare(&title, "pair", REFILLS as f64, rounds, cases, &aims)
}

/// What the driver half does for one DMA of `pages` pages, the emulated half being the hardware: maps, has the device
/// reach the first page, unmaps, and invalidates with one wait, or lets 256 unmappings wait for one invalidation.
pub fn driver(pages: u64, rounds: usize) -> Report {
    const MAPS: u64 = 4096;
    let bytes = pages << 12;
    // In a leaf table that stays, beside a page that stays.
    let place = |i: u64| 0x4000_1000 + (i & 7) * 0x20_0000;
    let target = |i: u64| (i & 0x3ff) << 20;
    let (strict, deferred) = (Board::new(), Board::new());
    let (mut unit, mut domain) = strict.drive();
    let (mut lazy_unit, mut lazy_domain) = deferred.drive();
    let mut owed = Deferred::new(&lazy_domain, 256);
    for i in 0..8 {
        for domain in [&mut domain, &mut lazy_domain] {
            let beside = place(i) - 0x1000;
            let _ = domain
                .map(beside..beside + 0x1000, 0x1000, READ_WRITE)
                .expect("free");
        }
    }
    let words = Ram::new(0x10_0000);
    let cases = vec![
        case(STORES, Role::Limit, || {
            time(|| {
                for i in 0..MAPS {
                    let table = place(i) >> 9 & 0xf_f000;
                    for page in 0..pages {
                        store(&words, table / 8 + page, place(i) + page);
                    }
                    for page in 0..pages {
                        store(&words, table / 8 + page, 0);
                    }
                    for word in 0..5 {
                        store(&words, 64 + word, i);
                    }
                }
            })
        }),
        case(STRICT, Role::Ours, || {
            time(|| {
                for i in 0..MAPS {
                    let at = place(i);
                    let fresh = domain
                        .map(at..at + bytes, target(i), READ_WRITE)
                        .expect("free");
                    unit.publish(&domain, fresh).expect("a unit that answers");
                    assert_eq!(strict.reaches(at), Some(target(i)));
                    let stale = domain.unmap(at..at + bytes).expect("ours");
                    unit.settle(&domain, stale).expect("a unit that answers");
                }
            })
        }),
        case(LAZY, Role::Ours, || {
            time(|| {
                for i in 0..MAPS {
                    let at = place(i);
                    let fresh = lazy_domain
                        .map(at..at + bytes, target(i), READ_WRITE)
                        .expect("free");
                    lazy_unit
                        .publish(&lazy_domain, fresh)
                        .expect("a unit that answers");
                    assert!(deferred.reaches(at).is_some());
                    let stale = lazy_domain.unmap(at..at + bytes).expect("ours");
                    owed.defer(&mut lazy_unit, &lazy_domain, stale)
                        .expect("a unit that answers");
                }
            })
        }),
    ];
    let title = format!("the driver: {pages} pages mapped, reached, unmapped, invalidated");
    let aim = |case, at_most| Aim {
        case,
        limit: None,
        at_most,
    };
    let at_most = if pages == 1 { 200.0 } else { 2.0 };
    let aims = [aim(STRICT, at_most), aim(LAZY, at_most)];
    let operations = (MAPS * pages) as f64;
    compare(&title, "page", operations, rounds, cases, &aims)
}

fn store(words: &Ram, index: u64, value: u64) {
    words.words()[index as usize].store(value, Ordering::Release);
}

/// Page-selective invalidations, with so many pages kept. QEMU's unit, which keeps 1,023 at most, is timed by the clock on
/// the wall: it runs in a process of its own.
pub fn queue(live: u64, rounds: usize) -> Report {
    let mut machine = Machine::new(live);
    let stream = Machine::new(64);
    let count = DESCRIPTORS - 1;
    // Each of them of a page that is kept, as far as there are so many.
    machine.fill_queue(count, |i| i % live.max(1));
    let theirs = (live < 1024).then(|| Qemu::new(live));
    let mut cases = vec![
        case(STREAM, Role::Limit, || time(|| stream.read_queue(count))),
        case(OURS, Role::Ours, || {
            machine.touch(live);
            machine.rewind();
            time(|| machine.ring(count))
        }),
    ];
    match theirs {
        Some(Ok(mut qemu)) => cases.push(case(QEMU, Role::Peer, move || {
            qemu.ring(count).expect("QEMU's unit goes on")
        })),
        Some(Err(why)) => println!("\nQEMU's unit is left out: {why:#}"),
        None => {}
    }
    let title = format!("{count} descriptors, by page, with {live} pages kept");
    let aims = [Aim {
        case: OURS,
        limit: None,
        at_most: 6.0,
    }];
    compare(&title, "descriptor", count as f64, rounds, cases, &aims)
}
