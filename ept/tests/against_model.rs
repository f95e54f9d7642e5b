// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses and nested walks over random tables agree with a processor written down a second time:
//! translation, fault, qualification, every flag in memory, and what would be logged.

mod model;

#[path = "model/every_entry.rs"]
mod every_entry;
#[path = "model/guest.rs"]
mod guest;

use guest::{ToyAccess, ToyGuest};
use hvkit_ept::Ept;
use hvkit_ept::access::{Access, EptFault, GuestSpace, ShadowStack};
use hvkit_ept::marks::Updates;
use hvkit_ept::nested_walk::{self, GuestFault};
use hvkit_ept::spec::{Accesses, Controls, EptVpidCap, Mode, PageRights, SppExit, WalkLength};
use hvkit_page_table::fake::{FakeGuest, Unreadable};
use hvkit_page_table::{ReadEntry, Width};
use model::{Cpu, End, For, Setup, Stack};
use proptest::prelude::*;

/// A generator that a seed determines.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn flag(&mut self) -> bool {
        self.once_in(2)
    }
}

const WIDTH: u32 = 46;

/// EPT tables at host 0x1000 to 0x6fff, the sub-page table at 0x8000 to 0xbfff, and guest-physical 0 to
/// 2 MiB in 4 KiB pages: page n of the first 16 is host page 0x120 + n. From 2 MiB a large page.
/// No single wrong bit in an address makes one of the tables the target of a page: the model sets flags at
/// once, and would read them.
fn tables(dice: &mut Dice, s: Setup) -> Cpu {
    let mut cpu = Cpu {
        setup: s,
        memory: Default::default(),
        logged: vec![],
    };
    let damage = 4 + dice.below(100);
    let mut set = |dice: &mut Dice, at: u64, word: u64, page: bool| {
        let mut word = word;
        if s.mbe && dice.once_in(2) {
            word |= 1 << 10;
        }
        if dice.once_in(damage) {
            word ^= 1 << dice.below(3);
        }
        if dice.once_in(4 * damage) {
            word ^= 1 << dice.below(64);
        }
        if page {
            for n in [8, 9, 57, 58, 60, 61, 63] {
                word |= u64::from(dice.flag()) << n;
            }
        } else {
            word |= u64::from(dice.flag()) << 8;
        }
        cpu.memory.insert(at, word);
    };
    let mut root = s.root;
    if s.levels == 5 {
        set(dice, root, 0x6007, false);
        root = 0x6000;
    }
    set(dice, root, 0x2007, false);
    set(dice, 0x2000, 0x3007, false);
    set(dice, 0x2008, 0xc000_0000 | 0xb7, true); // 1 GiB
    set(dice, 0x3000, 0x4007, false);
    set(dice, 0x3008, 0x60_0000 | 0xb7, true); // 2 MiB
    for n in 0..16 {
        let rights = [7, 7, 7, 7, 7, 3, 1, 5, 5, 5, 4, 0][dice.below(12) as usize];
        set(
            dice,
            0x4000 + n * 8,
            (0x120 + n) << 12 | 0x30 | rights,
            true,
        );
    }
    // The sub-page table.
    let mut spp = |dice: &mut Dice, at: u64, word: u64| {
        let flip = if dice.once_in(6) {
            1 << dice.below(64)
        } else {
            0
        };
        cpu.memory.insert(at, word ^ flip);
    };
    spp(dice, 0x8000, 0x9001);
    spp(dice, 0x9000, 0xa001);
    spp(dice, 0xa000, 0xb001);
    for n in 0..16 {
        let vector = dice.next() & 0x5555_5555_5555_5555;
        spp(dice, 0xb000 + n * 8, vector);
    }
    // The guest's root at guest-physical 0x1000, its table at 0x2000; its pages are anywhere.
    let mut guest = |dice: &mut Dice, page: u64, index: u64, target: u64| {
        let mut word = target | [7, 7, 7, 7, 7, 7, 3, 5, 6][dice.below(9) as usize];
        word |= u64::from(dice.flag()) << 5 | u64::from(dice.flag()) << 6;
        word |= u64::from(dice.once_in(6)) << 63;
        if dice.once_in(damage) {
            word ^= 1 << dice.below(64);
        }
        cpu.memory.insert(((0x120 + page) << 12) + index * 8, word);
    };
    guest(dice, 1, 0, 0x2000);
    guest(dice, 1, 1, 0x2000);
    guest(dice, 1, 2, 0x20_0080); // 2 MiB
    guest(dice, 1, 3, 0x4000_0080);
    for index in 0..16 {
        let target = match dice.below(8) {
            0 => 0x20_0000,
            1 => 1 << 40,
            2 => 1 << 45 | 1 << 12,
            _ => dice.below(18) << 12,
        };
        guest(dice, 2, index, target);
    }
    cpu
}

