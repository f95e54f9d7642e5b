// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A recorded guest, again: what Linux asked of the MMU in the bare-metal hypervisor, asked of it here. What is the guest's own
//! fault and what is the shadow's must come out as it was recorded; how the shadow is repaired is told, as another
//! version of the MMU may have had other pages mapped.

use std::cell::Cell;
use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use hvkit_page_table::{Root, Span, Width, translate};
use hvkit_shadow_paging::guest::{ErrorCode, Features, Registers};
use hvkit_shadow_paging::mmu::{
    Backing, HostMap, HostRights, Machine, Mmu, Owed, Repair, Tuning, Verdict,
};
use hvkit_shadow_paging::x86::{InvalidateKind, Linear, PageFault, Processor, Vcpu};
use lab_cases::trace::{Reader, Record, verdict as number};

use crate::memory::Memory;

/// The guest's memory lies below, frames for shadow tables above.
const RAM: u64 = 1 << 30;
const FRAMES: u64 = 64 << 20;
/// Pages that a 2-D walk goes through for each of its entries.
const SECOND_DIMENSION: u64 = 0x3000_0000;

/// The recorded map.
#[derive(Debug, Default)]
struct Map {
    regions: Vec<(Span, u8)>,
}

impl HostMap for Map {
    #[inline]
    fn backing(&self, guest: u64) -> Backing {
        let inside = |(span, _): &&(Span, u8)| guest.wrapping_sub(span.start) < span.length;
        let Some((span, kind)) = self.regions.iter().find(inside) else {
            return Backing::Absent;
        };
        Backing::Memory {
            guest: *span,
            host: span.start,
            rights: HostRights {
                write: *kind != 1,
                execute: *kind != 2,
            },
        }
    }
}

/// Events of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Events {
    count: u64,
    time: Duration,
}

impl Events {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    /// Nanoseconds of one.
    fn each(self) -> f64 {
        self.time.as_nanos() as f64 / self.count.max(1) as f64
    }
}

const KINDS: [&str; 8] = [
    "fault: page mapped",
    "fault: page changed",
    "fault: nothing wrong",
    "fault: the guest's own",
    "fault: write to a guarded table",
    "control register",
    "invalidation",
    "write to a table, told",
];

/// What a replay came to.
#[derive(Debug, Default)]
struct Replayed {
    /// Each event's kind and time.
    events: Vec<(usize, Duration)>,
    /// Two-dimensional walks to the addresses that faulted, each with a store.
    walks: Vec<Duration>,
    /// Faults whose verdict is the recorded one.
    alike: u64,
    entries: u64,
    tables: usize,
}

impl Replayed {
    /// Keeps the shorter time of each event: two replays are alike but for what else the machine did.
    fn shorter(&mut self, other: &Self) {
        for (mine, other) in self.events.iter_mut().zip(&other.events) {
            mine.1 = mine.1.min(other.1);
        }
        for (mine, other) in self.walks.iter_mut().zip(&other.walks) {
            *mine = (*mine).min(*other);
        }
    }
}

/// Replays the trace in this file this many times, and prints what each kind of event took.
pub fn run(path: &Path, rounds: usize) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let packed = std::fs::read(path).map_err(|error| said(&error))?;
    let bytes = lz4_flex::decompress_size_prepended(&packed).map_err(|error| said(&error))?;
    let mut replayed = replay(&bytes).map_err(|error| said(&error))?;
    for _ in 1..rounds {
        replayed.shorter(&replay(&bytes).map_err(|error| said(&error))?);
    }
    let mut walks = Events::default();
    replayed.walks.iter().for_each(|&time| walks.add(time));
    let mut kinds = [Events::default(); KINDS.len()];
    for &(kind, time) in &replayed.events {
        kinds[kind].add(time);
    }
    println!(
        "{}: {} faults, {} repaired or refused as recorded",
        path.display(),
        walks.count,
        replayed.alike
    );
    let walk = walks.each();
    println!("{:>9}  {:>8}  {:>7}", "events", "ns each", "ratio");
    println!(
        "{:9}  {walk:8.1}  {:7.2}  2-D walk and one store, the limit",
        walks.count, 1.0
    );
    for (name, events) in KINDS.into_iter().zip(kinds) {
        let time = events.each();
        println!(
            "{:9}  {time:8.1}  {:7.2}  {name}",
            events.count,
            time / walk
        );
    }
    println!(
        "{} entries of the guest's read anew, {} shadow tables in the end",
        replayed.entries, replayed.tables
    );
    Ok(())
}

