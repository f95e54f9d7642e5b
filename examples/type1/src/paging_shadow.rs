// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What memory the guest has without EPT: `hvkit-shadow-paging` as the MMU. The processor walks tables of ours that say what
//! the guest's tables and the map allow.
//!
//! ```text
//!   exit                         asked of the MMU              answer
//!   #PF                          handle_fault                  run on, or #PF to the guest, or `emulate` a write to its tables
//!   MOV to CR0, CR3, CR4         write_cr0, ...                another root, another mode: `install`
//!   WRMSR to IA32_EFER           write_efer                    the same
//!   INVLPG, INVPCID              invlpg, invpcid               INVVPID
//! ```

mod emulate;
mod map;
mod registers;
mod trace;
mod tries;

use hvkit_page_table::PhysicalWindow;
use hvkit_shadow_paging::guest::{ErrorCode, Features, GuestFault};
use hvkit_shadow_paging::mmu::{
    Answer, Failed as Step, Flush, HostReason, Machine, Mmu, Owed, Repair, Tuning, Verdict,
};
use hvkit_shadow_paging::x86::{Hardware, Linear, PageFault, Processor, Vcpu};
use hvkit_vmcs::Processor as Capable;
use hvkit_vmcs::controls::{Entry, Primary, Secondary};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::{Fields, FieldsMut, NoSuchField};
use hvkit_vmx::exit::{Delivery, Exception};
use hvkit_vmx::{Current, Exit, InvVpid, InvalidateError, Root};
use payload_rt::println;

use crate::controls::{USUAL, Wanted};
use crate::isolation::{How, Isolation, refuse};
use crate::memory::{Pool, SHADOW_FRAMES};
use crate::root_operation::{Failed, say};
use crate::run::{Next, Paging};

use hvkit_ept::builder::Kind;
use lab_cases::trace::Record;
use lab_cases::type1::PARTS;
use trace::Recorder;
use tries::{Tries, Try};

pub use map::{GuestMemory, Map};
pub use registers::EFER;

/// What exits besides what exits of any guest: no EPT, so no unrestricted guest either.
pub const WANTED: Wanted = Wanted {
    primary: USUAL
        .primary
        .union(Primary::CR3_LOAD_EXITING)
        .union(Primary::CR3_STORE_EXITING)
        // INVPCID too.
        .union(Primary::INVLPG_EXITING),
    secondary: USUAL
        .secondary
        .difference(Secondary::ENABLE_EPT.union(Secondary::UNRESTRICTED_GUEST))
        .union(Secondary::ENABLE_VPID),
    ..USUAL
};

/// The guest's translations in the processor's TLB. One root at a time has it.
const VPID: u16 = 1;
const PAGE_FAULT: u32 = 1 << 14;
/// CR0.NE and CR4.VMXE: what VMX fixes.
const NE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;
/// What shadows cannot express. CPUID.(07H, 0):ECX: PKU, CET_SS, LA57, PKS; EDX: CET_IBT.
const HIDDEN_ECX: u32 = 1 << 3 | 1 << 7 | 1 << 16 | 1 << 31;
const HIDDEN_EDX: u32 = 1 << 20;
/// CPUID.(07H, 1):EAX: LAM.
const HIDDEN_1_EAX: u32 = 1 << 26;
/// CPUID.(0DH, 0):EAX: PKRU.
const HIDDEN_STATE: u32 = 1 << 9;
/// Pages up to which a span is forgotten page by page.
const SINGLE_PAGES: u64 = 32;

/// Shadow tables of a guest that is recorded: as many as whoever replays has frames for.
const TRACED_FRAMES: u32 = 2048;

/// How often what happened.
#[derive(Clone, Copy, Default)]
struct Seen {
    mapped: u64,
    changed: u64,
    spurious: u64,
    of_guest: u64,
    emulated: u64,
    refused: u64,
    retried: u64,
    taken_away: u64,
    roots: u64,
    same_root: u64,
    flushed: u64,
    flushed_all: u64,
}

/// One guest's shadow tables, and its one processor.
pub struct Shadow<'m> {
    mmu: Mmu<Linear, &'m PhysicalWindow, &'m Pool<'m>>,
    vcpu: Vcpu,
    map: &'m Map<'m>,
    memory: GuestMemory<'m>,
    features: Features,
    /// How many bytes of trace to record, from the guest's first mark on.
    trace: u64,
    tries: Tries,
    seen: Seen,
}

