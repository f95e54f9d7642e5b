// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the real processor is set up with, as words, and what its faults mean.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{FakeHost, GuestView};
use hvkit_shadow_paging::guest::{
    Access, ErrorCode, Features, Kind, Privilege, Registers, cr0, cr4, efer,
};
use hvkit_shadow_paging::mmu::{Machine, Mmu, NewError, Tuning};
use hvkit_shadow_paging::x86::{Hardware, Linear, PageFault, Processor, ShadowLayout, Vcpu};

fn hardware(registers: Registers) -> Hardware {
    let host = FakeHost::new(0x10_0000);
    let mut mmu: Mmu<Linear, _, _> = Mmu::new(&host, &host, 16, Tuning::default()).unwrap();
    let features = Features::all(40);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let made = Vcpu::new(
        &mut mmu,
        machine,
        registers,
        features,
        Processor::like(&features),
    );
    let (vcpu, owed) = made.unwrap();
    assert!(owed.is_empty());
    let hardware = vcpu.hardware();
    assert!(host.in_use(hardware.cr3));
    vcpu.retire(&mut mmu);
    hardware
}

#[test]
fn the_real_processors_registers_by_the_guests() {
    let both = cr4::SMEP | cr4::SMAP;
    // PG, WP and PE; PAE; NXE.
    let unpaged = hardware(Registers {
        cr0: cr0::PE,
        cr4: both,
        ..Registers::default()
    });
    assert_eq!(
        (unpaged.cr0, unpaged.cr4, unpaged.efer),
        (0x8001_0001, 0x20, 0x800)
    );
    assert_eq!(unpaged.layout, ShadowLayout::Pae);
    let thirty_two = hardware(Registers {
        cr0: cr0::PE | cr0::PG,
        cr4: both,
        ..Registers::default()
    });
    assert_eq!(
        (thirty_two.cr0, thirty_two.cr4, thirty_two.efer),
        (0x8001_0001, 0x30_0020, 0x800)
    );
    let four = hardware(Registers {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE | cr4::PCIDE,
        efer: efer::LME,
        ..Registers::default()
    });
    // LMA and LME too; no PCIDE.
    assert_eq!((four.cr0, four.cr4, four.efer), (0x8001_0001, 0x20, 0xd00));
    assert_eq!(four.layout, ShadowLayout::FourLevel);
    let five = hardware(Registers {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE | cr4::LA57,
        efer: efer::LME,
        ..Registers::default()
    });
    assert_eq!((five.cr4, five.layout), (0x1020, ShadowLayout::FiveLevel));
}

/// Found by Linux, which toggles CR4.PGE to empty its TLB: the hypervisor intercepted what the real registers differ in, and
/// the MMU was not told.
#[test]
fn every_bit_that_paging_reads_or_that_empties_the_tlb_exits() {
    let bits = |bits: &[u32]| bits.iter().fold(0u64, |all, bit| all | 1 << bit);
    // SDM Vol. 3A, "Paging" and "PDPTE Registers": PE, WP, NW, CD, PG.
    assert_eq!(Hardware::CR0_EXITS, bits(&[0, 16, 29, 30, 31]));
    // And "Operations that Invalidate TLBs and Paging-Structure Caches": PSE, PAE, PGE, LA57, PCIDE, SMEP, SMAP, PKE, CET,
    // PKS.
    assert_eq!(
        Hardware::CR4_EXITS,
        bits(&[4, 5, 7, 12, 17, 20, 21, 22, 23, 24])
    );
    // What is forced must be seen.
    assert_eq!(Hardware::CR0_MASK & !Hardware::CR0_EXITS, 0);
    assert_eq!(Hardware::CR4_MASK & !Hardware::CR4_EXITS, 0);
}

/// A VMM that is not told of a new root leaves the processor on the old one.
/// A processor in 4-level paging, whose tables begin at 0x1000.
fn four_levels<'a>(
    mmu: &mut Mmu<Linear, &'a FakeHost, &'a FakeHost>,
    machine: Machine<'_, GuestView<'a>, FakeHost>,
) -> Vcpu {
    let features = Features::all(40);
    let registers = Registers {
        cr0: cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME,
        ..Registers::default()
    };
    let like = Processor::like(&features);
    let (vcpu, owed) = Vcpu::new(mmu, machine, registers, features, like).unwrap();
    assert!(owed.is_empty());
    vcpu
}

