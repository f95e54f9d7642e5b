// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every combination of permission bits, flags, controls and accesses, in each paging mode: the shadow
//! comes to what the guest walker says.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing, FakeHost, Outcome};
use hvkit_shadow_paging::guest::{
    Access, Features, Kind, Layout, PagingMode, Privilege, Registers, cr0, cr4, efer, probe,
};

const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Fetch];
const PRIVILEGES: [Privilege; 4] = [
    Privilege::User,
    Privilege::Supervisor,
    Privilege::SupervisorAc,
    Privilege::Implicit,
];

/// Directory entries and page-table entries: all of R/W and U/S over all of P, R/W, U/S, A, D, XD.
fn build(board: &Board, layout: Layout) -> (u64, u64, u64) {
    let (width, per_table) = match layout {
        Layout::ThirtyTwoBit => (Width::Four, 22),
        _ => (Width::Eight, 21),
    };
    let bytes = width.bytes();
    let directory = match layout {
        Layout::ThirtyTwoBit => 0x1000,
        Layout::Pae => {
            board.set(0x1000, Width::Eight, 0x4001);
            0x4000
        }
        Layout::FourLevel => {
            board.set(0x1000, Width::Eight, 0x3007);
            board.set(0x3000, Width::Eight, 0x4007);
            0x4000
        }
        Layout::FiveLevel => {
            board.set(0x1000, Width::Eight, 0x2007);
            board.set(0x2000, Width::Eight, 0x3007);
            board.set(0x3000, Width::Eight, 0x4007);
            0x4000
        }
    };
    let execute = if width == Width::Eight { 2 } else { 1 };
    let pages = 32 * execute;
    for above in 0..4u64 {
        let table = 0x8000 + above * 0x1000;
        board.set(directory + above * bytes, width, table | 1 | above << 1);
        for page in 0..pages {
            let flags = page & 7 | (page >> 3 & 3) << 5 | (page >> 5) << 63;
            board.set(table + page * bytes, width, 0x10_0000 | page << 12 | flags);
        }
    }
    (4, pages, 1 << per_table)
}

#[test]
fn every_combination() {
    let mut checked = 0u64;
    for layout in [
        Layout::ThirtyTwoBit,
        Layout::Pae,
        Layout::FourLevel,
        Layout::FiveLevel,
    ] {
        for controls in 0..16u64 {
            let (base, lme) = match layout {
                Layout::ThirtyTwoBit => (0, 0),
                Layout::Pae => (cr4::PAE, 0),
                Layout::FourLevel => (cr4::PAE, efer::LME),
                Layout::FiveLevel => (cr4::PAE | cr4::LA57, efer::LME),
            };
            let bit = |n: u64, bit: u64| if controls >> n & 1 != 0 { bit } else { 0 };
            let registers = Registers {
                cr0: cr0::PG | cr0::PE | bit(0, cr0::WP),
                cr3: 0x1000,
                cr4: base | bit(1, cr4::SMEP) | bit(2, cr4::SMAP),
                efer: lme | bit(3, efer::NXE),
                ..Registers::default()
            };
            checked += world(layout, registers);
        }
    }
    assert_eq!(checked, 16 * 12 * 4 * (32 + 3 * 64));
}

/// All accesses in one order, then in the other: each finds what the ones before left.
fn world(layout: Layout, registers: Registers) -> u64 {
    let features = Features::all(40);
    let mut board = Board::new(64, features);
    let (tables, pages, reach) = build(&board, layout);
    board.start(registers);
    let accesses: Vec<Access> = KINDS
        .iter()
        .flat_map(|&kind| PRIVILEGES.map(|privilege| Access::new(kind, privilege)))
        .collect();
    let mut checked = 0;
    for above in 0..tables {
        for page in 0..pages {
            let linear = above * reach + (page << 12);
            for at in 0..accesses.len() {
                // From another one each time.
                let access = accesses[(at * 5 + page as usize) % accesses.len()];
                let expected = verdict(board.host(), &registers, &features, linear, access);
                let doing = if access.kind == Kind::Write {
                    Doing::Store(0)
                } else {
                    Doing::Load
                };
                assert_eq!(
                    board.access(linear, access, doing),
                    expected,
                    "{registers:x?} {linear:#x} {access:?}"
                );
                checked += 1;
            }
        }
    }
    board.audit();
    checked
}

fn verdict(
    host: &FakeHost,
    registers: &Registers,
    features: &Features,
    linear: u64,
    access: Access,
) -> Outcome {
    let view = host.guest();
    let mode = PagingMode::load(registers, features, &view).unwrap();
    match probe(&mode, &view, linear, access) {
        Ok(_) => Outcome::Done(0),
        Err(hvkit_shadow_paging::guest::GuestFault::Page {
            linear,
            code,
            cause,
        }) => Outcome::Fault(hvkit_shadow_paging::guest::GuestFault::Page {
            linear,
            code,
            cause,
        }),
        Err(other) => panic!("{other}"),
    }
}
