// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits that a processor model really produced, decoded: `data/bochs-2.7-exits.txt`, written by
//! `cargo xtask type1 --record`. What each must decode to is read from the instruction that gave it.

use hvkit_vmcs::event::{Event, EventKind};
use hvkit_vmcs::exit::{
    DescriptorTable, ExitInformation, ExitReason, Gpr, Instruction, MemoryOperand, Operand,
    Qualification, SegmentRegister, SystemSegment,
};
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmcs::{Encoding, Vmcs};

const RECORD: &str = include_str!("data/bochs-2.7-exits.txt");

/// The encodings of the ten words of a line.
const FIELDS: [u32; 10] = [
    0x4402, 0x6400, 0x440e, 0x4404, 0x4406, 0x4408, 0x440a, 0x440c, 0x640a, 0x2400,
];

fn exits() -> impl Iterator<Item = (&'static str, ExitInformation)> {
    let lines = RECORD.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let (words, step) = line.split_once(" # ").unwrap();
        let mut vmcs = Vmcs::new();
        let mut words = words.split(' ');
        for field in FIELDS {
            let word = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
            vmcs.set(Encoding(field), word).unwrap();
        }
        assert_eq!(words.next(), None, "{line}");
        (step, ExitInformation::read(&vmcs).unwrap())
    })
}

/// The one exit of the step that ends so.
fn exit(end: &str) -> ExitInformation {
    let mut found = exits().filter(|(step, _)| step.ends_with(end));
    let (_, exit) = found.next().unwrap_or_else(|| panic!("no exit of {end}"));
    assert!(found.next().is_none(), "{end} has several exits");
    exit
}

/// A 64-bit operand in memory.
fn memory(segment: SegmentRegister, base: Option<Gpr>, index: Option<(Gpr, u8)>) -> MemoryOperand {
    MemoryOperand {
        segment,
        base,
        index,
        address_bits: Some(64),
    }
}

const DS: SegmentRegister = SegmentRegister::DS;
const SS: SegmentRegister = SegmentRegister::SS;
/// `[rsp + displacement]`.
fn on_stack() -> MemoryOperand {
    memory(SS, Some(Gpr::RSP), None)
}

#[test]
fn every_line_is_a_reason_with_a_name_and_no_failure() {
    let all: Vec<_> = exits().collect();
    assert!(all.len() > 90, "{} exits", all.len());
    for (step, exit) in all {
        assert!(exit.reason.name().is_some(), "{step}: {exit}");
        assert!(!exit.reason.is_entry_failure(), "{step}: {exit}");
        let decoded = (exit.qualification(), exit.instruction());
        assert!(
            !matches!(decoded.0, Qualification::Other(_)),
            "{step}: {decoded:?}"
        );
    }
}

#[test]
fn instructions_have_their_reasons_and_lengths() {
    for (step, reason, length) in [
        ("; cpuid", ExitReason::CPUID, 2),
        ("ecx, 0x10; rdmsr", ExitReason::RDMSR, 2),
        ("; wrmsr", ExitReason::WRMSR, 2),
        ("hlt", ExitReason::HLT, 1),
        ("pause", ExitReason::PAUSE, 2),
        ("wbinvd", ExitReason::WBINVD, 2),
        ("rdtscp", ExitReason::RDTSCP, 3),
        ("; rdpmc", ExitReason::RDPMC, 2),
        ("; monitor", ExitReason::MONITOR, 3),
        ("; mwait", ExitReason::MWAIT, 3),
        ("; xsetbv", ExitReason::XSETBV, 3),
        ("vmlaunch", ExitReason::VMLAUNCH, 3),
        ("vmxoff", ExitReason::VMXOFF, 3),
        ("; vmfunc", ExitReason::VMFUNC, 3),
    ] {
        let exit = exit(step);
        assert!(exit.reason.is(reason), "{step}: {exit}");
        assert_eq!(exit.instruction_length, length, "{step}");
    }
    let address = Qualification::LinearAddress(0x7123);
    assert_eq!(exit("invlpg [rax + 0x123]").qualification(), address);
    assert_eq!(
        exit("; mwait").qualification(),
        Qualification::Mwait { armed: false }
    );
}

