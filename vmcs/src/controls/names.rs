// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of the controls set in a field.

use super::{
    Entry, ExitPrimary, ExitSecondary, PinBased, Primary, Secondary, Tertiary, VmFunctions,
};
use crate::{encoding::Encoding, fields as f};

/// The manual's names of the controls that are 1 in `value`, a value of the control field `field`. Nothing for fields
/// that are not a vector of controls; reserved bits have no name.
pub fn names_of(field: Encoding, value: u64) -> impl Iterator<Item = &'static str> {
    const FIELDS: [Encoding; 8] = [
        f::PIN_BASED_CONTROLS.encoding(),
        f::PRIMARY_CONTROLS.encoding(),
        f::SECONDARY_CONTROLS.encoding(),
        f::TERTIARY_CONTROLS.encoding(),
        f::PRIMARY_EXIT_CONTROLS.encoding(),
        f::SECONDARY_EXIT_CONTROLS.encoding(),
        f::ENTRY_CONTROLS.encoding(),
        f::VM_FUNCTION_CONTROLS.encoding(),
    ];
    let vector = FIELDS.iter().position(|known| *known == field);
    (0..64)
        .filter(move |bit| value >> bit & 1 != 0)
        .filter_map(move |bit| name(vector?, bit))
}

fn name(vector: usize, bit: u32) -> Option<&'static str> {
    macro_rules! look {
        ($type:ident) => {{
            let mut names = $type::NAMES.iter();
            names
                .find(|(flag, _)| u64::from(flag.bits()) == 1 << bit)
                .map(|(_, name)| *name)
        }};
    }
    match vector {
        0 => look!(PinBased),
        1 => look!(Primary),
        2 => look!(Secondary),
        3 => look!(Tertiary),
        4 => look!(ExitPrimary),
        5 => look!(ExitSecondary),
        6 => look!(Entry),
        _ => look!(VmFunctions),
    }
}
