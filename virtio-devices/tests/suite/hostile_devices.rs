// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a hostile driver tries, against every queue of every device on both transports, with a verdict for each.
//!
//! The verdicts are those of `hostile_cases`, which goes deeper into the disk's own requests: *pass*, the device
//! shrugs and serves; *refused*, it stops until it is reset, says so, and then is as good as new; *wedged* and
//! *failed* are what no case may come to.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};

use crate::hostile_kinds::Verdict::{self, Pass, Refused};
use crate::hostile_kinds::{DATA, KINDS, Subject};
use crate::support::END;
use crate::support::guest::{TRANSPORTS, on_bus, ring_at};

const STATUS: u64 = 0x9000;
const TABLE: u64 = 0xc000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// An attack on queue `at` of the device's (its place in [`Kind::queues`]).
type Act = Box<dyn Fn(&mut Subject, usize)>;

/// A name, what must come of it, and what is done.
type Case = (String, Option<Verdict>, Act);

/// Runs every case on every queue of every device on both transports.
fn run(cases: &[Case], least: usize) {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for kind in &KINDS {
        for transport in TRANSPORTS {
            for at in 0..kind.queues.len() {
                for (name, expected, act) in cases {
                    count += 1;
                    let verdict = catch_unwind(AssertUnwindSafe(|| {
                        let mut subject = Subject::new(kind, transport);
                        act(&mut subject, at);
                        subject.verdict(kind)
                    }));
                    let verdict = verdict.unwrap_or(Verdict::Failed);
                    let right = match expected {
                        Some(expected) => verdict == *expected,
                        None => matches!(verdict, Pass | Refused),
                    };
                    if !right {
                        let device = kind.name;
                        wrong.push(format!(
                            "{device}, {transport:?}, queue {at}: {name}: {verdict:?}, expected {expected:?}"
                        ));
                    }
                }
            }
        }
    }
    let list = wrong.join("\n");
    assert!(wrong.is_empty(), "{} of {count}:\n{list}", wrong.len());
    assert!(count >= least, "only {count} cases");
}

fn case(
    name: impl Into<String>,
    expected: impl Into<Option<Verdict>>,
    act: impl Fn(&mut Subject, usize) + 'static,
) -> Case {
    (name.into(), expected.into(), Box::new(act))
}

/// Starts again with all queues, one of which is where it is told.
fn misplaced(subject: &mut Subject, at: usize, areas: [u64; 3]) {
    let queues = subject.rings.len();
    subject.guest.negotiate(!(1 << 34));
    for queue in 0..queues {
        let ring = &subject.rings[queue];
        let honest = [ring.table, ring.available, ring.used];
        let areas = if queue == at { areas } else { honest };
        // The rings of these devices are queues 0 to 3.
        subject.guest.place(queue as u16, areas);
    }
    subject.guest.set_status(0xf);
    subject.guest.kick(at as u16);
}

#[test]
fn rings_in_places_where_no_ring_can_be() {
    let good = [0x4_0000, 0x4_2000, 0x4_4000];
    let mut cases = Vec::new();
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
            cases.push(case(name, Refused, move |s, at| misplaced(s, at, areas)));
        }
    }
    // Areas that overlap are the driver's own harm.
    for areas in [[0x4_0000; 3], [0x4_0000, 0x4_4000, 0x4_4000]] {
        let name = format!("areas at {areas:x?}");
        cases.push(case(name, Refused, move |s, at| {
            misplaced(s, at, areas);
            let ring = &mut s.rings[at];
            [ring.table, ring.available, ring.used] = areas;
            for i in 0..8 {
                ring.submit(&[Readable(i * 16, 16), Writable(STATUS, 1)]);
                s.guest.kick(at as u16);
            }
            assert!(s.settle(), "the workers do not come to rest");
            // What was served there is anybody's guess; that the next driver finds a device is not.
            s.guest.set_status(0);
        }));
    }
    run(&cases, 300);
}

#[test]
fn chains_that_no_driver_may_make() {
    type Words = (u64, u32, u16, u16);
    let mut cases = Vec::new();
    let mut chain = |name: &str, expected: Option<Verdict>, descriptors: Vec<(u16, Words)>| {
        cases.push(case(name, expected, move |s: &mut Subject, at| {
            let ring = &mut s.rings[at];
            for (index, words) in &descriptors {
                let table = if *index < 0x100 { ring.table } else { TABLE };
                ring.descriptor(table, index & 0xff, *words);
            }
            ring.offer(0);
            s.guest.kick(at as u16);
        }));
    };
    let refused = Some(Refused);
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
    // What a device may take or refuse, as long as it lives.
    chain("nothing to read", None, vec![(0, (DATA, 64, WRITE, 0))]);
    chain("nothing to write", None, vec![(0, (DATA, 64, 0, 0))]);
    chain("one byte to read", None, vec![(0, (DATA, 1, 0, 0))]);
    chain("one byte to write", None, vec![(0, (DATA, 1, WRITE, 0))]);
    chain("nothing at all", None, vec![(0, (DATA, 0, 0, 0))]);
    for flags in [0, WRITE] {
        chain(
            "a buffer after memory",
            None,
            vec![(0, (END, 64, flags, 0))],
        );
        chain(
            "a buffer over its end",
            None,
            vec![(0, (END - 32, 64, flags, 0))],
        );
        chain(
            "2^32 - 1 bytes",
            None,
            vec![(0, (1 << 40, u32::MAX, flags, 0))],
        );
        chain(
            "the ring as buffer",
            None,
            vec![(0, (ring_at(0) + 0x3000, 256, flags, 0))],
        );
        chain(
            "unknown flags",
            None,
            vec![(0, (DATA, 64, flags | 0xfff8, 0))],
        );
    }
    run(&cases, 500);
}

