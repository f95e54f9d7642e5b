// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures of the invalidation descriptors: which bits hold what.
//!
//! The lower 128 bits of each; the upper 128 of a 256-bit descriptor are reserved in all of them. Bits 3:0 and
//! 11:9 are the type in every figure (3:0 the lower four bits, 11:9 the upper three).

use crate::spec::word::word;

word! {
    /// "Context-cache Invalidate Descriptor" (cc_inv_dsc).
    pub struct ContextLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// G: 1 global, 2 domain, 3 device.
        u8 [5:4] granularity, with_granularity;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// DID: domain-id.
        u16 [31:16] domain, with_domain;
        /// SID: source-id.
        u16 [47:32] source, with_source;
        /// FM: how many bits of the function number are ignored, the highest first (1: bit 2; 3: all three).
        u8 [49:48] function_mask, with_function_mask;
    }
}

word! {
    /// "IOTLB Invalidate Descriptor" (iotlb_inv_dsc).
    pub struct IotlbLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// G: 1 global, 2 domain, 3 page.
        u8 [5:4] granularity, with_granularity;
        /// DW: drain writes.
        bool [6:6] drain_writes, with_drain_writes;
        /// DR: drain reads.
        bool [7:7] drain_reads, with_drain_reads;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// DID: domain-id.
        u16 [31:16] domain, with_domain;
        /// AM: the lowest so many bits of the page number are ignored.
        u8 [69:64] mask, with_mask;
        /// IH: only leaves changed.
        bool [70:70] leaves_only, with_leaves_only;
        /// ADDR: address, 4-KiB aligned.
        address [127:76] address, with_address;
    }
}

word! {
    /// "Device-TLB Invalidate Descriptor" (dev_tlb_inv_dsc).
    pub struct DeviceTlbLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// PFSID, bits 3:0.
        u8 [15:12] physical_source_low, with_physical_source_low;
        /// MIP: how many invalidations may be pending at the device.
        u8 [20:16] max_pending, with_max_pending;
        /// SID: source-id of the device.
        u16 [47:32] source, with_source;
        /// PFSID, bits 15:4.
        u16 [63:52] physical_source_high, with_physical_source_high;
        /// S: the address also says a size.
        bool [64:64] sized, with_sized;
        /// ADDR: address, 4-KiB aligned.
        address [127:76] address, with_address;
    }
}

word! {
    /// "Interrupt Entry Cache Invalidate Descriptor" (iec_inv_dsc).
    pub struct InterruptLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// G: 0 global, 1 by index.
        bool [4:4] by_index, with_by_index;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// IM: the lowest so many bits of the index are ignored.
        u8 [31:27] mask, with_mask;
        /// IIDX: index.
        u16 [47:32] index, with_index;
    }
}

word! {
    /// "Invalidation Wait Descriptor" (inv_wait_dsc).
    pub struct WaitLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// IF: set IWC when done.
        bool [4:4] interrupt, with_interrupt;
        /// SW: write the status when done.
        bool [5:5] status_write, with_status_write;
        /// FN: what follows waits for what came before.
        bool [6:6] fence, with_fence;
        /// PD: drain page requests.
        bool [7:7] page_drain, with_page_drain;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// Status data.
        u32 [63:32] status_data, with_status_data;
        /// Status address, 4-byte aligned.
        address [127:66] status_address, with_status_address;
    }
}

word! {
    /// "PASID-based-IOTLB Invalidate Descriptor" (p_iotlb_inv_dsc).
    pub struct PasidIotlbLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// G: 2 all of the PASID, 3 page of the PASID.
        u8 [5:4] granularity, with_granularity;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// DID: domain-id.
        u16 [31:16] domain, with_domain;
        /// PASID.
        u32 [51:32] pasid, with_pasid;
        /// AM: the lowest so many bits of the page number are ignored.
        u8 [69:64] mask, with_mask;
        /// IH: only leaves changed.
        bool [70:70] leaves_only, with_leaves_only;
        /// ADDR: address, 4-KiB aligned.
        address [127:76] address, with_address;
    }
}

word! {
    /// "PASID-cache Invalidate Descriptor" (pc_inv_dsc).
    pub struct PasidCacheLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// G: 0 domain, 1 PASID of a domain, 3 global.
        u8 [5:4] granularity, with_granularity;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// DID: domain-id.
        u16 [31:16] domain, with_domain;
        /// PASID.
        u32 [51:32] pasid, with_pasid;
    }
}

word! {
    /// "PASID-based-Device-TLB Invalidate Descriptor" (p_dev_tlb_inv_dsc).
    pub struct PasidDeviceTlbLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// MIP: how many invalidations may be pending at the device.
        u8 [8:4] max_pending, with_max_pending;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// PFSID, bits 3:0.
        u8 [15:12] physical_source_low, with_physical_source_low;
        /// SID: source-id of the device.
        u16 [31:16] source, with_source;
        /// PASID.
        u32 [51:32] pasid, with_pasid;
        /// PFSID, bits 15:4.
        u16 [63:52] physical_source_high, with_physical_source_high;
        /// G: for every PASID.
        bool [64:64] global, with_global;
        /// S: the address also says a size.
        bool [75:75] sized, with_sized;
        /// ADDR: address, 4-KiB aligned.
        address [127:76] address, with_address;
    }
}

word! {
    /// "Page Group Response Descriptor" (page_grp_resp_dsc).
    pub struct PageGroupResponseLayout(u128) {
        /// Type, bits 3:0.
        u8 [3:0] kind, with_kind;
        /// PP: the PASID is valid.
        bool [4:4] pasid_present, with_pasid_present;
        /// Type, bits 6:4.
        u8 [11:9] kind_high, with_kind_high;
        /// RC: response code.
        u8 [15:12] code, with_code;
        /// RID: requester-id.
        u16 [31:16] source, with_source;
        /// PASID.
        u32 [51:32] pasid, with_pasid;
        /// LPIG: last page in group.
        bool [66:66] last, with_last;
        /// PRG index.
        u16 [75:67] group, with_group;
    }
}
