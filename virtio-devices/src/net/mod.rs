// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card: virtio-net over a tap interface, or over anything that takes frames.
//!
//! ```text
//!   queue 0  receive    wire --> header:12, frame --> chain      one frame a chain, or over several
//!   queue 1  transmit   chain --> header:12, frame --> wire
//!   ...                 as many pairs as there are wires; the driver says how many of them it uses
//!   queue 2n control    class:8, command:8, data --> ack:8
//! ```
//!
//! A driver that accepts it says on the control queue which frames it wants, by destination and VLAN; others are taken from the
//! wire and dropped.
//!
//! The header goes through as it is: what it asks for (checksums, segmentation) is the host kernel's to do, which
//! checks it. Only what the wire can do is offered.
//!
//! "Network Device" (5.1).
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

mod both_ways;
mod config;
pub(crate) mod control;
mod filter;
mod frames;
mod link;
mod merge;
mod pairs;
mod stream;
mod tap;

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

pub use config::{Duplex, MOST_SPEED, MacAddress, Options, OptionsError, feature};
pub use frames::Wire;
pub use link::{Link, LinkState};
pub use stream::FrameStream;
pub use tap::{Tap, TapError};

use self::both_ways::BothWays;
use self::control::Control;
use self::filter::{Filter, Sieve};
use self::frames::{Receiver, Sender};
use self::link::{Announce, Cause};
use self::merge::Merger;
use self::pairs::{Line, Pairs};
use crate::bytes::read_at;
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, Interrupts, StateError};
use crate::features::{DeviceType, Features};
use crate::limit::Allowance;
use crate::serve::QueueServer;
use crate::worker::Worker;

/// The control queue of a driver that knows of one pair only.
pub(crate) const CONTROL_OF_ONE: u16 = 2;
const QUEUE_SIZE: u16 = 256;
/// What a driver can say of the frames that it wants.
const FILTERS: Features = feature::CTRL_RX
    .union(feature::CTRL_VLAN)
    .union(feature::CTRL_RX_EXTRA)
    .union(feature::CTRL_MAC_ADDR);
pub(crate) const CONTROL_SIZE: u16 = 64;

/// The most pairs of queues that a card can have here.
pub const MAX_PAIRS: u16 = 64;

/// A network card.
#[derive(Debug)]
pub struct Net {
    pairs: Arc<Pairs>,
    options: Options,
    link: Link,
    filter: Filter,
    /// One for each queue.
    counters: Vec<Counters>,
    /// For what is received, and for what is sent.
    allowances: [Allowance; 2],
    /// It was restored, and its driver is not there yet: why the link was down.
    moved: Option<Cause>,
}

impl Net {
    /// A card at the end of `wire`, with one pair of queues.
    pub fn new(options: Options, wire: Wire) -> Self {
        Self::with(options, Pairs::one(wire))
    }

    /// A card with a pair of queues for each of `wires`, which are [a tap's queues](Tap::open_queues), say. A driver
    /// that knows of one pair only uses the first.
    pub fn with_pairs(options: Options, wires: Vec<Wire>) -> Result<Self, OptionsError> {
        let pairs = Pairs::new(wires).map_err(|pairs| OptionsError::Pairs { pairs })?;
        Ok(Self::with(options, pairs))
    }

    fn with(options: Options, pairs: Pairs) -> Self {
        Self {
            counters: Counters::each(queue_count(pairs.most())),
            allowances: [(); 2].map(|()| Allowance::new(options.limits())),
            pairs: Arc::new(pairs),
            options,
            link: Link::default(),
            filter: Filter::default(),
            moved: None,
        }
    }

    /// The link, which starts up.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// The numbers of each queue, in order of index.
    pub fn counters(&self) -> &[Counters] {
        &self.counters
    }
}

/// The queues of that many pairs, and the control queue.
fn queue_count(pairs: u16) -> usize {
    let queues = usize::from(pairs).saturating_mul(2);
    queues.saturating_add(1)
}

impl Net {
    /// The numbers of one queue.
    fn counters_of(&self, queue: &ActiveQueue) -> Counters {
        let counters = self.counters.get(usize::from(queue.index));
        counters.cloned().unwrap_or_default()
    }

    /// For one who receives.
    fn sieve(&self) -> Sieve {
        Sieve::new(self.filter.clone())
    }

