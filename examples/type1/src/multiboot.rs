// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Started by GRUB: the Multiboot header, and what the boot information asks for. "Multiboot Specification", version 0.6.96.
//!
//! ```text
//!   multiboot /type1 WHAT          tour, reach, fault, none, ept or shadow
//!   module /kernel COMMAND-LINE    the last three have a kernel and an initramfs
//!   module /initramfs
//! ```

use core::arch::global_asm;
use core::ops::Range;

use hvkit_vmx::Once;
use lab_cases::type1::{FAULT, LINUX, Linux, Paging, REACH, TOUR};

use crate::root_operation::Failed;

/// In EAX: the loader kept to the specification.
const LOADED: u32 = 0x2bad_b002;
/// Flags of the boot information: these fields are valid.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
/// Its fields: the flags, KiB of memory from 1 MiB to the first hole, the command line, the modules' number and descriptions.
const FLAGS: usize = 0;
const MEMORY_KIB: usize = 8;
const LINE: usize = 16;
const MODULES: usize = 20;
const MODULES_AT: usize = 24;
/// Of a module: begin, end, its words.
const MODULE_BYTES: usize = 16;
/// The port of Bochs's power-management control register. Elsewhere it is another one, and power-off is not seen.
const POWER_PORT: u16 = 0xb004;
const LONGEST_LINE: usize = 2047;
/// The page tables map as much.
const MAPPED: u64 = 1 << 32;

// The "address override" makes it good for a flat file: header, load address, its end, the end of .bss, entry.
global_asm!(
    r#"
    .section .payload_header, "a"
    .balign 4
type1_multiboot:
    .long 0x1badb002
    .long 0x00010003
    .long -(0x1badb002 + 0x00010003)
    .long type1_multiboot
    .long payload_start
    .long payload_bss_start
    .long payload_bss_end
    .long payload_start
    .text
"#,
    options(att_syntax),
);

/// What is asked for: a byte as the laboratory gives it, and with Linux what to boot.
pub type Asked = (u8, Option<(Linux, &'static [u8])>);

static COMMAND_LINE: Once<[u8; LONGEST_LINE]> = Once::new([0; LONGEST_LINE]);

/// What GRUB was told; `None` if it was not GRUB that started this program.
pub fn asked() -> Option<Result<Asked, Failed>> {
    match payload_rt::boot_words() {
        [LOADED, at] => Some(read(at as usize)),
        _ => None,
    }
}

fn read(information: usize) -> Result<Asked, Failed> {
    let flags = word(information + FLAGS);
    let line = if flags & HAS_LINE != 0 {
        words(word(information + LINE) as usize)
    } else {
        &[]
    };
    // Some loaders give the file's name too.
    let what = line.rsplit(|&byte| byte == b' ').next().unwrap_or(line);
    let paging = match what {
        b"tour" => return Ok((TOUR, None)),
        b"reach" => return Ok((REACH, None)),
        b"fault" => return Ok((FAULT, None)),
        b"none" => Paging::None,
        b"ept" => Paging::Ept,
        b"shadow" => Paging::Shadow,
        _ => {
            return Err(Failed::at(
                "GRUB's line says none of tour, reach, fault, none, ept, shadow",
            ));
        }
    };
    let count = word(information + MODULES);
    if flags & (HAS_MEMORY | HAS_MODULES) != HAS_MEMORY | HAS_MODULES || count < 2 {
        return Err(Failed::at(
            "a kernel and an initramfs are wanted as modules",
        ));
    }
    let memory = (1 << 20) + (u64::from(word(information + MEMORY_KIB)) << 10);
    let memory = (memory & !0xf_ffff).min(MAPPED - (1 << 30));
    let first = word(information + MODULES_AT) as usize;
    let [kernel, initramfs] = [first, first + MODULE_BYTES].map(module);
    // The boot information lies in memory that is the guest's: nothing refers to it from here on.
    let kept = COMMAND_LINE
        .take()
        .ok_or(Failed::at("asked for a second time"))?;
    let line = words(word(first + 8) as usize);
    kept[..line.len()].copy_from_slice(line);
    let line = &kept[..line.len()];
    let order = Linux {
        paging,
        kernel: (kernel.start, kernel.end - kernel.start),
        initramfs: (initramfs.start, initramfs.end - initramfs.start),
        memory,
        power_port: POWER_PORT,
        command_line: line.len() as u16,
        trace: 0,
    };
    Ok((LINUX, Some((order, line))))
}

fn module(at: usize) -> Range<u64> {
    let start = word(at);
    start.into()..word(at + 4).max(start).into()
}

/// What ends where addresses of 32 bits end, which are all mapped to themselves.
const TOP: usize = 1 << 32;

/// A word of the boot information.
fn word(at: usize) -> u32 {
    let at = at.min(TOP - 4);
    // SAFETY: mapped, as it ends below `TOP`; reading what the loader left has no effect, wherever it says that it is.
    unsafe { (at as *const u32).read_unaligned() }
}

/// A text that ends with a zero byte, or with the longest that there is room for.
fn words(at: usize) -> &'static [u8] {
    let at = at.clamp(1, TOP - LONGEST_LINE);
    // SAFETY: mapped, as it ends below `TOP`. Nobody writes the loader's memory before the guest's tables are made, and `read`
    // has compared or copied the text by then.
    let room = unsafe { core::slice::from_raw_parts(at as *const u8, LONGEST_LINE) };
    room.split(|&byte| byte == 0).next().unwrap_or(room)
}
