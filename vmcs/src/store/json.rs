// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMCSs as maps from field name to hexadecimal value, for JSON and its like (feature `serde`).
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

use core::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Fields, Raw, Snapshot, Vmcs, Vmcs12};
use crate::fields;

/// A number as `0x` and digits: JSON's own numbers lose bits of 64-bit values in many readers.
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        serializer.collect_str(self)
    }
}

fn serialize<Z: Serializer>(vmcs: &impl Fields, serializer: Z) -> Result<Z::Ok, Z::Error> {
    let present = || {
        fields::ALL
            .iter()
            .filter_map(|info| Some((info.id, vmcs.get(info.encoding)?)))
    };
    let mut map = serializer.serialize_map(Some(present().count()))?;
    for (id, value) in present() {
        map.serialize_entry(id, &Hex(value))?;
    }
    map.end()
}

macro_rules! serialize {
    ($([$($generics:tt)*] $type:ty;)*) => {$(
        impl<$($generics)*> Serialize for $type {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                serialize(self, serializer)
            }
        }
    )*};
}

serialize! {
    [] Vmcs;
    [] Snapshot;
    [B: AsRef<[u8]>] Vmcs12<B>;
    [B: AsRef<[u8]>, L: super::Layout] Raw<B, L>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FieldsMut;

    #[test]
    fn a_map_of_what_is_there() {
        let mut vmcs = Snapshot::new();
        vmcs.write(fields::GUEST_RIP, u64::MAX).unwrap();
        vmcs.write(fields::VPID, 7).unwrap();
        let json = serde_json::to_string(&vmcs).unwrap();
        assert_eq!(json, r#"{"VPID":"0x7","GUEST_RIP":"0xffffffffffffffff"}"#);
        let all = serde_json::to_value(Vmcs::new()).unwrap();
        assert_eq!(all.as_object().unwrap().len(), fields::COUNT);
    }
}
