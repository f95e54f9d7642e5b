// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Protected memory regions and memory types.

use super::access::register;

register! {
    /// Protected Memory Enable Register (PMEN_REG).
    pub struct ProtectedMemoryEnable(u32) {
        /// PRS: the regions are protected.
        ro bool [0:0] protected, with_protected;
        /// EPM: protect them.
        rw bool [31:31] enable, with_enable;
    }
}

register! {
    /// Protected Low-Memory Base or Limit Register (PLMBASE_REG, PLMLIMIT_REG). How many of the lowest bits
    /// are reserved is the unit's choice: software finds it by writing all ones.
    pub struct ProtectedLow(u32) {
        /// PLMB or PLML: an address, in place.
        rw address [31:0] address, with_address;
    }
}

register! {
    /// Protected High-Memory Base or Limit Register (PHMBASE_REG, PHMLIMIT_REG). As [`ProtectedLow`].
    pub struct ProtectedHigh(u64) {
        /// PHMB or PHML: an address, in place.
        rw address [63:0] address, with_address;
    }
}

register! {
    /// MTRR Capability Register (MTRRCAP_REG).
    pub struct MtrrCapability(u64) {
        /// VCNT: variable ranges.
        ro u8 [7:0] variable_ranges, with_variable_ranges;
        /// FIX: fixed ranges.
        ro bool [8:8] fixed_ranges, with_fixed_ranges;
        /// WC: write-combining.
        ro bool [10:10] write_combining, with_write_combining;
    }
}

register! {
    /// MTRR Default Type Register (MTRRDEF_REG).
    pub struct MtrrDefault(u64) {
        /// TYPE: the default memory type.
        rw u8 [7:0] memory_type, with_memory_type;
        /// FE: fixed ranges count.
        rw bool [10:10] fixed_enable, with_fixed_enable;
        /// E: MTRRs count.
        rw bool [11:11] enable, with_enable;
    }
}

register! {
    /// Fixed-Range MTRR (MTRR_FIX64K_00000_REG to MTRR_FIX4K_F8000_REG): eight memory types, a byte each.
    pub struct MtrrFixed(u64) {
        /// The types, that of the lowest addresses in bits 7:0.
        rw u64 [63:0] types, with_types;
    }
}

register! {
    /// Variable-Range MTRR base (MTRR_PHYSBASEn_REG).
    pub struct MtrrBase(u64) {
        /// TYPE: memory type.
        rw u8 [7:0] memory_type, with_memory_type;
        /// PHYSBASE: address, in place.
        rw address [63:12] base, with_base;
    }
}

register! {
    /// Variable-Range MTRR mask (MTRR_PHYSMASKn_REG).
    pub struct MtrrMask(u64) {
        /// V: the range counts.
        rw bool [11:11] valid, with_valid;
        /// PHYSMASK: mask, in place.
        rw address [63:12] mask, with_mask;
    }
}
