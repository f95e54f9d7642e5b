// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A whole device behind an IOMMU: vm-memory's own seam, by which any emulated unit can be put in front of it.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Tables, Vectors};
use hvkit_virtio_devices::net::{MacAddress, Net, Options, Wire};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, Permissions};

/// What the device's addresses are above the guest's.
const AWAY: u64 = 0x1_0000_0000;

#[test]
fn a_device_sees_what_the_unit_lets_it_see() {
    let memory = crate::support::memory();
    let view = Tables::before(&memory);
    let map = |page: u64, to: u64, access| view.iommu().map(AWAY + page, 0x1000, to, access);
    // The ring, page by page; a buffer in two pages that are not neighbours; one that may not be written.
    for page in (0x1000..0x4000).step_by(0x1000) {
        map(page, page, Permissions::ReadWrite);
    }
    map(0x8000, 0x2_0000, Permissions::Write);
    map(0x9000, 0x3_0000, Permissions::Write);
    map(0xa000, 0x4_0000, Permissions::Read);
    let workers = ByHand::default();
    let vectors = Arc::new(Vectors::default());
    let entropy = Box::new(Entropy::new(std::io::repeat(7)));
    let runner = Box::new(workers.clone());
    let function = VirtioPci::new(entropy, Arc::clone(&view), vectors, runner).unwrap();
    let mut driver = Driver::probe(function.with_access_platform());
    // A driver that has not heard of the unit cannot use the device.
    driver.set_status(3);
    driver.accept(1 << 32);
    assert_eq!(driver.set_status(0xb), 3);

    assert_ne!(driver.negotiate(u64::MAX) & 1 << 33, 0);
    let mut ring = driver.queue_behind(0, &memory, 0x1000, 16, AWAY);
    assert_eq!(driver.set_status(0xf), 0xf);

    let mut fill = |buffer| {
        ring.submit(&[buffer]);
        driver.kick(0);
        workers.step(10);
        ring.take().expect("the chain was used").length
    };
    let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
    assert_eq!(fill(Writable(AWAY + 0x8ff8, 16)), 16);
    assert_eq!(read(0x2_0ff8), 0x0707_0707_0707_0707);
    assert_eq!(read(0x3_0000), 0x0707_0707_0707_0707);
    // Reading only; not at all; the guest's own address, which is none of the device's.
    assert_eq!(fill(Writable(AWAY + 0xa000, 8)), 0);
    assert_eq!(fill(Writable(AWAY + 0xb000, 8)), 0);
    assert_eq!(fill(Writable(0x5_0000, 8)), 0);
    assert_eq!((read(0x4_0000), read(0x5_0000)), (0, 0));

    // A translation that is taken away between two chains is not used again.
    view.iommu().unmap(AWAY + 0x8000, 0x1000);
    memory.write_obj(0u64, GuestAddress(0x2_0000)).unwrap();
    assert_eq!(fill(Writable(AWAY + 0x8000, 8)), 0);
    assert_eq!(read(0x2_0000), 0);
    assert_eq!(driver.status() & 0x40, 0);
}

/// Linux maps what a device is to write so that it cannot read it. A card looks at what it has put there all the same: at the beginning of a
/// frame, to filter, and at a frame that it gives to larger chains.
#[test]
fn a_card_looks_at_frames_that_it_may_only_write() {
    const OWN: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const HEADER: u64 = 12;
    for merging in [0, 1u64 << 15] {
        let memory = crate::support::memory();
        let view = Tables::before(&memory);
        let map = |page: u64, access| view.iommu().map(AWAY + page, 0x1000, page, access);
        for page in (0x1000..0xd000).step_by(0x1000) {
            map(page, Permissions::ReadWrite);
        }
        let (wire, end) = UnixDatagram::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        let options = Options::new().with_mac(MacAddress(OWN)).unwrap();
        let net = Box::new(Net::new(options, Wire::Frames(wire.into())));
        let workers = ByHand::default();
        let runner = Box::new(workers.clone());
        let vectors = Arc::new(Vectors::default());
        let function = VirtioPci::new(net, Arc::clone(&view), vectors, runner).unwrap();
        let mut driver = Driver::probe(function.with_access_platform());
        // VIRTIO_NET_F_MAC, MRG_RXBUF, CTRL_VQ, CTRL_RX; VERSION_1, ACCESS_PLATFORM.
        let wanted = 1 << 5 | merging | 3 << 17 | 3 << 32;
        assert_eq!(driver.negotiate(wanted), wanted);
        let mut queues = [0u16, 1, 2].map(|queue| {
            let base = 0x1000 + 0x4000 * u64::from(queue);
            driver.queue_behind(queue, &memory, base, 16, AWAY)
        });
        assert_eq!(driver.set_status(0xf), 0xf);
        // The command PROMISC, off: from now on the card filters.
        map(0x2_0000, Permissions::ReadWrite);
        memory
            .write_slice(&[0, 0, 0], GuestAddress(0x2_0000))
            .unwrap();
        let command = [Readable(AWAY + 0x2_0000, 3), Writable(AWAY + 0x2_0010, 1)];
        queues[2].submit(&command);
        driver.kick(2);
        workers.step(10);
        assert_eq!(queues[2].take().expect("obeyed").length, 1);

        let frame = |to: [u8; 6], length: usize| {
            let mut frame = vec![0; HEADER as usize];
            frame.extend(to);
            frame.extend((0..length - 6).map(|at| at as u8));
            end.send(&frame).unwrap();
            frame.split_off(HEADER as usize)
        };
        // One for another's address, then one that is its own.
        map(0x3_0000, Permissions::Write);
        queues[0].submit(&[Writable(AWAY + 0x3_0000, 0x1000)]);
        driver.kick(0);
        frame([0x52, 0x54, 0, 9, 9, 9], 100);
        let own = frame(OWN, 60);
        workers.step(10);
        let used = queues[0].take().expect("its own frame came");
        assert_eq!(u64::from(used.length), HEADER + 60, "another's came");
        let mut came = vec![0; 60];
        memory
            .read_slice(&mut came, GuestAddress(0x3_0000 + HEADER))
            .unwrap();
        assert_eq!(came, own);

        if merging != 0 {
            // There is room for half of it at first: the card keeps all of it until there is more.
            map(0x4_0000, Permissions::Write);
            map(0x5_0000, Permissions::Write);
            queues[0].submit(&[Writable(AWAY + 0x4_0000, 0x800)]);
            driver.kick(0);
            let long = frame(OWN, 3000);
            workers.step(10);
            assert_eq!(queues[0].take(), None);
            queues[0].submit(&[Writable(AWAY + 0x5_0000, 0x800)]);
            driver.kick(0);
            workers.step(10);
            let used = [queues[0].take(), queues[0].take()];
            let lengths = used.map(|used| used.expect("the frame came").length);
            assert_eq!(lengths, [0x800, 3012 - 0x800]);
            let mut came = vec![0; 0x1000];
            let (first, second) = came.split_at_mut(0x800);
            memory.read_slice(first, GuestAddress(0x4_0000)).unwrap();
            memory.read_slice(second, GuestAddress(0x5_0000)).unwrap();
            assert_eq!(came[12..3012], long);
        }
        assert_eq!(view.iommu().take_faults(), []);
    }
}
