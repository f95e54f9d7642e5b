// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each instruction invalidates, against a table made from the manual: SDM 3A, "Operations that Invalidate TLBs and
//! Paging-Structure Caches", and SDM 2A, "INVPCID".

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing, Instruction, Outcome};
use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers, cr0, cr4, efer};
use hvkit_shadow_paging::x86::InvalidateKind;

const X: u64 = 0x40_0000;
const Y: u64 = 0x40_1000;
/// In a table that both spaces share, with G set.
const GLOBAL: u64 = 0x8000_0000;

/// A page of one of the two spaces: PCID and linear address.
type Spot = (u64, u64);

const SPOTS: [Spot; 6] = [(1, X), (1, Y), (1, GLOBAL), (2, X), (2, Y), (2, GLOBAL)];

/// Each instruction, executed with PCID 1, and what must be gone after it. What the manual lets a processor forget besides
/// is not in the table.
fn manual() -> Vec<(Instruction, Vec<Spot>)> {
    use InvalidateKind::{Address, All, AllWithGlobal, Context};
    let invpcid = Instruction::Invpcid;
    let all = SPOTS.to_vec();
    let not_global: Vec<Spot> = SPOTS
        .iter()
        .copied()
        .filter(|spot| spot.1 != GLOBAL)
        .collect();
    vec![
        // "Invalidates any TLB entries that are for a page number corresponding to the linear address and that are
        // associated with the current PCID. It also invalidates any global TLB entries with that page number, regardless
        // of PCID."
        (Instruction::Invlpg(X), vec![(1, X)]),
        (Instruction::Invlpg(GLOBAL), vec![(1, GLOBAL), (2, GLOBAL)]),
        // "Individual-address: mappings, except global translations, for the linear address and PCID specified."
        (invpcid(Address(X)), vec![(1, X), (2, X)]),
        (invpcid(Address(Y)), vec![(1, Y), (2, Y)]),
        // "Single-context: all mappings, except global translations, associated with the PCID." The kind does not carry the
        // PCID, so both must be gone.
        (invpcid(Context), not_global.clone()),
        // "All-context, including global translations"; "All-context: except global translations".
        (invpcid(AllWithGlobal), all.clone()),
        (invpcid(All), not_global),
        // "CR4.PCIDE = 1 and bit 63 of the source is 0: all TLB entries associated with the PCID specified in bits 11:0,
        // except those for global pages." With bit 63 set: none are required to go.
        (Instruction::Cr3(0x1001), vec![(1, X), (1, Y)]),
        (Instruction::Cr3(0x1001 | 1 << 63), vec![]),
        // "MOV to CR4: all TLB entries (including global entries) for all PCIDs if it changes the value of CR4.PGE."
        (Instruction::Cr4(cr4::PAE | cr4::PCIDE), all),
    ]
}

fn start() -> Board {
    let mut board = Board::new(64, Features::all(40));
    // Two spaces, a kernel page for the window and the shared table.
    for (root, number) in [(0x1000u64, 0u64), (0x2000, 1)] {
        let base = 0x1_0000 + number * 0x4000;
        board.set(root, Width::Eight, base | 0x67);
        board.set(base, Width::Eight, (base + 0x1000) | 0x67);
        // The window: the first 2 MiB onto themselves; then the table of X and Y.
        board.set(base + 0x1000, Width::Eight, 0xe3);
        board.set(base + 0x1010, Width::Eight, (base + 0x2000) | 0x67);
        board.set(base + 16, Width::Eight, 0x3_0067);
    }
    board.set(0x3_0000, Width::Eight, 0x3_1067);
    for (i, &(pcid, linear)) in SPOTS.iter().enumerate() {
        board.set(slot(pcid, linear), Width::Eight, entry(linear, i as u64));
    }
    for page in 0..16u64 {
        board.set(0x40_0000 + page * 0x1000, Width::Eight, page);
    }
    board.start(Registers {
        cr0: cr0::PG | cr0::PE,
        cr3: 0x1001,
        cr4: cr4::PAE | cr4::PCIDE | cr4::PGE,
        efer: efer::LME,
        ..Registers::default()
    });
    board
}

/// Where the last entry of a spot is.
fn slot(pcid: u64, linear: u64) -> u64 {
    if linear == GLOBAL {
        0x3_1000
    } else {
        0x1_2000 + (pcid - 1) * 0x4000 + (linear >> 12 & 511) * 8
    }
}

fn entry(linear: u64, page: u64) -> u64 {
    let global = if linear == GLOBAL { 0x100 } else { 0 };
    (0x40_0000 + page * 0x1000) | 0x67 | global
}

