// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables between a requester and its domain, and how an entry in them is stored.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use hvkit_page_table::{Frames, OwnEntries, Width};

use super::domain::Attachment;
use super::memory::{store_first_word_last, word_at, zeroed};
use super::{DriverError, Mmio, Mode, Unit};
use crate::spec::context::{ContextEntry, ScalableContextEntry};
use crate::spec::invalidation::{AtsRange, ContextScope, Descriptor, DeviceTlb, PasidCacheScope};
use crate::spec::pasid::{PasidDirectoryEntry, PasidEntry};
use crate::spec::root::{RootEntry, RootHalf};
use crate::spec::{Pasid, RequesterId};

/// PDTS: a directory of one frame, 512 entries of 64 PASIDs.
const DIRECTORY_SIZE: u64 = 2;
/// So many bits of PASID a directory of one frame has.
pub(super) const PASID_BITS: u32 = 15;

/// A context entry or a PASID table entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Word 0: the present bit and the table's address.
    table: u64,
    /// Word 1: the domain-id.
    id: u64,
    /// The other words, if there are any.
    rest: Option<[u64; 6]>,
}

/// Where a device comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// It was blocked, or in its holding domain.
    In,
    /// It goes to its holding domain.
    Out,
}

impl Entry {
    pub(super) fn context(entry: ContextEntry) -> Self {
        let [table, id] = entry.0;
        Self {
            table,
            id,
            rest: None,
        }
    }

    pub(super) const fn pasid(entry: PasidEntry) -> Self {
        let [table, id, rest @ ..] = entry.0;
        Self {
            table,
            id,
            rest: Some(rest),
        }
    }

    /// Stores the entry, a word at a time.
    ///
    /// Over an absent entry word 0 comes last. Over a present one, that of a device's holding domain, no moment
    /// is to be without a translation, and none may cache translations of this device under an id that other
    /// devices have: going in, the table changes before the id; going out, the id before the table. The id in
    /// between is the holding domain's, which is this device's alone.
    pub(super) fn store(&self, memory: &impl OwnEntries, at: u64, moved: Moved) {
        let put = |index, word| memory.write(word_at(at, index), Width::Eight, word);
        let (put_table, put_id) = (|| put(0, self.table), || put(1, self.id));
        let put_rest = || {
            let rest = self.rest.iter().flatten();
            (2..).zip(rest).for_each(|(index, &word)| put(index, word));
        };
        let present = memory.load(at, Width::Eight) & 1 != 0;
        match moved {
            _ if !present => {
                put_rest();
                put_id();
                put_table();
            }
            Moved::In => {
                put_rest();
                put_table();
                put_id();
            }
            Moved::Out => {
                put_id();
                put_table();
                put_rest();
            }
        }
    }
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Where the entry that decides over requests of `source` with `pasid` is (0 for those without): the context entry,
    /// or in scalable mode the PASID table entry. Tables on the way are made if they are not there.
    pub(super) fn slot(
        &mut self,
        source: RequesterId,
        pasid: Pasid,
        tlb: Option<DeviceTlb>,
    ) -> Result<u64, DriverError> {
        match self.mode {
            Mode::Legacy => {
                let at = RootEntry::address(self.root, source);
                let table = self.table_at(at, |table| RootEntry::legacy(table).0[0])?;
                Ok(ContextEntry::address(table, source))
            }
            Mode::Scalable => {
                let half = u64::from(source.device() >= 16);
                let at = word_at(RootEntry::address(self.root, source), half);
                let contexts = self.table_at(at, |table| RootHalf::new(table).0)?;
                let at = ScalableContextEntry::address(contexts, source);
                let table = self.pasid_table(at, source, pasid, tlb)?;
                Ok(PasidEntry::address(table, pasid))
            }
        }
    }

    /// The table that the entry of one word at `at` leads to; `link` makes the entry.
    fn table_at(&self, at: u64, link: impl Fn(u64) -> u64) -> Result<u64, DriverError> {
        let entry = self.memory.load(at, Width::Eight);
        if entry & 1 != 0 {
            return Ok(entry & !0xfff);
        }
        let table = zeroed(&self.memory, &self.frames)?;
        self.memory.write(at, Width::Eight, link(table));
        Ok(table)
    }

