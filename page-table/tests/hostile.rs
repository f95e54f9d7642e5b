// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables that a guest made to hurt: every walk ends in a translation or a fault, by every way to walk.

mod formats;

use formats::{Eights, Fours, RWX, Rule};
use hvkit_page_table::fake::{FakeGuest, Unreadable};
use hvkit_page_table::{
    Entry, Fault, Format, LeafCache, Outcome, Root, Shape, Upper, Width, translate,
    translate_batch, visit_batch, walk,
};

type Seen<F> = Outcome<F, FakeGuest>;

/// Walks by walk, translate, batch and cache, and checks that they agree.
fn every_way<F>(format: &F, memory: &FakeGuest, root: u64, address: u64) -> Seen<F>
where
    F: Format,
    F::Rule: PartialEq,
{
    let root = Root::Table(root);
    let whole = walk(format, memory, root, address);
    assert!(whole.steps().len() <= usize::from(format.shape().levels()));
    let outcome = translate(format, memory, root, address);
    assert_eq!(whole.outcome, outcome);
    let batch = translate_batch(format, memory, root, &[address, 0, address]);
    assert_eq!((batch[0], batch[2]), (outcome, outcome));
    let cache = LeafCache::<_, 4>::new();
    assert_eq!(cache.translate(format, memory, root, address), outcome);
    assert_eq!(
        cache.translate(format, memory, root, address),
        outcome,
        "from the cache"
    );
    outcome
}

#[test]
fn a_table_that_is_its_own_child_ends() {
    let memory = FakeGuest::new(0x10000);
    for i in 0..512 {
        memory.set(0x1000 + i * 8, Width::Eight, 0x1003);
    }
    for levels in 2..=5 {
        let format = Eights::with(Shape::nines(levels, 1, Upper::Zero).unwrap());
        let there = every_way(&format, &memory, 0x1000, 0x7654_3210 & ((1 << 21) - 1)).unwrap();
        assert_eq!(
            (there.target, there.level, there.attributes),
            (0x1210, 1, RWX)
        );
    }
}

#[test]
fn a_chain_out_of_memory_is_unreadable() {
    let memory = FakeGuest::new(0x10000);
    let format = Eights::four_levels();
    for (root, at) in [
        (0x10000, 0x10000),
        (u64::MAX << 12, u64::MAX << 12),
        (0xfffc, 0xfffc),
    ] {
        let fault = every_way(&format, &memory, root, 0).unwrap_err();
        assert_eq!(
            fault,
            Fault::Unreadable {
                level: 4,
                at,
                error: Unreadable { at }
            }
        );
    }
    memory.set(0x1000, Width::Eight, (1 << 45) | 3);
    let fault = every_way(&format, &memory, 0x1000, 0).unwrap_err();
    assert!(matches!(
        fault,
        Fault::Unreadable {
            level: 3,
            at: 0x2000_0000_0000,
            ..
        }
    ));
}

#[test]
fn any_read_may_fail() {
    let memory = FakeGuest::new(0x10000);
    for (at, next) in [
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        (0x3000, 0x4003),
        (0x4000, 0x5003),
    ] {
        memory.set(at, Width::Eight, next);
    }
    let format = Eights::four_levels();
    let go = || translate(&format, &memory, Root::Table(0x1000), 0);
    for n in 0..4 {
        memory.fail_read(n);
        let at = 0x1000 * (n + 1);
        let level = 4 - n as u8;
        assert_eq!(
            go(),
            Err(Fault::Unreadable {
                level,
                at,
                error: Unreadable { at }
            })
        );
    }
    assert_eq!(go().unwrap().target, 0x5000);
    // In a batch it is the one walk's own matter, and that one is walked again.
    memory.fail_read(5);
    let all = translate_batch(&format, &memory, Root::Table(0x1000), &[0, 1, 2, 3]);
    let targets: Vec<_> = all.iter().map(|there| there.unwrap().target).collect();
    assert_eq!(targets, [0x5000, 0x5001, 0x5002, 0x5003]);
}

#[test]
fn a_fault_in_a_batch_is_of_its_own_address_alone() {
    let memory = FakeGuest::new(0x10000);
    for (at, next) in [
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        (0x3000, 0x4003),
        (0x4000, 0x5003),
        // Its leaf table is beyond memory.
        (0x3008, 0x10003),
    ] {
        memory.set(at, Width::Eight, next);
    }
    let format = Eights::four_levels();
    let addresses = [0x1000, 1 << 21, 0x7, 1 << 22, 1 << 60];
    let mut seen = vec![];
    visit_batch(
        &format,
        &memory,
        Root::Table(0x1000),
        &addresses,
        |address, outcome| seen.push((address, outcome)),
    );
    let outcomes: Vec<_> = seen.iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(
        seen.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        addresses
    );
    let faults = [
        Fault::NotPresent { level: 1, entry: 0 },
        Fault::Unreadable {
            level: 1,
            at: 0x10000,
            error: Unreadable { at: 0x10000 },
        },
        Fault::NotPresent { level: 2, entry: 0 },
        Fault::Address { address: 1 << 60 },
    ];
    assert_eq!(
        [outcomes[0], outcomes[1], outcomes[3], outcomes[4]],
        faults.map(Err)
    );
    assert_eq!(outcomes[2].unwrap().target, 0x5007);
}

