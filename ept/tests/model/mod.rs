// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A processor, written down a second time: EPT, and a toy guest's paging over it, sentence by sentence
//! from the manual, with plain numbers and flags that are set the moment they are.
//!
//! Shares no code with the crate.

use std::collections::BTreeMap;

/// How the processor is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) levels: u32,
    pub(crate) root: u64,
    pub(crate) sppt: u64,
    pub(crate) width: u32,
    pub(crate) execute_only: bool,
    pub(crate) large: bool,
    pub(crate) huge: bool,
    pub(crate) advanced: bool,
    pub(crate) mbe: bool,
    pub(crate) ad: bool,
    pub(crate) sss: bool,
    pub(crate) ve: bool,
    pub(crate) pw: bool,
    pub(crate) gpv: bool,
    pub(crate) spp: bool,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    Misconfigured,
    Table,
    Page,
}

/// An exit, or the guest's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Guest-physical address, qualification, convertible to #VE.
    Violation(u64, u64, bool),
    /// Guest-physical address, level, entry.
    Misconfiguration(u64, u32, u64),
    /// Guest-physical address, qualification.
    SubPage(u64, u64),
    /// Error code.
    PageFault(u32),
}

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// Nothing linear.
    Nothing,
    /// A guest paging-structure entry.
    Structure,
    /// The page: user-mode address, writable, execute-disable; all guest structures paging-writable.
    Page(bool, bool, bool, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    No,
    User,
    Supervisor,
}

#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    pub(crate) setup: Setup,
    pub(crate) memory: BTreeMap<u64, u64>,
    /// What page-modification logging would hold.
    pub(crate) logged: Vec<u64>,
}

fn bit(word: u64, n: u32) -> bool {
    word >> n & 1 == 1
}

impl Cpu {
    fn word(&self, at: u64) -> u64 {
        self.memory.get(&at).copied().unwrap_or(0)
    }

    /// "EPT Misconfigurations".
    fn misconfigured(&self, entry: u64, level: u32, page: bool) -> bool {
        let s = &self.setup;
        if !bit(entry, 0) {
            if bit(entry, 1) {
                return true;
            }
            if !s.execute_only && (bit(entry, 2) || s.mbe && bit(entry, 10)) {
                return true;
            }
            if s.pw && page && bit(entry, 58) {
                return true;
            }
        }
        if (s.width..52).any(|n| bit(entry, n)) {
            return true;
        }
        match (level, page) {
            (4 | 5, _) => (3..=7).any(|n| bit(entry, n)),
            (2 | 3, false) => (3..=7).any(|n| bit(entry, n)),
            (2, true) if (12..21).any(|n| bit(entry, n)) => true,
            (3, true) if (12..30).any(|n| bit(entry, n)) => true,
            _ => matches!(entry >> 3 & 7, 2 | 3 | 7),
        }
    }

    /// What an entry of a structure at `level` is.
    pub(crate) fn kind(&self, entry: u64, level: u32) -> Kind {
        let s = &self.setup;
        if entry & 7 == 0 && !(s.mbe && bit(entry, 10)) {
            return Kind::Absent;
        }
        let page = level == 1 || bit(entry, 7) && (level == 2 && s.large || level == 3 && s.huge);
        match (self.misconfigured(entry, level, page), page) {
            (true, _) => Kind::Misconfigured,
            (false, true) => Kind::Page,
            (false, false) => Kind::Table,
        }
    }

