// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card: virtio-net over a tap interface, or over anything that takes frames.
//!
//! ```text
//!   queue 0  receive    wire --> header:12, frame --> chain      one frame a chain, or over several
//!   queue 1  transmit   chain --> header:12, frame --> wire
//! ```
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
mod frames;
mod merge;
mod stream;
mod tap;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestAddressSpace;

pub use frames::Wire;
pub use stream::FrameStream;
pub use tap::{Tap, TapError};

use self::both_ways::BothWays;
use self::frames::{Receiver, Sender};
use self::merge::Merger;
use crate::bytes::read_at;
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, ConfigEvents, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::limit::{Limiter, Limits};
use crate::serve::QueueServer;
use crate::worker::Worker;

/// Feature bits of a network card.
pub mod feature {
    use crate::features::Features;

    /// VIRTIO_NET_F_CSUM: the device completes checksums.
    pub const CSUM: Features = Features::from_bits_retain(1 << 0);
    /// VIRTIO_NET_F_GUEST_CSUM: the driver takes frames whose checksums are not complete.
    pub const GUEST_CSUM: Features = Features::from_bits_retain(1 << 1);
    /// VIRTIO_NET_F_MTU: `mtu` is the largest the driver may use.
    pub const MTU: Features = Features::from_bits_retain(1 << 3);
    /// VIRTIO_NET_F_MAC: `mac` is the address.
    pub const MAC: Features = Features::from_bits_retain(1 << 5);
    /// VIRTIO_NET_F_GUEST_TSO4: the driver takes large TCP segments over IPv4.
    pub const GUEST_TSO4: Features = Features::from_bits_retain(1 << 7);
    /// VIRTIO_NET_F_GUEST_TSO6: the driver takes large TCP segments over IPv6.
    pub const GUEST_TSO6: Features = Features::from_bits_retain(1 << 8);
    /// VIRTIO_NET_F_HOST_TSO4: the device takes large TCP segments over IPv4.
    pub const HOST_TSO4: Features = Features::from_bits_retain(1 << 11);
    /// VIRTIO_NET_F_HOST_TSO6: the device takes large TCP segments over IPv6.
    pub const HOST_TSO6: Features = Features::from_bits_retain(1 << 12);
    /// VIRTIO_NET_F_MRG_RXBUF: a frame that comes in may be spread over several chains.
    pub const MRG_RXBUF: Features = Features::from_bits_retain(1 << 15);
    /// VIRTIO_NET_F_STATUS: `status` says whether the link is up.
    pub const STATUS: Features = Features::from_bits_retain(1 << 16);
}

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 256;

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// The smallest MTU of a network that carries IPv4.
const LEAST_MTU: u16 = 68;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// What a network card should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    limits: Limits,
}

/// Options that no card can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A group's address, or nobody's.
    #[error("{mac:02x?} is not the address of one card")]
    Mac {
        /// Asked for.
        mac: [u8; 6],
    },
    /// Too small for IPv4.
    #[error("an MTU of {mtu}; it must be 68 or more")]
    Mtu {
        /// Asked for.
        mtu: u16,
    },
}

impl Options {
    /// A card whose driver chooses address and MTU.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the card an address.
    pub fn with_mac(mut self, mac: MacAddress) -> Result<Self, OptionsError> {
        if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
            return Err(OptionsError::Mac { mac: mac.0 });
        }
        self.mac = Some(mac);
        Ok(self)
    }

    /// Says what the network carries at most, the Ethernet header not counted.
    pub fn with_mtu(mut self, mtu: u16) -> Result<Self, OptionsError> {
        if mtu < LEAST_MTU {
            return Err(OptionsError::Mtu { mtu });
        }
        self.mtu = Some(mtu);
        Ok(self)
    }

    /// Limits each direction.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// A network card.
#[derive(Debug)]
pub struct Net {
    wire: Arc<Wire>,
    options: Options,
    link: Link,
    counters: [Counters; 2],
}

