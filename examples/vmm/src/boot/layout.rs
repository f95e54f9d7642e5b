// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the boot data lie in conventional memory, which no kernel is loaded over.
//!
//! ```text
//!   0x00500  descriptor table           0x09000  page tables, four pages
//!   0x06000  PVH start information      0x20000  command line
//!   0x06100  PVH module list            0xe0000  ACPI tables (machine::address_map)
//!   0x06200  PVH memory map            0x100000  bzImage; an ELF goes where it says
//!   0x07000  Linux zero page
//! ```

use vm_memory::GuestAddress;

/// Five descriptors.
pub(super) const DESCRIPTORS: GuestAddress = GuestAddress(0x500);
/// `hvm_start_info`.
pub(super) const START_INFO: GuestAddress = GuestAddress(0x6000);
/// `hvm_modlist_entry`, one.
pub(super) const MODULES: GuestAddress = GuestAddress(0x6100);
/// `hvm_memmap_table_entry`, a handful.
pub(super) const MEMORY_MAP: GuestAddress = GuestAddress(0x6200);
/// `boot_params`.
pub(super) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The root of the page tables, and the tables behind it.
pub(super) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line, with its closing zero.
pub(super) const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// A bzImage's protected-mode part.
pub(super) const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);
