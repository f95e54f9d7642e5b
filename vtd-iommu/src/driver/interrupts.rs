// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt remapping: a table of entries, and messages that name them.
//!
//! A device is given the [`Message`] of an entry; where it leads is for the entry to say, and changes while the
//! device runs: a changed entry is stored in one store, so that each interrupt goes to the old place or to the new
//! one.

use hvkit_page_table::{Frames, OwnEntries, Width};

use super::command::{self, Switch};
use super::ids::Ids;
use super::memory::{word_at, zeroed};
use super::queue::RingMemory;
use super::{Ability, DriverError, Mmio, Unit};
use crate::spec::interrupt::{Irte, Message};
use crate::spec::invalidation::{Descriptor, InterruptScope};
use crate::spec::registers::InterruptTableAddress;

/// Field S for a table in one frame: 2^(7 + 1) entries of 16 bytes.
const FRAME_SIZE: u8 = 7;

/// How processors are named in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationMode {
    /// 8-bit ids.
    XApic,
    /// 32-bit ids: extended interrupt mode.
    X2Apic,
}

/// A store of 16 bytes at once (CMPXCHG16B with LOCK, say): memory, where, what.
pub type PairStore<M> = fn(&M, u64, [u64; 2]);

/// The interrupt-remapping table of a unit.
#[derive(Debug)]
pub struct InterruptTable<M> {
    memory: M,
    base: u64,
    entries: Ids,
    pair_store: Option<PairStore<M>>,
}

/// Consecutive entries of one device, aligned to their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    first: u16,
    count: u16,
}

impl Block {
    /// The index of the first.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.count
    }

    /// What the device is to send for the first entry; for a block of several, it adds the number of the
    /// entry to the data.
    #[must_use]
    pub const fn message(self) -> Message {
        if self.count == 1 {
            Message::remappable(self.first)
        } else {
            Message::remappable_block(self.first, 0)
        }
    }
}

impl<M: OwnEntries> InterruptTable<M> {
    /// The same with a store of 16 bytes, so that both halves of an entry can change at once.
    #[must_use]
    pub fn with_pair_store(mut self, store: PairStore<M>) -> Self {
        self.pair_store = Some(store);
        self
    }

    /// Takes `count` entries, a power of two, absent for now.
    ///
    /// # Errors
    ///
    /// No such block is free.
    pub fn allocate(&mut self, count: u16) -> Result<Block, DriverError> {
        let none = DriverError::NoInterruptEntries { index: 0, count };
        let first = self.entries.allocate(count.into()).ok_or(none)?;
        Ok(Block { first, count })
    }

    /// The entry with `index`.
    #[must_use]
    pub fn entry(&self, index: u16) -> Irte {
        let words = self.place(index);
        Irte(words.map_or([0; 2], |at| at.map(|at| self.memory.load(at, Width::Eight))))
    }

    /// Where the two words of the entry are.
    fn place(&self, index: u16) -> Option<[u64; 2]> {
        let low = word_at(self.base, u64::from(index) << 1);
        self.entries.holds(index).then(|| [low, word_at(low, 1)])
    }

