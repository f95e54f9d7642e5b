// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What devices ask of a unit, and what they get.

use crate::spec::fault::{FaultReason, RequestKind};
use crate::spec::{Pasid, RequesterId};

/// What a request does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes, as one.
    Atomic,
    /// A read of length 0: a flush. Where CAP.ZLR is set, a page that can only be written will do.
    ZeroLengthRead,
}

impl Access {
    /// As fault records have it.
    #[must_use]
    pub const fn kind(self) -> RequestKind {
        match self {
            Self::Read | Self::ZeroLengthRead => RequestKind::Read,
            Self::Write => RequestKind::Write,
            Self::Atomic => RequestKind::Atomic,
        }
    }
}

/// Whose privilege a request with PASID carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Privilege {
    /// A user's.
    #[default]
    User,
    /// PR: the supervisor's.
    Supervisor,
}

/// Whether a request with PASID fetches code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Fetch {
    /// It does not.
    #[default]
    Data,
    /// ER: it does.
    Code,
}

/// A PASID with the attributes that travel beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Process {
    /// The PASID.
    pub pasid: Pasid,
    /// PR.
    pub privilege: Privilege,
    /// ER.
    pub fetch: Fetch,
}

impl Process {
    /// A user's data accesses.
    #[must_use]
    pub const fn user(pasid: Pasid) -> Self {
        Self {
            pasid,
            privilege: Privilege::User,
            fetch: Fetch::Data,
        }
    }
}

/// One request: at most a page, as a unit sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Request {
    /// Who.
    pub source: RequesterId,
    /// Its PASID, if it has one.
    pub process: Option<Process>,
    /// The address of the first byte. Nothing of the request lies beyond its 4-KiB page.
    pub address: u64,
    /// What for.
    pub access: Access,
}

impl Request {
    /// A request without PASID.
    #[must_use]
    pub const fn new(source: RequesterId, address: u64, access: Access) -> Self {
        Self {
            source,
            process: None,
            address,
            access,
        }
    }

    /// The same with `process`.
    #[must_use]
    pub const fn with_process(mut self, process: Process) -> Self {
        self.process = Some(process);
        self
    }

    /// The PASID, if it has one.
    #[inline]
    #[must_use]
    pub const fn pasid(&self) -> Option<Pasid> {
        match self.process {
            Some(process) => Some(process.pasid),
            None => None,
        }
    }
}

/// Where a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The physical address of the byte asked for.
    pub address: u64,
    /// log2 of the bytes around it, aligned to their size, that are translated alike: 12, 21, 30, or 64
    /// where nothing is translated.
    pub page_bits: u8,
    /// Whether reads are allowed too.
    pub reads: bool,
    /// Whether writes are allowed too.
    pub writes: bool,
    /// Whether accesses snoop processors' caches whatever the device asked for.
    pub snoops: bool,
}

impl Translated {
    /// Where nothing is translated.
    #[must_use]
    pub const fn identity(address: u64) -> Self {
        Self {
            address,
            page_bits: 64,
            reads: true,
            writes: true,
            snoops: false,
        }
    }
}

/// A request that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("refused: {reason}")]
pub struct Refused {
    /// Why, as fault records name it.
    pub reason: FaultReason,
    /// What became of the fault.
    pub fate: Fate,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is in fault record `0`.
    Recorded(u8),
    /// FPD was set in an entry that the request reached: it is not recorded.
    Disabled,
    /// A pending record of the same requester stands for it.
    Collapsed,
    /// There was no free record, or one overflow already: FSTS.PFO says so.
    Overflowed,
    /// The unit refuses such requests without a word: abort-DMA mode, reads of interrupt addresses.
    Silent,
}
