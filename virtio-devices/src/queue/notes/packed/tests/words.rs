// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Notes in the specification's words.

use super::*;

/// An area of four descriptors, as the specification's structures have it: before the entries, and of each its first 16 bytes as
/// (in flight, next, last, num, counter) and (id, flags, len, addr).
type Entry = ((u8, u16, u16, u16, u64), (u16, u16, u32, u64));

fn raw(head: [u16; 6], wraps: [u8; 2], entries: [Entry; 4]) -> Vec<u8> {
    let mut raw = vec![0; 8];
    raw.extend(head.map(u16::to_ne_bytes).concat());
    raw.extend(wraps);
    raw.extend([0; 10]);
    for ((flies, next, last, count, counter), (id, flags, length, address)) in entries {
        raw.extend([flies, 0]);
        raw.extend([next, last, count].map(u16::to_ne_bytes).concat());
        raw.extend(counter.to_ne_bytes());
        raw.extend([id, flags].map(u16::to_ne_bytes).concat());
        raw.extend(length.to_ne_bytes());
        raw.extend(address.to_ne_bytes());
    }
    raw
}

/// Entry 2 and, behind it, entry 0 hold a chain that was begun second; entry 3 one that was begun first; entry 1 is free.
const ENTRIES: [Entry; 4] = [
    ((0, 1, 0, 0, 0), (9, 0x82, 7, 0x2000)),
    ((0, 4, 0, 0, 0), (0, 0, 0, 0)),
    ((1, 0, 0, 2, 6), (9, 0x81, 16, 0x1000)),
    ((1, 1, 3, 1, 5), (4, 0x84, 32, 0x3000)),
];
/// Version, descriptors, free, old free, used and old used place.
const WORDS: [u16; 6] = [1, 4, 1, 1, 2, 2];

fn descriptors(left: &Left) -> Vec<Vec<(u64, u32, u16, u16)>> {
    let copied = left.begun.iter().map(|begun| match begun {
        Begun::Packed(copied) => copied.descriptors.iter(),
        Begun::Split(_) => panic!("of a packed queue"),
    });
    copied
        .map(|descriptors| {
            descriptors
                .map(|d| (d.address, d.length, d.next, d.flags))
                .collect()
        })
        .collect()
}

/// No ring is looked at.
fn unseen(_: u16) -> Option<u16> {
    panic!("the ring tells nothing that the notes do not")
}

#[test]
fn raw_words_of_what_was_begun() {
    let area = raw(WORDS, [1, 1], ENTRIES);
    assert_eq!(area.len(), 32 + 4 * 32);
    let found = left(&area, 4, 0, unseen).unwrap();
    assert_eq!((found.used, found.free.as_slice()), (0x8002, &[1][..]));
    let first = vec![(0x3000, 32, 4, 0x84)];
    let second = vec![(0x1000, 16, 9, 0x81), (0x2000, 7, 9, 0x82)];
    assert_eq!(descriptors(&found), [first, second]);
    // Never written: it goes on where it was said to.
    let fresh = vec![0; 160];
    let found = left(&fresh, 4, 0x8003, |slot| (slot == 3).then_some(0x80)).unwrap();
    assert_eq!(found, Left::nothing(0x8003));
    // But not if something was used there: nobody notes it.
    assert_eq!(left(&fresh, 4, 0x8003, |_| Some(0x8080)), None);
    assert_eq!(left(&fresh, 4, 0x8003, |_| None), None);
}

#[test]
fn a_batch_is_used_if_the_driver_was_shown_it() {
    // Entry 3 is linked before the list, and the used place is one on; the old ones are as they were.
    let area = raw([1, 4, 3, 1, 0, 3], [0, 1], ENTRIES);
    let second = vec![(0x1000, 16, 9, 0x81), (0x2000, 7, 9, 0x82)];
    // Whatever the driver has made of the descriptor since: it was used.
    for flags in [0x8080, 0x8000, 0] {
        let found = left(&area, 4, 0, |slot| (slot == 3).then_some(flags)).unwrap();
        assert_eq!(
            (found.used, found.free.as_slice()),
            (0, &[3, 1][..]),
            "{flags:#x}"
        );
        assert_eq!(descriptors(&found), std::slice::from_ref(&second));
    }
    // As the driver made it available: it was not.
    let found = left(&area, 4, 0, |_| Some(0x81)).unwrap();
    assert_eq!((found.used, found.free.as_slice()), (0x8003, &[1][..]));
    assert_eq!(found.begun.len(), 2);
    // A ring that cannot be read says nothing.
    assert_eq!(left(&area, 4, 0, |_| None), None);
}

