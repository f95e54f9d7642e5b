// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Nested virtualization: the engine shadows EPT on EPT. L1's own memory and L2's are two spaces of one
//! MMU, so that L1's stores into the EPT that it made for L2 are seen.

use std::convert::Infallible;

use hvkit_ept::spec::{Controls, EptVpidCap, WalkLength};
use hvkit_ept::{Attributes, Ept, Rule};
use hvkit_page_table::{Root, Width};
use hvkit_shadow_paging::fake::{FakeHost, FakeTlb};
use hvkit_shadow_paging::mmu::{
    Backed, HostReason, HostRights, Load, Machine, Mmu, Owed, Space, Top, Tuning, Verdict,
};
use hvkit_shadow_paging::nested::{Grants, Nested, Refused, SecondStage, Unsupported};
use lab_cases::Random;

/// The processor: a TLB that forgets only what it is told.
#[derive(Default)]
pub(crate) struct Processor {
    pub(crate) tlb: FakeTlb<Ept>,
}

impl Processor {
    /// The host-physical address, or an EPT violation.
    pub(crate) fn translate(
        &mut self,
        host: &FakeHost,
        root: u64,
        at: u64,
        access: Grants,
    ) -> Option<u64> {
        let format = ept(Controls::empty());
        match self.tlb.translate(host, &format, root, at) {
            Some((target, attributes)) if format.grants(attributes).contains(access) => {
                Some(target)
            }
            _ => {
                self.tlb.forget(&format, root, at);
                None
            }
        }
    }
}

/// What L1 is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Violation,
    Misconfiguration,
}

pub(crate) fn exit(refused: &Refused<Rule>) -> Exit {
    match refused {
        Refused::Malformed { .. } => Exit::Misconfiguration,
        _ => Exit::Violation,
    }
}

pub(crate) fn ept(controls: Controls) -> Ept {
    let capability = EptVpidCap::EXECUTE_ONLY
        | EptVpidCap::WALK_LENGTH_4
        | EptVpidCap::STRUCTURES_WRITE_BACK
        | EptVpidCap::PAGE_2M
        | EptVpidCap::PAGE_1G
        | EptVpidCap::ACCESSED_DIRTY;
    Ept::new(capability, 40, WalkLength::Four, controls).unwrap()
}

/// L2 under L1's EPT.
pub(crate) fn l2_stage(controls: Controls) -> Nested<Ept> {
    Nested::new(ept(controls), ept(controls)).unwrap()
}

/// L1 itself.
fn l1_stage() -> Nested<Ept> {
    Nested::direct(ept(Controls::empty()), Attributes::RAM)
}

type Engine<'a> = Mmu<Nested<Ept>, &'a FakeHost, &'a FakeHost>;

struct Vm<'a> {
    host: &'a FakeHost,
    mmu: Engine<'a>,
    processor: Processor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// To this word of L1's memory.
    To(u64),
    Out(Exit),
}

impl Vm<'_> {
    fn settle(&mut self, owed: Owed) {
        let processor = &mut self.processor;
        let settled = self.mmu.settle(owed, |flush| {
            processor.tlb.flush(flush);
            Ok::<(), Infallible>(())
        });
        settled.unwrap();
    }

    /// An access by L1 or L2, and what is done with the word there.
    fn access(
        &mut self,
        space: &Space<Nested<Ept>>,
        at: u64,
        access: Grants,
        value: Option<u64>,
    ) -> Came {
        for _ in 0..32 {
            if let Some(there) = self
                .processor
                .translate(self.host, space.root(), at, access)
            {
                let word = self.host.load(there, Width::Eight);
                if let Some(value) = value {
                    self.host.store(there, Width::Eight, value);
                }
                return Came::To(word);
            }
            let view = self.host.guest();
            let machine = Machine {
                memory: &view,
                map: self.host,
            };
            let answer = self.mmu.fault(space, machine, at, access).unwrap();
            self.settle(answer.owed);
            match answer.verdict {
                Verdict::Guest(refused) => return Came::Out(exit(&refused)),
                Verdict::Guarded { physical } => {
                    let there = self.host.host(physical).unwrap();
                    let word = self.host.load(there, Width::Eight);
                    if let Some(value) = value {
                        self.host.store(there, Width::Eight, value);
                    }
                    let owed = self.mmu.guest_wrote(physical, 8);
                    self.settle(owed);
                    return Came::To(word);
                }
                Verdict::Host {
                    physical,
                    reason: HostReason::Rights(_),
                } => {
                    self.host.set_rights(physical, HostRights::ALL);
                }
                Verdict::Repaired(_) | Verdict::Retry => (),
                other => panic!("{other:?}"),
            }
        }
        panic!("{at:#x} faults for ever");
    }

    fn audit(&self) {
        let view = self.host.guest();
        let machine = Machine {
            memory: &view,
            map: self.host,
        };
        self.mmu.audit(machine, |finding| panic!("{finding:x?}"));
    }
}