#[test]
fn indices_and_heads_that_jump() {
    let mut cases = Vec::new();
    for head in [64u16, 65, 0x7fff, 0xffff] {
        cases.push(case(format!("head {head:#x}"), Refused, move |s, at| {
            s.rings[at].offer(head);
            s.guest.kick(at as u16);
        }));
    }
    for index in [65u16, 0x7fff, 0x8000, 0xffff] {
        cases.push(case(format!("index {index:#x}"), Refused, move |s, at| {
            let ring = &s.rings[at];
            ring.put16(ring.available + 2, index);
            s.guest.kick(at as u16);
        }));
    }
    // A device that has not taken the chain yet never saw the index.
    cases.push(case("an index that goes back", None, |s, at| {
        let ring = &mut s.rings[at];
        ring.submit(&[Readable(DATA, 64), Writable(DATA, 64)]);
        s.guest.kick(at as u16);
        s.settle();
        let ring = &s.rings[at];
        ring.put16(ring.available + 2, 0xffff);
        s.guest.kick(at as u16);
    }));
    cases.push(case("one chain 64 times", None, |s, at| {
        let ring = &mut s.rings[at];
        ring.descriptor(ring.table, 0, (DATA, 64, 0, 0));
        for _ in 0..64 {
            ring.offer(0);
        }
        s.guest.kick(at as u16);
    }));
    run(&cases, 150);
}

#[test]
fn registers_at_the_wrong_time() {
    let mut cases = Vec::new();
    for (value, width) in [(0, 4), (0xff, 4), (0xff, 1), (1, 2), (0x55, 8), (0xff, 3)] {
        let name = format!("{value:#x} in every register, {width} bytes");
        cases.push(case(name, None, move |s, _| s.guest.scribble(value, width)));
    }
    for width in [1, 2, 3, 4, 8] {
        cases.push(case(
            format!("reads of {width} bytes"),
            Pass,
            move |s, _| {
                s.guest.look_around(width);
            },
        ));
    }
    for status in 1..=0xff_u8 {
        if status.is_power_of_two() || status == 0xff || status == 0x8f {
            cases.push(case(format!("status {status:#x}"), Pass, move |s, _| {
                s.guest.set_status(status);
            }));
        }
    }
    cases.push(case("addresses that change while live", Pass, |s, at| {
        s.guest.place(at as u16, [END, END, END]);
    }));
    cases.push(case(
        "a notification of every queue there is not",
        Pass,
        |s, _| {
            on_bus!(s.guest, driver => {
                for queue in 4..64 {
                    driver.kick(queue);
                }
            });
        },
    ));
    cases.push(case("a reset in the middle", Refused, |s, at| {
        for _ in 0..8 {
            s.rings[at].submit(&[Readable(DATA, 16), Writable(DATA, 600)]);
        }
        s.guest.kick(at as u16);
        s.guest.set_status(0);
    }));
    cases.push(case("features never offered", Refused, |s, _| {
        s.guest.set_status(0);
        s.guest.set_status(3);
        on_bus!(s.guest, driver => driver.accept(u64::MAX));
        assert_eq!(s.guest.set_status(0xb) & 8, 0);
        s.guest.set_status(0xf);
    }));
    cases.push(case("no queue at all", Refused, |s, at| {
        s.guest.negotiate(!(1 << 34));
        s.guest.set_status(0xf);
        s.guest.kick(at as u16);
        // A console without a port is one all the same.
        s.guest.set_status(0);
    }));
    run(&cases, 400);
}

/// The same memory as a packed ring: what a driver leaves there is no chain, or one of noise.
#[test]
fn packed_rings_of_noise() {
    let mut cases = Vec::new();
    let marks = [
        ("loop of readable", (DATA, 16, 0, NEXT | 0x80)),
        ("loop of writable", (DATA, 16, 0, NEXT | WRITE | 0x80)),
        ("all available", (DATA, 16, 1, 0x80)),
        ("all available and writable", (DATA, 16, 1, WRITE | 0x80)),
        ("all used", (DATA, 16, 1, 0x8080)),
        ("all indirect, of nothing", (TABLE, 0, 1, INDIRECT | 0x80)),
        (
            "all indirect, of too much",
            (TABLE, 0xffff_fff0, 1, INDIRECT | 0x80),
        ),
        ("identifiers that are none", (DATA, 16, 0xffff, 0x80)),
    ];
    for (name, (address, length, id, flags)) in marks {
        cases.push(case(name, Refused, move |s, at| {
            let queues = s.rings.len();
            s.guest.negotiate(u64::MAX);
            for queue in 0..queues {
                let base = ring_at(queue as u16);
                s.guest
                    .place(queue as u16, [base, base + 0x2000, base + 0x3000]);
                for slot in 0..256 {
                    // The queue that is attacked, and nothing in the others.
                    let words = if queue == at {
                        (address, length, flags, id)
                    } else {
                        (0, 0, 0, 0)
                    };
                    // In a packed ring the last two are the other way round.
                    let words = (words.0, words.1, words.3, words.2);
                    s.rings[queue].descriptor(base, slot, words);
                }
            }
            s.guest.set_status(0xf);
            s.guest.kick(at as u16);
            s.settle();
            // Whatever it made of it, the next driver finds a device.
            s.guest.set_status(0);
        }));
    }
    run(&cases, 100);
}