impl<'m> Shadow<'m> {
    /// Shadow tables for a guest that begins with these registers, in frames of `pool`, which lie in `window`.
    pub fn new(
        processor: &Capable,
        registers: hvkit_shadow_paging::guest::Registers,
        (window, pool): (&'m PhysicalWindow, &'m Pool<'m>),
        map: &'m Map<'m>,
        memory: GuestMemory<'m>,
        (root, trace): (&Root, u64),
    ) -> Result<Self, Failed> {
        let bits = processor.physical_address_bits;
        let features = Features {
            gib_pages: core::arch::x86_64::__cpuid(0x8000_0001).edx >> 26 & 1 != 0,
            ..Features::all(bits)
        };
        let ours = Processor::like(&features);
        let mut mmu = Mmu::new(window, pool, SHADOW_FRAMES, Tuning::default())
            .map_err(say("the shadow MMU"))?;
        let machine = Machine {
            memory: &memory,
            map,
        };
        let (vcpu, owed) = Vcpu::new(&mut mmu, machine, registers, features, ours)
            .map_err(say("the guest's paging"))?;
        mmu.settle(owed, |flush| forget(root, flush))
            .map_err(say("INVVPID"))?;
        Ok(Self {
            mmu,
            vcpu,
            map,
            memory,
            features,
            trace,
            tries: Tries::default(),
            seen: Seen::default(),
        })
    }

    /// Begins anew, with a recorder: a trace has all that the MMU was ever asked.
    fn record(&mut self, vmcs: &mut Current<'_>) -> Result<(), Failed> {
        let (window, pool) = (*self.mmu.tables(), *self.mmu.pool());
        let mut recorder = Recorder::new(self.trace);
        recorder.event(&Record::Processor {
            physical_address_bits: self.features.physical_address_bits,
            gib_pages: self.features.gib_pages.into(),
            budget: TRACED_FRAMES.into(),
        });
        for region in self.map.regions() {
            let (start, length) = (region.guest, region.length);
            let kind = match region.kind {
                Kind::Ram { .. } => 0,
                Kind::Rom { .. } => 1,
                Kind::Device { .. } | Kind::Emulated => 2,
            };
            recorder.event(&Record::Region {
                start,
                length,
                kind,
            });
        }
        self.memory.record(recorder);
        let mut mmu = Mmu::new(window, pool, TRACED_FRAMES, Tuning::default())
            .map_err(say("the shadow MMU"))?;
        let registers = *self.vcpu.registers();
        let ours = Processor::like(&self.features);
        let (vcpu, owed) = Vcpu::new(&mut mmu, self.machine(), registers, self.features, ours)
            .map_err(say("the guest's paging"))?;
        mmu.settle(owed, |flush| forget(vmcs.root(), flush))
            .map_err(say("INVVPID"))?;
        for (number, value) in [
            (0, registers.cr0),
            (3, registers.cr3),
            (4, registers.cr4),
            (8, registers.efer),
        ] {
            self.event(&Record::Register { number, value });
        }
        let old = core::mem::replace(&mut self.vcpu, vcpu);
        let mut before = core::mem::replace(&mut self.mmu, mmu);
        old.retire(&mut before);
        let owed = before.shrink(SHADOW_FRAMES as usize);
        before
            .settle(owed, |_| forget(vmcs.root(), Flush::Everything))
            .map_err(say("INVVPID"))?;
        self.install(vmcs).map_err(say("the guest's state"))
    }

    /// The MMU was asked something, and has answered.
    fn event(&self, record: &Record) {
        self.memory.recorded(|recorder| recorder.event(record));
    }

    /// Writes what VMX needs for the guest to run on its shadow: once, before the first entry.
    pub fn begin(&self, vmcs: &mut Current<'_>) -> Result<(), NoSuchField> {
        vmcs.write(f::VPID, VPID)?;
        vmcs.write(f::EXCEPTION_BITMAP, PAGE_FAULT)?;
        vmcs.write(f::CR0_GUEST_HOST_MASK, Hardware::CR0_EXITS | NE)?;
        vmcs.write(f::CR4_GUEST_HOST_MASK, Hardware::CR4_EXITS | VMXE)?;
        self.install(vmcs)
    }

    /// Writes what the processor shall have while the guest runs on its shadow.
    fn install(&self, vmcs: &mut Current<'_>) -> Result<(), NoSuchField> {
        let hardware = self.vcpu.hardware();
        let within = |old: u64, mask: u64, new: u64| old & !mask | new;
        let cr0 = vmcs.read(f::GUEST_CR0).unwrap_or(0);
        let cr4 = vmcs.read(f::GUEST_CR4).unwrap_or(0);
        let efer = vmcs.read(f::GUEST_EFER).unwrap_or(0);
        let cr0 = within(cr0, Hardware::CR0_MASK, hardware.cr0) | NE;
        vmcs.write(f::GUEST_CR0, cr0)?;
        let cr4 = within(cr4, Hardware::CR4_MASK, hardware.cr4) | VMXE;
        vmcs.write(f::GUEST_CR4, cr4)?;
        let efer = within(efer, Hardware::EFER_MASK, hardware.efer);
        vmcs.write(f::GUEST_EFER, efer)?;
        vmcs.write(f::GUEST_CR3, hardware.cr3)?;
        let controls = vmcs.read(f::ENTRY_CONTROLS).unwrap_or(0);
        let mut entry = Entry::from_bits_retain(controls);
        entry.set(Entry::IA32E_MODE_GUEST, efer & registers::LMA != 0);
        vmcs.write(f::ENTRY_CONTROLS, entry.bits())
    }

    fn machine(&self) -> Machine<'_, GuestMemory<'m>, Map<'m>> {
        Machine {
            memory: &self.memory,
            map: self.map,
        }
    }

