// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk served by rust-vmm's `vhost-user-backend` and `virtio-queue`, which share no code with us.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

type Guest = GuestMemoryAtomic<GuestMemoryMmap>;

/// What the disk is, and what became of it.
pub(crate) struct Disk {
    pub(crate) sectors: Mutex<Vec<u8>>,
    pub(crate) features: u64,
    pub(crate) protocol: VhostUserProtocolFeatures,
    /// Requests that are taken and never answered.
    pub(crate) ignored: Mutex<usize>,
    pub(crate) acked: Mutex<u64>,
    pub(crate) config: Mutex<Vec<u8>>,
    memory: Mutex<Option<Guest>>,
    /// Held while a queue is served. The threads of `vhost-user-backend` that serve queues outlive the connection, and
    /// those of a process that has died do not.
    alive: Mutex<bool>,
}

impl Disk {
    pub(crate) fn new(data: Vec<u8>) -> Self {
        let mut config = vec![0; 0x3c];
        config[..8].copy_from_slice(&(data.len() as u64 / 512).to_le_bytes());
        config[0x14..0x18].copy_from_slice(&512u32.to_le_bytes());
        config[0x22..0x24].copy_from_slice(&9u16.to_le_bytes());
        Self {
            sectors: Mutex::new(data),
            // SEG_MAX, CONFIG_WCE, MQ; INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1, PACKED.
            features: 1 << 2 | 1 << 11 | 1 << 12 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32 | 1 << 34,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::REPLY_ACK,
            ignored: Mutex::new(0),
            acked: Mutex::new(0),
            config: Mutex::new(config),
            memory: Mutex::default(),
            alive: Mutex::new(true),
        }
    }

    /// One request: header, data, status.
    fn serve(
        &self,
        memory: &GuestMemoryMmap,
        chain: &[virtio_queue::desc::split::Descriptor],
    ) -> u32 {
        let header: [u8; 16] = memory.read_obj(chain[0].addr()).unwrap();
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let (status, data) = chain[1..].split_last().unwrap();
        let mut at = sector as usize * 512;
        let mut sectors = self.sectors.lock().unwrap();
        let mut written = 1;
        for piece in data {
            let length = piece.len() as usize;
            let part = &mut sectors[at..at + length];
            match kind {
                0 => {
                    memory.write_slice(part, piece.addr()).unwrap();
                    written += piece.len();
                }
                _ => memory.read_slice(part, piece.addr()).unwrap(),
            }
            at += length;
        }
        memory.write_obj(0u8, status.addr()).unwrap();
        written
    }
}

impl VhostUserBackend for Disk {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        4
    }
    fn max_queue_size(&self) -> usize {
        256
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn acked_features(&self, features: u64) {
        *self.acked.lock().unwrap() = features;
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }
    fn set_event_idx(&self, _enabled: bool) {}
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.config.lock().unwrap();
        let (offset, size) = (offset as usize, size as usize);
        config
            .get(offset..offset + size)
            .unwrap_or_default()
            .to_vec()
    }
    fn update_memory(&self, memory: Guest) -> io::Result<()> {
        *self.memory.lock().unwrap() = Some(memory);
        Ok(())
    }
    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let alive = self.alive.lock().unwrap();
        if !*alive {
            return Ok(());
        }
        let guest = self.memory.lock().unwrap().clone().unwrap();
        let memory = guest.memory();
        let vring = &vrings[usize::from(event)];
        let mut used = false;
        loop {
            vring.disable_notification().unwrap();
            let chains: Vec<_> = {
                let mut state = vring.get_mut();
                let queue = state.get_queue_mut();
                queue.iter(guest.memory()).unwrap().collect()
            };
            for chain in chains {
                let mut ignored = self.ignored.lock().unwrap();
                if *ignored > 0 {
                    *ignored -= 1;
                    continue;
                }
                let head = chain.head_index();
                let descriptors: Vec<_> = chain.collect();
                let written = self.serve(&memory, &descriptors);
                vring.add_used(head, written).unwrap();
                used = true;
            }
            if std::mem::take(&mut used) {
                vring.signal_used_queue()?;
            }
            if !vring.enable_notification().unwrap() {
                return Ok(());
            }
        }
    }
}

/// A disk that is being served.
pub(crate) struct Serving {
    pub(crate) disk: Arc<Disk>,
    handle: Receiver<ShutdownHandle>,
    _folder: tempfile::TempDir,
}

impl Serving {
    /// Ends the connection as the death of the process would.
    pub(crate) fn die(&self) {
        *self.disk.alive.lock().unwrap() = false;
        self.handle.recv().unwrap().shutdown();
    }
}

/// Serves `disk` to the socket that is returned.
pub(crate) fn serve(disk: Disk) -> (Serving, UnixStream) {
    let disk = Arc::new(disk);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut listener = Listener::new(&path, false).unwrap();
    let (ready, handle) = channel();
    let served = disk.clone();
    thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("disk".into(), served, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        ready.send(daemon.shutdown_handle().unwrap()).unwrap();
        // However it ends.
        let _ = daemon.wait();
    });
    let socket = UnixStream::connect(path).unwrap();
    let serving = Serving {
        disk,
        handle,
        _folder: folder,
    };
    (serving, socket)
}
