// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices do DMA while the driver maps, unmaps, attaches and detaches.
//!
//! Pages are lent to the device and taken back. When the driver says that one is back, it is marked; no device may
//! ever touch the mark. A unit that keeps translations would, had the driver not had them forgotten.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use hvkit_vtd_iommu::driver::{Attachment, Deferred, DeferredFlush, Options};
use hvkit_vtd_iommu::emulation;
use hvkit_vtd_iommu::spec::RequesterId;

use crate::machine::{DATA, DEVICE, Machine, OurUnit, RW};

/// Pages of the window that the device writes to.
const PAGES: u64 = 64;
const WINDOW: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
/// What nobody but the driver writes.
const MARK: u64 = 0x6d61_726b_6d61_726b;

/// A sequence of numbers that looks random and repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Runs `work` while two devices write all over the window; how many of their writes went through.
fn with_devices(machine: &Machine, work: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    let landed = AtomicU64::new(0);
    thread::scope(|scope| {
        for source in [DEVICE, RequesterId(0x0400)] {
            let (over, landed) = (&over, &landed);
            scope.spawn(move || {
                let mut dice = Dice(0x9e37_79b9 + u64::from(source.0));
                while !over.load(Ordering::Relaxed) {
                    let to = WINDOW + dice.roll(PAGES * 512) * 8;
                    if machine.write(source, to, 1).is_ok() {
                        landed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        work();
        over.store(true, Ordering::Relaxed);
    });
    landed.into_inner()
}

/// Marks a page of memory.
fn mark(machine: &Machine, page: u64) {
    for word in 0..512 {
        machine.ram.set(DATA + page * PAGE + 8 * word, MARK);
    }
}

/// Whether somebody has touched a marked page.
fn is_touched(machine: &Machine, page: u64) -> bool {
    (0..512).any(|word| machine.ram.get(DATA + page * PAGE + 8 * word) != MARK)
}

fn both<'a>(unit: &mut OurUnit<'a>) -> crate::machine::OurDomain<'a> {
    let mut domain = unit.new_domain().unwrap();
    for source in [DEVICE, RequesterId(0x0400)] {
        unit.attach(&mut domain, Attachment::new(source)).unwrap();
    }
    domain
}

#[test]
fn nothing_is_touched_after_unmap_and_wait() {
    for options in [
        emulation::Options::new(39),
        emulation::Options::new(39).with_caching_mode(),
    ] {
        let machine = Machine::new(options);
        let mut unit = machine.drive(Options::legacy(39));
        let mut domain = both(&mut unit);
        let mut dice = Dice(7);
        let mut lent = [false; PAGES as usize];
        (0..PAGES).for_each(|page| mark(&machine, page));
        let landed = with_devices(&machine, || {
            for round in 0..6000 {
                let first = dice.roll(PAGES);
                let length = 1 + dice.roll((PAGES - first).min(6));
                let range = WINDOW + first * PAGE..WINDOW + (first + length) * PAGE;
                let pages = first..first + length;
                if pages.clone().all(|page| !lent[page as usize]) {
                    let fresh = domain.map(range, DATA + first * PAGE, RW).unwrap();
                    unit.publish(&domain, fresh).unwrap();
                    pages.for_each(|page| lent[page as usize] = true);
                } else {
                    let stale = domain.unmap(range).unwrap();
                    unit.settle(&domain, stale).unwrap();
                    for page in pages {
                        lent[page as usize] = false;
                        mark(&machine, page);
                    }
                }
                if round % 64 == 0 {
                    let back = (0..PAGES).filter(|page| !lent[*page as usize]);
                    for page in back {
                        assert!(!is_touched(&machine, page), "round {round}, page {page}");
                    }
                }
            }
        });
        assert!(landed > 0, "the devices did nothing");
        for page in 0..PAGES {
            assert!(
                lent[page as usize] || !is_touched(&machine, page),
                "page {page}"
            );
        }
    }
}

/// The test above can fail: without the wait, the unit's kept translations reach the page.
#[test]
fn without_the_wait_it_is_touched() {
    let machine = Machine::new(emulation::Options::new(39));
    let mut unit = machine.drive(Options::legacy(39));
    let mut domain = both(&mut unit);
    let fresh = domain.map(WINDOW..WINDOW + PAGE, DATA, RW).unwrap();
    unit.publish(&domain, fresh).unwrap();
    machine.write(DEVICE, WINDOW, 1).unwrap();
    let stale = domain.unmap(WINDOW..WINDOW + PAGE).unwrap();
    mark(&machine, 0);
    machine.write(DEVICE, WINDOW, 1).unwrap();
    assert!(is_touched(&machine, 0));
    unit.settle(&domain, stale).unwrap();
    machine.write(DEVICE, WINDOW, 1).unwrap_err();
}

#[test]
fn detached_devices_touch_nothing() {
    let machine = Machine::new(emulation::Options::new(39));
    let mut unit = machine.drive(Options::legacy(39));
    let mut lent = unit.new_domain().unwrap();
    let fresh = lent.map(WINDOW..WINDOW + PAGES * PAGE, DATA, RW).unwrap();
    unit.publish(&lent, fresh).unwrap();
    let landed = with_devices(&machine, || {
        for round in 0..300 {
            unit.attach(&mut lent, Attachment::new(DEVICE)).unwrap();
            for _ in 0..round % 8 {
                thread::yield_now();
            }
            unit.detach(&mut lent, DEVICE, None).unwrap();
            let page = round % PAGES;
            mark(&machine, page);
            thread::yield_now();
            assert!(!is_touched(&machine, page), "round {round}");
        }
    });
    assert!(landed > 0, "the devices did nothing");
}

#[test]
fn deferred_pages_are_safe_when_the_flush_is_over() {
    let machine = Machine::new(emulation::Options::new(39));
    let mut unit = machine.drive(Options::legacy(39));
    let mut domain = both(&mut unit);
    let mut deferred = Deferred::new(&domain, 8);
    let landed = with_devices(&machine, || {
        for round in 0..200 {
            let fresh = domain.map(WINDOW..WINDOW + PAGES * PAGE, DATA, RW).unwrap();
            unit.publish(&domain, fresh).unwrap();
            for page in 0..PAGES {
                let at = WINDOW + page * PAGE;
                let stale = domain.unmap(at..at + PAGE).unwrap();
                let flushed = deferred.defer(&mut unit, &domain, stale).unwrap();
                if flushed == DeferredFlush::Yes {
                    // The last eight are nobody's now.
                    (page - 7..=page).for_each(|page| mark(&machine, page));
                }
            }
            assert_eq!(deferred.owed(), 0);
            for page in 0..PAGES {
                assert!(!is_touched(&machine, page), "round {round}, page {page}");
            }
        }
    });
    assert!(landed > 0, "the devices did nothing");
}