#[test]
fn what_a_large_page_holds_is_no_entry_to_a_batch() {
    let memory = FakeGuest::new(0x10000);
    for (at, word) in [
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        // 2 MiB at address 0, over the tables themselves.
        (0x3000, 0x83),
        (0x6000, 0xdead_b000),
    ] {
        memory.set(at, Width::Eight, word);
    }
    let format = Eights::four_levels();
    for address in [0x1000, 0x3000, 0x6000] {
        let there = every_way(&format, &memory, 0x1000, address).unwrap();
        assert_eq!((there.target, there.level), (address, 2));
    }
}

#[test]
fn every_entry_of_a_small_table_at_every_level_is_decoded() {
    // All values of the low 13 bits and of the high 19, at each level: never a panic, never a table at
    // level 1, never a leaf where the shape has none.
    let format = Eights::four_levels();
    for level in 1..=4 {
        for low in 0..1u64 << 13 {
            for high in [0u64, 1, 1 << 18, 0x3_ffff] {
                let entry = low | high << 45;
                match format.decode(entry, level) {
                    Entry::Empty => assert_eq!(entry & 1, 0),
                    Entry::Table { .. } => assert!(level > 1),
                    Entry::Leaf { target, .. } => {
                        assert!(format.shape().leaf_at(level));
                        assert_eq!(target & (format.shape().size(level) - 1), 0);
                    }
                    Entry::Malformed(_) => assert_eq!(entry & 1, 1),
                }
            }
        }
    }
}

#[test]
fn random_memory_never_surprises() {
    // A few pages of random words, half of them plausible: all walks agree and end.
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut mapped, mut faults) = (0, 0);
    for _ in 0..200 {
        let memory = FakeGuest::new(0x8000);
        for at in (0..0x8000).step_by(8) {
            let word = next();
            let plausible = (word & 7) << 12 | (word >> 60 & 0x87) | 3;
            memory.set(
                at,
                Width::Eight,
                if word & 8 == 0 { plausible } else { word },
            );
        }
        let shapes = [
            Shape::nines(4, 0b111, Upper::SignExtended),
            Shape::nines(5, 0b111, Upper::SignExtended),
            Shape::nines(3, 0b11, Upper::Zero),
            Shape::new(12, &[9, 9, 2], 0b11, Width::Eight, Upper::Zero),
        ];
        for shape in shapes {
            let format = Eights::with(shape.unwrap());
            for _ in 0..16 {
                let address = format.shape.extend(next());
                match every_way(&format, &memory, (next() & 7) << 12, address) {
                    Ok(_) => mapped += 1,
                    Err(_) => faults += 1,
                }
            }
        }
        let format = Fours::new();
        for _ in 0..16 {
            let _ = every_way(&format, &memory, 0x1000, next() & 0xffff_ffff);
        }
    }
    assert!(
        mapped > 1000 && faults > 1000,
        "{mapped} mapped, {faults} faults: both are tried"
    );
}

#[test]
fn a_cached_table_is_used_until_it_is_flushed() {
    let memory = FakeGuest::new(0x10000);
    for (at, next) in [
        (0x1000, 0x2003),
        (0x2000, 0x3001),
        (0x3000, 0x4003),
        (0x4000, 0x7003),
    ] {
        memory.set(at, Width::Eight, next);
    }
    memory.set(0x5000, Width::Eight, 0x9003);
    let format = Eights::four_levels();
    let cache = LeafCache::<_, 8>::new();
    let root = Root::Table(0x1000);
    let go = |cache: &LeafCache<_, 8>| {
        let before = memory.reads();
        let there = cache.translate(&format, &memory, root, 0x123);
        (there, memory.reads() - before)
    };
    let (there, reads) = go(&cache);
    assert_eq!(
        (
            there.unwrap().target,
            there.unwrap().attributes.write,
            reads
        ),
        (0x7123, false, 4)
    );
    // An address that differs only above what is translated is none, cached or not.
    let address = 0x123 | 1 << 48;
    assert_eq!(
        cache.translate(&format, &memory, root, address),
        Err(Fault::Address { address })
    );
    // The rights of upper entries are remembered, the leaf is read.
    memory.set(0x4000, Width::Eight, 0x8003);
    let (there, reads) = go(&cache);
    assert_eq!(
        (
            there.unwrap().target,
            there.unwrap().attributes.write,
            reads
        ),
        (0x8123, false, 1)
    );
    memory.set(0x3000, Width::Eight, 0x5003);
    assert_eq!(
        go(&cache).0.unwrap().target,
        0x8123,
        "stale, as in a processor"
    );
    cache.flush_span(&format.shape, 0x20_0000..0x40_0000);
    assert_eq!(
        go(&cache).0.unwrap().target,
        0x8123,
        "another stretch was flushed"
    );
    cache.flush_span(&format.shape, 0x1000..0x2000);
    assert_eq!(go(&cache).0.unwrap().target, 0x9123);
    memory.set(0x3000, Width::Eight, 0x4003);
    cache.flush_span(&format.shape, 1 << 60..1 << 61);
    assert_eq!(
        go(&cache).0.unwrap().target,
        0x8123,
        "what cannot be placed flushes all"
    );
    memory.set(0x3000, Width::Eight, 0x83);
    cache.flush();
    assert_eq!(go(&cache).0.unwrap().level, 2);
    memory.set(0x3000, Width::Eight, 0x1083);
    let entry = 0x1083;
    let (there, reads) = go(&cache);
    let misaligned = Fault::Malformed {
        level: 2,
        entry,
        rule: Rule::Misaligned,
    };
    assert_eq!(
        (there, reads),
        (Err(misaligned), 3),
        "a large page is not cached"
    );
}
