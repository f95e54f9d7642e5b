// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What changed between two VMCSs.
//!
//! ```
//! use hvkit_vmcs::{Vmcs, diff::differences, fields, store::FieldsMut};
//!
//! let before = Vmcs::new();
//! let mut after = before.clone();
//! after.write(fields::GUEST_RIP, 0x1003)?;
//! let changes: Vec<String> = differences(&before, &after).map(|change| change.to_string()).collect();
//! assert_eq!(changes, ["Guest RIP: 0x0 -> 0x1003"]);
//! # Ok::<(), hvkit_vmcs::store::NoSuchField>(())
//! ```

use core::fmt;

use crate::{
    controls::names_of,
    fields::{self, Info},
    store::Fields,
};

/// One field that differs.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Difference {
    /// The field.
    pub field: &'static Info,
    /// Its value in the first VMCS; `None` if that has no such field.
    pub before: Option<u64>,
    /// Its value in the second VMCS; `None` if that has no such field.
    pub after: Option<u64>,
}

/// The fields in which two VMCSs differ, in the order of [`fields::ALL`]. They may be in different kinds of store.
pub fn differences<'a>(
    before: &'a impl Fields,
    after: &'a impl Fields,
) -> impl Iterator<Item = Difference> + 'a {
    fields::ALL.iter().filter_map(|field| {
        let (before, after) = (before.get(field.encoding), after.get(field.encoding));
        (before != after).then_some(Difference {
            field,
            before,
            after,
        })
    })
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |f: &mut fmt::Formatter<'_>, value: Option<u64>| match value {
            Some(value) => write!(f, "{value:#x}"),
            None => f.write_str("absent"),
        };
        write!(f, "{}: ", self.field.name)?;
        value(f, self.before)?;
        f.write_str(" -> ")?;
        value(f, self.after)?;
        let (before, after) = (self.before.unwrap_or(0), self.after.unwrap_or(0));
        for (sign, bits) in [('+', after & !before), ('-', before & !after)] {
            for name in names_of(self.field.encoding, bits) {
                write!(f, ", {sign}{name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Encoding, Vmcs,
        store::{FieldsMut, Snapshot},
    };

    #[test]
    fn controls_are_named() {
        let (mut before, mut after) = (Vmcs::new(), Vmcs::new());
        before.set(Encoding(0x401e), 0x82).unwrap();
        after.set(Encoding(0x401e), 0x22).unwrap();
        let text: Vec<_> = differences(&before, &after)
            .map(|d| d.to_string())
            .collect();
        assert_eq!(
            text,
            [
                "Secondary processor-based VM-execution controls: 0x82 -> 0x22, +enable VPID, -unrestricted guest"
            ]
        );
    }

    #[test]
    fn equal_is_empty_and_absent_is_different_from_zero() {
        let zero = Vmcs::new();
        assert_eq!(differences(&zero, &zero).count(), 0);
        let mut one = Snapshot::new();
        one.set(Encoding(0x681e), 0).unwrap();
        let all: Vec<_> = differences(&zero, &one).collect();
        assert_eq!(all.len(), fields::COUNT - 1);
        assert!(all.iter().all(|d| d.before == Some(0) && d.after.is_none()));
        assert!(all[0].to_string().ends_with("0x0 -> absent"));
    }
}
