// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console, with sockets behind its ports.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use hvkit_virtio_devices::console::{Console, ConsoleError, Port, Size, Terminal};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;

use crate::moved::moved;
use crate::support::END;
use crate::support::guest::{Bus, Guest, TRANSPORTS, Transport};

const MULTIPORT: u64 = 1 << 1;

fn port(name: &str) -> (Port, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).unwrap();
    }
    let input = theirs.try_clone().unwrap();
    (Port::new(name, theirs).with_input(input), ours)
}

struct Bench {
    guest: Guest,
    ends: [UnixStream; 2],
    terminal: Terminal,
}

fn bench(transport: Transport) -> Bench {
    let ((first, a), (second, b)) = (port("tty"), port("org.example.agent"));
    let console = Console::new(vec![first, second]).unwrap();
    let terminal = console.terminal();
    Bench {
        guest: Guest::new(Box::new(console), transport),
        ends: [a, b],
        terminal,
    }
}

fn received(end: &mut UnixStream) -> Vec<u8> {
    let mut data = vec![0; 0x1_0000];
    let count = end.read(&mut data).unwrap_or(0);
    data.truncate(count);
    data
}

/// "struct virtio_console_control".
fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    let mut raw = id.to_le_bytes().to_vec();
    raw.extend(event.to_le_bytes());
    raw.extend(value.to_le_bytes());
    raw
}

fn ask(guest: &mut Guest, ring: &mut Ring, id: u32, event: u16, value: u16) {
    guest.write(0x8000, &message(id, event, value));
    ring.submit(&[Readable(0x8000, 8)]);
    guest.run(3);
    assert!(ring.take().is_some());
}

/// Gives a buffer to the control queue and returns what came.
fn hear(guest: &mut Guest, ring: &mut Ring) -> Option<Vec<u8>> {
    ring.submit(&[Writable(0x9000, 64)]);
    guest.run(2);
    let used = ring.take()?;
    Some(guest.read(0x9000, used.length as usize))
}

#[test]
fn bytes_go_both_ways_without_control() {
    for transport in TRANSPORTS {
        let mut b = bench(transport);
        let mut rings = b.guest.start(!MULTIPORT, &[0, 1]);
        b.guest.write(0x8000, b"hello, host");
        rings[1].submit(&[Readable(0x8000, 5), Readable(0x8005, 6)]);
        b.guest.run(1);
        assert_eq!(rings[1].take().unwrap().length, 0);
        assert_eq!(received(&mut b.ends[0]), b"hello, host");

        rings[0].submit(&[Writable(0x9000, 4)]);
        rings[0].submit(&[Writable(0xa000, 100)]);
        b.guest.run(0);
        assert_eq!(rings[0].take(), None, "nothing to say, and a buffer used");
        b.ends[0].write_all(b"hello, guest").unwrap();
        b.guest.step();
        assert_eq!(rings[0].take().unwrap().length, 4);
        assert_eq!(rings[0].take().unwrap().length, 8);
        assert_eq!(b.guest.read(0x9000, 4), b"hell");
        assert_eq!(b.guest.read(0xa000, 8), b"o, guest");
    }
}

#[test]
fn ports_are_told_when_the_driver_asks() {
    for transport in TRANSPORTS {
        let mut b = bench(transport);
        b.terminal.resize(Size {
            columns: 132,
            rows: 50,
        });
        let mut rings = b.guest.start(u64::MAX, &[0, 1, 2, 3, 4, 5]);
        assert_eq!(b.guest.config(4, 4), 2, "max_nr_ports");
        let (guest, [.., to, from, _, _]) = (&mut b.guest, &mut rings[..]) else {
            panic!("six rings");
        };
        // Answers before there are buffers are not lost.
        ask(guest, from, u32::MAX, 0, 1);
        assert_eq!(hear(guest, to).unwrap(), message(0, 1, 0));
        assert_eq!(hear(guest, to).unwrap(), message(1, 1, 0));
        ask(guest, from, 0, 3, 1);
        assert_eq!(hear(guest, to).unwrap(), message(0, 4, 1), "CONSOLE_PORT");
        let mut size = message(0, 5, 0);
        size.extend([132, 0, 50, 0]);
        assert_eq!(hear(guest, to).unwrap(), size, "RESIZE");
        assert_eq!(hear(guest, to).unwrap(), message(0, 6, 1), "PORT_OPEN");
        ask(guest, from, 1, 3, 1);
        let mut name = message(1, 7, 1);
        name.extend(b"org.example.agent");
        assert_eq!(hear(guest, to).unwrap(), name, "PORT_NAME");
        assert_eq!(hear(guest, to).unwrap(), message(1, 6, 1));
        // What it may not ask, or need not be answered.
        ask(guest, from, 2, 3, 1);
        ask(guest, from, 0, 3, 0);
        ask(guest, from, 0, 99, 1);
        ask(guest, from, u32::MAX, 0, 0);
        assert_eq!(hear(guest, to), None);

        b.guest.write(0x8000, b"agent");
        rings[5].submit(&[Readable(0x8000, 5)]);
        b.guest.run(5);
        assert_eq!(received(&mut b.ends[1]), b"agent");
        assert!(received(&mut b.ends[0]).is_empty());
        b.ends[1].write_all(b"here").unwrap();
        rings[4].submit(&[Writable(0xa000, 100)]);
        b.guest.run(4);
        assert_eq!(rings[4].take().unwrap().length, 4);
    }
}

