// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests: registers there and back, exits that bitmaps and lists decide, entries that fail.

use core::arch::naked_asm;

use hvkit_vmcs::check::{Checker, Discard, Violation};
use hvkit_vmcs::controls::{ExitPrimary, PinBased, Primary, Secondary};
use hvkit_vmcs::exit::Gpr;
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::{Fields, FieldsMut};
use hvkit_vmx::bitmaps::{IoBitmaps, MsrAccess, MsrBitmap};
use hvkit_vmx::{
    ApicRegister, Current, DebugRegisters, Exit, FxState, HostState, Linear, MsrArea, MsrList,
    Once, Physical, Registers, Root, ThisProcessor, Vcpu, VirtualApicPage, VmcsKind, VmcsRegion,
};
use payload_rt::println;

use crate::{operation, setup, views};

static VMCS: Once<VmcsRegion> = Once::new(VmcsRegion::new());
static MSRS: MsrBitmap = MsrBitmap::passing();
static PORTS: IoBitmaps = IoBitmaps::passing();
static APIC: VirtualApicPage = VirtualApicPage::new();
static LOADED: MsrArea<2> = MsrArea::new();
static STORED: MsrArea<2> = MsrArea::new();
static RESTORED: MsrArea<2> = MsrArea::new();

/// IA32_TSC_AUX: in no field of the VMCS.
const TSC_AUX: u32 = 0xc000_0103;

/// Complements every register it can, CR2 and debug registers too, and calls; again and again.
#[unsafe(naked)]
extern "C" fn complements() -> ! {
    naked_asm!(
        "2:",
        "not rax",
        "not rcx",
        "not rdx",
        "not rbx",
        "not rbp",
        "not rsi",
        "not rdi",
        "not r8",
        "not r9",
        "not r10",
        "not r11",
        "not r12",
        "not r13",
        "not r14",
        "not r15",
        "push rax",
        "mov rax, cr2",
        "not rax",
        "mov cr2, rax",
        "mov rax, dr0",
        "inc rax",
        "mov dr0, rax",
        "mov rax, dr3",
        "inc rax",
        "mov dr3, rax",
        "pop rax",
        "movq xmm9, r8",
        "pslldq xmm9, 4",
        "paddq xmm15, xmm14",
        "vmcall",
        "jmp 2b",
    )
}

/// Does what bitmaps and lists decide.
#[unsafe(naked)]
extern "C" fn exits() -> ! {
    naked_asm!(
        "mov ecx, 0x10",
        "rdmsr", // IA32_TIME_STAMP_COUNTER: passes
        "mov ecx, 0xc0000103",
        "rdmsr", // IA32_TSC_AUX: loaded by the entry, passes
        "mov r8, rax",
        "mov eax, 0x77",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x277",
        "rdmsr", // IA32_PAT: exits
        "mov dx, 0x80",
        "mov al, 1",
        "out dx, al", // passes
        "mov dx, 0xcf9",
        "in al, dx", // exits
        "mov eax, 5",
        "mov cr8, rax", // to the virtual-APIC page
        "cpuid",
        "2:",
        "pause",
        "jmp 2b", // until the timer ends it
    )
}

pub(crate) fn run(root: &mut Root, machine: &ThisProcessor, memory: &Linear) {
    let host = match HostState::capture(machine) {
        Ok(host) => host,
        Err(error) => return println!("host: {error}"),
    };
    let Some(region) = VMCS.take() else { return };
    let Ok(mut vmcs) = root.activate(region, VmcsKind::Ordinary, memory) else {
        return;
    };
    if let Ok(current) = root.load(&mut vmcs) {
        operation::bad_operands(current.root());
    }
    println!("registers: {:?}", registers(root, &mut vmcs, &host));
    println!("launch state after runs: {:?}", vmcs.launch_state());
    let _ = vmcs.clear(root);
    println!("and after VMCLEAR: {:?}", vmcs.launch_state());
    println!("exits: {:?}", decided(root, &mut vmcs, &host, memory));
    let _ = vmcs.clear(root);
    println!("failures: {:?}", failures(root, &mut vmcs, &host));
    let _ = vmcs.clear(root);
    println!("views: {:?}", views::run(root, &mut vmcs, &host, memory));
    let _ = vmcs.clear(root);
}

type Done = Result<(), &'static str>;