/// Asks an MMU what is recorded.
fn replay(bytes: &[u8]) -> Result<Replayed, String> {
    let mut reader = Reader::new(bytes).ok_or("not a trace")?;
    let memory = Memory::with(RAM, RAM + FRAMES);
    let mut map = Map::default();
    let (mut processor, mut budget) = (Features::all(40), 64);
    let mut registers = Registers::default();
    let mut started: Option<(Mmu<Linear, &Memory, &Memory>, Vcpu)> = None;
    let mut done = Replayed::default();
    let sink = Cell::new(0);
    for record in reader.by_ref() {
        match record {
            Record::Processor {
                physical_address_bits,
                gib_pages,
                budget: most,
            } => {
                processor = Features {
                    gib_pages: gib_pages != 0,
                    ..Features::all(physical_address_bits)
                };
                budget = u32::try_from(most).map_err(|_| "an impossible budget")?;
                continue;
            }
            Record::Region {
                start,
                length,
                kind,
            } => {
                map.regions.push((Span::new(start, length), kind));
                continue;
            }
            Record::Entry { at, value } => {
                if at >= SECOND_DIMENSION {
                    return Err(format!("an entry at {at:#x}"));
                }
                memory.word(at).set(value);
                done.entries += 1;
                continue;
            }
            Record::Register { number, value } if started.is_none() => {
                set(&mut registers, number, value);
                // The last of the four.
                if number == 8 {
                    let mut mmu = Mmu::new(&memory, &memory, budget, Tuning::default())
                        .map_err(|error| error.to_string())?;
                    let machine = Machine {
                        memory: &memory,
                        map: &map,
                    };
                    let processor = (processor, Processor::like(&processor));
                    let (vcpu, owed) =
                        Vcpu::new(&mut mmu, machine, registers, processor.0, processor.1)
                            .map_err(|error| error.to_string())?;
                    settle(&mut mmu, owed);
                    started = Some((mmu, vcpu));
                }
                continue;
            }
            _ => {}
        }
        let (mmu, vcpu) = started.as_mut().ok_or("an event before the processor")?;
        if let Record::Fault { linear, .. } = record {
            done.walks.push(walk(vcpu, &memory, linear, &sink));
        }
        let begin = Instant::now();
        let kind = event(mmu, vcpu, (&memory, &map), record, &mut done.alike)?;
        done.events.push((kind, begin.elapsed()));
    }
    if reader.rest() > 0 {
        return Err(format!("{} bytes are no record", reader.rest()));
    }
    done.tables = started.map_or(0, |(mmu, _)| mmu.usage().tables);
    Ok(done)
}

fn set(registers: &mut Registers, number: u8, value: u64) {
    match number {
        0 => registers.cr0 = value,
        3 => registers.cr3 = value,
        4 => registers.cr4 = value,
        _ => registers.efer = value,
    }
}

type Here<'a> = (&'a Memory, &'a Map);

