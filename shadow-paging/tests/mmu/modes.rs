// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control registers: protection that comes and goes, modes that change, what is refused.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing, Instruction, Outcome};
use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers, cr0, cr4, efer};
use hvkit_shadow_paging::mmu::{Backing, HostMap, HostRights};

use crate::support::{
    DIRECTORY, KERNEL_WRITE, LINEAR, PAGES, ROOT, TABLE, board, load, registers, store,
};

#[test]
fn without_write_protection_supervisors_write_what_users_only_read() {
    let mut board = board();
    board.set(TABLE, Width::Eight, PAGES | 5);
    let write = |board: &mut Board, value| board.access(LINEAR, KERNEL_WRITE, Doing::Store(value));
    assert!(matches!(write(&mut board, 1), Outcome::Fault(_)));
    board.intercept(Instruction::Cr0(cr0::PG | cr0::PE));
    for value in 1..4 {
        assert_eq!(
            write(&mut board, value),
            Outcome::Done(u64::from(value) - 1)
        );
        assert_eq!(load(&mut board, LINEAR), Outcome::Done(value.into()));
        assert!(
            matches!(store(&mut board, LINEAR, 9), Outcome::Fault(_)),
            "users never"
        );
        board.audit();
    }
    assert_eq!(board.emulated, 0);
    board.intercept(Instruction::Cr0(registers().cr0));
    assert!(matches!(write(&mut board, 9), Outcome::Fault(_)));
    board.audit();
}

#[test]
fn with_smap_too_such_a_write_is_emulated() {
    let mut board = board();
    board.set(TABLE, Width::Eight, PAGES | 5);
    board.intercept(Instruction::Cr0(cr0::PG | cr0::PE));
    board.intercept(Instruction::Cr4(cr4::PAE | cr4::SMAP));
    let with_ac = Access::new(Kind::Write, Privilege::SupervisorAc);
    assert_eq!(
        board.access(LINEAR, with_ac, Doing::Store(1)),
        Outcome::Done(0)
    );
    assert_eq!(board.emulated, 1);
    assert!(matches!(
        board.access(LINEAR, KERNEL_WRITE, Doing::Store(2)),
        Outcome::Fault(_)
    ));
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(1));
    board.audit();
}

/// A guest with CR0.WP clear and CR4.SMAP set, whose user page at `LINEAR` leads to `target`, read-only.
fn with_a_write_that_no_entry_grants(target: u64) -> Board {
    let mut board = board();
    board.set(TABLE, Width::Eight, target | 5);
    board.intercept(Instruction::Cr0(cr0::PG | cr0::PE));
    board.intercept(Instruction::Cr4(cr4::PAE | cr4::SMAP));
    load(&mut board, LINEAR);
    board
}

#[test]
fn a_write_that_is_emulated_is_the_hosts_to_allow() {
    let with_ac = Access::new(Kind::Write, Privilege::SupervisorAc);
    let mut board = with_a_write_that_no_entry_grants(PAGES);
    board.log_writes(PAGES);
    let written = board.access(LINEAR, with_ac, Doing::Store(1));
    assert_eq!(written, Outcome::Done(0));
    // The host was asked, as a log of writes needs it, and allowed it.
    let Backing::Memory { rights, .. } = board.host().backing(PAGES) else {
        panic!("memory");
    };
    assert_eq!(rights, HostRights::ALL);
    assert_eq!(board.emulated, 1);
    board.audit();
}

#[test]
fn a_write_that_is_emulated_is_seen_if_a_table_is_there() {
    let with_ac = Access::new(Kind::Write, Privilege::SupervisorAc);
    for table in [DIRECTORY, TABLE] {
        let mut board = with_a_write_that_no_entry_grants(table);
        // The directory's first entry, or the table's second: either was used.
        let (at, gone) = if table == TABLE { (8, 0x1000) } else { (0, 0) };
        load(&mut board, LINEAR + gone);
        let before = board.get(table + at, Width::Eight);
        assert_eq!(
            board.access(LINEAR + at, with_ac, Doing::StoreEight(0)),
            Outcome::Done(before)
        );
        assert_eq!(board.emulated, 1);
        board.audit();
        assert!(matches!(load(&mut board, LINEAR + gone), Outcome::Fault(_)));
    }
}

#[test]
fn with_smep_a_page_that_is_lent_cannot_be_run() {
    let mut board = board();
    board.set(TABLE, Width::Eight, PAGES | 5);
    board.intercept(Instruction::Cr0(cr0::PG | cr0::PE));
    board.intercept(Instruction::Cr4(cr4::PAE | cr4::SMEP));
    assert_eq!(
        board.access(LINEAR, KERNEL_WRITE, Doing::Store(1)),
        Outcome::Done(0)
    );
    let fetch = Access::new(Kind::Fetch, Privilege::Supervisor);
    assert!(matches!(
        board.access(LINEAR, fetch, Doing::Load),
        Outcome::Fault(_)
    ));
    let fetch = Access::new(Kind::Fetch, Privilege::User);
    assert_eq!(board.access(LINEAR, fetch, Doing::Load), Outcome::Done(1));
    board.audit();
}

