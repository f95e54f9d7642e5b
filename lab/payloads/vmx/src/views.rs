// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that calls its hypervisor, and changes its view of memory by VMFUNC.
//!
//! Both views map memory to itself; the second shows the first gigabyte once more, at 1 GiB.

use core::sync::atomic::{AtomicU64, Ordering};

use hvkit_vmcs::check::{Checker, Violation};
use hvkit_vmcs::controls::{PinBased, Primary, Secondary, VmFunctions};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmx::{
    ActiveVmcs, Exit, FxState, HostState, Linear, Physical, Registers, Root, Vcpu, guest,
};
use payload_rt::println;

use crate::setup;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }
}

static LIST: Table = Table::new();
/// For each view a level-4 table and a level-3 table.
static VIEWS: [[Table; 2]; 2] = [const { [Table::new(), Table::new()] }; 2];
static SECRET: AtomicU64 = AtomicU64::new(0x5ec7e7);

const GIB: u64 = 1 << 30;
/// Read, write, execute; a leaf; write-back.
const TABLE: u64 = 7;
const LEAF: u64 = 7 | 1 << 7 | 6 << 3;
/// EPTP: write-back, four levels.
const EPTP: u64 = 6 | 3 << 3;

/// Calls that the hypervisor below knows.
const ADD: u64 = 7;
const REPORT: u64 = 8;

extern "C" fn talks() -> ! {
    let seen = |at: u64| {
        // SAFETY: in the second view it is an atomic of this program.
        unsafe { (at as *const AtomicU64).as_ref() }.map_or(0, |word| word.load(Ordering::Relaxed))
    };
    let alias = GIB + (&raw const SECRET).addr() as u64;
    // SAFETY: the hypervisor below keeps all other registers, and both views map this program to itself.
    unsafe {
        let sum = guest::vmcall(ADD, [100, 20, 3]);
        guest::switch_eptp(1);
        let aliased = seen(alias);
        guest::switch_eptp(0);
        guest::vmcall(REPORT, [sum, aliased, 0]);
        // No such entry in the list: this exits.
        guest::switch_eptp(2);
    }
    loop {
        core::hint::spin_loop();
    }
}

pub(crate) fn run(
    root: &mut Root,
    vmcs: &mut ActiveVmcs,
    host: &HostState,
    memory: &Linear,
) -> Result<(), &'static str> {
    for (number, [top, gigabytes]) in VIEWS.iter().enumerate() {
        top.0[0].store(memory.of(gigabytes) | TABLE, Ordering::Relaxed);
        for gib in 0..4_u64 {
            let at = if number == 1 && gib == 1 {
                0
            } else {
                gib * GIB
            };
            gigabytes.0[gib as usize].store(at | LEAF, Ordering::Relaxed);
        }
        LIST.0[number].store(memory.of(top) | EPTP, Ordering::Relaxed);
    }
    let processor = *root.processor();
    let mut current = root.load(vmcs).map_err(|_| "load")?;
    setup::guest(&mut current, &processor, talks).map_err(|_| "a field of the guest is missing")?;
    let secondary = Secondary::ENABLE_EPT | Secondary::ENABLE_VM_FUNCTIONS;
    setup::controls(&mut current, PinBased::empty(), Primary::empty(), secondary)
        .and_then(|()| current.write(f::EPT_POINTER, LIST.0[0].load(Ordering::Relaxed)))
        .and_then(|()| current.write(f::VM_FUNCTION_CONTROLS, VmFunctions::EPTP_SWITCHING.bits()))
        .and_then(|()| current.write(f::EPTP_LIST_ADDRESS, memory.of(&LIST)))
        .map_err(|_| "a field is missing")?;
    // SAFETY: the guest is ours, and runs on a stack of its own; both views map memory to itself.
    let vcpu = unsafe { Vcpu::new(current, Registers::new(), host) };
    let mut vcpu = vcpu.map_err(|_| "no vcpu")?;
    vcpu.switch_vector_registers(FxState::new());
    let mut say = |violation: &Violation| println!("{violation}");
    vcpu.check(Checker::new(&processor), &mut say)
        .map_err(|_| "refused")?;
    for _ in 0..4 {
        match vcpu.run() {
            Ok(Exit::Hypercall(exit)) => {
                let [a, b, c] = exit.arguments;
                if exit.number == REPORT {
                    println!("the sum: {a}");
                    println!("the second view: {b:#x}");
                }
                exit.answer(a + b + c);
            }
            Ok(Exit::VmxInstruction(exit)) => {
                println!("VMFUNC without an entry: {}", exit.guest.reason());
                return Ok(());
            }
            Ok(other) => println!("{other:?}"),
            Err(error) => println!("{error}"),
        }
    }
    Err("VMFUNC did not exit")
}
