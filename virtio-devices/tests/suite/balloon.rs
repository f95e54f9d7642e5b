// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon, by the words of "Traditional Memory Balloon Device" (5.5).

use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::balloon::{Balloon, Control, Options, Round, Statistic};
use hvkit_virtio_devices::device::{Device, StateError};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::reclaim::{HostPages, Reclaim, ReclaimError};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::support::guest::{Guest, Memory, TRANSPORTS, Transport};
use crate::support::{END, MIDDLE};

/// Remembers what it is given, and refuses what is told.
#[derive(Clone, Default)]
struct Taken {
    ranges: Arc<Mutex<Vec<(u64, u64)>>>,
    full: bool,
}

impl Taken {
    fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.ranges.lock().unwrap())
    }
}

impl Reclaim for Taken {
    fn reclaim(&self, address: u64, length: u64) -> Result<(), ReclaimError> {
        if self.full {
            let source = std::io::Error::other("the host is full");
            return Err(ReclaimError::Host {
                address,
                length,
                source,
            });
        }
        self.ranges.lock().unwrap().push((address, length));
        Ok(())
    }
}

fn balloon(options: Options, transport: Transport) -> (Guest, Control, Taken) {
    let taken = Taken::default();
    let balloon = Balloon::new(options, Arc::new(taken.clone())).unwrap();
    let control = balloon.control();
    (Guest::new(Box::new(balloon), transport), control, taken)
}

/// Page numbers, as the driver writes them.
fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

#[test]
fn the_features_are_what_was_asked_for() {
    let offered = |options| balloon(options, Transport::Pci).0.offered() & 0xff_ffff;
    // STATS_VQ 1, DEFLATE_ON_OOM 2, PAGE_POISON 4, PAGE_REPORTING 5.
    assert_eq!(offered(Options::new()), 0b00_0010);
    assert_eq!(offered(Options::new().with_deflate_on_oom()), 0b00_0110);
    assert_eq!(
        offered(Options::new().with_free_page_reporting()),
        0b11_0010
    );
}

#[test]
fn the_target_is_told_and_the_driver_s_answer_heard() {
    for transport in TRANSPORTS {
        let (mut guest, control, _) = balloon(Options::new().with_target(0x1234), transport);
        guest.start(u64::MAX, &[0, 1, 2]);
        assert_eq!(guest.config(0, 4), 0x1234);
        guest.vectors.take();
        control.set_target(0x100);
        assert_eq!(guest.config(0, 8), 0x100);
        if transport == Transport::Pci {
            assert_eq!(guest.vectors.delivered(), [0], "the configuration's vector");
        }
        // The same again is no news.
        control.set_target(0x100);
        if transport == Transport::Pci {
            assert!(guest.vectors.delivered().is_empty());
        }
        guest.set_config(4, &0xffu32.to_le_bytes());
        assert_eq!((control.actual(), control.target()), (0xff, 0x100));
        // Byte by byte as well, and `num_pages` is not the driver's.
        guest.set_config(5, &[1]);
        guest.set_config(0, &[9, 9, 9, 9]);
        assert_eq!((control.actual(), control.target()), (0x1ff, 0x100));
        assert_eq!(guest.set_status(0), 0);
        assert_eq!(control.actual(), 0);
    }
}

#[test]
fn pages_go_in_runs_and_each_once() {
    for transport in TRANSPORTS {
        let (mut guest, _, taken) = balloon(Options::new(), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1]);
        guest.write(0x8000, &numbers(&[9, 7, 8, 0x20, 7]));
        guest.write(0x9000, &numbers(&[u32::MAX, 1]));
        // A chain that is cut inside a number.
        rings[0].submit(&[Readable(0x8000, 6), Readable(0x8006, 14)]);
        rings[0].submit(&[Readable(0x9000, 8)]);
        guest.run(0);
        assert_eq!(
            taken.take(),
            [
                (0x7000, 0x3000),
                (0x2_0000, 0x1000),
                (0x1000, 0x1000),
                (0xfff_ffff_f000, 0x1000)
            ]
        );
        assert_eq!(rings[0].take().unwrap().length, 0);
        assert_eq!(rings[0].take().unwrap().length, 0);
        // Deflating takes nothing.
        rings[1].submit(&[Readable(0x8000, 20)]);
        guest.run(1);
        assert!(rings[1].take().is_some());
        assert!(taken.take().is_empty());
    }
}

