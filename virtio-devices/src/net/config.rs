// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a network card is asked to be, and how it says so: feature bits and configuration space.
//!
//! "Feature bits" (5.1.3), "Device configuration layout" (5.1.4).

use super::MAX_PAIRS;
use super::link::{Announce, Link, LinkState};
use crate::bytes::put_at;
use crate::features::Features;
use crate::limit::Limits;

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
    /// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
    pub const CTRL_VQ: Features = Features::from_bits_retain(1 << 17);
    /// VIRTIO_NET_F_CTRL_RX: the driver says which frames it wants.
    pub const CTRL_RX: Features = Features::from_bits_retain(1 << 18);
    /// VIRTIO_NET_F_CTRL_VLAN: the driver says from which VLANs it wants frames.
    pub const CTRL_VLAN: Features = Features::from_bits_retain(1 << 19);
    /// VIRTIO_NET_F_CTRL_RX_EXTRA: the driver says which frames it does not want.
    pub const CTRL_RX_EXTRA: Features = Features::from_bits_retain(1 << 20);
    /// VIRTIO_NET_F_GUEST_ANNOUNCE: the driver tells the network where it is when it is asked to.
    pub const GUEST_ANNOUNCE: Features = Features::from_bits_retain(1 << 21);
    /// VIRTIO_NET_F_MQ: there are several pairs of queues.
    pub const MQ: Features = Features::from_bits_retain(1 << 22);
    /// VIRTIO_NET_F_CTRL_MAC_ADDR: the driver may give the card another address.
    pub const CTRL_MAC_ADDR: Features = Features::from_bits_retain(1 << 23);
    /// VIRTIO_NET_F_SPEED_DUPLEX: `speed` and `duplex` say what the link does.
    pub const SPEED_DUPLEX: Features = Features::from_bits_retain(1 << 63);
}

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// VIRTIO_NET_S_ANNOUNCE.
const ANNOUNCE: u16 = 2;

/// The smallest MTU of a network that carries IPv4.
const LEAST_MTU: u16 = 68;

/// The largest speed of a link, in Mbit/s.
pub const MOST_SPEED: u32 = 0x7fff_ffff;

/// Bytes of "struct virtio_net_config" as far as `duplex`.
const LENGTH: usize = 17;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// What a network card should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    speed: Option<(u32, Duplex)>,
    limits: Limits,
}

/// Whether a link carries frames either way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Duplex {
    /// One way, then the other.
    Half = 0,
    /// Both.
    Full = 1,
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
    /// More than the specification has numbers for.
    #[error("{megabits} Mbit/s; it must be below 2^31")]
    Speed {
        /// Asked for, in units of 1 Mbit/s.
        megabits: u32,
    },
    /// No wire, or too many of them.
    #[error("{pairs} pairs of queues; there may be 1 to {MAX_PAIRS}")]
    Pairs {
        /// As many wires were given.
        pairs: usize,
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

    /// Says how fast the link is, in units of 1 Mbit/s, below 2^31. Nothing goes by it but what the guest shows and
    /// reckons with.
    pub fn with_speed(mut self, megabits: u32, duplex: Duplex) -> Result<Self, OptionsError> {
        if megabits > MOST_SPEED {
            return Err(OptionsError::Speed { megabits });
        }
        self.speed = Some((megabits, duplex));
        Ok(self)
    }

    /// Limits each direction, all pairs together.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The card's address, unless its driver chooses.
    pub(super) fn mac(&self) -> Option<MacAddress> {
        self.mac
    }

    /// What the options offer.
    pub(super) fn features(&self) -> Features {
        let offer = |wanted: bool, feature| match wanted {
            true => feature,
            false => Features::empty(),
        };
        offer(self.mac.is_some(), feature::MAC)
            | offer(self.mtu.is_some(), feature::MTU)
            | offer(self.speed.is_some(), feature::SPEED_DUPLEX)
    }

    /// "struct virtio_net_config" of a card with this address, link, and number of pairs of queues. Fields of features that are
    /// not offered are zero.
    pub(super) fn config(&self, mac: Option<MacAddress>, link: &Link, pairs: u16) -> [u8; LENGTH] {
        let mut config = [0; LENGTH];
        let mut put = |offset, field: &[u8]| put_at(&mut config, offset, field);
        if let Some(mac) = mac {
            put(0, &mac.0);
        }
        let up = match link.state() {
            LinkState::Up => LINK_UP,
            LinkState::Down => 0,
        };
        let announce = match link.announce() {
            Announce::Asked => ANNOUNCE,
            Announce::Done => 0,
        };
        put(6, &u16::to_le_bytes(up | announce));
        // max_virtqueue_pairs is for those with more than one.
        if pairs > 1 {
            put(8, &pairs.to_le_bytes());
        }
        put(10, &self.mtu.unwrap_or(0).to_le_bytes());
        if let Some((speed, duplex)) = self.speed {
            put(12, &speed.to_le_bytes());
            put(16, &[duplex as u8]);
        }
        config
    }
}