#[test]
fn a_resize_is_told_as_the_driver_understands_it() {
    let mut plain = bench(Transport::Pci);
    let size = |columns, rows| Size { columns, rows };
    plain.guest.start(!MULTIPORT, &[0, 1]);
    plain.guest.vectors.take();
    plain.terminal.resize(size(80, 25));
    assert_eq!(
        plain.guest.vectors.delivered(),
        [0],
        "the configuration's vector"
    );
    assert_eq!(plain.guest.config(0, 4), 25 << 16 | 80);
    plain.terminal.resize(size(80, 25));
    assert!(
        plain.guest.vectors.delivered().is_empty(),
        "it is the same size"
    );

    let mut multi = bench(Transport::Pci);
    let mut rings = multi.guest.start(u64::MAX, &[0, 1, 2, 3]);
    rings[2].submit(&[Writable(0x9000, 64)]);
    multi.guest.run(2);
    multi.terminal.resize(size(1, 2));
    multi.guest.step();
    let used = rings[2].take().unwrap();
    let mut expected = message(0, 5, 0);
    expected.extend([1, 0, 2, 0]);
    assert_eq!(multi.guest.read(0x9000, used.length as usize), expected);
}

#[test]
fn a_byte_in_an_emergency() {
    for transport in TRANSPORTS {
        let mut b = bench(transport);
        // Before anything is set up.
        b.guest.set_config(8, &u32::from(b'!').to_le_bytes());
        b.guest.set_config(0, &[7; 4]);
        assert_eq!(received(&mut b.ends[0]), b"!");
        assert_eq!(b.guest.config(0, 4), 0);
    }
}

#[test]
fn a_driver_that_asks_and_never_listens_costs_little() {
    let mut b = bench(Transport::Pci);
    let mut rings = b.guest.start(u64::MAX, &[0, 1, 2, 3]);
    for _ in 0..200 {
        ask(&mut b.guest, &mut rings[3], 0, 0, 1);
    }
    let heard = std::iter::from_fn(|| hear(&mut b.guest, &mut rings[2])).count();
    assert!((2..100).contains(&heard), "{heard} messages were kept");
    // After a reset nothing of it is left.
    ask(&mut b.guest, &mut rings[3], 0, 0, 1);
    let mut rings = b.guest.start(u64::MAX, &[0, 1, 2, 3]);
    assert_eq!(hear(&mut b.guest, &mut rings[2]), None);
}

#[test]
fn buffers_in_no_memory_lose_bytes_and_no_more() {
    let mut b = bench(Transport::Mmio);
    let mut rings = b.guest.start(u64::MAX, &[0, 1, 2, 3]);
    rings[1].submit(&[Readable(END, 5)]);
    rings[1].submit(&[Writable(0x8000, 5)]);
    rings[1].submit(&[Readable(0x8000, 0)]);
    rings[3].submit(&[Readable(END, 8)]);
    rings[3].submit(&[Readable(0x8000, 7)]);
    b.guest.kick(3);
    b.guest.run(1);
    for ring in [1, 1, 1, 3, 3] {
        assert_eq!(rings[ring].take().unwrap().length, 0);
    }
    b.ends[0].write_all(b"lost").unwrap();
    rings[0].submit(&[Writable(END, 5)]);
    rings[0].submit(&[Readable(0x8000, 5)]);
    b.guest.run(0);
    assert_eq!(rings[0].take().unwrap().length, 0);
    assert_eq!(rings[0].take().unwrap().length, 0);
    assert_eq!(b.guest.status() & 0x40, 0);
    assert!(received(&mut b.ends[0]).is_empty());
}

