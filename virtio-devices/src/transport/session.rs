// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a device from reset to reset, whatever registers it is driven by.
//!
//! ```text
//!                 status write                                    frozen from here on
//!   reset ---> ACKNOWLEDGE ---> DRIVER ---> FEATURES_OK           features
//!     ^                                         |
//!     |                                         v
//!     '------- write of 0 <---- (failed) <- DRIVER_OK             features, queues
//!              workers stop        DEVICE_NEEDS_RESET
//! ```
//!
//! A bit is taken only when its turn has come, and none is cleared but by a reset. A reset is complete, and
//! the status reads 0, when the last worker has stopped: until then nothing can be set up again, so an old
//! worker never meets a new queue.
//!
//! "Driver Requirements: Device Initialization" (3.1.1), "Device Status Field" (2.1).

mod restore;
mod stop_queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Status;
use super::queue_registers::QueueRegisters;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, Failure, Interrupts};
use crate::features::{DeviceType, Features};
use crate::queue::{Layout, Queue};
use crate::worker::{Runner, Running, Stopped, Worker};

/// How long the write that resets a device waits for its workers. They answer far sooner, unless the host's
/// storage hangs; then the driver sees the reset complete later.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the end of a device waits for its workers: as long as storage may take to store.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// The status field, shared with whoever can find that the device has failed.
#[derive(Debug, Default)]
pub(super) struct SharedStatus(AtomicU8);

impl SharedStatus {
    pub(super) fn get(&self) -> Status {
        Status::from_bits_retain(self.0.load(Ordering::Acquire))
    }

    /// Sets bits, and returns what was set before.
    pub(super) fn add(&self, status: Status) -> Status {
        Status::from_bits_retain(self.0.fetch_or(status.bits(), Ordering::AcqRel))
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
}

bitflags::bitflags! {
    /// Why a live device's workers do not run.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Holds: u8 {
        /// The bus does not let it access memory.
        const BUS = 1;
        /// The VMM has paused it.
        const PAUSED = 2;
        /// A queue is taken from those who serve it.
        const QUEUE = 4;
    }
}

/// Workers that are to go on, and neither do nor can be started again.
struct Missing {
    /// They ended.
    gone: usize,
    /// They neither go on nor come back.
    stuck: usize,
}

/// What a write to the status field led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Bits were taken, or not.
    Taken,
    /// The reset is complete.
    Reset,
}

/// A device and what its driver has settled about it.
pub(super) struct Session<A> {
    device: Box<dyn Device<A>>,
    memory: A,
    runner: Box<dyn Runner>,
    offered: Features,
    accepted: Features,
    status: Arc<SharedStatus>,
    queues: Vec<QueueRegisters>,
    kicks: Vec<EventFd>,
    workers: Vec<Box<dyn Running>>,
    /// Workers that are not to run now.
    held: Vec<Box<dyn Worker>>,
    /// Workers that are not to run before a reset: the driver has stopped a queue of theirs.
    stopped: Vec<Box<dyn Worker>>,
    /// Queues that the driver has stopped, while their workers are still in a call.
    stopping: Vec<u16>,
    holds: Holds,
    resetting: bool,
}

