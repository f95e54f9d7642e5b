// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt requests as they travel: address and data. "Interrupt Requests in Compatibility Format",
//! "Interrupt Requests in Remappable Format".

use super::irte::Delivery;

/// Bits 31:20 of every interrupt's address.
const PREFIX: u32 = 0xfee0_0000;
/// Bit 4: remappable format.
const REMAPPABLE: u32 = 1 << 4;
/// Bit 3 of a remappable address: SHV.
const SUBHANDLE_VALID: u32 = 1 << 3;

/// A message-signalled interrupt: what is written where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Message {
    /// The address. Of an extended destination (x2APIC) bits 63:40 hold destination bits 31:8, as fault
    /// event registers have them.
    pub address: u64,
    /// The data.
    pub data: u32,
}

impl Message {
    /// Whether `address` is one that requests interrupts: 0xfee0_0000 to 0xfeef_ffff.
    #[inline]
    #[must_use]
    pub const fn is_interrupt(address: u64) -> bool {
        address >> 20 == 0xfee
    }

    /// In the compatibility format: `vector` to the xAPIC with id `destination`, fixed, edge, physical.
    #[must_use]
    pub const fn compatible(destination: u8, vector: u8) -> Self {
        Self {
            address: (PREFIX | (destination as u32) << 12) as u64,
            data: vector as u32,
        }
    }

    /// In the remappable format: entry `handle` of the table.
    #[must_use]
    pub const fn remappable(handle: u16) -> Self {
        let low = (handle as u32 & 0x7fff) << 5 | (handle as u32 >> 15) << 2;
        Self {
            address: (PREFIX | REMAPPABLE | low) as u64,
            data: 0,
        }
    }

    /// In the remappable format: entry `handle` + `subhandle`, the latter in the data as multi-message
    /// devices add it.
    #[must_use]
    pub const fn remappable_block(handle: u16, subhandle: u16) -> Self {
        let Self { address, .. } = Self::remappable(handle);
        Self {
            address: address | SUBHANDLE_VALID as u64,
            data: subhandle as u32,
        }
    }

    /// Bit 4: whether it is in the remappable format.
    #[inline]
    #[must_use]
    pub const fn is_remappable(self) -> bool {
        self.address as u32 & REMAPPABLE != 0
    }

    /// What it says, if it is in the remappable format.
    #[inline]
    #[must_use]
    pub const fn to_remappable(self) -> Option<Remappable> {
        if !self.is_remappable() {
            return None;
        }
        let address = self.address as u32;
        let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
        Some(Remappable {
            handle: handle as u16,
            subhandle: if address & SUBHANDLE_VALID != 0 {
                Some(self.data as u16)
            } else {
                None
            },
        })
    }

    /// Of the compatibility format: the destination, address bits 19:12.
    #[inline]
    #[must_use]
    pub const fn destination(self) -> u8 {
        (self.address >> 12) as u8
    }

    /// Of the compatibility format: the redirection hint, address bit 3.
    #[inline]
    #[must_use]
    pub const fn redirection_hint(self) -> bool {
        self.address & 8 != 0
    }

    /// Of the compatibility format: the destination mode, address bit 2; set is logical.
    #[inline]
    #[must_use]
    pub const fn is_logical(self) -> bool {
        self.address & 4 != 0
    }

    /// Of the compatibility format: data bits 7:0.
    #[inline]
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.data as u8
    }

    /// Of the compatibility format: data bits 10:8.
    #[inline]
    #[must_use]
    pub const fn delivery(self) -> Delivery {
        Delivery((self.data >> 8 & 7) as u8)
    }

    /// Of the compatibility format: data bit 15.
    #[inline]
    #[must_use]
    pub const fn is_level(self) -> bool {
        self.data >> 15 & 1 != 0
    }
}

/// What a message in the remappable format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Remappable {
    /// The handle: address bits 19:5, and bit 2 as its highest.
    pub handle: u16,
    /// The subhandle, if SHV (address bit 3) is set: data bits 15:0.
    pub subhandle: Option<u16>,
}

impl Remappable {
    /// The index of the entry that is asked for. It may be above 65535, where no table reaches.
    #[inline]
    #[must_use]
    pub const fn index(self) -> u32 {
        match self.subhandle {
            Some(subhandle) => (self.handle as u32).wrapping_add(subhandle as u32),
            None => self.handle as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remappable_message_as_in_the_figure() {
        let message = Message {
            address: 0xfee0_0010 | 0x1234 << 5 | 1 << 2,
            data: 0xffff_ffff,
        };
        let asks = message.to_remappable().unwrap();
        assert_eq!(
            (asks.handle, asks.subhandle, asks.index()),
            (0x9234, None, 0x9234)
        );
        assert_eq!(Message::remappable(0x9234).address, message.address);
        let block = Message {
            address: message.address | 8,
            data: 0xabcd_0007,
        };
        let asks = block.to_remappable().unwrap();
        assert_eq!((asks.subhandle, asks.index()), (Some(7), 0x923b));
        assert_eq!(
            Message::remappable_block(0x9234, 7),
            Message {
                address: block.address,
                data: 7
            }
        );
        let highest = Remappable {
            handle: 0xffff,
            subhandle: Some(0xffff),
        };
        assert_eq!(highest.index(), 0x1fffe);
    }

    #[test]
    fn a_compatible_message_as_in_the_figure() {
        let message = Message {
            address: 0xfeeb_a00c,
            data: 0x8531,
        };
        assert_eq!(message.to_remappable(), None);
        assert_eq!((message.destination(), message.vector()), (0xba, 0x31));
        assert!(message.redirection_hint() && message.is_logical() && message.is_level());
        assert_eq!(message.delivery(), Delivery::INIT);
        let plain = Message::compatible(3, 0x40);
        assert_eq!(
            plain,
            Message {
                address: 0xfee0_3000,
                data: 0x40
            }
        );
    }

    #[test]
    fn the_range() {
        assert!(Message::is_interrupt(0xfee0_0000) && Message::is_interrupt(0xfeef_ffff));
        assert!(!Message::is_interrupt(0xfedf_ffff) && !Message::is_interrupt(0xfef0_0000));
        assert!(!Message::is_interrupt(0x1_fee0_0000));
    }
}
