// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a unit can do: version, capability and extended capability registers, decoded.

use super::access::register;
use super::{
    FaultRecordHigh, FaultRecordLow, InvalidateAddress, IotlbInvalidate, ReadWrite, Register,
};

register! {
    /// Version Register (VER_REG).
    pub struct Version(u32) {
        /// Minor version.
        ro u8 [3:0] minor, with_minor;
        /// Major version.
        ro u8 [7:4] major, with_major;
    }
}

register! {
    /// Capability Register (CAP_REG).
    pub struct Capability(u64) {
        /// ND: number of domains, encoded; see [`domains`](Self::domains).
        ro u8 [2:0] nd, with_nd;
        /// AFL: advanced fault logging (no longer in use).
        ro bool [3:3] advanced_fault_logging, with_advanced_fault_logging;
        /// RWBF: the write buffer must be flushed for changes of tables to be seen.
        ro bool [4:4] write_buffer_flush, with_write_buffer_flush;
        /// PLMR: protected low-memory region.
        ro bool [5:5] protected_low, with_protected_low;
        /// PHMR: protected high-memory region.
        ro bool [6:6] protected_high, with_protected_high;
        /// CM: caching mode. Entries that are not present may be cached: mapping needs invalidation too.
        ro bool [7:7] caching_mode, with_caching_mode;
        /// SAGAW: supported adjusted guest address widths, bit 1 for 39, 2 for 48, 3 for 57 bits.
        ro u8 [12:8] sagaw, with_sagaw;
        /// MGAW: maximum guest address width less 1.
        ro u8 [21:16] mgaw, with_mgaw;
        /// ZLR: zero-length reads of write-only pages succeed.
        ro bool [22:22] zero_length_read, with_zero_length_read;
        /// FRO: where the fault-recording registers are, in units of 16 bytes.
        ro u16 [33:24] fro, with_fro;
        /// SSLPS: second-stage large pages, bit 0 for 2 MiB, 1 for 1 GiB.
        ro u8 [37:34] second_stage_large_pages, with_second_stage_large_pages;
        /// PSI: page-selective invalidation.
        ro bool [39:39] page_selective, with_page_selective;
        /// NFR: fault-recording registers less 1.
        ro u8 [47:40] nfr, with_nfr;
        /// MAMV: the largest address mask of a page-selective invalidation.
        ro u8 [53:48] max_address_mask, with_max_address_mask;
        /// DWD: write draining.
        ro bool [54:54] drain_writes, with_drain_writes;
        /// DRD: read draining.
        ro bool [55:55] drain_reads, with_drain_reads;
        /// FS1GP: first-stage 1-GiB pages.
        ro bool [56:56] first_stage_1g, with_first_stage_1g;
        /// PI: posted interrupts.
        ro bool [59:59] posted_interrupts, with_posted_interrupts;
        /// FS5LP: first-stage 5-level paging.
        ro bool [60:60] first_stage_5_levels, with_first_stage_5_levels;
        /// ECMDS: enhanced commands.
        ro bool [61:61] enhanced_commands, with_enhanced_commands;
        /// ESIRTPS: setting the interrupt-remapping table pointer invalidates the interrupt entry cache.
        ro bool [62:62] enhanced_set_interrupt_table, with_enhanced_set_interrupt_table;
        /// ESRTPS: setting the root table pointer invalidates every cache that depends on it.
        ro bool [63:63] enhanced_set_root_table, with_enhanced_set_root_table;
    }
}

impl Capability {
    /// How many domain-ids there are: 2^(4 + 2 * ND). The encoding 7 is reserved, and read as 6.
    #[must_use]
    pub const fn domains(self) -> u32 {
        let nd = if self.nd() > 6 { 6 } else { self.nd() };
        16u32.wrapping_shl((nd as u32) << 1)
    }

    /// The widest guest address, in bits: MGAW + 1.
    #[must_use]
    pub const fn guest_address_bits(self) -> u32 {
        (self.mgaw() as u32).wrapping_add(1)
    }

    /// Whether second-stage tables may have `levels` levels (3 for 39 bits, 4 for 48, 5 for 57).
    #[must_use]
    pub const fn second_stage_levels(self, levels: u8) -> bool {
        let bit = match levels {
            3 => 1 << 1,
            4 => 1 << 2,
            5 => 1 << 3,
            _ => 0,
        };
        self.sagaw() & bit != 0
    }

    /// How many fault-recording registers there are: NFR + 1.
    #[must_use]
    pub const fn fault_records(self) -> u16 {
        (self.nfr() as u16).wrapping_add(1)
    }

    /// Where fault-recording register `index` is, in bytes from the base. The low half is there, the
    /// high half 8 bytes on.
    #[must_use]
    pub const fn fault_record_offset(self, index: u8) -> u32 {
        ((self.fro() as u32).wrapping_add(index as u32)) << 4
    }

