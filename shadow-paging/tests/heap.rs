// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every allocation from the heap fails once, in turn: the MMU says so, stays right, and goes on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, Span, UpdateEntry, Width};
use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers};
use hvkit_shadow_paging::mmu::{
    Backing, Cause, HostMap, HostRights, Machine, Mmu, Tuning, Verdict,
};
use hvkit_shadow_paging::x86::{ControlError, Linear, Processor, Vcpu};

thread_local! {
    /// Allocations until one fails; `None`: none does.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
    /// Bytes allocated and not given back by this thread.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

struct Failing;

#[expect(unsafe_code, reason = "a global allocator is unsafe to implement")]
// SAFETY: every call is passed on to the system's allocator, or answered with null, which says that
// there is no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let fails = LEFT.try_with(|left| match left.get() {
            Some(0) => {
                left.set(None);
                FAILED.with(|failed| failed.set(true));
                true
            }
            Some(n) => {
                left.set(Some(n - 1));
                false
            }
            None => false,
        });
        if fails == Ok(true) {
            return std::ptr::null_mut();
        }
        let _ = LIVE.try_with(|live| live.set(live.get().wrapping_add(layout.size())));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(layout.size())));
        // SAFETY: the caller's promise; `at` came from the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Memory in one piece that never allocates: the guest's 2 MiB, then frames.
struct Memory {
    words: Vec<Cell<u64>>,
    next: Cell<u64>,
}

const RAM: u64 = 2 << 20;

impl Memory {
    fn new() -> Self {
        Self {
            words: vec![Cell::new(0); (2 * RAM / 8) as usize],
            next: Cell::new(RAM),
        }
    }

    fn set(&self, at: u64, value: u64) {
        self.words[(at / 8) as usize].set(value);
    }
}

impl ReadEntry for Memory {
    type Error = Infallible;

    fn read(&self, at: u64, _: Width) -> Result<u64, Infallible> {
        Ok(self.words[(at / 8) as usize].get())
    }
}

impl UpdateEntry for Memory {
    fn compare_exchange(&self, at: u64, _: Width, _: u64, new: u64) -> Result<u64, Infallible> {
        Ok(self.words[(at / 8) as usize].replace(new))
    }
}

impl OwnEntries for Memory {
    fn write(&self, at: u64, _: Width, entry: u64) {
        self.set(at, entry);
    }
}

impl Frames for Memory {
    fn allocate(&self) -> Option<u64> {
        Some(self.next.replace(self.next.get() + 0x1000))
    }

    fn free(&self, _: u64) {}
}

impl HostMap for Memory {
    fn backing(&self, guest: u64) -> Backing {
        if guest >= RAM {
            return Backing::Absent;
        }
        // Each page alone: no large leaves.
        Backing::Memory {
            guest: Span::new(guest & !0xfff, 0x1000),
            host: guest & !0xfff,
            rights: HostRights::ALL,
        }
    }
}

/// A guest whose 24 pages are all mapped twice and to the same few frames, so that lists grow.
fn memory() -> Memory {
    let memory = Memory::new();
    for (at, value) in [
        (0x1000, 0x2067),
        (0x2000, 0x3067),
        (0x3000, 0x4067),
        (0x3008, 0x5067),
    ] {
        memory.set(at, value);
    }
    for page in 0..24 {
        memory.set(0x4000 + page * 8, 0x10_0067 + ((page % 5) << 12));
        memory.set(0x5000 + page * 8, 0x10_0067 + ((page % 3) << 12));
    }
    memory
}

/// Makes the MMU and touches every page. How many steps had no memory, and how many tables there are.
fn play(fail: Option<u64>, prefetch: u8) -> (u64, usize) {
    let tuning = Tuning {
        prefetch,
        ..Tuning::default()
    };
    let memory = memory();
    let machine = Machine {
        memory: &memory,
        map: &memory,
    };
    let features = Features::all(40);
    let registers = Registers {
        cr0: 0x8001_0001,
        cr3: 0x1000,
        cr4: 0x20,
        efer: 0x900,
        ..Registers::default()
    };
    let mut failed = 0;
    LEFT.set(fail);
    let before = LIVE.get();
    let mut mmu: Mmu<Linear, _, _> = Mmu::new(&memory, &memory, 16, tuning).unwrap();
    let vcpu = loop {
        let like = Processor::like(&features);
        match Vcpu::new(&mut mmu, machine, registers, features, like) {
            Ok((vcpu, owed)) => {
                mmu.settle(owed, |_| Ok::<(), ()>(())).unwrap();
                break vcpu;
            }
            Err(ControlError::Failed(why)) => {
                assert!(matches!(why.cause, Cause::OutOfMemory(_)));
                failed += 1;
            }
            Err(other) => panic!("{other}"),
        }
    };
    for linear in (0..24u64)
        .map(|page| page << 12)
        .flat_map(|at| [at, at + 0x20_0000])
    {
        let access = Access::new(Kind::Write, Privilege::User);
        loop {
            match mmu.fault(vcpu.space(), machine, linear, access) {
                Ok(answer) => {
                    assert!(matches!(answer.verdict, Verdict::Repaired(_)));
                    mmu.settle(answer.owed, |_| Ok::<(), ()>(())).unwrap();
                    break;
                }
                Err(why) => {
                    assert!(
                        matches!(why.cause, Cause::OutOfMemory(_)),
                        "{:?}",
                        why.cause
                    );
                    mmu.settle(why.owed, |_| Ok::<(), ()>(())).unwrap();
                    failed += 1;
                }
            }
            mmu.audit(machine, |finding| panic!("{finding:x?}"));
        }
    }
    LEFT.set(None);
    let audit = mmu.audit(machine, |finding| panic!("{finding:x?}"));
    assert_eq!(audit.leaves, 48);
    let usage = mmu.usage();
    // What it says it takes, and what it took from the heap.
    assert_eq!(usage.heap, LIVE.get() - before);
    let tables = usage.tables;
    vcpu.retire(&mut mmu);
    (failed, tables)
}

/// How many allocations failed, and how many steps said so.
fn fail_each(prefetch: u8) -> (u64, u64) {
    let (none, tables) = play(None, prefetch);
    assert_eq!(none, 0);
    let (mut tried, mut told) = (0, 0);
    for n in 0.. {
        FAILED.set(false);
        let (failed, there) = play(Some(n), prefetch);
        if !FAILED.get() {
            break;
        }
        assert_eq!(there, tables, "allocation {n}");
        tried += 1;
        told += failed;
    }
    (tried, told)
}

#[test]
fn every_allocation_from_the_heap() {
    let (tried, told) = fail_each(1);
    assert!(tried >= 16, "{tried}");
    assert_eq!(told, tried);
    // A prefetch that finds no memory says nothing.
    let (tried, told) = fail_each(8);
    assert!(0 < told && told < tried, "{told} of {tried}");
}
