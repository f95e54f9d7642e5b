// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translations, accessed and dirty bits, and page faults, against the SDM's words.
//!
//! SDM 3A, "4-Level Paging" and "Page-Fault Exceptions".

use core::arch::{asm, global_asm};
use core::ptr::{read_volatile, write_volatile};

/// Where the pages under test are: the second GiB, one 2 MiB page of the entry's tables split.
const VIRTUAL: u64 = 0x4000_0000;
/// The level 2 table of the second GiB, as the entry lays it out.
const LEVEL2: *mut u64 = 0x4000 as *mut u64;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Above the physical addresses of any model here.
const RESERVED: u64 = 1 << 51;
const NO_EXECUTE: u64 = 1 << 63;
/// Error code bits: the page was present; a write; a reserved bit; an instruction fetch.
const CODE_PRESENT: u64 = 1;
const CODE_WRITE: u64 = 2;
const CODE_RESERVED: u64 = 8;
const CODE_FETCH: u64 = 16;

#[repr(C, align(4096))]
struct Page([u64; 512]);

static mut LEVEL1: Page = Page([0; 512]);
static mut FRAMES: [Page; 2] = [const { Page([0; 512]) }; 2];
static mut IDT: [[u64; 2]; 15] = [[0; 2]; 15];

#[unsafe(no_mangle)]
static mut selftest_fault: [u64; 3] = [0; 3];

global_asm!(
    // Notes error code and address, counts, and goes on where r11 says.
    ".globl selftest_page_fault",
    "selftest_page_fault:",
    "push rax",
    "mov rax, [rsp + 8]",
    "mov [rip + selftest_fault], rax",
    "mov rax, cr2",
    "mov [rip + selftest_fault + 8], rax",
    "inc qword ptr [rip + selftest_fault + 16]",
    "mov [rsp + 16], r11",
    "pop rax",
    "add rsp, 8",
    "iretq",
);

unsafe extern "C" {
    fn selftest_page_fault();
}

/// A page fault: error code and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    code: u64,
    address: u64,
}

/// What differs from the manual.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// Which check.
    pub check: &'static str,
    /// What was seen.
    pub seen: u64,
    /// What should have been.
    pub expected: u64,
}

/// Runs every check; tells `report` of each that fails.
pub fn check(report: &mut dyn FnMut(Wrong)) {
    prepare();
    let mut same = |check, seen, expected| {
        if seen != expected {
            report(Wrong {
                check,
                seen,
                expected,
            });
        }
    };
    // SAFETY: only addresses are taken, of the two frames that there are.
    let [a, b] = [0, 1].map(|n| unsafe { &raw mut FRAMES[n] } as u64);
    // Page 0: A, writable. 1: A, read only. 2: absent. 3: B, not executable. 4: a reserved bit.
    set(0, a | PRESENT | WRITABLE);
    set(1, a | PRESENT);
    set(2, 0);
    set(3, b | PRESENT | WRITABLE | NO_EXECUTE);
    set(4, b | PRESENT | WRITABLE | RESERVED);
    let page = |n: u64| VIRTUAL + n * 4096;

    same(
        "writing is allowed",
        code(write(page(0) + 8, 0x1234_5678_9abc_def0)),
        NONE,
    );
    // SAFETY: a frame of ours.
    let stored = unsafe { read_volatile((a + 8) as *const u64) };
    same("the write reached the frame", stored, 0x1234_5678_9abc_def0);
    same(
        "a write sets A and D",
        get(0) & (ACCESSED | DIRTY),
        ACCESSED | DIRTY,
    );
    same(
        "two pages, one frame",
        read(page(1) + 8).unwrap_or(0),
        0x1234_5678_9abc_def0,
    );
    same("a read sets A alone", get(1) & (ACCESSED | DIRTY), ACCESSED);
    same(
        "a write to read-only",
        code(write(page(1), 0)),
        CODE_PRESENT | CODE_WRITE,
    );
    same("its address", last().address, page(1));
    same("a read of nothing", code(read(page(2) + 0x123)), 0);
    same("its address", last().address, page(2) + 0x123);
    same("a write to nothing", code(write(page(2), 0)), CODE_WRITE);
    same("a read is no fetch", code(read(page(3))), NONE);
    same("a fetch", code(fetch(page(3))), CODE_PRESENT | CODE_FETCH);
    same(
        "a reserved bit",
        code(read(page(4))),
        CODE_PRESENT | CODE_RESERVED,
    );
    same("faults change no frame", get(1) & DIRTY, 0);

    set(0, b | PRESENT | WRITABLE);
    // SAFETY: the page is one of ours; a frame of ours.
    unsafe {
        asm!("invlpg [{}]", in(reg) page(0));
        write_volatile((b + 8) as *mut u64, 77);
    }
    same(
        "after INVLPG the new frame",
        read(page(0) + 8).unwrap_or(0),
        77,
    );
}

