// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits from raw words of the manual's tables.

use super::*;
use crate::{Vmcs, event::Event, fields as f, store::FieldsMut};

fn qualification(reason: u32, raw: u64) -> Qualification {
    Qualification::decode(ExitReason(reason), raw, Event(0))
}

#[test]
fn io_instructions() {
    // OUT DX, AL to 3F8H; REP INSD from 1F0H; IN EAX, 60H.
    let Qualification::Io(out) = qualification(30, 0x03f8_0000) else {
        panic!()
    };
    assert_eq!(
        (out.port(), out.size(), out.is_in(), out.is_immediate()),
        (0x3f8, Some(1), false, false)
    );
    let Qualification::Io(ins) = qualification(30, 0x01f0_003b) else {
        panic!()
    };
    assert_eq!((ins.port(), ins.size()), (0x1f0, Some(4)));
    assert!(ins.is_in() && ins.is_string() && ins.is_repeated());
    let Qualification::Io(smi) = qualification(5, 0x0060_004b) else {
        panic!()
    };
    assert!(smi.is_immediate() && !smi.is_string());
    assert_eq!(IoInstruction(2).size(), None);
    assert_eq!(IoInstruction(1).size(), Some(2));
}

/// Reasons 84 and 85: the MSR in the qualification, the register in bits 6:3 of the instruction information.
#[test]
fn msrs_by_immediate() {
    for reason in [84, 85] {
        assert_eq!(qualification(reason, 0x1b01), Qualification::Msr(0x1b01));
        let register = Gpr(0xb);
        assert_eq!(
            Instruction::decode(ExitReason(reason), 0xffff_ffdf),
            Instruction::Msr { register }
        );
    }
    assert_eq!(ExitReason(84).name(), Some("RDMSR with immediate operand"));
    // Of reasons 80 and 81 the raw word is kept.
    for reason in [80, 81] {
        assert_eq!(qualification(reason, 0x1b01), Qualification::Other(0x1b01));
    }
    assert_eq!(ExitReason(81).name(), Some("UWRMSR"));
}

#[test]
fn control_and_debug_registers() {
    // MOV CR3, RBX; MOV R9, CR8; LMSW with source 1234H from memory; MOV DR7, RSI.
    let Qualification::ControlRegister(to) = qualification(28, 0x303) else {
        panic!()
    };
    assert_eq!(
        (to.number(), to.access(), Gpr(to.register())),
        (3, 0, Gpr::RBX)
    );
    let Qualification::ControlRegister(from) = qualification(28, 0x918) else {
        panic!()
    };
    assert_eq!((from.number(), from.access(), from.register()), (8, 1, 9));
    let Qualification::ControlRegister(lmsw) = qualification(28, 0x1234_0070) else {
        panic!()
    };
    assert_eq!(
        (lmsw.access(), lmsw.lmsw_source(), lmsw.lmsw_from_memory()),
        (3, 0x1234, true)
    );
    let Qualification::DebugRegister(dr) = qualification(29, 0x607) else {
        panic!()
    };
    assert_eq!((dr.number(), dr.is_read(), dr.register()), (7, false, 6));
    assert!(DebugRegister(0x10).is_read());
}

#[test]
fn ept_violations() {
    // A write to a read-only page at the end of a translation; a fetch on the way.
    let Qualification::EptViolation(write) = qualification(48, 0x18a) else {
        panic!()
    };
    assert!(write.is_write() && write.was_readable() && !write.was_writable());
    assert!(
        write.has_linear_address() && write.is_final() && !write.is_fetch() && !write.is_read()
    );
    let all = EptViolation(0x1_ffff);
    assert!(all.is_fetch() && all.was_executable() && all.was_user_executable() && all.is_user());
    assert!(all.is_paging_writable() && all.is_paging_execute_disable() && all.unblocked_nmi());
    assert!(all.is_shadow_stack() && all.was_shadow_stack_page());
    assert!(all.is_paging_verification() && all.is_asynchronous() && all.is_read());
    // One bit, one meaning.
    type Reader = fn(EptViolation) -> bool;
    let single: [(u32, Reader); 17] = [
        (0, EptViolation::is_read),
        (1, EptViolation::is_write),
        (2, EptViolation::is_fetch),
        (3, EptViolation::was_readable),
        (4, EptViolation::was_writable),
        (5, EptViolation::was_executable),
        (6, EptViolation::was_user_executable),
        (7, EptViolation::has_linear_address),
        (8, EptViolation::is_final),
        (9, EptViolation::is_user),
        (10, EptViolation::is_paging_writable),
        (11, EptViolation::is_paging_execute_disable),
        (12, EptViolation::unblocked_nmi),
        (13, EptViolation::is_shadow_stack),
        (14, EptViolation::was_shadow_stack_page),
        (15, EptViolation::is_paging_verification),
        (16, EptViolation::is_asynchronous),
    ];
    for (bit, read) in single {
        assert!(
            read(EptViolation(1 << bit)) && !read(EptViolation(!(1 << bit))),
            "{bit}"
        );
    }
}