    /// The table of `pasid` behind the scalable-mode context entry at `at`. With `tlb`, the entry also lets
    /// translation requests through, once the table is there.
    fn pasid_table(
        &mut self,
        at: u64,
        source: RequesterId,
        pasid: Pasid,
        tlb: Option<DeviceTlb>,
    ) -> Result<u64, DriverError> {
        let link = |table| PasidDirectoryEntry::new(table).0;
        let low = self.memory.load(at, Width::Eight);
        let entry = ScalableContextEntry([low, 0, 0, 0]);
        if entry.present() {
            let slot = PasidDirectoryEntry::address(entry.directory(), pasid);
            let table = self.table_at(slot, link)?;
            if let Some(tlb) = tlb
                && !self.fills_tlb(source, None)
            {
                self.tlbs.insert(source, tlb);
                self.open_tlb(at, source, entry)?;
            }
            return Ok(table);
        }
        let directory = zeroed(&self.memory, &self.frames)?;
        let slot = PasidDirectoryEntry::address(directory, pasid);
        // Nobody has seen the directory yet.
        let table = self
            .table_at(slot, link)
            .inspect_err(|_| self.frames.free(directory))?;
        let mut entry = ScalableContextEntry::new(directory, DIRECTORY_SIZE);
        if self.ecap.pasid() {
            entry = entry.with_pasid_enabled();
        }
        if tlb.is_some() {
            entry = self.letting_through(entry);
        }
        store_first_word_last(&self.memory, at, &entry.0);
        Ok(table)
    }

    /// The same, with translation and page requests.
    fn letting_through(&self, entry: ScalableContextEntry) -> ScalableContextEntry {
        let entry = entry.with_device_tlb();
        if self.ecap.page_requests() {
            entry.with_page_requests()
        } else {
            entry
        }
    }

    /// Lets translation and page requests of `source` through, whose context entry at `at` is `before`.
    fn open_tlb(
        &mut self,
        at: u64,
        source: RequesterId,
        before: ScalableContextEntry,
    ) -> Result<(), DriverError> {
        let open = self.letting_through(before);
        self.memory.write(at, Width::Eight, open.0[0]);
        // The device-TLB holds nothing: no translation request was answered before.
        let done = self.forget_context(source).and_then(|()| self.wait());
        done.inspect_err(|_| self.memory.write(at, Width::Eight, before.0[0]))
    }

    /// Whether a device-TLB of `source` is filled through any of its entries but that of `except`.
    pub(super) fn fills_tlb(&self, source: RequesterId, except: Option<Attachment>) -> bool {
        let Some(device) = self.devices.get(&source) else {
            return false;
        };
        let plain = device.plain.iter().map(|way| (None, way));
        let pasids = device.pasids.iter();
        plain
            .chain(pasids.map(|(pasid, way)| (Some(*pasid), way)))
            .filter(|(pasid, _)| except.is_none_or(|except| except.pasid != *pasid))
            .any(|(_, way)| way.tlb.is_some())
    }

    /// Lets no translation or page request of `source` through any more, if any was: its last entry that names a
    /// device-TLB is gone. What the device keeps of the others, all but `except`, is forgotten.
    pub(super) fn close_tlb(
        &mut self,
        source: RequesterId,
        except: Option<Attachment>,
    ) -> Result<(), DriverError> {
        let Some(&device) = self.tlbs.get(&source) else {
            return Ok(());
        };
        // In legacy mode the entry that is gone was all.
        if self.mode == Mode::Scalable {
            let half = u64::from(source.device() >= 16);
            let at = word_at(RootEntry::address(self.root, source), half);
            let contexts = self.table_at(at, |table| RootHalf::new(table).0)?;
            let at = ScalableContextEntry::address(contexts, source);
            let low = self.memory.load(at, Width::Eight);
            let closed = ScalableContextEntry([low, 0, 0, 0]).without_device_tlb();
            self.memory.write(at, Width::Eight, closed.0[0]);
            self.forget_context(source)?;
            self.ask_device_tlb(device, None, AtsRange::ALL)?;
            let gone = except.and_then(|except| except.pasid);
            let known = self.devices.get(&source);
            let pasids = known.into_iter().flat_map(|known| known.pasids.keys());
            let others: Vec<Pasid> = pasids.copied().filter(|one| Some(*one) != gone).collect();
            for pasid in others {
                self.ask_device_tlb(device, Some(pasid), AtsRange::ALL)?;
            }
            self.wait()?;
        }
        self.tlbs.remove(&source);
        Ok(())
    }

    /// Asks for a scalable-mode context entry to be forgotten that was changed while present, and all that was found
    /// through it: "Guidance to Software for Invalidations".
    fn forget_context(&mut self, source: RequesterId) -> Result<(), DriverError> {
        // Scalable-mode context entries are not tagged with a domain.
        self.ask(Descriptor::Context(ContextScope::Device {
            domain: 0,
            source,
            function_mask: 0,
        }))?;
        let mut ids = BTreeSet::new();
        if let Some(device) = self.devices.get(&source) {
            ids.extend(device.ways().map(|way| way.id));
            ids.extend(device.holding.as_ref().map(|holding| holding.id));
        }
        if self.cap.caching_mode() {
            // Absent entries are cached under 0.
            ids.insert(0);
        }
        for &domain in &ids {
            self.ask(Descriptor::PasidCache(PasidCacheScope::Domain { domain }))?;
        }
        for &domain in &ids {
            self.ask_iotlb(domain, None)?;
        }
        Ok(())
    }
}
