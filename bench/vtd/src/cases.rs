// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The groups.

use std::cell::RefCell;

use hvkit_page_table::{Root, translate};
use hvkit_vtd_iommu::tables::{LargePages, SecondStage};
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};

use crate::harness::{Aim, Case, Report, Role, compare, time};
use crate::machine::{DESCRIPTORS, Machine, TOP, target};

const HITS: u64 = 1_000_000;
const REFILLS: u64 = 16_384;

const OURS: &str = "hvkit: emulated unit";
const FLOOR: &str = "an array of tags, by hand";
const WALK: &str = "the walk, nothing kept";
const PEER: &str = "vm-memory 0.18: Iotlb";
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
    let (from, to) = (GuestAddress(page << 12), GuestAddress(target(page)));
    iotlb
        .set_mapping(from, to, 4096, Permissions::ReadWrite)
        .expect("a mapping");
}

/// What a hit cannot do without: a tag by page number, compared, and what is beside it.
fn floor(pages: u64) -> Vec<(u64, u64)> {
    (0..pages.next_power_of_two())
        .map(|page| (page << 19 | 1, target(page) | 7))
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

/// A page invalidated through the queue, then translated again through its table.
pub fn refill(pages: u64, rounds: usize) -> Report {
    let mut machine = Machine::new(pages);
    let plan =
        |order: &mut Order| -> Vec<u64> { (0..REFILLS).map(|_| order.page(pages)).collect() };
    let chosen = plan(&mut Order(5));
    machine.fill_queue(REFILLS + 1, |i| chosen[i as usize]);
    let peer = RefCell::new(iotlb(pages));
    let stream = Machine::new(64);
    let cases = vec![
        case(STREAM, Role::Limit, || time(|| stream.read_queue(REFILLS))),
        case(OURS, Role::Ours, || {
            machine.rewind();
            time(|| {
                machine.ring(REFILLS + 1);
                chosen
                    .iter()
                    .fold(0, |sum, page| sum ^ machine.translate(page << 12))
            })
        }),
        case(PEER, Role::Peer, || {
            let mut iotlb = peer.borrow_mut();
            time(|| {
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

/// Page-selective invalidations, with so many pages kept.
pub fn queue(live: u64, rounds: usize) -> Report {
    let mut machine = Machine::new(live);
    let stream = Machine::new(64);
    let count = DESCRIPTORS - 1;
    // Each of them of a page that is kept, as far as there are so many.
    machine.fill_queue(count, |i| i % live.max(1));
    let cases = vec![
        case(STREAM, Role::Limit, || time(|| stream.read_queue(count))),
        case(OURS, Role::Ours, || {
            machine.touch(live);
            machine.rewind();
            time(|| machine.ring(count))
        }),
    ];
    let title = format!("{count} descriptors, by page, with {live} pages kept");
    let aims = [Aim {
        case: OURS,
        limit: None,
        at_most: 6.0,
    }];
    compare(&title, "descriptor", count as f64, rounds, cases, &aims)
}
