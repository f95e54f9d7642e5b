// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card of another process, behind an IOMMU: frames that a driver in memory sends, from addresses that only the
//! IOMMU knows, come back unchanged.
//!
//! For a back end that sends everything back, such as DPDK's (Debian package `dpdk-dev`):
//!
//! ```console
//! # dpdk-testpmd --no-pci --no-huge -m 512 --vdev net_vhost0,iface=/tmp/card,iommu-support=1 -- \
//!       --forward-mode=io --port-topology=loop --auto-start --no-mlockall --total-num-mbufs=2048 --stats-period=60 &
//! # cargo run -p hvkit-virtio-devices --example card_behind_iommu --all-features -- /tmp/card
//! ```

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Tables, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::{Options, SharedMemory, VhostUser};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, Permissions};

/// What the device's addresses are above the guest's.
const AWAY: u64 = 0x12_0000_0000;
const PAGE: u64 = 0x1000;
const MEMORY: u64 = 64 << 20;
const RINGS: [u64; 2] = [0x10_0000, 0x20_0000];
const RECEIVE: u64 = 0x40_0000;
const SEND: u64 = 0x60_0000;
/// Of "struct virtio_net_hdr".
const HEADER: usize = 12;
const FRAMES: u64 = 256;
/// From one buffer to the next. A page lies between two: DPDK 22.11 forgets the neighbours of what is taken back, too, and drops a
/// frame rather than wait until it knows again.
const STRIDE: u64 = 2 * PAGE;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: card_behind_iommu SOCKET")?;
    let file = tempfile::tempfile()?;
    file.set_len(MEMORY)?;
    let range = (
        GuestAddress(0),
        MEMORY as usize,
        Some(FileOffset::new(file, 0)),
    );
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files([range])?);
    let options = Options::net(None, None).with_translations();
    let card = VhostUser::new(
        UnixStream::connect(path)?,
        options,
        SharedMemory::of(&*memory)?,
    )?;
    let space = card.address_space().ok_or("no translations")?;
    let view = Tables::before(&memory);
    let map = |address: u64, target: u64, access| {
        view.iommu().map(address, PAGE, target, access);
        space.map(address..address + PAGE, target, access)
    };
    // The queues where they are, but for the distance; a buffer where its neighbour would be.
    for ring in RINGS {
        for page in (ring..ring + 0x1_0000).step_by(PAGE as usize) {
            map(AWAY + page, page, Permissions::ReadWrite)?;
        }
    }
    let swapped = |page: u64| page ^ PAGE;
    for at in (0..FRAMES).map(|frame| frame * STRIDE) {
        // Writing would do, but DPDK takes no buffer that it may not read as well.
        map(
            AWAY + RECEIVE + at,
            swapped(RECEIVE + at),
            Permissions::ReadWrite,
        )?;
        map(AWAY + SEND + at, swapped(SEND + at), Permissions::Read)?;
    }

    let workers = ByHand::default();
    let runner = Box::new(workers.clone());
    let function = VirtioPci::new(
        Box::new(card),
        view.clone(),
        Arc::new(Vectors::default()),
        runner,
    )?;
    let mut driver = Driver::probe(function.with_access_platform());
    // VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM.
    driver.negotiate(1 << 32 | 1 << 33);
    let mut rings = (0..)
        .zip(RINGS)
        .map(|(queue, base)| driver.queue_behind(queue, &memory, base, 256, AWAY));
    let (Some(mut receive), Some(mut send)) = (rings.next(), rings.next()) else {
        return Err("two queues".into());
    };
    drop(rings);
    driver.set_status(0xf);

    let end = Instant::now() + Duration::from_secs(60);
    let frame = |number: u64| -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6, 0x88, 0xb5];
        frame.extend((0..100u64).map(|at| (number * 7 + at) as u8));
        frame
    };
    let mut back = 0;
    for number in 0..FRAMES {
        let at = number * STRIDE;
        receive.submit(&[Writable(AWAY + RECEIVE + at, PAGE as u32)]);
        driver.kick(0);
        let bytes = [vec![0; HEADER], frame(number)].concat();
        memory.write_slice(&bytes, GuestAddress(swapped(SEND + at)))?;
        send.submit(&[Readable(AWAY + SEND + at, bytes.len() as u32)]);
        driver.kick(1);
        let used = loop {
            workers.step(100);
            send.take();
            match receive.take() {
                Some(used) => break used,
                None if Instant::now() > end => {
                    return Err(format!("frame {number} did not come back; {back} did").into());
                }
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        let mut came = vec![0; used.length as usize];
        memory.read_slice(&mut came, GuestAddress(swapped(RECEIVE + at)))?;
        if came[HEADER..] != frame(number) {
            return Err(format!("frame {number} came back as {came:x?}").into());
        }
        back += 1;
        // Taken back, as a driver does it.
        for address in [AWAY + RECEIVE + at, AWAY + SEND + at] {
            view.iommu().unmap(address, PAGE);
            space.unmap(address..address + PAGE);
        }
    }
    println!(
        "{back} frames came back unchanged, by {FRAMES} mappings each way that were taken back"
    );
    Ok(())
}
