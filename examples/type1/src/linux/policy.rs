// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest may have, answered; what it may not, refused and reported.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use hvkit_vmcs::exit::ExitReason;
use hvkit_vmcs::fields as f;
use hvkit_vmx::exit::{Cpuid, Direction, Io, Xsetbv};
use hvkit_vmx::{Current, Exit};
use lab_cases::type1::MARK;
use payload_rt::println;

use crate::isolation::{How, Isolation};
use crate::paging_shadow::EFER;
use crate::run::{Next, Paging, Policy};

/// `IA32_APIC_BASE`.
pub const APIC_BASE: u32 = 0x1b;
pub const FEATURE_CONTROL: u32 = 0x3a;
/// `IA32_MISC_ENABLE`. The kernel reads it before it can handle a fault, and Bochs 2.7 has none.
pub const MISC_ENABLE: u32 = 0x1a0;
/// All off, fast strings too: as the model answers where it is told to ignore what it does not know, so the kernel chooses the
/// same code with and without this hypervisor. But branch trace storage and PEBS are unavailable, which bits 11 and 12 say.
const MISC_ENABLE_VALUE: u64 = 1 << 11 | 1 << 12;
/// Locked, and VMX off: what firmware leaves that does not want it used.
const LOCKED: u64 = 1;
/// `IA32_XSS`, for the components that XSAVES and XRSTORS exit for.
const XSS: u64 = 0xda0;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;
/// CPUID.01H:ECX.
const ECX_VMX: u32 = 1 << 5;
const ECX_OSXSAVE: u32 = 1 << 27;
const ECX_X2APIC: u32 = 1 << 21;
/// Debug store: its 64-bit layout, and its qualification by privilege; in EDX, itself.
const ECX_DEBUG_STORE: u32 = 1 << 2 | 1 << 4;
const EDX_DEBUG_STORE: u32 = 1 << 21;
/// CPUID.23H.0:EAX: the subleaves 4 and 5 of PEBS are there.
const EAX_PEBS: u32 = 3 << 4;
/// CPUID.06H:EAX: hardware feedback, and its enhancement.
const EAX_FEEDBACK: u32 = 1 << 19 | 1 << 23;
/// CPUID.07H.0:ECX: CR4.PKE is set.
const ECX_OSPKE: u32 = 1 << 4;
/// CPUID.07H.0:EBX: processor trace, whose leaf is 14H, and whose state component is 8.
const EBX_TRACE: u32 = 1 << 25;
const TRACE_COMPONENT: u32 = 8;
/// CPUID.07H.1:EAX: FRED transitions.
const EAX_FRED: u32 = 1 << 17;
/// "Sleep enable" of the power-management control register. ACPI, "PM1 Control Registers".
const SLEEP_ENABLE: u32 = 1 << 13;
/// `IA32_APIC_BASE`: x2APIC mode, and the local APIC enabled.
const EXTENDED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

/// The guest has the machine, less this hypervisor.
pub struct Passed<P> {
    paging: P,
    power_port: u16,
    isolation: Isolation,
}

impl<P: Paging> Passed<P> {
    pub fn new(paging: P, power_port: u16) -> Self {
        Self {
            paging,
            power_port,
            isolation: Isolation::new(),
        }
    }

    /// Prints what was refused, and what the paging saw.
    pub fn print(&self) {
        self.isolation.print();
        self.paging.print();
    }
}

impl<P: Paging> Policy for Passed<P> {
    fn answer(&mut self, exit: Exit<'_, Current<'_>>) -> Next {
        match exit {
            Exit::Cpuid(exit) => {
                let mut exit = exit;
                let next = if exit.leaf == MARK {
                    self.paging.marked(exit.subleaf, exit.guest.vmcs())
                } else {
                    Next::Go
                };
                self.identify(exit);
                return next;
            }
            Exit::ReadMsr(exit) if exit.index == FEATURE_CONTROL => exit.answer(LOCKED),
            Exit::ReadMsr(exit) if exit.index == MISC_ENABLE => exit.answer(MISC_ENABLE_VALUE),
            Exit::WriteMsr(exit) if exit.index == MISC_ENABLE => exit.done(),
            Exit::ReadMsr(exit) if exit.index == APIC_BASE => exit.answer(apic_base()),
            Exit::WriteMsr(exit) if exit.index == APIC_BASE && set_apic_base(exit.value) => {
                exit.done();
            }
            Exit::ReadMsr(exit) if exit.index != EFER => {
                let rip = exit.guest.read(f::GUEST_RIP);
                self.isolation.meets(exit.index.into(), How::Msr, rip);
                exit.fault();
            }
            Exit::WriteMsr(exit) if exit.index != EFER => {
                let rip = exit.guest.read(f::GUEST_RIP);
                self.isolation.meets(exit.index.into(), How::Msr, rip);
                exit.fault();
            }
            Exit::Xsetbv(exit) => extended_state(exit),
            Exit::VmxInstruction(exit) => exit.undefined(),
            Exit::Hypercall(exit) => exit.undefined(),
            Exit::Io(exit) => return self.port(exit),
            Exit::Other(exit) if exit.guest.reason().is(ExitReason::INIT) => {
                // Its processor would start again in the firmware, which is gone; and there is no other to start it.
                println!("type1: the guest resets its processor by INIT");
                return Next::Stop;
            }
            Exit::Other(exit)
                if exit.guest.reason().is(ExitReason::XSAVES)
                    || exit.guest.reason().is(ExitReason::XRSTORS) =>
            {
                let rip = exit.guest.read(f::GUEST_RIP);
                self.isolation.meets(XSS, How::Msr, rip);
                exit.fault();
            }
            Exit::TripleFault(guest) => {
                println!("type1: {guest:?}");
                return Next::Give("the guest shut down");
            }
            other => return self.paging.answer(other, &mut self.isolation),
        }
        Next::Go
    }
}

