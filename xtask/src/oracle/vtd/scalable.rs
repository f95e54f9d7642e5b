// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of scalable mode from numbers: PASID tables, first stage, second stage, pass-through.
//!
//! ```text
//!   root -> context -> PASID directory -> PASID table [RID_PASID] -> first or second stage
//! ```

use hvkit_vtd_iommu::spec::Pasid;
use hvkit_vtd_iommu::spec::context::AddressWidth;
use hvkit_vtd_iommu::spec::pasid::{PasidDirectoryEntry, PasidEntry};
use hvkit_vtd_iommu::spec::registers::FECTL;
use lab_cases::Random;

use super::generate::{DEVFN, Mapped, address, clear_faults, dma, pages, turn_on};
use super::program::{Program, Step, layout};
use super::queue::Queue;
use super::tables::{Stage, Words, disturb, spoil};

/// The root table address register's TTM: scalable mode.
const SCALABLE: u64 = 1 << 10;
/// Of the first word of a PASID entry.
const AW: u64 = 7 << 2;
/// Address bits beyond the host's. In what leads to paging entries the model reads there, and names the failure after other checks.
const WIDE: u64 = 0xffff << 48;
/// Of the second word of a context entry.
const RID_PASID: u64 = 0xf_ffff;
/// Of the second word of a PASID entry.
const DOMAIN: u64 = 0xffff;
/// The context entry: 32 bytes, the first 128 functions in one table.
const CONTEXT: u64 = layout::CONTEXT + DEVFN * 32;

/// Case `index` of the run with `seed`, of a unit that has `stage` and pass-through.
pub(super) fn case(stage: Stage, seed: u64, index: u64) -> Program {
    let mut random = Random::of_case(seed, index);
    let random = &mut random;
    let (kind, may_be_stale, steps) = match random.below(10) {
        0..=5 => ("tables", false, tables(random, stage)),
        6 | 7 => (
            "invalidated",
            false,
            changes(random, stage, Changes::Invalidated),
        ),
        _ => ("stale", true, changes(random, stage, Changes::AnyOrNone)),
    };
    let stage = match stage {
        Stage::First => "first stage",
        Stage::Second => "second stage",
    };
    Program {
        kind: format!("{stage}, {kind}"),
        may_be_stale,
        steps,
    }
}

/// Tables of a case, and where what is on the way to the pages lies.
struct Tables {
    mapped: Mapped,
    /// The directory entry and the PASID entry.
    directory: u64,
    entry: u64,
    stage: Stage,
}

/// Good tables with a few pages.
fn good(random: &mut Random, words: &mut Words, stage: Stage) -> Tables {
    let levels = match stage {
        Stage::First => 4,
        Stage::Second if random.chance(1, 3) => 3,
        Stage::Second => 4,
    };
    let domain = random.pick(&[0, 1, 2, 7, 0xffff]);
    let [directory, table, root] = [words.frame(), words.frame(), words.frame()];
    // The model has no other RID_PASID (ECAP.RPS).
    let pasid = Pasid::ZERO;
    words.set(layout::ROOT, layout::CONTEXT | 1);
    words.set(CONTEXT, directory | 1);
    words.set(CONTEXT + 8, pasid.get().into());
    let directory = PasidDirectoryEntry::address(directory, pasid);
    words.set(directory, PasidDirectoryEntry::new(table).0);
    let entry = PasidEntry::address(table, pasid);
    let width = if levels == 3 {
        AddressWidth::BITS_39
    } else {
        AddressWidth::BITS_48
    };
    let through = random.chance(1, 12);
    let made = match stage {
        _ if through => PasidEntry::pass_through(domain, width),
        // The model looks at AW here too, which the specification has for second stage and pass-through.
        Stage::First => PasidEntry::first_stage(domain, root).with_aw(width.0.into()),
        Stage::Second => PasidEntry::second_stage(domain, width, root),
    };
    for (at, word) in (entry..).step_by(8).zip(made.0) {
        words.set(at, word);
    }
    let domain = domain.into();
    Tables {
        mapped: Mapped {
            pages: pages(random, words, stage, root, levels),
            domain,
            pasid: pasid.get().into(),
            root,
            levels,
        },
        directory,
        entry,
        stage,
    }
}

/// An entry on the way to the pages, and what it might be instead.
fn spoilt(random: &mut Random, words: &Words, tables: &Tables) -> (u64, u64) {
    let (at, reserved) = match random.below(8) {
        0 => (layout::ROOT, 0xffe),
        1 => (CONTEXT, 0),
        2 => (CONTEXT + 8 * random.below(4), 0),
        3 => (tables.directory, 0xffc),
        4 => (tables.entry + 8 * random.below(8), 0),
        _ => (tables.entry + 8 * random.below(3), 0),
    };
    let entry = words.get(at);
    let word = match random.below(5) {
        0 => entry & !1,
        1 if reserved != 0 => entry ^ 1 << (1 + random.below(11)),
        // PGTT, AW.
        2 if at == tables.entry => entry ^ random.below(0x80) << 2,
        3 => entry | 1 << random.pick(&[32, 47, 48, 63]),
        _ => disturb(random, entry),
    };
    let pointer = at == tables.directory || at == tables.entry || at == tables.entry + 16;
    let word = if pointer { word & !WIDE } else { word };
    let kept = match at {
        _ if at == tables.entry && tables.stage == Stage::First => AW,
        _ if at == CONTEXT + 8 => RID_PASID,
        // Whose translations are kept would not be known.
        _ if at == tables.entry + 8 => DOMAIN,
        _ => 0,
    };
    (at, word & !kept | entry & kept)
}