#[test]
fn a_whole_round_in_one_batch_is_told_by_the_wrap_counter() {
    let entries = ENTRIES.map(|(_, words)| ((0, 4, 0, 0, 0), words));
    let area = raw([1, 4, 0, 0, 2, 2], [0, 1], entries);
    let found = left(&area, 4, 0, |_| Some(0x8080)).unwrap();
    assert_eq!(found.used, 2);
    let found = left(&area, 4, 0, |_| Some(0x80)).unwrap();
    assert_eq!(found.used, 0x8002);
}

#[test]
fn notes_that_make_no_sense() {
    let made = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut area = raw(WORDS, [1, 1], ENTRIES);
        change(&mut area);
        left(&area, 4, 0, |_| Some(0)).is_some()
    };
    let word = |at: usize, word: u16| {
        made(&|area: &mut Vec<u8>| area[at..at + 2].copy_from_slice(&word.to_ne_bytes()))
    };
    assert!(made(&|_| ()));
    // Another version, another size, places that the queue does not have, wrap counters of neither value.
    assert!(!word(VERSION_AT, 2));
    assert!(!word(DESCRIPTORS_AT, 5));
    assert!(!word(USED_AT, 4));
    assert!(!word(OLD_USED_AT, 4));
    assert!(!made(&|area| area[WRAP_AT] = 2));
    assert!(!made(&|area| area[OLD_WRAP_AT] = 2));
    let entry = |entry: usize, at: usize, value| word(HEAD + ENTRY * entry + at, value);
    // A free list that comes back to itself, and one that runs into a chain.
    assert!(!entry(1, NEXT_AT, 1));
    assert!(!entry(1, NEXT_AT, 2));
    // A chain of none, of more than there is a next one for, that leads nowhere, to itself, to a free entry, or to another's end.
    assert!(!entry(3, COUNT_AT, 0));
    assert!(!entry(3, COUNT_AT, 2));
    assert!(!entry(2, NEXT_AT, 4));
    assert!(!entry(2, NEXT_AT, 2));
    assert!(!entry(2, NEXT_AT, 1));
    assert!(!entry(2, LAST_AT, 3));
    // One that goes on where its descriptors do not.
    assert!(!entry(2, FLAGS_AT, 0x80));
    assert!(!entry(0, FLAGS_AT, 0x83));
    // Another's entry in its middle.
    assert!(!made(&|area| area[HEAD] = 1));
    assert!(!made(&|area| area.truncate(HEAD + 3 * ENTRY)));
    assert!(!made(&|area| area.truncate(8)));
}

#[test]
fn a_copy_of_what_no_driver_may_do_ends_the_queue() {
    let noted = Noted::new(Features::empty());
    let mut chain = Chain::new();
    // More descriptors than the queue has left, with and without an end; an indirect one with a next.
    for (count, flags) in [(SIZE + 1, 2), (2, 4)] {
        let position = Position {
            available: 0x8000,
            used: 0x8000,
        };
        let features = Features::RING_PACKED | Features::INDIRECT_DESC;
        let restored = Queue::restored(&config(&noted.ring), features, &*noted.memory, position);
        let mut queue = restored.unwrap();
        let descriptors = (0..count).map(|at| Descriptor {
            address: 0x6000,
            length: 16,
            flags: flags | u16::from(at + 1 < count),
            next: 0,
        });
        let begun = Begun::Packed(Copied {
            entries: (0..count).collect(),
            descriptors: descriptors.collect(),
            counter: 0,
        });
        let taken = queue.map(&*noted.memory).retake(&begun, &mut chain);
        assert!(
            matches!(
                taken.as_ref().map_err(|why| &**why),
                Err(QueueError::Chain { .. })
            ),
            "{taken:?}"
        );
        assert!(queue.is_failed());
    }
    // Of the other layout.
    let mut queue = noted.queue;
    let taken = queue
        .map(&*noted.memory)
        .retake(&Begun::Split(0), &mut chain);
    assert!(
        matches!(
            taken.as_ref().map_err(|why| &**why),
            Err(QueueError::Position { .. })
        ),
        "{taken:?}"
    );
}