#[test]
fn ports() {
    let io = |step| match exit(step).qualification() {
        Qualification::Io(io) => io,
        other => panic!("{other:?}"),
    };
    for (step, port, size, is_in, is_immediate) in [
        ("in al, 0x60", 0x60, 1, true, true),
        ("out 0x80, al", 0x80, 1, false, true),
        ("in ax, dx", 0x3f8, 2, true, false),
        ("out dx, eax", 0xcf8, 4, false, false),
        ("; outsb", 0x1f0, 1, false, false),
        ("rep insd", 0x1f0, 4, true, false),
        ("gs:[esi]", 0x1f0, 2, false, false),
    ] {
        let io = io(step);
        assert_eq!((io.port(), io.size()), (port, Some(size)), "{step}");
        assert_eq!(
            (io.is_in(), io.is_immediate()),
            (is_in, is_immediate),
            "{step}"
        );
        assert_eq!(io.is_string(), port == 0x1f0, "{step}");
        assert_eq!(io.is_repeated(), step == "rep insd", "{step}");
    }
    let string = |step| match exit(step).instruction() {
        Instruction::StringIo {
            address_bits,
            segment,
        } => (address_bits, segment),
        other => panic!("{other:?}"),
    };
    assert_eq!(string("[rsp - 64]; outsb"), (Some(64), DS));
    assert_eq!(string("gs:[esi]"), (Some(32), SegmentRegister::GS));
    assert_eq!(string("rep insd").0, Some(64));
    assert_eq!(exit("rep insd").linear_address, 0x2_0000 - 64);
}

#[test]
fn control_and_debug_registers() {
    let access = |step| match exit(step).qualification() {
        Qualification::ControlRegister(cr) => (cr.access(), cr.number(), Gpr(cr.register())),
        other => panic!("{other:?}"),
    };
    assert_eq!(access("mov cr0, rbx"), (0, 0, Gpr::RBX));
    assert_eq!(access("mov r11, cr3"), (1, 3, Gpr::R11));
    assert_eq!(access("mov cr3, r11"), (0, 3, Gpr::R11));
    assert_eq!(access("mov cr4, rbx"), (0, 4, Gpr::RBX));
    assert_eq!(access("mov r9, cr8"), (1, 8, Gpr::R9));
    assert_eq!(access("mov cr8, r9"), (0, 8, Gpr::R9));
    assert_eq!(access("clts").0, 2);
    for (step, source, from_memory) in
        [("lmsw ax", 0xfff7, false), ("lmsw [rsp - 8]", 0xfffb, true)]
    {
        let Qualification::ControlRegister(lmsw) = exit(step).qualification() else {
            panic!("{step}")
        };
        assert_eq!((lmsw.access(), lmsw.lmsw_source()), (3, source), "{step}");
        assert_eq!(lmsw.lmsw_from_memory(), from_memory, "{step}");
    }
    assert_eq!(exit("lmsw [rsp - 8]").linear_address, 0x2_0000 - 8);
    for (step, number, is_read, register) in [
        ("mov rsi, dr7", 7, true, Gpr::RSI),
        ("mov dr3, rcx", 3, false, Gpr::RCX),
    ] {
        let Qualification::DebugRegister(dr) = exit(step).qualification() else {
            panic!("{step}")
        };
        assert_eq!((dr.number(), dr.is_read()), (number, is_read), "{step}");
        assert_eq!(Gpr(dr.register()), register, "{step}");
    }
}

