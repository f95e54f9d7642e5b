// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest may have, answered; what it may not, refused and reported.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use hvkit_ept::Attributes;
use hvkit_ept::spec::{MemoryType, Rights};
use hvkit_page_table::Span;
use hvkit_vmcs::exit::EptViolation;
use hvkit_vmcs::fields as f;
use hvkit_vmx::exit::{Direction, EptFault, Io, Xsetbv};
use hvkit_vmx::{Current, Exit, Physical};
use payload_rt::println;

use crate::memory::FRAME;
use crate::paging_ept::Tables;
use crate::run::{Next, Policy};

pub const FEATURE_CONTROL: u32 = 0x3a;
/// `IA32_MISC_ENABLE`. The kernel reads it before it can handle a fault, and Bochs 2.7 has none.
pub const MISC_ENABLE: u32 = 0x1a0;
/// Fast strings; all else off.
const MISC_ENABLE_VALUE: u64 = 1;
/// Locked, and VMX off: what firmware leaves that does not want it used.
const LOCKED: u64 = 1;
/// CR0.NE and CR4.VMXE: what VMX fixes.
const NE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;
const CR4_OSXSAVE: u64 = 1 << 18;
/// CPUID.01H:ECX.
const ECX_VMX: u32 = 1 << 5;
const ECX_OSXSAVE: u32 = 1 << 27;
/// "Sleep enable" of the power-management control register. ACPI, "PM1 Control Registers".
const SLEEP_ENABLE: u32 = 1 << 13;
/// How many accesses are reported one by one.
const SHOWN: usize = 64;

/// An access to memory that is not the guest's.
#[derive(Clone, Copy)]
struct Access {
    physical: u64,
    how: EptViolation,
    rip: u64,
}

impl Access {
    /// Whether it would change something, or run it.
    const fn is_refused(&self) -> bool {
        self.how.is_write() || self.how.is_fetch()
    }
}

/// What the guest reads where we are.
#[repr(C, align(4096))]
struct Nothing([u8; FRAME as usize]);

static NOTHING: Nothing = Nothing([0; FRAME as usize]);

/// The guest has the machine, less this hypervisor.
pub struct Passed<'t, 'p> {
    tables: &'t mut Tables<'p>,
    power_port: u16,
    /// The first ones: they are printed in the end, as the serial line is the guest's until then.
    accesses: [Option<Access>; SHOWN],
    reads: u64,
    changes: u64,
}

impl<'t, 'p> Passed<'t, 'p> {
    pub fn new(tables: &'t mut Tables<'p>, power_port: u16) -> Self {
        Self {
            tables,
            power_port,
            accesses: [None; SHOWN],
            reads: 0,
            changes: 0,
        }
    }

    /// Prints what was refused.
    pub fn print(&self) {
        let Self { reads, changes, .. } = self;
        for access in self.accesses.iter().flatten() {
            let what = if access.is_refused() {
                "refused"
            } else {
                "reads nothing"
            };
            let Access { physical, how, rip } = access;
            println!("isolation: {physical:#x} {what}: {how:?} at RIP {rip:#x}");
        }
        println!("isolation: {reads} pages read as nothing, {changes} writes and fetches refused");
    }
}

impl Policy for Passed<'_, '_> {
    fn answer(&mut self, exit: Exit<'_, Current<'_>>) -> Next {
        match exit {
            Exit::Cpuid(exit) => {
                let found = __cpuid_count(exit.leaf, exit.subleaf);
                let mut ecx = found.ecx;
                if exit.leaf == 1 {
                    ecx &= !(ECX_VMX | ECX_OSXSAVE);
                    if exit.guest.read(f::GUEST_CR4) & CR4_OSXSAVE != 0 {
                        ecx |= ECX_OSXSAVE;
                    }
                }
                exit.answer([found.eax, found.ebx, ecx, found.edx]);
            }
            Exit::ReadMsr(exit) if exit.index == FEATURE_CONTROL => exit.answer(LOCKED),
            Exit::ReadMsr(exit) if exit.index == MISC_ENABLE => exit.answer(MISC_ENABLE_VALUE),
            Exit::WriteMsr(exit) if exit.index == MISC_ENABLE => exit.done(),
            Exit::ReadMsr(exit) => exit.fault(),
            Exit::WriteMsr(exit) => exit.fault(),
            Exit::Xsetbv(exit) => extended_state(exit),
            Exit::VmxInstruction(exit) => exit.undefined(),
            Exit::Hypercall(exit) => exit.undefined(),
            Exit::ControlRegister(exit) => {
                let fixed = if exit.new_cr0().is_some() { NE } else { VMXE };
                exit.allow(fixed);
            }
            Exit::Io(exit) => return self.port(exit),
            Exit::EptViolation(exit, access) => return self.memory(exit, access),
            Exit::TripleFault(guest) => {
                println!("type1: {guest:?}");
                return Next::Give("the guest shut down");
            }
            other => {
                println!("type1: {other:?}");
                return Next::Give("an exit that was not expected");
            }
        }
        Next::Go
    }
}

