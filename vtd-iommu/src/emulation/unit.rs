// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The unit: its parts, and what reading and writing its registers does.

use super::caches::Caches;
use super::faults::{Event, FaultLog};
use super::host::Host;
use super::interrupts::InterruptCache;
use super::memory::Memory;
use super::notify::Watches;
use super::options::{Options, OptionsError};
use super::registers::{RegisterFile, WordWrite, split};
use crate::spec::invalidation::{ContextScope, InterruptScope, IotlbScope, Pages};
use crate::spec::registers::{
    CCMD, ContextCommand, FECTL, FSTS, GCMD, GSTS, GlobalCommand, GlobalStatus, ICS, IECTL, IQH,
    IQT, IRTA, InterruptTableAddress, InvalidateAddress, IotlbInvalidate, PECTL, PRS, QueueHead,
    RTADDR, Register, RootTableAddress, TranslationTableMode, Word,
};
use crate::tables::{FirstStage, LargePages, SecondStage};

/// An emulated remapping unit. It owns registers and caches, and nothing of the machine: memory and the
/// [`Host`] are arguments.
#[derive(Clone, Debug)]
pub struct Unit {
    pub(super) options: Options,
    pub(super) file: RegisterFile,
    pub(super) faults: FaultLog,
    /// The root table pointer as it was last taken (SRTP).
    pub(super) root: RootTableAddress,
    /// The interrupt table pointer as it was last taken (SIRTP).
    pub(super) interrupt_table: InterruptTableAddress,
    /// IVA_REG: written, never read.
    pub(super) invalidate_address: InvalidateAddress,
    /// SID and FM of CCMD_REG: written, never read.
    pub(super) context_command: ContextCommand,
    pub(super) caches: Caches,
    pub(super) interrupts: InterruptCache,
    pub(super) watches: Watches,
    pub(super) formats: Formats,
}

/// The tables that this unit walks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Formats {
    second: [SecondStage; 3],
    first: [FirstStage; 2],
}

impl Formats {
    fn new(options: &Options) -> Option<Self> {
        let (capability, extended) = (options.capability, options.extended);
        let large = LargePages::from_bits_truncate(capability.second_stage_large_pages());
        let second = |levels| -> Option<SecondStage> {
            let mut format = SecondStage::new(levels, options.host_bits)
                .ok()?
                .with_large_pages(large);
            if extended.snoop_control() {
                format = format.with_snoop_control();
            }
            if extended.device_tlb() {
                format = format.with_transient();
            }
            Some(format)
        };
        let first = |levels| -> Option<FirstStage> {
            let format = FirstStage::new(levels, options.host_bits).ok()?;
            Some(if capability.first_stage_1g() {
                format.with_one_gib()
            } else {
                format
            })
        };
        Some(Self {
            second: [second(3)?, second(4)?, second(5)?],
            first: [first(4)?, first(5)?],
        })
    }

    /// Second stage as `root` has it.
    #[inline]
    pub(super) fn second(&self, root: super::device::SecondRoot) -> SecondStage {
        let [three, four, five] = self.second;
        let format = match root.levels {
            3 => three,
            4 => four,
            _ => five,
        };
        if root.marks {
            format.with_accessed_dirty()
        } else {
            format
        }
    }

    /// Second stage, as far as entries of leaf tables without flags are concerned: alike whatever the root.
    #[inline(always)]
    pub(super) const fn leaf(&self) -> &SecondStage {
        &self.second[0]
    }

    /// First stage as `root` has it.
    pub(super) fn first(&self, root: super::device::FirstRoot) -> FirstStage {
        let [four, five] = self.first;
        let mut format = if root.levels == 4 { four } else { five };
        if root.entry.no_execute {
            format = format.with_no_execute();
        }
        if root.entry.extended_accessed {
            format = format.with_extended_accessed();
        }
        format
    }
}

