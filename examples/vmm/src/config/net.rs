// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Network cards.

use super::{Dma, Place};
use hvkit_virtio_devices::limit::Limits;
use std::path::PathBuf;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Where its frames go.
    pub wire: NetWire,
    /// The card's address; none: the guest chooses.
    pub mac: Option<[u8; 6]>,
    /// What the network carries at most; none: the guest chooses.
    pub mtu: Option<u16>,
    /// What the guest shows as the link's speed, in Mbit/s; none: nothing.
    pub speed: Option<u32>,
    /// What each direction may do in a time.
    pub limits: Limits,
    /// How it reaches the guest's memory.
    pub dma: Dma,
    /// Where it is.
    pub place: Place,
}

/// Where a network card's frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetWire {
    /// A tap interface of the host, made if it is not there.
    Tap {
        /// The interface.
        name: String,
        /// Pairs of queues, each a queue of the interface: not 0.
        pairs: u16,
    },
    /// A stream socket that passt listens at, say.
    Socket(PathBuf),
    /// A network that needs no privilege; see [`user_network`](crate::machine::user_network).
    User(UserNetwork),
}

/// A network of the VMM's own, served by passt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserNetwork {
    /// TCP ports of the host that are the guest's, in passt's words: `2222:22`, `127.0.0.1/8080`.
    pub tcp: Vec<String>,
    /// UDP ports, likewise.
    pub udp: Vec<String>,
    /// What the guest reaches.
    pub host: Reach,
}

/// What a guest reaches by a [`UserNetwork`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// What the host reaches, but not what listens at the host's loopback address.
    #[default]
    Outside,
    /// That too, by the gateway's address.
    Loopback,
}

impl std::fmt::Display for NetWire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NetWire::Tap { name, .. } => f.write_str(name),
            NetWire::Socket(path) => path.display().fmt(f),
            NetWire::User(_) => f.write_str("user"),
        }
    }
}