    /// The two halves of fault-recording register `index`; `None` if there is none.
    #[must_use]
    pub const fn fault_record(
        self,
        index: u8,
    ) -> Option<(
        Register<FaultRecordLow, super::ReadOnly>,
        Register<FaultRecordHigh, ReadWrite>,
    )> {
        if index > self.nfr() {
            return None;
        }
        let offset = self.fault_record_offset(index);
        Some((Register::at(offset), Register::at(offset.wrapping_add(8))))
    }
}

register! {
    /// Extended Capability Register (ECAP_REG).
    pub struct ExtendedCapability(u64) {
        /// C: accesses to root, context, second-stage, interrupt-remapping tables snoop caches.
        ro bool [0:0] coherent, with_coherent;
        /// QI: queued invalidation.
        ro bool [1:1] queued_invalidation, with_queued_invalidation;
        /// DT: device-TLBs.
        ro bool [2:2] device_tlb, with_device_tlb;
        /// IR: interrupt remapping.
        ro bool [3:3] interrupt_remapping, with_interrupt_remapping;
        /// EIM: extended interrupt mode (x2APIC's 32-bit ids).
        ro bool [4:4] extended_interrupt_mode, with_extended_interrupt_mode;
        /// PT: pass-through.
        ro bool [6:6] pass_through, with_pass_through;
        /// SC: snoop control (SNP in second-stage entries, PGSNP in PASID entries).
        ro bool [7:7] snoop_control, with_snoop_control;
        /// IRO: where the IOTLB registers are, in units of 16 bytes.
        ro u16 [17:8] iro, with_iro;
        /// MHMV: the largest handle mask of an interrupt entry cache invalidation.
        ro u8 [23:20] max_handle_mask, with_max_handle_mask;
        /// MTS: memory types in first-stage and nested translation.
        ro bool [25:25] memory_types, with_memory_types;
        /// NEST: nested translation.
        ro bool [26:26] nested, with_nested;
        /// PRS: page requests.
        ro bool [29:29] page_requests, with_page_requests;
        /// ERS: requests that ask for execute permission.
        ro bool [30:30] execute_requests, with_execute_requests;
        /// SRS: requests that ask for supervisor privilege.
        ro bool [31:31] supervisor_requests, with_supervisor_requests;
        /// NWFS: the no-write flag of translation requests.
        ro bool [33:33] no_write_flag, with_no_write_flag;
        /// EAFS: extended-accessed bits in first-stage entries.
        ro bool [34:34] extended_accessed, with_extended_accessed;
        /// PSS: PASID size less 1.
        ro u8 [39:35] pss, with_pss;
        /// PASID: requests with PASID.
        ro bool [40:40] pasid, with_pasid;
        /// DIT: device-TLB invalidation throttle.
        ro bool [41:41] device_tlb_throttle, with_device_tlb_throttle;
        /// PDS: an invalidation wait can drain page requests.
        ro bool [42:42] page_request_drain, with_page_request_drain;
        /// SMTS: scalable mode.
        ro bool [43:43] scalable_mode, with_scalable_mode;
        /// VCS: virtual commands.
        ro bool [44:44] virtual_commands, with_virtual_commands;
        /// SSADS: second-stage accessed and dirty bits.
        ro bool [45:45] second_stage_accessed_dirty, with_second_stage_accessed_dirty;
        /// SSTS: second-stage translation in scalable mode.
        ro bool [46:46] second_stage, with_second_stage;
        /// FSTS: first-stage translation in scalable mode.
        ro bool [47:47] first_stage, with_first_stage;
        /// SMPWCS: walks of tables reached through a PASID entry can snoop caches.
        ro bool [48:48] scalable_walk_coherent, with_scalable_walk_coherent;
        /// RPS: RID_PASID of a scalable-mode context entry.
        ro bool [49:49] rid_pasid, with_rid_pasid;
        /// PMS: performance monitoring.
        ro bool [51:51] performance_monitoring, with_performance_monitoring;
        /// ADMS: abort-DMA mode.
        ro bool [52:52] abort_dma_mode, with_abort_dma_mode;
        /// RPRIVS: RID_PRIV of a scalable-mode context entry.
        ro bool [53:53] rid_priv, with_rid_priv;
    }
}

impl ExtendedCapability {
    /// Width of a PASID in bits: PSS + 1, at most 20; 0 where requests with PASID are not supported.
    #[must_use]
    pub const fn pasid_bits(self) -> u32 {
        if !self.pasid() {
            return 0;
        }
        let bits = (self.pss() as u32).wrapping_add(1);
        if bits > 20 { 20 } else { bits }
    }

    /// Where the invalidate-address register is, in bytes from the base; the IOTLB register follows.
    #[must_use]
    pub const fn invalidate_address_offset(self) -> u32 {
        (self.iro() as u32) << 4
    }

    /// Invalidate Address Register (IVA_REG).
    #[must_use]
    pub const fn invalidate_address(self) -> Register<InvalidateAddress, super::WriteOnly> {
        Register::at(self.invalidate_address_offset())
    }

    /// IOTLB Invalidate Register (IOTLB_REG).
    #[must_use]
    pub const fn iotlb_invalidate(self) -> Register<IotlbInvalidate, ReadWrite> {
        Register::at(self.invalidate_address_offset().wrapping_add(8))
    }
}
