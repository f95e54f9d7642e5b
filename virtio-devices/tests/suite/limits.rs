// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device may do in a time, however many queues it has and however often its driver resets it.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::{Block, HostCache, Options};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use hvkit_virtio_devices::fake::{Clock, Ring};
use hvkit_virtio_devices::limit::{Limits, Rate};
use hvkit_virtio_devices::net::{self, Net, Wire};

use crate::support::guest::{Guest, Memory, TRANSPORTS, Transport};
use crate::support::{header, image};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0xa000;

/// `burst` requests, and then one a second.
fn requests(burst: u64) -> Limits {
    let rate = Rate {
        burst,
        ..Rate::per_second(1)
    };
    Limits {
        bytes: None,
        requests: Some(rate),
    }
}

/// A device, the time that passes for it, and how much of what it was given it has served.
struct Limited {
    guest: Guest,
    clock: Clock,
    served: u64,
}

impl Limited {
    fn new(device: impl FnOnce() -> Box<dyn Device<Memory>>, transport: Transport) -> Self {
        let clock = Clock::new();
        let guest = Guest::new(device(), transport);
        Self {
            guest,
            clock,
            served: 0,
        }
    }

    /// Has so many seconds pass.
    fn pass(&self, seconds: u64) {
        self.clock.pass(Duration::from_secs(seconds));
    }

    /// Gives `ring`, which is queue `queue`, twenty chains, and counts those that come back.
    fn offer(&mut self, queue: u16, ring: &mut Ring, chain: &[Buffer]) {
        for _ in 0..20 {
            ring.submit(chain);
        }
        self.guest.run(queue);
        while ring.take().is_some() {
            self.served += 1;
        }
    }
}

#[test]
fn a_reset_brings_nothing_and_queues_share() {
    for transport in TRANSPORTS {
        let file = image(64);
        let options = Options::new(file.path()).with_queues(3);
        let options = options.with_limits(requests(7));
        let mut disk = Limited::new(|| Box::new(Block::open(options).unwrap()), transport);
        disk.guest.write(HEADER, &header(0, 5));
        let read = [
            Readable(HEADER, 16),
            Writable(DATA, 512),
            Writable(STATUS, 1),
        ];
        for seconds in [0, 0, 0, 3, 1, 0, 100] {
            disk.pass(seconds);
            let mut rings = disk.guest.start(u64::MAX, &[0, 1, 2]);
            for (queue, ring) in (0..).zip(&mut rings) {
                disk.offer(queue, ring, &read);
            }
        }
        // The burst, what four seconds brought, and a bucket that a hundred have filled.
        assert_eq!(disk.served, 7 + 3 + 1 + 7);
        drop(disk);

        let entropy = || Box::new(Entropy::new(std::io::repeat(7)).with_limits(requests(5)));
        let mut entropy = Limited::new(|| entropy(), transport);
        for seconds in [0, 0, 2, 0, 6] {
            entropy.pass(seconds);
            let mut rings = entropy.guest.start(u64::MAX, &[0]);
            entropy.offer(0, &mut rings[0], &[Writable(DATA, 8)]);
        }
        assert_eq!(entropy.served, 5 + 2 + 5);
    }
}

/// One request a minute, and not one a second. A driver that asks again soon has the one that is beyond, as a bucket is not
/// empty then, and waits the longer for the next.
#[test]
fn a_limit_may_be_slower_than_one_a_second() {
    let rate = Rate {
        tokens: 1,
        per: Duration::from_secs(60),
        burst: 1,
    };
    let limits = Limits {
        bytes: None,
        requests: Some(rate),
    };
    let entropy = || Box::new(Entropy::new(std::io::repeat(7)).with_limits(limits));
    let mut entropy = Limited::new(|| entropy(), Transport::Pci);
    for (seconds, served) in [(0, 1), (1, 2), (58, 2), (1, 2), (1, 3), (59, 3), (1, 4)] {
        entropy.pass(seconds);
        let mut rings = entropy.guest.start(u64::MAX, &[0]);
        entropy.offer(0, &mut rings[0], &[Writable(DATA, 8)]);
        assert_eq!(entropy.served, served);
    }
}

#[test]
fn a_card_s_pairs_share_and_its_directions_do_not() {
    let (_ends, wires): (Vec<_>, Vec<_>) = [(), ()]
        .map(|()| UnixDatagram::pair().unwrap())
        .into_iter()
        .map(|(end, wire)| {
            wire.set_nonblocking(true).unwrap();
            for _ in 0..10 {
                end.send(&[0; 100]).unwrap();
            }
            (end, Wire::Frames(wire.into()))
        })
        .unzip();
    let options = net::Options::new().with_limits(requests(6));
    let card = || Box::new(Net::with_pairs(options, wires).unwrap());
    let mut sent = Limited::new(|| card(), Transport::Pci);
    let mut received = 0;
    for seconds in [0, 0, 1, 0, 2] {
        sent.pass(seconds);
        let mut rings = sent.guest.start(u64::MAX, &[0, 1, 2, 3, 4]);
        // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET to two.
        sent.guest.write(HEADER, &[4, 0, 2, 0]);
        rings[4].submit(&[Readable(HEADER, 4), Writable(STATUS, 1)]);
        sent.guest.run(4);
        for pair in [0u16, 1] {
            let [to, from] = [2 * pair, 2 * pair + 1];
            sent.offer(from, &mut rings[usize::from(from)], &[Readable(DATA, 80)]);
            let so_far = std::mem::take(&mut sent.served);
            sent.offer(to, &mut rings[usize::from(to)], &[Writable(DATA, 2000)]);
            received += std::mem::replace(&mut sent.served, so_far);
        }
    }
    assert_eq!((sent.served, received), (6 + 1 + 2, 6 + 1 + 2));
}

/// Requests that are under way together have been paid for, each of them.
#[test]
fn a_ring_lets_no_more_through_at_once() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let options = Options::new(&path).with_host_cache(HostCache::Bypassed);
    let bytes = Limits {
        bytes: Some(Rate {
            burst: 4 * 512,
            ..Rate::per_second(512)
        }),
        requests: None,
    };
    for limits in [requests(4), bytes] {
        let open = || Block::open(options.clone().with_limits(limits));
        match open() {
            Ok(block) if block.no_ring().is_none() => {}
            why => return lab_kit::skip::skip(&format!("no io_uring here: {why:?}")),
        }
        let mut disk = Limited::new(|| Box::new(open().unwrap()), Transport::Pci);
        let mut ring = disk.guest.start(u64::MAX, &[0]).remove(0);
        disk.guest.write(HEADER, &header(0, 5));
        let read = [
            Readable(HEADER, 16),
            Writable(DATA, 512),
            Writable(STATUS, 1),
        ];
        disk.offer(0, &mut ring, &read);
        // The ring is the host's, and its time is not ours.
        let come = |disk: &mut Limited, ring: &mut Ring, all: u64| {
            let begun = Instant::now();
            while disk.served < all && begun.elapsed().as_secs() < 60 {
                disk.guest.step();
                disk.served += u64::from(ring.take().is_some());
            }
            // All that were let in have ended by then.
            std::thread::sleep(Duration::from_millis(50));
            disk.guest.step();
            while ring.take().is_some() {
                disk.served += 1;
            }
            assert_eq!(disk.served, all);
        };
        come(&mut disk, &mut ring, 4);
        disk.pass(2);
        disk.guest.kick(0);
        come(&mut disk, &mut ring, 6);
    }
}
