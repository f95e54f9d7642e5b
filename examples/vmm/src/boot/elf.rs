// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An ELF kernel by PVH: entered in protected mode at the address its note names, with a structure
//! that tells memory, modules and command line.

use super::error::BootError;
use super::layout::{COMMAND_LINE, MEMORY_MAP, MODULES, START_INFO};
use super::registers::EntryState;
use super::{Payload, command_line, initramfs, memory_map};
use crate::machine::address_map::AddressMap;
use crate::machine::memory::GuestRam;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{self, Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use std::fs::File;
use std::path::Path;

/// `magic` of the start information.
const MAGIC: u32 = 0x336e_c578;
/// The version that brought the memory map.
const VERSION: u32 = 1;
/// Linux's limit on x86; the note does not tell one.
const COMMAND_LINE_LIMIT: usize = 2047;

pub(super) fn load(
    mut file: File,
    payload: &Payload<'_>,
    map: &AddressMap,
    ram: &GuestRam,
) -> Result<EntryState, BootError> {
    let path = payload.kernel;
    let memory = map.low_ram().end;
    let loaded = Elf::load(ram, None, &mut file, None)
        .map_err(|error| refused(path, error, &file, memory))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhNote(path.to_owned()));
    };
    // What it needs beyond its file, it says as memory size; that must be there, too.
    if loaded.kernel_end > memory {
        return Err(BootError::KernelTooLarge {
            path: path.to_owned(),
            end: loaded.kernel_end,
            memory,
        });
    }

    command_line::write(ram, payload.command_line, COMMAND_LINE_LIMIT)?;
    let memory_map: Vec<hvm_memmap_table_entry> = memory_map::entries(map)
        .into_iter()
        .map(|(range, kind)| hvm_memmap_table_entry {
            addr: range.start,
            size: range.end.saturating_sub(range.start),
            type_: kind as u32,
            reserved: 0,
        })
        .collect();
    let initramfs = payload
        .initramfs
        .map(|path| initramfs::load(path, loaded.kernel_end..memory, ram))
        .transpose()?;
    let modules: Vec<hvm_modlist_entry> = initramfs
        .iter()
        .map(|range| hvm_modlist_entry {
            paddr: range.start,
            size: range.end.saturating_sub(range.start),
            ..Default::default()
        })
        .collect();
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        // One module at most, a handful of ranges.
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES.0 },
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: payload.rsdp.unwrap_or(0),
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: memory_map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, START_INFO);
    params.set_sections(&memory_map, MEMORY_MAP);
    params.set_modules(&modules, MODULES);
    PvhBootConfigurator::write_bootparams(&params, ram)
        .map_err(|_| vm_memory::GuestMemoryError::InvalidGuestAddress(START_INFO))?;
    Ok(EntryState::Protected {
        entry: entry.0,
        start_info: START_INFO.0,
    })
}

/// What linux-loader's refusal means.
fn refused(path: &Path, error: loader::Error, file: &File, memory: u64) -> BootError {
    let loader::Error::Elf(elf_error) = &error else {
        return BootError::Elf {
            path: path.to_owned(),
            source: error,
        };
    };
    match elf_error {
        // A part that the file does not have, or that memory cannot hold: which, its length tells.
        elf::Error::ReadKernelImage => match segments_end(file) {
            Some(end) if end > memory => BootError::KernelTooLarge {
                path: path.to_owned(),
                end,
                memory,
            },
            _ => BootError::KernelTruncated(path.to_owned()),
        },
        elf::Error::ReadElfHeader | elf::Error::ReadProgramHeader | elf::Error::ReadNoteHeader => {
            BootError::KernelTruncated(path.to_owned())
        }
        _ => BootError::Elf {
            path: path.to_owned(),
            source: error,
        },
    }
}

/// First address behind the loadable segments; nothing if the headers cannot be read.
fn segments_end(file: &File) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    /// ELF64: `e_phoff`, `e_phnum`; program header: size, `p_type`, `p_paddr`, `p_memsz`.
    const PHOFF: u64 = 0x20;
    const PHNUM: u64 = 0x38;
    const HEADER: u64 = 56;
    const PADDR: usize = 0x18;
    const MEMSZ: usize = 0x28;
    const LOAD: u32 = 1;

    let mut word = [0; 8];
    file.read_exact_at(&mut word, PHOFF).ok()?;
    let table = u64::from_le_bytes(word);
    let mut count = [0; 2];
    file.read_exact_at(&mut count, PHNUM).ok()?;
    let mut end = 0;
    for index in 0..u64::from(u16::from_le_bytes(count)) {
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, table.checked_add(index.checked_mul(HEADER)?)?)
            .ok()?;
        let word = |at: usize| Some(u64::from_le_bytes(*header.get(at..)?.first_chunk()?));
        if header.starts_with(&LOAD.to_le_bytes()) {
            end = end.max(word(PADDR)?.saturating_add(word(MEMSZ)?));
        }
    }
    Some(end)
}
