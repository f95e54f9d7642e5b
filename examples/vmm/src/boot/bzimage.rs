// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bzImage by the Linux/x86 boot protocol, entered at its 64-bit entry point.

use super::error::BootError;
use super::layout::{COMMAND_LINE, HIGH_MEMORY, ZERO_PAGE};
use super::registers::EntryState;
use super::{Payload, command_line, initramfs, memory_map};
use crate::machine::address_map::AddressMap;
use crate::machine::memory::GuestRam;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{self, KernelLoader, bzimage};
use std::fs::File;
use std::path::Path;

/// Where the setup header ends, which begins at 0x1f1. linux-loader takes a file that ends inside it.
const HEADER_END: u64 = 0x1f1 + size_of::<setup_header>() as u64;
/// From the load address to the 64-bit entry point. "64-bit Boot Protocol".
const ENTRY_64: u64 = 0x200;
/// "type_of_loader": no assigned number.
const LOADER_OTHER: u8 = 0xff;
/// The protocol's version that brought `xloadflags`.
const VERSION_2_12: u16 = 0x020c;
/// The unit of "setup_sects".
const SECTOR: u64 = 512;
/// The setup part's length if the header says 0. "setup_sects".
const DEFAULT_SETUP_SECTORS: u64 = 4;

pub(super) fn load(
    mut file: File,
    payload: &Payload<'_>,
    map: &AddressMap,
    ram: &GuestRam,
) -> Result<EntryState, BootError> {
    let path = payload.kernel;
    let length = file
        .metadata()
        .map_err(|source| BootError::KernelFile {
            path: path.to_owned(),
            source,
        })?
        .len();
    if length < HEADER_END {
        return Err(BootError::KernelTruncated(path.to_owned()));
    }
    let loaded = bzimage::BzImage::load(ram, Some(HIGH_MEMORY), &mut file, None)
        .map_err(|error| refused(path, &error, length, map))?;
    let header = loaded
        .setup_header
        .ok_or_else(|| BootError::NotAKernel(path.to_owned()))?;
    // Fields of a packed structure are copied before they are used.
    let (version, flags) = (header.version, header.xloadflags);
    if version < VERSION_2_12 || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry(path.to_owned()));
    }
    if length < expected_length(&header) {
        return Err(BootError::KernelTruncated(path.to_owned()));
    }
    let memory = map.low_ram().end;
    let kernel_end = working_end(&header, loaded.kernel_end);
    if kernel_end > memory {
        return Err(BootError::KernelTooLarge {
            path: path.to_owned(),
            end: kernel_end,
            memory,
        });
    }

    command_line::write(ram, payload.command_line, header.cmdline_size as usize)?;
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: payload.rsdp.unwrap_or(0),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = COMMAND_LINE.0 as u32;
    params.hdr.ramdisk_image = 0;
    params.hdr.ramdisk_size = 0;
    if let Some(path) = payload.initramfs {
        // "initrd_addr_max": the last byte, not the first one behind it.
        let limit = u64::from(header.initrd_addr_max) + 1;
        let range = initramfs::load(path, kernel_end..memory.min(limit), ram)?;
        // Both are below 4 GiB: `limit` is.
        params.hdr.ramdisk_image = range.start as u32;
        params.hdr.ramdisk_size = range.end.saturating_sub(range.start) as u32;
    }
    // A handful, and the zero page has room for 128.
    let entries = memory_map::entries(map);
    for (slot, (range, kind)) in params.e820_table.iter_mut().zip(&entries) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.end.saturating_sub(range.start),
            r#type: *kind as u32,
        };
    }
    params.e820_entries = entries.len() as u8;
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, ZERO_PAGE), ram)
        .map_err(|_| vm_memory::GuestMemoryError::InvalidGuestAddress(ZERO_PAGE))?;
    Ok(EntryState::Long {
        entry: HIGH_MEMORY.0 + ENTRY_64,
        zero_page: ZERO_PAGE.0,
    })
}

/// Bytes the file must have: the setup part, and what "syssize" counts in paragraphs of 16.
fn expected_length(header: &setup_header) -> u64 {
    let setup = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors.into(),
    };
    let kernel = u64::from(header.syssize).saturating_mul(16);
    setup
        .saturating_add(1)
        .saturating_mul(SECTOR)
        .saturating_add(kernel)
}

/// First address behind the memory that the kernel uses before it has read the memory map:
/// "init_size" from where it runs, which is its preferred address when it is loaded below that.
fn working_end(header: &setup_header, image_end: u64) -> u64 {
    let runs_at = { header.pref_address }.max(HIGH_MEMORY.0);
    runs_at
        .saturating_add(header.init_size.into())
        .max(image_end)
}

/// What linux-loader's refusal means: its errors tell a short file from small memory no better.
fn refused(path: &Path, error: &loader::Error, length: u64, map: &AddressMap) -> BootError {
    match error {
        loader::Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel) => {
            BootError::KernelTooLarge {
                path: path.to_owned(),
                end: HIGH_MEMORY.0.saturating_add(length),
                memory: map.low_ram().end,
            }
        }
        loader::Error::Bzimage(bzimage::Error::InvalidBzImage) => {
            BootError::NotAKernel(path.to_owned())
        }
        _ => BootError::KernelTruncated(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_the_boot_protocols() {
        let mut header = setup_header {
            setup_sects: 0x1b,
            syssize: 0x7_0000,
            ..Default::default()
        };
        // 28 sectors of 512 and 0x70000 paragraphs of 16.
        assert_eq!(expected_length(&header), 0x3800 + 0x70_0000);
        header.setup_sects = 0;
        assert_eq!(expected_length(&header), 0xa00 + 0x70_0000);
    }

    #[test]
    fn the_kernel_works_in_more_memory_than_its_file() {
        let mut header = setup_header {
            pref_address: 0x100_0000,
            init_size: 0x200_0000,
            ..Default::default()
        };
        assert_eq!(working_end(&header, 0x90_0000), 0x300_0000);
        assert_eq!(working_end(&header, 0x400_0000), 0x400_0000);
        header.pref_address = u64::MAX;
        assert_eq!(working_end(&header, 0), u64::MAX);
    }
}