impl<P: Paging> Passed<P> {
    /// CPUID: the processor's, less VMX, what goes past the paging, and what the paging cannot give.
    fn identify(&self, exit: Cpuid<'_, Current<'_>>) {
        let found = __cpuid_count(exit.leaf, exit.subleaf);
        let mut answer = [found.eax, found.ebx, found.ecx, found.edx];
        for (register, hidden) in answer
            .iter_mut()
            .zip(self.paging.hides(exit.leaf, exit.subleaf))
        {
            *register &= !hidden;
        }
        // What would reach physical addresses past the paging.
        match (exit.leaf, exit.subleaf) {
            (6, _) if answer[0] & EAX_FEEDBACK != 0 => {
                answer[0] &= !EAX_FEEDBACK;
                answer[3] = 0;
            }
            (7, 0) => {
                answer[1] &= !EBX_TRACE;
                answer[2] &= !ECX_OSPKE;
                if exit.guest.read(f::GUEST_CR4) & CR4_PKE != 0 {
                    answer[2] |= ECX_OSPKE;
                }
            }
            // Its MSRs are not switched.
            (7, 1) => answer[0] &= !EAX_FRED,
            (0xd, 1) => answer[2] &= !(1 << TRACE_COMPONENT),
            (0x14, _) | (0xd, TRACE_COMPONENT) | (0x23, 4 | 5) => answer = [0; 4],
            // What would write where an exit leads.
            (0x23, 0) => answer[0] &= !EAX_PEBS,
            _ => {}
        }
        if exit.leaf == 1 {
            let ecx = &mut answer[2];
            *ecx &= !(ECX_VMX | ECX_OSXSAVE | ECX_DEBUG_STORE);
            if exit.guest.read(f::GUEST_CR4) & CR4_OSXSAVE != 0 {
                *ecx |= ECX_OSXSAVE;
            }
            answer[3] &= !EDX_DEBUG_STORE;
        }
        exit.answer(answer);
    }

    /// The port that exits: power-off ends the guest, other IN and OUT are done for it. INS and OUTS there are refused, which no processor does:
    /// they would take the guest's memory, and nobody powers off so.
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

/// Whether `IA32_APIC_BASE` may go from `now` to `value`: the APIC stays where it is, and its mode changes as a processor lets it. SDM
/// Vol. 3A, "x2APIC State Transitions".
fn keeps_its_place(now: u64, value: u64) -> bool {
    const MODE: u64 = ENABLED | EXTENDED;
    let has_x2apic = __cpuid_count(1, 0).ecx & ECX_X2APIC != 0;
    (now ^ value) & !MODE == 0
        && match (now & MODE, value & MODE) {
            (old, new) if old == new => true,
            (ENABLED, MODE) => has_x2apic,
            (ENABLED, 0) | (0, ENABLED) => true,
            (MODE, 0) => !x2apic_is_locked(),
            _ => false,
        }
}

/// Whether the local APIC cannot leave x2APIC mode. SDM Vol. 4: bit 0 of `IA32_XAPIC_DISABLE_STATUS`, where bit 21 of
/// `IA32_ARCH_CAPABILITIES`, if that is there, tells of it.
fn x2apic_is_locked() -> bool {
    const EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
    const ARCH_CAPABILITIES: u32 = 0x10a;
    const XAPIC_DISABLE: u64 = 1 << 21;
    const XAPIC_DISABLE_STATUS: u32 = 0xbd;
    if __cpuid_count(0, 0).eax < 7 || __cpuid_count(7, 0).edx & EDX_ARCH_CAPABILITIES == 0 {
        return false;
    }
    // SAFETY: CPUID tells of it.
    let tells = unsafe { msr(ARCH_CAPABILITIES) } & XAPIC_DISABLE != 0;
    // SAFETY: its bit tells of the other.
    tells && unsafe { msr(XAPIC_DISABLE_STATUS) } & 1 != 0
}

fn apic_base() -> u64 {
    // SAFETY: every processor with VMX has the MSR.
    unsafe { msr(APIC_BASE) }
}

/// # Safety
///
/// The processor must have the MSR.
unsafe fn msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise; reading changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a value, if with it the APIC [`keeps_its_place`]; whether it was written.
fn set_apic_base(value: u64) -> bool {
    if !keeps_its_place(apic_base(), value) {
        return false;
    }
    // SAFETY: the APIC stays where it is, and the transition is one that does not fault, as was just seen. This program does
    // not use the APIC while a guest runs.
    unsafe {
        asm!("wrmsr", in("ecx") APIC_BASE, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
    true
}

/// XSETBV as the processor would do it for the guest.
fn extended_state(exit: Xsetbv<'_, Current<'_>>) {
    let known = __cpuid_count(0xd, 0);
    let known = u64::from(known.edx) << 32 | u64::from(known.eax);
    if !exit.is_taken(known) {
        return exit.fault();
    }
    let value = exit.value;
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
/// As for [`write()`]: a read may have effects too.
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
