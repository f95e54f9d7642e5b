// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is owed: lost, foreign, failed and merged tokens.

use hvkit_page_table::{Frames, Width};
use hvkit_shadow_paging::fake::{FakeHost, FakeProcessor, GuestView};
use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers, cr0};
use hvkit_shadow_paging::mmu::{
    Backed, Cause, Flush, Machine, Mmu, Owed, Tuning, UnsettledCause, Verdict, leaked,
};
use hvkit_shadow_paging::x86::{ControlError, Linear, Processor, Vcpu};

use crate::support::USER_READ;

type TestMmu<'a> = Mmu<Linear, &'a FakeHost, &'a FakeHost>;

fn mmu(host: &FakeHost) -> TestMmu<'_> {
    Mmu::new(host, host, 32, Tuning::default()).unwrap()
}

/// 32-bit paging with one page, faulted in.
fn running<'a>(mmu: &mut TestMmu<'a>, machine: Machine<'_, GuestView<'a>, FakeHost>) -> Vcpu {
    let features = Features::all(40);
    machine
        .map
        .store(machine.map.host(0x1000).unwrap(), Width::Four, 0x2007);
    machine
        .map
        .store(machine.map.host(0x2000).unwrap(), Width::Four, 0x3007);
    let registers = Registers {
        cr0: cr0::PG | cr0::PE,
        cr3: 0x1000,
        ..Registers::default()
    };
    let (vcpu, owed) = Vcpu::new(
        mmu,
        machine,
        registers,
        features,
        Processor::like(&features),
    )
    .unwrap();
    assert!(owed.is_empty());
    let answer = mmu.fault(vcpu.space(), machine, 0, USER_READ).unwrap();
    assert!(matches!(answer.verdict, Verdict::Repaired(_)));
    mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
    vcpu
}

/// The table at 0x2000 goes with the memory it is in, and not with none.
#[test]
fn what_is_taken_back_takes_its_tables_along_and_no_other() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut mmu = mmu(&host);
    let vcpu = running(&mut mmu, machine);
    let before = mmu.usage().tables;
    for (length, gone) in [(0, 0), (0x1000, 1)] {
        let owed = mmu.host_unmap(Backed {
            guest: 0x2000,
            host: host.host(0x2000).unwrap(),
            length,
        });
        mmu.settle(owed, ok).unwrap();
        // A 32-bit page table is two of ours, of which the one was made.
        assert_eq!(before - mmu.usage().tables, gone, "{length:#x}");
    }
    vcpu.retire(&mut mmu);
}

fn ok(_: Flush) -> Result<(), ()> {
    Ok(())
}

#[test]
fn a_lost_token_leaks_its_frames_and_frees_none() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut mmu = mmu(&host);
    let _vcpu = running(&mut mmu, machine);
    let (frames, before) = (host.frames(), leaked());
    let owed = mmu.shrink(2);
    assert_eq!((owed.frames(), owed.flush()), (2, Flush::Everything));
    drop(owed);
    assert_eq!(host.frames(), frames, "never freed early");
    assert!(leaked() > before);
    assert_eq!(mmu.usage().frames, frames);
}

#[test]
fn a_failed_flush_gives_the_token_back_and_a_foreign_one_is_refused() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let (mut one, mut other) = (mmu(&host), mmu(&host));
    let _vcpu = running(&mut one, machine);
    let frames = host.frames();
    let owed = one.shrink(1);
    let back = one.settle(owed, |_| Err(7)).unwrap_err();
    assert_eq!(
        (back.cause, host.frames()),
        (UnsettledCause::Flush(7), frames)
    );
    let back = other.settle(back.owed, ok).unwrap_err();
    assert_eq!(back.cause, UnsettledCause::Foreign);
    one.settle(back.owed, ok).unwrap();
    assert_eq!(host.frames(), frames - 1);
}

#[test]
fn merged_tokens_are_settled_by_one_flush() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut mmu = mmu(&host);
    let _vcpu = running(&mut mmu, machine);
    let frames = host.frames();
    let mut all = Owed::default();
    for _ in 0..2 {
        let owed = mmu.shrink(1);
        mmu.merge_owed(&mut all, owed).unwrap();
    }
    assert_eq!(all.frames(), 2);
    let mut flushes = 0;
    mmu.settle(all, |_| {
        flushes += 1;
        ok(Flush::Nothing)
    })
    .unwrap();
    assert_eq!((flushes, host.frames()), (1, frames - 2));
}

#[test]
fn one_page_of_one_address_is_named() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut mmu = mmu(&host);
    let _vcpu = running(&mut mmu, machine);
    host.store(host.host(0x2000).unwrap(), Width::Four, 0);
    let owed = mmu.guest_wrote(0x2000, 4);
    assert_eq!(
        owed.flush(),
        Flush::Span(hvkit_page_table::Span::new(0, 0x1000))
    );
    mmu.settle(owed, ok).unwrap();
    let owed = mmu.guest_wrote(0x2000, 4);
    assert!(owed.is_empty(), "nothing is there any more");
}

/// A pool whose frames no root can be in.
struct High(FakeHost);

impl Frames for High {
    fn allocate(&self) -> Option<u64> {
        Some(0x1_0000_0000)
    }

    fn free(&self, frame: u64) {
        assert_eq!(frame, 0x1_0000_0000);
    }
}

