// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The number by which VMREAD and VMWRITE name a field.
//!
//! SDM Vol. 3C, "VMCS Encoding of Fields" (Table "Structure of VMCS Component Encoding"):
//!
//! ```text
//!  31       15 14 13 12 11 10  9           1  0
//! |  reserved |width| 0|class|     index     |high half|
//! ```

use core::fmt;

/// How many bits a field has. Bits 14:13 of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(u8)]
pub enum Width {
    /// 16 bits.
    Bits16 = 0,
    /// 64 bits, on every processor; bits 63:32 are also reachable by the high-half encoding.
    Bits64 = 1,
    /// 32 bits.
    Bits32 = 2,
    /// 64 bits on processors that support Intel 64 architecture, 32 bits on others.
    Natural = 3,
}

impl Width {
    /// All values the width has room for.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 | Self::Natural => u64::MAX,
        }
    }

    /// Bytes the width takes in memory.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 | Self::Natural => 8,
        }
    }
}

/// What a field is for. Bits 11:10 of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(u8)]
pub enum Class {
    /// VM-execution, VM-exit and VM-entry controls.
    Control = 0,
    /// VM-exit information ("read-only data"): written by VM exits. VMWRITE to one fails unless
    /// `IA32_VMX_MISC` bit 29 is 1.
    ExitInformation = 1,
    /// Guest state: loaded by VM entries, saved by VM exits.
    Guest = 2,
    /// Host state: loaded by VM exits.
    Host = 3,
}

/// The number of a VMCS field. Any number is a value of this type; [`crate::fields::find`] says
/// whether the manual defines a field there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Encoding(pub u32);

impl Encoding {
    const INDEX_MASK: u32 = 0x1ff;

    /// The encoding of field `index` of `class` and `width`, full access.
    ///
    /// Only the low 9 bits of `index` have a place.
    pub const fn new(width: Width, class: Class, index: u16) -> Self {
        let index = index as u32 & Self::INDEX_MASK;
        Self((width as u32) << 13 | (class as u32) << 10 | index << 1)
    }

    /// The width (bits 14:13).
    pub const fn width(self) -> Width {
        match self.0 >> 13 & 3 {
            0 => Width::Bits16,
            1 => Width::Bits64,
            2 => Width::Bits32,
            _ => Width::Natural,
        }
    }

    /// The class (bits 11:10).
    pub const fn class(self) -> Class {
        match self.0 >> 10 & 3 {
            0 => Class::Control,
            1 => Class::ExitInformation,
            2 => Class::Guest,
            _ => Class::Host,
        }
    }

    /// The index within width and class (bits 9:1).
    pub const fn index(self) -> u16 {
        (self.0 >> 1 & Self::INDEX_MASK) as u16
    }

    /// Whether bit 0 asks for bits 63:32 of a 64-bit field.
    pub const fn is_high(self) -> bool {
        self.0 & 1 != 0
    }

    /// The same field, full access.
    pub const fn full(self) -> Self {
        Self(self.0 & !1)
    }

    /// The encoding of bits 63:32. Only 64-bit fields have one.
    pub const fn high_half(self) -> Option<Self> {
        match self.width() {
            Width::Bits64 => Some(Self(self.0 | 1)),
            _ => None,
        }
    }

    /// Whether the number keeps to the figure: reserved bits clear, high access only to 64-bit fields.
    pub const fn is_well_formed(self) -> bool {
        self.0 & 0xffff_9000 == 0 && (!self.is_high() || matches!(self.width(), Width::Bits64))
    }
}

impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::fields::find(*self) {
            Some(info) => write!(f, "{:#06x} {}", self.0, info.name),
            None => write!(f, "{:#06x}", self.0),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::fields::find(*self) {
            Some(info) if self.is_high() => write!(f, "{} (high half)", info.name),
            Some(info) => f.write_str(info.name),
            None => write!(f, "field {:#06x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_of_the_manual_in_raw_words() {
        // Guest RIP: natural width (3), guest state (2), index 15.
        assert_eq!(Encoding::new(Width::Natural, Class::Guest, 15).0, 0x681e);
        // EPT pointer: 64 bits (1), control (0), index 13.
        assert_eq!(Encoding::new(Width::Bits64, Class::Control, 13).0, 0x201a);
        // Exit reason: 32 bits (2), exit information (1), index 1.
        assert_eq!(
            Encoding::new(Width::Bits32, Class::ExitInformation, 1).0,
            0x4402
        );
        // Host TR selector: 16 bits (0), host (3), index 6.
        assert_eq!(Encoding::new(Width::Bits16, Class::Host, 6).0, 0x0c0c);
    }

    #[test]
    fn parts_of_a_raw_number() {
        let high = Encoding(0x2805);
        assert_eq!(
            (high.width(), high.class(), high.index()),
            (Width::Bits64, Class::Guest, 2)
        );
        assert!(high.is_high() && high.is_well_formed());
        assert_eq!(high.full(), Encoding(0x2804));
        assert_eq!(Encoding(0x2804).high_half(), Some(Encoding(0x2805)));
        assert_eq!(Encoding(0x6800).high_half(), None);
        assert!(
            !Encoding(0x6801).is_well_formed(),
            "natural-width fields have no high half"
        );
        assert!(!Encoding(0x1000).is_well_formed(), "bit 12 is reserved");
        assert!(
            !Encoding(0x8000).is_well_formed(),
            "bits 31:15 are reserved"
        );
    }
}
