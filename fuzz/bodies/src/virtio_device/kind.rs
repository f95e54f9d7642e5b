// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices: how each is made, what its driver says to it, and by what it shows that it serves.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use arbitrary::Arbitrary;
use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits};
use hvkit_virtio_devices::net::{self, Net, Wire};
use hvkit_virtio_devices::pmem::Pmem;
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::vsock::Vsock;
use vm_memory::IommuMemory;

use super::Memory;
use super::chain::{self, Chain};
use super::world::{Sockets, World, backing, disk};

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Kind {
    Entropy,
    Console,
    Balloon,
    Net,
    Vsock,
    Pmem,
    Block,
    Iommu,
}

impl Kind {
    /// The queues that the honest part of the driver sets up.
    pub(super) fn queues(self) -> u16 {
        match self {
            // As a console of one port: the feature of several is not accepted.
            Self::Entropy | Self::Console | Self::Pmem => 1,
            Self::Block | Self::Iommu => 2,
            Self::Vsock => 3,
            // Without statistics, whose feature is not accepted either: hints and reports follow.
            Self::Balloon => 4,
            // Two pairs and the control queue.
            Self::Net => 5,
        }
    }

    /// A chain for queue `ring`, from four words of the input.
    pub(super) fn chain(self, ring: usize, words: [u16; 4]) -> Chain {
        match (self, ring) {
            (Self::Vsock, 1) => chain::packet(words),
            (Self::Net, 4) => chain::control(words),
            (Self::Block, _) => chain::request(words),
            (Self::Iommu, 0) => chain::command(words),
            _ => Chain::anywhere(words),
        }
    }

    /// What is asked of the device in the end, by its first queue.
    pub(super) fn last(self) -> Chain {
        match self {
            Self::Pmem => Chain::with(0x9000, &[0; 4], &[Writable(0x8000, 4)]),
            // The serial number.
            Self::Block => {
                let head = [[8, 0, 0, 0], [0; 4], [0; 4], [0; 4]];
                let rest = [Writable(0x8000, 20), Writable(0x9000, 1)];
                Chain::with(0xa000, head.as_flattened(), &rest)
            }
            // Attaches the endpoint to domain 1.
            Self::Iommu => {
                let words = [[1, 0, 0, 0], [1, 0, 0, 0], [8, 0, 0, 0], [0; 4], [0; 4]];
                Chain::with(0xa000, words.as_flattened(), &[Writable(0x9000, 4)])
            }
            // Long enough for a packet's header, which somebody on the host may have caused.
            Self::Vsock => Chain::of(vec![Writable(0x8000, 256)]),
            _ => Chain::of(vec![Writable(0x8000, 16)]),
        }
    }

    /// Bytes that it answers to that with; nothing if that is not for it to say.
    pub(super) fn serves(self) -> Option<u32> {
        match self {
            Self::Entropy => Some(16),
            Self::Pmem | Self::Iommu => Some(4),
            Self::Block => Some(21),
            Self::Console | Self::Balloon | Self::Net | Self::Vsock => None,
        }
    }

    pub(super) fn device(self, memory: &Memory, world: &mut World) -> Box<dyn Device<Memory>> {
        match self {
            Self::Entropy => Box::new(Entropy::new(std::io::repeat(7))),
            Self::Console => {
                let ports = ["a", "b"].map(|name| Port::new(name, std::io::sink()));
                Box::new(Console::new(ports.into()).expect("two ports"))
            }
            Self::Balloon => {
                let options = balloon::Options::new()
                    .with_free_page_reporting()
                    .with_free_page_hints();
                let pages = Arc::new(HostPages::new(Arc::clone(memory)));
                let balloon = Balloon::new(options, pages).expect("an event");
                world.balloon = Some(balloon.control());
                Box::new(balloon)
            }
            Self::Net => {
                let mut wire = || {
                    let (ours, theirs) = UnixDatagram::pair().expect("a pair of sockets");
                    for end in [&ours, &theirs] {
                        end.set_nonblocking(true).expect("a socket");
                    }
                    world.wires.push(theirs);
                    Wire::Frames(ours.into())
                };
                let wires = vec![wire(), wire()];
                Box::new(Net::with_pairs(net::Options::new(), wires).expect("two pairs"))
            }
            Self::Vsock => {
                let sockets = Sockets::new();
                let vsock = Vsock::new(3, &sockets.path).expect("a socket");
                world.sockets = Some(sockets);
                Box::new(vsock)
            }
            Self::Pmem => Box::new(Pmem::new(backing(), 1 << 32).expect("a place")),
            Self::Block => {
                let (block, around) = disk();
                world.disk = Some(around);
                Box::new(block)
            }
            Self::Iommu => {
                let iommu = Iommu::new(Limits::default(), AtBoot::Block).expect("an event");
                let endpoint = iommu.add_endpoint(8, Vec::new()).expect("the first");
                let memory = memory.as_ref().clone();
                world.behind = Some(IommuMemory::new(memory, endpoint, true, ()));
                Box::new(iommu)
            }
        }
    }
}
