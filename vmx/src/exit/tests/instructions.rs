// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Instructions that exit.

use super::*;

#[test]
fn cpuid_sets_the_four_registers_and_clears_their_high_halves() {
    let mut vmcs = stopped(&[]);
    let mut registers = Registers::new()
        .with(Gpr::RAX, 0xffff_ffff_8000_0001)
        .with(Gpr::RCX, 7)
        .with(Gpr::RBX, u64::MAX);
    answer(&mut vmcs, &mut registers, 10, |exit| match exit {
        Exit::Cpuid(exit) => {
            assert_eq!((exit.leaf, exit.subleaf), (0x8000_0001, 7));
            exit.answer([1, 2, 3, 4]);
        }
        other => panic!("{other:?}"),
    });
    let read = [Gpr::RAX, Gpr::RBX, Gpr::RCX, Gpr::RDX].map(|r| registers[r]);
    assert_eq!(read, [1, 2, 3, 4]);
    assert_eq!(injected(&vmcs), (0, true));
    assert_eq!(field(&vmcs, RIP), 0x1002);
}

#[test]
fn skipping_ends_blocking_and_steps() {
    // Blocking by STI, MOV SS and NMI; RFLAGS.TF.
    let mut vmcs = stopped(&[(INTERRUPTIBILITY, 0b1011), (0x6820, 0x102)]);
    let mut registers = Registers::new();
    answer(&mut vmcs, &mut registers, 12, |exit| match exit {
        Exit::Hlt(exit) => exit.skip(),
        other => panic!("{other:?}"),
    });
    assert_eq!(field(&vmcs, INTERRUPTIBILITY), 0b1000);
    assert_eq!(field(&vmcs, 0x6822), 1 << 14, "BS is pending");
    // With DEBUGCTL.BTF no step is pending.
    let mut vmcs = stopped(&[(0x6820, 0x102), (0x2802, 2)]);
    answer(&mut vmcs, &mut registers, 12, |mut exit| {
        exit.guest().skip();
    });
    assert_eq!(field(&vmcs, 0x6822), 0);
}

#[test]
fn rip_wraps_where_the_code_is_not_64_bit() {
    for (entry, cs, next) in [
        (1 << 9, 0xa09b, 0x1_0000_0001),
        (1 << 9, 0xc09b, 1),
        (0, 0xa09b, 1),
    ] {
        let mut vmcs = stopped(&[(RIP, 0xffff_ffff), (0x4012, entry), (0x4816, cs)]);
        answer(&mut vmcs, &mut Registers::new(), 12, |mut exit| {
            exit.guest().skip();
        });
        assert_eq!(field(&vmcs, RIP), next);
    }
}

