// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events that cross between host and guest, and what the guest can take: the words of the injected-, exiting- and
//! original-event fields, of the activity and interruptibility states, and of pending debug exceptions.

use core::fmt;

/// What kind of event (bits 10:8). SDM Vol. 3C, "VM-Entry Controls for Event Injection". Eight values fit; the
/// manual uses seven.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct EventKind(pub u8);

macro_rules! names {
    ($type:ident($raw:ty) { $($name:ident = $value:literal, $text:literal;)* }) => {
        impl $type {
            $(
                #[doc = concat!("The manual's \"", $text, "\".")]
                pub const $name: Self = Self($value);
            )*
            /// The manual's name for the value, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{} {}", stringify!($type), self.0),
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

pub(crate) use names;

names! { EventKind(u8) {
    EXTERNAL_INTERRUPT = 0, "external interrupt";
    NMI = 2, "non-maskable interrupt (NMI)";
    HARDWARE_EXCEPTION = 3, "hardware exception";
    SOFTWARE_INTERRUPT = 4, "software interrupt";
    PRIVILEGED_SOFTWARE_EXCEPTION = 5, "privileged software exception";
    SOFTWARE_EXCEPTION = 6, "software exception";
    OTHER = 7, "other event";
}}

/// The identification of an event: the VM-entry interruption-information field, the VM-exit interruption-information
/// field, or the IDT-vectoring information field. SDM Vol. 3C, "VM-Entry Controls for Event Injection", "Information
/// for VM Exits Due to Vectored Events", "Information for VM Exits That Occur During Event Delivery".
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Event(pub u32);

impl Event {
    const ERROR_CODE: u32 = 1 << 11;
    const NMI_UNBLOCKING: u32 = 1 << 12;
    const NESTED: u32 = 1 << 13;
    const VALID: u32 = 1 << 31;

    /// A valid event of a kind, with a vector and no error code.
    pub const fn new(kind: EventKind, vector: u8) -> Self {
        Self(Self::VALID | (kind.0 as u32 & 7) << 8 | vector as u32)
    }

    /// The same event, delivering the error code of the neighbouring field.
    pub const fn with_error_code(self) -> Self {
        Self(self.0 | Self::ERROR_CODE)
    }

    /// The same event, called nested (bit 13).
    pub const fn nested(self) -> Self {
        Self(self.0 | Self::NESTED)
    }

    /// The vector (bits 7:0).
    #[inline(always)]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The kind (bits 10:8).
    #[inline(always)]
    pub const fn kind(self) -> EventKind {
        EventKind((self.0 >> 8 & 7) as u8)
    }

    /// Whether an error code goes with the event (bit 11).
    #[inline(always)]
    pub const fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE != 0
    }

    /// Whether IRET had unblocked NMIs (bit 12, exiting events only).
    pub const fn unblocked_nmi(self) -> bool {
        self.0 & Self::NMI_UNBLOCKING != 0
    }

    /// Whether the exception came during delivery of another event (bit 13).
    #[inline(always)]
    pub const fn is_nested(self) -> bool {
        self.0 & Self::NESTED != 0
    }

    /// Whether there is an event at all (bit 31).
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Whether the event is a valid one of this kind.
    #[inline(always)]
    pub const fn is_a(self, kind: EventKind) -> bool {
        self.is_valid() && self.kind().0 == kind.0
    }

    /// The mnemonic of the exception, if this is one the manual names.
    pub const fn exception(self) -> Option<&'static str> {
        match self.kind() {
            EventKind::HARDWARE_EXCEPTION
            | EventKind::SOFTWARE_EXCEPTION
            | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION => exception_name(self.vector()),
            _ => None,
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} {self}", self.0)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_valid() {
            return f.write_str("none");
        }
        write!(f, "{}, vector {}", self.kind(), self.vector())?;
        if let Some(name) = self.exception() {
            write!(f, " ({name})")?;
        }
        f.write_str(if self.has_error_code() {
            ", with error code"
        } else {
            ""
        })?;
        f.write_str(if self.is_nested() { ", nested" } else { "" })
    }
}

/// The mnemonic of an exception vector. SDM Vol. 3A, "Exceptions and Interrupts".
pub const fn exception_name(vector: u8) -> Option<&'static str> {
    Some(match vector {
        0 => "#DE",
        1 => "#DB",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        20 => "#VE",
        21 => "#CP",
        _ => return None,
    })
}

/// Whether the processor is executing instructions. SDM Vol. 3C, "Guest Non-Register State".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct ActivityState(pub u32);

names! { ActivityState(u32) {
    ACTIVE = 0, "active";
    HLT = 1, "HLT";
    SHUTDOWN = 2, "shutdown";
    WAIT_FOR_SIPI = 3, "wait-for-SIPI";
}}

impl ActivityState {
    /// Whether a processor in this state takes the event. SDM Vol. 3C, "Checks on Guest Non-Register State". A state
    /// without a name takes none.
    pub const fn takes(self, event: Event) -> bool {
        let (kind, vector) = (event.kind(), event.vector());
        match self {
            Self::ACTIVE => true,
            Self::HLT => match kind {
                EventKind::EXTERNAL_INTERRUPT | EventKind::NMI => true,
                EventKind::HARDWARE_EXCEPTION => vector == 1 || vector == 18,
                EventKind::OTHER => vector == 0,
                _ => false,
            },
            Self::SHUTDOWN => match kind {
                EventKind::NMI => true,
                EventKind::HARDWARE_EXCEPTION => vector == 18,
                _ => false,
            },
            _ => false,
        }
    }
}