/// The card's link as the guest sees it, in the hands of whoever runs the device.
#[derive(Clone, Debug, Default)]
pub struct Link {
    down: Arc<AtomicBool>,
    events: ConfigEvents,
}

/// Whether a link carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It does.
    Up,
    /// It does not.
    Down,
}

impl Link {
    /// Sets the state, and tells the driver if it has changed.
    pub fn set(&self, state: LinkState) {
        let down = state == LinkState::Down;
        if self.down.swap(down, Ordering::SeqCst) != down {
            self.events.changed();
        }
    }

    /// The state.
    pub fn state(&self) -> LinkState {
        match self.down.load(Ordering::SeqCst) {
            true => LinkState::Down,
            false => LinkState::Up,
        }
    }
}

impl Net {
    /// A card at the end of `wire`.
    pub fn new(options: Options, wire: Wire) -> Self {
        Self {
            wire: Arc::new(wire),
            options,
            link: Link::default(),
            counters: Default::default(),
        }
    }

    /// The link, which starts up.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// The numbers of the receive and the transmit queue.
    pub fn counters(&self) -> &[Counters; 2] {
        &self.counters
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::NETWORK
    }

    fn features(&self) -> Features {
        let mut features = feature::STATUS | feature::MRG_RXBUF | self.wire.features();
        if self.options.mac.is_some() {
            features |= feature::MAC;
        }
        if self.options.mtu.is_some() {
            features |= feature::MTU;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// Reads "struct virtio_net_config".
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        let mac = self.options.mac.map_or([0; 6], |mac| mac.0);
        config[..6].copy_from_slice(&mac);
        let status = match self.link.state() {
            LinkState::Up => LINK_UP,
            LinkState::Down => 0,
        };
        config[6..8].copy_from_slice(&status.to_le_bytes());
        // One pair of queues: max_virtqueue_pairs is for those with more.
        let mtu = self.options.mtu.unwrap_or(0);
        config[10..].copy_from_slice(&mtu.to_le_bytes());
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
        let receive = ActiveQueue::take(&mut queues, RECEIVE)?;
        let transmit = ActiveQueue::take(&mut queues, TRANSMIT)?;
        self.wire.negotiated(features)?;
        self.link.events.connect(Some(Arc::clone(&interrupts)));
        let limiter = || Limiter::new(self.options.limits);
        let [received, sent] = &self.counters;
        let sender = Sender {
            wire: Arc::clone(&self.wire),
            link: self.link.clone(),
        };
        let transmit = QueueServer::new(memory.clone(), transmit, interrupts.clone(), sender)
            .with_limiter(limiter()?)
            .with_counters(sent.clone());
        let (wire, link) = (Arc::clone(&self.wire), self.link.clone());
        let (limiter, received) = (limiter()?, received.clone());
        Ok(vec![if features.contains(feature::MRG_RXBUF) {
            let merger = Merger::new(wire, link);
            let receive = QueueServer::new(memory, receive, interrupts, merger)
                .with_limiter(limiter)
                .with_counters(received);
            Box::new(BothWays { transmit, receive })
        } else {
            let receive = QueueServer::new(memory, receive, interrupts, Receiver { wire, link })
                .with_limiter(limiter)
                .with_counters(received);
            Box::new(BothWays { transmit, receive })
        }])
    }

    fn reset(&mut self) {
        self.link.events.connect(None);
        // The next driver may know less. If the wire is gone, its next activation says so.
        let _ = self.wire.negotiated(Features::empty());
    }

    /// The link: 1 if it is up.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(vec![u8::from(self.link.state() == LinkState::Up)])
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let [up] = state else {
            return Err(StateError::Length {
                saved: state.len(),
                expected: 1,
            });
        };
        self.link.set(match up {
            0 => LinkState::Down,
            _ => LinkState::Up,
        });
        Ok(())
    }
}
