// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel as the one guest: it has the machine, less this hypervisor.
//!
//! Guest-physical addresses are physical ones. What is ours is in no EPT entry and no shadow's:
//!
//! ```text
//!   0x0000  0x1000        0x8000         0x80000       0x90000      1 MiB    2 MiB        16 MiB   32 MiB below    memory's end
//!   | RAM   | our tables  | RAM          | our stack   | RAM, BIOS   | RAM    | ours       | RAM    | ours   | ACPI | ... devices
//! ```
//!
//! Interrupts, exceptions, ports and most MSRs are the guest's; CPUID, XSETBV, VMX instructions and MSRs, MSRs that hold
//! physical addresses or addresses that an exit would make ours, power-off, and what touches our pages exit.

mod boot;
mod native;
mod policy;

use hvkit_ept::builder::Region;
use hvkit_shadow_paging::guest::Registers;
use hvkit_vmcs::controls::{Primary, Secondary};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::{FieldsMut, NoSuchField};
use hvkit_vmx::bitmaps::{IoBitmaps, MsrAccess, MsrBitmap};
use hvkit_vmx::{Current, FxState, Physical, Vcpu};
use lab_cases::type1::{Linux, Paging};
use payload_rt::println;

use crate::controls::{USUAL, Wanted};
use crate::memory::{self, FRAME, Pool, SHADOW_FRAMES, TOP_BYTES};
use crate::paging_shadow::{EFER, GuestMemory, Map, Shadow};
use crate::root_operation::{self, Failed, Host, say};
use crate::run::{self, Counts};
use crate::{paging_ept, paging_shadow};

pub use boot::Begin;
use policy::{APIC_BASE, FEATURE_CONTROL, MISC_ENABLE, Passed};

static MSRS: MsrBitmap = MsrBitmap::passing();
static PORTS: IoBitmaps = IoBitmaps::passing();

/// The VMX capability MSRs.
const CAPABILITIES: core::ops::RangeInclusive<u32> = 0x480..=0x493;

/// Those of processor trace (`IA32_RTIT_*`), which writes what it records to physical addresses.
const TRACE: core::ops::RangeInclusive<u32> = 0x560..=0x58f;
/// Those of hardware feedback (`IA32_HW_FEEDBACK_*`), whose table is at a physical address too.
const FEEDBACK: core::ops::RangeInclusive<u32> = 0x17d0..=0x17d4;
/// Those by which events are recorded where the guest's addresses lead, or, once it has exited, ours: `IA32_PEBS_ENABLE`, `IA32_PEBS_BASE`,
/// `IA32_PEBS_INDEX`, `IA32_DS_AREA`. No control switches them, and no exit stops them.
const DEBUG_STORE: [u32; 4] = [0x3f1, 0x3f4, 0x3f5, 0x600];
/// The state component of processor trace: XRSTORS loads its MSRs past the bitmap.
const TRACE_STATE: u64 = 1 << 8;

/// Instructions that would fault without their control.
const INSTRUCTIONS: Secondary = Secondary::ENABLE_RDTSCP
    .union(Secondary::ENABLE_INVPCID)
    .union(Secondary::ENABLE_XSAVES);

const WANTED: Wanted = Wanted {
    primary: USUAL
        .primary
        .union(Primary::MSR_BITMAPS)
        .union(Primary::IO_BITMAPS),
    secondary: USUAL.secondary.union(INSTRUCTIONS),
    ..USUAL
};

/// What the guest reads where we are.
#[repr(C, align(4096))]
struct Nothing([u8; FRAME as usize]);

static NOTHING: Nothing = Nothing([0; FRAME as usize]);

/// The guest's memory and devices, what is asked for most first. What is ours is in none of them.
fn map(order: &Linux) -> [Region; 9] {
    let ram = |range: core::ops::Range<u64>| {
        Region::ram(range.start, range.end - range.start, range.start)
    };
    let top = boot::top(order.memory);
    [
        ram(boot::HIGH..top),
        ram(0x10_0000..0x20_0000),
        ram(0x8000..0x8_0000),
        ram(0..0x1000),
        ram(0x9_0000..0xa_0000),
        ram(top + TOP_BYTES..order.memory),
        Region::device(0xa_0000, 0x2_0000, 0xa_0000),
        Region::rom(0xc_0000, 0x4_0000, 0xc_0000),
        // Firmware's tables too, where they lie behind memory's end.
        Region::device(order.memory, (1 << 32) - order.memory, order.memory),
    ]
}

/// What the laboratory asks for, and the command line.
pub fn asked() -> Result<(Linux, &'static [u8]), Failed> {
    let input = payload_rt::input(Linux::BYTES + 4096);
    let asked = input.first_chunk().and_then(Linux::from_bytes);
    let order = asked.ok_or(Failed::at("nothing to boot"))?;
    let length = usize::from(order.command_line);
    let command_line = input.get(Linux::BYTES..Linux::BYTES + length);
    let command_line = command_line.ok_or(Failed::at("the command line is too long"))?;
    Ok((order, command_line))
}

