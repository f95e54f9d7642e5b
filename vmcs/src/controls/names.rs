// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of the controls set in a field.

use super::{
    Entry, ExitPrimary, ExitSecondary, PinBased, Primary, Secondary, Tertiary, VmFunctions,
};
use crate::{encoding::Encoding, fields as f};

/// The name of a bit, if it has one.
type NameOf = fn(u32) -> Option<&'static str>;

macro_rules! vectors {
    ($($field:ident: $controls:ident,)*) => {
        /// Each control field, and the names of its bits.
        const VECTORS: &[(Encoding, NameOf)] = &[$((f::$field.encoding(), |bit| {
            let mut names = $controls::NAMES.iter();
            let found = names.find(|(control, _)| u64::from(control.bits()) == 1 << bit);
            found.map(|(_, name)| *name)
        })),*];
    };
}

vectors! {
    PIN_BASED_CONTROLS: PinBased,
    PRIMARY_CONTROLS: Primary,
    SECONDARY_CONTROLS: Secondary,
    TERTIARY_CONTROLS: Tertiary,
    PRIMARY_EXIT_CONTROLS: ExitPrimary,
    SECONDARY_EXIT_CONTROLS: ExitSecondary,
    ENTRY_CONTROLS: Entry,
    VM_FUNCTION_CONTROLS: VmFunctions,
}

/// The manual's names of the controls that are 1 in `value`, a value of the control field `field`. Nothing for fields
/// that are not a vector of controls; reserved bits have no name.
pub fn names_of(field: Encoding, value: u64) -> impl Iterator<Item = &'static str> {
    let vector = VECTORS.iter().find(|(known, _)| *known == field);
    (0..64)
        .filter(move |bit| value >> bit & 1 != 0)
        .filter_map(move |bit| vector?.1(bit))
}
