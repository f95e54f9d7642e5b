// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm --guest hello`: a guest of a few hundred bytes that shows whether this host's KVM, and this
//! VMM, do what a guest needs.
//!
//! It goes from real mode to long mode, prints, reads a port and memory where there is none,
//! computes with both, answers and halts. What it answers depends on numbers that it is given, so
//! that nothing but running it can be right.

mod program;
mod witness;

use crate::bus::{Bus, BusError};
use crate::confine::Confiner;
use crate::console::output::Output;
use crate::console::serial::SerialLine;
use crate::machine::address_map::{AddressMap, COM1_PORT, DoesNotFit};
use crate::machine::cpuid::Features;
use crate::machine::kvm::{self, KvmError};
use crate::machine::memory::{self, MemoryError};
use crate::machine::registers::Registers;
use crate::machine::stop::{Stop, StopReason};
use crate::machine::threads::{ThreadError, VcpuThreads};
use crate::machine::vcpu::{Buses, Vcpu};
use crate::machine::vm::Vm;
use kvm_bindings::kvm_regs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};
use witness::{Seen, Witness};

/// The slowest KVM measured needs some milliseconds.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// The guest's exits: one a letter, two port accesses, three in memory space, the halt.
const EXITS: usize = program::TEXT.len() + 6;

/// The guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The processor has fewer physical address bits than any.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
    /// Devices in each other's way.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Its thread.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The host refused something small.
    #[error("the host refused to {action}: {source}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What the guest did, beside what it should have done.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// How it ended; a halt is right.
    pub end: StopReason,
    /// What it printed.
    pub printed: String,
    /// Whether each step held, in the order they are made.
    pub steps: Vec<Step>,
    /// From the first instruction to the end.
    pub took: Duration,
}

/// One thing that the guest has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub name: &'static str,
    /// What it did.
    pub seen: String,
    /// What is right.
    pub expected: String,
}

impl Report {
    /// Whether the guest did all it should.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.steps.iter().all(|step| step.seen == step.expected)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "hello: a guest of {} bytes, {EXITS} exits, in {:.1} ms",
            program::image().len(),
            self.took.as_secs_f64() * 1e3
        )?;
        for Step {
            name,
            seen,
            expected,
        } in &self.steps
        {
            if seen == expected {
                writeln!(f, "  ok    {name}: {seen}")?;
            } else {
                writeln!(f, "  WRONG {name}: {seen}, expected {expected}")?;
            }
        }
        Ok(())
    }
}

/// Runs the guest on the KVM at `kvm`.
pub fn run(kvm: &Path) -> Result<Report, HelloError> {
    let host = |action| move |source| HelloError::Host { action, source };
    let kvm = kvm::open(kvm)?;
    let features = Features::of(&kvm)?;
    let map = AddressMap::new(program::MEMORY, features.address_bits())?;
    let vm = Arc::new(Vm::new(&kvm, memory::reserve(&map)?)?);
    vm.ram()
        .write_slice(&program::image(), GuestAddress(program::LOAD))
        .map_err(|error| host("write the program")(io::Error::other(error)))?;

    let seen = Arc::new(Mutex::new(Seen::default()));
    let [question, number] = [(); 2].map(|()| RandomState::new().hash_one(()));
    let question = question as u32;
    let buses = Buses {
        ports: Arc::new(Bus::default()),
        memory: Arc::new(Bus::default()),
    };
    let printed = Arc::clone(&seen);
    let output = Output::new(Box::new(witness::Printed(printed)), None);
    // The guest does not enable the line's interrupt, and there is no controller to take it.
    let line = EventFd::new(EFD_CLOEXEC)
        .and_then(|interrupt| SerialLine::new(interrupt, output))
        .map_err(host("create an eventfd"))?;
    buses
        .ports
        .insert(COM1_PORT.into(), 8, Arc::new(Mutex::new(line)))?;
    let port = Witness::new(Arc::clone(&seen), question.into());
    buses
        .ports
        .insert(program::PORT.into(), 4, Arc::new(Mutex::new(port)))?;
    let memory = Witness::new(Arc::clone(&seen), number);
    buses.memory.insert(
        program::MMIO,
        program::MMIO_LENGTH,
        Arc::new(Mutex::new(memory)),
    )?;

    let stop = Stop::new().map_err(host("create an eventfd"))?;
    let fd = vm
        .fd()
        .create_vcpu(0)
        .map_err(KvmError::refused("create a vCPU"))?;
    fd.set_cpuid2(&features.of_vcpu(0, 1))
        .map_err(KvmError::refused("set the processor features"))?;
    let mut system = fd
        .get_sregs()
        .map_err(KvmError::refused("read the registers"))?;
    // A processor starts at the top of 4 GiB; this one starts in its program.
    system.cs.selector = 0;
    system.cs.base = 0;
    fd.set_sregs(&system)
        .map_err(KvmError::refused("set the registers"))?;
    fd.set_regs(&kvm_regs {
        rip: program::LOAD,
        rflags: 2,
        ..Default::default()
    })
    .map_err(KvmError::refused("set the registers"))?;
    let vcpu = Vcpu::new(0, fd, Arc::clone(&vm), buses, stop.clone());

    let started = Instant::now();
    let threads = VcpuThreads::start(vec![vcpu], &Confiner::off(), &stop)?;
    let mut fds = [PollFd::new(stop.event(), PollFlags::IN)];
    // Whatever ends the wait, the guest is over: ended, too slow, or the user's signal.
    let waited = poll(&mut fds, Some(&PATIENCE));
    stop.ask(StopReason::Quit);
    let registers = threads.join()?;
    let took = started.elapsed();
    waited.map_err(|error| host("wait for the guest")(error.into()))?;
    let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    let end = stop.reason().cloned().unwrap_or(StopReason::Quit);
    Ok(report(
        end,
        &seen,
        registers.as_deref(),
        (question, number),
        took,
    ))
}