/// A virtual processor with its VMCS set up for `code`.
fn vcpu<'a>(
    mut current: Current<'a>,
    host: &HostState,
    registers: Registers,
    code: extern "C" fn() -> !,
    more: impl FnOnce(&mut Current<'_>) -> Result<(), hvkit_vmcs::store::NoSuchField>,
) -> Result<Vcpu<'a>, &'static str> {
    let processor = *current.root().processor();
    setup::guest(&mut current, &processor, code).map_err(|_| "a field of the guest is missing")?;
    more(&mut current).map_err(|_| "a field is missing")?;
    // SAFETY: the guests of this file are ours; they run on a stack of their own and touch nothing else. No state that is
    // not switched matters to this program.
    unsafe { Vcpu::new(current, registers, host) }.map_err(|_| "no vcpu")
}

fn registers(root: &mut Root, vmcs: &mut hvkit_vmx::ActiveVmcs, host: &HostState) -> Done {
    let pattern = |number: u8| 0x0101_0101_0101_0101 * u64::from(number) + 0x8000_0000_0000_0000;
    let mut registers = Registers::new();
    for number in 0..16 {
        registers[Gpr(number)] = pattern(number);
    }
    registers.cr2 = pattern(16);
    let processor = *root.processor();
    let current = root.load(vmcs).map_err(|_| "load")?;
    let mut vcpu = vcpu(current, host, registers, complements, |_| Ok(()))?;
    vcpu.switch_debug_registers(DebugRegisters {
        addresses: [10, 11, 12, 13],
        status: 0xffff_0ff0,
    });
    let mut vectors = FxState::new();
    vectors.set_xmm(14, 3 << 64 | 5);
    vectors.set_xmm(15, 100 << 64 | 200);
    vcpu.switch_vector_registers(vectors);
    let before = debug();
    for round in 1..=3 {
        let mut say = |violation: &Violation| println!("{violation}");
        let checked = vcpu
            .check(Checker::new(&processor), &mut say)
            .map_err(|_| "refused")?;
        match checked.run() {
            Ok(Exit::Hypercall(exit)) => {
                // RIP past the call; RAX stays as it is.
                let rax = exit.number;
                exit.answer(rax);
            }
            Ok(other) => {
                return Err({
                    println!("{other:?}");
                    "another exit"
                });
            }
            Err(error) => {
                return Err({
                    println!("{error}");
                    "no entry"
                });
            }
        }
        let is_odd = round % 2 == 1;
        let wanted = |number| {
            if is_odd {
                !pattern(number)
            } else {
                pattern(number)
            }
        };
        let right = (0..16)
            .filter(|n| *n != 4)
            .filter(|n| vcpu.registers()[Gpr(*n)] == wanted(*n));
        let right = right.count();
        let cr2 = vcpu.registers().cr2 == wanted(16);
        let debug = vcpu.debug_registers().map(|debug| debug.addresses);
        println!("round {round}: {right} registers, cr2 {cr2}, debug {debug:?}");
        let r8 = vcpu.registers()[Gpr::R8];
        if let Some(vectors) = vcpu.vector_registers() {
            let moved = vectors.xmm(9) == u128::from(r8) << 32;
            println!(
                "vectors {round}: {moved} {:#x} {:#x}",
                vectors.xmm(15),
                vectors.xmm(14)
            );
        }
    }
    println!("the host's debug registers: {}", debug() == before);
    Ok(())
}

/// DR0 to DR3 of the host.
fn debug() -> [u64; 4] {
    let (a, b, c, d);
    // SAFETY: reads.
    unsafe {
        core::arch::asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack));
    }
    [a, b, c, d]
}