/// One event; its place in [`KINDS`].
fn event(
    mmu: &mut Mmu<Linear, &Memory, &Memory>,
    vcpu: &mut Vcpu,
    (memory, map): Here<'_>,
    record: Record,
    alike: &mut u64,
) -> Result<usize, String> {
    let machine = Machine { memory, map };
    let failed = |error: &dyn std::fmt::Display| format!("{record:x?}: {error}");
    match record {
        Record::Fault {
            linear,
            code,
            by,
            verdict,
        } => {
            let fault = PageFault {
                code: ErrorCode(code),
                linear,
                cpl: by & 3,
                rflags: u64::from(by >> 2 & 1) << 18,
            };
            let answer = vcpu
                .handle_fault(mmu, machine, fault)
                .map_err(|error| failed(&error))?;
            settle(mmu, answer.owed);
            let found = number_of(&answer.verdict);
            let of_guest = |verdict| verdict == number::GUEST;
            if of_guest(found) != of_guest(verdict) || found == number::OTHER {
                return Err(failed(&format!("came to {:x?}", answer.verdict)));
            }
            *alike += u64::from(found == verdict);
            Ok(usize::from(found))
        }
        Record::Register { number, value } => {
            let control = match number {
                0 => vcpu.write_cr0(mmu, machine, value),
                3 => vcpu.write_cr3(mmu, machine, value),
                4 => vcpu.write_cr4(mmu, machine, value),
                _ => vcpu.write_efer(mmu, machine, value),
            };
            let control = control.map_err(|error| failed(&error))?;
            settle(mmu, control.owed);
            Ok(5)
        }
        Record::Invalidate { kind, linear } => {
            let owed = match kind {
                0 => vcpu.invpcid(mmu, machine, InvalidateKind::Address(linear)),
                1 => vcpu.invpcid(mmu, machine, InvalidateKind::Context),
                2 => vcpu.invpcid(mmu, machine, InvalidateKind::AllWithGlobal),
                3 => vcpu.invpcid(mmu, machine, InvalidateKind::All),
                _ => vcpu.invlpg(mmu, machine, linear),
            };
            settle(mmu, owed.map_err(|error| failed(&error))?);
            Ok(6)
        }
        Record::Wrote { at, length } => {
            let owed = mmu.guest_wrote(at, length.into());
            settle(mmu, owed);
            Ok(7)
        }
        _ => Err(failed(&"in the middle")),
    }
}

fn number_of<R>(verdict: &Verdict<R>) -> u8 {
    match verdict {
        Verdict::Repaired(Repair::Mapped) => number::MAPPED,
        Verdict::Repaired(Repair::Changed) => number::CHANGED,
        Verdict::Repaired(Repair::Spurious) => number::SPURIOUS,
        Verdict::Guest(_) => number::GUEST,
        Verdict::Guarded { .. } => number::GUARDED,
        _ => number::OTHER,
    }
}

#[inline]
fn settle(mmu: &mut Mmu<Linear, &Memory, &Memory>, owed: Owed) {
    let settled = mmu.settle(owed, |_| Ok::<(), Infallible>(()));
    settled.expect("our own token");
}

/// How long the guest's walk takes with a second one for each of its entries, and a store at the end.
fn walk(vcpu: &Vcpu, memory: &Memory, linear: u64, sink: &Cell<u64>) -> Duration {
    struct Nested<'a>(&'a Memory);
    impl hvkit_page_table::ReadEntry for Nested<'_> {
        type Error = Infallible;

        #[inline(always)]
        fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
            // Four loads that lead to one another, as a walk of the second dimension would make.
            let mut next = at;
            for level in (0..4).rev() {
                let index = next >> (12 + 9 * level) & 511;
                let word = self
                    .0
                    .word(SECOND_DIMENSION + (level << 12) + index * 8)
                    .get();
                next = next.wrapping_add(word);
            }
            self.0.read(next, width)
        }
    }
    let begin = Instant::now();
    if let (Some(format), Some(Root::Table(root))) = (vcpu.mode().format(), vcpu.mode().root()) {
        let there = translate(format, &Nested(memory), Root::Table(root), linear);
        sink.set(there.map_or(0, |there| there.target));
    }
    begin.elapsed()
}
