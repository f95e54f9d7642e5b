// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every VMCS field, declared once. SDM Vol. 3D, Appendix "Field Encoding in VMCS".
//!
//! Each constant is a typed [`Field`](crate::Field); [`ALL`] is the list with each field's name in the manual, the
//! condition under which it exists, and where KVM's VMCS12 keeps it.
//!
//! The manual of 2025 renamed some fields: "VM-entry interruption information" is its "injected-event identification",
//! "VM-exit interruption information" its "exiting-event identification", "IDT-vectoring information" its
//! "original-event identification". The constants carry the new names, the descriptions both.
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

mod control;
mod exists;
mod exit_information;
mod guest;
mod host;
mod slots;

pub use control::*;
pub use exists::Exists;
pub use exit_information::*;
pub use guest::*;
pub use host::*;
use slots::POSITIONS;
pub(crate) use slots::{SLOTS, slot};

use crate::encoding::{Class, Encoding, Width};

/// What is known of one field.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Info {
    /// The number that VMREAD takes, full access.
    pub encoding: Encoding,
    /// The name of the constant in this module.
    pub id: &'static str,
    /// The manual's name.
    pub name: &'static str,
    /// On which processors the field exists, and which control makes it matter.
    pub exists: Exists,
    /// Where KVM keeps the field in the 4096 bytes of a VMCS12, if it does. KVM fixed the offsets for
    /// revision `0x11e57ed0`; see [`crate::store::Vmcs12`].
    pub vmcs12_offset: Option<u16>,
}

impl Info {
    /// Whether software may write the field on every processor.
    pub const fn is_writable(&self) -> bool {
        !matches!(self.encoding.class(), Class::ExitInformation)
    }
}

macro_rules! fields {
    (@access ExitInformation) => { $crate::field::ReadOnly };
    (@access $class:ident) => { $crate::field::ReadWrite };
    (@offset) => { None };
    (@offset $offset:literal) => { Some($offset) };
    ($class:ident, $table:ident: $(
        $width:ident {
            $($id:ident = $index:literal, $name:literal, $exists:expr $(, @$offset:literal)?;)*
        }
    )*) => {
        $($(
            #[doc = concat!($name, ".")]
            pub const $id: $crate::field::Field<$crate::field::$width, fields!(@access $class)> =
                $crate::field::Field::at($crate::encoding::Class::$class, $index);
        )*)*
        pub(super) const $table: &[$crate::fields::Info] = &[$($(
            $crate::fields::Info {
                encoding: $id.encoding(),
                id: stringify!($id),
                name: $name,
                exists: $exists,
                vmcs12_offset: fields!(@offset $($offset)?),
            },
        )*)*];
    };
}
use fields;

const PARTS: [&[Info]; 4] = [CONTROL, EXIT_INFORMATION, GUEST, HOST];

/// How many fields there are.
#[expect(
    clippy::indexing_slicing,
    reason = "a constant: what is out of range stops the compiler"
)]
pub const COUNT: usize = {
    let mut count = 0;
    let mut part = 0;
    while part < PARTS.len() {
        count += PARTS[part].len();
        part += 1;
    }
    count
};

/// Every field: controls, exit information, guest state, host state.
#[expect(
    clippy::indexing_slicing,
    reason = "a constant: what is out of range stops the compiler"
)]
pub static ALL: [Info; COUNT] = {
    let mut all = [PARTS[0][0]; COUNT];
    let (mut part, mut to) = (0, 0);
    while part < PARTS.len() {
        let mut from = 0;
        while from < PARTS[part].len() {
            all[to] = PARTS[part][from];
            to += 1;
            from += 1;
        }
        part += 1;
    }
    all
};

/// What is known of the field with this encoding (full or high access), if the manual defines one.
pub fn find(encoding: Encoding) -> Option<&'static Info> {
    ALL.get(usize::from(*POSITIONS.get(slot(encoding)?)?))
}

/// The field whose constant in this module has the name `id`, in either case.
pub fn find_by_id(id: &str) -> Option<&'static Info> {
    ALL.iter().find(|info| info.id.eq_ignore_ascii_case(id))
}

/// The greatest index of any field that exists on a processor with these capabilities: what it
/// should report in bits 9:1 of `IA32_VMX_VMCS_ENUM`.
pub fn greatest_index(capabilities: &crate::Capabilities) -> u16 {
    let existing = ALL.iter().filter(|info| info.exists.on(capabilities));
    existing
        .map(|info| info.encoding.index())
        .max()
        .unwrap_or(0)
}

/// The fields of one width and class, in the order of their encodings.
pub fn of(width: Width, class: Class) -> impl Iterator<Item = &'static Info> {
    ALL.iter()
        .filter(move |info| info.encoding.width() == width && info.encoding.class() == class)
}

#[cfg(test)]
mod tests;
