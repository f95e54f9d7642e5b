// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a hostile driver tries, against every queue of every device on both transports, with a verdict for each: two
//! hundred cases and more for each device on each.
//!
//! *Pass*: the device shrugs, and serves the next honest request; or it is at rest, where the attack took the rings
//! away. *Refused*: it says DEVICE_NEEDS_RESET, tells the driver, and after a reset is as good as new. *Wedged* (a worker that
//! does not come to rest, a reset that does not complete, a live device that does not serve) and *failed* (a panic,
//! nobody was told, an image was touched) are what no case may come to. `hostile_cases` goes deeper into the disk's own requests.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};

use crate::hostile_kinds::{DATA, KINDS};
use crate::hostile_subject::Verdict::{self, Pass, Refused};
use crate::hostile_subject::{Kind, Left, Subject};
use crate::support::END;
use crate::support::guest::{Bus, TRANSPORTS, on_bus, ring_at};

const STATUS: u64 = 0x9000;
const TABLE: u64 = 0xc000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const IN_ORDER: u64 = 1 << 35;
/// What a driver accepts of what queues can do, and of everything else all.
const FEATURES: [u64; 3] = [
    u64::MAX,
    !(IN_ORDER | EVENT_IDX),
    !(IN_ORDER | EVENT_IDX | INDIRECT_DESC),
];

/// An attack on a queue of the device's, by its number.
type Act = Box<dyn Fn(&mut Subject, usize)>;

/// A name, what must come of it, and what is done.
struct Case {
    name: String,
    /// `None`: it may pass or be refused.
    expected: fn(&Kind) -> Option<Verdict>,
    /// With each of these.
    features: &'static [u64],
    act: Act,
}

/// Cases on each device and transport at least.
const LEAST: usize = 200;

/// Runs every case on every queue of one kind of device on both transports.
fn attack(name: &str) {
    let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
    let mut cases = Vec::new();
    rings_in_places_where_no_ring_can_be(&mut cases);
    chains_that_no_driver_may_make(&mut cases);
    indices_and_heads_that_jump(&mut cases);
    registers_at_the_wrong_time(&mut cases);
    packed_rings_of_noise(&mut cases);
    for transport in TRANSPORTS {
        let (mut wrong, mut count) = (Vec::new(), 0);
        for queue in kind.attacked {
            for case in &cases {
                for features in case.features {
                    count += 1;
                    let verdict = catch_unwind(AssertUnwindSafe(|| {
                        let mut subject = Subject::new(kind, transport, *features);
                        (case.act)(&mut subject, usize::from(*queue));
                        subject.verdict()
                    }));
                    let verdict = verdict.unwrap_or(Verdict::Failed);
                    let expected = (case.expected)(kind);
                    let right = match expected {
                        Some(expected) => verdict == expected,
                        None => matches!(verdict, Pass | Refused),
                    };
                    if !right {
                        let case = &case.name;
                        wrong.push(format!(
                            "queue {queue}, features {features:#x}: {case}: {verdict:?}, expected {expected:?}"
                        ));
                    }
                }
            }
        }
        let list = wrong.join("\n");
        assert!(
            wrong.is_empty(),
            "{name} on {transport:?}: {} of {count}:\n{list}",
            wrong.len()
        );
        assert!(
            count >= LEAST,
            "{name} on {transport:?}: only {count} cases"
        );
    }
}

/// Tests of all kinds, by name, and that they are all.
macro_rules! attacks {
    ($($test:ident: $name:expr,)*) => {
        $(#[test]
        fn $test() {
            attack($name);
        })*

        #[test]
        fn every_kind_is_attacked() {
            let attacked = [$($name),*];
            assert_eq!(KINDS.map(|kind| kind.name), attacked);
        }
    };
}

attacks! {
    a_disk: "disk",
    a_disk_by_a_ring: "disk by a ring",
    a_disk_without_cache: "disk without cache",
    a_disk_in_qcow2: "disk in qcow2",
    entropy: "entropy",
    a_card: "net",
    a_card_of_two_pairs: "net of two pairs",
    a_card_by_a_stream: "net by a stream",
    a_console: "console",
    a_console_of_three_ports: "console of three ports",
    a_balloon: "balloon",
    persistent_memory: "pmem",
    sockets: "vsock",
    sockets_after_a_move: "vsock after a move",
    an_iommu: "iommu",
}

fn case(
    name: impl Into<String>,
    expected: fn(&Kind) -> Option<Verdict>,
    act: impl Fn(&mut Subject, usize) + 'static,
) -> Case {
    Case {
        name: name.into(),
        expected,
        features: &FEATURES[..1],
        act: Box::new(act),
    }
}

