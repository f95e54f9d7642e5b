// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A fault of this program's own, and an NMI that comes while it runs.
//!
//! A fault is said, with where it was, the rules that the current VMCS breaks, and the VMCS; then the machine stops. A panic ends in
//! the same way. An NMI is the guest's, as the machine is: it is kept, and the guest is entered with it.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hvkit_vmcs::check::{Checker, Violation};
use hvkit_vmcs::dump::Dump;
use hvkit_vmcs::event::{Event, EventKind, Interruptibility};
use hvkit_vmcs::store::{Fields, FieldsMut};
use hvkit_vmcs::{Encoding, Processor, fields as f};
use hvkit_vmx::Vcpu;
use payload_rt::println;
use spin::Mutex;

use crate::failure::Mapped;

/// Exceptions, the NMI among them.
const VECTORS: usize = 32;
/// Of which so many bytes of code each.
const STUB: usize = 16;
/// The selector of 64-bit code (payload-rt).
const CODE: u64 = 8;
/// Present, 64-bit interrupt gate.
const GATE: u64 = 0x8e00;

// Each stub makes the stack the same: error code (0 if there is none), vector. The NMI's, vector 2, only counts: it may come
// anywhere.
global_asm!(
    r#"
    .balign 16
host_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 2
    jmp host_nmi
    .else
    .if ((0x60227d00 >> vector) & 1) == 0
    pushq $0
    .endif
    pushq $vector
    jmp host_fault
    .endif
    .set vector, vector + 1
    .endr
host_nmi:
    push %rax
    mov 8(%rsp), %rax
    mov %rax, host_nmi_at
    pop %rax
    iretq
host_fault:
    mov %rsp, %rdi
    and $-16, %rsp
    cld
    call {told}
    ud2
    .section .bss
    .balign 8
host_nmi_at:
    .quad 0
    .text
"#,
    told = sym fault,
    options(att_syntax),
);

// SAFETY: the assembly above defines each, of these types or of what is only pointed at.
unsafe extern "C" {
    static host_stubs: u8;
    /// Where the last NMI came; 0 for none.
    static host_nmi_at: AtomicU64;
}

/// What a stub and the processor leave on the stack.
#[repr(C)]
struct Frame {
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
}

/// What the checker needs, while this processor is in VMX root operation.
static ROOT: Mutex<Option<Processor>> = Mutex::new(None);
/// Set at the first fault: one in here is the end.
static IS_TELLING: AtomicBool = AtomicBool::new(false);
static mut GATES: [[u64; 2]; VECTORS] = [[0; 2]; VECTORS];

/// Loads the table of handlers.
pub fn handle() {
    let first = (&raw const host_stubs).addr();
    let table = &raw mut GATES;
    let limit = (VECTORS * 16 - 1) as u16;
    let mut operand = [0_u8; 10];
    operand[..2].copy_from_slice(&limit.to_le_bytes());
    operand[2..].copy_from_slice(&(table.addr() as u64).to_le_bytes());
    for vector in 0..VECTORS {
        let at = (first + vector * STUB) as u64;
        let low = at & 0xffff | CODE << 16 | GATE << 32 | (at >> 16 & 0xffff) << 48;
        // SAFETY: one processor, and nothing else writes the table.
        unsafe { (*table)[vector] = [low, at >> 32] };
    }
    // SAFETY: every gate leads to its stub, and the table is there for ever.
    unsafe { asm!("lidt [{}]", in(reg) &operand, options(readonly, nostack)) };
    payload_rt::at_panic(tell);
}

/// Whether the processor is in VMX root operation from now on, and what it can do.
pub fn in_root_operation(processor: Option<Processor>) {
    *ROOT.lock() = processor;
}

/// Gives the guest the NMI that came here, unless it cannot take one at this entry: then at a later one.
pub fn pass_on(vcpu: &mut Vcpu<'_>) {
    // SAFETY: a word that the NMI's handler stores and nobody else.
    let waiting = unsafe { &host_nmi_at };
    let at = waiting.load(Ordering::Relaxed);
    if at == 0 {
        return;
    }
    let vmcs = vcpu.vmcs();
    let blocking = vmcs.read(f::GUEST_INTERRUPTIBILITY).unwrap_or(0);
    // STI too: a processor may refuse to inject one then (guest.interruptibility.nmi-sti).
    let blocks = Interruptibility::STI | Interruptibility::MOV_SS | Interruptibility::NMI;
    let is_free = !Event(vmcs.read(f::INJECTED_EVENT).unwrap_or(0)).is_valid()
        && !Interruptibility::from_bits_retain(blocking).intersects(blocks);
    let nmi = Event::new(EventKind::NMI, 2);
    if is_free && vmcs.write(f::INJECTED_EVENT, nmi.0).is_ok() {
        waiting.store(0, Ordering::Relaxed);
        println!("type1: an NMI in the hypervisor at RIP {at:#x}: the guest's");
    }
}

extern "C" fn fault(frame: &Frame) -> ! {
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    let Frame {
        vector,
        error_code,
        rip,
        cs: _,
        rflags,
        rsp,
    } = frame;
    println!(
        "fault: exception {vector} in the hypervisor, error code {error_code:#x}, at RIP {rip:#x}, RSP {rsp:#x}, RFLAGS {rflags:#x}, CR2 {cr2:#x}"
    );
    panic!("a fault of the hypervisor's own")
}

/// Prints which rules the current VMCS breaks, and the VMCS.
fn tell() {
    if IS_TELLING.swap(true, Ordering::Relaxed) {
        return println!("fault: and another while it was told");
    }
    // If it is held, a fault came between two instructions that nothing here can fault in; but waiting would be for ever.
    let Some(Some(processor)) = ROOT.try_lock().as_deref().copied() else {
        return println!("fault: not in VMX root operation: no VMCS to show");
    };
    let mut print = |violation: &Violation| println!("  {violation}");
    let verdict = Checker::new(&processor)
        .with_memory(Mapped)
        .check(&Bare, &mut print);
    println!("fault: the VMCS: {}", verdict.outcome());
    println!("--- VMCS\n{}--- end", Dump(&Bare));
}

/// The current VMCS, whoever holds the proof that there is one.
struct Bare;

impl Fields for Bare {
    fn get(&self, encoding: Encoding) -> Option<u64> {
        let (value, failed): (u64, u8);
        // SAFETY: in VMX root operation, as `tell` saw; changes nothing but flags. Without a current VMCS or such a field it
        // fails, which the flags say.
        unsafe {
            asm!("vmread {value}, {field}", "setbe {failed}", value = out(reg) value, failed = out(reg_byte) failed,
                field = in(reg) u64::from(encoding.0), options(nostack));
        }
        (failed == 0).then_some(value)
    }
}
