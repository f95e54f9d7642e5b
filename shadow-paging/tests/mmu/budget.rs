// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Budgets that are used up by roots: what is left is enough, or is said not to be.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{FakeHost, FakeProcessor, GuestView};
use hvkit_shadow_paging::guest::{Features, Registers, cr0, cr4, efer};
use hvkit_shadow_paging::mmu::{Cause, Machine, Mmu, Tuning, Verdict};
use hvkit_shadow_paging::x86::{ControlError, Linear, PageFault, Processor, Vcpu};

use crate::support::{USED, USER_READ};

type TestMmu<'a> = Mmu<Linear, &'a FakeHost, &'a FakeHost>;

/// The fewest tables that a budget has room for.
const BUDGET: u32 = 16;

/// A page of the guest's, by entries of their own in every table: three tables of ours below a root.
const FAR: [u64; 2] = [0x1000, 0x80_4020_2000];

/// A host with a guest of `roots` roots over one tree, in 4-level paging, which maps both pages.
fn host(roots: u64) -> FakeHost {
    let host = FakeHost::new(0x10_0000);
    let set = |at, value| host.store(host.host(at).unwrap(), Width::Eight, value);
    for (n, page) in (0..).zip(FAR) {
        let tables = [0x2_0000, 0x2_1000, 0x2_2000].map(|table| table + n * 0x1_0000);
        for root in 0..roots {
            set(root_of(root) + n * 8, tables[0] | USED);
        }
        set(tables[0] + (page >> 30 & 511) * 8, tables[1] | USED);
        set(tables[1] + (page >> 21 & 511) * 8, tables[2] | USED);
        set(tables[2] + (page >> 12 & 511) * 8, 0x8_0000 | USED);
    }
    host
}

const fn root_of(n: u64) -> u64 {
    0x1000 + (n << 12)
}

fn start<'a>(
    mmu: &mut TestMmu<'a>,
    machine: Machine<'_, GuestView<'a>, FakeHost>,
    root: u64,
) -> Vcpu {
    let features = Features::all(40);
    let registers = Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: root,
        cr4: cr4::PAE,
        efer: efer::LME | efer::NXE,
        ..Registers::default()
    };
    let like = Processor::like(&features);
    let (vcpu, owed) = Vcpu::new(mmu, machine, registers, features, like).unwrap();
    assert!(owed.is_empty());
    vcpu
}

/// What an instruction needs that reads every one of `pages`: each of them present at the same time. How many faults that
/// took, or why it cannot be.
fn execute<'a>(
    mmu: &mut TestMmu<'a>,
    machine: Machine<'_, GuestView<'a>, FakeHost>,
    vcpu: &mut Vcpu,
    pages: &[u64],
) -> Result<u32, Cause<hvkit_shadow_paging::fake::NoMemory>> {
    let mut faults = 0;
    'again: while faults < 100 {
        for &linear in pages {
            // With nothing in its caches: by the tables alone.
            let mut processor = FakeProcessor::default();
            let hardware = vcpu.hardware();
            let Err(code) = processor.translate(machine.map, &hardware, linear, USER_READ) else {
                continue;
            };
            let fault = PageFault {
                code,
                linear,
                cpl: 3,
                rflags: 2,
            };
            match vcpu.handle_fault(mmu, machine, fault) {
                Ok(answer) => {
                    let goes_on = matches!(answer.verdict, Verdict::Repaired(_) | Verdict::Retry);
                    assert!(goes_on, "{:?}", answer.verdict);
                    mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
                }
                Err(failed) => {
                    assert_eq!(failed.owed.frames(), 0, "nothing to wait for");
                    return Err(failed.cause);
                }
            }
            faults += 1;
            continue 'again;
        }
        return Ok(faults);
    }
    panic!("{pages:x?} fault for ever");
}

/// Each of many processors has a root of its own, which stays; below them there is room for what one instruction needs.
#[test]
fn processors_with_roots_of_their_own_go_on_in_what_is_left() {
    for (roots, pages) in [(8, 1), (8, 2), (10, 2), (13, 1)] {
        let host = host(roots);
        let view = host.guest();
        let machine = Machine {
            memory: &view,
            map: &host,
        };
        let mut mmu: TestMmu = Mmu::new(&host, &host, BUDGET, Tuning::default()).unwrap();
        let mut vcpus: Vec<_> = (0..roots)
            .map(|root| start(&mut mmu, machine, root_of(root)))
            .collect();
        for _ in 0..2 {
            for vcpu in &mut vcpus {
                let faults = execute(&mut mmu, machine, vcpu, &FAR[..pages]).unwrap();
                assert!(faults <= 6, "{roots} roots: {faults} faults");
                mmu.audit(machine, |finding| panic!("{finding:x?}"));
            }
        }
        for vcpu in vcpus {
            vcpu.retire(&mut mmu);
        }
    }
}

/// Where even one way of tables has no room, it is said at once, not tried for ever.
#[test]
fn a_budget_that_roots_use_up_is_an_error() {
    let host = host(14);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut mmu: TestMmu = Mmu::new(&host, &host, BUDGET, Tuning::default()).unwrap();
    let mut vcpus: Vec<_> = (0..14)
        .map(|root| start(&mut mmu, machine, root_of(root)))
        .collect();
    for vcpu in &mut vcpus {
        let failed = execute(&mut mmu, machine, vcpu, &FAR[..1]).unwrap_err();
        assert_eq!(failed, Cause::OutOfFrames);
    }
    // A processor less is a frame more.
    vcpus.pop().unwrap().retire(&mut mmu);
    for vcpu in &mut vcpus {
        execute(&mut mmu, machine, vcpu, &FAR[..1]).unwrap();
    }
    mmu.audit(machine, |finding| panic!("{finding:x?}"));
}

/// A root that finds no frame is given one when the token is settled that came with the error.
#[test]
fn a_root_takes_the_frames_of_tables_that_are_not_in_use() {
    let host = host(11);
    let view = host.guest();
    let machine = Machine {
        memory: &view,
        map: &host,
    };
    let mut mmu: TestMmu = Mmu::new(&host, &host, BUDGET, Tuning::default()).unwrap();
    let mut vcpus: Vec<_> = (0..10)
        .map(|root| start(&mut mmu, machine, root_of(root)))
        .collect();
    execute(&mut mmu, machine, &mut vcpus[0], &FAR).unwrap();
    assert_eq!(mmu.usage().frames, 16);
    let loaded = vcpus[0].write_cr3(&mut mmu, machine, root_of(10));
    let Err(ControlError::Failed(failed)) = loaded else {
        panic!("there is no frame");
    };
    assert!(matches!(failed.cause, Cause::OutOfFrames) && failed.owed.frames() > 0);
    mmu.settle(failed.owed, |_| Ok::<(), ()>(())).unwrap();
    let done = vcpus[0].write_cr3(&mut mmu, machine, root_of(10)).unwrap();
    mmu.settle(done.owed, |_| Ok::<(), ()>(())).unwrap();
    mmu.audit(machine, |finding| panic!("{finding:x?}"));
}
