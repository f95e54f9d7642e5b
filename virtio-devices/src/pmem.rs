// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Persistent memory: virtio-pmem. A file that the guest has as memory, and a queue by which it has it written out.
//!
//! The VMM maps [`Backing::map`] into the guest, at an address of its choice where nothing else is, and the device
//! tells the driver where that is. Linux makes `/dev/pmem0` of it.
//!
//! "PMEM Device" (5.19).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddressSpace, GuestMemory, MmapRegion};

use crate::bytes::read_at;
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, QueueServer, Served};
use crate::worker::Worker;

/// The size of the file, and its address, are multiples of this: what Linux on x86 wants of such memory.
pub const ALIGNMENT: u64 = 2 << 20;

const QUEUE_SIZE: u16 = 64;
/// Bytes of a request, and of its answer.
const REQUEST: usize = 4;
/// VIRTIO_PMEM_REQ_TYPE_FLUSH.
const FLUSH: u32 = 0;

/// What becomes of what the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// It is in the file.
    Kept,
    /// It is gone with the machine, and the file is only read.
    Discarded,
}

/// A file that cannot be a guest's memory.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It cannot be opened.
    #[error("{}: cannot be opened: {source}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody has it open: as memory, or as a disk.
    #[error("{}: in use by another VMM", path.display())]
    Locked {
        /// As given.
        path: PathBuf,
    },
    /// It is not a file.
    #[error("{}: not a file", path.display())]
    NotAFile {
        /// As given.
        path: PathBuf,
    },
    /// Its size is none that a guest could use.
    #[error("{}: {length} bytes, which is not a multiple of 2 MiB", path.display())]
    Length {
        /// As given.
        path: PathBuf,
        /// Bytes.
        length: u64,
    },
    /// The address that it was to have is none.
    #[error("persistent memory at {address:#x} and {length:#x} bytes long")]
    Place {
        /// First address.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// It cannot be mapped.
    #[error("{}: cannot be mapped: {source}", path.display())]
    Map {
        /// As given.
        path: PathBuf,
        /// Why.
        source: MmapRegionError,
    },
}

/// An open file that is to be a guest's memory. The lock goes with it.
#[derive(Debug)]
pub struct Backing {
    file: Arc<File>,
    path: PathBuf,
    length: u64,
    writes: Writes,
}

impl Backing {
    /// Opens the file at `path`, and locks it, by the lock that [disks](crate::block) have: nobody else has a file open
    /// that is written, and others may read one that is only read.
    pub fn open(path: &Path, writes: Writes) -> Result<Self, PmemError> {
        let here = || path.to_path_buf();
        let failed = |source| PmemError::Open {
            path: here(),
            source,
        };
        // Before it is opened: opening a pipe would wait for its other end.
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(PmemError::NotAFile { path: here() });
        }
        let write = writes == Writes::Kept;
        let file = OpenOptions::new().read(true).write(write).open(path);
        let file = file.map_err(failed)?;
        let locked = match writes {
            Writes::Kept => file.try_lock(),
            Writes::Discarded => file.try_lock_shared(),
        };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => PmemError::Locked { path: here() },
            TryLockError::Error(source) => failed(source),
        })?;
        let length = file.metadata().map_err(failed)?.len();
        if length == 0 || !length.is_multiple_of(ALIGNMENT) {
            let path = here();
            return Err(PmemError::Length { path, length });
        }
        Ok(Self {
            file: Arc::new(file),
            path: here(),
            length,
            writes,
        })
    }

    /// Bytes, a multiple of [`ALIGNMENT`].
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Maps it into this process, to be mapped into the guest. A file that somebody shortens meanwhile ends the
    /// process that touches what is gone (SIGBUS), or the guest's access in KVM.
    pub fn map(&self) -> Result<MmapRegion, PmemError> {
        let mapped = || {
            let length =
                usize::try_from(self.length).map_err(|_| MmapRegionError::InvalidOffsetLength)?;
            let sharing = match self.writes {
                Writes::Kept => libc::MAP_SHARED,
                Writes::Discarded => libc::MAP_PRIVATE,
            };
            MmapRegionBuilder::new(length)
                .with_file_offset(FileOffset::from_arc(Arc::clone(&self.file), 0))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(sharing | libc::MAP_NORESERVE)
                .build()
        };
        mapped().map_err(|source| PmemError::Map {
            path: self.path.clone(),
            source,
        })
    }
}

/// Persistent memory.
#[derive(Debug)]
pub struct Pmem {
    backing: Backing,
    address: u64,
    counters: Counters,
}

impl Pmem {
    /// Memory that the guest has at `address`, where the VMM has put [`Backing::map`].
    pub fn new(backing: Backing, address: u64) -> Result<Self, PmemError> {
        let length = backing.length;
        if !address.is_multiple_of(ALIGNMENT) || address.checked_add(length).is_none() {
            return Err(PmemError::Place { address, length });
        }
        Ok(Self {
            backing,
            address,
            counters: Counters::default(),
        })
    }

    /// The numbers of its queue.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Pmem {
    fn device_type(&self) -> DeviceType {
        DeviceType::PMEM
    }

    fn features(&self) -> Features {
        // Not by a shared memory region, which virtio-pci would have to describe: by configuration.
        Features::empty()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// Reads "struct virtio_pmem_config".
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&self.address.to_le_bytes());
        config[8..].copy_from_slice(&self.backing.length.to_le_bytes());
        read_at(&config, offset, data);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing there is the driver's to choose.
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation {
            memory,
            mut queues,
            interrupts,
            ..
        } = activation;
        let active = ActiveQueue::take(&mut queues, 0)?;
        let handler = Flusher {
            file: Arc::clone(&self.backing.file),
            writes: self.backing.writes,
        };
        let server = QueueServer::new(memory, active, interrupts, handler)
            .with_counters(self.counters.clone());
        Ok(vec![Box::new(server)])
    }

    fn counters(&self) -> Vec<Counters> {
        vec![self.counters.clone()]
    }

    fn reset(&mut self) {}

    /// Nothing: what the driver wrote is in the file.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        if self.backing.writes == Writes::Kept {
            let synced = self.backing.file.sync_all();
            synced.map_err(|error| StateError::Storage { kind: error.kind() })?;
        }
        Ok(Vec::new())
    }
}

struct Flusher {
    file: Arc<File>,
    writes: Writes,
}

impl<A> Handler<A> for Flusher {
    fn name(&self) -> String {
        "pmem".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let answer = chain.writable();
        if answer.len() < REQUEST as u64 {
            return Answer::Unanswerable;
        }
        let mut request = [0; REQUEST];
        let read = chain.readable().read(reach, &mut request);
        let mut served = Served::default();
        let result = match (read, u32::from_le_bytes(request)) {
            (Ok(REQUEST), FLUSH) => match self.writes {
                Writes::Kept => self.file.sync_data(),
                Writes::Discarded => Ok(()),
            },
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let code: i32 = match result {
            Ok(()) => 0,
            Err(error) => {
                if error.kind() != io::ErrorKind::Unsupported {
                    served.trouble = Some(error);
                }
                -1
            }
        };
        if answer.write(reach, &code.to_le_bytes()).is_ok() {
            served.written = REQUEST as u32;
        }
        Answer::Done(served)
    }
}