impl Unit {
    /// A unit after power-on: nothing is translated, nothing is remapped.
    ///
    /// # Errors
    ///
    /// What `options` ask for and is not emulated.
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        let formats = Formats::new(&options).ok_or(OptionsError::HostBits(options.host_bits))?;
        Ok(Self {
            file: RegisterFile::new(&options),
            faults: FaultLog::default(),
            root: RootTableAddress(0),
            interrupt_table: InterruptTableAddress(0),
            invalidate_address: InvalidateAddress(0),
            context_command: ContextCommand(0),
            caches: Caches::new(options.iotlb_pages, options.capability.domains()),
            interrupts: InterruptCache::new(),
            watches: Watches::default(),
            formats,
            options,
        })
    }

    /// What the root table pointer leads to. Without scalable mode the field is reserved, and ignored.
    pub(super) fn mode(&self) -> TranslationTableMode {
        match self.root.mode() {
            TranslationTableMode::AbortDma if self.options.extended.abort_dma_mode() => {
                TranslationTableMode::AbortDma
            }
            _ if !self.options.extended.scalable_mode() => TranslationTableMode::Legacy,
            TranslationTableMode::AbortDma => TranslationTableMode::Reserved,
            mode => mode,
        }
    }

    /// What kind of unit it is.
    #[must_use]
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Software reads `data.len()` bytes, `offset` bytes from the unit's base: any number, at any offset. What is
    /// no register reads as 0. Reading has no effects.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        self.file.read(offset, data);
    }

    /// The content of a register, as software would read it.
    #[must_use]
    pub fn register<T: Word, A>(&self, register: Register<T, A>) -> T {
        self.file.get(register)
    }

    /// Software writes `data`, `offset` bytes from the unit's base: any number of bytes, at any offset. Bytes of a
    /// register that are not written keep their value, those of a command the status that it stands for.
    ///
    /// All that the write starts is done when this returns. A doorbell has as many descriptors processed as
    /// the queue holds, at most.
    pub fn write(&mut self, memory: &impl Memory, host: &mut impl Host, offset: u32, data: &[u8]) {
        for write in split(offset, data) {
            self.write_word(memory, host, write);
            // Each time a descriptor at least: this ends.
            for _ in 0..self.queue_entries() {
                if !self.is_behind() {
                    break;
                }
                self.go_on(memory, host);
            }
        }
    }

    /// [`write`](Self::write) for a unit that others wait for. Of the invalidation queue it processes what is quick, and at most one
    /// descriptor for which tables are read or others are asked (the host, devices): a queue may hold 32,768 of them, and
    /// a guest can make each take a fraction of a second. While the unit [`is_behind`](Self::is_behind), it is to
    /// [`go_on`](Self::go_on); in between it may be used in every way. A guest sees a head that is short of the tail, as that of a
    /// processor's unit is for a while.
    pub fn write_some(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        offset: u32,
        data: &[u8],
    ) {
        for write in split(offset, data) {
            self.write_word(memory, host, write);
        }
    }

    /// [`write`](Self::write) of 4 bytes.
    pub fn write32(&mut self, memory: &impl Memory, host: &mut impl Host, offset: u32, value: u32) {
        self.write(memory, host, offset, &value.to_le_bytes());
    }

    /// [`write`](Self::write) of 8 bytes.
    pub fn write64(&mut self, memory: &impl Memory, host: &mut impl Host, offset: u32, value: u64) {
        self.write(memory, host, offset, &value.to_le_bytes());
    }

    /// [`read`](Self::read) of 4 bytes.
    #[must_use]
    pub fn read32(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// [`read`](Self::read) of 8 bytes.
    #[must_use]
    pub fn read64(&self, offset: u32) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write_word(&mut self, memory: &impl Memory, host: &mut impl Host, write: WordWrite) {
        const GLOBAL: u32 = GCMD.offset();
        const CONTEXT: u32 = CCMD.offset();
        const STATUS: u32 = FSTS.offset() - 4;
        const FAULT_EVENT: u32 = FECTL.offset();
        const TAIL: u32 = IQT.offset();
        const COMPLETION: u32 = ICS.offset() - 4;
        const INVALIDATION_EVENT: u32 = IECTL.offset();
        const PAGE_STATUS: u32 = PRS.offset() - 4;
        const PAGE_EVENT: u32 = PECTL.offset();
        let high = write.lanes >> 32 != 0;
        self.file.write(write);
        if write.offset == CONTEXT {
            let kept = self.context_command.0 & !write.lanes;
            let written = (kept | write.value) & ContextCommand::ACCESS.write_only;
            self.context_command = ContextCommand(written);
        }
        match write.offset {
            GLOBAL if write.lanes as u32 != 0 => {
                // What is not written of the command is as the status has it.
                let lanes = write.lanes as u32;
                let kept = self.file.get(GSTS).unchanged().0 & !lanes;
                self.command(memory, host, GlobalCommand(write.value as u32 | kept));
            }
            CONTEXT if write.value >> 63 != 0 => self.invalidate_contexts(memory, host),
            STATUS if high => self.fault_status_written(memory, host),
            FAULT_EVENT => Event::FAULT.unmask(&mut self.file, host),
            TAIL => self.doorbell(memory, host),
            COMPLETION if high && !self.file.get(ICS).wait_complete() => {
                Event::INVALIDATION.withdraw(&mut self.file);
            }
            INVALIDATION_EVENT => Event::INVALIDATION.unmask(&mut self.file, host),
            PAGE_STATUS if high && self.file.get(PRS).0 == 0 => {
                Event::PAGE_REQUEST.withdraw(&mut self.file);
            }
            PAGE_EVENT => Event::PAGE_REQUEST.unmask(&mut self.file, host),
            offset => self.placed_register_written(memory, host, WordWrite { offset, ..write }),
        }
    }

    /// Registers whose place is the unit's choice.
    fn placed_register_written(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        write: WordWrite,
    ) {
        let address = self.options.extended.invalidate_address_offset();
        if write.offset == address {
            let kept = self.invalidate_address.0 & !write.lanes;
            let address = (kept | write.value) & InvalidateAddress::DEFINED;
            self.invalidate_address = InvalidateAddress(address);
        } else if write.offset == address.wrapping_add(8) {
            if write.value >> 63 != 0 {
                self.iotlb_command(memory, host);
            }
        } else {
            let first = self.options.capability.fault_record_offset(0);
            let records = u32::from(self.options.capability.fault_records()) << 4;
            if write.offset.wrapping_sub(first) < records {
                self.faults.serviced(&mut self.file);
            }
        }
    }

    /// "Global Command Register".
    fn command(&mut self, memory: &impl Memory, host: &mut impl Host, command: GlobalCommand) {
        let before = self.file.get(GSTS);
        let (capability, extended) = (self.options.capability, self.options.extended);
        if command.set_root_table() {
            self.root = self.file.get(RTADDR);
            self.set_status(|status| status.with_root_table_set(true));
            if capability.enhanced_set_root_table() {
                self.caches.forget_all();
            }
            self.follow_everything(memory, host);
        }
        if command.set_interrupt_table() && extended.interrupt_remapping() {
            self.interrupt_table = self.file.get(IRTA);
            self.set_status(|status| status.with_interrupt_table_set(true));
            if capability.enhanced_set_interrupt_table() {
                self.interrupts.forget(InterruptScope::Global);
            }
        }
        if command.translation() != before.translation() {
            self.set_status(|status| status.with_translation(command.translation()));
            // What hits relies on translation being on.
            self.caches.renew_epoch();
            self.follow_everything(memory, host);
        }
        if extended.interrupt_remapping() {
            self.set_status(|status| {
                status
                    .with_interrupt_remapping(command.interrupt_remapping())
                    .with_compatibility_interrupts(command.compatibility_interrupts())
            });
            let switched = |status: GlobalStatus| {
                (
                    status.interrupt_remapping(),
                    status.compatibility_interrupts(),
                )
            };
            if command.set_interrupt_table() || switched(self.file.get(GSTS)) != switched(before) {
                self.tell_interrupts(memory, host);
            }
        }
        if extended.queued_invalidation()
            && command.queued_invalidation() != before.queued_invalidation()
        {
            let on = command.queued_invalidation();
            self.set_status(|status| status.with_queued_invalidation(on));
            if on {
                self.doorbell(memory, host);
            } else {
                self.file.set(IQH, QueueHead(0));
            }
        }
    }

    fn set_status(&mut self, change: impl Fn(GlobalStatus) -> GlobalStatus) {
        let status = change(self.file.get(GSTS));
        self.file.set(GSTS, status);
    }

    /// "Fault Status Register": conditions may have been cleared.
    fn fault_status_written(&mut self, memory: &impl Memory, host: &mut impl Host) {
        self.faults.serviced(&mut self.file);
        // An error no longer stands: the queue goes on where it stopped.
        self.doorbell(memory, host);
    }

    /// "Context Command Register". While the queue is in use the command is refused: granularity 0.
    fn invalidate_contexts(&mut self, memory: &impl Memory, host: &mut impl Host) {
        let command = ContextCommand(self.file.get(CCMD).0 | self.context_command.0);
        let scope = match command.granularity() {
            1 => Some(ContextScope::Global),
            2 => Some(ContextScope::Domain {
                domain: command.domain(),
            }),
            3 => Some(ContextScope::Device {
                domain: command.domain(),
                source: crate::spec::RequesterId(command.source()),
                function_mask: command.function_mask(),
            }),
            _ => None,
        };
        let scope = scope.filter(|_| !self.file.get(GSTS).queued_invalidation());
        let actual = match scope {
            Some(scope) => {
                self.forget_contexts(memory, host, scope);
                command.granularity()
            }
            None => 0,
        };
        let done = self.file.get(CCMD).with_invalidate(false);
        self.file.set(CCMD, done.with_actual_granularity(actual));
    }

    /// "IOTLB Invalidate Register". While the queue is in use the command is refused: granularity 0.
    fn iotlb_command(&mut self, memory: &impl Memory, host: &mut impl Host) {
        let register = self.options.extended.iotlb_invalidate();
        let command: IotlbInvalidate = self.file.get(register);
        let domain = command.domain();
        let at = self.invalidate_address;
        let scope = match command.granularity() {
            1 => Some(IotlbScope::Global),
            2 => Some(IotlbScope::Domain { domain }),
            3 if at.mask() <= self.options.capability.max_address_mask() => {
                Some(IotlbScope::Pages {
                    domain,
                    pages: Pages {
                        address: at.address(),
                        order: at.mask(),
                        leaves_only: at.leaves_only(),
                    },
                })
            }
            _ => None,
        };
        let scope = scope.filter(|_| !self.file.get(GSTS).queued_invalidation());
        let actual = match scope {
            Some(scope) => {
                self.forget_translations(memory, host, scope);
                command.granularity()
            }
            None => 0,
        };
        let done = command
            .with_invalidate(false)
            .with_actual_granularity(actual);
        self.file.set(register, done);
    }

    pub(super) fn forget_contexts(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        scope: ContextScope,
    ) {
        // In scalable mode the context cache is not tagged with domain-ids.
        let scope = match scope {
            ContextScope::Domain { .. } if self.mode() == TranslationTableMode::Scalable => {
                ContextScope::Global
            }
            scope => scope,
        };
        self.caches.forget_contexts(scope);
        self.follow_everything(memory, host);
    }

    pub(super) fn forget_translations(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        scope: IotlbScope,
    ) {
        self.caches.forget_translations(scope);
        self.follow_translations(memory, host, scope);
    }
}
