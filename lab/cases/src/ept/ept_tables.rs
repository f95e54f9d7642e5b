// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A case's EPT: host memory is placed at guest-physical addresses, one page after the other.

use super::Case;
use super::map::{EPT_FRAMES, EPT_TABLES, RAM_END};
use crate::Random;

/// A page of 1 GiB.
const GIB: u64 = 1 << 30;
/// Bit 7 of an entry that maps a large page.
const LARGE: u64 = 1 << 7;
/// Execute access for user-mode addresses.
const USER_EXECUTE: u64 = 1 << 10;

/// What a page is for, and so what may be spoilt on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing may lead to other memory: code runs from it.
    Fixed,
    /// Other memory may be read, none written.
    Written,
    /// Anything may lead anywhere.
    Free,
}

/// The tables in the making.
pub(super) struct EptTables {
    /// Guest-physical addresses have fewer bits.
    width: u64,
    /// How often, of 64 entries, one is spoilt or grants less.
    pub(super) hostility: u64,
    /// What each entry was meant to be, spoilt or not: its address, and the frame below; 0 for a page.
    nodes: [(u64, u64); 48],
    used: usize,
    frames: u64,
}

impl EptTables {
    /// Only a root.
    pub(super) fn new(width: u8, hostility: u64) -> Self {
        Self {
            width: u64::from(width),
            hostility,
            nodes: [(0, 0); 48],
            used: 0,
            frames: 1,
        }
    }

    /// Makes the page of host-physical `host` reachable and returns its guest-physical address, below 2^`bits`.
    pub(super) fn place(
        &mut self,
        case: &mut Case,
        r: &mut Random,
        host: u64,
        role: Role,
        bits: u64,
    ) -> u64 {
        let gibs = 1 << (bits - 30);
        for _ in 0..16 {
            let size = r.pick(&[1, 1, 1, 1, 1, 2, 2, 3]);
            let within = (1 << (12 + 9 * (size - 1))) - 1;
            let above = r.below(1 << 18) << 12 & !within;
            // Small pages are not in the first GiB: a guest-physical address taken for a host-physical one leads nowhere.
            let gib = if size == 3 {
                r.below(gibs)
            } else {
                1 + r.below(gibs - 1)
            };
            let guest = gib << 30 | above & (GIB - 1) | host & within;
            if let Some(guest) = self.map(case, r, guest, host, size, role) {
                return guest;
            }
        }
        // A GiB of one's own is hard to miss, but for a case that ran out of luck: the page has no mapping.
        GIB | host
    }

    /// Adds what is missing for `guest` to lead to `host` in a page of level `size`. `None` if something else is there.
    fn map(
        &mut self,
        case: &mut Case,
        r: &mut Random,
        guest: u64,
        host: u64,
        size: u64,
        role: Role,
    ) -> Option<u64> {
        let mut table = EPT_TABLES;
        for level in (size..=4).rev() {
            let at = table + (guest >> (12 + 9 * (level - 1)) & 511) * 8;
            let known = self.nodes[..self.used].iter().find(|node| node.0 == at);
            match known {
                // A page of 1 GiB holds all there is.
                Some((_, 0)) if level == 3 => return Some(guest & !(GIB - 1) | host),
                Some((_, 0)) => return None,
                Some(_) if level == size => return None,
                Some((_, below)) => table = *below,
                None if level == size => {
                    let within = (1u64 << (12 + 9 * (level - 1))) - 1;
                    self.add(case, r, at, 0, level, host & !within, role);
                    return Some(guest);
                }
                None => {
                    if self.frames >= EPT_FRAMES {
                        return None;
                    }
                    let below = EPT_TABLES + (self.frames << 12);
                    self.frames += 1;
                    self.add(case, r, at, below, level, below, role);
                    table = below;
                }
            }
        }
        None
    }

    /// One entry that leads to `address`: to the table `below` or, if that is 0, a page. Then luck has its way.
    #[expect(clippy::too_many_arguments, reason = "an entry is all of this")]
    fn add(
        &mut self,
        case: &mut Case,
        r: &mut Random,
        at: u64,
        below: u64,
        level: u64,
        address: u64,
        role: Role,
    ) {
        if self.used == self.nodes.len() {
            return;
        }
        self.nodes[self.used] = (at, below);
        self.used += 1;
        let leaf = below == 0;
        let rights = if r.chance(self.hostility, 64) {
            r.pick(&[0, 1, 1, 2, 3, 3, 4, 5, 5, 6])
        } else {
            7
        };
        let ignored = (r.next() & r.next() & r.next() & 0x7ff) << 52;
        let mut entry = address
            | rights
            | r.bit(USER_EXECUTE, 7, 8)
            | r.bit(1 << 8, 1, 2)
            | r.bit(1 << 9, 1, 2)
            | r.bit(1 << 11, 1, 4)
            | r.bit(1 << 63, 1, 2)
            | ignored;
        if leaf {
            entry |= r.pick(&[6, 6, 6, 0, 1, 4, 5]) << 3 | r.bit(1 << 6, 1, 4);
            entry |= if level > 1 { LARGE } else { r.bit(LARGE, 1, 8) };
        }
        if r.chance(self.hostility, 64) {
            entry = self.spoil(r, entry, leaf, level, role);
        }
        case.entries.add(at, 8, entry);
    }

    /// `entry` with one thing wrong, or otherwise.
    fn spoil(&self, r: &mut Random, entry: u64, leaf: bool, level: u64, role: Role) -> u64 {
        let memory = u64::from(RAM_END.trailing_zeros());
        match r.below(8) {
            // Memory types that are none; reserved bits of a table.
            0 | 1 if leaf => entry & !(7 << 3) | r.pick(&[2, 3, 7]) << 3,
            0 | 1 => entry | r.pick(&[8, 16, 32, 64, 128]),
            2 if level > 1 && leaf => entry ^ 1 << (12 + r.below(9 * (level - 1))),
            3 => entry | 1 << (self.width + r.below(52 - self.width)),
            4 => 0,
            5 => entry & !7,
            // Where there is no memory.
            6 if role != Role::Fixed => entry ^ 1 << (memory + r.below(self.width - memory)),
            // Another frame of the same region: a table's for a table's, a page of the pattern for another.
            _ if role == Role::Free || role == Role::Written && !leaf => {
                entry ^ 1 << (12 + r.below(if leaf { 9 } else { 5 }))
            }
            _ => entry & !1,
        }
    }
}