    /// Makes the processor forget, and takes the frames back.
    fn settle(&mut self, root: &Root, owed: Owed) -> Next {
        match owed.flush() {
            Flush::Nothing => {}
            Flush::Span(_) => self.seen.flushed += 1,
            Flush::Everything => self.seen.flushed_all += 1,
        }
        match self.mmu.settle(owed, |flush| forget(root, flush)) {
            Ok(()) => Next::Go,
            Err(error) => {
                println!("type1: {error}");
                Next::Give("INVVPID failed")
            }
        }
    }

    /// A step that the MMU could not take.
    fn stuck<E: core::fmt::Debug>(&mut self, root: &Root, failed: Step<E>) -> Next {
        println!("type1: {failed}");
        let _ = self.settle(root, failed.owed);
        Next::Give("the shadow MMU could not follow")
    }

    fn page_fault(
        &mut self,
        mut exit: Exception<'_, Current<'_>>,
        isolation: &mut Isolation,
    ) -> Next {
        let fault = PageFault {
            code: ErrorCode(exit.error_code),
            linear: exit.qualification,
            cpl: (exit.guest.read(f::GUEST_SS_ACCESS_RIGHTS) >> 5 & 3) as u8,
            rflags: exit.guest.read(f::GUEST_RFLAGS),
        };
        let machine = Machine {
            memory: &self.memory,
            map: self.map,
        };
        let answer = self.vcpu.handle_fault(&mut self.mmu, machine, fault);
        let Answer { verdict, owed } = match answer {
            Ok(answer) => answer,
            Err(failed) => return self.stuck(exit.guest.vmcs().root(), failed),
        };
        self.event(&Record::Fault {
            linear: fault.linear,
            code: fault.code.0,
            by: fault.cpl | ((fault.rflags >> 18 & 1) as u8) << 2,
            verdict: trace::number_of(&verdict),
        });
        let settled = self.settle(exit.guest.vmcs().root(), owed);
        if settled != Next::Go {
            return settled;
        }
        match verdict {
            Verdict::Repaired(repair) => {
                match repair {
                    Repair::Mapped => self.seen.mapped += 1,
                    Repair::Changed => self.seen.changed += 1,
                    Repair::Spurious => self.seen.spurious += 1,
                }
                exit.retry();
                Next::Go
            }
            Verdict::Retry => {
                self.seen.retried += 1;
                exit.retry();
                Next::Go
            }
            Verdict::Guest(GuestFault::Page { linear, code, .. }) => {
                self.seen.of_guest += 1;
                exit.qualification = linear;
                exit.error_code = code.0;
                reflect(exit)
            }
            Verdict::Guest(_) => refuse(&mut exit.guest),
            Verdict::Guarded { physical } | Verdict::Emulate { physical } => {
                self.seen.emulated += 1;
                self.write(exit, fault, physical)
            }
            Verdict::Host { physical, reason } => {
                self.seen.refused += 1;
                let how = How::PageFault(fault.code);
                let rip = exit.guest.read(f::GUEST_RIP);
                if isolation.meets(physical, how, rip) || reason != HostReason::Absent {
                    return refuse(&mut exit.guest);
                }
                self.map.read_as_nothing(physical);
                exit.retry();
                Next::Go
            }
            Verdict::Mmio { .. } => Next::Give("there is no emulated device"),
        }
    }

