// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A memory balloon: virtio-balloon. The guest gives pages to the host, and takes them back.
//!
//! ```text
//!   queue 0  inflate      page numbers --> Reclaim         the guest does without them
//!   queue 1  deflate      page numbers                     it uses them again, and finds zeros
//!   queue 2  statistics   one buffer, answered when the host asks for the next
//!   queue 3  hints        free pages of the guest, when the host asks: kept as a list
//!   queue 4  reporting    free pages of the guest --> Reclaim, for as long as it leaves them free
//! ```
//!
//! A driver may count only the queues that it uses (Linux does): of those after the statistics, the first is for hints
//! and the last for reporting then.
//!
//! "Traditional Memory Balloon Device" (5.5).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod hints;
mod pages;
mod statistics;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use hints::{Hints, Round};
pub use statistics::{Statistic, Statistics};

use self::hints::{DONE, Hint, STOP};
use self::pages::{Deflate, Inflate, Report};
use self::statistics::Listener;
use crate::bytes::{put_at, read_at};
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, ConfigEvents, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::reclaim::Reclaim;
use crate::serve::QueueServer;
use crate::worker::Worker;

/// Feature bits of a balloon (5.5.3).
pub mod feature {
    use crate::features::Features;

    /// VIRTIO_BALLOON_F_STATS_VQ: the statistics queue.
    pub const STATS_VQ: Features = Features::from_bits_retain(1 << 1);
    /// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may take pages back when it has no others.
    pub const DEFLATE_ON_OOM: Features = Features::from_bits_retain(1 << 2);
    /// VIRTIO_BALLOON_F_FREE_PAGE_HINT: the queue for hints.
    pub const FREE_PAGE_HINT: Features = Features::from_bits_retain(1 << 3);
    /// VIRTIO_BALLOON_F_PAGE_POISON: the driver says what it fills free pages with.
    pub const PAGE_POISON: Features = Features::from_bits_retain(1 << 4);
    /// VIRTIO_BALLOON_F_PAGE_REPORTING: the reporting queue.
    pub const PAGE_REPORTING: Features = Features::from_bits_retain(1 << 5);
}

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const HINTS: u16 = 3;
const QUEUES: usize = 5;
const QUEUE_SIZE: u16 = 128;

/// Bytes of "struct virtio_balloon_config", and where its fields after the target are.
const CONFIG: usize = 16;
const ACTUAL: usize = 4;
const COMMAND: usize = 8;
const POISON: usize = 12;
/// What is saved: the configuration, and the identifier of the last round of hints. Earlier versions saved the former alone.
const SAVED: usize = CONFIG + 4;

/// What a balloon should do. Nothing but inflate, deflate and tell statistics, unless asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pages: u32,
    features: Features,
}

impl Options {
    /// A balloon that starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the guest for so many pages of 4 KiB from the start.
    #[must_use]
    pub fn with_target(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    /// Lets the guest take pages back, whatever the target, when it has no others.
    #[must_use]
    pub fn with_deflate_on_oom(mut self) -> Self {
        self.features |= feature::DEFLATE_ON_OOM;
        self
    }

    /// Takes back pages that the guest has free, for as long as it leaves them free.
    #[must_use]
    pub fn with_free_page_reporting(mut self) -> Self {
        self.features |= feature::PAGE_REPORTING | feature::PAGE_POISON;
        self
    }
}

impl Options {
    /// Lets the host ask which pages the guest has free.
    #[must_use]
    pub fn with_free_page_hints(mut self) -> Self {
        self.features |= feature::FREE_PAGE_HINT | feature::PAGE_POISON;
        self
    }
}

/// What the device, its workers and whoever runs it share.
#[derive(Debug)]
struct Shared {
    /// Pages that the guest should do without.
    target: AtomicU32,
    /// Pages that it says it does without.
    actual: AtomicU32,
    /// What it fills free pages with.
    poison: AtomicU32,
    /// What the driver is asked of hints: [`STOP`], [`DONE`], or a round's identifier. Written with `hints` locked, once a worker runs.
    command: AtomicU32,
    /// The identifier of the last round.
    last_round: AtomicU32,
    hints: Mutex<Hints>,
    statistics: Mutex<Statistics>,
    /// Readable when statistics were asked for.
    asked: EventFd,
    events: ConfigEvents,
}

impl Shared {
    fn statistics(&self) -> MutexGuard<'_, Statistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A balloon in the hands of whoever runs the device.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Asks the guest to do without so many pages of 4 KiB. It obeys when and as far as it can.
    pub fn set_target(&self, pages: u32) {
        if self.0.target.swap(pages, Ordering::SeqCst) != pages {
            self.0.events.changed();
        }
    }

