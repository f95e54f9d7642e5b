// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The invalidation queue, the interrupt-remapping table and the page request queue.

use super::access::register;
use core::fmt;

register! {
    /// Invalidation Queue Head Register (IQH_REG).
    pub struct QueueHead(u64) {
        /// QH: byte offset of the descriptor that hardware fetches next.
        ro address [18:4] offset, with_offset;
    }
}

register! {
    /// Invalidation Queue Tail Register (IQT_REG).
    pub struct QueueTail(u64) {
        /// QT: byte offset of the descriptor that software writes next.
        rw address [18:4] offset, with_offset;
    }
}

register! {
    /// Invalidation Queue Address Register (IQA_REG).
    pub struct QueueAddress(u64) {
        /// QS: the queue is 2^X pages of 4 KiB.
        rw u8 [2:0] size, with_size;
        /// DW: descriptors are 256 bits wide.
        rw bool [11:11] wide, with_wide;
        /// IQA: the queue, aligned to 4 KiB.
        rw address [63:12] queue, with_queue;
    }
}

impl QueueAddress {
    /// The queue's size in bytes: 4 KiB to 512 KiB.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        4096 << self.size()
    }

    /// A descriptor's size in bytes.
    #[must_use]
    pub const fn descriptor_bytes(self) -> u32 {
        if self.wide() { 32 } else { 16 }
    }
}

register! {
    /// Invalidation Completion Status Register (ICS_REG).
    pub struct CompletionStatus(u32) {
        /// IWC: an invalidation wait with the interrupt flag has completed.
        w1c bool [0:0] wait_complete, with_wait_complete;
    }
}

/// IQEI: what stopped the invalidation queue. "Invalidation Queue Error Record Register". Open: 8 to 15
/// are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct QueueError(pub u8);

impl QueueError {
    /// The unit is older than this register and does not say.
    pub const NO_INFORMATION: Self = Self(0);
    /// The tail lies outside of the queue.
    pub const INVALID_TAIL: Self = Self(1);
    /// A descriptor could not be read.
    pub const FETCH: Self = Self(2);
    /// A type that is not defined, or not supported.
    pub const INVALID_TYPE: Self = Self(3);
    /// A reserved field is not zero.
    pub const RESERVED_FIELD: Self = Self(4);
    /// 128-bit descriptors in scalable mode, or 256-bit ones on a unit that has neither scalable nor abort-DMA mode.
    pub const INVALID_WIDTH: Self = Self(5);
    /// The tail is not aligned to 256-bit descriptors.
    pub const TAIL_ALIGNMENT: Self = Self(6);
    /// TTM has a value that the unit does not support.
    pub const INVALID_MODE: Self = Self(7);

    /// In words, if it is defined.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NO_INFORMATION => "no information",
            Self::INVALID_TAIL => "invalid tail pointer",
            Self::FETCH => "descriptor could not be fetched",
            Self::INVALID_TYPE => "invalid descriptor type",
            Self::RESERVED_FIELD => "reserved field is not zero",
            Self::INVALID_WIDTH => "invalid descriptor width",
            Self::TAIL_ALIGNMENT => "tail is not aligned to 256-bit descriptors",
            Self::INVALID_MODE => "invalid translation table mode",
            _ => return None,
        })
    }
}

impl fmt::Debug for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueError({}: {self})", self.0)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "invalidation queue error {}", self.0),
        }
    }
}

register! {
    /// Invalidation Queue Error Record Register (IQERCD_REG).
    pub struct QueueErrorRecord(u64) {
        /// IQEI: what happened, valid while IQE is set; see [`error`](Self::error).
        ro u8 [3:0] iqei, with_iqei;
        /// ITESID: whose device-TLB did not answer, valid while ITE is set.
        ro u16 [47:32] time_out_source, with_time_out_source;
        /// ICESID: whose device-TLB answered unasked, valid while ICE is set.
        ro u16 [63:48] completion_source, with_completion_source;
    }
}

impl QueueErrorRecord {
    /// What happened, valid while IQE is set.
    #[must_use]
    pub const fn error(self) -> QueueError {
        QueueError(self.iqei())
    }
}

register! {
    /// Interrupt Remapping Table Address Register (IRTA_REG).
    pub struct InterruptTableAddress(u64) {
        /// S: the table has 2^(X + 1) entries.
        rw u8 [3:0] size, with_size;
        /// EIME: extended interrupt mode; destination ids have 32 bits.
        rw bool [11:11] extended_interrupt_mode, with_extended_interrupt_mode;
        /// IRTA: the table, 4-KiB aligned.
        rw address [63:12] table, with_table;
    }
}

impl InterruptTableAddress {
    /// How many entries the table has: 2 to 65,536.
    #[must_use]
    pub const fn entries(self) -> u32 {
        2 << self.size()
    }
}

register! {
    /// Page Request Queue Head Register (PQH_REG). Software moves it.
    pub struct PageQueueHead(u64) {
        /// PQH: byte offset of the request that software handles next.
        rw address [18:5] offset, with_offset;
    }
}

register! {
    /// Page Request Queue Tail Register (PQT_REG). Hardware moves it.
    pub struct PageQueueTail(u64) {
        /// PQT: byte offset of the request that hardware writes next.
        rw address [18:5] offset, with_offset;
    }
}

register! {
    /// Page Request Queue Address Register (PQA_REG).
    pub struct PageQueueAddress(u64) {
        /// PQS: the queue is 2^X pages of 4 KiB.
        rw u8 [2:0] size, with_size;
        /// PQA: the queue, aligned to 4 KiB.
        rw address [63:12] queue, with_queue;
    }
}

impl PageQueueAddress {
    /// The queue's size in bytes: 4 KiB to 512 KiB.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        4096 << self.size()
    }
}

register! {
    /// Page Request Status Register (PRS_REG).
    pub struct PageRequestStatus(u32) {
        /// PPR: page requests are pending.
        w1c bool [0:0] pending, with_pending;
        /// PRO: a page request found the queue full.
        w1c bool [1:1] overflow, with_overflow;
    }
}