    /// Stores `new` over the entry with `index`, which `block` has.
    fn store(&self, block: Block, index: u16, new: Irte) -> Result<(), DriverError> {
        let missing = DriverError::NoInterruptEntries { index, count: 1 };
        let inside = index.checked_sub(block.first);
        let inside = inside.is_some_and(|number| number < block.count);
        let [low_at, high_at] = self.place(index).filter(|_| inside).ok_or(missing)?;
        let old = self.entry(index);
        let [low, high] = new.0;
        if !old.present() || !new.present() {
            // Absent before or after: only word 0 has the present bit.
            if new.present() {
                self.memory.write(high_at, Width::Eight, high);
                self.memory.write(low_at, Width::Eight, low);
            } else {
                self.memory.write(low_at, Width::Eight, low);
                self.memory.write(high_at, Width::Eight, high);
            }
        } else if old.0[1] == high {
            self.memory.write(low_at, Width::Eight, low);
        } else if old.0[0] == low {
            self.memory.write(high_at, Width::Eight, high);
        } else {
            let pair = self
                .pair_store
                .ok_or(DriverError::NotInOneStore { index })?;
            pair(&self.memory, low_at, new.0);
        }
        Ok(())
    }
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Turns interrupt remapping on, with a table of absent entries in one frame (256 entries) or in `table`, whose
    /// size is in pages as a ring's. Messages in the compatibility format are blocked.
    ///
    /// # Errors
    ///
    /// The unit cannot, there are no frames, or `table` cannot be one.
    pub fn enable_interrupts(
        &mut self,
        mode: DestinationMode,
        table: Option<RingMemory>,
    ) -> Result<InterruptTable<M>, DriverError> {
        for (has, ability) in [
            (self.ecap.interrupt_remapping(), Ability::InterruptRemapping),
            (self.ecap.queued_invalidation(), Ability::QueuedInvalidation),
            (
                mode == DestinationMode::XApic || self.ecap.extended_interrupt_mode(),
                Ability::ExtendedInterruptMode,
            ),
        ] {
            if !has {
                return Err(DriverError::Unsupported(ability));
            }
        }
        let (base, pages) = match table {
            Some(RingMemory { address, size }) if address & 0xfff == 0 && size <= 8 => {
                (address, size)
            }
            Some(RingMemory { address, size }) => {
                return Err(DriverError::BadTable { address, size });
            }
            None => (zeroed(&self.memory, &self.frames)?, 0),
        };
        let address = InterruptTableAddress(0)
            .with_table(base)
            .with_extended_interrupt_mode(mode == DestinationMode::X2Apic)
            .with_size(FRAME_SIZE.saturating_add(pages));
        let entries = address.entries();
        let words = u64::from(entries) << 1;
        self.memory.fill(base, Width::Eight, words, |_| 0);
        command::set_interrupt_table(&self.registers, address)?;
        self.ask(Descriptor::Interrupt(InterruptScope::Global))?;
        self.wait()?;
        command::compatibility_interrupts(&self.registers, Switch::Off)?;
        command::interrupt_remapping(&self.registers, Switch::On)?;
        Ok(InterruptTable {
            memory: self.memory.clone(),
            base,
            entries: Ids::new(entries),
            pair_store: None,
        })
    }

    /// Turns interrupt remapping off: every device may send any interrupt. The table's memory stays allocated;
    /// interrupts may be on their way through it.
    ///
    /// # Errors
    ///
    /// The unit does not.
    pub fn disable_interrupts(&mut self, table: InterruptTable<M>) -> Result<(), DriverError> {
        drop(table);
        command::interrupt_remapping(&self.registers, Switch::Off)
    }

    /// Lets messages in the compatibility format through, or blocks them. Only in xAPIC mode does a unit let
    /// any through.
    ///
    /// # Errors
    ///
    /// The unit does not.
    pub fn set_compatibility_interrupts(&mut self, to: Switch) -> Result<(), DriverError> {
        command::compatibility_interrupts(&self.registers, to)
    }

    /// Sets or changes the entry with `index`, which `block` has; returns when no interrupt goes by the old one
    /// any more. From a present entry to a present one no interrupt is lost.
    ///
    /// # Errors
    ///
    /// Not an entry of the block; posted interrupts on a unit without them; both halves change and memory has
    /// no store for that ([`InterruptTable::with_pair_store`]): mask the entry first.
    pub fn set_interrupt(
        &mut self,
        table: &InterruptTable<M>,
        block: Block,
        index: u16,
        entry: Irte,
    ) -> Result<(), DriverError> {
        if entry.present() && entry.posted() && !self.cap.posted_interrupts() {
            return Err(DriverError::Unsupported(Ability::PostedInterrupts));
        }
        table.store(block, index, entry)?;
        self.forget_interrupts(index, 0)
    }

    /// Makes the entry with `index` absent: what is sent to it is a fault, which is not recorded.
    ///
    /// # Errors
    ///
    /// As [`set_interrupt`](Self::set_interrupt).
    pub fn mask_interrupt(
        &mut self,
        table: &InterruptTable<M>,
        block: Block,
        index: u16,
    ) -> Result<(), DriverError> {
        let masked = Irte([0, 0]).with_fault_processing_disabled();
        self.set_interrupt(table, block, index, masked)
    }

    /// Frees a block: its entries are absent when it returns.
    ///
    /// # Errors
    ///
    /// The unit does not forget them; they stay taken.
    pub fn free_interrupts(
        &mut self,
        table: &mut InterruptTable<M>,
        block: Block,
    ) -> Result<(), DriverError> {
        for index in (block.first..=u16::MAX).take(block.count.into()) {
            table.store(block, index, Irte([0, 0]))?;
        }
        let order = block.count.ilog2() as u8;
        self.forget_interrupts(block.first, order)?;
        table.entries.free(block.first, block.count.into());
        Ok(())
    }

    fn forget_interrupts(&mut self, index: u16, order: u8) -> Result<(), DriverError> {
        let scope = if order <= self.ecap.max_handle_mask() {
            InterruptScope::Index { index, order }
        } else {
            InterruptScope::Global
        };
        self.ask(Descriptor::Interrupt(scope))?;
        self.wait()
    }
}
