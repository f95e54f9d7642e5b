// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tour: a guest that exits in every way, in real mode and in 64-bit mode, and entries that fail on purpose.
//!
//! The guest's memory, and where it really lies:
//!
//! ```text
//!   guest-physical   0            2 MiB    3 MiB         3.9 MiB
//!                    | RAM, 2 MiB | ROM    | on demand   | APIC-access page
//!   physical        32 MiB       36 MiB   37 MiB        38 MiB
//! ```

mod code;
mod policy;
mod provoke;

use core::arch::asm;

use hvkit_ept::builder::Region;
use hvkit_vmcs::controls::{ExitPrimary, PinBased, Primary, Secondary};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmx::{FxState, Registers, Vcpu};
use payload_rt::println;

use crate::controls::{USUAL, Wanted};
use crate::guest_state::GuestState;
use crate::memory::{self, Pool};
use crate::paging_ept::{self, Tables};
use crate::root_operation::{Failed, Host, say};
use crate::run::{self, Counts};

use policy::Tour;

/// Where the guest's memory lies.
const RAM: u64 = 0x200_0000;
const RAM_BYTES: u64 = 0x20_0000;
const ROM: u64 = 0x240_0000;
const ON_DEMAND: u64 = 0x250_0000;
const APIC_PAGE: u64 = 0x260_0000;
/// And where the guest sees it.
const GUEST_ROM: u64 = 0x20_0000;
const GUEST_ON_DEMAND: u64 = 0x30_0000;
const GUEST_APIC: u64 = 0x3f_0000;

/// Everything that can exit does.
const WANTED: Wanted = Wanted {
    pin: PinBased::EXTERNAL_INTERRUPT_EXITING,
    primary: USUAL
        .primary
        .union(Primary::HLT_EXITING)
        .union(Primary::INVLPG_EXITING)
        .union(Primary::MWAIT_EXITING)
        .union(Primary::RDPMC_EXITING)
        .union(Primary::RDTSC_EXITING)
        .union(Primary::CR3_LOAD_EXITING)
        .union(Primary::CR3_STORE_EXITING)
        .union(Primary::CR8_LOAD_EXITING)
        .union(Primary::CR8_STORE_EXITING)
        .union(Primary::MOV_DR_EXITING)
        .union(Primary::UNCONDITIONAL_IO_EXITING)
        .union(Primary::MONITOR_EXITING)
        .union(Primary::PAUSE_EXITING),
    secondary: USUAL
        .secondary
        .union(Secondary::VIRTUALIZE_APIC_ACCESSES)
        .union(Secondary::DESCRIPTOR_TABLE_EXITING)
        .union(Secondary::ENABLE_RDTSCP)
        .union(Secondary::WBINVD_EXITING)
        .union(Secondary::RDRAND_EXITING)
        .union(Secondary::RDSEED_EXITING)
        .union(Secondary::ENABLE_INVPCID)
        .union(Secondary::ENABLE_VM_FUNCTIONS),
    exit: USUAL.exit.union(ExitPrimary::ACKNOWLEDGE_INTERRUPT),
    entry: USUAL.entry,
};

/// Runs both guests, then the failures.
pub fn run(host: &mut Host) -> Result<(), Failed> {
    let window = memory::tables();
    let pool = Pool::of_tables(&window);
    let map = [
        Region::ram(0, RAM_BYTES, RAM),
        Region::rom(GUEST_ROM, memory::FRAME, ROM),
        Region::ram(GUEST_APIC, memory::FRAME, APIC_PAGE),
    ];
    let processor = *host.root.processor();
    let mut tables = paging_ept::tables(&processor, &window, &pool, &map)?;
    // SAFETY: the guest's memory is nobody's yet.
    let code = unsafe { code::place(RAM) };
    println!("type1: real mode");
    guest(
        host,
        &mut tables,
        &GuestState::real_mode(code::REAL_MODE as u16),
    )?;
    host.vmcs.clear(&host.root).map_err(say("VMCLEAR"))?;
    println!("type1: 64-bit mode, {} bytes of code", code);
    let long = GuestState {
        // With OSXSAVE.
        cr4: 0x4_0620,
        ..GuestState::long_mode(code::PAGE_TABLES, code::LONG_MODE, code::STACK)
    };
    guest(host, &mut tables, &long)?;
    host.vmcs.clear(&host.root).map_err(say("VMCLEAR"))?;
    provoke::run(host, &tables, &long)
}

/// A fault in this program, while the current VMCS is one that breaks a rule.
pub fn fault(host: &mut Host) -> Result<(), Failed> {
    let window = memory::tables();
    let pool = Pool::of_tables(&window);
    let processor = *host.root.processor();
    let tables = paging_ept::tables(&processor, &window, &pool, &[])?;
    let state = GuestState::real_mode(code::REAL_MODE as u16);
    let mut vcpu = vcpu(host, &tables, &state)?;
    let missing = say("the guest's state");
    vcpu.vmcs().write(f::GUEST_RFLAGS, 0).map_err(missing)?;
    let nowhere = 0x1234_5678_9000_u64;
    let read: u64;
    println!("type1: reads where nothing is");
    // SAFETY: an instruction that loads from where no page is: it faults, stores nothing, and the fault's handler
    // (`host_faults`) does not come back.
    unsafe { asm!("mov {}, [{}]", out(reg) read, in(reg) nowhere, options(nostack, readonly)) };
    Err(Failed::with("no fault", [read, 0]))
}

/// A virtual processor for the tour.
fn vcpu<'a>(
    host: &'a mut Host,
    tables: &Tables<'_>,
    state: &GuestState,
) -> Result<Vcpu<'a>, Failed> {
    let processor = *host.root.processor();
    let mut current = host.root.load(&mut host.vmcs).map_err(say("VMPTRLD"))?;
    WANTED.write(&mut current, &processor)?;
    let missing = say("the guest's state");
    state.write(&mut current, &processor).map_err(&missing)?;
    for (field, value) in [
        (f::EPT_POINTER, paging_ept::pointer(tables)?),
        (f::APIC_ACCESS_ADDRESS, APIC_PAGE),
        (f::VM_FUNCTION_CONTROLS, 0),
    ] {
        current.write(field, value).map_err(&missing)?;
    }
    // Of CR0 and CR4 every bit is ours; the guest sees TS set.
    current
        .write(f::CR0_GUEST_HOST_MASK, u64::MAX)
        .map_err(&missing)?;
    current
        .write(f::CR0_READ_SHADOW, state.cr0 | 8)
        .map_err(&missing)?;
    current
        .write(f::CR4_GUEST_HOST_MASK, u64::MAX)
        .map_err(&missing)?;
    // Every exception but #DE exits.
    current.write(f::EXCEPTION_BITMAP, !1).map_err(&missing)?;
    // SAFETY: `host.state` was captured here; the EPT maps memory that is the guest's alone; all MSRs and ports exit.
    let vcpu = unsafe { Vcpu::new(current, Registers::new(), &host.state) };
    let mut vcpu = vcpu.map_err(say("the host's state"))?;
    vcpu.switch_vector_registers(FxState::new());
    Ok(vcpu)
}

fn guest(host: &mut Host, tables: &mut Tables<'_>, state: &GuestState) -> Result<(), Failed> {
    let mut vcpu = vcpu(host, tables, state)?;
    let mut counts = Counts::new();
    let mut policy = Tour::new(tables)?;
    run::run(&mut vcpu, &mut policy, &mut counts)?;
    counts.print();
    Ok(())
}