#[test]
fn a_change_of_the_real_root_is_told_and_nothing_else_is() {
    let host = FakeHost::new(0x10_0000);
    let mut mmu: Mmu<Linear, _, _> = Mmu::new(&host, &host, 32, Tuning::default()).unwrap();
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut vcpu = four_levels(&mut mmu, machine);
    let settle = |mmu: &mut Mmu<_, _, _>, owed| mmu.settle(owed, |_| Ok::<(), ()>(())).unwrap();
    for (cr3, changes) in [
        (0x1000, false),
        (0x2000, true),
        (0x2000, false),
        (0x1000, true),
    ] {
        let before = vcpu.hardware().cr3;
        let control = vcpu.write_cr3(&mut mmu, machine, cr3).unwrap();
        assert_eq!(control.root_changed, changes, "{cr3:#x}");
        assert_eq!(vcpu.hardware().cr3 != before, changes, "{cr3:#x}");
        settle(&mut mmu, control.owed);
    }
    // PGE changes no table's meaning, SMEP does: other shadows.
    for (bits, changes) in [
        (cr4::PGE, false),
        (cr4::SMEP, true),
        (cr4::SMEP, false),
        (0, true),
    ] {
        let before = vcpu.hardware().cr3;
        let control = vcpu.write_cr4(&mut mmu, machine, cr4::PAE | bits).unwrap();
        assert_eq!(control.root_changed, changes, "{bits:#x}");
        assert_eq!(vcpu.hardware().cr3 != before, changes, "{bits:#x}");
        settle(&mut mmu, control.owed);
    }
    vcpu.retire(&mut mmu);
}

#[test]
fn a_fault_says_what_was_accessed() {
    let access = |code, cpl, rflags| {
        PageFault {
            code: ErrorCode(code),
            linear: 0,
            cpl,
            rflags,
        }
        .access()
    };
    let expect = |kind, privilege| Access::new(kind, privilege);
    assert_eq!(access(0b0_0110, 3, 2), expect(Kind::Write, Privilege::User));
    assert_eq!(access(0b1_0101, 3, 2), expect(Kind::Fetch, Privilege::User));
    assert_eq!(
        access(0b0_0010, 0, 2),
        expect(Kind::Write, Privilege::Supervisor)
    );
    assert_eq!(
        access(0b0_0001, 0, 0x4_0002),
        expect(Kind::Read, Privilege::SupervisorAc)
    );
    assert_eq!(
        access(0b0_0000, 3, 0x4_0002),
        expect(Kind::Read, Privilege::Implicit),
        "a descriptor"
    );
}

#[test]
fn a_budget_that_cannot_be_is_refused() {
    let host = FakeHost::new(0x1000);
    for pages in [0, 15, 1 << 22, u32::MAX] {
        let made: Result<Mmu<Linear, _, _>, _> = Mmu::new(&host, &host, pages, Tuning::default());
        assert_eq!(made.unwrap_err(), NewError::Budget { pages });
    }
}

/// Bits 3, 4 and 7 of an entry for 4 KiB are the index into the page attribute table: PWT, PCD and PAT ("Paging and Memory
/// Typing"). The real processor's table is the guest's.
#[test]
fn a_page_has_the_memory_type_that_the_guest_gives_it() {
    for pat in 0..8 {
        let bits = (pat & 3) << 3 | (pat >> 2) << 7;
        let host = FakeHost::new(0x10_0000);
        let mut mmu: Mmu<Linear, _, _> = Mmu::new(&host, &host, 32, Tuning::default()).unwrap();
        let view = host.guest();
        let machine = Machine {
            memory: &view,
            map: &host,
        };
        let guest = |at, word| host.store(host.host(at).unwrap(), Width::Eight, word);
        for (at, word) in [
            (0x1000, 0x2067),
            (0x2000, 0x3067),
            (0x3000, 0x4067),
            (0x4000, 0x5067 | bits),
        ] {
            guest(at, word);
        }
        let vcpu = four_levels(&mut mmu, machine);
        let read = Access::new(Kind::Read, Privilege::User);
        let answer = mmu.fault(vcpu.space(), machine, 0, read).unwrap();
        mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
        let mut word = vcpu.hardware().cr3;
        for _ in 0..4 {
            word = host.load(word & 0xf_ffff_ffff_f000, Width::Eight);
        }
        assert_eq!(word & 0xf_ffff_ffff_f000, host.host(0x5000).unwrap());
        assert_eq!(word & (3 << 3 | 1 << 7), bits, "index {pat}");
        vcpu.retire(&mut mmu);
    }
}
