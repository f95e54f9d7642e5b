// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists of MSRs that entries load, and exits store and load. SDM Vol. 3C, "VM-Exit Controls for MSRs", "VM-Entry
//! Controls for MSRs".

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hvkit_vmcs::field::{ReadWrite, W32, W64};
use hvkit_vmcs::store::{FieldsMut, NoSuchField};
use hvkit_vmcs::{Field, fields as f};

/// One entry. Tables "Format of an MSR Entry": index, reserved, value.
#[repr(C)]
struct Entry {
    index: AtomicU32,
    reserved: AtomicU32,
    value: AtomicU64,
}

/// A list of at most `N` MSRs with their values.
///
/// ```
/// use hvkit_vmx::MsrArea;
///
/// static LOADED: MsrArea<4> = MsrArea::new();
/// LOADED.push(0xc000_0103, 7)?; // IA32_TSC_AUX
/// assert_eq!((LOADED.len(), LOADED.value(0xc000_0103)), (1, Some(7)));
/// # Ok::<(), hvkit_vmx::AreaFull>(())
/// ```
#[repr(C, align(16))]
pub struct MsrArea<const N: usize> {
    entries: [Entry; N],
    used: AtomicU32,
}

/// The list has no room for another MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for MSR {index:#x}: the list holds {capacity}")]
pub struct AreaFull {
    /// The MSR that was to be added.
    pub index: u32,
    /// How many the list holds.
    pub capacity: usize,
}

/// What a list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrList {
    /// VM entries load the guest's values.
    EntryLoad,
    /// VM exits store the guest's values.
    ExitStore,
    /// VM exits load the host's values.
    ExitLoad,
}

impl MsrList {
    const fn fields(self) -> (Field<W64, ReadWrite>, Field<W32, ReadWrite>) {
        match self {
            Self::EntryLoad => (f::ENTRY_MSR_LOAD_ADDRESS, f::ENTRY_MSR_LOAD_COUNT),
            Self::ExitStore => (f::EXIT_MSR_STORE_ADDRESS, f::EXIT_MSR_STORE_COUNT),
            Self::ExitLoad => (f::EXIT_MSR_LOAD_ADDRESS, f::EXIT_MSR_LOAD_COUNT),
        }
    }

    /// Names in `vmcs` a list of `count` entries at `physical`.
    ///
    /// # Errors
    ///
    /// [`NoSuchField`]; every VMCS has these fields.
    pub fn name(
        self,
        vmcs: &mut impl FieldsMut,
        physical: u64,
        count: u32,
    ) -> Result<(), NoSuchField> {
        let (address, length) = self.fields();
        vmcs.write(address, physical)?;
        vmcs.write(length, count)
    }
}

impl<const N: usize> MsrArea<N> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            entries: [const {
                Entry {
                    index: AtomicU32::new(0),
                    reserved: AtomicU32::new(0),
                    value: AtomicU64::new(0),
                }
            }; N],
            used: AtomicU32::new(0),
        }
    }

    /// How many MSRs are in the list: the count for the VMCS.
    pub fn len(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the list has no MSR.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn used(&self) -> &[Entry] {
        self.entries
            .get(..self.len() as usize)
            .unwrap_or(&self.entries)
    }

    fn find(&self, index: u32) -> Option<&Entry> {
        self.used()
            .iter()
            .find(|entry| entry.index.load(Ordering::Relaxed) == index)
    }

    /// The value of an MSR: what was given, or what the last exit stored.
    pub fn value(&self, index: u32) -> Option<u64> {
        self.find(index)
            .map(|entry| entry.value.load(Ordering::Relaxed))
    }

    /// Adds an MSR, or changes its value if it is in the list. The VMCS must be told of a new length.
    ///
    /// Not for two threads at once.
    ///
    /// # Errors
    ///
    /// [`AreaFull`].
    pub fn push(&self, index: u32, value: u64) -> Result<(), AreaFull> {
        if let Some(entry) = self.find(index) {
            entry.value.store(value, Ordering::Relaxed);
            return Ok(());
        }
        let used = self.len();
        let capacity = N;
        let entry = self
            .entries
            .get(used as usize)
            .ok_or(AreaFull { index, capacity })?;
        entry.index.store(index, Ordering::Relaxed);
        entry.value.store(value, Ordering::Relaxed);
        // Entries before the count that covers them.
        self.used.store(used.saturating_add(1), Ordering::Release);
        Ok(())
    }
}

impl<const N: usize> Default for MsrArea<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for MsrArea<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.used().iter().map(|entry| {
            let index = entry.index.load(Ordering::Relaxed);
            (
                index,
                entry.value.load(Ordering::Relaxed),
                entry.reserved.load(Ordering::Relaxed),
            )
        });
        f.debug_list().entries(entries).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use hvkit_vmcs::{Encoding, Vmcs, store::Fields};

    #[test]
    fn an_entry_is_sixteen_bytes_as_the_table_has_it() {
        assert_eq!(size_of::<Entry>(), 16);
        assert_eq!((offset_of!(Entry, index), offset_of!(Entry, value)), (0, 8));
        assert_eq!(offset_of!(Entry, reserved), 4);
        assert_eq!(offset_of!(MsrArea<3>, entries), 0);
        assert_eq!(align_of::<MsrArea<3>>(), 16);
    }

    #[test]
    fn an_msr_is_in_the_list_once() {
        let area = MsrArea::<2>::new();
        assert!(area.is_empty() && area.value(0x10).is_none());
        area.push(0x10, 1).unwrap();
        area.push(0x11, 2).unwrap();
        area.push(0x10, 3).unwrap();
        assert_eq!(
            (area.len(), area.value(0x10), area.value(0x11)),
            (2, Some(3), Some(2))
        );
        let full = AreaFull {
            index: 0x12,
            capacity: 2,
        };
        assert_eq!(area.push(0x12, 0), Err(full));
        assert_eq!(area.len(), 2);
        assert_eq!(format!("{area:?}"), "[(16, 3, 0), (17, 2, 0)]");
    }

    #[test]
    fn each_list_has_its_fields() {
        for (list, address, count) in [
            (MsrList::ExitStore, 0x2006, 0x400e),
            (MsrList::ExitLoad, 0x2008, 0x4010),
            (MsrList::EntryLoad, 0x200a, 0x4014),
        ] {
            let mut vmcs = Vmcs::new();
            list.name(&mut vmcs, 0x5000, 7).unwrap();
            assert_eq!(vmcs.get(Encoding(address)), Some(0x5000));
            assert_eq!(vmcs.get(Encoding(count)), Some(7));
        }
    }
}
