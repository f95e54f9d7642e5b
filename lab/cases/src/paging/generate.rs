// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A case from a seed and a number.
//!
//! Every case has a path of entries for its linear address, most of which grant what is asked; then
//! some bits are spoilt. What no case may do is decided here too, for the monitor must survive: root
//! entries 0 (and 1 in 32-bit paging) are the monitor's own, code is fetched from the pattern only, and
//! memory that is written is the pattern's or none.

use super::map::{
    ARENA, CODE_OFFSETS, DATA_OFFSETS, HARNESS_PD, HARNESS_PDPT, HARNESS_PT_LOW, HARNESS_PT_USER,
    PATTERN, PATTERN_BYTES,
};
use crate::{Entries, Random};

/// The paging mode of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Protected mode without paging.
    Unpaged,
    /// 32-bit paging.
    ThirtyTwoBit,
    /// PAE paging.
    Pae,
    /// 4-level paging, in 64-bit mode.
    FourLevel,
}

/// What a case does at its linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Reads 4 bytes.
    Read,
    /// Writes 4 bytes just above the linear address, then reads 4 bytes at it.
    Write,
    /// Exchanges 4 bytes.
    Exchange,
    /// Jumps there.
    Fetch,
    /// Reads a descriptor of an LDT there (VERR): an implicit supervisor access.
    Implicit,
    /// Writes 4 bytes of zero just above the linear address by WRUSS: at CPL 0, a user-mode access to a
    /// shadow stack.
    ShadowStack,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// CPL 3.
    User,
    /// CPL 0, EFLAGS.AC clear.
    Supervisor,
    /// CPL 0, EFLAGS.AC set.
    SupervisorAc,
}

/// What the processor model has, as far as cases depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// MAXPHYADDR.
    pub physical_address_bits: u8,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// CR4 bits among SMEP, SMAP, PKE, CET and PKS that can be set.
    pub cr4: u32,
}

impl Cpu {
    /// Bytes of it on the serial line.
    pub const BYTES: usize = 6;

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.cr4.to_le_bytes();
        [
            self.physical_address_bits,
            u8::from(self.gib_pages),
            a,
            b,
            c,
            d,
        ]
    }

    /// What was sent.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [physical_address_bits, gib_pages, a, b, c, d] = bytes;
        Self {
            physical_address_bits,
            gib_pages: gib_pages != 0,
            cr4: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// CR0.PG and CR0.WP.
const PG: u64 = 1 << 31;
const WP: u64 = 1 << 16;
/// CR4.PSE, CR4.PAE, and those that need a feature.
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PKE: u64 = 1 << 22;
const CET: u64 = 1 << 23;
const PKS: u64 = 1 << 24;
/// EFER.LME and EFER.NXE.
const LME: u64 = 1 << 8;
const NXE: u64 = 1 << 11;

/// An entry of the monitor: P, R/W, U/S, A and D.
const OURS: u64 = 0x67;
/// PS.
const PS: u64 = 1 << 7;

/// One case: registers, tables, one access.
#[derive(Clone, Debug)]
pub struct Case {
    /// The paging mode.
    pub mode: Mode,
    /// CR0's PG and WP.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4's PSE, PAE, SMEP, SMAP, PKE, CET and PKS.
    pub cr4: u64,
    /// EFER's LME and NXE.
    pub efer: u64,
    /// PKRU.
    pub pkru: u32,
    /// `IA32_PKRS`.
    pub pkrs: u32,
    /// The linear address.
    pub linear: u64,
    /// What is done there.
    pub doing: Doing,
    /// By whom.
    pub who: Who,
    /// The tables.
    pub entries: Entries<12>,
}

impl Case {
    /// Case `index` of the run with `seed`, on `cpu`.
    #[must_use]
    pub fn new(seed: u64, index: u64, cpu: &Cpu) -> Self {
        let mut random = Random::of_case(seed, index);
        let r = &mut random;
        let mode = match r.below(20) {
            0 => Mode::Unpaged,
            1..=5 => Mode::ThirtyTwoBit,
            6..=10 => Mode::Pae,
            _ => Mode::FourLevel,
        };
        let (needs, pg, lme) = match mode {
            Mode::Unpaged => (0, 0, 0),
            Mode::ThirtyTwoBit => (0, PG, 0),
            Mode::Pae => (PAE, PG, 0),
            Mode::FourLevel => (PAE, PG, LME),
        };
        let optional = r.bit(SMEP, 1, 3) | r.bit(SMAP, 1, 3) | r.bit(PKE, 1, 2) | r.bit(PKS, 1, 2);
        let doing = match r.below(8) {
            0 | 1 => Doing::Read,
            2 => Doing::Write,
            3 => Doing::Exchange,
            4 | 5 => Doing::Fetch,
            6 if u64::from(cpu.cr4) & CET != 0 => Doing::ShadowStack,
            _ => Doing::Implicit,
        };
        let cet = if doing == Doing::ShadowStack { CET } else { 0 };
        let mut case = Self {
            mode,
            // "CR4.CET can be set only if CR0.WP is set."
            cr0: pg | if cet != 0 { WP } else { r.bit(WP, 1, 2) },
            cr3: 0,
            cr4: needs | cet | r.bit(PSE, 3, 4) | optional & u64::from(cpu.cr4),
            efer: lme | r.bit(NXE, 3, 4),
            // The monitor's own pages have key 0.
            pkru: (r.next() & r.next()) as u32 & !3,
            pkrs: (r.next() & r.next()) as u32 & !3,
            linear: 0,
            doing,
            who: match r.below(3) {
                0 if doing != Doing::ShadowStack => Who::User,
                1 => Who::Supervisor,
                _ => Who::SupervisorAc,
            },
            entries: Entries::default(),
        };
        let offset = match doing {
            Doing::Fetch => r.pick(&CODE_OFFSETS),
            _ => r.pick(&DATA_OFFSETS),
        };
        let builder = Builder {
            case: &mut case,
            cpu,
            r,
            offset,
            // Not the four PDPTEs: one of them is the monitor's.
            root: if mode == Mode::Pae {
                ARENA + 0x1000
            } else {
                ARENA
            },
        };
        match mode {
            Mode::Unpaged => builder.unpaged(),
            Mode::ThirtyTwoBit => builder.thirty_two_bit(),
            Mode::Pae => builder.pae(),
            Mode::FourLevel => builder.four_level(),
        }
        case
    }
}

/// Makes a case's tables.
struct Builder<'a> {
    case: &'a mut Case,
    cpu: &'a Cpu,
    r: &'a mut Random,
    /// Of the access, in its page.
    offset: u64,
    /// The highest table that may be reached again further down.
    root: u64,
}

