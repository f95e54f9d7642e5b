// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread for each vCPU, and their end: each is made to leave the guest, and joined, in bounded
//! time.
//!
//! A signal makes KVM_RUN return. One that arrives just before KVM_RUN is lost, so it is repeated
//! until the thread has ended: no flag has to be shared with the thread for that.

use super::pause::{Answer, Gates, Order};
use super::registers::Registers;
use super::stop::{Stop, StopReason};
use super::vcpu::Vcpu;
use crate::confine::{Confiner, Kind};
use crate::snapshot::{Processor, SnapshotError};
use hvkit_virtio_devices::patience::end_of;
use std::io;
use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// A vCPU's thread emulates devices, with no deep calls and no large buffers.
const STACK: usize = 128 << 10;
/// Between two signals to a thread that should leave the guest.
const KICK_INTERVAL: Duration = Duration::from_millis(1);
/// A thread that has not ended after this long is stuck outside the guest, in the host.
const PATIENCE: Duration = Duration::from_secs(10);

/// The vCPUs' threads could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The handler of the signal that makes a vCPU leave the guest.
    #[error("cannot install a signal handler: {0}")]
    Handler(io::Error),
    /// The host would not start a thread.
    #[error("cannot start the thread of vCPU {vcpu}: {source}")]
    Start {
        /// Which vCPU.
        vcpu: u32,
        /// Why.
        source: io::Error,
    },
    /// A thread did not end in time.
    #[error("vCPU {vcpu} is stuck in the host and did not stop in {PATIENCE:?}")]
    Stuck {
        /// Which vCPU.
        vcpu: u32,
    },
}

/// Running vCPUs.
#[derive(Debug)]
pub struct VcpuThreads {
    running: Vec<(u32, JoinHandle<Option<Box<Registers>>>)>,
    gates: Gates,
    stop: Stop,
}

impl VcpuThreads {
    /// Starts a thread for each of `vcpus`, confined by `confiner`. If one cannot be started, those before it have ended
    /// when this returns.
    pub fn start(vcpus: Vec<Vcpu>, confiner: &Confiner, stop: &Stop) -> Result<Self, ThreadError> {
        extern "C" fn leave_the_guest(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
            // Nothing to do: that there is a handler is what makes KVM_RUN return.
        }
        register_signal_handler(SIGRTMIN(), leave_the_guest)
            .map_err(|error| ThreadError::Handler(error.into()))?;
        let mut threads = VcpuThreads {
            running: Vec::with_capacity(vcpus.len()),
            gates: Gates::new(),
            stop: stop.clone(),
        };
        for mut vcpu in vcpus {
            let id = vcpu.id();
            vcpu.stand_still_at(threads.gates.add(id));
            match spawn(vcpu, confiner.clone(), stop.clone()) {
                Ok(thread) => threads.running.push((id, thread)),
                Err(source) => {
                    stop.ask(StopReason::Quit);
                    threads.join()?;
                    return Err(ThreadError::Start { vcpu: id, source });
                }
            }
        }
        Ok(threads)
    }

    /// Makes every vCPU leave the guest and stand still, with nothing begun and not finished. Whatever is returned,
    /// [`go_on`](Self::go_on) lets them run again.
    pub(super) fn pause(&self) -> Result<(), SnapshotError> {
        self.gates.shut();
        let deadline = end_of(PATIENCE);
        let mut still = 0usize;
        while still < self.gates.count() {
            for (vcpu, thread) in &self.running {
                if thread.is_finished() {
                    return Err(SnapshotError::Ended { vcpu: *vcpu });
                }
                if let Err(error) = thread.kill(SIGRTMIN()) {
                    log::debug!("signal to vCPU {vcpu}: {error}");
                }
            }
            match self.gates.answer(KICK_INTERVAL) {
                Ok(Some((_, Answer::Still))) => still = still.saturating_add(1),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Err(SnapshotError::Stuck { patience: PATIENCE }),
            }
        }
        Ok(())
    }

    /// The states of all vCPUs, which stand still, in the order of their numbers.
    pub(super) fn save(&self, registers: &Arc<[u32]>) -> Result<Vec<Processor>, SnapshotError> {
        self.gates.tell(&Order::Save(Arc::clone(registers)));
        let mut states = Vec::with_capacity(self.gates.count());
        while states.len() < self.gates.count() {
            match self.gates.answer(PATIENCE) {
                Ok(Some((vcpu, Answer::State(state)))) => states.push((vcpu, *state?)),
                Ok(_) => {}
                Err(_) => return Err(SnapshotError::Stuck { patience: PATIENCE }),
            }
        }
        states.sort_by_key(|(vcpu, _)| *vcpu);
        Ok(states.into_iter().map(|(_, state)| state).collect())
    }

    /// Lets the vCPUs run that stand still.
    pub(super) fn go_on(&self) {
        self.gates.open();
    }

    /// Makes every vCPU leave the guest and waits for its thread; the machine must have been asked
    /// to stop. The result is the registers of the vCPU that ended it, if they tell why.
    pub fn join(mut self) -> Result<Option<Box<Registers>>, ThreadError> {
        debug_assert!(self.stop.is_asked(), "running vCPUs would never end");
        let deadline = end_of(PATIENCE);
        let mut registers = None;
        for (vcpu, thread) in self.running.drain(..) {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    return Err(ThreadError::Stuck { vcpu });
                }
                if let Err(error) = thread.kill(SIGRTMIN()) {
                    log::debug!("signal to vCPU {vcpu}: {error}");
                }
                thread::sleep(KICK_INTERVAL);
            }
            // A panic has been reported through `Defect`.
            registers = registers.or(thread.join().ok().flatten());
        }
        Ok(registers)
    }
}

fn spawn(
    mut vcpu: Vcpu,
    confiner: Confiner,
    stop: Stop,
) -> io::Result<JoinHandle<Option<Box<Registers>>>> {
    let name = format!("vcpu{}", vcpu.id());
    thread::Builder::new()
        .name(name.clone())
        .stack_size(STACK)
        .spawn(move || {
            if let Err(error) = confiner.enter(Kind::Vcpu) {
                log::error!("{error}");
                stop.ask(StopReason::Defect { thread: name });
                return None;
            }
            let watch = PanicWatch::new(name, stop);
            let registers = vcpu.run();
            drop(watch);
            registers
        })
}

/// Stops the machine if its thread panics: without that thread the guest would wait for ever.
#[derive(Debug)]
pub(crate) struct PanicWatch {
    name: String,
    stop: Stop,
}

impl PanicWatch {
    /// Made and dropped in the thread of that name.
    pub(crate) fn new(name: String, stop: Stop) -> Self {
        PanicWatch { name, stop }
    }
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.stop.ask(StopReason::Defect {
                thread: std::mem::take(&mut self.name),
            });
        }
    }
}