fn setup(dice: &mut Dice) -> Setup {
    Setup {
        levels: if dice.flag() { 4 } else { 5 },
        root: 0x1000,
        sppt: 0x8000,
        width: WIDTH,
        execute_only: dice.flag(),
        large: !dice.once_in(8),
        huge: dice.flag(),
        advanced: dice.flag(),
        mbe: dice.flag(),
        ad: dice.flag(),
        sss: dice.flag(),
        ve: dice.flag(),
        pw: dice.flag(),
        gpv: dice.flag(),
        spp: dice.flag(),
    }
}

/// The same processor for the crate.
fn ours(s: Setup) -> Ept {
    let mut cap = EptVpidCap::WALK_LENGTH_4
        | EptVpidCap::WALK_LENGTH_5
        | EptVpidCap::STRUCTURES_WRITE_BACK
        | EptVpidCap::ACCESSED_DIRTY
        | EptVpidCap::SUPERVISOR_SHADOW_STACK;
    cap.set(EptVpidCap::EXECUTE_ONLY, s.execute_only);
    cap.set(EptVpidCap::PAGE_2M, s.large);
    cap.set(EptVpidCap::PAGE_1G, s.huge);
    cap.set(EptVpidCap::ADVANCED_VIOLATION_INFORMATION, s.advanced);
    let mut controls = Controls::empty();
    controls.set(Controls::MODE_BASED_EXECUTE, s.mbe);
    controls.set(Controls::ACCESSED_DIRTY, s.ad);
    controls.set(Controls::SUPERVISOR_SHADOW_STACK, s.sss);
    controls.set(Controls::VIOLATION_EXCEPTION, s.ve);
    controls.set(Controls::PAGING_WRITE, s.pw);
    controls.set(Controls::GUEST_PAGING_VERIFICATION, s.gpv);
    controls.set(Controls::SUB_PAGE_WRITE, s.spp);
    let length = if s.levels == 4 {
        WalkLength::Four
    } else {
        WalkLength::Five
    };
    Ept::new(cap, s.width, length, controls).unwrap()
}

fn end_of(fault: EptFault<Unreadable>) -> End {
    match fault {
        EptFault::Violation {
            guest_physical,
            qualification,
            convertible,
        } => End::Violation(guest_physical, qualification.bits(), convertible),
        EptFault::Misconfiguration {
            guest_physical,
            level,
            entry,
            ..
        } => End::Misconfiguration(guest_physical, u32::from(level), entry),
        EptFault::SubPage {
            guest_physical,
            qualification: SppExit(bits),
            ..
        } => End::SubPage(guest_physical, bits),
        other => panic!("all of memory can be read: {other:?}"),
    }
}

fn memory_of(cpu: &Cpu) -> FakeGuest {
    let memory = FakeGuest::new(1 << 50);
    for (&at, &word) in &cpu.memory {
        memory.set(at, Width::Eight, word);
    }
    memory
}

fn kinds() -> [(Accesses, (bool, bool, bool)); 4] {
    [
        (Accesses::READ, (true, false, false)),
        (Accesses::WRITE, (false, true, false)),
        (Accesses::READ | Accesses::WRITE, (true, true, false)),
        (Accesses::FETCH, (false, false, true)),
    ]
}

fn stack(dice: &mut Dice) -> (ShadowStack, Stack) {
    match dice.below(4) {
        0 => (ShadowStack::Supervisor, Stack::Supervisor),
        1 => (ShadowStack::User, Stack::User),
        _ => (ShadowStack::No, Stack::No),
    }
}

/// Compares memory word by word, and the log.
fn same_memory(cpu: &Cpu, memory: &FakeGuest, updates: &Updates) {
    for (&at, &word) in &cpu.memory {
        assert_eq!(memory.read(at, Width::Eight), Ok(word), "flags at {at:#x}");
    }
    let mut ours: Vec<u64> = updates.logged().collect();
    let mut theirs = cpu.logged.clone();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
}

