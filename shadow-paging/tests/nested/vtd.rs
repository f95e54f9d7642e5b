// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest writes its VT-d tables unseen and invalidates, devices do DMA at any time, and the unit keeps what it may. Each
//! DMA goes where the specification lets it go; what is invalidated is as the tables are.

use std::collections::BTreeSet;

use hvkit_page_table::{Span, Width};
use hvkit_shadow_paging::fake::FakeHost;
use hvkit_shadow_paging::nested::Grants;
use hvkit_vtd_iommu::tables::SecondStage;
use lab_cases::Random;

use crate::devices::{Devices, unit};
use crate::history::{History, said};

/// The guest's tables: two of each level, two indices each, linked to those of any domain.
fn frame(level: u64, table: u64) -> u64 {
    0x1_0000 + (level * 2 + table) * 0x1000
}

fn entry(level: u64, r: &mut Random) -> u64 {
    let rights = r.pick(&[3, 3, 3, 3, 1, 2, 0]);
    let large = level == 2 && r.chance(1, 4) || level == 3 && r.chance(1, 8);
    match level {
        1 if r.chance(1, 16) => rights | FakeHost::MMIO,
        1 => rights | (0x40_0000 + (r.below(12) << 12)),
        2 if large => 0x80 | rights | (0x40_0000 + (r.below(3) << 21)),
        3 if large => 0x80 | rights,
        _ if r.chance(1, 12) => 1 << 50 | rights,
        _ => rights | frame(level - 1, r.below(2)),
    }
}

const INDICES: [u64; 2] = [1, 2];

/// Every page that the tables can name.
fn pages(levels: u8) -> Vec<u64> {
    (1..=levels).rev().fold(vec![0], |above, level| {
        let shift = 9 * u32::from(level) + 3;
        let below = |page: u64| INDICES.map(|index| page | index << shift);
        above.into_iter().flat_map(below).collect()
    })
}

struct Played {
    mapped: u64,
    refused: u64,
    stale: u64,
}

fn play(seed: u64, levels: u8, budget: u32) -> Played {
    let mut r = Random::of_case(seed, u64::from(levels));
    let host = FakeHost::new(0x1000_0000);
    let guest = unit(levels);
    let mut history = History::new(guest);
    let mut slots = vec![];
    let write = |history: &mut History<SecondStage>, at: u64, value| {
        history.write(at, value);
        host.store(host.host(at).unwrap(), Width::Eight, value);
    };
    for level in 1..=u64::from(levels) {
        for table in 0..2 {
            for index in INDICES {
                let at = frame(level, table) + index * 8;
                write(&mut history, at, entry(level, &mut r));
                slots.push((level, at));
            }
        }
    }
    let mut devices = Devices::new(&host, budget);
    let pages = pages(levels);
    let root = |domain: usize| frame(u64::from(levels), domain as u64);
    let domains = [0, 1].map(|domain| devices.open(guest, root(domain)));
    let all = Span::new(0, 1 << guest.address_bits());
    for (number, domain) in domains.iter().enumerate() {
        devices.follow(domain, all, |_| ());
        pages
            .iter()
            .for_each(|&page| history.invalidated(number, page));
    }
    let mut played = Played {
        mapped: 0,
        refused: 0,
        stale: 0,
    };
    for step in 0..120 {
        let number = r.below(2) as usize;
        let domain = &domains[number];
        match r.below(10) {
            0..=3 => {
                let (level, at) = r.pick(&slots);
                write(&mut history, at, entry(level, &mut r));
            }
            4 | 5 => {
                // An aligned power of two of pages around one, as the descriptor has it.
                let mask = r.pick(&[0, 0, 1, 9, 18, 27, 39]);
                let size = 1u64 << (12 + mask);
                let first = r.pick(&pages) & !(size - 1);
                let span = Span::new(first, size);
                let probes: Vec<u64> = (0..4).map(|_| r.pick(&pages)).collect();
                devices.follow(domain, span, |devices| {
                    for &page in &probes {
                        let came = devices.dma(domain, page);
                        permitted(&history, &host, (number, root(number), page), came);
                    }
                });
                for &page in pages.iter().filter(|&&page| span.contains(page)) {
                    history.invalidated(number, page);
                }
            }
            6 if r.chance(1, 3) => {
                let page = 0x40_0000 + (r.below(12) << 12);
                if let Some(gone) = host.migrate(page) {
                    let owed = devices.mmu.host_unmap(gone);
                    devices.settle(owed);
                    devices.iotlb.assert_forgot(gone.host, |_| true);
                    for domain in &domains {
                        devices.follow(domain, all, |_| ());
                    }
                    // The new page is where it was; all is as if everything had been invalidated.
                    for &page in &pages {
                        (0..2).for_each(|domain| history.invalidated(domain, page));
                    }
                }
            }
            _ => {
                let page = r.pick(&pages);
                let came = devices.dma(domain, page + 0x128);
                let came = came.map(|(target, rights)| (target - 0x128, rights));
                let choices = permitted(&history, &host, (number, root(number), page), came);
                played.stale += u64::from(choices > 1);
                match came {
                    Some(_) => played.mapped += 1,
                    None => played.refused += 1,
                }
            }
        }
        if step % 4 == 0 {
            devices.audit();
        }
    }
    for domain in domains {
        devices.mmu.close(domain);
    }
    played
}

/// Panics unless a unit may send a DMA where it `came` to; how many places there were.
fn permitted(
    history: &History<SecondStage>,
    host: &FakeHost,
    (domain, root, page): (usize, u64, u64),
    came: Option<(u64, Grants)>,
) -> usize {
    let there = history
        .reaches(domain, root, page)
        .into_iter()
        .map(|reach| {
            // What is no memory of the guest's is not reached.
            let (target, bits) = reach?;
            Some((host.host(target)?, bits)).filter(|_| bits != 0)
        });
    let there: BTreeSet<_> = there.collect();
    let came = said(came);
    assert!(
        there.contains(&came),
        "domain {domain}: DMA to {page:#x} came to {came:x?}, permitted {there:x?}"
    );
    there.len()
}

#[test]
fn each_dma_goes_where_the_specification_lets_it_go() {
    // A guest's 3-level tables stand on four levels too.
    for (levels, budget) in [(3, 512), (4, 512), (4, 2048)] {
        let mut sum = Played {
            mapped: 0,
            refused: 0,
            stale: 0,
        };
        for seed in 0..12 {
            let one = play(seed, levels, budget);
            sum.mapped += one.mapped;
            sum.refused += one.refused;
            sum.stale += one.stale;
        }
        let Played {
            mapped,
            refused,
            stale,
        } = sum;
        println!("{levels} levels: {mapped} mapped, {refused} refused, {stale} with a choice");
        assert!(mapped > 50 && refused > 50 && stale > 20);
    }
}