#[test]
fn a_root_that_cr3_cannot_hold_is_given_back() {
    let high = High(FakeHost::new(0x1_0000));
    let host = &high.0;
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: host,
    };
    let mut mmu: Mmu<Linear, _, _> = Mmu::new(host, &high, 16, Tuning::default()).unwrap();
    let features = Features::all(40);
    let registers = Registers::default();
    let made = Vcpu::new(
        &mut mmu,
        machine,
        registers,
        features,
        Processor::like(&features),
    );
    let Err(ControlError::Failed(failed)) = made else {
        panic!("no root");
    };
    assert_eq!(
        failed.cause,
        Cause::BadFrame {
            frame: 0x1_0000_0000
        }
    );
    assert_eq!(mmu.usage().frames, 0);
}

#[test]
fn a_space_of_another_mmu_is_refused() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let (mut one, mut other) = (mmu(&host), mmu(&host));
    let vcpu = running(&mut one, machine);
    let failed = other
        .fault(vcpu.space(), machine, 0, USER_READ)
        .unwrap_err();
    assert_eq!(failed.cause, Cause::Foreign);
    assert_eq!(
        other
            .invalidate(vcpu.space(), machine, 0)
            .unwrap_err()
            .cause,
        Cause::Foreign
    );
}

/// Two processors, the first with 32-bit tables. By the TLB of the second, page 0x1000 can be written, which leads to the frame at
/// 0x4000: the guest's table of 4 MiB and up, that the first has not used yet.
struct Race<'a> {
    machine: Machine<'a, GuestView<'a>, FakeHost>,
    mmu: TestMmu<'a>,
    vcpu: Vcpu,
    other: FakeProcessor,
    /// The host's address of the frame.
    table: u64,
}

const WRITE: Access = Access::new(Kind::Write, Privilege::User);

impl<'a> Race<'a> {
    fn new(machine: Machine<'a, GuestView<'a>, FakeHost>) -> Self {
        let host = machine.map;
        let mut mmu = mmu(host);
        let vcpu = running(&mut mmu, machine);
        for (at, value) in [
            (0x2004, 0x4067),
            (0x1004, 0x4067),
            (0x4000, 0x5067),
            (0x4800, 0x5067),
        ] {
            host.store(host.host(at).unwrap(), Width::Four, value);
        }
        let other = FakeProcessor::default();
        let table = host.host(0x4000).unwrap();
        let mut race = Self {
            machine,
            mmu,
            vcpu,
            other,
            table,
        };
        let owed = race.fault(0x1000, WRITE);
        race.settle(owed);
        assert_eq!(race.writes(), Some(table));
        race
    }

    fn fault(&mut self, linear: u64, access: Access) -> Owed {
        let space = self.vcpu.space();
        let answer = self.mmu.fault(space, self.machine, linear, access);
        let answer = answer.unwrap();
        assert!(matches!(answer.verdict, Verdict::Repaired(_)));
        answer.owed
    }

    fn settle(&mut self, owed: Owed) {
        let other = &mut self.other;
        let settled = self.mmu.settle(owed, |flush| {
            other.flush(flush);
            ok(flush)
        });
        settled.unwrap();
    }

    /// Where the second processor comes to.
    fn comes_to(&mut self, linear: u64, access: Access) -> Option<u64> {
        let hardware = self.vcpu.hardware();
        let come = self
            .other
            .translate(self.machine.map, &hardware, linear, access);
        come.ok()
    }

    /// Where the second processor writes by page 0x1000.
    fn writes(&mut self) -> Option<u64> {
        self.comes_to(0x1000, WRITE)
    }

    /// The guest invalidates an address.
    fn invalidate(&mut self, linear: u64) {
        let owed = self
            .mmu
            .invalidate(self.vcpu.space(), self.machine, linear)
            .unwrap();
        self.settle(owed);
    }
}

/// One processor makes a page a table of the shadow's while the other may still write it by its
/// TLB. What it writes then must be seen when the guest invalidates.
#[test]
fn a_write_that_beats_the_flush_is_seen_at_the_next_invalidation() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let mut race = Race::new(Machine {
        memory: &view,
        map: &host,
    });
    // The first processor uses the table; its token is not settled yet.
    let owed = race.fault(0x40_0000, USER_READ);
    assert!(!owed.is_empty(), "the page was writable");
    assert_eq!(race.writes(), Some(race.table));
    host.store(race.table, Width::Four, 0x6067);
    race.settle(owed);
    assert_eq!(race.writes(), None);
    race.invalidate(0x40_0000);
    let seen = race.comes_to(0x40_0000, USER_READ);
    assert_eq!(seen, None, "the old entry is still there");
    let owed = race.fault(0x40_0000, USER_READ);
    race.settle(owed);
    let seen = race.comes_to(0x40_0000, USER_READ);
    assert_eq!(seen, Some(host.host(0x6000).unwrap()));
}

/// As above; but the table's second half, of which the shadow has a table of its own, is made while the token that takes the
/// right to write from the page is still out. Nothing is left to take then, and yet the other processor may write.
#[test]
fn a_write_that_beats_an_earlier_steps_flush_is_seen_too() {
    let host = FakeHost::new(0x1_0000);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut race = Race::new(machine);
    let first = race.fault(0x40_0000, USER_READ);
    assert!(!first.is_empty(), "the page was writable");
    let second = race.fault(0x60_0000, USER_READ);
    assert_eq!(race.writes(), Some(race.table));
    host.store(race.table + 0x800, Width::Four, 0x6067);
    race.settle(second);
    race.settle(first);
    race.invalidate(0x60_0000);
    let seen = race.comes_to(0x60_0000, USER_READ);
    assert_eq!(seen, None, "the old entry is still there");
    race.mmu.audit(machine, |finding| panic!("{finding:?}"));
}
