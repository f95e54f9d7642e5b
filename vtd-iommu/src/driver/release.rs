// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving back: a device that is no longer there, and the unit itself.
//!
//! ```text
//!   device   detach -> remove: entry cleared -> forgotten -> its holding domain's table and id are free
//!   unit     destroy each domain -> release: translation off -> forgotten -> queue off -> every table is free
//! ```

use alloc::vec::Vec;

use hvkit_page_table::{Frames, OwnEntries, Width};

use super::attach::Gone;
use super::command::{self, Switch};
use super::domain::StageKind;
use super::memory::word_at;
use super::{DriverError, Mmio, Mode, Reach, Registers, Unit};
use crate::spec::registers::GSTS;
use crate::spec::{Pasid, RequesterId};

/// Words of a table of one frame.
const WORDS: u64 = 512;

/// Words of a scalable-mode context entry.
const SCALABLE_CONTEXT_WORDS: usize = 4;

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Forgets a device that was taken out of the machine: nothing is reached under its requester id any more,
    /// reserved memory included, and what was kept for it is free. A device that comes in its place is new: it is
    /// blocked, and may [reserve](Self::reserve).
    ///
    /// # Errors
    ///
    /// It is attached; detach it first. Or the unit does not forget it: the device is blocked, and stays known.
    pub fn remove(&mut self, source: RequesterId) -> Result<(), DriverError> {
        self.unattached(source)?;
        self.let_go_of_reserved(source)?;
        // Nothing, unless opening it failed.
        self.close_tlb(source, None)?;
        self.devices.remove(&source);
        Ok(())
    }

    /// Takes a device that is in its holding domain out of it: blocked there too, and the domain's table and id are
    /// free. Its PASIDs stay where they are.
    pub(super) fn let_go_of_reserved(&mut self, source: RequesterId) -> Result<(), DriverError> {
        let device = self.devices.get(&source);
        let Some(holding) = device.and_then(|device| device.holding.as_ref()) else {
            return Ok(());
        };
        let gone = Gone {
            domain: holding.id,
            between: None,
            kind: Some(StageKind::Second),
            tlb: None,
        };
        let at = self.slot(source, Pasid::ZERO, None)?;
        self.memory.write(at, Width::Eight, 0);
        self.forget_entry(source, None, gone)?;
        let device = self.devices.get_mut(&source);
        let Some(mut holding) = device.and_then(|device| device.holding.take()) else {
            return Ok(());
        };
        let attached = core::mem::take(&mut holding.attached);
        let destroyed = self.destroy(holding);
        let device = self.devices.entry(source).or_default();
        match destroyed {
            Ok(()) => {
                device.regions.clear();
                Ok(())
            }
            Err((mut holding, error)) => {
                holding.attached = attached;
                device.holding = Some(holding);
                Err(error)
            }
        }
    }

    /// Gives the unit up: DMA and interrupts are not remapped any more, every device reaches all memory, and every frame
    /// that this unit took for tables and queue is back in its pool. Interrupt tables and page request queues are not
    /// among them: they are their owner's.
    ///
    /// # Errors
    ///
    /// The unit is given back: a device is attached, a domain is not [destroyed](Self::destroy), or hardware does not do
    /// as it is told; translation may be off then.
    #[expect(
        clippy::result_large_err,
        reason = "once in a unit's life, and without an allocation"
    )]
    pub fn release(mut self) -> Result<R, (Self, DriverError)> {
        if let Err(error) = self.let_go() {
            return Err((self, error));
        }
        self.free_tables();
        if let Some(queue) = self.invalidation.queue.take() {
            queue.release(&self.frames);
        }
        Ok(self.registers)
    }

    fn let_go(&mut self) -> Result<(), DriverError> {
        let sources: Vec<RequesterId> = self.devices.keys().copied().collect();
        for source in &sources {
            self.unattached(*source)?;
        }
        let holding = |device: &super::attach::Device<M, P>| device.holding.as_ref().map(|h| h.id);
        let own: Vec<u16> = self.devices.values().filter_map(holding).collect();
        let others = |id: &u16| *id != 0 && Some(*id) != self.pass_through && !own.contains(id);
        if let Some(id) = self.ids.all_taken().find(others) {
            return Err(DriverError::DomainInUse(id));
        }
        // From here on reserved memory is reached without a table.
        command::translation(&self.registers, Switch::Off)?;
        for source in sources {
            self.remove(source)?;
        }
        self.forget_everything()?;
        let status = self.registers.get(GSTS);
        if status.interrupt_remapping() {
            command::interrupt_remapping(&self.registers, Switch::Off)?;
        }
        if status.queued_invalidation() {
            command::queued_invalidation(&self.registers, Switch::Off)?;
        }
        Ok(())
    }

    /// Fails if `source` is attached, with or without PASID.
    fn unattached(&self, source: RequesterId) -> Result<(), DriverError> {
        let Some(device) = self.devices.get(&source) else {
            return Ok(());
        };
        let pasid = device.pasids.keys().next().copied();
        if device.reach == Reach::Blocked && pasid.is_none() {
            return Ok(());
        }
        Err(DriverError::Attached {
            source_id: source,
            pasid: pasid.filter(|_| device.reach == Reach::Blocked),
        })
    }

    /// Frees root, context and PASID tables, which the unit does not read any more.
    fn free_tables(&self) {
        // In legacy mode the upper half of a root entry is 0.
        for contexts in self.linked(self.root, 1) {
            if self.mode == Mode::Scalable {
                for directory in self.linked(contexts, SCALABLE_CONTEXT_WORDS) {
                    for table in self.linked(directory, 1) {
                        self.frames.free(table);
                    }
                    self.frames.free(directory);
                }
            }
            self.frames.free(contexts);
        }
        self.frames.free(self.root);
    }

    /// The tables that present entries of a table lead to; each entry is so many words, and its first one leads there.
    fn linked(&self, table: u64, words: usize) -> impl Iterator<Item = u64> {
        (0..WORDS)
            .step_by(words)
            .map(move |word| self.memory.load(word_at(table, word), Width::Eight))
            .filter(|entry| entry & 1 != 0)
            .map(|entry| entry & !0xfff)
    }
}