/// L1's tables for L2: two of each level, two indices each; the pages are L1's from 4 MiB on.
pub(crate) fn frame(level: u64, table: u64) -> u64 {
    0x1_0000 + (level * 2 + table) * 0x1000
}

pub(crate) fn entry(level: u64, controls: Controls, r: &mut Random) -> u64 {
    let rights = r.pick(&[7, 7, 7, 5, 3, 1, 4, 2, 0]);
    let flags = if controls.is_empty() {
        0
    } else {
        r.bit(0x100, 1, 2) | r.bit(0x200, 1, 2)
    };
    let large = level == 2 && r.chance(1, 4) || level == 3 && r.chance(1, 8);
    match level {
        1 => 0x30 | flags | rights | (0x40_0000 + (r.below(12) << 12)),
        2 if large => 0xb0 | flags | rights | (0x40_0000 + (r.below(3) << 21)),
        3 if large => 0xb0 | flags | rights,
        _ => flags & !0x200 | rights | frame(level - 1, r.below(2)),
    }
}

fn play(seed: u64, controls: Controls) -> (u64, u64) {
    let mut r = Random::of_case(seed, 77);
    let host = FakeHost::new(0x1000_0000);
    let native = FakeHost::new(0x1000_0000);
    let mut slots = vec![];
    for level in 1..=4 {
        for table in 0..2 {
            for index in [1, 2] {
                let at = frame(level, table) + index * 8;
                let value = entry(level, controls, &mut r);
                for memory in [&host, &native] {
                    memory.store(memory.host(at).unwrap(), Width::Eight, value);
                }
                slots.push((level, at));
            }
        }
    }
    for page in 0..0x800u64 {
        for memory in [&host, &native] {
            let at = 0x40_0000 + page * 0x1000;
            memory.store(memory.host(at).unwrap(), Width::Eight, at);
        }
    }
    let mut vm = Vm {
        host: &host,
        mmu: Mmu::new(&host, &host, 64, Tuning::default()).unwrap(),
        processor: Processor::default(),
    };
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let (l1, owed) = vm.mmu.open(l1_stage(), Top::Direct, machine).unwrap();
    vm.settle(owed);
    let mut root = frame(4, 0);
    let stage = l2_stage(controls);
    let (mut l2, owed) = vm.mmu.open(stage, Top::Table(root), machine).unwrap();
    vm.settle(owed);
    let (mut done, mut refused) = (0, 0);
    for step in 0..150 {
        match r.below(12) {
            0..=3 => {
                let (level, at) = r.pick(&slots);
                let value = entry(level, controls, &mut r);
                native.store(native.host(at).unwrap(), Width::Eight, value);
                let before = vm.access(&l1, at, Grants::WRITE, Some(value));
                let Came::To(before) = before else {
                    panic!("L1 may write its memory");
                };
                if before & 7 != 0 || r.chance(1, 3) {
                    // INVEPT.
                    let owed = vm.mmu.invalidate_all(machine).unwrap();
                    vm.settle(owed);
                }
            }
            4 => {
                root = frame(4, r.below(2));
                let top = Top::Table(root);
                let owed = vm
                    .mmu
                    .enter(&mut l2, stage, top, Load::Keep, machine)
                    .unwrap();
                vm.settle(owed);
            }
            5 => {
                let page = r.pick(&[0x40_0000, 0x40_3000, frame(1, 0), frame(2, 1)]);
                if let Some(gone) = host.migrate(page) {
                    let owed = vm.mmu.host_unmap(gone);
                    vm.settle(owed);
                    vm.processor.tlb.assert_forgot(gone.host, |_| true);
                }
            }
            _ => {
                let index = |r: &mut Random| 1 + r.below(2);
                let at = index(&mut r) << 39
                    | index(&mut r) << 30
                    | index(&mut r) << 21
                    | index(&mut r) << 12;
                let access = r.pick(&[Grants::READ, Grants::WRITE, Grants::EXECUTE]);
                let theirs = by_itself(&native, controls, root, at, access);
                let ours = vm.access(&l2, at, access, None);
                assert_eq!(
                    ours, theirs,
                    "seed {seed}, step {step}: {access:?} at {at:#x}"
                );
                match ours {
                    Came::To(_) => done += 1,
                    Came::Out(_) => refused += 1,
                }
            }
        }
        vm.audit();
        let tables = |memory: &FakeHost| memory.guest_words(0x1_0000, 0x2_0000);
        assert_eq!(tables(&host), tables(&native), "seed {seed}, step {step}");
    }
    vm.mmu.close(l1);
    vm.mmu.close(l2);
    (done, refused)
}