/// A guest comes up as one does: unpaged, 32-bit, PAE, 4-level; all at once in one MMU.
#[test]
fn a_guest_goes_through_every_mode() {
    let mut board = Board::new(64, Features::all(40));
    // Linear 4 MiB: to 0x50_0000 in 32-bit, 0x60_0000 in PAE, 0x70_0000 in 4-level paging.
    board.set(0x1004, Width::Four, 0x2007);
    board.set(0x2000, Width::Four, 0x50_0007);
    board.set(0x3000, Width::Eight, 0x4001);
    board.set(0x4010, Width::Eight, 0x60_0087); // 2 MiB at 6 MiB
    board.set(0x5000, Width::Eight, 0x6007);
    board.set(0x6000, Width::Eight, 0x7007);
    board.set(0x7010, Width::Eight, 0x8007);
    board.set(0x8000, Width::Eight, 0x70_0007);
    for (at, value) in [
        (0x40_0000, 1),
        (0x50_0000, 2),
        (0x60_0000, 3),
        (0x70_0000, 4),
    ] {
        board.set(at, Width::Four, value);
    }
    board.start(Registers {
        cr0: cr0::PE,
        ..Registers::default()
    });
    let look = |board: &mut Board| {
        let found = load(board, 0x40_0000);
        board.audit();
        found
    };
    let paged = cr0::PG | cr0::PE;
    for _ in 0..2 {
        assert_eq!(look(&mut board), Outcome::Done(1), "unpaged");
        assert!(board.intercept(Instruction::Cr3(0x1000)));
        assert!(board.intercept(Instruction::Cr0(paged)));
        assert_eq!(look(&mut board), Outcome::Done(2), "32-bit");
        assert!(board.intercept(Instruction::Cr0(cr0::PE)));
        assert_eq!(look(&mut board), Outcome::Done(1), "unpaged again");
        assert!(board.intercept(Instruction::Cr4(cr4::PAE)));
        assert!(board.intercept(Instruction::Cr3(0x3000)));
        assert!(board.intercept(Instruction::Cr0(paged)));
        assert_eq!(look(&mut board), Outcome::Done(3), "PAE");
        assert!(board.intercept(Instruction::Cr0(cr0::PE)));
        assert!(board.intercept(Instruction::Efer(efer::LME)));
        assert!(board.intercept(Instruction::Cr3(0x5000)));
        assert!(board.intercept(Instruction::Cr0(paged)));
        assert_eq!(look(&mut board), Outcome::Done(4), "4-level");
        assert!(board.intercept(Instruction::Cr0(cr0::PE)));
        assert!(board.intercept(Instruction::Efer(0)));
        assert!(board.intercept(Instruction::Cr4(0)));
    }
}

#[test]
fn what_no_processor_does_and_what_shadows_cannot_is_refused_and_changes_nothing() {
    let mut board = board();
    load(&mut board, LINEAR);
    let before = board.registers();
    for refused in [
        Instruction::Cr3(1 << 41),
        Instruction::Cr3(1 << 63 | ROOT),
        Instruction::Cr4(0),
        Instruction::Cr4(cr4::PAE | cr4::PKE),
        Instruction::Cr4(cr4::PAE | cr4::PKS),
        Instruction::Cr4(cr4::PAE | cr4::CET),
    ] {
        assert!(!board.intercept(refused), "{refused:x?}");
        assert_eq!(board.registers(), before);
    }
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
    board.audit();
}

/// SDM Vol. 2B, "MOV—Move to/from Control Registers", #GP(0); SDM Vol. 3A, "Extended Feature Enable Register": what is refused
/// because of what the registers are. Raw bits, in the manual's numbers.
#[test]
fn changes_that_no_processor_makes_are_refused_and_change_nothing() {
    use Instruction::{Cr0, Cr3, Cr4, Efer};
    const PE: u64 = 1;
    const NW: u64 = 1 << 29;
    const CD: u64 = 1 << 30;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LA57: u64 = 1 << 12;
    const PCIDE: u64 = 1 << 17;
    const LME: u64 = 1 << 8;
    let long = registers();
    let tagged = Registers {
        cr4: long.cr4 | PCIDE,
        ..long
    };
    let named = Registers {
        cr3: long.cr3 | 0x18,
        ..long
    };
    let unpaged = Registers {
        cr0: PE,
        efer: 0,
        ..long
    };
    let pae = Registers {
        efer: 0,
        cr3: 0x9000,
        ..long
    };
    // Registers, instruction, whether it is done.
    let table = [
        // PG cleared while CR4.PCIDE is set.
        (tagged, Cr0(PE), false),
        (tagged, Cr0(PG | PE), true),
        (pae, Cr0(PE), true),
        // An invalid combination: CD clear and NW set.
        (long, Cr0(long.cr0 | NW), false),
        (long, Cr0(long.cr0 | NW | CD), true),
        (long, Cr0(long.cr0 | CD), true),
        (unpaged, Cr0(PE | NW), false),
        // PCIDE set while CR3 bits 11:0 are not 0, or outside IA-32e mode.
        (named, Cr4(PAE | PCIDE), false),
        (long, Cr4(PAE | PCIDE), true),
        (pae, Cr4(PAE | PCIDE), false),
        (unpaged, Cr4(PAE | PCIDE), false),
        (tagged, Cr4(PAE), true),
        // LA57 changed in IA-32e mode.
        (long, Cr4(PAE | LA57), false),
        (unpaged, Cr4(PAE | LA57), true),
        // LME changed while paging is enabled.
        (long, Efer(0), false),
        (pae, Efer(LME), false),
        (long, Efer(LME), true),
        (unpaged, Efer(LME), true),
        // Bits 62:61 of CR3 are reserved without linear-address masking.
        (long, Cr3(ROOT | 1 << 61), false),
        (long, Cr3(ROOT | 1 << 62), false),
        (tagged, Cr3(ROOT | 1 << 61 | 1 << 63), false),
        (tagged, Cr3(ROOT | 1 << 63), true),
    ];
    for (registers, instruction, done) in table {
        let mut board = crate::support::unstarted(64);
        board.start(registers);
        assert_eq!(
            board.intercept(instruction),
            done,
            "{registers:x?} {instruction:x?}"
        );
        assert!(done || board.registers() == registers, "{instruction:x?}");
    }
}

