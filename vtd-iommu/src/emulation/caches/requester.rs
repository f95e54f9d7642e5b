// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requesters as a cache finds them.

use super::super::device::Binding;
use crate::spec::{Pasid, RequesterId};

/// Requesters (with PASIDs) whose tables are known at a time.
pub(super) const SLOTS: usize = 256;

/// A requester, with or without PASID, as one word; never 0.
#[inline(always)]
pub(super) const fn key(source: RequesterId, pasid: Option<Pasid>) -> u64 {
    let pasid = match pasid {
        Some(pasid) => (pasid.get() as u64) << 18 | 2,
        None => 0,
    };
    pasid | (source.0 as u64) << 2 | 1
}

#[inline(always)]
pub(super) const fn slot_of(key: u64) -> usize {
    // Device and function, the bus, and the PASID.
    let hash = key >> 2 ^ (key >> 10).wrapping_mul(37) ^ (key >> 18).wrapping_mul(5);
    hash as usize & (SLOTS - 1)
}

/// Bits of a key, below those of an epoch.
pub(super) const KEY_BITS: u32 = 38;

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) key: u64,
    /// The epoch of which `space` is.
    pub(super) epoch: u64,
    pub(super) space: u32,
    pub(super) binding: Binding,
}

/// What a hit needs of a [`Slot`], apart: half a line of this machine's cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quick {
    /// The key, and above it the epoch of which `space` is: one comparison for both. [`NOBODY`]: nothing here.
    pub(super) key: u64,
    /// Address bits that must be 0.
    pub(super) upper: u64,
    pub(super) space: u32,
    /// What the binding adds to rights: [`SNOOP`](super::rights::SNOOP), or 0.
    pub(super) adds: u32,
}

/// No requester's key: those have bit 0 set.
pub(super) const NOBODY: Quick = Quick {
    key: 0,
    upper: 0,
    space: 0,
    adds: 0,
};