#[test]
fn a_chain_gives_no_more_than_its_share() {
    let (mut guest, _, taken) = balloon(Options::new(), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0, 1]);
    // 64 KiB of page numbers are taken from one chain: here all of them 0, and the rest is left.
    rings[0].submit(&[Readable(0x10_0000, 0x8_0000)]);
    // One whose numbers are not in memory.
    rings[0].submit(&[Readable(END, 4)]);
    guest.run(0);
    assert_eq!(taken.take(), vec![(0, 0x1000); 64]);
    assert!(rings[0].take().is_some() && rings[0].take().is_some());
}

#[test]
fn a_host_that_refuses_is_told_of() {
    let taken = Taken {
        full: true,
        ..Taken::default()
    };
    let balloon = Balloon::new(Options::new(), Arc::new(taken)).unwrap();
    let counters = balloon.counters()[0].clone();
    let mut guest = Guest::new(Box::new(balloon), Transport::Mmio);
    let mut rings = guest.start(u64::MAX, &[0, 1]);
    guest.write(0x8000, &numbers(&[3]));
    rings[0].submit(&[Readable(0x8000, 4)]);
    guest.run(0);
    assert!(rings[0].take().is_some());
    let told = guest.told.lock().unwrap().join("");
    assert!(told.contains("did not take 0x3000+0x1000 back"), "{told}");
    let counts = counters.read();
    assert_eq!((counts.chains, counts.bytes, counts.errors), (1, 0, 1));
}

/// "struct virtio_balloon_stat": tag:16, value:64, without a gap.
fn statistics(entries: &[(u16, u64)]) -> Vec<u8> {
    let entry =
        |&(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    entries.iter().flat_map(entry).collect()
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    for transport in TRANSPORTS {
        let (mut guest, control, _) = balloon(Options::new(), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1, 2]);
        let first = statistics(&[(4, 1 << 20), (5, 1 << 30), (0x77, 5)]);
        guest.write(0x8000, &first);
        rings[2].submit(&[Readable(0x8000, first.len() as u32)]);
        guest.run(2);
        let told = control.statistics();
        assert_eq!(told.answers, 1);
        assert_eq!(told.values[&Statistic::FREE], 1 << 20);
        assert_eq!(told.values[&Statistic::TOTAL], 1 << 30);
        // A kind that nobody knows yet.
        assert_eq!(told.values[&Statistic(0x77)], 5);
        // The buffer is kept until then.
        guest.run(2);
        assert_eq!(rings[2].take(), None);
        control.ask_statistics().unwrap();
        guest.step();
        assert_eq!(rings[2].take().unwrap().length, 0);
        assert_eq!(control.statistics().answers, 1);
        let second = statistics(&[(4, 7)]);
        guest.write(0x8000, &second);
        rings[2].submit(&[Readable(0x8000, second.len() as u32)]);
        guest.run(2);
        let told = control.statistics();
        assert_eq!((told.answers, told.values[&Statistic::FREE]), (2, 7));
        assert_eq!(told.values.len(), 1);
        guest.set_status(0);
        assert_eq!(control.statistics().answers, 0);
    }
}

#[test]
fn free_pages_are_taken_whole_from_either_queue() {
    // The specification's number, and that of a driver that counts only what it uses.
    for queue in [4, 3] {
        let options = Options::new().with_free_page_reporting();
        let (mut guest, _, taken) = balloon(options, Transport::Pci);
        let mut rings = guest.start(u64::MAX, &[0, 1, 2, queue]);
        rings[3].submit(&[
            Writable(0x10_0000, 0x4000),
            Writable(0x18_0800, 0x1800),
            Writable(0x1a_0001, 0xffe),
        ]);
        guest.run(queue);
        assert_eq!(rings[3].take().unwrap().length, 0);
        assert_eq!(taken.take(), [(0x10_0000, 0x4000), (0x18_1000, 0x1000)]);
        // `poison_val`: the guest wants to find its free pages as it filled them.
        guest.set_config(12, &0xaau32.to_le_bytes());
        rings[3].submit(&[Writable(0x10_0000, 0x4000)]);
        guest.run(queue);
        assert!(rings[3].take().is_some());
        assert!(taken.take().is_empty());
    }
}

