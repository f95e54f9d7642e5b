// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control registers, `IA32_EFER` and invalidations of a guest on shadow tables.

use hvkit_shadow_paging::guest::{Access, Kind, Privilege, translate};
use hvkit_shadow_paging::mmu::{Cause, Owed};
use hvkit_shadow_paging::x86::{Control, ControlError, Hardware, InvalidateKind};
use hvkit_vmcs::exit::{ExitReason, Gpr, Instruction, MemoryOperand, SegmentRegister};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmx::exit::{ControlRegisterExit, CrAccess, Guest, Skip};
use hvkit_vmx::{Current, Exit, InvVpid};
use lab_cases::trace::Record;
use payload_rt::println;

use super::{Machine, NE, Shadow, VMXE, VPID};
use crate::isolation::{How, Isolation};
use crate::memory::FRAME;
use crate::run::Next;

/// `IA32_EFER`.
pub const EFER: u32 = 0xc000_0080;
/// Its bits: SYSCALL enable, IA-32e mode enable and active, execute-disable enable.
const SCE: u64 = 1 << 0;
const LME: u64 = 1 << 8;
pub const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const PE: u64 = 1 << 0;
const PG: u64 = 1 << 31;
/// Of CR3, the root's address; PAE's is 32-byte aligned, and in the same page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PCIDE: u64 = 1 << 17;
const LA57: u64 = 1 << 12;
const PKE: u64 = 1 << 22;
const CET: u64 = 1 << 23;
const PKS: u64 = 1 << 24;
/// Of CR4, what this guest's CPUID does not offer.
const NOT_OFFERED: u64 = VMXE | LA57 | PKE | CET | PKS;

/// What became of a write to a register.
enum Wrote {
    /// It holds the value now.
    Done,
    /// The guest may not: #GP(0).
    Refused,
    /// The guest cannot go on.
    Over(Next),
}