#[test]
fn operands_in_memory_and_in_registers() {
    let displaced = |step, by: i64| {
        let displacement = Qualification::Displacement(by as u64);
        assert_eq!(exit(step).qualification(), displacement, "{step}");
        exit(step).instruction()
    };
    let table = |instruction, operand, is_32_bit| Instruction::DescriptorTable {
        instruction,
        operand,
        is_32_bit,
    };
    // The operand size is undefined for exits from 64-bit mode: taken as recorded.
    let size = |step| {
        matches!(
            exit(step).instruction(),
            Instruction::DescriptorTable {
                is_32_bit: true,
                ..
            }
        )
    };
    assert_eq!(
        displaced("sgdt [rsp - 16]", -16),
        table(DescriptorTable::Sgdt, on_stack(), size("sgdt [rsp - 16]"))
    );
    let sidt = "sidt [rbx + r12 * 8 - 16]";
    assert_eq!(
        displaced(sidt, -16),
        table(
            DescriptorTable::Sidt,
            memory(DS, Some(Gpr::RBX), Some((Gpr::R12, 3))),
            size(sidt)
        )
    );
    let Instruction::DescriptorTable {
        operand,
        instruction,
        ..
    } = exit("lgdt [rip + 0x40]").instruction()
    else {
        panic!()
    };
    assert_eq!(
        (instruction, operand),
        (DescriptorTable::Lgdt, memory(DS, None, None))
    );
    let lidt = MemoryOperand {
        segment: SegmentRegister::FS,
        base: Some(Gpr::RBP),
        index: None,
        address_bits: Some(32),
    };
    let step = "lidt fs:[ebp + 0x10]";
    assert_eq!(
        displaced(step, 0x10),
        table(DescriptorTable::Lidt, lidt, size(step))
    );
    let segment = |instruction, operand| Instruction::SystemSegment {
        instruction,
        operand,
    };
    let in_register = |register| Operand::Register(register);
    let in_memory = Operand::Memory(on_stack());
    assert_eq!(
        exit("sldt r11d").instruction(),
        segment(SystemSegment::Sldt, in_register(Gpr::R11))
    );
    assert_eq!(
        exit("lldt ax").instruction(),
        segment(SystemSegment::Lldt, in_register(Gpr::RAX))
    );
    assert_eq!(
        displaced("str word ptr [rsp - 8]", -8),
        segment(SystemSegment::Str, in_memory)
    );
    assert_eq!(
        displaced("ltr word ptr [rsp - 8]", -8),
        segment(SystemSegment::Ltr, in_memory)
    );
    assert_eq!(
        displaced("vmclear [rsp - 8]", -8),
        Instruction::Memory(on_stack())
    );
    assert_eq!(
        displaced("vmxon [rsp - 8]", -8),
        Instruction::Memory(on_stack())
    );
    let at_r13 = memory(DS, Some(Gpr::R13), None);
    assert_eq!(
        displaced("vmptrld [r13 - 0x80]", -0x80),
        Instruction::Memory(at_r13)
    );
    let scaled = memory(SS, Some(Gpr::RSP), Some((Gpr::RAX, 2)));
    assert_eq!(
        displaced("vmptrst [rsp + rax * 4 - 8]", -8),
        Instruction::Memory(scaled)
    );
    let vmcs = |value, encoding| Instruction::Vmcs { value, encoding };
    assert_eq!(
        exit("vmread rax, rbx").instruction(),
        vmcs(in_register(Gpr::RAX), Gpr::RBX)
    );
    assert_eq!(
        exit("vmwrite r8, r9").instruction(),
        vmcs(in_register(Gpr::R9), Gpr::R8)
    );
    let scaled = memory(SS, Some(Gpr::RSP), Some((Gpr::RCX, 3)));
    assert_eq!(
        displaced("vmread [rsp + rcx * 8 - 0x100], rdx", -0x100),
        vmcs(Operand::Memory(scaled), Gpr::RDX)
    );
    let invalidate = |descriptor, kind| Instruction::Invalidate { descriptor, kind };
    assert_eq!(
        displaced("invept rcx, [rsp - 16]", -16),
        invalidate(on_stack(), Gpr::RCX)
    );
    assert_eq!(
        displaced("invvpid r14, [rsp - 16]", -16),
        invalidate(on_stack(), Gpr::R14)
    );
    let scaled = memory(DS, Some(Gpr::RBX), Some((Gpr::RCX, 1)));
    assert_eq!(
        displaced("invpcid rax, [rbx + rcx * 2 + 8]", 8),
        invalidate(scaled, Gpr::RAX)
    );
    let random = |destination, operand_bits| Instruction::Random {
        destination,
        operand_bits,
    };
    assert_eq!(exit("rdrand ecx").instruction(), random(Gpr::RCX, Some(32)));
    assert_eq!(exit("rdrand r9").instruction(), random(Gpr::R9, Some(64)));
    // The operand has 16 bits; Bochs 2.7 says 32 (bits 12:11 are 1).
    assert_eq!(
        exit("rdseed r10w").instruction(),
        random(Gpr::R10, Some(32))
    );
}

#[test]
fn memory_that_the_ept_does_not_allow() {
    let violation = |step: &str| {
        let (_, exit) = exits()
            .find(|(s, e)| s.ends_with(step) && e.reason.is(ExitReason::EPT_VIOLATION))
            .unwrap_or_else(|| panic!("no violation of {step}"));
        match exit.qualification() {
            Qualification::EptViolation(access) => (access, exit),
            other => panic!("{other:?}"),
        }
    };
    for (step, read, write, fetch, address) in [
        ("0x300008; mov rax, [rbx]", true, false, false, 0x30_0008),
        ("add dword ptr [rbx], 1", false, true, false, 0x30_0008),
        ("0x300800; jmp rax", false, false, true, 0x30_0800),
        ("0x200010; mov [rbx], rax", false, true, false, 0x20_0010),
        ("lock inc dword ptr [rbx]", false, true, false, 0x20_0010),
    ] {
        let (access, exit) = violation(step);
        assert_eq!(
            (access.is_read(), access.is_write(), access.is_fetch()),
            (read, write, fetch),
            "{step}"
        );
        assert!(access.has_linear_address() && access.is_final(), "{step}");
        assert_eq!(
            (exit.physical_address, exit.linear_address),
            (Some(address), address),
            "{step}"
        );
        // The first is a hole, the page at 2 MiB is mapped read-only and executable.
        let in_rom = address < 0x30_0000;
        assert_eq!(
            (access.was_readable(), access.was_writable()),
            (in_rom, false),
            "{step}"
        );
    }
    // A page walk that needs a table in a hole: the linear address is what was asked for, and the access was to a table.
    let (access, exit) = violation("0x8000000000; mov rax, [rbx]");
    assert!(access.has_linear_address() && !access.is_final());
    assert_eq!(
        (exit.physical_address, exit.linear_address),
        (Some(0x32_0000), 0x80_0000_0000)
    );
    for (step, offset, access) in [
        ("0x3f0300; mov eax, [rbx]", 0x300, 0),
        ("[rbx + 0x10], 0xfee", 0x310, 1),
    ] {
        let Qualification::ApicAccess(apic) = exit_of_apic(step).qualification() else {
            panic!("{step}")
        };
        assert_eq!((apic.offset(), apic.access()), (offset, access), "{step}");
    }
}