const PASSES: fn(&Kind) -> Option<Verdict> = |_| Some(Pass);
const REFUSED: fn(&Kind) -> Option<Verdict> = |_| Some(Refused);
const EITHER: fn(&Kind) -> Option<Verdict> = |_| None;

/// Starts again with all queues, one of which is where it is told.
fn misplaced(subject: &mut Subject, at: usize, areas: [u64; 3]) {
    let queues = subject.rings.len();
    subject.guest.negotiate(!(1 << 34));
    for queue in 0..queues {
        let ring = &subject.rings[queue];
        let honest = [ring.table, ring.available, ring.used];
        let areas = if queue == at { areas } else { honest };
        subject.guest.place(queue as u16, areas);
    }
    subject.go_live();
    subject.left = Left::Live;
    subject.guest.kick(at as u16);
}

fn rings_in_places_where_no_ring_can_be(cases: &mut Vec<Case>) {
    let good = [0x4_0000, 0x4_2000, 0x4_4000];
    for address in [
        END,
        END - 16,
        1 << 40,
        1 << 63,
        0u64.wrapping_sub(16),
        0x4_0001,
    ] {
        for area in 0..3 {
            let mut areas = good;
            areas[area] = address;
            let name = format!("area {area} at {address:#x}");
            cases.push(case(name, REFUSED, move |s, at| misplaced(s, at, areas)));
        }
    }
    // Areas that overlap are the driver's own harm.
    for areas in [[0x4_0000; 3], [0x4_0000, 0x4_4000, 0x4_4000]] {
        let name = format!("areas at {areas:x?}");
        // What is served there is anybody's guess; that the next driver finds a device is not.
        cases.push(case(name, EITHER, move |s, at| {
            misplaced(s, at, areas);
            let ring = &mut s.rings[at];
            [ring.table, ring.available, ring.used] = areas;
            for i in 0..8 {
                ring.submit(&[Readable(i * 16, 16), Writable(STATUS, 1)]);
                s.guest.kick(at as u16);
            }
            s.settle();
        }));
    }
}

fn chains_that_no_driver_may_make(cases: &mut Vec<Case>) {
    type Words = (u64, u32, u16, u16);
    let mut chain = |name: &str, expected, descriptors: Vec<(u16, Words)>| {
        let act = move |s: &mut Subject, at: usize| {
            let ring = &mut s.rings[at];
            for (index, words) in &descriptors {
                let table = if *index < 0x100 { ring.table } else { TABLE };
                ring.descriptor(table, index & 0xff, *words);
            }
            ring.offer(0);
            s.guest.kick(at as u16);
        };
        cases.push(Case {
            features: &FEATURES,
            ..case(name, expected, act)
        });
    };
    let refused = REFUSED;
    chain("to itself", refused, vec![(0, (DATA, 16, NEXT, 0))]);
    chain(
        "to itself, writable",
        refused,
        vec![(0, (DATA, 16, NEXT | WRITE, 0))],
    );
    let around = vec![(0, (DATA, 16, NEXT, 1)), (1, (DATA, 16, NEXT, 0))];
    chain("around two", refused, around);
    for next in [64, 65, 0x7fff, 0xffff] {
        let name = format!("next {next:#x}");
        chain(&name, refused, vec![(0, (DATA, 16, NEXT, next))]);
    }
    let turned = vec![(0, (DATA, 16, NEXT | WRITE, 1)), (1, (DATA, 16, 0, 0))];
    chain("readable after writable", refused, turned);
    for address in [u64::MAX, u64::MAX - 14] {
        chain(
            "a buffer that wraps",
            refused,
            vec![(0, (address, 16, WRITE, 0))],
        );
    }
    let huge = vec![(0, (0, u32::MAX, NEXT, 1)), (1, (0, 2, 0, 0))];
    chain("more than 2^32 bytes", refused, huge);
    for length in [0, 8, 17, u32::MAX] {
        let name = format!("an indirect table of {length}");
        chain(&name, refused, vec![(0, (TABLE, length, INDIRECT, 0))]);
    }
    for address in [END, END - 8, 1 << 50, 0u64.wrapping_sub(16)] {
        let name = format!("an indirect table at {address:#x}");
        chain(&name, refused, vec![(0, (address, 16, INDIRECT, 0))]);
    }
    chain(
        "indirect with next",
        refused,
        vec![(0, (TABLE, 32, INDIRECT | NEXT, 1))],
    );
    let nested = vec![
        (0, (TABLE, 32, INDIRECT, 0)),
        (0x100, (TABLE, 32, INDIRECT, 0)),
    ];
    chain("indirect in indirect", refused, nested);
    let looping = vec![(0, (TABLE, 32, INDIRECT, 0)), (0x100, (DATA, 1, NEXT, 0))];
    chain("indirect to itself", refused, looping);
    let leaves = vec![(0, (TABLE, 32, INDIRECT, 0)), (0x100, (DATA, 1, NEXT, 2))];
    chain("indirect that leaves its table", refused, leaves);
    let around = (0..3).map(|i| (i, (DATA, 16, NEXT | WRITE, (i + 1) % 3)));
    chain("around three, writable", refused, around.collect());
    let around = (0..64).map(|i| (i, (DATA, 0, NEXT, (i + 1) % 64)));
    chain(
        "around all of them, without a byte",
        refused,
        around.collect(),
    );
    let over = vec![(0, (END - 16, 32, INDIRECT, 0)), (0x100, (DATA, 1, 0, 0))];
    chain("an indirect table over the end of memory", EITHER, over);
    // What a device may take or refuse, as long as it lives.
    chain("nothing to read", EITHER, vec![(0, (DATA, 64, WRITE, 0))]);
    chain("nothing to write", EITHER, vec![(0, (DATA, 64, 0, 0))]);
    chain("one byte to read", EITHER, vec![(0, (DATA, 1, 0, 0))]);
    chain("one byte to write", EITHER, vec![(0, (DATA, 1, WRITE, 0))]);
    chain("nothing at all", EITHER, vec![(0, (DATA, 0, 0, 0))]);
    for flags in [0, WRITE] {
        chain(
            "a buffer after memory",
            EITHER,
            vec![(0, (END, 64, flags, 0))],
        );
        chain(
            "a buffer over its end",
            EITHER,
            vec![(0, (END - 32, 64, flags, 0))],
        );
        chain(
            "2^32 - 1 bytes",
            EITHER,
            vec![(0, (1 << 40, u32::MAX, flags, 0))],
        );
        chain(
            "the ring as buffer",
            EITHER,
            vec![(0, (ring_at(0) + 0x3000, 256, flags, 0))],
        );
        chain(
            "unknown flags",
            EITHER,
            vec![(0, (DATA, 64, flags | 0xfff8, 0))],
        );
    }
}

