// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Linux/x86 boot protocol, entered at its 64-bit entry point, as `examples/type1/src/linux/boot.rs` does it: the same addresses,
//! the same memory map. "The Linux/x86 Boot Protocol", version 2.15.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{KernelLoader, bzimage::BzImage};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The guest's memory.
pub(crate) type Ram = GuestMemoryMmap<()>;

/// All of it, in bytes.
pub(crate) const MEMORY: u64 = 256 << 20;
/// Of it, what the guest is told of: start and end.
const TOLD: [(u64, u64); 3] = [
    (0x8000, 0x8_0000),
    (0x10_0000, 0x20_0000),
    (KERNEL, MEMORY - (32 << 20) - 0x1_0000),
];
const ZERO_PAGE: u64 = 0x1_0000;
const COMMAND_LINE: u64 = 0x1_1000;
const PAGE_TABLES: u64 = 0x1_2000;
const GDT: u64 = 0x1_8000;
const KERNEL: u64 = 0x100_0000;
const INITRAMFS: u64 = 0xa00_0000;
const ENTRY_64: u64 = 0x200;
/// A table's entry, and a page of 2 MiB's: present, writable.
const TABLE: u64 = 3;
const LARGE: u64 = 0x83;
/// How many of the lowest GiB are mapped to themselves.
const GIBS: u64 = 4;

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Puts the kernel and all that it is given where it expects it.
pub(crate) fn load(ram: &Ram, kernel: &Path, initramfs: &Path, command_line: &str) -> Result<()> {
    let mut file = File::open(kernel).with_context(|| format!("no {}", kernel.display()))?;
    let loaded = BzImage::load(ram, Some(GuestAddress(KERNEL)), &mut file, None)?;
    let archive = fs::read(initramfs).with_context(|| format!("no {}", initramfs.display()))?;
    ram.write_slice(&archive, GuestAddress(INITRAMFS))?;
    let mut params = boot_params {
        hdr: loaded.setup_header.context("not a kernel")?,
        ..Default::default()
    };
    let limit = params.hdr.cmdline_size;
    ensure!(
        command_line.len() < limit as usize,
        "the command line is too long"
    );
    ram.write_slice(
        &[command_line.as_bytes(), &[0]].concat(),
        GuestAddress(COMMAND_LINE),
    )?;
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.ramdisk_image = INITRAMFS as u32;
    params.hdr.ramdisk_size = u32::try_from(archive.len())?;
    for (slot, (start, end)) in params.e820_table.iter_mut().zip(TOLD) {
        *slot = boot_e820_entry {
            addr: start,
            size: end - start,
            r#type: 1,
        };
    }
    params.e820_entries = TOLD.len() as u8;
    ram.write_obj(params, GuestAddress(ZERO_PAGE))?;
    for (word, at) in DESCRIPTORS.into_iter().zip((GDT..).step_by(8)) {
        ram.write_obj(word, GuestAddress(at))?;
    }
    let third = PAGE_TABLES + 0x1000;
    ram.write_obj(third | TABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..GIBS {
        let second = third + 0x1000 * (1 + gib);
        ram.write_obj(second | TABLE, GuestAddress(third + 8 * gib))?;
        for page in 0..512 {
            let address = gib << 30 | page << 21;
            ram.write_obj(address | LARGE, GuestAddress(second + 8 * page))?;
        }
    }
    Ok(())
}

/// Sets the registers.
pub(crate) fn enter(vcpu: &VcpuFd) -> Result<()> {
    let mut system = vcpu.get_sregs()?;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        db: 1,
        ..flat(DATA, 3)
    };
    system.cs = kvm_segment {
        l: 1,
        ..flat(CODE, 11)
    };
    (system.ds, system.es, system.fs) = (data, data, data);
    (system.gs, system.ss) = (data, data);
    system.gdt = kvm_dtable {
        base: GDT,
        limit: 8 * DESCRIPTORS.len() as u16 - 1,
        ..Default::default()
    };
    // PG, NE, ET, MP, PE; PAE, OSFXSR, OSXMMEXCPT; LMA, LME.
    system.cr0 = 0x8000_0033;
    system.cr3 = PAGE_TABLES;
    system.cr4 = 0x620;
    system.efer = 0x500;
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs {
        rip: KERNEL + ENTRY_64,
        rsi: ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(())
}

/// Whether a CPUID leaf is KVM's own.
pub(crate) fn is_of_hypervisor(leaf: u32) -> bool {
    leaf >> 28 == 4
}

/// Takes the bit "there is a hypervisor" out of leaf 1, so that the kernel does what it does without one.
pub(crate) fn without_hypervisor(leaf: &mut kvm_cpuid_entry2) {
    if leaf.function == 1 {
        leaf.ecx &= !(1 << 31);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_kvm_says_of_itself_is_hidden() {
        assert!(is_of_hypervisor(0x4000_0000) && is_of_hypervisor(0x4000_0001));
        assert!(!is_of_hypervisor(0x8000_0001) && !is_of_hypervisor(7));
        let mut leaf = kvm_cpuid_entry2 {
            function: 1,
            ecx: u32::MAX,
            ..Default::default()
        };
        without_hypervisor(&mut leaf);
        assert_eq!(leaf.ecx, 0x7fff_ffff);
        leaf.function = 7;
        leaf.ecx = u32::MAX;
        without_hypervisor(&mut leaf);
        assert_eq!(leaf.ecx, u32::MAX);
    }

    #[test]
    fn the_map_is_the_type_1_hypervisors() {
        // examples/type1/src/linux/boot.rs: 32 MiB and the firmware's 64 KiB are kept back at the end.
        assert_eq!(TOLD[2], (0x100_0000, 0x0dff_0000));
    }
}
