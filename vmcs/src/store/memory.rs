// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMCSs in memory.

use core::fmt;

use super::{Fields, FieldsMut, NoSuchField, merge, view};
use crate::{
    encoding::Encoding,
    fields::{self, SLOTS},
};

/// A VMCS in an array: every field of the manual, zero until written.
///
/// About 1.7 KiB. Reads with a constant encoding are single loads.
#[derive(Clone, PartialEq, Eq)]
pub struct Vmcs {
    slots: [u64; SLOTS],
}

impl Vmcs {
    /// A VMCS of zeros. (`VMCS link pointer` of zero is not a VMCS that enters; set it to all ones.)
    pub const fn new() -> Self {
        Self { slots: [0; SLOTS] }
    }

    fn put(&mut self, slot: usize, value: u64) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = value;
        }
    }

    /// Copies every field that `from` has; the others are zero.
    pub fn copy_of(from: &impl Fields) -> Self {
        let mut copy = Self::new();
        for info in &fields::ALL {
            if let (Some(slot), Some(value)) =
                (fields::slot(info.encoding), from.get(info.encoding))
            {
                copy.put(slot, value);
            }
        }
        copy
    }
}

impl Default for Vmcs {
    fn default() -> Self {
        Self::new()
    }
}

impl Fields for Vmcs {
    #[inline(always)]
    fn get(&self, encoding: Encoding) -> Option<u64> {
        Some(view(encoding, *self.slots.get(fields::slot(encoding)?)?))
    }
}

impl FieldsMut for Vmcs {
    #[inline]
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField> {
        let slot = fields::slot(encoding).and_then(|slot| self.slots.get_mut(slot));
        let slot = slot.ok_or(NoSuchField(encoding))?;
        *slot = merge(encoding, *slot, value);
        Ok(())
    }
}

/// Lists the fields that are not zero.
fn debug(fields: &impl Fields, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut shown = f.debug_struct(name);
    for info in &fields::ALL {
        match fields.get(info.encoding) {
            None | Some(0) => {}
            Some(value) => {
                shown.field(info.id, &format_args!("{value:#x}"));
            }
        }
    }
    shown.finish_non_exhaustive()
}

impl fmt::Debug for Vmcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(self, "Vmcs", f)
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Vmcs {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut vmcs = Self::new();
        for info in &fields::ALL {
            if let Some(slot) = fields::slot(info.encoding) {
                vmcs.put(slot, u.arbitrary::<u64>()? & info.encoding.width().mask());
            }
        }
        Ok(vmcs)
    }
}

/// A VMCS that remembers which fields it was given: what a dump that is not complete becomes.
///
/// Of a 64-bit field it may have been given bits 63:32 alone. These it has then, and the field it has not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    vmcs: Vmcs,
    /// Of each slot, whether the field is known as a whole.
    whole: Known,
    /// Of each slot, whether at least its high half is known.
    any: Known,
}

/// A bit for each slot.
type Known = [u64; SLOTS.div_ceil(64)];

impl Snapshot {
    /// A snapshot of no fields.
    pub const fn new() -> Self {
        Self {
            vmcs: Vmcs::new(),
            whole: [0; SLOTS.div_ceil(64)],
            any: [0; SLOTS.div_ceil(64)],
        }
    }

    /// Copies every field that `from` has, or the half of it that `from` has, and knows of no other.
    pub fn of(from: &impl Fields) -> Self {
        let mut snapshot = Self::new();
        for info in &fields::ALL {
            if let Some((encoding, value)) = known(from, info.encoding) {
                // A field of the list always has a slot.
                let _ = snapshot.set(encoding, value);
            }
        }
        snapshot
    }

    /// How many fields it has, those of which it has the high half alone among them.
    pub fn len(&self) -> usize {
        self.any.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it has no field.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a store knows of a field: the whole of it, or else its high half; and the encoding that accesses just that.
pub(crate) fn known(store: &impl Fields, field: Encoding) -> Option<(Encoding, u64)> {
    let value = |encoding: Encoding| Some((encoding, store.get(encoding)?));
    value(field).or_else(|| value(field.high_half()?))
}

/// The bit of a slot in its word.
const fn present_bit(slot: usize) -> u64 {
    1u64.wrapping_shl(slot as u32)
}

impl Fields for Snapshot {
    #[inline]
    fn get(&self, encoding: Encoding) -> Option<u64> {
        let slot = fields::slot(encoding)?;
        let present = if encoding.is_high() {
            &self.any
        } else {
            &self.whole
        };
        let present = present.get(slot / 64)?;
        if present & present_bit(slot) == 0 {
            return None;
        }
        self.vmcs.get(encoding)
    }
}

impl FieldsMut for Snapshot {
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField> {
        self.vmcs.set(encoding, value)?;
        let slot = fields::slot(encoding).ok_or(NoSuchField(encoding))?;
        if let Some(any) = self.any.get_mut(slot / 64) {
            *any |= present_bit(slot);
        }
        if !encoding.is_high()
            && let Some(whole) = self.whole.get_mut(slot / 64)
        {
            *whole |= present_bit(slot);
        }
        Ok(())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(self, "Snapshot", f)
    }
}