fn decided(
    root: &mut Root,
    vmcs: &mut hvkit_vmx::ActiveVmcs,
    host: &HostState,
    memory: &Linear,
) -> Done {
    let full = |_| "a list is full";
    MSRS.set(0x277, MsrAccess::Read, true)
        .map_err(|_| "bitmap")?;
    PORTS.set(0xcf9..=0xcf9, true);
    LOADED.push(TSC_AUX, 0x1111).map_err(full)?;
    STORED.push(TSC_AUX, 0).map_err(full)?;
    RESTORED.push(TSC_AUX, 0x2222).map_err(full)?;
    let timer = root.processor().vmx.misc;
    let timer = hvkit_vmx::PreemptionTimer::new(timer).value_for(100_000);
    let processor = *root.processor();
    let current = root.load(vmcs).map_err(|_| "load")?;
    let mut vcpu = vcpu(current, host, Registers::new(), exits, |vmcs| {
        let primary = Primary::MSR_BITMAPS | Primary::IO_BITMAPS | Primary::TPR_SHADOW;
        setup::controls(
            vmcs,
            PinBased::PREEMPTION_TIMER,
            primary,
            Secondary::empty(),
        )?;
        vmcs.write(f::MSR_BITMAP, memory.of(&MSRS))?;
        vmcs.write(f::IO_BITMAP_A, memory.of(&PORTS))?;
        vmcs.write(f::IO_BITMAP_B, memory.of(&PORTS) + IoBitmaps::B)?;
        vmcs.write(f::VIRTUAL_APIC_ADDRESS, memory.of(&APIC))?;
        vmcs.write(f::TPR_THRESHOLD, 0)?;
        MsrList::EntryLoad.name(vmcs, memory.of(&LOADED), LOADED.len())?;
        MsrList::ExitStore.name(vmcs, memory.of(&STORED), STORED.len())?;
        MsrList::ExitLoad.name(vmcs, memory.of(&RESTORED), RESTORED.len())?;
        vmcs.write(f::PREEMPTION_TIMER_VALUE, timer)
    })?;
    if let Err(verdict) = vcpu.check(Checker::new(&processor), &mut |violation: &Violation| {
        println!("{violation}")
    }) {
        println!("{}", verdict.outcome());
        return Err("refused");
    }
    for _ in 0..8 {
        match vcpu.run() {
            Ok(Exit::ReadMsr(exit)) => {
                println!(
                    "RDMSR {:#x}, TSC_AUX was {:#x}",
                    exit.index,
                    exit.guest.get(Gpr::R8)
                );
                println!("stored TSC_AUX: {:x?}", STORED.value(TSC_AUX));
                exit.answer(0);
            }
            Ok(Exit::Io(exit)) => {
                println!(
                    "port {:#x}, {} bytes, {:?}",
                    exit.port, exit.bytes, exit.direction
                );
                exit.answer(0);
            }
            Ok(Exit::Cpuid(exit)) => exit.answer([0; 4]),
            Ok(Exit::PreemptionTimer(guest)) => {
                println!("timer: {}", guest.reason());
                println!("task priority: {:#x}", APIC.read(ApicRegister::TPR));
                let here: u32;
                // SAFETY: the register exists: the guest read it.
                unsafe {
                    core::arch::asm!("rdmsr", in("ecx") TSC_AUX, out("eax") here, out("edx") _)
                };
                println!("the host's TSC_AUX: {here:#x}");
                return Ok(());
            }
            Ok(other) => println!("{other:?}"),
            Err(error) => {
                println!("{error}");
                return Err("no entry");
            }
        }
    }
    Err("the timer never came")
}

/// Entries that fail at each of their steps.
fn failures(root: &mut Root, vmcs: &mut hvkit_vmx::ActiveVmcs, host: &HostState) -> Done {
    let processor = *root.processor();
    let current = root.load(vmcs).map_err(|_| "load")?;
    let mut vcpu = vcpu(current, host, Registers::new(), complements, |_| Ok(()))?;
    let exit_controls = vcpu
        .vmcs()
        .read(f::PRIMARY_EXIT_CONTROLS)
        .ok_or("a field is missing")?;
    let without_64_bit = exit_controls & !ExitPrimary::HOST_ADDRESS_SPACE_SIZE.bits();
    let cases = [
        ("control", f::CR3_TARGET_COUNT.encoding(), 99),
        ("host", f::HOST_CR3.encoding(), 1 << 63),
        (
            "host size",
            f::PRIMARY_EXIT_CONTROLS.encoding(),
            without_64_bit.into(),
        ),
        ("guest", f::GUEST_RFLAGS.encoding(), 0),
        ("link pointer", f::VMCS_LINK_POINTER.encoding(), 1),
    ];
    for (name, field, value) in cases {
        let before = vcpu.vmcs().vmread(field).map_err(|_| "read")?;
        vcpu.vmcs().vmwrite(field, value).map_err(|_| "write")?;
        let refused = vcpu.check(Checker::new(&processor), &mut Discard).err();
        let error = vcpu.run().err();
        println!("{name}: {error:?}");
        println!(
            "{name}, foretold: {}",
            match (refused, error) {
                (Some(verdict), Some(error)) => verdict.may_report(error.outcome()),
                _ => false,
            }
        );
        println!("{name}, launch state: {:?}", vcpu.vmcs().launch_state());
        vcpu.vmcs().vmwrite(field, before).map_err(|_| "write")?;
    }
    match vcpu.run() {
        Ok(Exit::Hypercall(_)) => Ok(()),
        _ => Err("the VMCS was not as before"),
    }
}
