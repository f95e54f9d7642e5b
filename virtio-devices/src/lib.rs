// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio devices and their transports, for any VMM.
//!
//! ```text
//!   guest driver                                  VMM
//!        |  registers                              |  bus, interrupts, threads
//!   transport  (virtio-pci: configuration space, BAR, MSI-X, doorbells; virtio-mmio: registers, a line)
//!        |  Device: identity, features, configuration, activate, reset
//!   device     (block, net, console, entropy, balloon, vsock, pmem, iommu; vhost_user: other processes' devices)
//!        |  Worker: queues, memory, interrupts; moves data when it is called
//!   queue      (split and packed rings in guest memory, which may lie behind an IOMMU)
//! ```
//!
//! Each layer can be used alone. [`queue`] needs guest memory and nothing else. [`pci`] is configuration
//! space, base address registers and MSI-X for any function, virtio or not. A [`device`] knows no bus, no
//! address, no clock and no thread; a [`transport`] knows no KVM. What a VMM brings is in its own words:
//! guest memory ([`vm_memory::GuestAddressSpace`]), where interrupts lead ([`pci::MsiVectors`]), and who runs
//! workers ([`worker::Runner`]).
//!
//! # A disk on PCI
//!
//! ```
//! use std::sync::Arc;
//!
//! use hvkit_virtio_devices::block::{Access, Block, Options};
//! use hvkit_virtio_devices::fake::Vectors;
//! use hvkit_virtio_devices::pci::PciFunction;
//! use hvkit_virtio_devices::transport::pci::VirtioPci;
//! use hvkit_virtio_devices::worker::Threads;
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let image = tempfile::NamedTempFile::new()?;
//! # image.as_file().set_len(1 << 20)?;
//! # let path = image.path();
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let disk = Block::open(Options::new(path).with_access(Access::ReadOnly).with_serial("root"))?;
//!
//! // The VMM's own: messages to KVM's irqfds, say. This one is for tests and remembers them.
//! let vectors = Arc::new(Vectors::default());
//! let threads = Threads::new(|name, body| {
//!     std::thread::Builder::new().name(name).spawn(body).map(drop)
//! });
//! let mut function = VirtioPci::new(Box::new(disk), memory, vectors, Box::new(threads))?;
//!
//! // It answers configuration space, as a function on the VMM's PCI bus does.
//! let mut id = [0; 4];
//! function.config_read(0, &mut id);
//! assert_eq!(u32::from_le_bytes(id), 0x1042_1af4);
//! // And has one eventfd a queue, which KVM can signal without waking the VMM.
//! assert_eq!(function.doorbells().len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Hostile drivers
//!
//! A driver may write what it likes, where and when it likes. Nothing here panics, loops or allocates at its
//! word. What a driver has set up is frozen when the device goes live; what it can still change is read once
//! and checked. Breaking a rule of the specification ends the queue, sets DEVICE_NEEDS_RESET, and is told to
//! the VMM once ([`transport::pci::VirtioPci::with_report`]); a bad request alone is answered with an error.
//! A reset is complete only when the old worker has stopped.
//!
//! # What was checked against what
//!
//! | what | against | by |
//! |---|---|---|
//! | split queue | a model of the specification's text; rust-vmm's `virtio-queue`; the same through an IOMMU | `queue_random` |
//! | packed queue | a model of the specification's text | `packed_random` |
//! | configuration space, base address registers, MSI-X | models of the PCI specification's masks and rules | fuzz targets `pci_config`, `pci_msix` |
//! | registers of both transports | the specification's numbers | `transport_registers`, `mmio` |
//! | every queue of the devices, drivers that break rules | a verdict a case: none may wedge or fail | `hostile_cases`, `hostile_devices` |
//! | each device's requests, byte by byte | the specification's sections, by a driver that shares no code with it | a test file a device |
//! | frames over several chains | a driver that puts them together | `merge` |
//! | frames on a stream | Debian's passt | `stream` |
//! | qcow2 | images made and read by hand; QEMU's `qemu-img` | `formats`, the VMM's `tests/virtio.rs` |
//! | vhost-user | rust-vmm's `vhost-user-backend`; a peer that lies; QEMU's storage daemon and virtiofsd | `vhost_user`, the VMM's `tests/served` |
//! | vhost-user, either end | no panic, every wait ends: fuzz targets `vhost_user_told` (what a back end says), `vhost_user_served` (what a VMM asks) | `EVIDENCE.md` |
//! | all devices on PCI, by messages and by pins; some on MMIO | Debian's kernel 6.1, with fio (verifying), iperf3, ping, socat, mkfs | the VMM's `tests/virtio.rs` |
//! | a disk, a card and an entropy device behind the IOMMU device | Debian's kernel 6.12 | the VMM's `tests/virtio_iommu.rs` |
//! | bytes of others | no panic: fuzz targets `virtio_queue`, `virtio_device` (all devices, the IOMMU among them), and lints | `EVIDENCE.md` |
//!
//! Not checked against another's: the IOMMU device and persistent memory have the specification and Linux's drivers alone.
//!
//! `EVIDENCE.md`, the VMM (`examples/vmm`) and the fuzz targets are in the repository.
//!
//! # What is not here
//!
//! A VMM: KVM, a bus, guest memory, threads and clocks are brought along. The other ends of what devices are made of (a tap interface's network, an
//! image's file, virtiofsd, passt) are the host's. No vhost of the kernel's, no graphics, no input, no hot-plug; for devices of
//! other processes, no log of writes.
//!
//! # Features
//!
//! | feature | for |
//! |---|---|
//! | `fake` | tests: interrupts that are recorded, workers stepped by hand, a driver in memory |
//! | `iommu` | virtio-iommu, by which other devices' DMA can go |
//! | `imago` | disk images in the format qcow2 |
//! | `serde` | states of devices and transports as data of serde's, for snapshots |
//! | `vhost-user` | devices that another process serves, and serving ours to another |
//!
//! # Edition
//!
//! "The specification" is Virtual I/O Device (VIRTIO) Version 1.3, OASIS, 2023; its sections are cited by
//! title and number. PCI is cited as PCI Local Bus Specification 3.0.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod balloon;
pub mod block;
mod bytes;
pub mod console;
pub mod counters;
pub mod device;
pub mod entropy;
#[cfg(feature = "fake")]
pub mod fake;
pub mod features;
#[cfg(feature = "iommu")]
pub mod iommu;
pub mod limit;
pub mod listener;
pub mod net;
pub mod patience;
pub mod pci;
pub mod pmem;
pub mod queue;
pub mod reclaim;
pub mod resources;
mod serve;
pub mod transport;
mod vectored;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
pub mod vsock;
pub mod worker;

/// The program in the README compiles.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
