// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Linux/x86 boot protocol, entered at its 64-bit entry point. "The Linux/x86 Boot Protocol", version 2.15.
//!
//! ```text
//!   0x10000  zero page      0x12000  page tables (6)     0x01000000  the kernel's protected-mode part
//!   0x11000  command line   0x18000  GDT                 where it came: the initramfs
//! ```

use hvkit_vmcs::exit::Gpr;
use hvkit_vmx::Registers;
use lab_cases::type1::Linux;

use crate::guest_state::GuestState;
use crate::memory::TOP_BYTES;
use crate::root_operation::Failed;

/// Where the guest's memory above this program begins, and the kernel is loaded.
pub const HIGH: u64 = 0x100_0000;
const ZERO_PAGE: u64 = 0x1_0000;
const COMMAND_LINE: u64 = 0x1_1000;
const COMMAND_LINE_BYTES: usize = 2048;
const PAGE_TABLES: u64 = 0x1_2000;
const GDT: u64 = 0x1_8000;
/// Bochs's BIOS keeps its ACPI tables in the last 64 KiB.
const ACPI_BYTES: u64 = 0x1_0000;

/// The entry's registers, for a guest that is entered without VMX: RIP, RSI, CR3, and the GDT's base and limit.
pub const fn entry() -> (u64, u64, u64, (u64, u16)) {
    (HIGH + ENTRY_64, ZERO_PAGE, PAGE_TABLES, (GDT, 31))
}

/// Offsets in the zero page, which begins as the file does from 1f1H on.
const E820_COUNT: usize = 0x1e8;
const HEADER: usize = 0x1f1;
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const JUMP: usize = 0x201;
const VERSION: usize = 0x206;
const LOADER: usize = 0x210;
const RAMDISK: usize = 0x218;
const COMMAND_LINE_POINTER: usize = 0x228;
const LOAD_FLAGS: usize = 0x236;
const INIT_SIZE: usize = 0x260;
const E820: usize = 0x2d0;
/// The version that brought "xloadflags", and its bit for a 64-bit entry point.
const VERSION_2_12: u16 = 0x20c;
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

/// What the guest begins with.
pub struct Begin {
    /// Its state in the VMCS.
    pub guest: GuestState,
    /// Its other registers.
    pub registers: Registers,
}

/// The kinds of memory in the map. ACPI, "Address Range Types".
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;

/// Where our part of memory's end begins.
pub const fn top(memory: u64) -> u64 {
    memory - ACPI_BYTES - TOP_BYTES
}

/// Memory as the guest is told of it.
fn memory_map(memory: u64) -> [(u64, u64, u32); 8] {
    [
        (0, 0x8000, RESERVED),
        (0x8000, 0x8_0000, RAM),
        (0x8_0000, 0x10_0000, RESERVED),
        (0x10_0000, 0x20_0000, RAM),
        (0x20_0000, HIGH, RESERVED),
        (HIGH, top(memory), RAM),
        (top(memory), memory - ACPI_BYTES, RESERVED),
        (memory - ACPI_BYTES, memory, ACPI),
    ]
}

