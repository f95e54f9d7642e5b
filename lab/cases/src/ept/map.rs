// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where everything lies in the model's physical memory.
//!
//! ```text
//!  0x0020_0000  the payload            0x0100_0000  what to run: an `Order`
//!  0x0040_0000  the sequences          0x0120_0000  the guest's tables
//!  0x0140_0000  EPT's tables           0x0200_0000  the pattern: pages that tell their own address,
//!  0x0700_0000  VMXON region           0x0400_0000    as data and as code; its end
//!  0x0700_1000  VMCS                   0x1000_0000  no memory from here on
//!  0x0700_5000  page-modification log
//!  0x0700_6000  #VE information area
//! ```
//!
//! Tables are all zero between cases. Each kind has a region of 2 MiB, so that a large page of EPT can map it.

use core::ops::Range;

/// VMXON region.
pub const VMXON: u64 = 0x700_0000;
/// VMCS.
pub const VMCS: u64 = 0x700_1000;
/// The page-modification log.
pub const PML_LOG: u64 = 0x700_5000;
/// The virtualization-exception information area.
pub const VE_INFORMATION: u64 = 0x700_6000;

/// The guest's sequences, one after the other.
pub const CODE: u64 = 0x0040_0000;
/// Bytes of one.
pub const SEQUENCE_BYTES: u64 = 16;

/// The first frame of the guest's tables, and how many a case may use.
pub const GUEST_TABLES: u64 = 0x0120_0000;
/// See [`GUEST_TABLES`].
pub const GUEST_FRAMES: u64 = 8;
/// The first frame of EPT's tables, and how many a case may use.
pub const EPT_TABLES: u64 = 0x0140_0000;
/// See [`EPT_TABLES`].
pub const EPT_FRAMES: u64 = 24;

/// The first page that tells its address.
pub const PATTERN: u64 = 0x0200_0000;
/// 32 MiB of them.
pub const PATTERN_BYTES: u64 = 0x0200_0000;
/// No memory from here on: reads give ones.
pub const RAM_END: u64 = 0x1000_0000;

/// Offsets in a page of the pattern at which a word holds its own physical address; the word after each is 0, to be
/// written.
pub const DATA_OFFSETS: [u64; 3] = [0x000, 0x7f8, 0xff8];
/// Offsets at which eight bytes of code put their own physical address in EAX and leave by VMCALL.
pub const CODE_OFFSETS: [u64; 2] = [0x400, 0xff0];

/// What the digest covers, and what is zero between cases.
pub const ARENAS: [Range<u64>; 4] = [
    GUEST_TABLES..GUEST_TABLES + (GUEST_FRAMES << 12),
    EPT_TABLES..EPT_TABLES + (EPT_FRAMES << 12),
    PML_LOG..PML_LOG + 0x1000,
    VE_INFORMATION..VE_INFORMATION + 0x40,
];

/// The pattern's addresses.
#[must_use]
pub const fn pattern() -> Range<u64> {
    PATTERN..PATTERN + PATTERN_BYTES
}