/// No fault: a code that no fault has.
const NONE: u64 = u64::MAX;

fn code<T>(result: Result<T, Fault>) -> u64 {
    result.map_or_else(|fault| fault.code, |_| NONE)
}

/// The handler of page faults, and the split page.
fn prepare() {
    let handler = selftest_page_fault as *const () as u64;
    // SDM 3A, "64-Bit Mode IDT": an interrupt gate, present, selector 8.
    let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler & 0xffff_0000) << 32;
    #[repr(C, packed)]
    struct Idtr(u16, u64);
    // SAFETY: nothing else runs here, interrupts are off, and the tables are ours. CR0.WP (bit 16)
    // makes read-only mean so for us. The reload of CR3 drops the translation of the split page.
    unsafe {
        IDT[14] = [low, handler >> 32];
        let idtr = Idtr(
            size_of::<[[u64; 2]; 15]>() as u16 - 1,
            &raw const IDT as u64,
        );
        asm!("lidt [{}]", in(reg) &idtr);
        write_volatile(LEVEL2, &raw const LEVEL1 as u64 | PRESENT | WRITABLE);
        asm!("mov {t}, cr0", "bts {t}, 16", "mov cr0, {t}", "mov {t}, cr3", "mov cr3, {t}",
            t = out(reg) _);
    }
}

fn set(index: usize, entry: u64) {
    // SAFETY: our table, below its 512 entries.
    unsafe { write_volatile((&raw mut LEVEL1.0[index]).cast(), entry) }
}

fn get(index: usize) -> u64 {
    // SAFETY: as above; the processor writes to it too.
    unsafe { read_volatile((&raw const LEVEL1.0[index]).cast()) }
}

/// The fault noted last.
fn last() -> Fault {
    // SAFETY: written by the handler alone, which does not run now.
    let [code, address, _] = unsafe { read_volatile(&raw const selftest_fault) };
    Fault { code, address }
}

fn faults() -> u64 {
    // SAFETY: as above.
    let [_, _, count] = unsafe { read_volatile(&raw const selftest_fault) };
    count
}

/// `Ok` if the handler did not count while `access` ran.
fn faulting<T>(access: impl FnOnce() -> T) -> Result<T, Fault> {
    let before = faults();
    let value = access();
    if faults() == before {
        Ok(value)
    } else {
        Err(last())
    }
}

fn read(address: u64) -> Result<u64, Fault> {
    faulting(|| {
        let value;
        // SAFETY: a fault continues at the label, and the address is of the split page.
        unsafe {
            asm!("lea r11, [rip + 2f]", "mov {v}, [{a}]", "2:", a = in(reg) address,
                v = inout(reg) 0u64 => value, out("r11") _);
        }
        value
    })
}

fn write(address: u64, value: u64) -> Result<(), Fault> {
    faulting(|| {
        // SAFETY: as above; what lies there is used by these checks alone.
        unsafe {
            asm!("lea r11, [rip + 2f]", "mov [{a}], {v}", "2:", a = in(reg) address,
                v = in(reg) value, out("r11") _);
        }
    })
}

fn fetch(address: u64) -> Result<(), Fault> {
    faulting(|| {
        // SAFETY: the fetch faults before anything is executed there; the stack pointer is put back
        // as it was before the call.
        unsafe {
            asm!("lea r11, [rip + 2f]", "mov r12, rsp", "call {a}", "2:", "mov rsp, r12",
                a = in(reg) address, out("r11") _, out("r12") _);
        }
    })
}