#[test]
fn the_other_qualifications() {
    let of = |kind: u32, vector: u32, raw| {
        Qualification::decode(ExitReason(0), raw, Event(1 << 31 | kind << 8 | vector))
    };
    let Qualification::Debug(debug) = of(3, 1, 0x1_6803) else {
        panic!()
    };
    assert_eq!(debug.breakpoints(), 3);
    assert!(debug.bus_lock() && debug.register_access() && debug.single_step() && debug.rtm());
    assert_eq!(
        of(3, 14, 0xdead_b000),
        Qualification::PageFault(0xdead_b000)
    );
    assert_eq!(of(2, 2, 1), Qualification::NmiSource(1));
    assert_eq!(of(3, 13, 0), Qualification::None);

    let Qualification::TaskSwitch(task) = qualification(9, 0xc000_0028) else {
        panic!()
    };
    assert_eq!((task.selector(), task.source()), (0x28, 3));
    let Qualification::ApicAccess(apic) = qualification(44, 0x1_1300) else {
        panic!()
    };
    assert_eq!(
        (apic.offset(), apic.access(), apic.is_asynchronous()),
        (0x300, 1, true)
    );
    let Qualification::Timeout(timeout) = qualification(75, 0x1001) else {
        panic!()
    };
    assert!(timeout.context_is_invalid() && timeout.unblocked_nmi());
    let Qualification::Spp(spp) = qualification(66, 0x1_1800) else {
        panic!()
    };
    assert!(spp.is_miss() && spp.unblocked_nmi() && spp.is_asynchronous());
    let Qualification::PmlFull(pml) = qualification(62, 0x1000) else {
        panic!()
    };
    assert!(pml.unblocked_nmi() && !pml.is_asynchronous());

    assert_eq!(qualification(4, 0x1f9a), Qualification::Sipi(0x9a));
    assert_eq!(
        qualification(14, 0x1234),
        Qualification::LinearAddress(0x1234)
    );
    assert_eq!(qualification(36, 1), Qualification::Mwait { armed: true });
    assert_eq!(qualification(45, 0x31), Qualification::VirtualizedEoi(0x31));
    assert_eq!(qualification(56, 0x300), Qualification::ApicWrite(0x300));
    assert_eq!(qualification(54, 1), Qualification::Wbnoinvd(true));
    assert_eq!(qualification(54, 0), Qualification::Wbnoinvd(false));
    assert_eq!(qualification(32, 1), Qualification::Wrmsrns(true));
    assert_eq!(qualification(32, 0), Qualification::Wrmsrns(false));
    assert_eq!(qualification(78, 0x10), Qualification::MsrList(0x10));
    assert_eq!(qualification(72, 0xf_ffff), Qualification::Pasid(0xf_ffff));
    for reason in [19, 21, 22, 23, 25, 27, 46, 47, 50, 53, 58, 63, 64] {
        assert_eq!(
            qualification(reason, 8),
            Qualification::Displacement(8),
            "{reason}"
        );
    }
    assert_eq!(qualification(10, 0), Qualification::None);
    assert_eq!(qualification(999, 5), Qualification::Other(5));
    assert_eq!(
        qualification(0x8000_0021, 4),
        Qualification::GuestState(GuestStateFailure::LINK_POINTER)
    );
    assert_eq!(qualification(0x8000_0022, 3), Qualification::MsrEntry(3));
    assert_eq!(qualification(0x8000_0029, 0), Qualification::None);
    assert_eq!(qualification(0x8000_0001, 7), Qualification::Other(7));
}

