// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a hostile driver tries, case by case, against a disk on virtio-pci, with a verdict for each.
//!
//! *Pass*: the device shrugs, and serves the next honest request. *Refused*: it stops until it is reset, says so, tells the
//! driver, and then is as good as new. *Idle*: it was reset, or never came to life, and no worker is left. *Wedged* (a worker that does not return, a reset that does not
//! complete, a live device that does not serve) and *failed* (a panic, an image or memory that was touched)
//! are what no case may come to.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::Options;
use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::pci::PciFunction;

use crate::support::{END, Machine, header, image, pattern};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x1_0000;
const TABLE: u64 = 0x2_0000;
/// Where the window is, once it is assigned: device memory, which is not guest memory.
const WINDOW: u64 = 0xe000_0000;
const SECTORS: u64 = 64;
/// What takes that long hangs. A tenth is what workers have; the rest is for a machine under load.
const HANGS: Duration = Duration::from_secs(10);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Refused,
    Idle,
    Wedged,
    Failed,
}
use Verdict::{Failed, Idle, Pass, Refused, Wedged};

struct Guest {
    machine: Machine,
    ring: Ring,
}

impl Guest {
    fn kick(&mut self) -> Result<(), Verdict> {
        self.machine.driver.kick(0);
        let before = Instant::now();
        let rounds = self.machine.workers.step(1000);
        let quick = rounds < 1000 && before.elapsed() < HANGS;
        if quick { Ok(()) } else { Err(Wedged) }
    }

    /// An honest read of sector 5; whether it was served, and correctly.
    fn honest(&mut self) -> Result<bool, Verdict> {
        while self.ring.take().is_some() {}
        self.machine.write(HEADER, &header(0, 5));
        self.machine.write(STATUS, &[0xee]);
        let buffers = [
            Readable(HEADER, 16),
            Writable(DATA, 512),
            Writable(STATUS, 1),
        ];
        self.ring.submit(&buffers);
        self.kick()?;
        Ok(self.ring.take().is_some()
            && self.machine.read(STATUS, 1) == [0]
            && self.machine.read(DATA, 512) == pattern(5 * 512, 512))
    }

    fn submit(&mut self, buffers: &[Buffer]) -> Result<(), Verdict> {
        self.ring.submit(buffers);
        self.kick()
    }

    fn verdict(&mut self) -> Result<Verdict, Verdict> {
        let verdict = match self.machine.driver.status() & 0x44 {
            // DRIVER_OK alone.
            0x04 if self.honest()? => Pass,
            0 if self.machine.workers.running() == 0 => Idle,
            0 => Wedged,
            _ if self.machine.driver.status() & 0x40 == 0 => Wedged,
            // "The device MUST send a device configuration change notification" (2.1.2).
            _ if self.machine.vectors.delivered().contains(&0) => Refused,
            _ => Failed,
        };
        if matches!(verdict, Wedged | Failed) {
            return Err(verdict);
        }
        if self.machine.driver.set_status(0) != 0 {
            return Err(Wedged);
        }
        self.ring = self.machine.start(u64::MAX);
        if self.honest()? {
            Ok(verdict)
        } else {
            Err(Wedged)
        }
    }
}

type Act = Box<dyn Fn(&mut Guest) -> Result<(), Verdict>>;

#[derive(Default)]
struct Suite {
    cases: Vec<(String, Option<Verdict>, Act)>,
}

impl Suite {
    fn case(
        &mut self,
        name: impl Display,
        expected: impl Into<Option<Verdict>>,
        act: impl Fn(&mut Guest) -> Result<(), Verdict> + 'static,
    ) {
        self.cases
            .push((name.to_string(), expected.into(), Box::new(act)));
    }

