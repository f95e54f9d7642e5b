// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk and an entropy device on one thread, beside whatever else an event loop watches.
//!
//! ```console
//! # cargo run -p hvkit-virtio-devices --example event_loop --features fake
//! ```
//!
//! `runner.rs` is what a VMM takes over; here, a driver in memory stands for the guest.

mod runner;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use event_manager::EventManager;
use hvkit_virtio_devices::block::{self, Block};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use hvkit_virtio_devices::fake::{Driver, Ring, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use runner::{EventLoop, Member};

type Memory = Arc<GuestMemoryMmap>;
type Guest = Driver<VirtioPci<Memory>>;

/// "Feature Bits": VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// "Device Operation" of block devices: VIRTIO_BLK_T_OUT, and the status VIRTIO_BLK_S_OK.
const OUT: u64 = 1;
const OK: u8 = 0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut manager = EventManager::<Member>::new()?;
    let on_loop = EventLoop::new(manager.remote_endpoint());
    let (endpoint, over) = (manager.remote_endpoint(), Arc::new(AtomicBool::new(false)));
    let theirs = Arc::clone(&over);
    let running = thread::spawn(move || {
        while !theirs.load(Ordering::Acquire) {
            manager.run()?;
        }
        Ok::<_, event_manager::Error>(())
    });

    let ranges = [(GuestAddress(0), 1 << 20)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges)?);
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;
    let disk = Block::open(block::Options::new(image.path()))?;
    let (mut disk, mut disk_queue) = begin(Box::new(disk), &memory, &on_loop, 0x1_0000)?;
    let entropy = Box::new(Entropy::of_host()?);
    let (mut entropy, mut entropy_queue) = begin(entropy, &memory, &on_loop, 0x2_0000)?;

    // One request of each, under way together: sector 5 is written, 16 random bytes are read.
    memory.write_obj(OUT, GuestAddress(0x4000))?;
    memory.write_obj(5u64, GuestAddress(0x4008))?;
    memory.write_slice(&[0xab; 512], GuestAddress(0x5000))?;
    let write = [
        Readable(0x4000, 16),
        Readable(0x5000, 512),
        Writable(0x6000, 1),
    ];
    ask(&mut disk, &mut disk_queue, &write);
    ask(&mut entropy, &mut entropy_queue, &[Writable(0x7000, 16)]);
    let written = answered(&mut disk_queue)?;
    let random = answered(&mut entropy_queue)?;
    let status: u8 = memory.read_obj(GuestAddress(0x6000))?;
    let sector = std::fs::read(image.path())?;
    if status != OK || sector.get(5 * 512..6 * 512) != Some(&[0xab; 512]) {
        return Err(format!("the disk's status is {status}").into());
    }
    println!("disk: {written} byte of status, the sector is written");
    println!("entropy: {random} bytes");

    // A driver that resets its device has the worker back from the loop.
    disk.set_status(0);
    entropy.set_status(0);
    over.store(true, Ordering::Release);
    endpoint.kick()?;
    running.join().map_err(|_| "the loop has panicked")??;
    println!("both were reset, and the loop has ended");
    Ok(())
}

/// A driver of `device`, whose worker is on the loop, and its queue at `base`.
fn begin(
    device: Box<dyn Device<Memory>>,
    memory: &Memory,
    on_loop: &EventLoop,
    base: u64,
) -> Result<(Guest, Ring), Box<dyn Error>> {
    let told = Arc::new(Vectors::default());
    let function = VirtioPci::new(device, memory.clone(), told, Box::new(on_loop.clone()))?;
    let mut driver = Driver::probe(function);
    driver.negotiate(VERSION_1);
    let queue = driver.queue(0, memory, base, 16);
    driver.set_status(0xf);
    Ok((driver, queue))
}

fn ask(driver: &mut Guest, queue: &mut Ring, request: &[Buffer]) {
    queue.submit(request);
    driver.kick(0);
}

/// Bytes that the device has written.
fn answered(queue: &mut Ring) -> Result<u32, Box<dyn Error>> {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if let Some(used) = queue.take() {
            return Ok(used.length);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err("no answer in ten seconds".into())
}