fn look(board: &mut Board, (pcid, linear): Spot) -> u64 {
    enter(board, pcid);
    match board.access(
        linear,
        Access::new(Kind::Read, Privilege::User),
        Doing::LoadEight,
    ) {
        Outcome::Done(page) => page,
        other => panic!("{other:?}"),
    }
}

/// To another space, forgetting nothing.
fn enter(board: &mut Board, pcid: u64) {
    let root = pcid << 12;
    assert!(board.intercept(Instruction::Cr3(root | pcid | 1 << 63)));
}

#[test]
fn each_instruction_invalidates_what_the_manual_says() {
    let mut stale = 0;
    for (instruction, gone) in manual() {
        let mut board = start();
        for spot in SPOTS {
            look(&mut board, spot);
        }
        // The guest's kernel gives every page another frame and invalidates nothing. The table of the global page is one.
        enter(&mut board, 1);
        for (i, &(pcid, linear)) in SPOTS.iter().enumerate() {
            let written = board.edit(
                slot(pcid, linear),
                Width::Eight,
                entry(linear, 8 + i as u64),
            );
            assert!(matches!(written, Outcome::Done(_)));
        }
        enter(&mut board, 1);
        assert!(board.intercept(instruction), "{instruction:x?}");
        for spot in SPOTS {
            let page = look(&mut board, spot);
            let number = |first: u64| {
                // The last one written for the shared entry.
                let at = SPOTS
                    .iter()
                    .rposition(|&(pcid, linear)| slot(pcid, linear) == slot(spot.0, spot.1));
                first + at.unwrap() as u64
            };
            if gone.contains(&spot) {
                assert_eq!(page, number(8), "{instruction:x?} {spot:x?}");
            } else {
                assert!(
                    page == number(8) || page == number(0),
                    "{instruction:x?} {spot:x?}: {page}"
                );
                stale += u64::from(page == number(0));
            }
        }
        board.audit();
    }
    assert!(
        stale > 0,
        "the TLB keeps what it may, or the table would say nothing"
    );
}

/// A root that was written while it was guarded (through a translation older than that) and not in use. "Individual-address",
/// "single-context", "all-context": what comes from its old entries is gone, though bit 63 of MOV to CR3 keeps the rest.
#[test]
fn a_root_that_is_not_in_use_is_invalidated_too() {
    use InvalidateKind::{Address, All, AllWithGlobal, Context};
    for kind in [Address(X), Context, AllWithGlobal, All] {
        let mut board = start();
        // A leaf that can write the second root, before it is one.
        let Outcome::Done(entry) = board.edit(0x2ff8, Width::Eight, 0) else {
            panic!("the window is there");
        };
        assert_eq!(entry, 0);
        assert!(board.intercept(Instruction::Cr3(0x2002)));
        assert_eq!(look(&mut board, (2, X)), 3);
        enter(&mut board, 1);
        // Another processor's write through that leaf, which nobody sees: the first space's tables for the second.
        let first = board.get(0x1000, Width::Eight);
        board.set(0x2000, Width::Eight, first);
        assert!(board.intercept(Instruction::Invpcid(kind)));
        assert_eq!(look(&mut board, (2, X)), 0, "{kind:?}");
        board.audit();
    }
}

/// INVLPG "invalidates any TLB entries that are for a page number corresponding to the linear address", and a 4-MByte page has
/// one number, though we make two entries of it.
#[test]
fn invlpg_in_a_page_of_4_mib_is_for_all_of_it() {
    const DIRECTORY: u64 = 0x1000;
    for (named, other) in [(0x40_0000, 0x60_0000), (0x7f_f000, 0x40_0000)] {
        let mut board = Board::new(64, Features::all(40));
        for (at, value) in [
            (0x80_0000, 1),
            (0xa0_0000, 2),
            (0xc0_0000, 3),
            (0xe0_0000, 4),
        ] {
            board.set(at, Width::Four, value);
        }
        board.start(Registers {
            cr0: cr0::PE,
            cr3: DIRECTORY,
            cr4: cr4::PSE,
            ..Registers::default()
        });
        // Written without paging, so that a leaf can write it before it is a table.
        board.edit(DIRECTORY + 4, Width::Four, 0x80_00e7);
        assert!(board.intercept(Instruction::Cr0(cr0::PG | cr0::PE)));
        let load = |board: &mut Board, at| {
            board.access(at, Access::new(Kind::Read, Privilege::User), Doing::Load)
        };
        assert_eq!(load(&mut board, 0x40_0000), Outcome::Done(1));
        assert_eq!(load(&mut board, 0x60_0000), Outcome::Done(2));
        board.set(DIRECTORY + 4, Width::Four, 0xc0_00e7);
        assert!(board.intercept(Instruction::Invlpg(named)));
        let half = if other == 0x40_0000 { 3 } else { 4 };
        assert_eq!(load(&mut board, other), Outcome::Done(half));
        board.audit();
    }
}