/// Boots the kernel as it was asked for.
pub fn run(order: Linux, command_line: &[u8]) -> Result<(), Failed> {
    // SAFETY: what the map gives to the guest is nobody else's: this program lies below, its tables, stack and heap are left
    // out.
    let begin = unsafe { boot::place(&order, command_line) }?;
    let Linux { memory, paging, .. } = order;
    println!(
        "type1: Linux, {} MiB, paging {paging:?}, at tick {}",
        memory >> 20,
        run::now()
    );
    let guest = Guest { order, begin };
    match guest.order.paging {
        Paging::None => native::enter(),
        Paging::Ept => root_operation::within(|host| guest.under_ept(host)),
        Paging::Shadow => root_operation::within(|host| guest.on_shadows(host)),
    }
}

/// A guest, ready.
pub struct Guest {
    /// How, and on what.
    pub order: Linux,
    /// What it begins with.
    pub begin: Begin,
}

impl Guest {
    /// Runs it under EPT.
    pub fn under_ept(&self, host: &mut Host) -> Result<(), Failed> {
        let window = memory::tables();
        let pool = Pool::of_tables(&window);
        let processor = *host.root.processor();
        let regions = map(&self.order);
        let mut tables = paging_ept::tables(&processor, &window, &pool, &regions)?;
        let pointer = paging_ept::pointer(&tables)?;
        let nothing = memory::map().of(&NOTHING);
        let paging = paging_ept::Extended::new(&mut tables, nothing);
        self.enter(host, WANTED, paging, |_, vmcs| {
            vmcs.write(f::EPT_POINTER, pointer)
        })
    }

    /// Runs it on shadow page tables. Once: it takes the memory for them.
    pub fn on_shadows(&self, host: &mut Host) -> Result<(), Failed> {
        let top = boot::top(self.order.memory);
        // SAFETY: once, and nothing else is there: the map leaves it out.
        let (frames, guest) = unsafe {
            memory::claim_heap(top);
            let frames = memory::window(top, u64::from(SHADOW_FRAMES) * FRAME);
            (frames, memory::window(FRAME, self.order.memory - FRAME))
        };
        let pool = Pool::new(&frames, top, SHADOW_FRAMES.into());
        let regions = map(&self.order);
        let map = Map::new(&regions, memory::map().of(&NOTHING));
        // Of this window the map lets only the guest's memory be used.
        let memory = GuestMemory::new(&map, &guest, FRAME);
        let state = &self.begin.guest;
        let registers = Registers {
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            ..Registers::default()
        };
        let processor = *host.root.processor();
        let frames = (&frames, &pool);
        let trace = (&host.root, self.order.trace);
        let shadow = Shadow::new(&processor, registers, frames, &map, memory, trace)?;
        for access in [MsrAccess::Read, MsrAccess::Write] {
            MSRS.set(EFER, access, true).map_err(say("MSR bitmap"))?;
        }
        let wanted = Wanted {
            primary: WANTED.primary.union(paging_shadow::WANTED.primary),
            secondary: paging_shadow::WANTED.secondary.union(INSTRUCTIONS),
            ..WANTED
        };
        self.enter(host, wanted, shadow, Shadow::begin)
    }

    /// Runs the guest until it powers the machine off.
    fn enter<P: run::Paging>(
        &self,
        host: &mut Host,
        wanted: Wanted,
        paging: P,
        prepare: impl FnOnce(&P, &mut Current<'_>) -> Result<(), NoSuchField>,
    ) -> Result<(), Failed> {
        let processor = *host.root.processor();
        for access in [MsrAccess::Read, MsrAccess::Write] {
            let physical = TRACE.chain(FEEDBACK).chain([APIC_BASE]);
            let others = [FEATURE_CONTROL, MISC_ENABLE];
            let refused = physical.chain(DEBUG_STORE);
            for index in CAPABILITIES.chain(refused).chain(others) {
                MSRS.set(index, access, true).map_err(say("MSR bitmap"))?;
            }
        }
        let power = self.order.power_port;
        if power != 0 {
            PORTS.set(power..=power.saturating_add(1), true);
        }

        let mut current = host.root.load(&mut host.vmcs).map_err(say("VMPTRLD"))?;
        wanted.write(&mut current, &processor)?;
        let missing = say("the guest's state");
        let state = &self.begin.guest;
        state.write(&mut current, &processor).map_err(&missing)?;
        let ports = memory::map().of(&PORTS);
        for (field, value) in [
            (f::MSR_BITMAP, memory::map().of(&MSRS)),
            (f::IO_BITMAP_A, ports),
            (f::IO_BITMAP_B, ports + IoBitmaps::B),
            (f::XSS_EXITING_BITMAP, TRACE_STATE),
        ] {
            current.write(field, value).map_err(&missing)?;
        }
        prepare(&paging, &mut current).map_err(&missing)?;
        let registers = self.begin.registers;
        // SAFETY: `host.state` was captured here. No EPT entry or shadow leaf leads to this program. Nor do the MSRs that pass, by
        // RDMSR, WRMSR and XRSTORS: those by which a processor reaches physical addresses past the paging (where processor trace and
        // hardware feedback write, where the local APIC lies) exit and are refused, or keep their address; so do those by which it
        // would go on, in this program's address space, to store records of events at a linear address of the guest's choice.
        let vcpu = unsafe { Vcpu::new(current, registers, &host.state) };
        let mut vcpu = vcpu.map_err(say("the host's state"))?;
        vcpu.switch_vector_registers(FxState::new());
        let mut counts = Counts::new();
        let mut policy = Passed::new(paging, power);
        let ran = run::run(&mut vcpu, &mut policy, &mut counts);
        counts.print();
        policy.print();
        ran
    }
}