#[test]
fn host_pages_are_zero_afterwards_and_no_other_is() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let file = FileOffset::new(file, 0);
    let backing = [None, Some(file)];
    for file in backing {
        let ranges = [
            (GuestAddress(0), 1 << 20, None),
            (GuestAddress(MIDDLE), 1 << 20, file),
        ];
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap());
        memory
            .write_slice(&vec![0x5a; 2 << 20], GuestAddress(0))
            .unwrap();
        let pages = HostPages::new(Arc::clone(&memory));
        // Over the border between two regions.
        pages.reclaim(MIDDLE - 0x1000, 0x3000).unwrap();
        let mut data = vec![0; 2 << 20];
        memory.read_slice(&mut data, GuestAddress(0)).unwrap();
        let at = MIDDLE as usize;
        assert!(data[at - 0x1000..at + 0x2000].iter().all(|&byte| byte == 0));
        assert!(data[..at - 0x1000].iter().all(|&byte| byte == 0x5a));
        assert!(data[at + 0x2000..].iter().all(|&byte| byte == 0x5a));
        for (address, length) in [(END, 0x1000), (END - 0x1000, 0x2000), (!0xfff, 0x1000)] {
            let error = pages.reclaim(address, length).unwrap_err();
            assert!(matches!(error, ReclaimError::NotMemory { .. }), "{error}");
        }
        // Nothing of a range that is not all memory.
        let mut last = [0; 1];
        memory.read_slice(&mut last, GuestAddress(END - 1)).unwrap();
        assert_eq!(last, [0x5a]);
    }
}

/// "free_page_hint_cmd_id" (5.5.4) and the words of "Free Page Hinting" (5.5.6.6): 0 is STOP, 1 is DONE.
#[test]
fn hints_are_asked_for_and_listed() {
    for transport in TRANSPORTS {
        // The queue by its number, and by that of a driver that counts only what it uses.
        for queues in [&[0, 1, 2, 3, 4][..], &[0, 1, 2, 3], &[0, 1, 2, 4]] {
            let options = Options::new().with_free_page_hints();
            let options = match queues.len() {
                5 => options.with_free_page_reporting(),
                _ => options,
            };
            let (mut guest, control, taken) = balloon(options, transport);
            assert_eq!(guest.offered() & 0b1000, 0b1000);
            let mut rings = guest.start(u64::MAX, queues);
            let queue = queues[3];
            let ring = &mut rings[3];
            let command = |guest: &mut Guest| guest.config(8, 4) as u32;
            assert_eq!(command(&mut guest), 0);
            guest.vectors.take();
            // Nobody has asked.
            ring.submit(&[Writable(0x10_0000, 0x4000)]);
            guest.run(queue);
            assert_eq!(control.hints().round, Round::Idle);
            control.ask_hints();
            let id = command(&mut guest);
            assert!(id > 1);
            if transport == Transport::Pci {
                assert!(guest.vectors.delivered().contains(&0));
            }
            // Another identifier than ours is no answer.
            guest.write(0x8000, &numbers(&[id + 1, id, 0]));
            ring.submit(&[Readable(0x8000, 4)]);
            ring.submit(&[Writable(0x10_0000, 0x4000)]);
            guest.run(queue);
            assert_eq!(control.hints().round, Round::Asked);
            assert_eq!(control.hints().bytes(), 0);
            ring.submit(&[Readable(0x8004, 4)]);
            ring.submit(&[Writable(0x10_0000, 0x4000)]);
            ring.submit(&[Writable(0x10_4000, 0x1000), Writable(0x18_0800, 0x1800)]);
            guest.run(queue);
            assert_eq!(control.hints().round, Round::Begun);
            ring.submit(&[Readable(0x8008, 4)]);
            ring.submit(&[Writable(0x1c_0000, 0x1000)]);
            guest.run(queue);
            let hints = control.hints();
            assert_eq!(hints.round, Round::Complete);
            let expected = [(0x10_0000, 0x5000), (0x18_1000, 0x1000)];
            assert_eq!(hints.ranges.into_iter().collect::<Vec<_>>(), expected);
            // Hints take nothing from the guest.
            assert!(taken.take().is_empty());
            control.end_hints();
            assert_eq!(command(&mut guest), 1);
            assert_eq!(control.hints().bytes(), 0x6000);
            control.ask_hints();
            assert_ne!(command(&mut guest), id);
            assert_eq!(control.hints().bytes(), 0);
            assert_eq!(guest.set_status(0), 0);
            assert_eq!(command(&mut guest), 0);
            assert_eq!(control.hints().round, Round::Idle);
        }
    }
}

