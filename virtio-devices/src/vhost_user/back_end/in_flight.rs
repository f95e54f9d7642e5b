// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in flight, noted in memory that the VMM keeps when this process ends: "Inflight I/O tracking".
//!
//! Of disks only: who is killed has written some of a request or none of it, and doing it once more comes to the same. A card's
//! frames need none of that, and a receive buffer may be held for as long as nothing comes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate,
    memfd_create,
};
use vm_memory::{FileOffset, GuestMemory, MmapRegion};

use super::rings::Ring;
use super::{BackEnd, PATIENCE};
use crate::features::DeviceType;
use crate::patience::end_of;
use crate::queue::{Layout, Left, Notes, Queue};
use crate::vhost_user::in_flight::{InFlight, bytes};

/// Between two looks at notes that are about to be empty.
const INTERVAL: Duration = Duration::from_millis(1);
/// What the areas of queues are aligned to.
const ALIGNMENT: usize = 64;
/// Bytes of what is said of the areas: where, how many, of which size; and what may fill it up.
const ABOUT: usize = 20;

/// The areas of all queues.
pub(super) struct Noted {
    told: InFlight,
    memory: Arc<MmapRegion>,
    queues: u16,
    /// Descriptors for which each has room.
    size: u16,
}

/// A file for notes, if a device of that type has any: made before the process gives up what makes files.
pub(super) fn room(device: DeviceType) -> Option<File> {
    if device != DeviceType::BLOCK {
        return None;
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("in flight", flags).ok()?;
    // So that nobody who has it can end us by that.
    fcntl_add_seals(&file, SealFlags::SHRINK).ok()?;
    Some(file.into())
}

/// Bytes from one area to the next.
fn stride(layout: Layout, size: u16) -> Option<usize> {
    bytes(layout, size).checked_next_multiple_of(ALIGNMENT)
}

/// Queues and their size, as said by the VMM.
fn about(payload: &[u8]) -> Option<(u16, u16)> {
    let queues = u16::from_ne_bytes(*payload.get(16..)?.first_chunk()?);
    let size = u16::from_ne_bytes(*payload.get(18..)?.first_chunk()?);
    (queues > 0 && size > 0).then_some((queues, size))
}

impl BackEnd {
    /// Empty notes for the queues that `payload` tells of: the answer, and the file beside it.
    pub(super) fn make_notes(&mut self, payload: &[u8]) -> Option<(Vec<u8>, File)> {
        let (queues, size) = about(payload)?;
        let most = self.device.queue_sizes().into_iter().max()?;
        if usize::from(queues) > self.rings.len() || size > most || payload.len() > ABOUT + 4 {
            return None;
        }
        let room = self.room.as_ref()?.try_clone().ok()?;
        let length = stride(self.layout(), size)?.checked_mul(queues.into())? as u64;
        // Nobody notes anything in them meanwhile.
        self.stop()?;
        self.noted = None;
        let has = u64::try_from(fstat(&room).ok()?.st_size).ok()?;
        if has > 0 {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&room, punch, 0, has).ok()?;
        }
        if has < length {
            ftruncate(&room, length).ok()?;
        }
        self.start()?;
        let mut answer = payload.to_vec();
        answer.get_mut(..8)?.copy_from_slice(&length.to_ne_bytes());
        answer.get_mut(8..16)?.fill(0);
        Some((answer, room))
    }

    /// From now on what is in flight is noted where the VMM says, after what is there is finished.
    pub(super) fn take_notes(&mut self, payload: &[u8], files: Vec<OwnedFd>) -> Option<()> {
        let Ok([file]) = <[OwnedFd; 1]>::try_from(files) else {
            return None;
        };
        let file = File::from(file);
        let (queues, size) = about(payload)?;
        let word = |at: usize| Some(u64::from_ne_bytes(*payload.get(at..)?.first_chunk()?));
        let (length, offset) = (word(0)?, word(8)?);
        // What lies beyond the file would end this process when it is touched.
        let there = u64::try_from(fstat(&file).ok()?.st_size).ok()?;
        if offset.checked_add(length)? > there || payload.len() > ABOUT + 4 {
            return None;
        }
        let mapped = FileOffset::new(file.try_clone().ok()?, offset);
        let memory = MmapRegion::from_file(mapped, usize::try_from(length).ok()?).ok()?;
        let told = InFlight::new(payload, file, queues, (self.layout(), size))?;
        self.stop()?;
        self.noted = Some(Noted {
            told,
            memory: Arc::new(memory),
            queues,
            size,
        });
        self.start()
    }

    /// What another process has left of queue `index`: of a queue that the VMM wants noted, and else nothing inside; nothing at all if
    /// what is noted of it makes no sense.
    pub(super) fn left<M: GuestMemory + ?Sized>(
        &self,
        index: u16,
        ring: &Ring,
        memory: &M,
    ) -> Option<Option<Left>> {
        let noted = self.noted.as_ref().filter(|noted| index < noted.queues);
        let Some(noted) = noted else {
            return Some(None);
        };
        let (config, base) = (&ring.config, ring.base);
        if config.size > noted.size || noted.told.layout() != self.layout() {
            return None;
        }
        let left = noted.told.left(index, config, memory, base.used)?;
        // A packed queue goes on where the notes say: a VMM whose back end is gone knows no better. A split one has told the driver
        // where it is, and what is left is taken before what is available from there on.
        let known = self.layout() == Layout::Packed || base.used == left.used;
        known.then_some(Some(left))
    }

    /// Has queue `index` noted, of which so much is left.
    pub(super) fn note<M: GuestMemory + ?Sized>(
        &self,
        index: u16,
        queue: &mut Queue,
        memory: &M,
        left: Left,
    ) -> Option<()> {
        queue.map(memory).withdraw(&left.begun).ok()?;
        let noted = self.noted.as_ref()?;
        // As it was told to the parser of the notes, which has checked that they are there.
        let stride = noted.memory.size().checked_div(noted.queues.into())?;
        let start = stride.checked_mul(index.into())?;
        let area = start..start.checked_add(stride)?;
        let memory = Arc::clone(&noted.memory);
        let shape = (self.layout(), queue.size());
        queue.note_in(Notes::new(memory, area, shape, left)?);
        Some(())
    }

    /// Waits until what another process had begun of queue `at` is finished, a bounded time; not at all if it has failed, or a worker is
    /// gone, for then it never is.
    pub(super) fn finish(&self, at: usize) {
        let end = end_of(PATIENCE);
        let is_gone = || self.running.iter().any(|worker| worker.is_gone());
        let goes_on = || !self.running.is_empty() && !self.calls.has_failed(at) && !is_gone();
        while goes_on() && self.is_left(at) == Some(true) && Instant::now() < end {
            std::thread::sleep(INTERVAL);
        }
    }

    fn is_left(&self, at: usize) -> Option<bool> {
        let noted = self.noted.as_ref()?;
        let config = &self.rings.get(at).filter(|ring| ring.is_live())?.config;
        let memory = &self.given.as_ref()?.memory;
        let index = u16::try_from(at).ok().filter(|at| *at < noted.queues)?;
        // Behind an IOMMU a device's address is none of the guest's: then the notes alone say it.
        if self.translated() {
            return noted.told.is_left(index, config.size);
        }
        let left = noted.told.left(index, config, memory, 0)?;
        Some(!left.begun.is_empty())
    }
}