bitflags::bitflags! {
    /// What the processor is not taking just now. SDM Vol. 3C, "Guest Non-Register State", table "Format of
    /// Interruptibility State".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    pub struct Interruptibility: u32 {
        /// Blocking by STI.
        const STI = 1 << 0;
        /// Blocking by MOV SS or POP SS.
        const MOV_SS = 1 << 1;
        /// Blocking by SMI.
        const SMI = 1 << 2;
        /// Blocking by NMI; virtual-NMI blocking where "virtual NMIs" is 1.
        const NMI = 1 << 3;
        /// The event interrupted an enclave.
        const ENCLAVE = 1 << 4;
    }
}

bitflags::bitflags! {
    /// Debug exceptions that were recognized and not yet delivered. SDM Vol. 3C, "Guest Non-Register State", table
    /// "Format of Pending-Debug-Exceptions".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    pub struct PendingDebug: u64 {
        /// Breakpoint 0 was met.
        const B0 = 1 << 0;
        /// Breakpoint 1 was met.
        const B1 = 1 << 1;
        /// Breakpoint 2 was met.
        const B2 = 1 << 2;
        /// Breakpoint 3 was met.
        const B3 = 1 << 3;
        /// A bus lock was asserted at CPL above 0. The table names the bit; the list of checks on VM entry has it among those that must
        /// be 0, and the checker ([`check`](crate::check)) follows the list. Whether a processor with bus-lock detection enters with it
        /// set was tried on none.
        const BUS_LOCK = 1 << 11;
        /// An enabled breakpoint was met.
        const ENABLED_BREAKPOINT = 1 << 12;
        /// Single stepping.
        const BS = 1 << 14;
        /// The exception came inside an RTM region.
        const RTM = 1 << 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_manual() {
        // #PF with error code; external interrupt d1H; NMI; INT1; pending MTF.
        let fault = Event::new(EventKind::HARDWARE_EXCEPTION, 14).with_error_code();
        assert_eq!(fault.0, 0x8000_0b0e);
        assert_eq!(
            Event::new(EventKind::EXTERNAL_INTERRUPT, 0xd1).0,
            0x8000_00d1
        );
        assert_eq!(Event::new(EventKind::NMI, 2).0, 0x8000_0202);
        assert_eq!(
            Event::new(EventKind::PRIVILEGED_SOFTWARE_EXCEPTION, 1).0,
            0x8000_0501
        );
        assert_eq!(Event::new(EventKind::OTHER, 0).0, 0x8000_0700);
        assert_eq!(
            Event::new(EventKind::HARDWARE_EXCEPTION, 13).nested().0,
            0x8000_230d
        );
        assert_eq!(Event(0x8000_230d).nested().0, 0x8000_230d);
    }

    #[test]
    fn a_word_in_parts() {
        let event = Event(0x8000_1b0e);
        assert!(event.is_valid() && event.has_error_code() && event.unblocked_nmi());
        assert!(!event.is_nested());
        assert_eq!(event.exception(), Some("#PF"));
        assert_eq!(
            format!("{}", Event(0x8000_0b0d)),
            "hardware exception, vector 13 (#GP), with error code"
        );
        assert_eq!(format!("{}", Event(0x0000_0b0d)), "none");
        assert_eq!(format!("{}", Event(0x8000_0105)), "EventKind 1, vector 5");
    }

    #[test]
    fn inactive_states_take_what_the_manual_lists() {
        let interrupt = Event(0x8000_0020);
        let [nmi, debug, machine_check, fault] =
            [0x202, 0x301, 0x312, 0x30d].map(|w| Event(1 << 31 | w));
        let taken = |state: ActivityState| {
            [interrupt, nmi, debug, machine_check, fault].map(|e| state.takes(e))
        };
        assert_eq!(taken(ActivityState::ACTIVE), [true; 5]);
        assert_eq!(taken(ActivityState::HLT), [true, true, true, true, false]);
        assert_eq!(
            taken(ActivityState::SHUTDOWN),
            [false, true, false, true, false]
        );
        assert_eq!(taken(ActivityState::WAIT_FOR_SIPI), [false; 5]);
        assert_eq!(taken(ActivityState(4)), [false; 5]);
        assert!(
            ActivityState::HLT.takes(Event(0x8000_0700)),
            "a pending MTF exit"
        );
        assert!(!ActivityState::HLT.takes(Event(0x8000_0701)), "SYSCALL");
    }

    #[test]
    fn state_bits_are_where_the_tables_put_them() {
        assert_eq!(
            (Interruptibility::MOV_SS | Interruptibility::ENCLAVE).bits(),
            0x12
        );
        assert_eq!(
            (PendingDebug::BS | PendingDebug::ENABLED_BREAKPOINT).bits(),
            0x5000
        );
        assert_eq!(
            (PendingDebug::RTM | PendingDebug::BUS_LOCK).bits(),
            0x1_0800
        );
    }
}
