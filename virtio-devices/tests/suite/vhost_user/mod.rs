// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that another process serves: with rust-vmm's back end, with back ends that lie, and with one that dies.

mod again;
mod invalidated;
mod liar;
mod lost;
mod lost_card;
mod noted;
mod ours;
mod packed;
mod pairs;
mod peer;
mod raw;
mod ring_states;
mod served;
mod to_guest;
mod translated;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::{Ring, Used};
use hvkit_virtio_devices::vhost_user::{Options, SharedMemory, VhostUser, VhostUserError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::support::guest::{Guest, Memory, Transport};
use crate::support::{MIDDLE, header};

/// How long anything may take: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory as `support::memory` has it, in one file.
fn shared_memory() -> Memory {
    let half = MIDDLE as usize;
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * MIDDLE).unwrap();
    let part = |start| {
        let offset = FileOffset::new(file.try_clone().unwrap(), start);
        (GuestAddress(start), half, Some(offset))
    };
    let ranges = [part(0), part(MIDDLE)];
    Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap())
}

fn device(
    socket: UnixStream,
    options: Options,
    memory: &Memory,
) -> Result<VhostUser, VhostUserError> {
    VhostUser::new(socket, options, SharedMemory::of(&**memory).unwrap())
}

/// A guest with the device of `options` at `socket`.
fn guest(socket: UnixStream, options: Options) -> Guest {
    let memory = shared_memory();
    let device = device(socket, options, &memory).unwrap();
    Guest::in_memory(Box::new(device), Transport::Pci, memory)
}

/// Waits for `done`, with the workers going on.
fn until<T>(guest: &mut Guest, what: &str, mut done: impl FnMut(&mut Guest) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        guest.step();
        if let Some(done) = done(guest) {
            return done;
        }
        assert!(Instant::now() < end, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn taken(guest: &mut Guest, ring: &mut Ring) -> Used {
    until(guest, "answer", |_| ring.take())
}

const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const DATA: u64 = 0x9_0000;

/// Makes a request available: its status lies behind that of the one before.
fn submit(guest: &mut Guest, ring: &mut Ring, kind: u32, sector: u64, length: u32) -> u16 {
    use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
    guest.write(HEADER, &header(kind, sector));
    guest.write(STATUS, &[0xee]);
    let data = match kind {
        0 => Writable(DATA, length),
        _ => Readable(DATA, length),
    };
    ring.submit(&[Readable(HEADER, 16), data, Writable(STATUS, 1)])
}

/// One request after the other: its status.
fn request(guest: &mut Guest, ring: &mut Ring, kind: u32, sector: u64, length: u32) -> u8 {
    let head = submit(guest, ring, kind, sector, length);
    guest.kick(0);
    assert_eq!(taken(guest, ring).head, u32::from(head));
    guest.read(STATUS, 1)[0]
}