/// Puts everything where the guest expects it.
///
/// # Safety
///
/// The memory of the map above, from 8000H on, is mapped to itself and nobody else's.
pub unsafe fn place(order: &Linux, command_line: &[u8]) -> Result<Begin, Failed> {
    let (at, length) = order.kernel;
    let image = at as *const u8;
    // SAFETY: the caller's promise: the image lies in the guest's memory, and is read before the guest runs.
    let file = unsafe { core::slice::from_raw_parts(image, length as usize) };
    let word = |at: usize| {
        file.get(at..at + 2)
            .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
    };
    if file.get(MAGIC..MAGIC + 4) != Some(b"HdrS")
        || word(VERSION) < VERSION_2_12
        || word(LOAD_FLAGS) & KERNEL_64 == 0
    {
        return Err(Failed::at("not a kernel with a 64-bit entry point"));
    }
    let sectors = match file[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let protected = file.get((sectors + 1) * 512..);
    let protected = protected.ok_or(Failed::at("the kernel is cut off"))?;
    let works = u64::from(word(INIT_SIZE)) | u64::from(word(INIT_SIZE + 2)) << 16;
    let end = HIGH + works.max(protected.len() as u64);
    if end > at || end > order.initramfs.0 {
        return Err(Failed::with(
            "the kernel would overwrite what is loaded",
            [end, at],
        ));
    }
    let (initramfs, length) = order.initramfs;
    if order.memory < HIGH + TOP_BYTES + ACPI_BYTES || initramfs + length > top(order.memory) {
        return Err(Failed::with(
            "the initramfs lies where this program keeps its tables",
            [initramfs + length, order.memory],
        ));
    }
    if command_line.len() >= COMMAND_LINE_BYTES {
        return Err(Failed::at("the command line is too long"));
    }

    let mut zero_page = [0_u8; 4096];
    let header_end = MAGIC + usize::from(file[JUMP]);
    let header = file.get(HEADER..header_end);
    let header = header.ok_or(Failed::at("the kernel is cut off"))?;
    zero_page[HEADER..header_end].copy_from_slice(header);
    let mut put = |at: usize, bytes: &[u8]| zero_page[at..at + bytes.len()].copy_from_slice(bytes);
    put(LOADER, &[0xff]);
    put(RAMDISK, &(order.initramfs.0 as u32).to_le_bytes());
    put(RAMDISK + 4, &(order.initramfs.1 as u32).to_le_bytes());
    put(COMMAND_LINE_POINTER, &(COMMAND_LINE as u32).to_le_bytes());
    let map = memory_map(order.memory);
    put(E820_COUNT, &[map.len() as u8]);
    for (index, (start, end, kind)) in map.into_iter().enumerate() {
        let entry = E820 + 20 * index;
        put(entry, &start.to_le_bytes());
        put(entry + 8, &(end - start).to_le_bytes());
        put(entry + 16, &kind.to_le_bytes());
    }

    // SAFETY: the caller's promise; the pieces do not overlap, as the picture above shows and `end` was checked for.
    unsafe {
        core::ptr::copy_nonoverlapping(zero_page.as_ptr(), ZERO_PAGE as *mut u8, 4096);
        core::ptr::write_bytes(COMMAND_LINE as *mut u8, 0, 4096);
        let to = COMMAND_LINE as *mut u8;
        core::ptr::copy_nonoverlapping(command_line.as_ptr(), to, command_line.len());
        // Last: the command line came from there.
        core::ptr::copy(protected.as_ptr(), HIGH as *mut u8, protected.len());
        page_tables();
        // Flat code at 10H and data at 18H, as the protocol asks for.
        for (index, descriptor) in [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
            .iter()
            .enumerate()
        {
            (GDT as *mut u64).add(index).write_volatile(*descriptor);
        }
    }
    let guest = GuestState {
        gdtr: (GDT, 31),
        ..GuestState::long_mode(PAGE_TABLES, HIGH + ENTRY_64, 0)
    };
    Ok(Begin {
        guest,
        registers: Registers::new().with(Gpr::RSI, ZERO_PAGE),
    })
}

/// 4 GiB to themselves, in pages of 2 MiB.
///
/// # Safety
///
/// Six pages at `PAGE_TABLES` are nobody else's.
unsafe fn page_tables() {
    let table = |level: u64| (PAGE_TABLES + level * 0x1000) as *mut u64;
    // SAFETY: the caller's promise: level 4, level 3, and four of level 2 behind each other.
    unsafe {
        core::ptr::write_bytes(PAGE_TABLES as *mut u8, 0, 6 * 4096);
        table(0).write_volatile(PAGE_TABLES + 0x1003);
        for gib in 0..4 {
            let next = PAGE_TABLES + 0x2000 + gib * 0x1000;
            table(1).add(gib as usize).write_volatile(next | 3);
        }
        for page in 0..2048 {
            table(2)
                .add(page)
                .write_volatile((page as u64) << 21 | 0x83);
        }
    }
}
