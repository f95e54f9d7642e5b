// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a machine could not be built or run.

use super::address_map::DoesNotFit;
use super::devices::DeviceError;
use super::kvm::KvmError;
use super::memory::MemoryError;
use super::pmem::PlaceError;
use super::processors::CountError;
use super::threads::ThreadError;
use crate::boot::BootError;
use crate::bus::BusError;
use crate::chipset::ChipsetError;
use crate::confine::ConfineError;
use crate::console::ConsoleError;
use crate::passthrough::PassthroughError;
use crate::snapshot::SnapshotError;
use crate::vfio_user::UserDeviceError;
use crate::viommu::UnitError;
use std::io;
use std::path::PathBuf;

/// A machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The memory cannot be addressed.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
    /// That number of processors is impossible.
    #[error(transparent)]
    Processors(#[from] CountError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The serial line's other end cannot be used.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Persistent memory cannot be had.
    #[error(transparent)]
    Pmem(#[from] PlaceError),
    /// A device of the host cannot be passed through.
    #[error(transparent)]
    Passthrough(#[from] PassthroughError),
    /// A device of another process cannot be had.
    #[error(transparent)]
    UserDevice(#[from] UserDeviceError),
    /// The remapping unit and the devices do not go together.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The devices cannot be joined.
    #[error(transparent)]
    Chipset(#[from] ChipsetError),
    /// The machine cannot be saved, or is not the one that was.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Two devices are in each other's way.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The guest's description has its place, and there is no RAM.
    #[error("memory too small: there is none at {address:#x}, where the ACPI tables go")]
    NoRoomForTables {
        /// Where they would be.
        address: u64,
    },
    /// The VMM cannot be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The socket of the log of what is written, or its file.
    #[error("--dirty-log {}: {source}", path.display())]
    DirtyLog {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket of the devices' numbers.
    #[error("--counters {}: {source}", path.display())]
    Counters {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for the figures of the start.
    #[error("cannot write {}: {source}", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The vCPUs' threads.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The host has no more file descriptors, or something of that kind.
    #[error("cannot create an event: {0}")]
    Event(io::Error),
    /// The main thread cannot wait.
    #[error("cannot wait for the machine to stop: {0}")]
    Wait(io::Error),
}