#[test]
fn instruction_information() {
    let decode = |reason, raw| Instruction::decode(ExitReason(reason), raw);
    // VMREAD RAX into memory at SS:[RBP + RCX*8], 64-bit addresses: scaling 3, address size 2, segment 2, index 1,
    // base 5, encoding register 3.
    let memory = MemoryOperand {
        segment: SegmentRegister::SS,
        base: Some(Gpr::RBP),
        index: Some((Gpr::RCX, 3)),
        address_bits: Some(64),
    };
    let raw = 3 | 2 << 7 | 2 << 15 | 1 << 18 | 5 << 23 | 3 << 28;
    assert_eq!(
        decode(23, raw),
        Instruction::Vmcs {
            value: Operand::Memory(memory),
            encoding: Gpr::RBX
        }
    );
    // VMWRITE from R10 with the encoding in RDX.
    let raw = 10 << 3 | 1 << 10 | 2 << 28;
    let value = Operand::Register(Gpr::R10);
    assert_eq!(
        decode(25, raw),
        Instruction::Vmcs {
            value,
            encoding: Gpr::RDX
        }
    );
    // INVEPT with neither base nor index; type in R15.
    let raw = 2 << 7 | 3 << 15 | 1 << 22 | 1 << 27 | 15 << 28;
    let plain = MemoryOperand {
        segment: SegmentRegister::DS,
        base: None,
        index: None,
        address_bits: Some(64),
    };
    assert_eq!(
        decode(50, raw),
        Instruction::Invalidate {
            descriptor: plain,
            kind: Gpr::R15
        }
    );
    assert_eq!(decode(21, raw), Instruction::Memory(plain));
    // LIDT, 32-bit operand.
    let Instruction::DescriptorTable {
        instruction,
        operand,
        is_32_bit,
    } = decode(46, raw & 0x0fff_ffff | 3 << 28 | 1 << 11)
    else {
        panic!()
    };
    assert_eq!(
        (instruction, operand, is_32_bit),
        (DescriptorTable::Lidt, plain, true)
    );
    // LTR AX.
    let raw = 1 << 10 | 3 << 28;
    let operand = Operand::Register(Gpr::RAX);
    assert_eq!(
        decode(47, raw),
        Instruction::SystemSegment {
            instruction: SystemSegment::Ltr,
            operand
        }
    );
    // RDSEED R8D; TPAUSE ECX; OUTSB with FS.
    assert_eq!(
        decode(61, 8 << 3 | 1 << 11),
        Instruction::Random {
            destination: Gpr::R8,
            operand_bits: Some(32)
        }
    );
    assert_eq!(
        decode(57, 3 << 11),
        Instruction::Random {
            destination: Gpr::RAX,
            operand_bits: None
        }
    );
    assert_eq!(decode(68, 1 << 3), Instruction::Wait { source: Gpr::RCX });
    assert_eq!(
        decode(30, 1 << 7 | 4 << 15),
        Instruction::StringIo {
            address_bits: Some(32),
            segment: SegmentRegister::FS
        }
    );
    assert_eq!(
        decode(69, 5 << 3 | 6 << 28),
        Instruction::LoadKey {
            first: 5,
            second: 6
        }
    );
    assert_eq!(decode(10, 7), Instruction::Other(7));
    assert_eq!(decode(0x8000_0021, 7), Instruction::Other(7));
    assert_eq!(
        format!("{:?} {:?}", SegmentRegister(6), Gpr(3)),
        "SegmentRegister 6 RBX"
    );
}

#[test]
fn an_exit_from_a_vmcs() {
    let mut vmcs = Vmcs::new();
    for (field, value) in [
        (0x4402, 0),
        (0x4404, 0x8000_0b0e),
        (0x4406, 2),
        (0x4408, 0x8000_0030),
        (0x6400, 0xffff_8000_0000_0000),
        (0x440c, 3),
    ] {
        vmcs.set(crate::Encoding(field), value).unwrap();
    }
    let exit = ExitInformation::read(&vmcs).unwrap();
    assert_eq!(
        exit.qualification(),
        Qualification::PageFault(0xffff_8000_0000_0000)
    );
    assert_eq!((exit.error_code, exit.instruction_length), (2, 3));
    assert_eq!(
        exit.to_string(),
        "exception or non-maskable interrupt (NMI) (0x0), PageFault(18446603336221196288), hardware exception, \
         vector 14 (#PF), with error code, during delivery of external interrupt, vector 48"
    );
    assert!(ExitInformation::read(&crate::store::Snapshot::new()).is_none());
    let _ = f::EXIT_REASON;
}

#[test]
fn every_reason_and_error_decodes() {
    for number in (0..=0xffff).flat_map(|n: u32| [n, n | 1 << 31]) {
        let reason = ExitReason(number);
        for raw in [0, u64::MAX, 0x8000_0000_0000_0001] {
            let _ = format!(
                "{:?}",
                Qualification::decode(reason, raw, Event(raw as u32))
            );
            let _ = format!("{:?}", Instruction::decode(reason, raw as u32));
        }
    }
    assert_eq!(
        InstructionError(7).to_string(),
        "VM entry with invalid control field(s)"
    );
    assert_eq!(InstructionError(14).to_string(), "VM-instruction error 14");
    assert_eq!(InstructionError::ALL.len(), 25);
    assert!(
        InstructionError::ALL
            .iter()
            .all(|error| error.text().is_some())
    );
}
