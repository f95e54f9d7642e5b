// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who makes a request: source-ids and PASIDs.

use core::fmt;

/// A PCI Express requester-id, which VT-d calls source-id: bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// Device (0 to 31) and function (0 to 7) on `bus`; `None` if one is larger.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self(
                (bus as u16) << 8 | (device as u16) << 3 | function as u16,
            ))
        } else {
            None
        }
    }

    /// The bus (bits 15:8), which selects the root entry.
    #[inline]
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device (bits 7:3).
    #[inline]
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 0x1f) as u8
    }

    /// The function (bits 2:0).
    #[inline]
    #[must_use]
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Device and function (bits 7:0), which select the context entry.
    #[inline]
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A process address space id: 20 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pasid(u32);

impl Pasid {
    /// The PASID that a request without PASID has where the unit does not support another (RID_PASID).
    pub const ZERO: Self = Self(0);

    /// `None` if `value` has more than 20 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value >> 20 == 0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The lowest 20 bits of `value`: for fields that have no more.
    #[inline]
    #[must_use]
    pub const fn from_field(value: u32) -> Self {
        Self(value & 0xf_ffff)
    }

    /// As a number below 2^20.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pasid({:#x})", self.0)
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Pasid {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self::from_field(u.arbitrary()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn bus_device_function() {
        let id = RequesterId::new(0x3a, 0x1f, 7).unwrap();
        assert_eq!(id.0, 0x3aff);
        assert_eq!(
            (id.bus(), id.device(), id.function(), id.devfn()),
            (0x3a, 0x1f, 7, 0xff)
        );
        assert_eq!(RequesterId(0x0018).to_string(), "00:03.0");
        assert_eq!(RequesterId::new(0, 32, 0), None);
        assert_eq!(RequesterId::new(0, 0, 8), None);
    }

    #[test]
    fn pasids_have_twenty_bits() {
        assert_eq!(Pasid::new(0x10_0000), None);
        assert_eq!(Pasid::new(0xf_ffff).unwrap().get(), 0xf_ffff);
        assert_eq!(Pasid::from_field(0xfff0_0001).get(), 1);
    }
}
