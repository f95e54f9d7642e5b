// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tour does at each exit: it prints the raw words, answers, and sees that the guest goes on where it should.

use hvkit_ept::Attributes;
use hvkit_ept::spec::{MemoryType, Rights};
use hvkit_page_table::Span;
use hvkit_vmcs::controls::{PinBased, Primary};
use hvkit_vmcs::exit::Gpr;
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::{Fields, FieldsMut};
use hvkit_vmx::exit::CrAccess;
use hvkit_vmx::{Current, Exit, exit::Guest};
use payload_rt::println;

use super::code::{call, step_that_ends};
use super::{GUEST_ON_DEMAND, ON_DEMAND};
use crate::memory::FRAME;
use crate::paging_ept::{Forget, Tables, pointer};
use crate::root_operation::Failed;
use crate::run::{Next, Policy};

/// CR0.NE and CR4.VMXE: what VMX fixes.
const NE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;
/// Ticks of the preemption timer.
const A_WHILE: u32 = 2000;

/// The tour's policy.
pub struct Tour<'t, 'p> {
    tables: &'t mut Tables<'p>,
    eptp: u64,
}

impl<'t, 'p> Tour<'t, 'p> {
    pub fn new(tables: &'t mut Tables<'p>) -> Result<Self, Failed> {
        Ok(Self {
            eptp: pointer(tables)?,
            tables,
        })
    }
}

/// Where the step that exited ends, as the guest says.
fn end_of_step(guest: &Guest<'_, Current<'_>>) -> u64 {
    if guest.is_64_bit() {
        guest.get(Gpr::R15)
    } else {
        guest.get(Gpr::RDI) & 0xffff
    }
}

/// Goes on after the step, whatever the instruction was.
fn leave_behind(guest: &mut Guest<'_, Current<'_>>) -> Next {
    let next = end_of_step(guest);
    match guest.vmcs().write(f::GUEST_RIP, next) {
        Ok(()) => Next::Go,
        Err(_) => Next::Give("no guest RIP"),
    }
}

/// Prints the exit: its raw words for the record, and what they mean.
fn print(guest: &Guest<'_, Current<'_>>) {
    let step = step_that_ends(end_of_step(guest));
    let Some(exit) = guest.information() else {
        return;
    };
    println!(
        "exit {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} | {step} | {exit}, {:?}",
        exit.reason.0,
        exit.raw_qualification,
        exit.raw_instruction,
        exit.event.0,
        exit.error_code,
        exit.original_event.0,
        exit.original_error_code,
        exit.instruction_length,
        exit.linear_address,
        exit.physical_address.unwrap_or(0),
        exit.instruction(),
    );
}

impl Policy for Tour<'_, '_> {
    fn answer(&mut self, mut exit: Exit<'_, Current<'_>>) -> Next {
        let guest = exit.guest();
        print(guest);
        let end = end_of_step(guest);
        let rip = guest.read(f::GUEST_RIP);
        let length = u64::from(guest.read(f::EXIT_INSTRUCTION_LENGTH));
        // The instruction's length is recorded: the step ends where it does.
        let ends_right = rip.wrapping_add(length) == end;
        match exit {
            Exit::Cpuid(exit) => exit.answer([1, 2, 3, 4]),
            Exit::Hlt(exit) => exit.skip(),
            Exit::ReadMsr(exit) => exit.answer(0x0007_0406),
            Exit::WriteMsr(exit) => exit.done(),
            Exit::Xsetbv(exit) => exit.done(),
            Exit::Io(exit) => exit.answer(0x55),
            Exit::VmxInstruction(exit) => exit.skip(),
            Exit::ControlRegister(exit) => match exit.access {
                CrAccess::Write { number: 4, .. } => exit.allow(VMXE),
                CrAccess::Write { number: 8, .. } => exit.done(),
                CrAccess::Read { number: 8, .. } => exit.answer(3),
                _ => exit.allow(NE),
            },
            Exit::Hypercall(exit) => {
                return if exit.number == call::END {
                    Next::Stop
                } else {
                    let number = exit.number;
                    let mut exit = exit;
                    let next = self.call(number, &mut exit.guest);
                    exit.answer(0);
                    next
                };
            }
            Exit::EptViolation(exit, access) => {
                let on_demand = GUEST_ON_DEMAND..GUEST_ON_DEMAND + FRAME;
                if !on_demand.contains(&exit.physical) || access.is_fetch() {
                    let mut exit = exit;
                    return leave_behind(&mut exit.guest);
                }
                // A hole is filled: no processor holds anything of it.
                let rights = Rights::READ | Rights::WRITE;
                let attributes = Attributes::new(rights, MemoryType::WriteBack);
                let span = Span::new(GUEST_ON_DEMAND, FRAME);
                if let Err(error) = self.tables.map(span, ON_DEMAND, attributes) {
                    println!("type1: {error}");
                    return Next::Give("a page cannot be mapped");
                }
                exit.retry();
                return Next::Go;
            }
            Exit::Other(exit) if length != 0 && ends_right => exit.skip(),
            mut other => {
                let guest = other.guest();
                calm(guest.vmcs());
                return leave_behind(guest);
            }
        }
        if ends_right {
            Next::Go
        } else {
            println!("type1: RIP {rip:#x} and {length} bytes, not {end:#x}");
            Next::Give("an exit's instruction length is wrong")
        }
    }
}

