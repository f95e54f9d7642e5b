// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a machine cannot be saved or restored: one line each.

use crate::machine::stop::StopReason;
use crate::pci::FunctionAddress;
use hvkit_virtio_devices::transport::state::{RestoreError, SaveError};
use hvkit_vtd_iommu::emulation::StateError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A manifest that is none of ours.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Nothing was saved, or not to its end.
    #[error("it is empty: no machine was saved there, or not to the end")]
    Empty,
    /// Larger than any machine's.
    #[error("it has {bytes} bytes, and no machine has more than {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The most there can be.
        limit: u64,
    },
    /// Of another version of the VMM.
    #[error("it is of version {saved}; this VMM reads version {ours}")]
    Version {
        /// In the manifest.
        saved: u32,
        /// The one we know.
        ours: u32,
    },
    /// No manifest.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
}

/// A machine that cannot be saved, or a snapshot that is no machine of these options.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A device that has no state that could be saved.
    #[error("--{option}: {device} cannot be saved: {why}")]
    Unsaveable {
        /// The option.
        option: &'static str,
        /// The device.
        device: String,
        /// Why.
        why: &'static str,
    },
    /// A file of the folder.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is a snapshot already.
    #[error("--snapshot: {} has a machine in it: give another folder, or remove that one", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// Another machine is to be saved there.
    #[error("--snapshot: {} is another running machine's: give another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file that is not ours to write over.
    #[error("--snapshot: {} has something in it, and no machine beside it: give another folder, or remove it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Nobody could find what is written to it.
    #[error("{} was removed while the machine ran", path.display())]
    Removed {
        /// The file, which is there no more; what may be in its place is another.
        path: PathBuf,
    },
    /// The manifest.
    #[error("--restore: {}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The options describe another machine.
    #[error("--restore: the machine was saved with {saved} {what}, and the options say {ours}")]
    Differs {
        /// Of what.
        what: &'static str,
        /// In the snapshot.
        saved: u64,
        /// By the options.
        ours: u64,
    },
    /// One machine has it, the other has not.
    #[error("--restore: {what} is only in {place}")]
    OnlyIn {
        /// What.
        what: &'static str,
        /// Where it is.
        place: &'static str,
    },
    /// This host's processor is another one.
    #[error(
        "--restore: this host's processor is another one: CPUID {leaf:#x}.{subleaf:#x} {register} was {saved:#x}, here it is {ours:#x}"
    )]
    Features {
        /// The leaf.
        leaf: u32,
        /// Its sub-leaf.
        subleaf: u32,
        /// The register.
        register: &'static str,
        /// In the snapshot.
        saved: u32,
        /// Here.
        ours: u32,
    },
    /// The memory file is no such machine's.
    #[error("--restore: {} has {saved} bytes, and the guest has {ours} bytes of memory", path.display())]
    MemoryLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        saved: u64,
        /// The guest's memory.
        ours: u64,
    },
    /// KVM refused something of a vCPU.
    #[error("vCPU {vcpu}: KVM would not {action}: {source}")]
    Processor {
        /// Which one.
        vcpu: u32,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A model-specific register that this KVM does not list, or a value that it does not take.
    #[error(
        "--restore: vCPU {vcpu}: KVM does not take {value:#x} in the model-specific register {index:#x}"
    )]
    Register {
        /// Which vCPU.
        vcpu: u32,
        /// Which register.
        index: u32,
        /// In the snapshot.
        value: u64,
    },
    /// The processor's registers are more than is saved.
    #[error(
        "this host's processor has {bytes} bytes of extended registers for a guest; 4096 can be saved"
    )]
    ExtendedRegisters {
        /// As KVM tells.
        bytes: u64,
    },
    /// KVM refused something of the machine.
    #[error("KVM would not {action}: {source}")]
    Machine {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A disk is shorter or longer than it was.
    #[error("--restore: {} has {ours} bytes, and had {saved} when the machine was saved", path.display())]
    DiskLength {
        /// The image.
        path: PathBuf,
        /// As it was saved.
        saved: u64,
        /// As it is.
        ours: u64,
    },
    /// A disk is another one, or was used since.
    #[error("--restore: {} is not what it was when the machine was saved", path.display())]
    DiskContent {
        /// The image.
        path: PathBuf,
    },
    /// The remapping unit.
    #[error("--restore: the remapping unit: {0}")]
    Unit(#[from] StateError),
    /// The serial line.
    #[error("--restore: the serial line has {bytes} bytes waiting; it has room for {room}")]
    Serial {
        /// In the snapshot.
        bytes: usize,
        /// In a line.
        room: usize,
    },
    /// A device cannot be saved now.
    #[error("the device at {at}: {source}")]
    Save {
        /// Where.
        at: FunctionAddress,
        /// Why.
        source: SaveError,
    },
    /// A device does not take its state.
    #[error("--restore: the device at {at}: {source}")]
    Restore {
        /// Where.
        at: FunctionAddress,
        /// Why.
        source: RestoreError,
    },
    /// A device is elsewhere than it was.
    #[error("--restore: the snapshot has a device at {saved}, the options put one at {ours}")]
    Place {
        /// In the snapshot.
        saved: FunctionAddress,
        /// By the options.
        ours: FunctionAddress,
    },
    /// A vCPU ended while it was to stand still.
    #[error("vCPU {vcpu} has ended")]
    Ended {
        /// Which one.
        vcpu: u32,
    },
    /// The machine has come to its end already, and what went on with it would be none that runs.
    #[error("it has come to its end: {reason}")]
    Over {
        /// Which end.
        reason: StopReason,
    },
    /// A vCPU did not stand still.
    #[error("a vCPU is in the host and did not stand still in {patience:?}")]
    Stuck {
        /// How long it had.
        patience: Duration,
    },
}

impl SnapshotError {
    /// The options lack it.
    pub(crate) fn only_saved(what: &'static str) -> Self {
        let place = "the snapshot";
        SnapshotError::OnlyIn { what, place }
    }

    /// The machine that was saved lacked it.
    pub(crate) fn only_here(what: &'static str) -> Self {
        let place = "the options";
        SnapshotError::OnlyIn { what, place }
    }

    /// An error unless there are as many as there were.
    pub(crate) fn unless_same(what: &'static str, saved: usize, ours: usize) -> Result<(), Self> {
        let (saved, ours) = (saved as u64, ours as u64);
        match saved == ours {
            true => Ok(()),
            false => Err(SnapshotError::Differs { what, saved, ours }),
        }
    }
}