impl<A: GuestAddressSpace> Session<A> {
    /// A device as after a reset. `transport` are the features that the transport adds.
    pub(super) fn new(
        device: Box<dyn Device<A>>,
        memory: A,
        runner: Box<dyn Runner>,
        transport: Features,
    ) -> std::io::Result<Self> {
        let queues: Vec<_> = device
            .queue_sizes()
            .into_iter()
            .map(QueueRegisters::new)
            .collect();
        let kicks = queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            offered: device.features() | device.queue_features() | Features::VERSION_1 | transport,
            accepted: Features::empty(),
            device,
            memory,
            runner,
            status: Arc::default(),
            queues,
            kicks,
            workers: Vec::new(),
            held: Vec::new(),
            stopped: Vec::new(),
            stopping: Vec::new(),
            holds: Holds::empty(),
            resetting: false,
        })
    }

    pub(super) fn device_type(&self) -> DeviceType {
        self.device.device_type()
    }

    pub(super) fn shared_status(&self) -> Arc<SharedStatus> {
        Arc::clone(&self.status)
    }

    pub(super) fn offer(&mut self, features: Features) {
        self.offered |= features;
    }

    /// Takes features back that were offered, before a driver has seen them.
    pub(super) fn withdraw(&mut self, features: Features) {
        self.offered.remove(features);
    }

    /// 32 offered feature bits; none beyond the second word.
    pub(super) fn offered(&self, word: u32) -> u32 {
        word_of(self.offered, word)
    }

    /// 32 feature bits that the driver has written.
    pub(super) fn accepted(&self, word: u32) -> u32 {
        word_of(self.accepted, word)
    }

    /// The driver writes 32 feature bits, which counts until it has set FEATURES_OK.
    pub(super) fn accept(&mut self, word: u32, bits: u32) {
        let shift = match word {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.resetting || self.status.get().contains(Status::FEATURES_OK) {
            return;
        }
        let kept = self.accepted.bits() & !(0xffff_ffff << shift);
        self.accepted = Features::from_bits_retain(kept | u64::from(bits) << shift);
    }

    /// Whether the device can work with what the driver has accepted.
    fn acceptable(&self) -> bool {
        self.can_work_with(self.accepted)
    }

    fn can_work_with(&self, accepted: Features) -> bool {
        // ACCESS_PLATFORM is offered only where accesses are translated; a driver that does not know of it
        // would give us addresses that mean nothing (6.1).
        let needed = Features::VERSION_1 | (self.offered & Features::ACCESS_PLATFORM);
        self.offered.contains(accepted) && accepted.contains(needed)
    }

    /// The status field. A read also completes a reset that is under way, when it can.
    pub(super) fn status(&mut self) -> (Status, Outcome) {
        let outcome = if self.resetting {
            self.finish_reset(Duration::ZERO)
        } else {
            Outcome::Taken
        };
        (self.status.get(), outcome)
    }

    /// The driver writes the status field.
    pub(super) fn set_status(&mut self, value: u8, interrupts: &Arc<dyn Interrupts>) -> Outcome {
        if value == 0 {
            return self.reset();
        }
        if self.resetting {
            return Outcome::Taken;
        }
        let value = Status::from_bits_retain(value);
        let old = self.status.get();
        let mut new = value & (Status::ACKNOWLEDGE | Status::DRIVER | Status::FAILED);
        let known = (old | new).contains(Status::ACKNOWLEDGE | Status::DRIVER);
        if value.contains(Status::FEATURES_OK) && known && self.acceptable() {
            new |= Status::FEATURES_OK;
        }
        // The driver reads FEATURES_OK back before it goes on, so both never come in one write.
        let live = value.contains(Status::DRIVER_OK)
            && old.contains(Status::FEATURES_OK)
            && !old.contains(Status::DRIVER_OK);
        if live {
            new |= Status::DRIVER_OK;
        }
        if new.contains(Status::FEATURES_OK) && !old.contains(Status::FEATURES_OK) {
            self.device.negotiated(self.accepted);
        }
        self.status.add(new);
        if live && let Err(why) = self.activate(interrupts) {
            // Those that did start have nothing to do any more. The reset collects them.
            self.stop_workers();
            interrupts.needs_reset(&why);
        }
        Outcome::Taken
    }

    fn activate(&mut self, interrupts: &Arc<dyn Interrupts>) -> Result<(), Failure> {
        let mut queues = Vec::new();
        {
            let memory = self.memory.memory();
            for ((registers, kick), index) in self.queues.iter().zip(&self.kicks).zip(0..) {
                if registers.is_enabled() {
                    let queue = Queue::new(registers.config(), self.accepted, &*memory).map_err(
                        |source| Failure::Queue {
                            index,
                            source: source.into(),
                        },
                    )?;
                    let kick = kick.try_clone().map_err(ActivateError::Host)?;
                    queues.push(ActiveQueue { index, queue, kick });
                }
            }
        }
        let workers = self.device.activate(Activation {
            memory: self.memory.clone(),
            features: self.accepted,
            queues,
            interrupts: Arc::clone(interrupts),
        })?;
        self.held = workers;
        if self.holds.is_empty() {
            self.start_held()?;
        }
        Ok(())
    }

    fn start_held(&mut self) -> Result<(), Failure> {
        for worker in self.held.drain(..) {
            self.workers.push(self.runner.start(worker)?);
        }
        Ok(())
    }

    /// Stops the workers and keeps them, until the last hold is released. A worker in a call that does not
    /// return within [`PATIENCE`] ends with that call, unless the hold has ended by then: it goes on. The next hold
    /// waits for it again, whatever holds already.
    pub(super) fn hold(&mut self, hold: Holds, interrupts: &Arc<dyn Interrupts>) {
        self.holds |= hold;
        self.stop_workers();
        let gone = self.collect(PATIENCE);
        self.tell_gone(gone, interrupts);
    }

    /// Tells of workers that are gone: their queues are not served any more, and whoever began them anew would serve old chains again.
    fn tell_gone(&self, gone: usize, interrupts: &Arc<dyn Interrupts>) {
        // A reset forgets them as it does the others.
        if gone > 0 && !self.resetting {
            interrupts.needs_reset(&Failure::Gone { workers: gone });
        }
    }

    /// Ends a hold.
    pub(super) fn release(&mut self, hold: Holds, interrupts: &Arc<dyn Interrupts>) {
        let held = !self.holds.is_empty();
        self.holds.remove(hold);
        if !held || !self.holds.is_empty() || self.resetting {
            return;
        }
        let Missing { gone, stuck } = self.go_on();
        self.tell_gone(gone, interrupts);
        let started = match stuck {
            0 => self.start_held(),
            _ => Err(Failure::Stuck { workers: stuck }),
        };
        if let Err(why) = started {
            self.stop_workers();
            interrupts.needs_reset(&why);
        }
    }

    /// Has those workers go on that were in a call all the while, and takes back the others.
    fn go_on(&mut self) -> Missing {
        let mut gone = self.collect(Duration::ZERO);
        let mut stuck = 0usize;
        for mut worker in std::mem::take(&mut self.workers) {
            let ended = match worker.go_on() {
                true => None,
                // It has ended just now, and is on its way back.
                false => Some(worker.stopped(PATIENCE)),
            };
            match ended {
                None => self.workers.push(worker),
                Some(Stopped::With(worker)) => self.held.push(worker),
                Some(Stopped::Gone) => gone = gone.saturating_add(1),
                Some(Stopped::NotYet) => {
                    stuck = stuck.saturating_add(1);
                    self.workers.push(worker);
                }
            }
        }
        Missing { gone, stuck }
    }

    fn reset(&mut self) -> Outcome {
        self.stop_workers();
        self.resetting = true;
        self.finish_reset(PATIENCE)
    }

    /// Waits for all workers together, at most `patience`; when all have stopped, forgets everything.
    fn finish_reset(&mut self, patience: Duration) -> Outcome {
        self.collect(patience);
        if !self.workers.is_empty() {
            return Outcome::Taken;
        }
        self.held.clear();
        self.stopped.clear();
        self.stopping.clear();
        self.holds.remove(Holds::QUEUE);
        self.resetting = false;
        self.device.reset();
        self.accepted = Features::empty();
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        for kick in &self.kicks {
            // What was not yet served is forgotten. An error means that there was nothing.
            let _ = kick.read();
        }
        self.status.clear();
        Outcome::Reset
    }

    pub(super) fn queue_count(&self) -> u16 {
        // Checked by each transport when it is made.
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn queue(&self, index: u16) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(index))
    }

    /// The layout that the driver's queues have, by the features it has written so far.
    pub(super) fn layout(&self) -> Layout {
        Layout::of(self.accepted)
    }

    /// A queue's registers, while the driver may still change them.
    pub(super) fn queue_mut(&mut self, index: u16) -> Option<&mut QueueRegisters> {
        if self.resetting || self.status.get().contains(Status::DRIVER_OK) {
            return None;
        }
        self.queues.get_mut(usize::from(index))
    }

    /// One event a queue, readable after the driver has notified it.
    pub(super) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    pub(super) fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.device.config_read(offset, data);
    }

    pub(super) fn config_write(&mut self, offset: u64, data: &[u8]) {
        if !self.resetting {
            self.device.config_write(offset, data);
        }
    }
}

fn word_of(features: Features, word: u32) -> u32 {
    match word {
        0 => features.bits() as u32,
        1 => (features.bits() >> 32) as u32,
        _ => 0,
    }
}

impl<A> Session<A> {
    fn stop_workers(&mut self) {
        for worker in &mut self.workers {
            worker.request_stop();
        }
    }

    /// Takes back the workers that have stopped, waiting at most `patience` for all of them; how many are gone instead.
    fn collect(&mut self, patience: Duration) -> usize {
        let mut gone = 0usize;
        let start = Instant::now();
        let held = &mut self.held;
        self.workers.retain_mut(|worker| {
            let left = patience.saturating_sub(start.elapsed());
            match worker.stopped(left) {
                Stopped::NotYet => true,
                Stopped::Gone => {
                    gone = gone.saturating_add(1);
                    false
                }
                Stopped::With(worker) => {
                    held.push(worker);
                    false
                }
            }
        });
        gone
    }
}

/// Who drops a device has its workers back: what they hold is let go, and what an image of theirs still has to write is
/// written, before this returns. One in a call that takes longer is left to its thread.
impl<A> Drop for Session<A> {
    fn drop(&mut self) {
        self.stop_workers();
        self.collect(LAST_PATIENCE);
    }
}
