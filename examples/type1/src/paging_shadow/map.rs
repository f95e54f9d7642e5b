// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What memory the guest has under shadow paging, and its tables in it.
//!
//! Guest-physical addresses are physical ones. Nothing here leads to this program: no leaf can be made to its pages, and
//! tables that a guest puts there read as zeros.

use alloc::collections::BTreeSet;
use core::cell::RefCell;
use core::convert::Infallible;

use hvkit_ept::builder::{Kind, Region};
use hvkit_page_table::{PhysicalWindow, ReadEntry, Span, UpdateEntry, Width};
use hvkit_shadow_paging::mmu::{Backing, HostMap, HostRights};

use super::trace::Recorder;
use crate::memory::FRAME;

/// The guest's map.
pub struct Map<'a> {
    regions: &'a [Region],
    /// A page of zeros, and the pages for which it stands.
    nothing: u64,
    shown: RefCell<BTreeSet<u64>>,
}

impl<'a> Map<'a> {
    /// A map of these regions. At `nothing` is a frame of zeros.
    pub fn new(regions: &'a [Region], nothing: u64) -> Self {
        Self {
            regions,
            nothing,
            shown: RefCell::new(BTreeSet::new()),
        }
    }

    /// From now on, the page at `physical`, which is not the guest's, reads as zeros.
    pub fn read_as_nothing(&self, physical: u64) {
        self.shown.borrow_mut().insert(physical & !(FRAME - 1));
    }

    fn region(&self, physical: u64) -> Option<&Region> {
        let inside = |region: &&Region| physical.wrapping_sub(region.guest) < region.length;
        self.regions.iter().find(inside)
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        self.regions
    }

    /// Whether the guest may write `length` bytes there as memory.
    pub fn is_ram(&self, physical: u64, length: u64) -> bool {
        self.region(physical).is_some_and(|region| {
            matches!(region.kind, Kind::Ram { .. })
                && physical - region.guest + length <= region.length
        })
    }
}

impl HostMap for Map<'_> {
    fn backing(&self, guest: u64) -> Backing {
        let memory = |region: &Region, host, rights| Backing::Memory {
            guest: Span::new(region.guest, region.length),
            host,
            rights,
        };
        match self.region(guest).map(|region| (region, region.kind)) {
            Some((region, Kind::Ram { host })) => memory(region, host, HostRights::ALL),
            Some((region, Kind::Rom { host })) => memory(region, host, HostRights::READ_ONLY),
            // Passed through; the guest's own page attributes and the MTRRs say how it is cached.
            Some((region, Kind::Device { host })) => {
                let rights = HostRights {
                    write: true,
                    execute: false,
                };
                memory(region, host, rights)
            }
            Some((_, Kind::Emulated)) | None => {
                let page = guest & !(FRAME - 1);
                if !self.shown.borrow().contains(&page) {
                    return Backing::Absent;
                }
                Backing::Memory {
                    guest: Span::new(page, FRAME),
                    host: self.nothing,
                    rights: HostRights {
                        write: false,
                        execute: false,
                    },
                }
            }
        }
    }
}

/// The guest's memory, by guest-physical address. As table entries, what is not the guest's RAM reads as zeros and takes no writes.
pub struct GuestMemory<'a> {
    map: &'a Map<'a>,
    window: &'a PhysicalWindow,
    /// Where the window begins: page 0 is not in it.
    start: u64,
    /// Is told of the entries that are read.
    recorder: RefCell<Option<Recorder>>,
}

impl<'a> GuestMemory<'a> {
    /// Memory by `map`, seen through `window`, which begins at `start`.
    pub fn new(map: &'a Map<'a>, window: &'a PhysicalWindow, start: u64) -> Self {
        Self {
            map,
            window,
            start,
            recorder: RefCell::new(None),
        }
    }

    /// From now on, `recorder` is told of the entries that are read.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = RefCell::new(Some(recorder));
    }

    /// Does something with the recorder, if there is one.
    pub fn recorded(&self, tell: impl FnOnce(&mut Recorder)) {
        if let Some(recorder) = &mut *self.recorder.borrow_mut() {
            tell(recorder);
        }
    }

    fn has(&self, at: u64, length: u64) -> bool {
        at >= self.start && self.map.is_ram(at, length)
    }

    /// `length` bytes, at most 8, that may straddle words but not leave the page. `None` if they are not in the guest's RAM: what ROM and
    /// devices have is not known here.
    pub fn load(&self, at: u64, length: u64) -> Option<u64> {
        let aligned = at & !7;
        let low = self.word(aligned)?;
        let shift = (at - aligned) * 8;
        let mut value = low >> shift;
        if shift + length * 8 > 64 {
            value |= self.word(aligned + 8)? << (64 - shift);
        }
        Some(value & mask(length))
    }

    /// Stores `length` bytes, at most 8, that do not straddle words. Nothing, if they are not in the guest's RAM.
    pub fn store(&self, at: u64, length: u64, value: u64) {
        use hvkit_page_table::OwnEntries;
        let (aligned, shift) = (at & !7, (at & 7) * 8);
        let mask = mask(length) << shift;
        let Some(old) = self.word(aligned) else {
            return;
        };
        let new = old & !mask | value << shift & mask;
        self.window.write(aligned, Width::Eight, new);
    }

    fn word(&self, at: u64) -> Option<u64> {
        if !self.has(at, 8) {
            return None;
        }
        let Ok(word) = self.window.read(at, Width::Eight);
        Some(word)
    }
}

/// The low `length` bytes, at most 8.
pub const fn mask(length: u64) -> u64 {
    u64::MAX >> (64 - 8 * length)
}

impl ReadEntry for GuestMemory<'_> {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        if !self.has(at, width.bytes()) {
            return Ok(0);
        }
        let Ok(entry) = self.window.read(at, width);
        self.recorded(|recorder| recorder.read(at, entry));
        Ok(entry)
    }
}

impl UpdateEntry for GuestMemory<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        if !self.has(at, width.bytes()) {
            return Ok(current);
        }
        let Ok(found) = self.window.compare_exchange(at, width, current, new);
        if found == current {
            self.recorded(|recorder| recorder.marked(at, new));
        }
        Ok(found)
    }
}
