// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host-physical memory, a pool of frames for tables in it, and a guest's memory mapped onto it.
//!
//! ```text
//!  guest-physical   0 .......... ram        MMIO from MMIO on, nothing elsewhere
//!                   |   |
//!  host-physical    RAM + ram    elsewhere, page by page, after a migration      frames from FRAMES on
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, Span, UpdateEntry, Width};

use crate::mmu::{Backed, Backing, HostMap, HostRights};

/// Where a guest's memory begins in host-physical memory.
const RAM: u64 = 0x1_0000_0000;
/// Where pages go that migrate.
const ELSEWHERE: u64 = 0x8_0000_0000;
/// Where frames for tables begin: below 4 GiB, as PAE's roots must.
const FRAMES: u64 = 0x4000_0000;
/// Where a guest's devices are: 1 MiB.
const MMIO: u64 = 0xfee0_0000;

/// Words of a page.
const WORDS: usize = 512;

/// What a frame holds that nobody has written.
const GARBAGE: u64 = 0xbad0_0bad_0bad_0fff;

/// No memory there, or a failure on command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// Guest-physical address.
    pub at: u64,
}

/// All memory there is. Not for threads.
#[derive(Debug)]
pub struct FakeHost {
    /// Pages of words; what was never written is 0.
    pages: RefCell<BTreeMap<u64, Vec<u64>>>,
    ram: u64,
    /// Guest pages that are not where they were at first, or not writable.
    moved: RefCell<BTreeMap<u64, (u64, HostRights)>>,
    used: RefCell<BTreeSet<u64>>,
    free: RefCell<Vec<u64>>,
    next_frame: Cell<u64>,
    next_page: Cell<u64>,
    /// Allocations and guest reads until one fails.
    allocations: Cell<u64>,
    reads: Cell<u64>,
    fail_allocation: Cell<Option<u64>>,
    fail_read: Cell<Option<u64>>,
}

impl FakeHost {
    /// `ram` bytes of zeros for the guest.
    #[must_use]
    pub fn new(ram: u64) -> Self {
        Self {
            pages: RefCell::default(),
            ram,
            moved: RefCell::default(),
            used: RefCell::default(),
            free: RefCell::default(),
            next_frame: Cell::new(FRAMES),
            next_page: Cell::new(ELSEWHERE),
            allocations: Cell::new(0),
            reads: Cell::new(0),
            fail_allocation: Cell::new(None),
            fail_read: Cell::new(None),
        }
    }

    /// A guest-physical address where devices are.
    pub const MMIO: u64 = MMIO;

    /// Makes allocation number `n` from now fail, counting from 0; `None`: no more.
    pub fn fail_allocation(&self, n: Option<u64>) {
        self.fail_allocation
            .set(n.map(|n| self.allocations.get() + n));
    }

    /// Makes guest read (or update) number `n` from now fail.
    pub fn fail_read(&self, n: Option<u64>) {
        self.fail_read.set(n.map(|n| self.reads.get() + n));
    }

    /// Allocations and guest reads so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.allocations.get(), self.reads.get())
    }

    /// What `look` sees, without failures on command and without counting.
    pub(super) fn undisturbed<R>(&self, look: impl FnOnce() -> R) -> R {
        let (reads, fail) = (self.reads.get(), self.fail_read.take());
        let seen = look();
        self.reads.set(reads);
        self.fail_read.set(fail);
        seen
    }

    /// Whether table frame `frame` is in use.
    #[must_use]
    pub fn in_use(&self, frame: u64) -> bool {
        self.used.borrow().contains(&frame)
    }

    /// How many frames are.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.used.borrow().len()
    }

    /// Host-physical address of a guest-physical one, if it is memory.
    #[must_use]
    pub fn host(&self, guest: u64) -> Option<u64> {
        match self.backing(guest) {
            Backing::Memory {
                guest: span, host, ..
            } => Some(host + (guest - span.start)),
            Backing::Mmio | Backing::Absent => None,
        }
    }

    /// The guest-physical address that is at host-physical `host` now.
    #[must_use]
    pub fn guest_of(&self, host: u64) -> Option<u64> {
        let (page, offset) = (host & !0xfff, host & 0xfff);
        let moved = self.moved.borrow();
        let there = moved.iter().find(|&(_, &(to, _))| to == page);
        match there {
            Some((&guest, _)) => Some(guest + offset),
            None => {
                let guest = page.checked_sub(RAM)?;
                (guest < self.ram && !moved.contains_key(&guest)).then_some(guest + offset)
            }
        }
    }

    /// The guest's page at `guest` gets other host memory with the same content. What it had is gone:
    /// tell the MMU of what is returned.
    pub fn migrate(&self, guest: u64) -> Option<Backed> {
        let guest = guest & !0xfff;
        let old = self.host(guest)?;
        let new = self.next_page.get();
        self.next_page.set(new + 0x1000);
        let mut pages = self.pages.borrow_mut();
        if let Some(content) = pages.insert(old, vec![GARBAGE; WORDS]) {
            pages.insert(new, content);
        }
        drop(pages);
        let rights = self.rights(guest);
        self.moved.borrow_mut().insert(guest, (new, rights));
        Some(Backed {
            guest,
            host: old,
            length: 0x1000,
        })
    }

    /// Gives the guest's page at `guest` other rights.
    pub fn set_rights(&self, guest: u64, rights: HostRights) -> Option<Backed> {
        let guest = guest & !0xfff;
        let host = self.host(guest)?;
        self.moved.borrow_mut().insert(guest, (host, rights));
        Some(Backed {
            guest,
            host,
            length: 0x1000,
        })
    }

    fn rights(&self, guest: u64) -> HostRights {
        let moved = self.moved.borrow();
        moved
            .get(&(guest & !0xfff))
            .map_or(HostRights::ALL, |(_, rights)| *rights)
    }

    /// What is at host-physical `at`.
    #[must_use]
    pub fn load(&self, at: u64, width: Width) -> u64 {
        let pages = self.pages.borrow();
        let page = pages.get(&(at & !0xfff));
        let word = page.map_or(0, |words| words[(at & 0xfff) as usize / 8]);
        match width {
            Width::Eight => word,
            Width::Four => word >> (8 * (at & 4)) & 0xffff_ffff,
        }
    }

    /// Stores at host-physical `at`.
    pub fn store(&self, at: u64, width: Width, value: u64) {
        let mut pages = self.pages.borrow_mut();
        let page = pages.entry(at & !0xfff).or_insert_with(|| vec![0; WORDS]);
        let word = &mut page[(at & 0xfff) as usize / 8];
        match width {
            Width::Eight => *word = value,
            Width::Four => {
                let shift = 8 * (at & 4);
                *word = *word & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
            }
        }
    }

    /// Every word of the guest's memory between two guest-physical addresses that is not 0.
    #[must_use]
    pub fn guest_words(&self, from: u64, to: u64) -> BTreeMap<u64, u64> {
        (from..to)
            .step_by(0x1000)
            .filter_map(|page| Some((page, self.host(page)?)))
            .flat_map(|(page, host)| {
                let pages = self.pages.borrow();
                let words = pages.get(&host).cloned().unwrap_or_default();
                let at = (page..).step_by(8);
                at.zip(words).filter(|&(_, word)| word != 0)
            })
            .collect()
    }

    /// The guest's side of it.
    #[must_use]
    pub const fn guest(&self) -> GuestView<'_> {
        GuestView(self)
    }

    fn check(&self, at: u64) {
        let frame = at & !0xfff;
        assert!(self.in_use(frame), "{at:#x} is in no table's frame");
    }
}