/// What L1's EPT says, entry by entry, with its flags set.
fn by_itself(memory: &FakeHost, controls: Controls, root: u64, at: u64, access: Grants) -> Came {
    use hvkit_page_table::{Fault, UpdateEntry, walk};
    let format = ept(controls);
    let view = memory.guest();
    let walk = walk(&format, &view, Root::Table(root), at);
    let there = match walk.outcome {
        Ok(there) if format.grants(there.attributes).contains(access) => there,
        Err(Fault::Malformed { .. }) => return Came::Out(Exit::Misconfiguration),
        _ => return Came::Out(Exit::Violation),
    };
    if !controls.is_empty() {
        for step in walk.steps() {
            let dirty = step.level == there.level && access == Grants::WRITE;
            let set = 0x100 | if dirty { 0x200 } else { 0 };
            let entry = step.entry;
            view.compare_exchange(step.at.unwrap(), Width::Eight, entry, entry | set)
                .unwrap();
        }
    }
    Came::To(memory.load(memory.host(there.target).unwrap(), Width::Eight))
}

#[test]
fn l2_sees_what_l1s_ept_says() {
    for controls in [Controls::empty(), Controls::ACCESSED_DIRTY] {
        let (mut done, mut refused) = (0, 0);
        for seed in 0..20 {
            let played = play(seed, controls);
            done += played.0;
            refused += played.1;
        }
        assert!(done > 100 && refused > 100, "{done} {refused}");
    }
}

/// SDM 3C, "EPT Violations": with accessed and dirty flags enabled in the EPTP, a read of a guest's paging structures counts as
/// a write. So hardware must have them enabled if L1 has, and only then.
#[test]
fn accessed_and_dirty_flags_are_enabled_on_both_sides_or_on_none() {
    let flags = [Controls::empty(), Controls::ACCESSED_DIRTY];
    for l1 in flags {
        for ours in flags {
            let refused = Nested::new(ept(l1), ept(ours)).err();
            let expected = (l1 != ours).then_some(Unsupported::WalksWrite);
            assert_eq!(refused, expected, "{l1:?} on {ours:?}");
        }
    }
}

#[test]
fn a_page_that_is_logged_under_both_is_written_through_neither() {
    let host = FakeHost::new(0x1000_0000);
    let set = |at: u64, value| host.store(host.host(at).unwrap(), Width::Eight, value);
    for (at, value) in [
        (0x1000, 0x2007),
        (0x2000, 0x3007),
        (0x3000, 0x4007),
        (0x4000, 0x50_0037),
    ] {
        set(at, value);
    }
    let mut vm = Vm {
        host: &host,
        mmu: Mmu::new(&host, &host, 64, Tuning::default()).unwrap(),
        processor: Processor::default(),
    };
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let (l1, _) = vm.mmu.open(l1_stage(), Top::Direct, machine).unwrap();
    let stage = l2_stage(Controls::empty());
    let (l2, _) = vm.mmu.open(stage, Top::Table(0x1000), machine).unwrap();
    assert_eq!(
        vm.access(&l1, 0x50_0000, Grants::WRITE, Some(1)),
        Came::To(0)
    );
    assert_eq!(vm.access(&l2, 0, Grants::WRITE, Some(2)), Came::To(1));
    let logged: Backed = host.set_rights(0x50_0000, HostRights::READ_ONLY).unwrap();
    let owed = vm.mmu.host_protect(logged);
    vm.settle(owed);
    for (space, at) in [(&l1, 0x50_0000), (&l2, 0)] {
        assert_eq!(
            vm.processor
                .translate(&host, space.root(), at, Grants::WRITE),
            None
        );
        assert_eq!(vm.access(space, at, Grants::READ, None), Came::To(2));
    }
    vm.audit();
    vm.mmu.close(l1);
    vm.mmu.close(l2);
}
