// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our own front end as the other machine: its disk is served by the program, from memory, doorbell and kick alone.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use hvkit_virtio_devices::vhost_user::Options;
use rustix::fs::SealFlags;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::program::{Program, WINDOW, memory_file};
use crate::support::guest::{Guest, Transport};
use crate::vhost_user::{DATA, STATUS, device, submit, taken};

/// Bytes of the other machine's memory.
const LENGTH: u64 = 0x10_0000;
const SECTORS: u64 = 64;
/// VERSION_1, and PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 30;

/// The other machine: writes and reads back, then ends.
fn other_machine(socket: &std::path::Path) -> Vec<u8> {
    let file = FileOffset::new(memory_file(LENGTH, SealFlags::SHRINK).into(), 0);
    let ranges = [(GuestAddress(0), LENGTH as usize, Some(file))];
    let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap());
    let stream = UnixStream::connect(socket).unwrap();
    let device = device(stream, Options::block(), &memory).unwrap();
    let mut guest = Guest::in_memory(Box::new(device), Transport::Pci, memory);
    assert_eq!(guest.config(0, 8), SECTORS);
    let mut rings = guest.start(u64::MAX, &[0]);
    for (kind, sector) in [(1, 5), (1, 6), (0, 5)] {
        guest.write(DATA, &[0x10 + sector as u8; 512]);
        let head = submit(&mut guest, &mut rings[0], kind, sector, 512);
        guest.kick(0);
        assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
        assert_eq!(guest.read(STATUS, 1)[0], 0);
    }
    assert!(guest.told.lock().unwrap().is_empty());
    guest.read(DATA, 512)
}

/// What the program was told of a queue.
#[derive(Default)]
struct Queue {
    size: u16,
    /// Descriptors, used ring, available ring.
    areas: [u64; 3],
    next: u16,
}

/// A back end of one queue, in raw words.
struct Disk {
    sectors: Vec<u8>,
    /// Where the other VMM has its guest's address 0.
    base: u64,
    queue: Queue,
    heard: BTreeMap<u32, usize>,
}

impl Disk {
    fn answer(&mut self, program: &mut Program, request: u32, flags: u32, payload: &[u8]) {
        *self.heard.entry(request).or_default() += 1;
        let word = |at: usize| u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap());
        let number = |value: u64| value.to_ne_bytes().to_vec();
        let answer = match request {
            1 => number(FEATURES),
            // REPLY_ACK and CONFIG, and what cannot be carried.
            15 => number(1 << 3 | 1 << 9 | 1 << 5 | 1 << 12),
            24 => {
                let mut answer = payload.to_vec();
                answer[12..20].copy_from_slice(&SECTORS.to_le_bytes());
                answer
            }
            11 => [0u32.to_ne_bytes(), u32::from(self.queue.next).to_ne_bytes()].concat(),
            _ => {
                match request {
                    5 => self.base = word(8 + 16),
                    8 => self.queue.size = (word(0) >> 32) as u16,
                    9 => self.queue.areas = [word(8), word(16), word(24)],
                    10 => self.queue.next = (word(0) >> 32) as u16,
                    _ => {}
                }
                if flags & 8 == 0 {
                    return;
                }
                number(0)
            }
        };
        program.answer(request, &answer);
    }

    /// Serves what is available.
    fn serve(&mut self, program: &mut Program) {
        let [table, used, available] = self.queue.areas.map(|at| at.wrapping_sub(self.base));
        let half = |at: u64| {
            let mut raw = [0; 2];
            program.read(at, &mut raw);
            u16::from_le_bytes(raw)
        };
        while half(available + 2) != self.queue.next {
            let slot = u64::from(self.queue.next % self.queue.size);
            let head = half(available + 4 + 2 * slot);
            let mut chain = Vec::new();
            let mut at = Some(head);
            while let Some(index) = at {
                let mut raw = [0; 16];
                program.read(table + 16 * u64::from(index), &mut raw);
                let word = u128::from_le_bytes(raw);
                chain.push((word as u64, (word >> 64) as u32));
                at = (word >> 96 & 1 != 0).then_some((word >> 112) as u16);
            }
            let [(header, 16), (data, 512), (status, 1)] = chain[..] else {
                panic!("{chain:x?}");
            };
            let mut head_words = [0; 16];
            program.read(header, &mut head_words);
            let sector = u64::from_le_bytes(head_words[8..].try_into().unwrap());
            let place = sector as usize * 512..(sector as usize + 1) * 512;
            let mut length = 1u32;
            if head_words[0] == 1 {
                program.read(data, &mut self.sectors[place]);
            } else {
                program.write(data, &self.sectors[place]);
                length += 512;
            }
            program.write(status, &[0]);
            let element = [u32::from(head).to_le_bytes(), length.to_le_bytes()].concat();
            program.write(used + 4 + 8 * slot, &element);
            self.queue.next = self.queue.next.wrapping_add(1);
            program.write(used + 2, &self.queue.next.to_le_bytes());
        }
        assert!(program.host.ring(WINDOW), "queue 0 has a doorbell");
    }
}

#[test]
fn a_disk_of_another_machine_is_served_by_a_program_in_this_guest() {
    let mut program = Program::ready();
    program.choose_vectors();
    let mut disk = Disk {
        sectors: vec![0; SECTORS as usize * 512],
        base: 0,
        queue: Queue::default(),
        heard: BTreeMap::new(),
    };
    // One after the other: the second finds what the first wrote.
    for round in 1..3 {
        let socket = program.socket.clone();
        let other = thread::spawn(move || other_machine(&socket));
        program.until("connection", |program| {
            (program.status() == 3).then_some(())
        });
        let mut kicked = 0;
        // Until the connection has ended and its last message was answered.
        program.until("end", |program| {
            while let Some((request, flags, payload)) = program.message() {
                disk.answer(program, request, flags, &payload);
            }
            // Notification 0 has vector 3.
            if program.vectors().contains(&3) && !program.host.doorbells().is_empty() {
                kicked += 1;
                disk.serve(program);
            }
            (program.status() == 0).then_some(())
        });
        assert_eq!(other.join().unwrap(), [0x15; 512]);
        assert!(kicked > 0);
        assert_eq!(disk.sectors[6 * 512..7 * 512], [0x16; 512]);
        // What needs further files was not settled, and so not asked for; each queue's events came once.
        for (request, times) in [(21, 0), (31, 0), (12, round), (13, round), (14, round)] {
            assert_eq!(
                disk.heard.get(&request).copied().unwrap_or(0),
                times,
                "{request}"
            );
        }
        program.want();
    }
}