    /// The worker of one pair.
    fn pair<A: GuestAddressSpace + Send + 'static>(
        &self,
        memory: A,
        features: Features,
        interrupts: &Arc<dyn Interrupts>,
        line: &Arc<Line>,
        receive: ActiveQueue,
        transmit: ActiveQueue,
    ) -> Result<Box<dyn Worker>, ActivateError> {
        let [receiving, sending] = &self.allowances;
        let [received, sent] = [&receive, &transmit].map(|queue| self.counters_of(queue));
        let (line, link) = (|| Arc::clone(line), || self.link.clone());
        let sender = Sender {
            line: line(),
            link: link(),
        };
        let transmit = QueueServer::new(memory.clone(), transmit, Arc::clone(interrupts), sender)
            .with_limiter(sending.limiter()?)
            .with_counters(sent);
        let limiter = receiving.limiter()?;
        let interrupts = Arc::clone(interrupts);
        Ok(if features.contains(feature::MRG_RXBUF) {
            let merger = Merger::new(line(), link(), self.sieve());
            let receive = QueueServer::new(memory, receive, interrupts, merger)
                .with_limiter(limiter)
                .with_counters(received);
            Box::new(BothWays { transmit, receive })
        } else {
            let receiver = Receiver {
                line: line(),
                link: link(),
                sieve: self.sieve(),
            };
            let receive = QueueServer::new(memory, receive, interrupts, receiver)
                .with_limiter(limiter)
                .with_counters(received);
            Box::new(BothWays { transmit, receive })
        })
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::NETWORK
    }

    fn features(&self) -> Features {
        let own = feature::STATUS | feature::MRG_RXBUF | feature::CTRL_VQ | feature::GUEST_ANNOUNCE;
        let several = match self.pairs.most() {
            0..=1 => Features::empty(),
            _ => feature::MQ,
        };
        own | FILTERS | several | self.pairs.features() | self.options.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; queue_count(self.pairs.most())];
        if let Some(control) = sizes.last_mut() {
            *control = CONTROL_SIZE;
        }
        sizes
    }

    /// Reads "struct virtio_net_config".
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        // Which has an address only if it was made with one; the driver may give it another.
        let mac = self.options.mac();
        let mac = mac.map(|mac| self.filter.given().unwrap_or(mac));
        let config = self.options.config(mac, &self.link, self.pairs.most());
        read_at(&config, offset, data);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {
        // A driver of version 1 writes nothing here.
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
        self.pairs.negotiated(features)?;
        let several = features.contains(feature::MQ);
        let known = if several { self.pairs.most() } else { 1 };
        let used = if several && !features.contains(feature::CTRL_VQ) {
            // Whoever took the control queue away, as a VMM does that serves it for us, enables what is used.
            let live = |receive: &u16| queues.iter().any(|queue| queue.index == *receive);
            (0u16..).step_by(2).take_while(live).count() as u16
        } else {
            self.pairs.used()
        };
        self.pairs.set(used.clamp(1, known))?;
        self.link.events.connect(Some(Arc::clone(&interrupts)));
        let control = if several {
            known.saturating_mul(2)
        } else {
            CONTROL_OF_ONE
        };
        let control = match features.contains(feature::CTRL_VQ) {
            true => ActiveQueue::take(&mut queues, control).ok(),
            false => None,
        };
        // Who cannot say what it wants is given all.
        let filters = control.as_ref().map_or(Features::empty(), |_| features);
        self.filter.begin(filters, self.options.mac());
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        let mut wake = Vec::new();
        for (line, receive) in self
            .pairs
            .lines()
            .zip((0u16..).step_by(2))
            .take(known.into())
        {
            let transmit = ActiveQueue::take(&mut queues, receive.saturating_add(1));
            let (receive, transmit) = match (ActiveQueue::take(&mut queues, receive), transmit) {
                (Ok(receive), Ok(transmit)) => (receive, transmit),
                // A driver need not set up those that it does not use, but for the first.
                (Err(missing), _) | (_, Err(missing)) if receive == 0 => return Err(missing),
                _ => continue,
            };
            wake.push(receive.kick.try_clone()?);
            let memory = memory.clone();
            workers.push(self.pair(memory, features, &interrupts, line, receive, transmit)?);
        }
        if let Some(queue) = control {
            let link = features
                .contains(feature::GUEST_ANNOUNCE)
                .then(|| self.link());
            let pairs = Arc::clone(&self.pairs);
            let set = move |used| pairs.set(used);
            // Whose address changes is known to who looks for it in the configuration.
            let address = features.contains(feature::MAC);
            let address = address.then(|| self.link.events.clone());
            let handler = Control::new(set, known, wake)
                .announcing(link)
                .filtering(self.filter.clone(), address);
            let counters = self.counters_of(&queue);
            let server = QueueServer::new(memory, queue, interrupts, handler);
            workers.push(Box::new(server.with_counters(counters)));
        }
        if let Some(causes) = self.moved.take() {
            // Switches learn where the guest is from what it sends (5.1.6.5.4).
            let up = self.link.state() == LinkState::Up;
            if up && features.contains(feature::GUEST_ANNOUNCE) {
                self.link.ask(Announce::Asked);
            }
            if self.link.announce() == Announce::Asked || (up && !causes.is_empty()) {
                self.link.events.changed();
            }
        }
        Ok(workers)
    }

    fn counters(&self) -> Vec<Counters> {
        self.counters.clone()
    }

    fn reset(&mut self) {
        self.moved = None;
        self.filter.clear();
        self.link.ask(Announce::Done);
        self.link.events.connect(None);
        // The next driver may know less. If the wire is gone, its next activation says so.
        let _ = self.pairs.negotiated(Features::empty());
        let _ = self.pairs.set(1);
    }

    /// The link, by why it is down: 0, it is up; 1, it was taken down; 2, the wire has ended; 3, both. Then, of a card with
    /// several pairs, how many are used (16 bits). Then which frames its driver wants, if it has said so.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        let mut state = vec![self.link.causes().bits()];
        if self.pairs.most() > 1 {
            state.extend(self.pairs.used().to_le_bytes());
        }
        state.extend(self.filter.save());
        Ok(state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let expected = if self.pairs.most() > 1 { 3 } else { 1 };
        let (causes, used, filter) = match (state, expected) {
            ([causes, filter @ ..], 1) => (causes, 1, filter),
            ([causes, low, high, filter @ ..], 3) => {
                (causes, u16::from_le_bytes([*low, *high]), filter)
            }
            _ => {
                return Err(StateError::Length {
                    saved: state.len(),
                    expected,
                });
            }
        };
        let causes = Cause::from_bits(*causes).ok_or(StateError::Content { at: 0 })?;
        let filter = Filter::restored(filter, expected)?;
        if !self.pairs.plan(used) {
            return Err(StateError::Content { at: 1 });
        }
        self.filter.take(filter);
        // The wire is another, whatever became of the old one.
        self.link.set(match causes.contains(Cause::TAKEN) {
            true => LinkState::Down,
            false => LinkState::Up,
        });
        self.moved = Some(causes);
        Ok(())
    }
}
