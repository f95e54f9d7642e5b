// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A case's guest tables: each is a frame somewhere in the guest's memory, where EPT puts it.

use super::ept_tables::{EptTables, Role};
use super::map::{GUEST_FRAMES, GUEST_TABLES};
use super::{Case, Mode};
use crate::Random;

/// PS.
const PS: u64 = 1 << 7;
/// XD.
const XD: u64 = 1 << 63;

/// The shape of a mode's tables.
#[derive(Clone, Copy)]
struct Shape {
    /// The highest level that is in memory.
    top: u64,
    /// Bits of an index, bytes of an entry.
    index_bits: u64,
    entry_bytes: u64,
    /// Guest-physical addresses that entries can hold.
    address_bits: u64,
}

/// What leads to the tables, and how often that goes wrong.
pub(super) struct GuestTables<'a> {
    pub(super) case: &'a mut Case,
    pub(super) ept: &'a mut EptTables,
    pub(super) r: &'a mut Random,
    /// Of guest-physical addresses.
    pub(super) width: u64,
    /// What tables may be spoilt to.
    pub(super) role: Role,
    /// Of the root, in memory and for the guest; 0 before there is one.
    root: (u64, u64),
    frames: u64,
}

impl<'a> GuestTables<'a> {
    /// None yet.
    pub(super) fn new(
        case: &'a mut Case,
        ept: &'a mut EptTables,
        r: &'a mut Random,
        width: u64,
        role: Role,
    ) -> Self {
        Self {
            case,
            ept,
            r,
            width,
            role,
            root: (0, 0),
            frames: 0,
        }
    }

    fn shape(&self) -> Shape {
        let (top, index_bits, entry_bytes, address_bits) = match self.case.mode {
            Mode::Real | Mode::Unpaged | Mode::ThirtyTwoBit => (2, 10, 4, 32),
            // The level above is the PDPTE registers.
            Mode::Pae => (2, 9, 8, self.width),
            Mode::FourLevel => (4, 9, 8, self.width),
        };
        Shape {
            top,
            index_bits,
            entry_bytes,
            address_bits,
        }
    }

    /// A frame for a table: where it is, and where the guest finds it.
    pub(super) fn frame(&mut self, bits: u64) -> (u64, u64) {
        let host = GUEST_TABLES + (self.frames.min(GUEST_FRAMES - 1) << 12);
        self.frames += 1;
        let guest = self.ept.place(self.case, self.r, host, self.role, bits);
        (host, guest)
    }

    /// A linear address that the tables translate to memory at host-physical `host`. `half` of the address space keeps
    /// apart what should not share tables; `role` is that of the page.
    pub(super) fn map(&mut self, host: u64, half: u64, role: Role) -> u64 {
        let shape = self.shape();
        let bits = shape.address_bits;
        let target = self.ept.place(self.case, self.r, host, role, bits);
        if self.case.mode.is_unpaged() {
            return target;
        }
        let size = match (self.case.mode, self.r.below(12)) {
            (Mode::FourLevel, 0) => 3,
            (Mode::ThirtyTwoBit, 0..=3) if self.case.cr4 & 1 << 4 == 0 => 1,
            (_, 1..=3) => 2,
            _ => 1,
        };
        let shift = |level: u64| 12 + shape.index_bits * (level - 1);
        let within: u64 = (1 << shift(size)) - 1;
        let space = if self.case.mode == Mode::FourLevel {
            48
        } else {
            32
        };
        let above = self.r.next() & !within & ((1 << (space - 1)) - 1);
        let linear = half << (space - 1) | above | target & within;

        let (mut table, mut level) = self.begin(linear, half);
        loop {
            let index = linear >> shift(level) & ((1 << shape.index_bits) - 1);
            let at = table + index * shape.entry_bytes;
            let leaf = level == size;
            let (below, address) = match (leaf, self.role) {
                (true, _) => (0, target & !within),
                // A table that is one already.
                (false, Role::Free) if self.r.chance(1, 32) => (self.root.0, self.root.1 & !0xfff),
                (false, _) => self.frame(bits),
            };
            let mut entry = address | self.flags(leaf, level, shape);
            if leaf && level > 1 {
                entry |= PS;
            }
            if self.r.chance(self.ept.hostility, 64) {
                entry = self.spoil(entry, leaf, role, shape);
            }
            self.case.entries.add(at, shape.entry_bytes, entry);
            if leaf {
                break;
            }
            (table, level) = (below, level - 1);
        }
        ((linear << (64 - space)) as i64 >> (64 - space)) as u64 & mask(self.case.mode)
    }

    /// The table where the walk of `linear` begins, and its level.
    fn begin(&mut self, linear: u64, half: u64) -> (u64, u64) {
        let shape = self.shape();
        if self.case.mode == Mode::Pae {
            let (host, guest) = self.frame(shape.address_bits);
            let present = u64::from(half == 0 || !self.r.chance(self.ept.hostility, 64));
            let ignored = self.r.next() & 0xe18;
            self.case.pdptes[(linear >> 30) as usize & 3] = guest | ignored | present;
            self.root = (host, guest);
        } else if self.root.0 == 0 {
            self.root = self.frame(shape.address_bits);
            self.case.cr3 = self.root.1 | self.r.below(4) << 3;
        }
        (self.root.0, shape.top)
    }

    /// P, R/W, U/S, A, D, XD and what is ignored: mostly granting.
    fn flags(&mut self, leaf: bool, level: u64, shape: Shape) -> u64 {
        let hostility = self.ept.hostility;
        let r = &mut *self.r;
        let mut flags =
            7 | r.bit(1 << 5, 1, 2) | r.bit(1 << 6, 1, 2) | (r.next() & r.next() & 7) << 9;
        if leaf {
            flags |= r.bit(1 << 8, 1, 4);
        }
        if r.chance(hostility, 32) {
            flags &= !r.pick(&[1, 2, 2, 4, 4, 6]);
        }
        if shape.entry_bytes == 8 && r.chance(hostility, 64) {
            flags |= XD;
        }
        if self.case.mode == Mode::ThirtyTwoBit
            && level == 2
            && !leaf
            && self.case.cr4 & 1 << 4 == 0
        {
            flags |= r.bit(PS, 1, 4); // ignored
        }
        flags
    }

    /// `entry` with one thing wrong, or otherwise.
    fn spoil(&mut self, entry: u64, leaf: bool, role: Role, shape: Shape) -> u64 {
        let free = role == Role::Free || role == Role::Written && !leaf;
        let bit = match self.r.below(5) {
            // Elsewhere in the same 2 MiB, or in another GiB: not where the monitor is.
            0 | 1 if free => 12 + self.r.below(9),
            2 if role != Role::Fixed => 30 + self.r.below(shape.address_bits - 30),
            3 if shape.entry_bytes == 8 => self.width + self.r.below(52 - self.width),
            // P: what the entry says then is of no matter.
            _ => 0,
        };
        entry ^ 1 << bit
    }
}

/// Bits of a linear address.
const fn mask(mode: Mode) -> u64 {
    match mode {
        Mode::FourLevel => u64::MAX,
        _ => 0xffff_ffff,
    }
}
