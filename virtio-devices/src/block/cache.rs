// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a write is on stable storage: what the driver has accepted, and what it has chosen since.
//!
//! ```text
//!   VIRTIO_BLK_F_CONFIG_WCE        as `writeback` says at the time: 1, after a flush; 0, when it is completed
//!   VIRTIO_BLK_F_FLUSH alone       after a flush
//!   neither                        when it is completed
//! ```
//!
//! "Device Initialization" (5.2.5), "Device Operation" (5.2.6).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::config::feature;
use super::request::Caching;
use crate::features::Features;

/// A disk's `writeback`, shared by its registers and its workers.
#[derive(Debug)]
pub(super) struct Cache {
    accepted: AtomicU64,
    writeback: AtomicBool,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            writeback: AtomicBool::new(true),
        }
    }
}

impl Cache {
    fn accepted(&self) -> Features {
        Features::from_bits_retain(self.accepted.load(Ordering::Acquire))
    }

    /// A driver has accepted `features`, of which an activation says nothing new. What was chosen stays where it may: the VMM that a
    /// disk is served to tells of no reset, and may have kept it. A driver reads which it is, as either may follow a reset (5.2.5).
    pub(super) fn accept(&self, features: Features) {
        if self.accepted() != features {
            self.begin(features);
        }
    }

    /// A driver accepts `features`: another, perhaps, than the one that has accepted the same before.
    pub(super) fn begin(&self, features: Features) {
        self.accepted.store(features.bits(), Ordering::Release);
        // Who cannot flush begins with a cache that needs none (5.2.5.2). If it is not another driver after all, its writes are
        // on stable storage sooner than it has asked for.
        if features.contains(feature::CONFIG_WCE) && !features.contains(feature::FLUSH) {
            self.choose(false);
        }
    }

    /// As after a reset.
    pub(super) fn clear(&self) {
        self.accepted.store(0, Ordering::Release);
        self.choose(true);
    }

    fn choose(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Release);
    }

    /// The driver writes `writeback`, if it may. What is neither 0 nor 1 is dropped.
    pub(super) fn set(&self, value: u8) {
        if value <= 1 && self.accepted().contains(feature::CONFIG_WCE) {
            self.choose(value == 1);
        }
    }

    /// `writeback`.
    pub(super) fn writeback(&self) -> u8 {
        self.writeback.load(Ordering::Acquire).into()
    }

    /// What holds for a write that is about to be completed.
    #[inline]
    pub(super) fn caching(&self) -> Caching {
        let accepted = self.accepted();
        let back = match accepted.contains(feature::CONFIG_WCE) {
            true => self.writeback.load(Ordering::Acquire),
            // A driver that did not accept the flush cannot ask for one.
            false => accepted.contains(feature::FLUSH),
        };
        match back {
            true => Caching::WriteBack,
            false => Caching::WriteThrough,
        }
    }

    /// Nothing if it is as after a reset; otherwise `writeback`, which is 0.
    pub(super) fn save(&self) -> Vec<u8> {
        match self.writeback() {
            1 => Vec::new(),
            value => vec![value],
        }
    }

    /// Takes what [`save`](Self::save) gave; says whether it could be that.
    pub(super) fn restore(&self, state: &[u8]) -> bool {
        let writeback = match state {
            [] => true,
            [0] => false,
            _ => return false,
        };
        self.choose(writeback);
        true
    }
}