/// Looks at the entries that the unit may have marked.
fn look(steps: &mut Vec<Step>, mapped: &Mapped) {
    for at in mapped.pages.iter().flat_map(|(_, _, path)| path) {
        steps.push(Step::Load { at: *at });
    }
}

/// DMA through tables that may be spoilt anywhere.
fn tables(random: &mut Random, stage: Stage) -> Vec<Step> {
    let mut words = Words::default();
    let tables = good(random, &mut words, stage);
    let mapped = &tables.mapped;
    if random.chance(1, 2) {
        let at = mapped.entry(random);
        // The interrupt addresses: nothing may be translated to them.
        let leaf = mapped.pages.iter().any(|(_, level, path)| {
            path.last() == Some(&at) && (*level == 1 || words.get(at) & 0x80 != 0)
        });
        let entry = if leaf && random.chance(1, 10) {
            words.get(at) & 0xfff | 0xfee0_0000
        } else {
            spoil(random, words.get(at))
        };
        words.set(at, entry);
    }
    if random.chance(1, 3) {
        let (at, word) = spoilt(random, &words, &tables);
        words.set(at, word);
    }
    if random.chance(1, 8) {
        // FPD.
        let at = random.pick(&[CONTEXT, tables.directory, tables.entry]);
        words.set(at, words.get(at) | 2);
    }
    let mut steps: Vec<Step> = words.stores().collect();
    if random.chance(1, 4) {
        steps.push(Step::Write32 {
            offset: FECTL.offset(),
            value: 0,
        });
    }
    turn_on(&mut steps, layout::ROOT | SCALABLE, 0);
    for _ in 0..1 + random.below(4) {
        let address = address(random, mapped);
        steps.push(dma(random, address));
        steps.push(Step::Faults);
        if random.chance(3, 4) {
            clear_faults(&mut steps);
        }
    }
    look(&mut steps, mapped);
    steps
}

/// What follows a change of the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    /// What the specification wants.
    Invalidated,
    /// Some of it, or nothing.
    AnyOrNone,
}

/// Tables that change under the unit.
fn changes(random: &mut Random, stage: Stage, changes: Changes) -> Vec<Step> {
    let mut words = Words::default();
    let tables = good(random, &mut words, stage);
    let mapped = &tables.mapped;
    if stage == Stage::First && changes == Changes::AnyOrNone {
        // Marked already: a unit that must mark a kept page dirty looks at tables that have changed, and another does not.
        for leaf in mapped.pages.iter().filter_map(|(_, _, path)| path.last()) {
            words.set(*leaf, words.get(*leaf) | 0x60);
        }
    }
    let mut steps: Vec<Step> = words.stores().collect();
    let mut queue = Queue::start_wide(random, &mut steps);
    turn_on(&mut steps, layout::ROOT | SCALABLE, queue.on);
    for _ in 0..1 + random.below(3) {
        let (page, _, path) = &mapped.pages[random.below(mapped.pages.len() as u64) as usize];
        let word = 8 * random.below(8);
        steps.push(dma(random, *page + word));
        clear_faults(&mut steps);
        let paging = random.chance(3, 4);
        let (at, entry) = if paging {
            let at = path[random.below(path.len() as u64) as usize];
            (at, spoil(random, words.get(at)))
        } else {
            let (at, entry) = spoilt(random, &words, &tables);
            // A unit may keep context entries and not what they lead to.
            if changes == Changes::AnyOrNone && at < layout::TABLES {
                continue;
            }
            (at, entry)
        };
        words.set(at, entry);
        steps.push(Step::Store { at, word: entry });
        let leaf = path.last() == Some(&at);
        let all = invalidations(random, stage, mapped, *page, (paging, leaf));
        let some = match changes {
            Changes::Invalidated => all.len() as u64,
            // All or nothing of what belongs together: a unit may drop one by the other.
            Changes::AnyOrNone => random.pick(&[0, all.len() as u64]),
        };
        for words in all.into_iter().take(some as usize) {
            queue.push(&mut steps, words);
        }
        queue.push(&mut steps, [0x25, layout::STATUS]);
        queue.ring(&mut steps);
        let word = 8 * random.below(8);
        steps.push(dma(random, *page + word));
        steps.push(Step::Faults);
        clear_faults(&mut steps);
    }
    if changes == Changes::Invalidated {
        look(&mut steps, mapped);
    }
    steps
}

/// The descriptors that a change wants: of a paging entry, a leaf or not, of `page`; or of what leads to the paging entries.
fn invalidations(
    random: &mut Random,
    stage: Stage,
    mapped: &Mapped,
    page: u64,
    (paging, leaf): (bool, bool),
) -> Vec<[u64; 2]> {
    let global = [[0x11, 0], [0x37, 0], [0x12, 0]];
    if !paging {
        // The context, all PASIDs, all translations.
        return global.to_vec();
    }
    let (domain, pasid) = (mapped.domain, mapped.pasid);
    let translations = match (stage, random.below(4)) {
        (_, 0) => [0x12, 0],
        (Stage::Second, 1) if leaf => [0x32 | domain << 16, page],
        (Stage::Second, _) => [0x22 | domain << 16, 0],
        (Stage::First, 1) if leaf => [0x36 | domain << 16 | pasid << 32, page],
        (Stage::First, _) => [0x26 | domain << 16 | pasid << 32, 0],
    };
    vec![translations]
}