fn indices_and_heads_that_jump(cases: &mut Vec<Case>) {
    let mut push = |case: Case| {
        cases.push(Case {
            features: &FEATURES,
            ..case
        });
    };
    for head in [64u16, 65, 0x7fff, 0xffff] {
        push(case(format!("head {head:#x}"), REFUSED, move |s, at| {
            s.rings[at].offer(head);
            s.guest.kick(at as u16);
        }));
    }
    for index in [65u16, 0x7fff, 0x8000, 0xffff] {
        push(case(format!("index {index:#x}"), REFUSED, move |s, at| {
            let ring = &s.rings[at];
            ring.put16(ring.available + 2, index);
            s.guest.kick(at as u16);
        }));
    }
    // A device that has not taken the chain yet never saw the index.
    push(case("an index that goes back", EITHER, |s, at| {
        let ring = &mut s.rings[at];
        ring.submit(&[Readable(DATA, 64), Writable(DATA, 64)]);
        s.guest.kick(at as u16);
        s.settle();
        let ring = &s.rings[at];
        ring.put16(ring.available + 2, 0xffff);
        s.guest.kick(at as u16);
    }));
    push(case("one chain 64 times", EITHER, |s, at| {
        let ring = &mut s.rings[at];
        ring.descriptor(ring.table, 0, (DATA, 64, 0, 0));
        for _ in 0..64 {
            ring.offer(0);
        }
        s.guest.kick(at as u16);
    }));
}