    /// Runs every case on a disk of its own; panics with the list of those that came out wrong.
    fn run(self, least: usize) {
        let mut wrong = Vec::new();
        let count = self.cases.len();
        for (name, expected, act) in self.cases {
            let file = image(SECTORS);
            let verdict = catch_unwind(AssertUnwindSafe(|| {
                let mut machine = Machine::with_disk(Options::new(file.path()));
                machine
                    .driver
                    .function
                    .config_write(0x10, &(WINDOW as u32).to_le_bytes());
                let ring = machine.start(u64::MAX);
                let mut guest = Guest { machine, ring };
                act(&mut guest)
                    .and_then(|()| guest.verdict())
                    .unwrap_or_else(|wedged| wedged)
            }));
            let mut verdict = verdict.unwrap_or(Failed);
            if std::fs::read(file.path()).unwrap() != pattern(0, SECTORS * 512) {
                verdict = Failed;
            }
            let right = match expected {
                Some(expected) => verdict == expected,
                None => matches!(verdict, Pass | Refused | Idle),
            };
            if !right {
                wrong.push(format!("{name}: {verdict:?}, expected {expected:?}"));
            }
        }
        assert!(
            wrong.is_empty(),
            "{} of {count}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        assert!(count >= least, "only {count} cases");
    }
}

/// Starts again with one queue set up by `place`: table, available ring, used ring.
fn place(guest: &mut Guest, at: (u64, u64, u64)) -> Result<(), Verdict> {
    let driver = &mut guest.machine.driver;
    driver.negotiate(u64::MAX);
    let common = driver.common;
    driver.put(common, 0x16, 2, 0);
    for (offset, address) in [(0x20, at.0), (0x28, at.1), (0x30, at.2)] {
        driver.put(common, offset, 4, address & 0xffff_ffff);
        driver.put(common, offset + 4, 4, address >> 32);
    }
    driver.put(common, 0x1c, 2, 1);
    driver.set_status(0xf);
    guest.kick()
}

#[test]
fn rings_in_places_where_no_ring_can_be() {
    let mut suite = Suite::default();
    let good = (0x1000, 0x3000, 0x5000);
    for (address, expected) in [
        (END, Refused),
        (END - 16, Refused),
        (WINDOW, Refused),
        (1 << 40, Refused),
        (1 << 63, Refused),
        (0u64.wrapping_sub(16), Refused),
        (0u64.wrapping_sub(4096), Refused),
        (0x1001, Refused),
    ] {
        suite.case(format!("table at {address:#x}"), expected, move |g| {
            place(g, (address, good.1, good.2))
        });
        suite.case(
            format!("available ring at {address:#x}"),
            expected,
            move |g| place(g, (good.0, address, good.2)),
        );
        suite.case(format!("used ring at {address:#x}"), expected, move |g| {
            place(g, (good.0, good.1, address))
        });
    }
    suite.case("table at 8 bytes past 16", Refused, move |g| {
        place(g, (0x1008, good.1, good.2))
    });
    suite.case("used ring at 2 bytes past 4", Refused, move |g| {
        place(g, (good.0, good.1, 0x5002))
    });
    // Areas that overlap are the driver's own harm.
    for (name, at) in [
        ("all", (0x1000, 0x1000, 0x1000)),
        ("table and used", (0x1000, 0x5000, 0x1000)),
        ("available and used", (0x1000, 0x5000, 0x5000)),
        ("table and available", (0x1000, 0x1000, 0x5000)),
        ("available in used", (0x1000, 0x5004, 0x5000)),
    ] {
        suite.case(format!("areas overlap: {name}"), None, move |g| {
            place(g, at)?;
            (g.ring.table, g.ring.available, g.ring.used) = at;
            for i in 0..8 {
                g.submit(&[Readable(i * 16, 16), Writable(STATUS, 1)])?;
            }
            Ok(())
        });
    }
    suite.run(30);
}

#[test]
fn chains_that_no_driver_may_make() {
    let mut suite = Suite::default();
    let mut chain = |name: &str, expected, descriptors: Vec<(u16, (u64, u32, u16, u16))>| {
        suite.case(name, expected, move |g: &mut Guest| {
            g.machine.write(HEADER, &header(0, 0));
            for (index, words) in &descriptors {
                let table = if *index < 0x100 { g.ring.table } else { TABLE };
                g.ring.descriptor(table, index & 0xff, *words);
            }
            g.ring.offer(0);
            g.kick()
        });
    };
    let head = |flags, next| (HEADER, 16, flags, next);
    chain("to itself", Refused, vec![(0, head(NEXT, 0))]);
    chain(
        "around two",
        Refused,
        vec![(0, head(NEXT, 1)), (1, (DATA, 512, NEXT | WRITE, 0))],
    );
    chain(
        "around two, all writable",
        Refused,
        vec![
            (0, (DATA, 512, NEXT | WRITE, 1)),
            (1, (DATA, 512, NEXT | WRITE, 0)),
        ],
    );
    for next in [256, 257, 0x7fff, 0xffff] {
        chain(
            &format!("next {next:#x}"),
            Refused,
            vec![(0, head(NEXT, next))],
        );
    }
    chain(
        "readable after writable",
        Refused,
        vec![(0, (DATA, 512, NEXT | WRITE, 1)), (1, head(0, 0))],
    );
    chain("only readable", Refused, vec![(0, head(0, 0))]);
    chain("only writable", Pass, vec![(0, (STATUS, 1, WRITE, 0))]);
    chain(
        "all empty",
        Refused,
        vec![(0, (0, 0, NEXT, 1)), (1, (0, 0, WRITE, 0))],
    );
    for address in [u64::MAX, u64::MAX - 15, u64::MAX - 511] {
        chain(
            &format!("buffer wraps at {address:#x}"),
            Refused,
            vec![(0, head(NEXT, 1)), (1, (address, 512, WRITE, 0))],
        );
    }
    chain(
        "more than 2^32 bytes",
        Refused,
        vec![
            (0, head(NEXT, 1)),
            (1, (0, u32::MAX, NEXT | WRITE, 2)),
            (2, (0, u32::MAX, WRITE, 0)),
        ],
    );
    chain(
        "2^32 - 1 bytes from 0",
        Pass,
        vec![
            (0, (TABLE, 16, NEXT, 1)),
            (1, (1 << 40, u32::MAX - 16, NEXT | WRITE, 2)),
            (2, (STATUS, 1, WRITE, 0)),
        ],
    );
    for (name, length) in [
        ("empty", 0),
        ("of 8 bytes", 8),
        ("of 17 bytes", 17),
        ("of 2^32 - 1", u32::MAX),
    ] {
        chain(
            &format!("indirect table {name}"),
            Refused,
            vec![(0, (TABLE, length, INDIRECT, 0))],
        );
    }
    for address in [END, END - 8, WINDOW, 1 << 50, 0u64.wrapping_sub(16)] {
        chain(
            &format!("indirect table at {address:#x}"),
            Refused,
            vec![(0, (address, 16, INDIRECT, 0))],
        );
    }
    chain(
        "indirect with next",
        Refused,
        vec![(0, (TABLE, 32, INDIRECT | NEXT, 1))],
    );
    chain(
        "indirect in indirect",
        Refused,
        vec![
            (0, (TABLE, 32, INDIRECT, 0)),
            (0x100, (TABLE, 32, INDIRECT, 0)),
        ],
    );
    chain(
        "indirect in indirect, second",
        Refused,
        vec![
            (0, (TABLE, 32, INDIRECT, 0)),
            (0x100, head(NEXT, 1)),
            (0x101, (TABLE, 32, INDIRECT, 0)),
        ],
    );
    chain(
        "indirect loops",
        Refused,
        vec![
            (0, (TABLE, 32, INDIRECT, 0)),
            (0x100, head(NEXT, 1)),
            (0x101, head(NEXT, 0)),
        ],
    );
    chain(
        "indirect leaves its table",
        Refused,
        vec![(0, (TABLE, 32, INDIRECT, 0)), (0x100, head(NEXT, 2))],
    );
    for flags in [8u16, 0x10, 0x8000, 0xfff8] {
        chain(
            &format!("reserved flags {flags:#x}"),
            Pass,
            vec![
                (0, head(NEXT | flags, 1)),
                (1, (STATUS, 1, WRITE | flags, 0)),
            ],
        );
    }
    for head in [256u16, 257, 0x1000, 0xffff] {
        suite.case(format!("head {head:#x}"), Refused, move |g| {
            g.ring.offer(head);
            g.kick()
        });
    }
    for jump in [257u16, 0x1000, 0x8000, 0xffff] {
        suite.case(
            format!("available index jumps by {jump:#x}"),
            Refused,
            move |g| {
                g.ring.put16(g.ring.available + 2, jump);
                g.kick()
            },
        );
    }
    suite.case("available index goes back", Refused, |g| {
        for _ in 0..3 {
            g.honest()?;
        }
        g.ring.put16(g.ring.available + 2, 1);
        g.kick()
    });
    suite.case("one head made available 256 times", Pass, |g| {
        g.machine.write(HEADER, &header(4, 0));
        g.ring.submit(&[Readable(HEADER, 16), Writable(STATUS, 1)]);
        for _ in 1..256 {
            g.ring.offer(0);
        }
        g.kick()
    });
    suite.case("used ring written by the driver", Pass, |g| {
        let (used, noise) = (g.ring.used, [0xff; 2]);
        g.machine.write(used, &noise);
        g.kick()
    });
    suite.run(40);
}

#[test]
fn requests_that_make_no_sense() {
    let mut suite = Suite::default();
    for kind in [0u32, 1, 4, 8, 11, 13, 2, 14, 16, 24, u32::MAX] {
        for (what, data) in [
            ("no data", vec![]),
            ("one byte in", vec![Writable(DATA, 1)]),
            ("one byte out", vec![Readable(DATA, 1)]),
            ("511 bytes in", vec![Writable(DATA, 511)]),
            ("511 bytes out", vec![Readable(DATA, 511)]),
            ("a window in", vec![Writable(WINDOW, 512)]),
            ("a window out", vec![Readable(WINDOW, 512)]),
            ("nowhere out", vec![Readable(1 << 60, 512)]),
            ("2 GiB in", vec![Writable(0, 1 << 31)]),
            ("2 GiB out", vec![Readable(0, 1 << 31)]),
        ] {
            for sector in [0, SECTORS, u64::MAX] {
                // A write of nothing, or of what is there, is honest; so is a hole of nothing.
                let name = format!("type {kind:#x}, {what}, sector {sector:#x}");
                let data = data.clone();
                suite.case(name, Pass, move |g| {
                    g.machine.write(HEADER, &header(kind, sector));
                    let mut chain = vec![Readable(HEADER, 16)];
                    chain.extend(&data);
                    chain.push(Writable(STATUS, 1));
                    g.submit(&chain)?;
                    if g.machine.driver.status() == 0xf {
                        Ok(())
                    } else {
                        Err(Failed)
                    }
                });
            }
        }
    }
    for length in 0..16 {
        suite.case(format!("a header of {length} bytes"), Pass, move |g| {
            g.submit(&[Readable(HEADER, length), Writable(STATUS, 1)])
        });
    }
    for status in [END, WINDOW, 1 << 50] {
        suite.case(format!("a status at {status:#x}"), Pass, move |g| {
            g.machine.write(HEADER, &header(4, 0));
            g.submit(&[Readable(HEADER, 16), Writable(status, 1)])
        });
    }
    suite.run(300);
}

#[test]
fn registers_written_while_the_device_is_live() {
    let mut suite = Suite::default();
    let registers = [
        (0x00, 4),
        (0x04, 4),
        (0x08, 4),
        (0x0c, 4),
        (0x10, 2),
        (0x12, 2),
        (0x15, 1),
        (0x16, 2),
        (0x18, 2),
        (0x1a, 2),
        (0x1c, 2),
        (0x1e, 2),
        (0x20, 8),
        (0x28, 8),
        (0x30, 8),
        (0x38, 2),
        (0x3a, 2),
        (0x3c, 2),
    ];
    for (offset, width) in registers {
        for value in [0, 1, 0x40, u64::MAX] {
            suite.case(
                format!("register {offset:#x} = {value:#x}"),
                Pass,
                move |g| {
                    let common = g.machine.driver.common;
                    g.machine.driver.put(common, offset, width, value);
                    // Selecting another queue is the driver's right.
                    g.machine.driver.put(common, 0x16, 2, 0);
                    g.kick()
                },
            );
        }
    }
    for status in 1..=255u8 {
        // DRIVER FAILED is a bit like any other; the device goes on until it is reset.
        suite.case(format!("status = {status:#x}"), Pass, move |g| {
            g.machine.driver.set_status(status);
            Ok(())
        });
    }
    suite.case("another queue enabled", Pass, |g| {
        let common = g.machine.driver.common;
        for (offset, value) in [(0x16, 1), (0x18, 0x8000), (0x1c, 1)] {
            g.machine.driver.put(common, offset, 2, value);
        }
        g.kick()
    });
    for (width, value) in [
        (1usize, 0xffu64),
        (2, 0xffff),
        (4, 0xffff_ffff),
        (8, u64::MAX),
    ] {
        for offset in [
            0u64,
            1,
            2,
            0xff8,
            0xfff,
            0x1000,
            0x1001,
            0x2ff9,
            0x3004,
            0x3ffc,
            0x4000,
            0x401c,
            0x4020,
            0x4ffc,
            0x5000,
            0x5008,
            0x7fff,
            0x8000,
            1 << 32,
            u64::MAX - 8,
        ] {
            // The first of these is a selector, the common structure's only one without effect.
            suite.case(
                format!("{width} bytes at {offset:#x} of the window"),
                Pass,
                move |g| {
                    let data = value.to_le_bytes();
                    g.machine
                        .driver
                        .function
                        .bar_write(0, offset, &data[..width]);
                    let mut back = [0; 8];
                    g.machine
                        .driver
                        .function
                        .bar_read(0, offset, &mut back[..width]);
                    g.kick()
                },
            );
        }
    }
    for offset in 0..256u16 {
        suite.case(
            format!("configuration space at {offset:#x}"),
            Pass,
            move |g| {
                for byte in [0xff, 0] {
                    g.machine.driver.function.config_write(offset, &[byte]);
                    g.kick()?;
                }
                g.machine
                    .driver
                    .function
                    .config_write(4, &6u16.to_le_bytes());
                g.machine.driver.enable_msix();
                Ok(())
            },
        );
    }
    suite.run(500);
}

#[test]
fn features_and_resets_out_of_turn() {
    let mut suite = Suite::default();
    for bit in 0..64 {
        suite.case(
            format!("feature bit {bit}, offered or not"),
            None,
            move |g| {
                let driver = &mut g.machine.driver;
                driver.set_status(0);
                driver.set_status(3);
                let offered = driver.offered();
                driver.accept(1 << 32 | 1 << bit);
                let expected = if offered >> bit & 1 == 1 { 0xb } else { 0x3 };
                if driver.set_status(0xb) != expected {
                    return Err(Failed);
                }
                if bit == 34 {
                    // What is in memory is no packed ring: nothing to do there, and a reset to come.
                    g.machine.driver.queue(0, &g.machine.memory, 0x1000, 256);
                    g.machine.driver.set_status(0xf);
                    g.kick()?;
                    g.machine.driver.set_status(0);
                    return Ok(());
                }
                g.ring = g.machine.driver.queue(0, &g.machine.memory, 0x1000, 256);
                // Without FEATURES_OK there is no DRIVER_OK.
                if g.machine.driver.set_status(0xf) & 4 != expected >> 1 & 4 {
                    return Err(Failed);
                }
                g.kick()
            },
        );
    }
    for status in [1, 2, 4, 8, 0xc, 0xd, 0xe, 5, 6, 9, 0xa, 0x80, 0x40, 0x44] {
        suite.case(format!("DRIVER_OK by way of {status:#x}"), None, move |g| {
            g.machine.driver.set_status(0);
            g.machine.driver.set_status(status);
            g.machine.driver.set_status(4);
            g.kick()
        });
    }
    for steps in 0..6 {
        suite.case(
            format!("reset after {steps} steps of 80 requests"),
            Idle,
            move |g| {
                g.machine.write(HEADER, &header(0, 1));
                for _ in 0..80 {
                    let chain = [
                        Readable(HEADER, 16),
                        Writable(DATA, 512),
                        Writable(STATUS, 1),
                    ];
                    g.ring.submit(&chain);
                }
                g.machine.driver.kick(0);
                g.machine.workers.step(steps);
                g.machine.driver.set_status(0);
                g.kick()
            },
        );
    }
    suite.case("twenty resets in a row", Idle, |g| {
        for _ in 0..20 {
            g.machine.driver.set_status(0);
        }
        Ok(())
    });
    for queue in [1u64, 2, 255, 0xffff] {
        suite.case(format!("notification of queue {queue}"), Pass, move |g| {
            let notify = g.machine.driver.notify;
            g.machine.driver.put(notify, 4 * queue, 4, queue);
            g.kick()
        });
    }
    suite.run(80);
}