impl Passed<'_, '_> {
    /// Memory that is not the guest's: it reads as zeros, and cannot be written or executed.
    fn memory(&mut self, mut exit: EptFault<'_, Current<'_>>, how: EptViolation) -> Next {
        let access = Access {
            physical: exit.physical,
            how,
            rip: exit.guest.read(f::GUEST_RIP),
        };
        if let Some(free) = self.accesses.iter_mut().find(|a| a.is_none()) {
            *free = Some(access);
        }
        if access.is_refused() {
            self.changes += 1;
            exit.guest.fault();
            return Next::Go;
        }
        self.reads += 1;
        let page = Span::new(exit.physical & !(FRAME - 1), FRAME);
        let readable = Attributes::new(Rights::READ, MemoryType::WriteBack);
        let nothing = crate::memory::map().of(&NOTHING);
        if let Err(error) = self.tables.map(page, nothing, readable) {
            println!("type1: {error}");
            return Next::Give("a page of nothing cannot be mapped");
        }
        exit.retry();
        Next::Go
    }

    /// The port that exits: power-off ends the guest, everything else is done for it.
    fn port(&self, exit: Io<'_, Current<'_>>) -> Next {
        match exit.direction {
            Direction::Out(value) => {
                let is_control = exit.port == self.power_port && exit.bytes >= 2;
                if is_control && value & SLEEP_ENABLE != 0 {
                    println!("type1: the guest powers off");
                    return Next::Stop;
                }
                // SAFETY: the port is the guest's, and what it does there does not reach this program.
                unsafe { write(exit.port, exit.bytes, value) };
                exit.done();
            }
            Direction::In => {
                // SAFETY: as above.
                let value = unsafe { read(exit.port, exit.bytes) };
                exit.answer(value);
            }
            Direction::String { .. } => exit.fault(),
        }
        Next::Go
    }
}

/// XSETBV as the processor would do it for the guest. SDM Vol. 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features".
fn extended_state(exit: Xsetbv<'_, Current<'_>>) {
    const X87: u64 = 1;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const BOUNDS: u64 = 3 << 3;
    const AVX_512: u64 = 7 << 5;
    let known = __cpuid_count(0xd, 0);
    let known = u64::from(known.edx) << 32 | u64::from(known.eax);
    let value = exit.value;
    let all_or_none = |bits: u64| value & bits == 0 || value & bits == bits;
    let is_right = exit.index == 0
        && value & X87 != 0
        && value & !known == 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX_512 == 0 || value & AVX != 0)
        && all_or_none(AVX_512)
        && all_or_none(BOUNDS);
    if !is_right {
        return exit.fault();
    }
    // SAFETY: CR4.OSXSAVE is set, and the value is one that XCR0 takes. The host uses SSE registers at most, which work
    // whatever XCR0 says.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
    exit.done();
}

/// # Safety
///
/// What the device does with it must not break what this program relies on.
unsafe fn write(port: u16, bytes: u8, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            1 => {
                asm!("out dx, al", in("dx") port, in("al") value as u8, options(nostack, preserves_flags))
            }
            2 => {
                asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nostack, preserves_flags))
            }
            _ => {
                asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags))
            }
        }
    }
}

/// # Safety
///
/// As for [`write`]: a read may have effects too.
unsafe fn read(port: u16, bytes: u8) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            1 => {
                asm!("in al, dx", "movzx eax, al", in("dx") port, out("eax") value, options(nostack, preserves_flags))
            }
            2 => {
                asm!("in ax, dx", "movzx eax, ax", in("dx") port, out("eax") value, options(nostack, preserves_flags))
            }
            _ => {
                asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags))
            }
        }
    }
    value
}
