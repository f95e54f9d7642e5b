// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What differs between the kinds of device: features, configuration, and what a driver is told when nobody serves it
//! any more.

use vm_memory::GuestMemory;

use crate::block::feature as block;
use crate::bytes::read_at;
use crate::features::{DeviceType, Features};
use crate::net::{CONTROL_SIZE, MAX_PAIRS, MacAddress, feature as net};
use crate::queue::{Chain, Reach};

/// Bytes of "struct virtio_blk_config" up to the fields of secure erase, which we do not offer.
const BLOCK_CONFIG: u32 = 0x3c;
/// Offset of its `num_queues`.
const NUM_QUEUES: usize = 0x22;
/// Bytes of a file system's tag.
pub(super) const TAG: usize = 36;
/// VIRTIO_BLK_S_IOERR.
const IO_ERROR: u8 = 1;
/// ENOTCONN: "Transport endpoint is not connected".
const NOT_CONNECTED: i32 = 107;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// VIRTIO_BLK_F_SIZE_MAX, _SEG_MAX, _GEOMETRY, _RO, _BLK_SIZE, _FLUSH, _TOPOLOGY, _MQ, _DISCARD, _WRITE_ZEROES: all but
/// those that let the driver write configuration.
const BLOCK: Features = Features::from_bits_retain(1 << 1 | 1 << 4)
    .union(block::SEG_MAX)
    .union(block::RO)
    .union(block::BLK_SIZE)
    .union(block::FLUSH)
    .union(block::TOPOLOGY)
    .union(block::MQ)
    .union(block::DISCARD)
    .union(block::WRITE_ZEROES);

/// Checksums, segmentation (TSO4, TSO6, ECN, UFO, either way) and merged receive buffers: what is between driver and
/// queue. The rest is ours.
const NET: Features = Features::from_bits_retain(0b1 | 0b10 | 0b1111 << 7 | 0b1111 << 11 | 1 << 15);

/// What is served.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Block,
    FileSystem {
        tag: [u8; TAG],
    },
    Net {
        mac: Option<MacAddress>,
        mtu: Option<u16>,
    },
}

impl Kind {
    pub(super) fn device_type(&self) -> DeviceType {
        match self {
            Self::Block => DeviceType::BLOCK,
            Self::FileSystem { .. } => DeviceType::FILE_SYSTEM,
            Self::Net { .. } => DeviceType::NETWORK,
        }
    }