fn registers_at_the_wrong_time(cases: &mut Vec<Case>) {
    for (value, width) in [(0, 4), (0xff, 4), (0xff, 1), (1, 2), (0x55, 8), (0xff, 3)] {
        let name = format!("{value:#x} in every register, {width} bytes");
        cases.push(case(name, EITHER, move |s, _| {
            s.guest.scribble(value, width);
            s.deaf = true;
            // "To stop using the queue the driver MUST write zero (0x0) to this QueueReady" (4.2.2.2): it has.
            if (value, width) == (0, 4) && matches!(s.guest.bus, Bus::Mmio(_)) {
                s.left = Left::Live;
            }
        }));
    }
    for width in [1, 2, 3, 4, 8] {
        cases.push(case(
            format!("reads of {width} bytes"),
            PASSES,
            move |s, _| {
                s.guest.look_around(width);
            },
        ));
    }
    for status in 1..=0xff_u8 {
        if status.is_power_of_two() || status == 0xff || status == 0x8f {
            cases.push(case(format!("status {status:#x}"), PASSES, move |s, _| {
                s.guest.set_status(status);
            }));
        }
    }
    cases.push(case("addresses that change while live", PASSES, |s, at| {
        s.guest.place(at as u16, [END, END, END]);
    }));
    cases.push(case(
        "a notification of every queue there is not",
        PASSES,
        |s, _| {
            on_bus!(s.guest, driver => {
                for queue in 16..64 {
                    driver.kick(queue);
                }
            });
        },
    ));
    for rounds in 0..3 {
        let name = format!("a reset after {rounds} rounds of work");
        cases.push(case(name, PASSES, move |s, at| {
            for _ in 0..8 {
                s.rings[at].submit(&[Readable(DATA, 16), Writable(DATA, 600)]);
            }
            s.guest.kick(at as u16);
            s.guest.workers.step(rounds);
            assert_eq!(s.guest.set_status(0), 0);
            // Memory is the driver's again: nothing of the old work goes there any more.
            let used = s.rings[at].used;
            s.guest.write(DATA, &[0xa5; 600]);
            s.guest.write(used, &[0xa5; 64]);
            s.guest.kick(at as u16);
            s.settle();
            std::thread::yield_now();
            s.settle();
            assert_eq!(s.guest.read(DATA, 600), [0xa5; 600]);
            assert_eq!(s.guest.read(used, 64), [0xa5; 64]);
            s.left = Left::Nothing;
        }));
    }
    cases.push(case("features never offered", PASSES, |s, _| {
        s.left = Left::Nothing;
        s.guest.set_status(0);
        s.guest.set_status(3);
        on_bus!(s.guest, driver => driver.accept(u64::MAX));
        assert_eq!(s.guest.set_status(0xb) & 8, 0);
        s.guest.set_status(0xf);
    }));
    let without: fn(&Kind) -> _ = |kind| Some(kind.without_queues);
    cases.push(case("no queue at all", without, |s, at| {
        s.guest.negotiate(!(1 << 34));
        s.guest.set_status(0xf);
        s.guest.kick(at as u16);
        s.left = Left::Live;
    }));
}

/// The same memory as a packed ring: what a driver leaves there is no chain, or one of noise.
fn packed_rings_of_noise(cases: &mut Vec<Case>) {
    type Words = (u64, u32, u16, u16);
    type Mark = (&'static str, Words, fn(&Kind) -> Option<Verdict>);
    // Address, length, identifier, flags: AVAIL is 0x80 and USED 0x8000.
    let marks: [Mark; 10] = [
        // A chain has no more elements than the queue has (2.8.7.1).
        ("loop of readable", (DATA, 16, 0, NEXT | 0x80), REFUSED),
        (
            "loop of writable",
            (DATA, 16, 0, NEXT | WRITE | 0x80),
            REFUSED,
        ),
        ("all available", (DATA, 16, 1, 0x80), EITHER),
        (
            "all available and writable",
            (DATA, 16, 1, WRITE | 0x80),
            EITHER,
        ),
        ("all used", (DATA, 16, 1, 0x8080), PASSES),
        ("all used, the other way", (DATA, 16, 1, 0), PASSES),
        (
            "all indirect, of nothing",
            (TABLE, 0, 1, INDIRECT | 0x80),
            REFUSED,
        ),
        (
            "all indirect, of too much",
            (TABLE, 0xffff_fff0, 1, INDIRECT | 0x80),
            REFUSED,
        ),
        ("a buffer that wraps", (u64::MAX, 16, 1, 0x80), REFUSED),
        (
            "identifiers that are none",
            (DATA, 16, 0xffff, 0x80),
            EITHER,
        ),
    ];
    for (name, (address, length, id, flags), expected) in marks {
        cases.push(case(name, expected, move |s, at| {
            let queues = s.rings.len();
            s.guest.negotiate(u64::MAX);
            for queue in 0..queues {
                let base = ring_at(queue as u16);
                s.guest
                    .place(queue as u16, [base, base + 0x2000, base + 0x3000]);
                for slot in 0..256 {
                    // The queue that is attacked, and nothing in the others. In a packed ring the last two are the other
                    // way round.
                    let words = match queue == at {
                        true => (address, length, id, flags),
                        false => (0, 0, 0, 0),
                    };
                    s.rings[queue].descriptor(base, slot, words);
                }
            }
            s.go_live();
            s.left = Left::Live;
            s.guest.kick(at as u16);
            s.settle();
        }));
    }
}