    /// Pages that the guest was asked for.
    pub fn target(&self) -> u32 {
        self.0.target.load(Ordering::SeqCst)
    }

    /// Pages that the guest says it has given. Its word alone.
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst)
    }

    /// Whether a driver is there that can be asked.
    pub fn has_driver(&self) -> bool {
        self.0.events.is_connected()
    }

    /// Asks the guest for new statistics: [`Statistics::answers`] goes up when they have come.
    ///
    /// # Errors
    ///
    /// The host's, if the event cannot be signalled.
    pub fn ask_statistics(&self) -> io::Result<()> {
        self.0.asked.write(1)
    }

    /// Asks the guest which pages it has free now, and forgets what it said before. It keeps them, as a rule, until
    /// [`end_hints`](Self::end_hints).
    pub fn ask_hints(&self) {
        hints::begin(&self.0);
        self.0.events.changed();
    }

    /// Lets the guest use its free pages again. What it hinted is still known; what it hints from now on is ignored.
    pub fn end_hints(&self) {
        if hints::end(&self.0) {
            self.0.events.changed();
        }
    }

    /// What the guest has hinted in the last round. Its word alone.
    pub fn hints(&self) -> Hints {
        self.0.hints().clone()
    }

    /// What the guest said last. Its word alone.
    pub fn statistics(&self) -> Statistics {
        self.0.statistics().clone()
    }
}

/// A memory balloon.
pub struct Balloon {
    options: Options,
    reclaim: Arc<dyn Reclaim>,
    shared: Arc<Shared>,
    counters: [Counters; QUEUES],
    /// The configuration has changed while there was nobody to be told.
    untold: bool,
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balloon")
            .field("options", &self.options)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Balloon {
    /// A balloon whose pages go to `reclaim`.
    ///
    /// # Errors
    ///
    /// The host has no event to give.
    pub fn new(options: Options, reclaim: Arc<dyn Reclaim>) -> io::Result<Self> {
        let shared = Shared {
            target: AtomicU32::new(options.pages),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            command: AtomicU32::new(STOP),
            last_round: AtomicU32::new(DONE),
            hints: Mutex::default(),
            statistics: Mutex::default(),
            asked: EventFd::new(EFD_NONBLOCK)?,
            events: ConfigEvents::default(),
        };
        Ok(Self {
            options,
            reclaim,
            shared: Arc::new(shared),
            counters: Default::default(),
            untold: false,
        })
    }

    /// The balloon's control.
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }

    /// The numbers of each queue. Bytes are those of the pages.
    pub fn counters(&self) -> &[Counters; QUEUES] {
        &self.counters
    }

    fn config(&self) -> [u8; CONFIG] {
        let mut config = [0; CONFIG];
        let target = (0, &self.shared.target);
        let command = (COMMAND, &self.shared.command);
        for (at, field) in [target, command].into_iter().chain(self.writable()) {
            put_at(&mut config, at, &field.load(Ordering::SeqCst).to_le_bytes());
        }
        config
    }

    fn writable(&self) -> [(usize, &AtomicU32); 2] {
        [(ACTUAL, &self.shared.actual), (POISON, &self.shared.poison)]
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::BALLOON
    }