impl Builder<'_> {
    fn unpaged(self) {
        self.case.cr3 = ARENA;
        self.case.linear = PATTERN + (self.r.below(PATTERN_BYTES >> 12) << 12) + self.offset;
    }

    fn thirty_two_bit(mut self) {
        let root = self.root;
        self.case.cr3 = root | self.r.below(1 << 12);
        self.case.entries.add(root, 4, HARNESS_PT_LOW | OURS);
        self.case.entries.add(root + 4, 4, HARNESS_PT_USER | OURS);
        let indices = [2 + self.r.below(1022), 2 + self.r.below(1022)];
        self.case.linear = indices[1] << 22 | indices[0] << 12 | self.offset;
        let large = self.case.cr4 & PSE != 0 && self.r.chance(1, 3);
        let mut frame = root;
        for level in [2, 1] {
            let leaf = level == 1 || large;
            let mut entry = self.flags(leaf);
            if level == 2 && !leaf && self.case.cr4 & PSE == 0 {
                entry |= self.r.bit(PS, 1, 4); // ignored
            }
            let below = self.below(frame, level);
            entry |= match (leaf, level) {
                (false, _) => below,
                (true, 1) => self.small_target(),
                (true, _) => PS | PATTERN | self.r.below(8) << 22,
            };
            if leaf && level == 2 {
                entry |= self.r.bit(1 << 12, 1, 4); // PAT
            }
            let spoil = if large { 3 } else { 1 };
            if self.r.chance(spoil, 10) && self.case.doing != Doing::Fetch {
                entry |= self.spoil_32(level);
            }
            self.case
                .entries
                .add(frame + indices[level - 1] * 4, 4, entry);
            if leaf {
                break;
            }
            frame = below;
        }
    }

    fn pae(mut self) {
        let table = ARENA + (self.r.below(128) << 5);
        self.case.cr3 = table | self.r.below(1 << 5);
        let top = 1 + self.r.below(3);
        for index in 0..4 {
            let frame = ARENA + 0x1000;
            let ignored = self.r.next() & 0xe18;
            let entry = match index {
                0 => HARNESS_PD | 1,
                _ if index == top => frame | ignored | self.r.bit(1, 15, 16),
                _ => match self.r.below(3) {
                    0 => 0,
                    1 => self.r.next() & !1,
                    _ => frame | ignored | 1,
                },
            };
            let spoilt = if index != 0 && self.r.chance(1, 50) {
                let width = u64::from(self.cpu.physical_address_bits);
                let high = width + self.r.below(64 - width);
                1 << self.r.pick(&[1, 2, 5, 6, 7, 8, high])
            } else {
                0
            };
            self.case.entries.add(table + index * 8, 8, entry | spoilt);
        }
        let indices = [1 + self.r.below(511), 1 + self.r.below(511)];
        self.case.linear = top << 30 | indices[1] << 21 | indices[0] << 12 | self.offset;
        self.wide(&indices);
    }

    fn four_level(mut self) {
        let root = self.root;
        self.case.cr3 = root;
        self.case.entries.add(root, 8, HARNESS_PDPT | OURS);
        // Those of level 2 are such that a 1 GiB page at 0 leads to the pattern.
        let indices = [
            1 + self.r.below(511),
            16 + self.r.below(16),
            1 + self.r.below(511),
            1 + self.r.below(511),
        ];
        let linear = (0..)
            .zip(indices)
            .fold(self.offset, |sum, (i, index)| sum | index << (12 + 9 * i));
        let linear = ((linear << 16) as i64 >> 16) as u64;
        // The base of an LDT is checked when it is loaded: no such access can be made.
        let canonical = self.case.doing == Doing::Implicit || !self.r.chance(1, 40);
        self.case.linear = if canonical {
            linear
        } else {
            linear ^ 1 << (47 + self.r.below(17))
        };
        self.wide(&indices);
    }

    /// Entries of 8 bytes for `indices`, that of level 1 first, from the root down.
    fn wide(&mut self, indices: &[u64]) {
        let mut frame = self.root;
        for level in (1..=indices.len()).rev() {
            let large = match level {
                2 => self.r.chance(1, 4),
                3 => self.cpu.gib_pages && self.r.chance(1, 6),
                _ => false,
            };
            let leaf = level == 1 || large;
            let mut entry = self.flags(leaf);
            entry |= self.r.bit(1 << 63, 1, if leaf { 6 } else { 16 });
            if self.case.mode == Mode::FourLevel {
                entry |= self.r.below(16) << 59; // key
                entry |= (self.r.next() & self.r.next() & 0x7f) << 52; // ignored
            }
            let below = self.below(frame, level);
            entry |= match (leaf, level) {
                (false, _) => below,
                (true, 1) => self.small_target(),
                (true, 2) => PS | PATTERN | self.r.below(16) << 21,
                (true, _) => PS,
            };
            if large {
                entry |= self.r.bit(1 << 12, 1, 4); // PAT
            }
            if self.r.chance(1, 12) {
                entry |= self.spoil_64(leaf);
            }
            self.case
                .entries
                .add(frame + indices[level - 1] * 8, 8, entry);
            if leaf {
                break;
            }
            frame = below;
        }
    }

    /// P, R/W, U/S, PWT, PCD, A, D, G and the ignored bits 11 to 9: mostly granting.
    fn flags(&mut self, leaf: bool) -> u64 {
        let r = &mut *self.r;
        let used = r.bit(1 << 5, 1, 2) | r.bit(1 << 6, 1, 2);
        let rights = r.bit(1, 19, 20) | r.bit(1 << 1, 4, 5) | r.bit(1 << 2, 4, 5);
        let other = r.bit(1 << 3, 1, 8) | r.bit(1 << 4, 1, 8) | (r.next() & r.next() & 7) << 9;
        let global = if leaf { r.bit(1 << 8, 1, 4) } else { 0 };
        let flags = used | rights | other | global;
        if leaf && self.case.doing == Doing::ShadowStack && r.chance(2, 3) {
            // R/W clear, D set: what it takes.
            return flags & !(1 << 1) | 1 << 6;
        }
        flags
    }

    /// The frame of the table under an entry in `frame`: the next one or, for reads now and then, one
    /// that is a table already.
    fn below(&mut self, frame: u64, level: usize) -> u64 {
        if self.case.doing == Doing::Read && level > 1 && self.r.chance(1, 24) {
            return self.r.pick(&[self.root, frame]);
        }
        frame + 0x1000
    }

    /// A page of 4 KiB: of the pattern or, for reads now and then, of the tables.
    fn small_target(&mut self) -> u64 {
        if self.case.doing == Doing::Read && self.r.chance(1, 24) {
            return ARENA + (self.r.below(5) << 12);
        }
        PATTERN + (self.r.below(PATTERN_BYTES >> 12) << 12)
    }

    /// Bits of an 8-byte entry that make it malformed, or lead elsewhere.
    fn spoil_64(&mut self, leaf: bool) -> u64 {
        let width = u64::from(self.cpu.physical_address_bits);
        let fetch = self.case.doing == Doing::Fetch;
        let bit = match self.r.below(6) {
            0 => 7,
            // Another table, or page: code must not be fetched from tables.
            1 if leaf || !fetch => 12 + self.r.below(9),
            // Where there is no memory, and no code.
            2 if !fetch => 28 + self.r.below(width - 28),
            3 => 52 + self.r.below(12),
            _ => width + self.r.below(52 - width),
        };
        1 << bit
    }

    /// The same for a 4-byte entry of a data access.
    fn spoil_32(&mut self, level: usize) -> u64 {
        match level {
            2 => 1 << self.r.pick(&[7, 12, 13, 14, 16, 18, 20, 21]),
            _ => 1 << self.r.pick(&[7, 28, 29, 30]),
        }
    }
}