    /// One access to a guest-physical address. Read, write, fetch.
    pub(crate) fn access(
        &mut self,
        gpa: u64,
        (mut r, mut w, x): (bool, bool, bool),
        what: For,
        stack: Stack,
    ) -> Result<(u64, u64), End> {
        let s = self.setup;
        if s.ad && what == For::Structure {
            (r, w) = (true, true);
        }
        let mut qualification = u64::from(r) | u64::from(w) << 1 | u64::from(x) << 2;
        match what {
            For::Nothing => {}
            For::Structure => qualification |= 1 << 7,
            For::Page(user, writable, xd, _) => {
                qualification |= 3 << 7;
                if s.advanced {
                    qualification |= u64::from(user) << 9;
                    qualification |= u64::from(writable) << 10 | u64::from(xd) << 11;
                }
            }
        }
        if stack != Stack::No {
            qualification |= 1 << 13;
        }
        let bits = if s.levels == 4 { 48 } else { 57 };
        if gpa >> bits != 0 {
            return Err(End::Violation(gpa, qualification, false));
        }
        let (mut table, mut level) = (s.root, s.levels);
        let mut path = vec![];
        loop {
            let at = table + (gpa >> (12 + 9 * (level - 1)) & 511) * 8;
            let entry = self.word(at);
            let kind = self.kind(entry, level);
            if kind == Kind::Absent {
                return Err(End::Violation(gpa, qualification, s.ve && !bit(entry, 63)));
            }
            if kind == Kind::Misconfigured {
                return Err(End::Misconfiguration(gpa, level, entry));
            }
            path.push((at, entry));
            if kind == Kind::Page {
                break;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            level -= 1;
        }
        let leaf = path[path.len() - 1].1;
        let every = |n| path.iter().all(|&(_, entry)| bit(entry, n));
        let upper = |n| {
            path[..path.len() - 1]
                .iter()
                .all(|&(_, entry)| bit(entry, n))
        };
        qualification |= u64::from(every(0)) << 3 | u64::from(every(1)) << 4;
        qualification |= u64::from(every(2)) << 5;
        if s.mbe {
            qualification |= u64::from(every(10)) << 6;
        }
        if s.sss {
            qualification |= u64::from(bit(leaf, 60)) << 14;
        }
        let mut sub_page = false;
        let allowed = if s.sss && stack == Stack::Supervisor {
            every(0) && upper(1) && bit(leaf, 60)
        } else {
            let paging_write = s.pw && what == For::Structure && bit(leaf, 58) && upper(1);
            let may_write = every(1) || paging_write;
            let user = matches!(what, For::Page(true, ..));
            let fetch = if s.mbe && user { every(10) } else { every(2) };
            sub_page = s.spp
                && level == 1
                && bit(leaf, 61)
                && matches!(what, For::Page(..))
                && every(0)
                && w
                && !may_write;
            (!r || every(0)) && (!w || may_write) && (!x || fetch)
        };
        if !allowed {
            if !sub_page || !self.sub_page(gpa)? {
                return Err(End::Violation(gpa, qualification, s.ve && !bit(leaf, 63)));
            }
        } else if let For::Page(_, _, _, false) = what
            && s.gpv
            && s.pw
            && bit(leaf, 57)
        {
            return Err(End::Violation(
                gpa,
                qualification | 1 << 15,
                s.ve && !bit(leaf, 63),
            ));
        }
        if s.ad {
            for (i, &(at, entry)) in path.iter().enumerate() {
                let mut new = entry | 1 << 8;
                if i + 1 == path.len() && w {
                    new |= 1 << 9;
                    if !bit(entry, 9) {
                        self.logged.push(gpa & !0xfff);
                    }
                }
                self.memory.insert(at, new);
            }
        }
        let size = 1u64 << (12 + 9 * (level - 1));
        let host = (leaf & 0x000f_ffff_ffff_f000 & !(size - 1)) + (gpa & (size - 1));
        Ok((host, leaf))
    }

    /// "Determining an Access's Sub-Page Write Permission".
    fn sub_page(&self, gpa: u64) -> Result<bool, End> {
        let mut table = self.setup.sppt;
        for shift in [39, 30, 21] {
            let entry = self.word(table + (gpa >> shift & 511) * 8);
            if !bit(entry, 0) {
                return Err(End::SubPage(gpa, 1 << 11));
            }
            if (1..12).chain(self.setup.width..64).any(|n| bit(entry, n)) {
                return Err(End::SubPage(gpa, 0));
            }
            table = entry & !0xfff;
        }
        let vector = self.word(table + (gpa >> 12 & 511) * 8);
        if vector & 0xaaaa_aaaa_aaaa_aaaa != 0 {
            return Err(End::SubPage(gpa, 0));
        }
        Ok(vector >> (2 * (gpa >> 7 & 31)) & 1 == 1)
    }

    /// A toy guest: two levels of 512 8-byte entries. P 0, R/W 1, U/S 2, A 5, D 6, PS 7 (2 MiB), XD 63;
    /// bits 51:46 reserved. Error codes as x86's.
    pub(crate) fn linear(
        &mut self,
        cr3: u64,
        address: u64,
        (r, w, x): (bool, bool, bool),
        user: bool,
        stack: Stack,
    ) -> Result<u64, End> {
        let code = u32::from(w) << 1 | u32::from(user) << 2 | u32::from(x) << 4;
        if address >> 30 != 0 {
            return Err(End::PageFault(code));
        }
        let mut paging_write = true;
        let mut seen = vec![];
        let mut table = cr3;
        for level in [2, 1] {
            let gpa = table + (address >> (12 + 9 * (level - 1)) & 511) * 8;
            let (host, leaf) = self.access(gpa, (true, false, false), For::Structure, Stack::No)?;
            paging_write &= self.setup.pw && bit(leaf, 58);
            let entry = self.word(host);
            if !bit(entry, 0) {
                return Err(End::PageFault(code));
            }
            if (46..52).any(|n| bit(entry, n)) {
                return Err(End::PageFault(code | 9));
            }
            seen.push((gpa, entry));
            table = entry & 0x000f_ffff_ffff_f000;
            if bit(entry, 7) || level == 1 {
                break;
            }
        }
        let every = |n| seen.iter().all(|&(_, entry)| bit(entry, n));
        let xd = seen.iter().any(|&(_, entry)| bit(entry, 63));
        if w && !every(1) || x && xd || user && !every(2) {
            return Err(End::PageFault(code | 1));
        }
        let last = seen.len() - 1;
        for (i, &(gpa, entry)) in seen.iter().enumerate() {
            let new = entry | 1 << 5 | if i == last && w { 1 << 6 } else { 0 };
            if new != entry {
                let (host, _) = self.access(gpa, (true, true, false), For::Structure, Stack::No)?;
                self.memory.insert(host, new);
            }
        }
        let size = if last == 0 { 1 << 21 } else { 1 << 12 };
        let gpa = (table & !(size - 1)) + (address & (size - 1));
        let page = For::Page(every(2), every(1), xd, paging_write);
        self.access(gpa, (r, w, x), page, stack)
            .map(|(host, _)| host)
    }
}