fn one_access(seed: u64) {
    let mut dice = Dice(seed);
    let s = setup(&mut dice);
    let start = tables(&mut dice, s);
    let ept = ours(s);
    for _ in 0..8 {
        let mut cpu = start.clone();
        let memory = memory_of(&cpu);
        let space = GuestSpace::new(&ept, &memory, s.root).with_sub_pages(s.sppt);
        let gpa = match dice.below(8) {
            0 => 0x20_0000 + dice.below(1 << 21),
            1 => (1 << 30) + dice.below(1 << 30),
            2 => 1 << dice.below(64),
            _ => dice.below(18 << 12),
        };
        let (accesses, plain) = kinds()[dice.below(4) as usize];
        let (shadow, plain_shadow) = stack(&mut dice);
        let (user, writable, xd) = (dice.flag(), dice.flag(), dice.flag());
        let mode = if user { Mode::User } else { Mode::Supervisor };
        let page = PageRights {
            mode,
            writable,
            execute_disable: xd,
        };
        let (access, what) = match dice.below(6) {
            0 => (Access::no_linear_address(accesses), For::Nothing),
            1 => (Access::paging_read(), For::Structure),
            2 => (Access::paging_write(), For::Structure),
            _ => (
                Access::translation(accesses, page),
                For::Page(user, writable, xd, true),
            ),
        };
        let plain = match access {
            _ if access == Access::paging_read() => (true, false, false),
            _ if access == Access::paging_write() => (true, true, false),
            _ => plain,
        };
        let access = access.with_shadow_stack(shadow);
        let expected = cpu
            .access(gpa, plain, what, plain_shadow)
            .map(|(host, _)| host);
        let mut updates = Updates::new();
        let found = space.access_marking(gpa, access, &mut updates);
        assert_eq!(space.access(gpa, access), found, "with and without flags");
        let found = found.map(|granted| granted.host_physical).map_err(end_of);
        assert_eq!(
            found, expected,
            "seed {seed}: {access:x?} to {gpa:#x}, {s:?}"
        );
        assert_eq!(updates.apply(&memory), Ok(()));
        same_memory(&cpu, &memory, &updates);
    }
}

fn one_walk(seed: u64, seen: &mut [u32; 6]) {
    let mut dice = Dice(seed);
    let s = setup(&mut dice);
    let start = tables(&mut dice, s);
    let ept = ours(s);
    let guest = ToyGuest::new(0x1000);
    for _ in 0..8 {
        let mut cpu = start.clone();
        let memory = memory_of(&cpu);
        let space = GuestSpace::new(&ept, &memory, s.root).with_sub_pages(s.sppt);
        let linear = match dice.below(16) {
            0 => 1 << 30 | dice.below(1 << 20),
            1 => dice.below(1 << 30),
            2..6 => dice.below(4) << 21 | dice.below(1 << 16),
            _ => dice.below(16 << 12),
        };
        let (accesses, plain) = kinds()[dice.below(4) as usize];
        let (shadow_stack, plain_stack) = stack(&mut dice);
        let user = dice.once_in(3);
        let mode = if user { Mode::User } else { Mode::Supervisor };
        let access = ToyAccess {
            accesses,
            mode,
            shadow_stack,
        };
        let expected = cpu.linear(0x1000, linear, plain, user, plain_stack);
        let mut updates = Updates::new();
        let found = nested_walk::translate_marking(&space, &guest, linear, access, &mut updates);
        let again = nested_walk::translate(&space, &guest, linear, access);
        assert_eq!(found, again, "with and without flags");
        let found = found
            .map(|nested| nested.host.host_physical)
            .map_err(|fault| match fault {
                GuestFault::Page(code) => End::PageFault(code),
                GuestFault::Memory(fault) => end_of(fault),
            });
        assert_eq!(
            found, expected,
            "seed {seed}: {access:x?} to {linear:#x}, {s:?}"
        );
        assert_eq!(updates.apply(&memory), Ok(()));
        same_memory(&cpu, &memory, &updates);
        seen[match expected {
            Ok(_) => 0,
            Err(End::PageFault(_)) => 1,
            Err(End::Violation(_, q, _)) if q >> 15 & 1 == 1 => 2,
            Err(End::Violation(..)) => 3,
            Err(End::Misconfiguration(..)) => 4,
            Err(End::SubPage(..)) => 5,
        }] += 1;
    }
}

/// Cases to run: `HVKIT_CASES`, or a number that fits CI.
fn cases() -> u32 {
    std::env::var("HVKIT_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1500)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn accesses_end_as_the_models(seed in any::<u64>()) {
        one_access(seed);
    }

    #[test]
    fn nested_walks_end_as_the_models(seed in any::<u64>()) {
        one_walk(seed, &mut [0; 6]);
    }
}

/// The generator reaches every way a walk can end, so that the properties above mean something.
#[test]
fn every_kind_of_end_is_reached() {
    let mut seen = [0; 6];
    for seed in 0..3000 {
        one_walk(seed, &mut seen);
    }
    assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
}
