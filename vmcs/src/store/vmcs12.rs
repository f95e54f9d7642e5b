// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's VMCS12: the VMCS that a hypervisor inside a KVM guest keeps for its own guest.
//!
//! `KVM_GET_NESTED_STATE` returns it as 4096 opaque bytes (`vmcs12` in `kvm-bindings`). Its layout
//! is part of KVM's interface, as saved states migrate: fields are only ever added.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use super::{Fields, FieldsMut, Layout, NoSuchField, Raw};
use crate::{encoding::Encoding, fields};

/// KVM's layout, revision `0x11e57ed0`.
#[derive(Clone, Copy, Debug)]
pub enum Vmcs12Layout {}

impl Layout for Vmcs12Layout {
    const SIZE: usize = Vmcs12::<&[u8]>::SIZE;

    fn offset(encoding: Encoding) -> Option<usize> {
        fields::find(encoding)?.vmcs12_offset.map(usize::from)
    }
}

/// The bytes are not a VMCS12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Vmcs12Error {
    /// Fewer than 4096 bytes.
    #[error("a VMCS12 has 4096 bytes, not {have}")]
    Length {
        /// Bytes given.
        have: usize,
    },
    /// Bits 30:0 of the first word are not KVM's revision identifier.
    #[error("offset 0: revision {have:#x} is not KVM's 0x11e57ed0")]
    Revision {
        /// The revision in the bytes.
        have: u32,
    },
}

/// The 4096 bytes of a VMCS12.
///
/// ```
/// use hvkit_vmcs::{fields, store::{Fields, Vmcs12}};
///
/// let mut bytes = [0_u8; 4096]; // from KVM_GET_NESTED_STATE
/// bytes[..4].copy_from_slice(&0x11e5_7ed0_u32.to_le_bytes());
/// bytes[544..552].copy_from_slice(&0xfff0_u64.to_le_bytes());
/// let vmcs12 = Vmcs12::new(&bytes[..])?;
/// assert_eq!(vmcs12.read(fields::GUEST_RIP), Some(0xfff0));
/// assert_eq!(vmcs12.read(fields::GUEST_PKRS), None); // KVM keeps no PKRS for nested guests
/// # Ok::<(), hvkit_vmcs::store::Vmcs12Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Vmcs12<B> {
    raw: Raw<B, Vmcs12Layout>,
}

impl<B> Vmcs12<B> {
    /// Bytes of a VMCS12.
    pub const SIZE: usize = 4096;
    /// KVM's VMCS revision identifier, at offset 0.
    pub const REVISION: u32 = 0x11e5_7ed0;
}

impl<B: AsRef<[u8]>> Vmcs12<B> {
    /// Bytes with KVM's revision identifier.
    ///
    /// # Errors
    ///
    /// [`Vmcs12Error`]: too few bytes, or another revision.
    pub fn new(bytes: B) -> Result<Self, Vmcs12Error> {
        let raw = Raw::new(bytes).map_err(|short| Vmcs12Error::Length { have: short.have })?;
        let vmcs12 = Self { raw };
        match vmcs12.word(0) & 0x7fff_ffff {
            Self::REVISION => Ok(vmcs12),
            have => Err(Vmcs12Error::Revision { have }),
        }
    }

    /// Whether it is a shadow VMCS: bit 31 at offset 0.
    pub fn is_shadow(&self) -> bool {
        self.word(0) >> 31 != 0
    }

    /// The VMX-abort indicator, at offset 4.
    pub fn abort(&self) -> u32 {
        self.word(4)
    }

    /// KVM's launch state, at offset 8: 0 after VMCLEAR, 1 after VMLAUNCH.
    pub fn launch_state(&self) -> u32 {
        self.word(8)
    }

    /// Gives the bytes back.
    pub fn into_inner(self) -> B {
        self.raw.into_inner()
    }

    fn word(&self, offset: usize) -> u32 {
        let bytes = self.raw.bytes().get(offset..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

impl<B: AsRef<[u8]>> Fields for Vmcs12<B> {
    fn get(&self, encoding: Encoding) -> Option<u64> {
        self.raw.get(encoding)
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> FieldsMut for Vmcs12<B> {
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField> {
        self.raw.set(encoding, value)
    }
}