impl Shadow<'_> {
    /// Any exit but a page fault.
    pub(super) fn register(
        &mut self,
        exit: Exit<'_, Current<'_>>,
        isolation: &mut Isolation,
    ) -> Next {
        match exit {
            Exit::ControlRegister(exit) => self.control_register(exit, isolation),
            Exit::ReadMsr(exit) if exit.index == EFER => {
                let system_call = exit.guest.read(f::GUEST_EFER) & SCE;
                exit.answer(self.visible_efer() | system_call);
                Next::Go
            }
            Exit::WriteMsr(mut exit) if exit.index == EFER => {
                let value = exit.value;
                match self.write_efer(&mut exit.guest, value) {
                    Wrote::Done => exit.done(),
                    Wrote::Refused => exit.fault(),
                    Wrote::Over(next) => return next,
                }
                Next::Go
            }
            Exit::Other(exit) if exit.guest.reason().is(ExitReason::INVLPG) => self.invlpg(exit),
            Exit::Other(exit) if exit.guest.reason().is(ExitReason::INVPCID) => self.invpcid(exit),
            other => {
                println!("type1: {other:?}");
                Next::Give("an exit that was not expected")
            }
        }
    }

    fn visible_efer(&self) -> u64 {
        let registers = self.vcpu.registers();
        let active = registers.efer & LME != 0 && registers.cr0 & PG != 0;
        registers.efer | if active { LMA } else { 0 }
    }

    fn control_register(
        &mut self,
        mut exit: ControlRegisterExit<'_, Current<'_>>,
        isolation: &mut Isolation,
    ) -> Next {
        let wrote = match exit.access {
            CrAccess::Read { number: 3, .. } => {
                exit.answer(self.vcpu.registers().cr3);
                return Next::Go;
            }
            CrAccess::Write { number: 3, value } => {
                self.write_cr3(&mut exit.guest, value, isolation)
            }
            CrAccess::Write { number: 4, value } => self.write_cr4(&mut exit.guest, value),
            _ if exit.refuses_cr0(self.visible_efer()) => Wrote::Refused,
            _ => match exit.new_cr0() {
                Some(value) => self.write_cr0(&mut exit.guest, value),
                None => return Next::Give("a control register that was not expected"),
            },
        };
        match wrote {
            Wrote::Done => exit.done(),
            Wrote::Refused => exit.fault(),
            Wrote::Over(next) => return next,
        }
        Next::Go
    }

    fn write_cr3(
        &mut self,
        guest: &mut Guest<'_, Current<'_>>,
        value: u64,
        isolation: &mut Isolation,
    ) -> Wrote {
        let root = value & ADDRESS;
        if self.vcpu.registers().cr0 & PG != 0 && !self.map.is_ram(root, FRAME) {
            isolation.meets(root, How::PageTables, guest.read(f::GUEST_RIP));
            return Wrote::Refused;
        }
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let control = self.vcpu.write_cr3(&mut self.mmu, machine, value);
        self.told(3, value, &control);
        self.changed(guest, control)
    }

    fn write_cr0(&mut self, guest: &mut Guest<'_, Current<'_>>, value: u64) -> Wrote {
        if value & PE == 0 {
            // As a processor does in VMX operation that has no unrestricted guests.
            println!("type1: real mode refused: it takes an unrestricted guest, which takes EPT");
            return Wrote::Refused;
        }
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let control = self.vcpu.write_cr0(&mut self.mmu, machine, value);
        self.told(0, value, &control);
        let wrote = self.changed(guest, control);
        if let Wrote::Done = wrote {
            let hardware = self.vcpu.hardware();
            let real = value & !Hardware::CR0_MASK | hardware.cr0 | NE;
            set(guest, |vmcs| {
                vmcs.write(f::GUEST_CR0, real)?;
                vmcs.write(f::CR0_READ_SHADOW, value)
            });
        }
        wrote
    }

    fn write_cr4(&mut self, guest: &mut Guest<'_, Current<'_>>, value: u64) -> Wrote {
        let vmx = guest.vmcs().root().processor().vmx;
        let long = self.visible_efer() & LMA != 0;
        if value & (NOT_OFFERED | !vmx.cr4_fixed1) != 0 || value & PCIDE != 0 && !long {
            return Wrote::Refused;
        }
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let control = self.vcpu.write_cr4(&mut self.mmu, machine, value);
        self.told(4, value, &control);
        let wrote = self.changed(guest, control);
        if let Wrote::Done = wrote {
            let hardware = self.vcpu.hardware();
            let real = value & !Hardware::CR4_MASK | hardware.cr4 | VMXE;
            set(guest, |vmcs| {
                vmcs.write(f::GUEST_CR4, real)?;
                vmcs.write(f::CR4_READ_SHADOW, value)
            });
        }
        wrote
    }

    fn write_efer(&mut self, guest: &mut Guest<'_, Current<'_>>, value: u64) -> Wrote {
        let old = self.visible_efer();
        let paged = self.vcpu.registers().cr0 & PG != 0;
        if value & !(SCE | LME | LMA | NXE) != 0 || (value ^ old) & LME != 0 && paged {
            return Wrote::Refused;
        }
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let kept = value & (LME | NXE);
        let control = self.vcpu.write_efer(&mut self.mmu, machine, kept);
        self.told(8, kept, &control);
        let wrote = self.changed(guest, control);
        if let Wrote::Done = wrote {
            let real = self.vcpu.hardware().efer | value & SCE;
            set(guest, |vmcs| vmcs.write(f::GUEST_EFER, real));
        }
        wrote
    }

    /// Records a register that was written.
    fn told<E>(&self, number: u8, value: u64, control: &Result<Control, ControlError<E>>) {
        if control.is_ok() {
            self.event(&Record::Register { number, value });
        }
    }

    /// Does what a written register asks of the processor.
    fn changed<E: core::fmt::Debug + core::fmt::Display>(
        &mut self,
        guest: &mut Guest<'_, Current<'_>>,
        control: Result<Control, ControlError<E>>,
    ) -> Wrote {
        let control = match control {
            Ok(control) => control,
            Err(ControlError::General(_)) => return Wrote::Refused,
            Err(ControlError::Unsupported(what)) => {
                println!("type1: the guest asks for {what}");
                return Wrote::Refused;
            }
            Err(ControlError::Failed(failed)) => {
                if let Cause::TableOutsideMemory { .. } = failed.cause {
                    return match self.settle(guest.vmcs().root(), failed.owed) {
                        Next::Go => Wrote::Refused,
                        next => Wrote::Over(next),
                    };
                }
                return Wrote::Over(self.stuck(guest.vmcs().root(), failed));
            }
        };
        let settled = self.settle(guest.vmcs().root(), control.owed);
        if settled != Next::Go {
            return Wrote::Over(settled);
        }
        if control.root_changed {
            self.seen.roots += 1;
            // What the processor holds under this VPID came from the other root.
            let all = InvVpid::SingleContext { vpid: VPID };
            if guest.vmcs().root().invvpid(all).is_err() {
                return Wrote::Over(Next::Give("INVVPID failed"));
            }
        } else {
            self.seen.same_root += 1;
        }
        match self.install(guest.vmcs()) {
            Ok(()) => Wrote::Done,
            Err(_) => Wrote::Over(Next::Give("a field is missing")),
        }
    }

    fn invlpg(&mut self, mut exit: Skip<'_, Current<'_>>) -> Next {
        let linear = exit.guest.read(f::EXIT_QUALIFICATION);
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let owed = self.vcpu.invlpg(&mut self.mmu, machine, linear);
        self.event(&Record::Invalidate { kind: 4, linear });
        let next = self.invalidated(&mut exit.guest, owed);
        exit.skip();
        next
    }

    fn invpcid(&mut self, mut exit: Skip<'_, Current<'_>>) -> Next {
        let Some(Instruction::Invalidate {
            descriptor: operand,
            kind,
        }) = exit
            .information()
            .map(|information| information.instruction())
        else {
            return Next::Give("an INVPCID without an operand");
        };
        let at = linear_address(&exit.guest, operand);
        let Some(descriptor) = self.two_words(&exit.guest, at) else {
            return Next::Give("an INVPCID whose operand cannot be read");
        };
        let is_long = exit.guest.is_64_bit();
        let number = exit.guest.get(kind) & if is_long { u64::MAX } else { 0xffff_ffff };
        let cr4 = self.vcpu.registers().cr4;
        let Some(kind) = InvalidateKind::decode(number, descriptor, cr4) else {
            exit.fault();
            return Next::Go;
        };
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let owed = self.vcpu.invpcid(&mut self.mmu, machine, kind);
        let [_, linear] = descriptor;
        self.event(&Record::Invalidate {
            kind: number as u8,
            linear,
        });
        let next = self.invalidated(&mut exit.guest, owed);
        exit.skip();
        next
    }

    fn invalidated<E: core::fmt::Debug>(
        &mut self,
        guest: &mut Guest<'_, Current<'_>>,
        owed: Result<Owed, hvkit_shadow_paging::mmu::Failed<E>>,
    ) -> Next {
        match owed {
            Ok(owed) => self.settle(guest.vmcs().root(), owed),
            Err(failed) => self.stuck(guest.vmcs().root(), failed),
        }
    }

    /// Sixteen bytes of the guest's, which INVPCID's operand is.
    fn two_words(&self, guest: &Guest<'_, Current<'_>>, at: u64) -> Option<[u64; 2]> {
        let privilege = Privilege::explicit(0, guest.read(f::GUEST_RFLAGS));
        let mut words = [0; 2];
        for (word, offset) in words.iter_mut().zip([0, 8]) {
            let linear = at.wrapping_add(offset);
            let access = Access::new(Kind::Read, privilege);
            let found = translate(self.vcpu.mode(), &self.memory, linear, access).ok()?;
            // The kernel aligns it; one that crosses pages is not worth the code.
            if found.physical & 0xfff > 0xff8 {
                return None;
            }
            *word = self.memory.load(found.physical, 8)?;
        }
        Some(words)
    }
}

/// Writes fields that every processor has.
fn set(
    guest: &mut Guest<'_, Current<'_>>,
    write: impl FnOnce(&mut Current<'_>) -> Result<(), hvkit_vmcs::store::NoSuchField>,
) {
    let _ = write(guest.vmcs());
}

/// The linear address of an operand in memory; its displacement is the exit qualification.
fn linear_address(guest: &Guest<'_, Current<'_>>, operand: MemoryOperand) -> u64 {
    let register = |gpr: Gpr| guest.get(gpr);
    let base = operand.base.map_or(0, register);
    let index = operand
        .index
        .map_or(0, |(gpr, scale)| register(gpr) << scale);
    let offset = guest.read(f::EXIT_QUALIFICATION);
    let offset = offset.wrapping_add(base).wrapping_add(index);
    let offset = match operand.address_bits {
        Some(64) | None => offset,
        Some(bits) => offset & ((1 << bits) - 1),
    };
    let segment = match operand.segment {
        SegmentRegister::FS => guest.read(f::GUEST_FS_BASE),
        SegmentRegister::GS => guest.read(f::GUEST_GS_BASE),
        _ => 0,
    };
    offset.wrapping_add(segment)
}