    /// What its threads are called.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Block => "vhost-blk",
            Self::FileSystem { .. } => "vhost-fs",
            Self::Net { .. } => "vhost-net",
        }
    }

    /// Queues for `asked` of what the user counts: a disk's queues, a file system's queues of requests, a card's
    /// pairs, behind which is a control queue if there are several.
    pub(super) fn queues(&self, asked: u16) -> u16 {
        match self {
            Self::Block => asked,
            Self::FileSystem { .. } => asked.saturating_add(1),
            Self::Net { .. } if asked > 1 => asked.saturating_mul(2).saturating_add(1),
            Self::Net { .. } => 2,
        }
    }

    /// The sizes of `queues` queues, of which those of the back end have `size` descriptors.
    pub(super) fn sizes(&self, queues: u16, size: u16) -> Vec<u16> {
        let mut sizes = vec![size; queues.into()];
        if let (Self::Net { .. }, Some(control)) =
            (self, sizes.get_mut(2..).and_then(<[_]>::last_mut))
        {
            *control = CONTROL_SIZE;
        }
        sizes
    }

    /// How many of them there may be.
    pub(super) fn most(&self) -> u16 {
        match self {
            Self::Block | Self::FileSystem { .. } => 64,
            Self::Net { .. } => MAX_PAIRS,
        }
    }

    /// The device's features where the back end has `offered`.
    pub(super) fn features(&self, offered: Features, queues: u16) -> Features {
        match self {
            Self::Block if queues > 1 => offered & BLOCK,
            Self::Block => offered & BLOCK.difference(block::MQ),
            Self::FileSystem { .. } => Features::empty(),
            Self::Net { mac, mtu } => {
                let mac = mac.map_or(Features::empty(), |_| net::MAC);
                let mtu = mtu.map_or(Features::empty(), |_| net::MTU);
                let several = match queues {
                    // The control queue is ours.
                    3.. => offered & net::MQ | net::CTRL_VQ,
                    _ => Features::empty(),
                };
                offered & NET | net::STATUS | mac | mtu | several
            }
        }
    }

    /// Bytes of configuration that the back end has to give.
    pub(super) fn config_of_back_end(&self) -> Option<u32> {
        match self {
            Self::Block => Some(BLOCK_CONFIG),
            // Ours is all there is.
            Self::FileSystem { .. } | Self::Net { .. } => None,
        }
    }

    /// Reads configuration: `given` is the back end's.
    pub(super) fn config_read(&self, given: &Config, queues: u16, offset: u64, data: &mut [u8]) {
        match self {
            Self::Block => {
                let mut config = given.bytes.clone();
                // The driver is to use no more than we have.
                if let Some(place) = config.get_mut(NUM_QUEUES..NUM_QUEUES + 2) {
                    place.copy_from_slice(&queues.to_le_bytes());
                }
                read_at(&config, offset, data);
            }
            Self::FileSystem { tag } => {
                let requests = u32::from(queues.saturating_sub(1));
                read_at(&[&tag[..], &requests.to_le_bytes()].concat(), offset, data);
            }
            Self::Net { mac, mtu } => {
                let status = if given.lost { 0 } else { LINK_UP };
                let mac = mac.map_or([0; 6], |mac| mac.0);
                let pairs = (queues >> 1).to_le_bytes();
                let mtu = mtu.unwrap_or(0).to_le_bytes();
                let config = [&mac[..], &status.to_le_bytes(), &pairs, &mtu].concat();
                read_at(&config, offset, data);
            }
        }
    }

    /// Whether the driver learns that nobody serves it from the configuration.
    pub(super) fn says_when_lost(&self) -> bool {
        matches!(self, Self::Net { .. })
    }

    /// Whether the chains of queue `index` can be answered by us: what a network card is to receive will not come.
    pub(super) fn is_refusable(&self, index: u16) -> bool {
        match self {
            Self::Block | Self::FileSystem { .. } => true,
            Self::Net { .. } => !index.is_multiple_of(2),
        }
    }

    /// Answers `chain` with an error, or drops what it would have sent. Returns how many bytes of an answer there are.
    pub(super) fn refuse<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        chain: &Chain,
    ) -> u32 {
        let room = chain.writable();
        match self {
            Self::Block => {
                let Some(before) = room.len().checked_sub(1) else {
                    return 0;
                };
                let status = room.split_at(before).1;
                // A status that is not in memory is the driver's own loss. What is before it, nobody wrote.
                let written = status.write(reach, &[IO_ERROR]).unwrap_or(0);
                if before == 0 { written as u32 } else { 0 }
            }
            Self::FileSystem { .. } => {
                // "struct fuse_in_header": length:32, operation:32, unique:64. The answer's: length:32, error:32, unique.
                let mut asked = [0; 16];
                let read = chain.readable().read(reach, &mut asked);
                if read.ok() != Some(asked.len()) || room.len() < 16 {
                    return 0;
                }
                let mut answer = 16u32.to_le_bytes().to_vec();
                answer.extend((-NOT_CONNECTED).to_le_bytes());
                answer.extend(&asked[8..]);
                room.write(reach, &answer).unwrap_or(0) as u32
            }
            Self::Net { .. } => 0,
        }
    }
}

/// What there is to say about configuration.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    /// As the back end gave it.
    pub(super) bytes: Vec<u8>,
    /// Nobody serves the device any more.
    pub(super) lost: bool,
}