#[test]
fn msrs_are_read_written_or_refused() {
    let begin = || {
        Registers::new()
            .with(Gpr::RCX, 0xffff_ffff_c000_0080)
            .with(Gpr::RAX, 0xffff_ffff_0000_0d01)
            .with(Gpr::RDX, 0xffff_ffff_0000_0001)
    };
    let (mut vmcs, mut registers) = (stopped(&[]), begin());
    answer(&mut vmcs, &mut registers, 31, |exit| match exit {
        Exit::ReadMsr(exit) => {
            assert_eq!(exit.index, 0xc000_0080);
            exit.answer(0x1122_3344_5566_7788);
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(
        (registers[Gpr::RDX], registers[Gpr::RAX]),
        (0x1122_3344, 0x5566_7788)
    );
    assert_eq!(injected(&vmcs), (0, true));

    let (mut vmcs, mut registers) = (stopped(&[]), begin());
    answer(&mut vmcs, &mut registers, 32, |exit| match exit {
        Exit::WriteMsr(exit) => {
            assert_eq!((exit.index, exit.value), (0xc000_0080, 0x1_0000_0d01));
            exit.done();
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(injected(&vmcs), (0, true));

    for reason in [31, 32, 55] {
        let (mut vmcs, mut registers) = (stopped(&[(INJECTED_ERROR, 9)]), begin());
        answer(&mut vmcs, &mut registers, reason, |exit| match exit {
            Exit::ReadMsr(exit) => exit.fault(),
            Exit::WriteMsr(exit) => exit.fault(),
            Exit::Xsetbv(exit) => exit.fault(),
            other => panic!("{other:?}"),
        });
        assert_eq!(injected(&vmcs), (GP, false));
        assert_eq!(field(&vmcs, INJECTED_ERROR), 0);
        assert_eq!(registers, begin(), "nothing else happened");
    }
}

#[test]
fn xsetbv_and_hypercalls_have_their_registers() {
    let begin = Registers::new()
        .with(Gpr::RAX, 7)
        .with(Gpr::RBX, 1)
        .with(Gpr::RCX, 2)
        .with(Gpr::RDX, 3);
    let (mut vmcs, mut registers) = (stopped(&[]), begin);
    answer(&mut vmcs, &mut registers, 55, |exit| match exit {
        Exit::Xsetbv(exit) => {
            assert_eq!((exit.index, exit.value), (2, 3 << 32 | 7));
            exit.done();
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(injected(&vmcs), (0, true));
    let (mut vmcs, mut registers) = (stopped(&[]), begin);
    answer(&mut vmcs, &mut registers, 18, |exit| match exit {
        Exit::Hypercall(exit) => {
            assert_eq!((exit.number, exit.arguments), (7, [1, 2, 3]));
            exit.answer(42);
        }
        other => panic!("{other:?}"),
    });
    assert_eq!((registers[Gpr::RAX], registers[Gpr::RBX]), (42, 1));
    for reason in [18, 19, 20, 27, 50, 59] {
        let mut vmcs = stopped(&[]);
        answer(&mut vmcs, &mut registers, reason, |exit| match exit {
            Exit::Hypercall(exit) => exit.undefined(),
            Exit::VmxInstruction(exit) => exit.undefined(),
            other => panic!("{other:?}"),
        });
        assert_eq!(injected(&vmcs), (UD, false));
    }
}

#[test]
fn in_changes_as_much_of_rax_as_a_processor() {
    // Port 3f8H, DX; sizes 1, 2 and 4.
    for (size, bytes, rax) in [
        (0, 1, 0x1122_3344_5566_77aa),
        (1, 2, 0x1122_3344_5566_99aa),
        (3, 4, 0x0000_0000_bbcc_99aa),
    ] {
        let mut vmcs = stopped(&[(QUALIFICATION, 0x03f8_0008 | size)]);
        let mut registers = Registers::new().with(Gpr::RAX, 0x1122_3344_5566_7788);
        answer(&mut vmcs, &mut registers, 30, |exit| match exit {
            Exit::Io(exit) => {
                assert_eq!((exit.port, exit.bytes), (0x3f8, bytes));
                assert_eq!(exit.direction, Direction::In);
                exit.answer(0xbbcc_99aa);
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(registers[Gpr::RAX], rax);
        assert_eq!(injected(&vmcs), (0, true));
    }
}

#[test]
fn out_has_its_value_and_changes_nothing() {
    for (size, value) in [(0, 0x88), (1, 0x7788), (3, 0x5566_7788)] {
        let mut vmcs = stopped(&[(QUALIFICATION, 0x0080_0040 | size)]);
        let mut registers = Registers::new().with(Gpr::RAX, 0x1122_3344_5566_7788);
        let before = registers;
        answer(&mut vmcs, &mut registers, 30, |exit| match exit {
            Exit::Io(exit) => {
                assert_eq!((exit.port, exit.direction), (0x80, Direction::Out(value)));
                assert!(exit.access.is_immediate());
                exit.done();
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(registers, before);
    }
    // REP INSB: port 1f0H, with the guest-linear address of the operand.
    let mut vmcs = stopped(&[(QUALIFICATION, 0x01f0_0038), (0x640a, 0x7000)]);
    answer(&mut vmcs, &mut Registers::new(), 30, |exit| match exit {
        Exit::Io(exit) => {
            let string = Direction::String {
                is_in: true,
                linear: 0x7000,
            };
            assert_eq!(exit.direction, string);
            exit.fault();
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(injected(&vmcs), (GP, false));
}

#[test]
fn cr0_writes_keep_what_must_be_one_and_show_what_was_written() {
    // MOV CR0, RBX; the guest clears NE and sets PG, with LME: IA-32e mode begins.
    let mut vmcs = stopped(&[
        (QUALIFICATION, 0x300),
        (0x4012, 0),
        (0x6800, 0x21),
        (0x2806, 0x100),
    ]);
    let mut registers = Registers::new().with(Gpr::RBX, 0xffff_ffff_8000_0001);
    answer(&mut vmcs, &mut registers, 28, |exit| match exit {
        Exit::ControlRegister(exit) => {
            // Not in 64-bit mode: 32 bits are written.
            let write = CrAccess::Write {
                number: 0,
                value: 0x8000_0001,
            };
            assert_eq!(exit.access, write);
            assert_eq!(exit.new_cr0(), Some(0x8000_0001));
            exit.allow(0x20);
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(
        (field(&vmcs, 0x6800), field(&vmcs, 0x6004)),
        (0x8000_0021, 0x8000_0001)
    );
    assert_eq!(
        (field(&vmcs, 0x2806), field(&vmcs, 0x4012)),
        (0x500, 1 << 9)
    );
    // And back.
    registers[Gpr::RBX] = 1;
    answer(&mut vmcs, &mut registers, 28, |exit| match exit {
        Exit::ControlRegister(exit) => exit.allow(0x20),
        other => panic!("{other:?}"),
    });
    assert_eq!((field(&vmcs, 0x2806), field(&vmcs, 0x4012)), (0x100, 0));
    assert_eq!(injected(&vmcs), (0, true));
}

#[test]
fn clts_and_lmsw_change_their_bits_of_what_the_guest_sees() {
    // Mask NE and TS: the guest sees the shadow's NE (0) and TS (1), and its own other bits.
    let fields = [
        (0x6000, 0x28),
        (0x6004, 0x8),
        (0x6800, 0x8000_0031),
        (QUALIFICATION, 0x20),
    ];
    let mut vmcs = stopped(&fields);
    answer(&mut vmcs, &mut Registers::new(), 28, |exit| match exit {
        Exit::ControlRegister(exit) => {
            assert_eq!(
                (exit.access, exit.new_cr0()),
                (CrAccess::Clts, Some(0x8000_0011))
            );
            exit.allow(0x20);
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(
        (field(&vmcs, 0x6800), field(&vmcs, 0x6004)),
        (0x8000_0031, 0x8000_0011)
    );
    // LMSW of fff6H: PE stays set, MP and EM are set, TS is cleared, NE is not its to change.
    let mut vmcs = stopped(&fields);
    vmcs.set(Encoding(QUALIFICATION), 0xfff6_0030).unwrap();
    answer(&mut vmcs, &mut Registers::new(), 28, |exit| match exit {
        Exit::ControlRegister(exit) => {
            assert_eq!(exit.access, CrAccess::Lmsw(0xfff6));
            assert_eq!(exit.new_cr0(), Some(0x8000_0017));
            exit.fault();
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(injected(&vmcs), (GP, false));
}

#[test]
fn cr3_cr4_and_cr8() {
    let with = |qualification: u64, value: u64, done: fn(ControlRegisterExit<'_, Vmcs>)| {
        let mut vmcs = stopped(&[
            (QUALIFICATION, qualification),
            (0x6802, 0x5000),
            (0x681c, 0x9000),
        ]);
        let mut registers = Registers::new().with(Gpr::RSI, value);
        answer(&mut vmcs, &mut registers, 28, |exit| match exit {
            Exit::ControlRegister(exit) => done(exit),
            other => panic!("{other:?}"),
        });
        (vmcs, registers)
    };
    // MOV CR3, RSI with "keep translations"; MOV RSI, CR3; MOV CR4, RSI; MOV RSI, CR8; MOV RSP, CR3.
    let (vmcs, _) = with(0x603, 1 << 63 | 0x7003, |exit| exit.allow(0));
    assert_eq!(field(&vmcs, 0x6802), 0x7003);
    let (vmcs, registers) = with(0x613, 0, |exit| exit.allow(0));
    assert_eq!(
        (registers[Gpr::RSI], field(&vmcs, 0x6802)),
        (0x5000, 0x5000)
    );
    let (vmcs, _) = with(0x604, 0x620, |exit| exit.allow(0x2000));
    assert_eq!(
        (field(&vmcs, 0x6804), field(&vmcs, 0x6006)),
        (0x2620, 0x620)
    );
    let (vmcs, registers) = with(0x618, 0, |exit| exit.answer(9));
    assert_eq!((registers[Gpr::RSI], injected(&vmcs)), (9, (0, true)));
    let (vmcs, _) = with(0x413, 0, |exit| exit.allow(0));
    assert_eq!(field(&vmcs, 0x681c), 0x5000, "RSP is in the VMCS");
    let (vmcs, _) = with(0x608, 3, |exit| {
        assert_eq!(
            exit.access,
            CrAccess::Write {
                number: 8,
                value: 3
            }
        );
        exit.done();
    });
    assert_eq!(injected(&vmcs), (0, true));
}

#[test]
fn xcr0_takes_what_the_manual_lets_it() {
    let takes = |index: u64, value: u64, supported: u64| {
        let mut registers = Registers::new().with(Gpr::RCX, index);
        registers.set_edx_eax(value);
        let mut taken = None;
        answer(&mut stopped(&[]), &mut registers, 55, |exit| match exit {
            Exit::Xsetbv(exit) => taken = Some(exit.is_taken(supported)),
            other => panic!("{other:?}"),
        });
        taken.unwrap()
    };
    let all = 0xe_02ff;
    for value in [
        1, 3, 7, 0x1f, 0x1b, 0xe7, 0x203, 0x6_0003, 0x8_0003, 0xe_02e7,
    ] {
        assert!(takes(0, value, all), "{value:#x}");
        assert!(!takes(1, value, all), "there is no XCR1");
    }
    for value in [
        // Without x87; AVX without SSE; half of MPX; AVX-512 without AVX, and parts of it.
        0, 2, 5, 0xb, 0x13, 0xe3, 0x27, 0x67, 0xc7, // Half of AMX; APX with MPX.
        0x2_0003, 0x4_0003, 0x8_001b,
    ] {
        assert!(!takes(0, value, u64::MAX), "{value:#x}");
    }
    // Not there; of IA32_XSS; not known.
    assert!(!takes(0, 7, 3) && takes(0, 3, 3));
    assert!(!takes(0, 0x103, u64::MAX) && !takes(0, 1 << 20 | 3, u64::MAX));
    assert!(!takes(0, 1 << 62 | 3, u64::MAX));
}

/// MOV to CR0 from RBX: what a processor takes, and what it refuses.
#[test]
fn cr0_refuses_what_the_manual_says() {
    const LEGACY: &[(u32, u64)] = &[(0x4012, 0), (0x4816, 0xc09b)];
    let refuses = |fields: &[(u32, u64)], old: u64, efer: u64, new: u64| {
        // CR0 is the host's, whose NE is set; the guest reads the shadow.
        let mut vmcs = stopped(&[(0x6000, u64::MAX), (0x6004, old), (CR0, old | 0x20)]);
        for &(field, value) in fields.iter().chain(&[(QUALIFICATION, 0x300)]) {
            vmcs.set(Encoding(field), value).unwrap();
        }
        let mut registers = Registers::new().with(Gpr::RBX, new);
        let mut refused = None;
        answer(&mut vmcs, &mut registers, 28, |exit| match exit {
            Exit::ControlRegister(exit) => refused = Some(exit.refuses_cr0(efer)),
            other => panic!("{other:?}"),
        });
        refused.unwrap()
    };
    let legacy = |cr4: u64| [LEGACY, &[(0x6804, cr4)]].concat();
    const LME: u64 = 0x100;
    // 64-bit mode, paging on. NE and WP are free, CD too, and NW with it.
    for new in [
        0x8000_0031,
        0x8000_0011,
        0x8001_0031,
        0xc000_0031,
        0xe000_0031,
    ] {
        assert!(!refuses(&[], 0x8000_0031, LME, new), "{new:#x}");
    }
    // Bit 32; PG without PE; NW without CD; paging off in 64-bit mode, with and without NE.
    for new in [0x1_8000_0031, 0x8000_0030, 0xa000_0031, 0x31, 0x11] {
        assert!(refuses(&[], 0x8000_0031, LME, new), "{new:#x}");
    }
    // Paging off elsewhere, but not with PCIDs. The guest's CR4 is what it reads.
    assert!(!refuses(&legacy(0x20), 0x8000_0031, 0, 0x31));
    assert!(refuses(&legacy(0x2_0020), 0x8000_0031, 0, 0x31));
    let shadowed = [
        LEGACY,
        &[(0x6804, 0x20), (0x6002, 0x2_0000), (0x6006, 0x2_0000)],
    ]
    .concat();
    assert!(refuses(&shadowed, 0x8000_0031, 0, 0x31));
    // Paging on: for IA-32e mode it takes PAE, and code that is not 64-bit yet.
    assert!(!refuses(&legacy(0x20), 0x31, LME, 0x8000_0031));
    assert!(refuses(&legacy(0), 0x31, LME, 0x8000_0031));
    assert!(!refuses(&legacy(0), 0x31, 0, 0x8000_0031));
    let long = [(0x4012, 0), (0x4816, 0xa09b), (0x6804, 0x20)];
    assert!(refuses(&long, 0x31, LME, 0x8000_0031));
    // WP stays where there is CET.
    assert!(refuses(&legacy(0x80_0020), 0x8001_0031, 0, 0x8000_0031));
    assert!(!refuses(&legacy(0x80_0020), 0x8001_0031, 0, 0x8001_0011));
}