#[test]
fn a_round_of_hints_ends_with_a_move() {
    let (mut guest, control, _) = balloon(Options::new().with_free_page_hints(), Transport::Pci);
    guest.start(u64::MAX, &[0, 1, 2, 3]);
    control.ask_hints();
    // As the device saves it: "struct virtio_balloon_config".
    let state = numbers(&[0, 0, guest.config(8, 4) as u32, 0]);
    let options = Options::new().with_free_page_hints();
    let mut balloon = Balloon::new(options, Arc::new(Taken::default())).unwrap();
    assert!(Device::<Memory>::restore(&mut balloon, &state[1..]).is_err());
    Device::<Memory>::restore(&mut balloon, &state).unwrap();
    let mut other = Guest::new(Box::new(balloon), Transport::Pci);
    assert_eq!(other.config(8, 4), 1, "DONE");
    other.start(u64::MAX, &[0, 1, 2, 3]);
    assert!(other.vectors.delivered().contains(&0), "the driver is told");
}

/// A driver that remembers which identifier it has answered to does not answer to that again.
#[test]
fn a_round_after_a_move_is_not_the_one_before_it() {
    let options = Options::new().with_free_page_hints();
    for rounds in 1..4 {
        for ended in [true, false] {
            let old = Balloon::new(options, Arc::new(Taken::default())).unwrap();
            let mut ids = Vec::new();
            let id = |balloon: &Balloon| {
                let mut raw = [0; 4];
                Device::<Memory>::config_read(balloon, 8, &mut raw);
                u32::from_le_bytes(raw)
            };
            for _ in 0..rounds {
                old.control().ask_hints();
                ids.push(id(&old));
            }
            if ended {
                old.control().end_hints();
            }
            let state = Device::<Memory>::save(&old).unwrap();
            // "struct virtio_balloon_config", and the last identifier.
            let last = *ids.last().unwrap();
            let command = if ended { 1 } else { last };
            assert_eq!(state, numbers(&[0, 0, command, 0, last]));
            let mut new = Balloon::new(options, Arc::new(Taken::default())).unwrap();
            for wrong in [&state[..19], &state[..17], &state[..15], &[]] {
                let error = Device::<Memory>::restore(&mut new, wrong).unwrap_err();
                let (saved, expected) = (wrong.len(), 20);
                assert_eq!(error, StateError::Length { saved, expected });
            }
            Device::<Memory>::restore(&mut new, &state).unwrap();
            assert_eq!(id(&new), 1, "DONE");
            new.control().ask_hints();
            assert!(id(&new) > 1 && !ids.contains(&id(&new)), "{ids:?}");
        }
    }
    // After the last of all identifiers comes the first: neither STOP nor DONE.
    let mut new = Balloon::new(options, Arc::new(Taken::default())).unwrap();
    Device::<Memory>::restore(&mut new, &numbers(&[0, 0, 1, 0, u32::MAX])).unwrap();
    new.control().ask_hints();
    let mut raw = [0; 4];
    Device::<Memory>::config_read(&new, 8, &mut raw);
    assert_eq!(u32::from_le_bytes(raw), 2);
}

/// "The device MUST ignore pages that are provided with a command ID that does not match the current value in
/// free_page_hint_cmd_id" (5.5.6.6.2): after the end of a round that is DONE, or whatever is asked next.
#[test]
fn pages_that_come_after_the_end_of_a_round_are_ignored() {
    for transport in TRANSPORTS {
        let (mut guest, control, _) = balloon(Options::new().with_free_page_hints(), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1, 2, 3]);
        let ring = &mut rings[3];
        // Before it has begun: there is nothing to complete.
        control.ask_hints();
        let id = guest.config(8, 4) as u32;
        control.end_hints();
        assert_eq!(control.hints().round, Round::Idle);
        guest.write(0x8000, &numbers(&[id, id + 1, 0]));
        ring.submit(&[Readable(0x8000, 4)]);
        ring.submit(&[Writable(0x10_0000, 0x1000)]);
        guest.run(3);
        assert_eq!(control.hints().bytes(), 0);

        control.ask_hints();
        assert_eq!(guest.config(8, 4) as u32, id + 1);
        ring.submit(&[Readable(0x8004, 4)]);
        ring.submit(&[Writable(0x10_0000, 0x1000)]);
        guest.run(3);
        control.end_hints();
        // What the driver had queued when it read DONE.
        ring.submit(&[Writable(0x20_0000, 0x1000)]);
        ring.submit(&[Readable(0x8008, 4)]);
        guest.run(3);
        let hints = control.hints();
        assert_eq!(hints.round, Round::Complete);
        assert_eq!(
            hints.ranges.into_iter().collect::<Vec<_>>(),
            [(0x10_0000, 0x1000)]
        );
    }
}
