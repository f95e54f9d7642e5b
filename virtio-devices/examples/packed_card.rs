// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card of another process, with packed queues: frames that a driver in memory sends come back unchanged, while the
//! device is paused and goes on in the middle of its rings.
//!
//! For a back end that sends everything back, such as DPDK's (Debian package `dpdk-dev`):
//!
//! ```console
//! # dpdk-testpmd --no-pci --no-huge -m 512 --vdev net_vhost0,iface=/tmp/card -- \
//!       --forward-mode=io --port-topology=loop --auto-start --no-mlockall --total-num-mbufs=2048 --stats-period=60 &
//! # cargo run -p hvkit-virtio-devices --example packed_card --all-features -- /tmp/card
//! ```

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Driver, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::vhost_user::{Options, SharedMemory, VhostUser};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 64 << 20;
const RINGS: [u64; 2] = [0x10_0000, 0x20_0000];
const RECEIVE: u64 = 0x40_0000;
const SEND: u64 = 0x60_0000;
/// Of "struct virtio_net_hdr".
const HEADER: usize = 12;
/// Three times around rings of 256.
const FRAMES: u64 = 800;
/// A frame is in two descriptors, so that the rings are not at the same place.
const PAUSE_EVERY: u64 = 37;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: packed_card SOCKET")?;
    let file = tempfile::tempfile()?;
    file.set_len(MEMORY)?;
    let whole = Some(FileOffset::new(file, 0));
    let range = (GuestAddress(0), MEMORY as usize, whole);
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files([range])?);
    let card = VhostUser::new(
        UnixStream::connect(path)?,
        Options::net(None, None).with_packed_rings(),
        SharedMemory::of(&*memory)?,
    )?;
    let workers = ByHand::default();
    let function = VirtioPci::new(
        Box::new(card),
        Arc::clone(&memory),
        Arc::new(Vectors::default()),
        Box::new(workers.clone()),
    )?
    .with_report(|why| eprintln!("the device has stopped: {why}"))
    .with_trouble_report(|why| eprintln!("the device has trouble: {why}"));
    let mut driver = Driver::probe(function);
    // VIRTIO_F_VERSION_1 and VIRTIO_F_RING_PACKED.
    let accepted = driver.negotiate_packed(1 << 32 | 1 << 34);
    println!("features {accepted:#x}");
    let mut receive = driver.queue_packed(0, &memory, RINGS[0], 256);
    let mut send = driver.queue_packed(1, &memory, RINGS[1], 256);
    driver.set_status(0xf);

    let end = Instant::now() + Duration::from_secs(60);
    let frame = |number: u64| -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6, 0x88, 0xb5];
        frame.extend((0..100u64).map(|at| (number * 7 + at) as u8));
        frame
    };
    let mut pauses = 0;
    for number in 0..FRAMES {
        receive.submit(&[Writable(RECEIVE, 0x1000)]);
        driver.kick(0);
        let sent = frame(number);
        memory.write_slice(&[0; HEADER], GuestAddress(SEND))?;
        memory.write_slice(&sent, GuestAddress(SEND + 0x100))?;
        send.submit(&[
            Readable(SEND, HEADER as u32),
            Readable(SEND + 0x100, sent.len() as u32),
        ]);
        driver.kick(1);
        let (mut came, mut gone) = (None, None);
        while came.is_none() || gone.is_none() {
            workers.step(100);
            came = came.or_else(|| receive.take());
            gone = gone.or_else(|| send.take());
            if Instant::now() > end {
                return Err(format!("frame {number}: came {came:?}, gone {gone:?}").into());
            }
            thread::sleep(Duration::from_micros(100));
        }
        let mut frame = vec![0; came.map_or(0, |used| used.length as usize)];
        memory.read_slice(&mut frame, GuestAddress(RECEIVE))?;
        if frame.get(HEADER..) != Some(&sent[..]) {
            return Err(format!("frame {number} came back as {frame:x?}").into());
        }
        if number % PAUSE_EVERY == PAUSE_EVERY - 1 {
            driver.function.pause();
            driver.function.resume();
            pauses += 1;
        }
    }
    println!(
        "{FRAMES} frames came back unchanged, by packed queues that were stopped {pauses} times"
    );
    Ok(())
}
