// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with the rights that Linux has here, which does what no sane kernel does: it reaches for this program by loads, stores, jumps, page tables,
//! MSRs, VMX instructions and CR3, asks for real mode, and resets its processor. Under EPT and on shadow page tables.
//!
//! What each attempt gave is in the guest's memory in the end, and is printed here.

mod code;

use hvkit_vmcs::exit::Gpr;
use hvkit_vmx::Registers;
use lab_cases::type1::{Linux, Paging};
use payload_rt::println;

use crate::guest_state::GuestState;
use crate::linux::{Begin, Guest};
use crate::root_operation::{self, Failed, Host, say};

/// Bochs's memory, and the port at which its BIOS puts power management.
const MEMORY: u64 = 256 << 20;
const POWER_PORT: u16 = 0xb004;

/// Runs one under EPT, where loading CR3 with an address of ours is a guest's own business and its end, then one on shadow page tables, which ends by
/// INIT.
pub fn run() -> Result<(), Failed> {
    root_operation::within(|host| {
        // An NMI while this program runs is for the first guest.
        send_nmi();
        for paging in [Paging::Ept, Paging::Shadow] {
            println!("type1: reach, paging {paging:?}");
            match guest(host, paging) {
                Err(failed) if paging == Paging::Ept => println!("type1: {failed}"),
                ran => ran?,
            }
        }
        // Not out of VMX operation: Bochs 2.7 keeps the INIT that exited, and would take it there.
        payload_rt::shutdown()
    })
}

fn guest(host: &mut Host, paging: Paging) -> Result<(), Failed> {
    // SAFETY: the payload maps memory to itself, and the second MiB is the guest's, which does not run yet.
    unsafe { code::place() };
    let state = GuestState {
        gdtr: (code::GDT, code::GDT_LIMIT),
        idtr: (code::IDT, code::IDT_LIMIT),
        ..GuestState::long_mode(code::PAGE_TABLES, code::CODE, code::STACK)
    };
    let registers = Registers::new()
        .with(Gpr::RDI, code::RESULTS)
        // Where a handler goes on: behind the first attempt, which is none.
        .with(Gpr(15), code::first_end());
    let order = Linux {
        paging,
        kernel: (0, 0),
        initramfs: (0, 0),
        memory: MEMORY,
        power_port: POWER_PORT,
        command_line: 0,
        trace: 0,
    };
    let guest = Guest {
        order,
        begin: Begin {
            guest: state,
            registers,
        },
    };
    let ran = match paging {
        Paging::Shadow => guest.on_shadows(host),
        Paging::Ept | Paging::None => guest.under_ept(host),
    };
    host.vmcs.clear(&host.root).map_err(say("VMCLEAR"))?;
    // SAFETY: as for `place` above, and the guest has ended: its VMCS is cleared.
    unsafe { code::print_results() };
    ran
}

/// Sends this processor an NMI, by its local APIC.
fn send_nmi() {
    const SPURIOUS: usize = 0xfee0_00f0;
    const COMMAND: usize = 0xfee0_0300;
    const DESTINATION: usize = 0xfee0_0310;
    /// Delivery mode NMI, level asserted.
    const NMI: u32 = 0x4400;
    for (register, value) in [(SPURIOUS, 0x1ff), (DESTINATION, 0), (COMMAND, NMI)] {
        // SAFETY: the local APIC's registers, mapped to themselves; nobody else uses them yet, and an NMI has a handler.
        unsafe { (register as *mut u32).write_volatile(value) };
    }
}