    fn features(&self) -> Features {
        feature::STATS_VQ | self.options.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_at(&self.config(), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        put_at(
            &mut config,
            usize::try_from(offset).unwrap_or(usize::MAX),
            data,
        );
        for (at, field) in self.writable() {
            let mut raw = [0; 4];
            read_at(&config, at as u64, &mut raw);
            field.store(u32::from_le_bytes(raw), Ordering::SeqCst);
        }
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation {
            memory,
            features,
            mut queues,
            interrupts,
        } = activation;
        self.shared.events.connect(Some(Arc::clone(&interrupts)));
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        /// A worker for a queue, with what all of them have.
        macro_rules! serve {
            ($active:expr, $handler:expr) => {{
                let active: ActiveQueue = $active;
                let counters = self.counters.get(usize::from(active.index)).cloned();
                let server =
                    QueueServer::new(memory.clone(), active, Arc::clone(&interrupts), $handler);
                workers.push(Box::new(server.with_counters(counters.unwrap_or_default())));
            }};
        }
        serve!(
            ActiveQueue::take(&mut queues, INFLATE)?,
            Inflate::new(Arc::clone(&self.reclaim))
        );
        serve!(ActiveQueue::take(&mut queues, DEFLATE)?, Deflate);
        if features.contains(feature::STATS_VQ)
            && let Ok(active) = ActiveQueue::take(&mut queues, STATISTICS)
        {
            serve!(active, Listener::new(Arc::clone(&self.shared)));
        }
        let (hinting, reporting) = free_page_queues(queues, features);
        if let Some(active) = hinting {
            serve!(active, Hint::new(Arc::clone(&self.shared)));
        }
        if let Some(active) = reporting {
            let report = Report::new(Arc::clone(&self.reclaim), Arc::clone(&self.shared));
            serve!(active, report);
        }
        if std::mem::take(&mut self.untold) {
            interrupts.config();
        }
        Ok(workers)
    }

    fn counters(&self) -> Vec<Counters> {
        self.counters.to_vec()
    }

    fn reset(&mut self) {
        self.shared.events.connect(None);
        // The next driver starts with all of its pages.
        for (_, field) in self.writable() {
            field.store(0, Ordering::SeqCst);
        }
        self.shared.statistics().forget();
        hints::forget(&self.shared);
        // A question of before is nobody's any more. An error means that there was none.
        let _ = self.shared.asked.read();
    }

    /// The configuration structure, and the identifier of the last round of hints (32 bits).
    fn save(&self) -> Result<Vec<u8>, StateError> {
        let last = self.shared.last_round.load(Ordering::SeqCst);
        Ok([&self.config()[..], &last.to_le_bytes()].concat())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (config, last) = match state.split_first_chunk::<CONFIG>() {
            Some((config, [])) => (config, None),
            Some((config, &[l0, l1, l2, l3])) => (config, Some([l0, l1, l2, l3])),
            _ => {
                return Err(StateError::Length {
                    saved: state.len(),
                    expected: SAVED,
                });
            }
        };
        let [t0, t1, t2, t3, ..] = *config;
        let target = u32::from_le_bytes([t0, t1, t2, t3]);
        self.shared.target.store(target, Ordering::SeqCst);
        Device::<A>::config_write(self, 0, config);
        // What was hinted stays behind, so the round is over; the driver is told when it can be.
        let [.., c0, c1, c2, c3, _, _, _, _] = *config;
        let command = u32::from_le_bytes([c0, c1, c2, c3]);
        self.shared.command.store(command, Ordering::SeqCst);
        // Linux does not answer to the identifier that it has answered to last, although that round is over.
        let last = last.map_or(command, u32::from_le_bytes);
        self.shared.last_round.store(last, Ordering::SeqCst);
        self.untold = hints::end(&self.shared);
        Ok(())
    }
}

/// Of the queues after the statistics: which is for hints, and which for reporting.
fn free_page_queues(
    mut queues: Vec<ActiveQueue>,
    features: Features,
) -> (Option<ActiveQueue>, Option<ActiveQueue>) {
    queues.sort_by_key(|active| active.index);
    let hints = features.contains(feature::FREE_PAGE_HINT);
    let reports = features.contains(feature::PAGE_REPORTING);
    let mut queues = queues.into_iter();
    match (hints, reports) {
        (true, true) => match (queues.next(), queues.next_back()) {
            (Some(only), None) if only.index > HINTS => (None, Some(only)),
            both => both,
        },
        (true, false) => (queues.next(), None),
        (false, true) => (None, queues.next_back()),
        (false, false) => (None, None),
    }
}