impl HostMap for FakeHost {
    fn memory_from(&self, guest: u64) -> Option<u64> {
        (guest < self.ram).then_some(guest)
    }

    fn backing(&self, guest: u64) -> Backing {
        if (MMIO..MMIO + 0x10_0000).contains(&guest) {
            return Backing::Mmio;
        }
        if guest >= self.ram {
            return Backing::Absent;
        }
        let page = guest & !0xfff;
        let moved = self.moved.borrow();
        if let Some(&(host, rights)) = moved.get(&page) {
            return Backing::Memory {
                guest: Span::new(page, 0x1000),
                host,
                rights,
            };
        }
        // As far as nothing has changed on either side.
        let start = moved.range(..page).next_back();
        let start = start.map_or(0, |(&at, _)| at + 0x1000);
        let end = moved.range(page..).next().map_or(self.ram, |(&at, _)| at);
        Backing::Memory {
            guest: Span::from(start..end),
            host: RAM + start,
            rights: HostRights::ALL,
        }
    }
}

/// A guest's memory, by guest-physical address.
#[derive(Clone, Copy, Debug)]
pub struct GuestView<'a>(&'a FakeHost);

impl GuestView<'_> {
    fn place(&self, at: u64) -> Result<u64, NoMemory> {
        let n = self.0.reads.get();
        self.0.reads.set(n + 1);
        if self.0.fail_read.get() == Some(n) {
            return Err(NoMemory { at });
        }
        self.0.host(at).ok_or(NoMemory { at })
    }
}

impl ReadEntry for GuestView<'_> {
    type Error = NoMemory;

    fn read(&self, at: u64, width: Width) -> Result<u64, NoMemory> {
        Ok(self.0.load(self.place(at)?, width))
    }
}

impl UpdateEntry for GuestView<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, NoMemory> {
        let host = self.place(at)?;
        let found = self.0.load(host, width);
        if found == current {
            self.0.store(host, width, new);
        }
        Ok(found)
    }
}

/// The tables' side: entries by host-physical address.
impl ReadEntry for FakeHost {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        self.check(at);
        Ok(self.load(at, width))
    }
}

impl UpdateEntry for FakeHost {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        self.check(at);
        let found = self.load(at, width);
        if found == current {
            self.store(at, width, new);
        }
        Ok(found)
    }
}

impl OwnEntries for FakeHost {
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.check(at);
        self.store(at, width, entry);
    }

    /// As [`write`](Self::write) for each entry; a frame that is filled as a whole is looked for once.
    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        if width != Width::Eight || at & 0xfff != 0 || count > WORDS as u64 {
            for i in 0..count {
                self.write(at + i * width.bytes(), width, entry(i));
            }
            return;
        }
        self.check(at);
        // Before the page is taken: what makes the entries may read memory.
        let words: Vec<u64> = (0..count).map(entry).collect();
        let mut pages = self.pages.borrow_mut();
        let page = pages.entry(at).or_insert_with(|| vec![0; WORDS]);
        page[..words.len()].copy_from_slice(&words);
    }
}

impl Frames for FakeHost {
    fn allocate(&self) -> Option<u64> {
        let n = self.allocations.get();
        self.allocations.set(n + 1);
        if self.fail_allocation.get() == Some(n) {
            return None;
        }
        let frame = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let frame = self.next_frame.get();
            self.next_frame.set(frame + 0x1000);
            frame
        });
        self.pages.borrow_mut().insert(frame, vec![GARBAGE; WORDS]);
        self.used.borrow_mut().insert(frame);
        Some(frame)
    }

    fn free(&self, frame: u64) {
        assert!(
            self.used.borrow_mut().remove(&frame),
            "frame {frame:#x} was not allocated"
        );
        self.free.borrow_mut().push(frame);
    }
}