/// 5-level paging is the real processor's to have.
#[test]
fn five_levels_take_a_processor_with_five_levels() {
    use hvkit_shadow_paging::fake::FakeHost;
    use hvkit_shadow_paging::mmu::{Machine, Mmu, Tuning};
    use hvkit_shadow_paging::x86::{ControlError, Processor, Unsupported, Vcpu};

    let host = FakeHost::new(0x100_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let features = Features::all(40);
    for five_level_paging in [false, true] {
        let processor = Processor {
            five_level_paging,
            ..Processor::like(&features)
        };
        let unpaged = Registers {
            cr0: 1,
            cr4: 1 << 5 | 1 << 12,
            efer: 1 << 8,
            ..Registers::default()
        };
        let mut mmu = Mmu::new(&host, &host, 32, Tuning::default()).unwrap();
        let (mut vcpu, _) = Vcpu::new(&mut mmu, machine, unpaged, features, processor).unwrap();
        match vcpu.write_cr0(&mut mmu, machine, 1 << 31 | 1) {
            Ok(_) => assert!(five_level_paging),
            Err(ControlError::Unsupported(why)) => {
                assert_eq!(
                    (five_level_paging, why),
                    (false, Unsupported::FiveLevelPaging)
                );
                assert_eq!(*vcpu.registers(), unpaged);
            }
            Err(other) => panic!("{other}"),
        }
        vcpu.retire(&mut mmu);
    }
}

/// A guest in PAE paging, which has read 0 at address 0; by what its memory says since then of the first PDPTE, 6 is there.
fn with_another_pdpte() -> Board {
    let mut board = Board::new(64, Features::all(40));
    board.set(0x1000, Width::Eight, 0x2001);
    board.set(0x2000, Width::Eight, 0x3007);
    board.set(0x3000, Width::Eight, 0x10_0007);
    board.set(0x4000, Width::Eight, 0x5007);
    board.set(0x5000, Width::Eight, 0x20_0007);
    board.set(0x20_0000, Width::Four, 6);
    board.start(Registers {
        cr0: cr0::PG | cr0::PE,
        cr3: 0x1000,
        cr4: cr4::PAE,
        ..Registers::default()
    });
    assert_eq!(load(&mut board, 0), Outcome::Done(0));
    board.wrote(0x1000, Width::Eight, 0x4001);
    board
}

#[test]
fn pdptes_are_those_of_the_last_load() {
    let mut board = with_another_pdpte();
    board.intercept(Instruction::InvalidateAll);
    assert_eq!(
        load(&mut board, 0),
        Outcome::Done(0),
        "the registers have not changed"
    );
    board.intercept(Instruction::Cr0(cr0::PG | cr0::PE | cr0::WP));
    assert_eq!(load(&mut board, 0), Outcome::Done(0), "nor by WP");
    board.intercept(Instruction::Cr3(0x1000));
    assert_eq!(load(&mut board, 0), Outcome::Done(6));
    board.audit();
}

/// SDM Vol. 3A, "PDPTE Registers": MOV to CR4 loads them if it changes PAE, PGE, PSE or SMEP.
#[test]
fn pdptes_are_loaded_when_certain_bits_of_cr4_change() {
    const OSFXSR: u64 = 1 << 9;
    for (bit, read) in [
        (cr4::PGE, 6),
        (cr4::PSE, 6),
        (cr4::SMEP, 6),
        (cr4::SMAP, 0),
        (OSFXSR, 0),
        (0, 0),
    ] {
        let mut board = with_another_pdpte();
        board.intercept(Instruction::Cr4(cr4::PAE | bit));
        assert_eq!(load(&mut board, 0), Outcome::Done(read), "{bit:#x}");
        board.audit();
    }
}