#[test]
fn an_end_that_is_gone_is_told() {
    let mut b = bench(Transport::Pci);
    let mut rings = b.guest.start(u64::MAX, &[0, 1, 2, 3]);
    drop(b.ends);
    rings[0].submit(&[Writable(0x9000, 4)]);
    b.guest.run(0);
    assert_eq!(rings[0].take(), None, "an end of input is no input");
    rings[1].submit(&[Readable(0x8000, 5)]);
    b.guest.run(1);
    assert_eq!(rings[1].take().unwrap().length, 0);
    let told = b.guest.told.lock().unwrap();
    assert!(told.len() == 1 && told[0].contains("queue 1"), "{told:?}");
}

#[test]
fn a_console_has_1_to_32_ports() {
    let ports = |count| (0..count).map(|_| Port::new("", std::io::sink())).collect();
    assert!(matches!(
        Console::new(ports(0)),
        Err(ConsoleError::Ports { count: 0 })
    ));
    assert!(matches!(
        Console::new(ports(33)),
        Err(ConsoleError::Ports { count: 33 })
    ));
    Console::new(ports(32)).unwrap();
}

/// Linux reads the two fields of the RESIZE message in the order of the specification or the other way round, as its version
/// has it (5326ab737a47, and its reversal); of the configuration all read them alike. So a console of one port has no RESIZE.
#[test]
fn a_terminal_alone_has_its_size_in_the_configuration() {
    for transport in TRANSPORTS {
        let (port, mut end) = port("tty");
        let console = Console::new(vec![port]).unwrap();
        let terminal = console.terminal();
        let mut guest = Guest::new(Box::new(console), transport);
        // SIZE and EMERG_WRITE, without MULTIPORT.
        assert_eq!(guest.offered() & 0xff_ffff, 0b101);
        let told = |guest: &mut Guest| match &mut guest.bus {
            Bus::Pci(_) => guest.vectors.delivered() == [0],
            Bus::Mmio(driver) => {
                let pending = driver.get(0x060);
                driver.put(0x064, pending);
                pending & 2 != 0
            }
        };
        // Of a size that nobody has said there is nothing to tell.
        guest.start(u64::MAX, &[0, 1]);
        assert!(!told(&mut guest));
        // Linux looks at the size when it is told of a change, and not before.
        let size = |columns, rows| Size { columns, rows };
        terminal.resize(size(80, 24));
        assert!(told(&mut guest));
        let mut rings = guest.start(u64::MAX, &[0, 1]);
        assert!(told(&mut guest));
        assert_eq!(guest.config(0, 4), 24 << 16 | 80, "cols, rows");
        guest.start(!1, &[0, 1]);
        assert!(!told(&mut guest), "without VIRTIO_CONSOLE_F_SIZE");
        terminal.resize(size(132, 50));
        assert!(!told(&mut guest));
        end.write_all(b"in").unwrap();
        rings[0].submit(&[Writable(0x8000, 64)]);
        guest.run(0);
        assert_eq!(guest.read(0x8000, 2), b"in");
    }
}

/// The size of the terminal that there is, whatever that of another host was.
#[test]
fn a_move_to_another_terminal_is_a_resize() {
    for transport in TRANSPORTS {
        for ports in [1, 2] {
            let console = |columns| {
                let ports = (0..ports).map(|_| Port::new("p", std::io::sink()));
                let console = Console::new(ports.collect()).unwrap();
                console.terminal().resize(Size { columns, rows: 24 });
                Box::new(console)
            };
            let queues = [0, 1, 2, 3];
            let mut guest = Guest::new(console(80), transport);
            let mut rings = guest.start(u64::MAX, &queues[..2 * ports]);
            let mut guest = moved(&mut guest, console(80));
            if ports == 2 {
                assert_eq!(hear(&mut guest, &mut rings[2]), None);
            }
            let mut guest = moved(&mut guest, console(100));
            assert_eq!(guest.config(0, 4), 24 << 16 | 100);
            if ports == 2 {
                let mut size = message(0, 5, 0);
                size.extend([100, 0, 24, 0]);
                guest.step();
                let used = rings[2].take().unwrap();
                assert_eq!(guest.read(0x9000, used.length as usize), size);
            } else if transport == Transport::Pci {
                assert_eq!(guest.vectors.delivered(), [0]);
            }
        }
    }
}
