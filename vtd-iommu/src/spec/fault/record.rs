// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A fault record: 128 bits that say who asked for what, and why not.

use super::{Class, FaultReason};
use crate::spec::word::word;
use crate::spec::{Pasid, RequesterId};

word! {
    /// A fault-recording register (FRCD_REG). VT-d, "Fault Recording Registers".
    pub struct FaultRecord(u128) {
        /// FI: page address, or the interrupt index in bits 63:48; see [`address`](Self::address) and
        /// [`interrupt_index`](Self::interrupt_index).
        address [63:12] information, with_information;
        /// SID, raw; see [`source`](Self::source).
        u16 [79:64] sid, with_sid;
        /// T2: type bit 2; see [`kind`](Self::kind).
        bool [92:92] type_2, with_type_2;
        /// PRIV: supervisor privilege was asked for. Valid with PP.
        bool [93:93] supervisor, with_supervisor;
        /// EXE: execute permission was asked for. Valid with PP.
        bool [94:94] execute, with_execute;
        /// PP: the request had a PASID.
        bool [95:95] pasid_present, with_pasid_present;
        /// FR, raw; see [`reason`](Self::reason).
        u8 [103:96] fr, with_fr;
        /// PV: PASID value, raw; see [`pasid`](Self::pasid).
        u32 [123:104] pasid_value, with_pasid_value;
        /// AT: address type of the request (0 untranslated, 1 translation request, 2 translated).
        u8 [125:124] address_type, with_address_type;
        /// T1: type bit 1; see [`kind`](Self::kind).
        bool [126:126] type_1, with_type_1;
        /// F: a fault is recorded here.
        bool [127:127] fault, with_fault;
    }
}

/// What was asked for: T1 and T2 of a [`FaultRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum RequestKind {
    /// T1 = 0, T2 = 0.
    Write,
    /// T1 = 0, T2 = 1.
    Page,
    /// T1 = 1, T2 = 0.
    Read,
    /// T1 = 1, T2 = 1.
    Atomic,
}

impl FaultRecord {
    /// Who asked.
    #[must_use]
    pub const fn source(self) -> RequesterId {
        RequesterId(self.sid())
    }

    /// With [`source`](Self::source) as given.
    #[must_use]
    pub const fn with_source(self, source: RequesterId) -> Self {
        self.with_sid(source.0)
    }

    /// Why it was refused.
    #[must_use]
    pub const fn reason(self) -> FaultReason {
        FaultReason(self.fr())
    }

    /// With [`reason`](Self::reason) as given.
    #[must_use]
    pub const fn with_reason(self, reason: FaultReason) -> Self {
        self.with_fr(reason.0)
    }

    /// What was asked for. Of no meaning for interrupt requests.
    #[must_use]
    pub const fn kind(self) -> RequestKind {
        match (self.type_1(), self.type_2()) {
            (false, false) => RequestKind::Write,
            (false, true) => RequestKind::Page,
            (true, false) => RequestKind::Read,
            (true, true) => RequestKind::Atomic,
        }
    }

    /// With [`kind`](Self::kind) as given.
    #[must_use]
    pub const fn with_kind(self, kind: RequestKind) -> Self {
        let (type_1, type_2) = match kind {
            RequestKind::Write => (false, false),
            RequestKind::Page => (false, true),
            RequestKind::Read => (true, false),
            RequestKind::Atomic => (true, true),
        };
        self.with_type_1(type_1).with_type_2(type_2)
    }

    /// The PASID of the request, if it had one.
    #[must_use]
    pub const fn pasid(self) -> Option<Pasid> {
        if self.pasid_present() {
            Some(Pasid::from_field(self.pasid_value()))
        } else {
            None
        }
    }

    /// With [`pasid`](Self::pasid) as given.
    #[must_use]
    pub const fn with_pasid(self, pasid: Option<Pasid>) -> Self {
        match pasid {
            Some(pasid) => self.with_pasid_present(true).with_pasid_value(pasid.get()),
            None => self.with_pasid_present(false).with_pasid_value(0),
        }
    }

    /// The page that the request was for; `None` for an interrupt request.
    #[must_use]
    pub const fn address(self) -> Option<u64> {
        match self.reason().class() {
            Some(Class::Interrupt) => None,
            _ => Some(self.information()),
        }
    }

    /// The interrupt index that was computed; `None` unless it was an interrupt request.
    #[must_use]
    pub const fn interrupt_index(self) -> Option<u16> {
        match self.reason().class() {
            Some(Class::Interrupt) => Some((self.information() >> 48) as u16),
            _ => None,
        }
    }

    /// With [`interrupt_index`](Self::interrupt_index) as given, provided the reason is one of interrupt
    /// remapping.
    #[must_use]
    pub const fn with_interrupt_index(self, index: u16) -> Self {
        self.with_information((index as u64) << 48)
    }
}