#[test]
fn invpcid_takes_the_operands_that_the_manual_allows() {
    use InvalidateKind as K;
    const PCIDE: u64 = cr4::PCIDE;
    let high = 0xffff_8000_0000_0000;
    // "#GP(0): if an invalid type is specified in the register operand, i.e., INVPCID_TYPE > 3; if bits 63:12 of
    // INVPCID_DESC are not all zero; if INVPCID_TYPE is either 0 or 1 and INVPCID_DESC[11:0] is not zero and CR4.PCIDE = 0;
    // if INVPCID_TYPE is 0 and the linear address in INVPCID_DESC[127:64] is not canonical."
    let table = [
        (0, [0, 0x5000], 0, Some(K::Address(0x5000))),
        (0, [0xfff, high], PCIDE, Some(K::Address(high))),
        (0, [1, 0x5000], 0, None),
        (0, [0x1000, 0x5000], PCIDE, None),
        (0, [0, high - 1], PCIDE, None),
        (0, [0, 1 << 47], PCIDE, None),
        (
            0,
            [0, 1 << 47],
            PCIDE | cr4::LA57,
            Some(K::Address(1 << 47)),
        ),
        (0, [0, 1 << 56], PCIDE | cr4::LA57, None),
        (1, [7, high - 1], PCIDE, Some(K::Context)),
        (1, [7, 0], 0, None),
        (1, [0, 0], 0, Some(K::Context)),
        (1, [1 << 63, 0], PCIDE, None),
        (2, [7, 1 << 47], 0, Some(K::AllWithGlobal)),
        (2, [0x1000, 0], 0, None),
        (3, [7, 1 << 47], 0, Some(K::All)),
        (3, [0x1000, 0], 0, None),
        (4, [0, 0], PCIDE, None),
        (1 << 32, [0, 0], PCIDE, None),
    ];
    for (kind, descriptor, cr4, expected) in table {
        assert_eq!(
            K::decode(kind, descriptor, cr4),
            expected,
            "{kind} {descriptor:x?} {cr4:#x}"
        );
    }
}

/// SDM 3A, "Use of CR3 with Ordinary 4-KByte Paging and with 32-bit paging": bits 39:32 of a 4-MByte page's address are in
/// bits 20:13 of its entry.
#[test]
fn a_page_of_pse_36_is_where_its_entry_says() {
    use hvkit_shadow_paging::fake::{FakeHost, FakeProcessor};
    use hvkit_shadow_paging::mmu::{Machine, Mmu, Tuning, Verdict};
    use hvkit_shadow_paging::x86::{Processor, Vcpu};

    let host = FakeHost::new(0x3_0000_0000);
    let set = |at: u64, value| host.store(host.host(at).unwrap(), Width::Four, value);
    // 0x0040_0000 is at 0x2_8040_0000, 0x0080_0000 at 0x1_0000_0000.
    set(0x1004, 0x8040_0000 | 2 << 13 | 0xe7);
    set(0x1008, 1 << 13 | 0xe7);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let features = Features::all(40);
    let registers = Registers {
        cr0: cr0::PG | cr0::PE,
        cr3: 0x1000,
        cr4: cr4::PSE,
        ..Registers::default()
    };
    let mut mmu = Mmu::new(&host, &host, 32, Tuning::default()).unwrap();
    let like = Processor::like(&features);
    let (vcpu, _) = Vcpu::new(&mut mmu, machine, registers, features, like).unwrap();
    let mut processor = FakeProcessor::default();
    let write = Access::new(Kind::Write, Privilege::User);
    for (linear, physical) in [
        (0x40_0123, 0x2_8040_0123),
        (0x7f_f000, 0x2_807f_f000),
        (0x80_0010, 0x1_0000_0010),
    ] {
        let answer = mmu.fault(vcpu.space(), machine, linear, write).unwrap();
        assert!(matches!(answer.verdict, Verdict::Repaired(_)));
        mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
        let there = processor.translate(&host, &vcpu.hardware(), linear, write);
        assert_eq!(there, Ok(host.host(physical).unwrap()));
    }
    vcpu.retire(&mut mmu);
}
