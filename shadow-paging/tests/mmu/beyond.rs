// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host addresses that no entry can hold, and entries that are none.

use hvkit_page_table::{Span, Width};
use hvkit_shadow_paging::fake::{FakeHost, Outcome};
use hvkit_shadow_paging::guest::{Features, Registers, cr0};
use hvkit_shadow_paging::mmu::{
    Backing, HostMap, HostReason, HostRights, Machine, Mmu, Tuning, Verdict,
};
use hvkit_shadow_paging::x86::{Linear, Processor, Vcpu};

use crate::support::{LINEAR, TABLE, USED, USER_READ, board, load};

/// Says of one page that it is far away.
struct Far<'a> {
    host: &'a FakeHost,
    page: u64,
    at: u64,
}

impl HostMap for Far<'_> {
    fn backing(&self, guest: u64) -> Backing {
        // Each page alone.
        let page = guest & !0xfff;
        let host = if page == self.page {
            self.at
        } else {
            match self.host.host(page) {
                Some(host) => host,
                None => return Backing::Absent,
            }
        };
        Backing::Memory {
            guest: Span::new(page, 0x1000),
            host,
            rights: HostRights::ALL,
        }
    }
}

/// A processor with physical addresses of 40 bits: bit 40 and those above are reserved in an entry.
#[test]
fn a_host_page_that_no_entry_can_hold_is_the_hosts_to_change() {
    for (at, possible) in [(0xff_ffff_f000, true), (1 << 40, false), (1 << 46, false)] {
        let host = FakeHost::new(0x10_0000);
        let set = |at, value| host.store(host.host(at).unwrap(), Width::Four, value);
        set(0x1000, 0x2007);
        // The second page has been used: a neighbour of the first.
        set(0x2000, 0x3007);
        set(0x2004, 0x4067);
        let view = host.guest();
        let far = Far {
            host: &host,
            page: 0x3000,
            at,
        };
        let machine = Machine {
            memory: &view,
            map: &far,
        };
        let registers = Registers {
            cr0: cr0::PG | cr0::PE,
            cr3: 0x1000,
            ..Registers::default()
        };
        let features = Features::all(40);
        let like = Processor::like(&features);
        let mut mmu: Mmu<Linear, _, _> = Mmu::new(&host, &host, 16, Tuning::default()).unwrap();
        let (vcpu, _) = Vcpu::new(&mut mmu, machine, registers, features, like).unwrap();
        for _ in 0..3 {
            let answer = mmu.fault(vcpu.space(), machine, 0, USER_READ).unwrap();
            let beyond = Verdict::Host {
                physical: 0x3000,
                reason: HostReason::Beyond { host: at },
            };
            assert_eq!(answer.verdict == beyond, !possible, "{:?}", answer.verdict);
            mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
            mmu.audit(machine, |finding| panic!("{at:#x}: {finding:x?}"));
        }
        // As a neighbour it is left out.
        let answer = mmu.fault(vcpu.space(), machine, 0x1000, USER_READ).unwrap();
        let repaired = matches!(answer.verdict, Verdict::Repaired(_));
        assert!(repaired, "{:?}", answer.verdict);
        let audit = mmu.audit(machine, |finding| panic!("{at:#x}: {finding:x?}"));
        assert_eq!(audit.leaves, 1 + usize::from(possible), "{at:#x}");
        mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
        vcpu.retire(&mut mmu);
    }
}

/// Someone else damaged a shadow: what is dropped there is gone, whatever it was.
#[test]
fn a_damaged_entry_is_emptied_when_it_is_dropped() {
    let mut board = board();
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
    let mut at = board.hardware().unwrap().cr3;
    // From the root down; the address is behind the first entry of each table but the root.
    for index in [LINEAR >> 39, 0, 0] {
        at = board.host().load(at + index * 8, Width::Eight) & 0xff_ffff_f000;
    }
    let malformed = board.host().load(at, Width::Eight) | 1 << 46;
    board.host().store(at, Width::Eight, malformed);
    board.wrote(TABLE, Width::Eight, 0x10_0000 | USED);
    assert_eq!(board.host().load(at, Width::Eight), 0);
}