impl Tour<'_, '_> {
    fn call(&mut self, number: u64, guest: &mut Guest<'_, Current<'_>>) -> Next {
        let set = |vmcs: &mut Current<'_>, pin: PinBased, primary: Primary| {
            let old = vmcs.read(f::PIN_BASED_CONTROLS).unwrap_or(0);
            let pin = vmcs.write(f::PIN_BASED_CONTROLS, old | pin.bits());
            let old = vmcs.read(f::PRIMARY_CONTROLS).unwrap_or(0);
            pin.and(vmcs.write(f::PRIMARY_CONTROLS, old | primary.bits()))
        };
        let vmcs = guest.vmcs();
        let done = match number {
            call::TAKE_AWAY => return self.take_away(vmcs),
            call::STEP => {
                // Not every processor has it: Bochs 2.7 does not.
                let allowed = vmcs.root().processor().vmx.primary;
                let trap = Primary::MONITOR_TRAP_FLAG;
                if allowed.may_be_one & u64::from(trap.bits()) == 0 {
                    return Next::Go;
                }
                set(vmcs, PinBased::empty(), trap)
            }
            call::TIMER => vmcs.write(f::PREEMPTION_TIMER_VALUE, A_WHILE).and(set(
                vmcs,
                PinBased::PREEMPTION_TIMER,
                Primary::empty(),
            )),
            call::WINDOW => set(vmcs, PinBased::empty(), Primary::INTERRUPT_WINDOW_EXITING),
            call::LET_GO => vmcs.write(f::EXCEPTION_BITMAP, 0),
            _ => return Next::Give("the guest called with an unknown number"),
        };
        match done {
            Ok(()) => Next::Go,
            Err(_) => Next::Give("a control is missing"),
        }
    }

    /// Unmaps the page and makes the processor forget it.
    fn take_away(&mut self, vmcs: &mut Current<'_>) -> Next {
        let stale = match self.tables.unmap(Span::new(GUEST_ON_DEMAND, FRAME)) {
            Ok(stale) => stale,
            Err(error) => {
                println!("type1: {error}");
                return Next::Give("a page cannot be unmapped");
            }
        };
        let mut forget = Forget {
            root: vmcs.root(),
            eptp: self.eptp,
        };
        match self.tables.settle(stale, &mut forget) {
            Ok(()) => Next::Go,
            Err(error) => {
                println!("type1: {error}");
                Next::Give("INVEPT failed")
            }
        }
    }
}

/// Takes back what the calls asked for, and interrupts.
fn calm(vmcs: &mut Current<'_>) {
    let pin = vmcs.read(f::PIN_BASED_CONTROLS).unwrap_or(0);
    let primary = vmcs.read(f::PRIMARY_CONTROLS).unwrap_or(0);
    let asked = Primary::MONITOR_TRAP_FLAG | Primary::INTERRUPT_WINDOW_EXITING;
    let flags = vmcs.read(f::GUEST_RFLAGS).unwrap_or(2);
    for (field, value) in [
        (
            f::PIN_BASED_CONTROLS,
            pin & !PinBased::PREEMPTION_TIMER.bits(),
        ),
        (f::PRIMARY_CONTROLS, primary & !asked.bits()),
        (f::GUEST_INTERRUPTIBILITY, 0),
        (f::GUEST_ACTIVITY, 0),
    ] {
        // Each exists: it was written before the first entry.
        let _ = vmcs.write(field, value);
    }
    let _ = vmcs.write(f::GUEST_RFLAGS, flags & !(1 << 9));
}
