// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When writes are put on stable storage by a disk that is served to another VMM, whose front end here is rust-vmm's.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::fake::Ring;
use crate::vhost_user::BackEnd;
use crate::worker::Threads;

/// VHOST_USER_F_PROTOCOL_FEATURES and VIRTIO_F_VERSION_1.
const USUAL: u64 = 1 << 30 | 1 << 32;
const SIZE: u16 = 16;
const PATIENCE: Duration = Duration::from_secs(60);

struct Served {
    front: Frontend,
    memory: Arc<GuestMemoryMmap<()>>,
    ring: Ring,
    kick: EventFd,
    ledger: Ledger,
}

impl Served {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let range = (GuestAddress(0), 1 << 20, Some(FileOffset::new(file, 0)));
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
        let ledger = Ledger::default();
        let image = Image::of(Box::new(ledger.clone()), 64);
        let block = Box::new(Block::over(image, Options::new("ledger")));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let threads =
            Threads::new(|name, body| thread::Builder::new().name(name).spawn(body).map(drop));
        let served = BackEnd::new(theirs, block, Box::new(threads), |_| ()).unwrap();
        thread::spawn(|| served.run());
        let mut front = Frontend::from_stream(ours, 1);
        front.get_features().unwrap();
        front.set_owner().unwrap();
        front.get_protocol_features().unwrap();
        let protocol = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        let ring = Ring::new(memory.clone(), 0x1000, SIZE);
        Self {
            front,
            memory,
            ring,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            ledger,
        }
    }

    fn set_memory(&self) {
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.front.set_mem_table(&[region]).unwrap();
    }

    fn start(&mut self, base: u16) {
        let host = |address| {
            let host = self.memory.get_host_address(GuestAddress(address));
            host.unwrap() as u64
        };
        let place = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(self.ring.table),
            used_ring_addr: host(self.ring.used),
            avail_ring_addr: host(self.ring.available),
            log_addr: None,
        };
        self.front.set_vring_num(0, SIZE).unwrap();
        self.front.set_vring_base(0, base).unwrap();
        self.front.set_vring_addr(0, &place).unwrap();
        self.front.set_vring_kick(0, &self.kick).unwrap();
        self.front.set_vring_enable(0, true).unwrap();
    }

    /// `writeback`, at 0x20 (5.2.4).
    fn writeback(&mut self) -> u8 {
        let none = VhostUserConfigFlags::empty();
        self.front.get_config(0x20, 1, none, &[0xee]).unwrap().1[0]
    }

    fn choose(&mut self, writeback: u8) {
        let writable = VhostUserConfigFlags::WRITABLE;
        self.front.set_config(0x20, writable, &[writeback]).unwrap();
    }

    /// Writes a sector: what that came to.
    fn write(&mut self) -> Vec<Done> {
        self.ledger.0.lock().unwrap().clear();
        // VIRTIO_BLK_T_OUT.
        let head = 1u128.to_le_bytes();
        self.memory
            .write_slice(&head, GuestAddress(HEADER))
            .unwrap();
        let data = Readable(DATA, 512);
        self.ring
            .submit(&[Readable(HEADER, 16), data, Writable(STATUS, 1)]);
        self.kick.write(1).unwrap();
        let end = Instant::now() + PATIENCE;
        while self.ring.take().is_none() {
            assert!(Instant::now() < end, "no answer");
            thread::sleep(Duration::from_millis(1));
        }
        self.ledger.0.lock().unwrap().clone()
    }
}

/// What the driver has chosen holds until it chooses anew: a VMM that stops its queues for a while has reset nothing.
#[test]
fn a_driver_of_another_vmm_chooses_and_that_stays() {
    use Done::{Flushed, Written};
    let mut disk = Served::new();
    let all = USUAL | FLUSH | CONFIG_WCE;
    disk.front.set_features(all).unwrap();
    disk.set_memory();
    assert_eq!(disk.writeback(), 1);
    // While no queue runs, and while one does.
    disk.choose(0);
    assert_eq!(disk.writeback(), 0);
    disk.start(0);
    assert_eq!(
        (disk.writeback(), disk.write()),
        (0, vec![Written, Flushed])
    );
    disk.choose(1);
    assert_eq!((disk.writeback(), disk.write()), (1, vec![Written]));
    disk.choose(0);
    let stops: [fn(&mut Served); 5] = [
        |disk| disk.set_memory(),
        |disk| {
            disk.front.set_vring_enable(0, false).unwrap();
            disk.front.set_vring_enable(0, true).unwrap();
        },
        |disk| {
            let base = disk.front.get_vring_base(0).unwrap();
            disk.start(base as u16);
        },
        |disk| disk.front.set_features(USUAL | FLUSH | CONFIG_WCE).unwrap(),
        // Another driver came between, which a VMM that has kept the field says nothing of.
        |disk| {
            disk.front.set_features(USUAL | FLUSH).unwrap();
            assert_eq!(disk.write(), [Written]);
            disk.front.set_features(USUAL | FLUSH | CONFIG_WCE).unwrap();
        },
    ];
    for (stop, number) in stops.into_iter().zip(0..) {
        stop(&mut disk);
        assert_eq!(disk.writeback(), 0, "{number}");
        assert_eq!(disk.write(), [Written, Flushed], "{number}");
    }
    // Who cannot flush begins without a cache (5.2.5.2), and may choose one.
    disk.choose(1);
    disk.front.set_features(USUAL | CONFIG_WCE).unwrap();
    assert_eq!(
        (disk.writeback(), disk.write()),
        (0, vec![Written, Flushed])
    );
}
