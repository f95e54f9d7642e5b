// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel as the one guest: it has the machine, less this hypervisor.
//!
//! Guest-physical addresses are physical ones. What is ours is in no EPT entry:
//!
//! ```text
//!   0x0000  0x1000        0x8000         0x80000       0x90000      1 MiB    2 MiB        16 MiB       memory's end
//!   | RAM   | our tables  | RAM          | our stack   | RAM, BIOS   | RAM    | ours       | RAM        |  ... devices
//! ```
//!
//! Interrupts, exceptions, ports and most MSRs are the guest's; CPUID, XSETBV, VMX instructions and MSRs, power-off, and
//! what touches our pages exit.

mod boot;
mod policy;

use hvkit_ept::builder::Region;
use hvkit_vmcs::controls::{Primary, Secondary};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmx::bitmaps::{IoBitmaps, MsrAccess, MsrBitmap};
use hvkit_vmx::{FxState, Physical, Vcpu};
use lab_cases::type1::Linux;
use payload_rt::println;

use crate::controls::{USUAL, Wanted};
use crate::memory::{self, Pool};
use crate::paging_ept;
use crate::root_operation::{Failed, Host, say};
use crate::run::{self, Counts};

use policy::{FEATURE_CONTROL, MISC_ENABLE, Passed};

static MSRS: MsrBitmap = MsrBitmap::passing();
static PORTS: IoBitmaps = IoBitmaps::passing();

/// The VMX capability MSRs.
const CAPABILITIES: core::ops::RangeInclusive<u32> = 0x480..=0x493;

const WANTED: Wanted = Wanted {
    primary: USUAL
        .primary
        .union(Primary::MSR_BITMAPS)
        .union(Primary::IO_BITMAPS),
    // Instructions that would fault without their control.
    secondary: USUAL
        .secondary
        .union(Secondary::ENABLE_RDTSCP)
        .union(Secondary::ENABLE_INVPCID)
        .union(Secondary::ENABLE_XSAVES),
    ..USUAL
};

/// The guest's memory and devices.
fn map(order: &Linux) -> [Region; 9] {
    const DEVICES: u64 = 0xc000_0000;
    let ram = |range: core::ops::Range<u64>| {
        Region::ram(range.start, range.end - range.start, range.start)
    };
    let high = boot::HIGH..order.memory;
    [
        ram(0..0x1000),
        ram(0x8000..0x8_0000),
        ram(0x9_0000..0xa_0000),
        Region::device(0xa_0000, 0x2_0000, 0xa_0000),
        Region::rom(0xc_0000, 0x4_0000, 0xc_0000),
        ram(0x10_0000..0x20_0000),
        Region::emulated(0x20_0000, boot::HIGH - 0x20_0000),
        ram(high),
        Region::device(DEVICES, (1 << 32) - DEVICES, DEVICES),
    ]
}

/// Boots the kernel, and runs it until it powers the machine off.
pub fn run(host: &mut Host) -> Result<(), Failed> {
    let input = payload_rt::input(Linux::BYTES + 4096);
    let asked = input.first_chunk().and_then(Linux::from_bytes);
    let order = asked.ok_or(Failed::at("nothing to boot"))?;
    let length = usize::from(order.command_line);
    let command_line = input.get(Linux::BYTES..Linux::BYTES + length);
    let command_line = command_line.ok_or(Failed::at("the command line is too long"))?;
    // SAFETY: what the map gives to the guest is nobody else's: this program lies below, its tables and stack are left out.
    let state = unsafe { boot::place(&order, command_line) }?;

    let (window, pool) = (memory::tables(), Pool::new());
    let processor = *host.root.processor();
    let mut tables = paging_ept::tables(&processor, &window, &pool, &map(&order))?;
    for access in [MsrAccess::Read, MsrAccess::Write] {
        for index in CAPABILITIES.chain([FEATURE_CONTROL, MISC_ENABLE]) {
            MSRS.set(index, access, true).map_err(say("MSR bitmap"))?;
        }
    }
    PORTS.set(order.power_port..=order.power_port.saturating_add(1), true);

    let mut current = host.root.load(&mut host.vmcs).map_err(say("VMPTRLD"))?;
    WANTED.write(&mut current, &processor)?;
    let missing = say("the guest's state");
    state
        .guest
        .write(&mut current, &processor)
        .map_err(&missing)?;
    let ports = memory::map().of(&PORTS);
    for (field, value) in [
        (f::EPT_POINTER, paging_ept::pointer(&tables)?),
        (f::MSR_BITMAP, memory::map().of(&MSRS)),
        (f::IO_BITMAP_A, ports),
        (f::IO_BITMAP_B, ports + IoBitmaps::B),
        (f::XSS_EXITING_BITMAP, 0),
    ] {
        current.write(field, value).map_err(&missing)?;
    }
    // SAFETY: `host.state` was captured here; no EPT entry leads to this program; the MSRs that pass do not either.
    let vcpu = unsafe { Vcpu::new(current, state.registers, &host.state) };
    let mut vcpu = vcpu.map_err(say("the host's state"))?;
    vcpu.switch_vector_registers(FxState::new());
    println!("type1: Linux, {} MiB", order.memory >> 20);
    let mut counts = Counts::new();
    let mut policy = Passed::new(&mut tables, order.power_port);
    let ran = run::run(&mut vcpu, &mut policy, &mut counts);
    counts.print();
    policy.print();
    ran
}
