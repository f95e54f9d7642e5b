// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong between a driver and its unit.

use crate::spec::registers::QueueError;
use crate::spec::{Pasid, RequesterId};

/// What a unit was given time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Waiting {
    /// DMA remapping to go on or off.
    Translation,
    /// The root table pointer to be taken.
    RootTable,
    /// Queued invalidation to go on or off.
    QueuedInvalidation,
    /// Interrupt remapping to go on or off.
    InterruptRemapping,
    /// The interrupt-remapping table pointer to be taken.
    InterruptTable,
    /// Compatibility-format interrupts to be let through or blocked.
    CompatibilityInterrupts,
    /// The write buffer to be flushed.
    WriteBuffer,
    /// A register-based context-cache invalidation.
    ContextCommand,
    /// A register-based IOTLB invalidation.
    IotlbCommand,
    /// The invalidation queue to have room.
    QueueSpace,
    /// An invalidation wait to be over.
    InvalidationWait,
    /// The protected memory regions to be released.
    ProtectedMemory,
}

/// An ability that a unit does not report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ability {
    /// ECAP.QI.
    QueuedInvalidation,
    /// ECAP.SMTS.
    ScalableMode,
    /// ECAP.PT.
    PassThrough,
    /// ECAP.DT.
    DeviceTlb,
    /// ECAP.IR.
    InterruptRemapping,
    /// ECAP.EIM.
    ExtendedInterruptMode,
    /// CAP.PI.
    PostedInterrupts,
    /// ECAP.PRS.
    PageRequests,
    /// ECAP.FSTS.
    FirstStage,
    /// ECAP.SSTS, or legacy mode.
    SecondStage,
    /// ECAP.NEST.
    Nested,
    /// CAP.SAGAW, for so many levels.
    SecondStageLevels(u8),
    /// CAP.FS5LP, or a number of levels that first-stage tables never have.
    FirstStageLevels(u8),
    /// A descriptor that registers cannot ask for.
    RegisterBasedInvalidation,
}

/// Why a unit did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// Nobody answers at this address, or not a VT-d unit.
    #[error("no VT-d unit: version {version:#x}, capability {capability:#x}")]
    Absent {
        /// VER_REG.
        version: u32,
        /// CAP_REG.
        capability: u64,
    },
    /// The unit cannot do it.
    #[error("the unit does not support {0:?}")]
    Unsupported(Ability),
    /// The unit did not do it in time.
    #[error("timed out waiting for {0:?}")]
    TimedOut(Waiting),
    /// A descriptor was refused. It was replaced and the queue goes on; what the descriptor asked for was
    /// not done.
    #[error("invalidation queue error ({error}) at the descriptor that begins with {first:#x}")]
    Queue {
        /// What the unit says of it.
        error: QueueError,
        /// The first word of the descriptor at the head.
        first: u64,
    },
    /// A device did not answer a device-TLB invalidation in time. It may still use old translations.
    #[error("the device-TLB of {source_id} did not answer")]
    DeviceTlbTimedOut {
        /// Whose.
        source_id: RequesterId,
    },
    /// A device answered an invalidation that it was not asked for.
    #[error("{source_id} completed a device-TLB invalidation unasked")]
    DeviceTlbUnasked {
        /// Who.
        source_id: RequesterId,
    },
    /// Hardware did not accept a register-based invalidation.
    #[error("a register-based invalidation was refused: {register:#x}")]
    NotInvalidated {
        /// CCMD_REG or IOTLB_REG as it was left.
        register: u64,
    },
    /// The pool has no frame left.
    #[error("no frame left for a table")]
    OutOfFrames,
    /// Every domain-id is in use.
    #[error("all {count} domain-ids are in use")]
    OutOfDomains {
        /// How many the unit has.
        count: u32,
    },
    /// The table given is not aligned, or not of a size there is.
    #[error("no table or queue can be at {address:#x} with size {size}")]
    BadTable {
        /// Its address.
        address: u64,
        /// Its size field.
        size: u8,
    },
    /// No first-stage table of a guest's can be there: its address is not aligned or beyond the second stage, or the
    /// same table is in use with another number of levels.
    #[error("no first-stage table of {levels} levels can be at {address:#x}")]
    BadFirstTable {
        /// Its address.
        address: u64,
        /// Its levels.
        levels: u8,
    },
    /// The device (or the PASID of it) is attached already.
    #[error("{source_id} is attached already")]
    Attached {
        /// The device.
        source_id: RequesterId,
        /// The PASID, if it is about one.
        pasid: Option<Pasid>,
    },
    /// The device (or the PASID of it) is not attached to that domain.
    #[error("{source_id} is not attached there")]
    NotAttached {
        /// The device.
        source_id: RequesterId,
        /// The PASID, if it is about one.
        pasid: Option<Pasid>,
    },
    /// A PASID beyond what the unit supports, or 0, which stands for requests without one.
    #[error("PASID {0} cannot be attached here")]
    BadPasid(Pasid),
    /// The domain was made by another unit, or with tables that another mode has.
    #[error("domain {0} cannot be used here")]
    ForeignDomain(u16),
    /// The domain has devices.
    #[error("domain {0} has devices attached")]
    DomainInUse(u16),
    /// A reserved memory region of the device cannot be mapped in the domain.
    #[error("reserved memory of {source_id} at {start:#x} cannot be mapped")]
    ReservedMemory {
        /// The device.
        source_id: RequesterId,
        /// First address of the region.
        start: u64,
    },
    /// The interrupt-remapping table has no free block of that size, or no such entry.
    #[error("no interrupt-remapping entries: {count} from {index:#x}")]
    NoInterruptEntries {
        /// First index, where it is about one.
        index: u16,
        /// How many.
        count: u16,
    },
    /// Both halves of an entry change, and memory has no 16-byte store: there would be a moment of neither.
    #[error("interrupt-remapping entry {index:#x} cannot be changed in one store")]
    NotInOneStore {
        /// The entry.
        index: u16,
    },
}