fn report(
    end: StopReason,
    seen: &Seen,
    registers: Option<&Registers>,
    (question, number): (u32, u64),
    took: Duration,
) -> Report {
    let expected = program::answers(question, number);
    let printed = String::from_utf8_lossy(&seen.printed).into_owned();
    let accesses = |accesses: &[(u64, u64)]| {
        let words: Vec<String> = accesses
            .iter()
            .map(|(offset, value)| format!("+{offset} {value:#x}"))
            .collect();
        words.join(", ")
    };
    let steps = vec![
        Step {
            name: "prints in real, protected and long mode",
            seen: format!("{printed:?}"),
            expected: format!("{:?}", program::TEXT),
        },
        Step {
            name: "reads the port and memory space",
            seen: accesses(&seen.read),
            expected: accesses(&[(0, question.into()), (8, number)]),
        },
        Step {
            name: "answers with 64-bit arithmetic",
            seen: accesses(&seen.written),
            expected: accesses(&[
                (0, expected.product),
                (16, expected.rotated),
                (0, expected.high.into()),
            ]),
        },
        Step {
            name: "ends",
            seen: format!(
                "{end}{}",
                registers.map_or(String::new(), |r| format!(", {}", mode(r)))
            ),
            expected: format!("{}, in long mode", StopReason::Halted { vcpu: 0 }),
        },
    ];
    Report {
        end,
        printed,
        steps,
        took,
    }
}

/// The processor's mode. SDM 3A, "Modes of Operation".
fn mode(registers: &Registers) -> &'static str {
    const CR0_PE: u64 = 1;
    const EFER_LMA: u64 = 1 << 10;
    let system = &registers.system;
    match (system.cr0 & CR0_PE != 0, system.efer & EFER_LMA != 0) {
        (false, _) => "in real mode",
        (true, false) => "in protected mode",
        (true, true) if system.cs.l != 0 => "in long mode",
        (true, true) => "in compatibility mode",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{kvm_segment, kvm_sregs};

    fn halted_in_long_mode() -> Registers {
        Registers {
            general: kvm_regs::default(),
            system: kvm_sregs {
                cr0: 0x8000_0011,
                efer: 0x500,
                cs: kvm_segment {
                    l: 1,
                    ..Default::default()
                },
                ..Default::default()
            },
        }
    }

    /// The guest's accesses for question 2 and number 1, worked out by hand.
    fn right() -> Seen {
        Seen {
            printed: b"real protected long\n".into(),
            read: vec![(0, 2), (8, 1)],
            written: vec![
                (0, 0x3c6e_f372_fe94_f82a),
                (16, 0xde6e_5fd2_9f05_678d),
                (0, 0xde6e_5fd2),
            ],
        }
    }

    fn holds(seen: &Seen, end: StopReason, registers: Option<&Registers>) -> bool {
        report(end, seen, registers, (2, 1), Duration::ZERO).holds()
    }

    #[test]
    fn only_the_whole_of_it_holds() {
        let halt = StopReason::Halted { vcpu: 0 };
        let long = halted_in_long_mode();
        assert!(holds(&right(), halt.clone(), Some(&long)));
        assert!(!holds(&right(), StopReason::Quit, Some(&long)));
        assert!(!holds(&right(), halt.clone(), None));
        let mut protected = long.clone();
        protected.system.efer = 0;
        assert!(!holds(&right(), halt.clone(), Some(&protected)));
        let breakages: [fn(&mut Seen); 4] = [
            |seen| seen.printed.truncate(14),
            |seen| seen.read[1].1 ^= 1,
            |seen| seen.written[1].1 ^= 1 << 63,
            |seen| seen.written.truncate(2),
        ];
        for breakage in breakages {
            let mut seen = right();
            breakage(&mut seen);
            assert!(!holds(&seen, halt.clone(), Some(&long)), "{seen:?}");
        }
    }
}