    /// The guest writes a table of its own that is guarded.
    fn write(
        &mut self,
        mut exit: Exception<'_, Current<'_>>,
        fault: PageFault,
        physical: u64,
    ) -> Next {
        let write = emulate::Write {
            guest: &mut exit.guest,
            memory: &self.memory,
            mode: self.vcpu.mode(),
            privilege: fault.access().privilege,
            linear: fault.linear,
            physical,
        };
        let owed = match write.emulate() {
            Ok(emulate::Written(bytes)) => {
                let length = bytes as u8;
                self.event(&Record::Wrote {
                    at: physical,
                    length,
                });
                self.mmu.guest_wrote(physical, bytes)
            }
            Err(why) => {
                // Then it is no table any more, unless the very write goes through it. An event whose delivery wrote is
                // delivered again.
                self.seen.taken_away += 1;
                self.memory.recorded(Recorder::end);
                let gone = hvkit_shadow_paging::mmu::Backed {
                    guest: physical & !0xfff,
                    host: physical & !0xfff,
                    length: 0x1000,
                };
                let owed = self.mmu.host_unmap(gone);
                let settled = self.settle(exit.guest.vmcs().root(), owed);
                if settled != Next::Go {
                    return settled;
                }
                let this = Try {
                    rip: exit.guest.read(f::GUEST_RIP),
                    linear: fault.linear,
                    registers: *exit.guest.registers(),
                    rsp: exit.guest.read(f::GUEST_RSP),
                    rflags: fault.rflags,
                };
                if !self.tries.again(this) {
                    println!("type1: {why}: {:?}", exit.guest);
                    return Next::Give("a write to a table is not understood");
                }
                exit.retry();
                return Next::Go;
            }
        };
        self.settle(exit.guest.vmcs().root(), owed)
    }
}

impl Paging for Shadow<'_> {
    fn answer(&mut self, exit: Exit<'_, Current<'_>>, isolation: &mut Isolation) -> Next {
        match exit {
            Exit::Exception(exit) if exit.page_fault().is_some() => {
                self.page_fault(exit, isolation)
            }
            exit => self.register(exit, isolation),
        }
    }

    fn hides(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (7, 0) => [0, 0, HIDDEN_ECX, HIDDEN_EDX],
            (7, 1) => [HIDDEN_1_EAX, 0, 0, 0],
            // The state component of what is hidden.
            (0xd, 0) => [HIDDEN_STATE, 0, 0, 0],
            _ => [0; 4],
        }
    }

    fn marked(&mut self, number: u32, vmcs: &mut Current<'_>) -> Next {
        if number as usize == PARTS.len() {
            self.memory.recorded(Recorder::end);
        }
        if number != 0 || self.trace == 0 {
            return Next::Mark(number);
        }
        match self.record(vmcs) {
            Ok(()) => Next::Mark(number),
            Err(error) => {
                println!("type1: {error}");
                Next::Give("nothing can be recorded")
            }
        }
    }

    fn print(&self) {
        self.memory.recorded(|recorder| recorder.send());
        let seen = &self.seen;
        for (count, what) in [
            (seen.mapped, "pages mapped"),
            (seen.changed, "pages changed"),
            (seen.spurious, "faults of nothing"),
            (seen.of_guest, "faults of the guest's own"),
            (seen.emulated, "writes to tables emulated"),
            (seen.taken_away, "tables given up for an unknown write"),
            (seen.refused, "accesses refused"),
            (seen.retried, "faults retried for want of frames"),
            (seen.roots, "changes of the root"),
            (seen.same_root, "loads of the same root"),
            (seen.flushed, "flushes of a span"),
            (seen.flushed_all, "flushes of everything"),
        ] {
            println!("shadow: {count} {what}");
        }
        let usage = self.mmu.usage();
        println!(
            "shadow: {} tables in the end, and {} KiB of heap",
            usage.tables,
            usage.heap >> 10
        );
        let mut wrong = 0;
        let audit = self.mmu.audit(self.machine(), |finding| {
            wrong += 1;
            println!("shadow: audit: {finding:?}");
        });
        println!(
            "shadow: audit: {} entries, {wrong} wrong",
            audit.leaves + audit.links
        );
    }
}

/// What INVVPID must do for a flush.
fn forget(root: &Root, flush: Flush) -> Result<(), InvalidateError> {
    let all = InvVpid::SingleContext { vpid: VPID };
    match flush {
        Flush::Nothing => Ok(()),
        Flush::Span(span) if span.length <= SINGLE_PAGES << 12 => {
            for linear in (0..span.length).step_by(4096) {
                let linear = span.start + linear;
                root.invvpid(InvVpid::Address { vpid: VPID, linear })?;
            }
            Ok(())
        }
        Flush::Span(_) | Flush::Everything => root.invvpid(all),
    }
}

/// Gives an exception to the guest.
fn reflect(exit: Exception<'_, Current<'_>>) -> Next {
    if exit.reflect() == Delivery::TripleFault {
        return Next::Give("the guest shut down");
    }
    Next::Go
}
