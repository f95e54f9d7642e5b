// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands and their status: global command, table addresses, register-based invalidation.

use super::access::register;

register! {
    /// Global Command Register (GCMD_REG). Write-only: [`GlobalStatus`] says what is on.
    ///
    /// A write must repeat what is to stay on; only one bit may change at a time.
    pub struct GlobalCommand(u32) {
        /// CFI: compatibility-format interrupts pass through.
        wo bool [23:23] compatibility_interrupts, with_compatibility_interrupts;
        /// SIRTP: take the interrupt-remapping table pointer. One-shot.
        wo bool [24:24] set_interrupt_table, with_set_interrupt_table;
        /// IRE: interrupt remapping.
        wo bool [25:25] interrupt_remapping, with_interrupt_remapping;
        /// QIE: queued invalidation.
        wo bool [26:26] queued_invalidation, with_queued_invalidation;
        /// WBF: flush the write buffer. One-shot.
        wo bool [27:27] flush_write_buffer, with_flush_write_buffer;
        /// EAFL: advanced fault logging (no longer in use).
        wo bool [28:28] advanced_fault_logging, with_advanced_fault_logging;
        /// SFL: take the fault log pointer (no longer in use). One-shot.
        wo bool [29:29] set_fault_log, with_set_fault_log;
        /// SRTP: take the root table pointer. One-shot.
        wo bool [30:30] set_root_table, with_set_root_table;
        /// TE: DMA remapping.
        wo bool [31:31] translation, with_translation;
    }
}

register! {
    /// Global Status Register (GSTS_REG).
    pub struct GlobalStatus(u32) {
        /// CFIS: compatibility-format interrupts pass through.
        ro bool [23:23] compatibility_interrupts, with_compatibility_interrupts;
        /// IRTPS: the interrupt-remapping table pointer was taken.
        ro bool [24:24] interrupt_table_set, with_interrupt_table_set;
        /// IRES: interrupt remapping is on.
        ro bool [25:25] interrupt_remapping, with_interrupt_remapping;
        /// QIES: queued invalidation is on.
        ro bool [26:26] queued_invalidation, with_queued_invalidation;
        /// WBFS: the write buffer is being flushed.
        ro bool [27:27] flushing_write_buffer, with_flushing_write_buffer;
        /// AFLS: advanced fault logging is on (no longer in use).
        ro bool [28:28] advanced_fault_logging, with_advanced_fault_logging;
        /// FLS: the fault log pointer was taken (no longer in use).
        ro bool [29:29] fault_log_set, with_fault_log_set;
        /// RTPS: the root table pointer was taken.
        ro bool [30:30] root_table_set, with_root_table_set;
        /// TES: DMA remapping is on.
        ro bool [31:31] translation, with_translation;
    }
}

impl GlobalStatus {
    /// The bits that are not one-shot: what a write to [`GlobalCommand`] has to repeat.
    pub const LASTING: u32 = 0x9680_0000;

    /// The command that leaves everything as it is.
    #[must_use]
    pub const fn unchanged(self) -> GlobalCommand {
        GlobalCommand(self.0 & Self::LASTING)
    }
}

/// TTM: which tables the root table pointer leads to. "Root Table Address Register".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum TranslationTableMode {
    /// 00b: a root table of legacy mode.
    Legacy,
    /// 01b: a root table of scalable mode.
    Scalable,
    /// 10b: reserved.
    Reserved,
    /// 11b: no table; every request is aborted without a fault.
    AbortDma,
}

impl TranslationTableMode {
    /// From the field.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::AbortDma,
        }
    }

    /// As the field.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::Scalable => 1,
            Self::Reserved => 2,
            Self::AbortDma => 3,
        }
    }
}

register! {
    /// Root Table Address Register (RTADDR_REG).
    pub struct RootTableAddress(u64) {
        /// TTM, encoded; see [`mode`](Self::mode).
        rw u8 [11:10] ttm, with_ttm;
        /// RTA: the root table, 4-KiB aligned.
        rw address [63:12] table, with_table;
    }
}

impl RootTableAddress {
    /// Which tables these are.
    #[must_use]
    pub const fn mode(self) -> TranslationTableMode {
        TranslationTableMode::from_bits(self.ttm())
    }
}

register! {
    /// Context Command Register (CCMD_REG): register-based invalidation of the context cache. Legacy mode.
    pub struct ContextCommand(u64) {
        /// DID: domain-id, for domain and device granularity.
        rw u16 [15:0] domain, with_domain;
        /// SID: source-id, for device granularity.
        wo u16 [31:16] source, with_source;
        /// FM: how many bits of the function number are ignored, the highest first (1: bit 2; 3: all three).
        wo u8 [33:32] function_mask, with_function_mask;
        /// CAIG: the granularity at which hardware did it, once ICC is clear; 0 if the request was in error.
        ro u8 [60:59] actual_granularity, with_actual_granularity;
        /// CIRG: the granularity asked for: 1 global, 2 domain, 3 device.
        rw u8 [62:61] granularity, with_granularity;
        /// ICC: do it; hardware clears it when done.
        rw bool [63:63] invalidate, with_invalidate;
    }
}

register! {
    /// Invalidate Address Register (IVA_REG). Write-only.
    pub struct InvalidateAddress(u64) {
        /// AM: the lowest so many bits of the page number are ignored.
        wo u8 [5:0] mask, with_mask;
        /// IH: only leaves changed.
        wo bool [6:6] leaves_only, with_leaves_only;
        /// ADDR: the address, 4-KiB aligned.
        wo address [63:12] address, with_address;
    }
}

register! {
    /// IOTLB Invalidate Register (IOTLB_REG): register-based invalidation of the IOTLB. Legacy mode.
    pub struct IotlbInvalidate(u64) {
        /// DID: domain-id, for domain and page granularity.
        rw u16 [47:32] domain, with_domain;
        /// DW: drain writes.
        rw bool [48:48] drain_writes, with_drain_writes;
        /// DR: drain reads.
        rw bool [49:49] drain_reads, with_drain_reads;
        /// IAIG: the granularity at which hardware did it, once IVT is clear; 0 if the request was in error.
        ro u8 [58:57] actual_granularity, with_actual_granularity;
        /// IIRG: the granularity asked for: 1 global, 2 domain, 3 page.
        rw u8 [61:60] granularity, with_granularity;
        /// IVT: do it; hardware clears it when done.
        rw bool [63:63] invalidate, with_invalidate;
    }
}