fn exit_of_apic(step: &str) -> ExitInformation {
    let exit = exit(step);
    assert!(exit.reason.is(ExitReason::APIC_ACCESS), "{exit}");
    exit
}

#[test]
fn exceptions_and_what_they_interrupted() {
    let exception = |step: &str| {
        let (_, exit) = exits()
            .find(|(s, e)| s.ends_with(step) && e.reason.is(ExitReason::EXCEPTION_OR_NMI))
            .unwrap_or_else(|| panic!("no exception of {step}"));
        assert!(exit.event.is_valid(), "{step}");
        exit
    };
    for (step, kind, name) in [
        ("ud2", EventKind::HARDWARE_EXCEPTION, "#UD"),
        ("int3", EventKind::SOFTWARE_EXCEPTION, "#BP"),
        (
            ".byte 0xf1",
            EventKind::PRIVILEGED_SOFTWARE_EXCEPTION,
            "#DB",
        ),
        ("push rax", EventKind::HARDWARE_EXCEPTION, "#SS"),
        (
            "0x8000000000000000; mov rax, [rbx]",
            EventKind::HARDWARE_EXCEPTION,
            "#GP",
        ),
    ] {
        let exit = exception(step);
        assert_eq!(
            (exit.event.kind(), exit.event.exception()),
            (kind, Some(name)),
            "{step}"
        );
        assert_eq!(
            exit.event.has_error_code(),
            matches!(name, "#SS" | "#GP"),
            "{step}"
        );
        assert!(!exit.original_event.is_valid(), "{step}");
    }
    for (step, address, error_code) in [
        ("0x600008; mov rax, [rbx]", 0x60_0008, 0),
        ("mov [rbx], rax", 0x60_0008, 2),
        ("0x600800; jmp rax", 0x60_0800, 0x10),
    ] {
        let (_, exit) = exits()
            .find(|(s, e)| s.ends_with(step) && e.event.vector() == 14)
            .unwrap_or_else(|| panic!("no page fault of {step}"));
        assert_eq!(
            exit.qualification(),
            Qualification::PageFault(address),
            "{step}"
        );
        assert_eq!(
            (exit.error_code, exit.event.has_error_code()),
            (error_code, true),
            "{step}"
        );
    }
    // No gate in the IDT: #GP while #DE, or INT 40H, was delivered. Its error code names the gate: IDT, and EXT for the first.
    let division = exception("div ecx");
    assert_eq!(
        division.original_event,
        Event::new(EventKind::HARDWARE_EXCEPTION, 0)
    );
    assert_eq!((division.event.vector(), division.error_code), (13, 3));
    let software = exception("int 0x40");
    assert_eq!(
        software.original_event,
        Event::new(EventKind::SOFTWARE_INTERRUPT, 0x40)
    );
    assert_eq!(
        (software.error_code, software.instruction_length),
        (0x40 << 3 | 2, 2)
    );
}

#[test]
fn interrupts_windows_and_timers() {
    let of = |reason: ExitReason| {
        let (_, exit) = exits().find(|(_, e)| e.reason.is(reason)).unwrap();
        exit
    };
    // The timer of the PC, at the vector its BIOS gives it, acknowledged.
    let interrupt = of(ExitReason::EXTERNAL_INTERRUPT);
    assert_eq!(
        interrupt.event,
        Event::new(EventKind::EXTERNAL_INTERRUPT, 8)
    );
    for reason in [
        ExitReason::INTERRUPT_WINDOW,
        ExitReason::PREEMPTION_TIMER,
        ExitReason::TRIPLE_FAULT,
    ] {
        assert_eq!(of(reason).qualification(), Qualification::None);
    }
}
