// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a mapping allows: the bits of an entry without the address, in the places where entries have them.

use crate::spec::{EptEntry, MemoryType, Pat, Rights};

/// What a page (or, rights only, a table) allows and how it is accessed.
///
/// The bits of an entry that maps a page, without address, size, accessed and dirty, and without those
/// that mean nothing under the [`Controls`](crate::spec::Controls) in force.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attributes(pub(crate) u64);

impl Attributes {
    /// Bit 11: software's, set in pages that are write-protected to log writes.
    pub(crate) const TRACKED: u64 = 1 << 11;
    const SOFTWARE_SHIFT: u32 = 52;
    /// Bits 56:52: the user's.
    pub(crate) const SOFTWARE: u64 = 0x1f << Self::SOFTWARE_SHIFT;
    /// Never in memory: an entry above did not allow writes. Bit 62 means nothing in any entry.
    pub(crate) const UPPER_READ_ONLY: u64 = 1 << 62;
    pub(crate) const RIGHTS: u64 = Rights::all().bits();

    /// A page with `rights` and a memory type that the guest's PAT modifies.
    #[inline]
    #[must_use]
    pub const fn new(rights: Rights, memory_type: MemoryType) -> Self {
        let memory_type = (memory_type.bits() as u64) << EptEntry::MEMORY_TYPE_SHIFT;
        Self(rights.bits() | memory_type)
    }

    /// Ordinary memory: readable, writable, executable, write-back.
    pub const RAM: Self = Self::new(Rights::READ_WRITE_EXECUTE, MemoryType::WriteBack);

    /// The rights. Of a translation: those that every entry of its path grants.
    #[inline]
    #[must_use]
    pub const fn rights(self) -> Rights {
        Rights::from_bits_truncate(self.0)
    }

    /// The rights, and the right to write a page that has lost it to be [logged](Self::write_tracked): it comes back with
    /// the first write.
    #[inline]
    #[must_use]
    pub const fn full_rights(self) -> Rights {
        self.release_writes().rights()
    }

    /// The same with other rights.
    ///
    /// A page that is write-protected to [log writes](Self::write_tracked) has them when it was written: until then it
    /// is not writable. Without [`Rights::WRITE`] it is not logged any more, and no write makes it writable. To take
    /// a right from a page whatever else it has, begin with its [`full_rights`](Self::full_rights).
    #[inline]
    #[must_use]
    pub const fn with_rights(self, rights: Rights) -> Self {
        let with = Self(self.0 & !(Self::RIGHTS | Self::TRACKED) | rights.bits());
        if self.write_tracked() {
            with.track_writes()
        } else {
            with
        }
    }

    /// The memory type. A table's, which has none, reads as uncacheable.
    #[inline]
    #[must_use]
    pub const fn memory_type(self) -> MemoryType {
        match EptEntry(self.0).memory_type() {
            Some(memory_type) => memory_type,
            None => MemoryType::Uncacheable,
        }
    }

    /// The same with another memory type.
    #[inline]
    #[must_use]
    pub const fn with_memory_type(self, memory_type: MemoryType) -> Self {
        let bits = (memory_type.bits() as u64) << EptEntry::MEMORY_TYPE_SHIFT;
        Self(self.0 & !EptEntry::MEMORY_TYPE | bits)
    }

    /// Whether the guest's PAT has a say.
    #[inline]
    #[must_use]
    pub const fn pat(self) -> Pat {
        EptEntry(self.0).pat()
    }

    /// The same, where the PAT has a say or has none.
    #[inline]
    #[must_use]
    pub const fn with_pat(self, pat: Pat) -> Self {
        match pat {
            Pat::Combined => Self(self.0 & !EptEntry::IGNORE_PAT),
            Pat::Ignored => Self(self.0 | EptEntry::IGNORE_PAT),
        }
    }

    /// The bits of `mask` among [`EptEntry::SUPPRESS_VE`], [`SUB_PAGE_WRITE`](EptEntry::SUB_PAGE_WRITE),
    /// [`SUPERVISOR_SHADOW_STACK`](EptEntry::SUPERVISOR_SHADOW_STACK),
    /// [`PAGING_WRITE`](EptEntry::PAGING_WRITE) and
    /// [`VERIFY_GUEST_PAGING`](EptEntry::VERIFY_GUEST_PAGING) that are set.
    #[inline]
    #[must_use]
    pub const fn options(self, mask: u64) -> u64 {
        self.0 & mask & Self::OPTIONS
    }

    /// The same with the bits of `mask` set, of those that [`options`](Self::options) reads.
    ///
    /// A page that is write-protected to [log writes](Self::write_tracked) cannot have those that let some writes through
    /// nevertheless: [`Rule::NotTrackable`](crate::Rule::NotTrackable).
    #[inline]
    #[must_use]
    pub const fn with_options(self, mask: u64) -> Self {
        Self(self.0 | mask & Self::OPTIONS)
    }

    /// The same with the bits of `mask` clear, of those that [`options`](Self::options) reads.
    #[inline]
    #[must_use]
    pub const fn without_options(self, mask: u64) -> Self {
        Self(self.0 & !(mask & Self::OPTIONS))
    }

    /// The options that let some writes through without the right to write: SDM 3C, "EPT Violations", "Sub-Page Write
    /// Permissions".
    pub(crate) const WRITES_OTHERWISE: u64 =
        EptEntry::SUB_PAGE_WRITE | EptEntry::SUPERVISOR_SHADOW_STACK | EptEntry::PAGING_WRITE;

    const OPTIONS: u64 = EptEntry::SUPPRESS_VE
        | EptEntry::SUB_PAGE_WRITE
        | EptEntry::SUPERVISOR_SHADOW_STACK
        | EptEntry::PAGING_WRITE
        | EptEntry::VERIFY_GUEST_PAGING;

    /// Five bits that hardware ignores (56:52 of the entry) and this crate keeps for its user.
    #[inline]
    #[must_use]
    pub const fn software(self) -> u8 {
        ((self.0 & Self::SOFTWARE) >> Self::SOFTWARE_SHIFT) as u8
    }

    /// The same with the low five bits of `bits` as [`software`](Self::software).
    #[inline]
    #[must_use]
    pub const fn with_software(self, bits: u8) -> Self {
        let bits = (bits as u64 & 0x1f) << Self::SOFTWARE_SHIFT;
        Self(self.0 & !Self::SOFTWARE | bits)
    }

    /// Whether the page is write-protected to log writes; see [`dirty`](crate::dirty).
    #[inline]
    #[must_use]
    pub const fn write_tracked(self) -> bool {
        self.0 & Self::TRACKED != 0
    }

    /// Takes the right to write away and remembers it; what cannot be written stays as it is.
    ///
    /// What can be written in [another way](Self::WRITES_OTHERWISE) becomes what no entry can be.
    #[inline]
    #[must_use]
    pub(crate) const fn track_writes(self) -> Self {
        let write = Rights::WRITE.bits();
        if self.0 & (write | Self::WRITES_OTHERWISE) == 0 {
            self
        } else {
            Self(self.0 & !write | Self::TRACKED)
        }
    }

    /// Whether it is write-protected to log writes, and some writes would go through nevertheless.
    #[inline]
    pub(crate) const fn tracked_in_vain(self) -> bool {
        self.0 & Self::TRACKED != 0 && self.0 & Self::WRITES_OTHERWISE != 0
    }

    /// Gives back what [`track_writes`](Self::track_writes) took.
    #[inline]
    #[must_use]
    pub(crate) const fn release_writes(self) -> Self {
        if self.0 & Self::TRACKED == 0 {
            self
        } else {
            Self(self.0 & !Self::TRACKED | Rights::WRITE.bits())
        }
    }

    /// Whether every entry above the one that maps the page allows writes.
    #[inline]
    pub(crate) const fn writable_above(self) -> bool {
        self.0 & Self::UPPER_READ_ONLY == 0
    }
}

impl core::fmt::Debug for Attributes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "Attributes({:?} {:?} {:?}",
            self.rights(),
            self.memory_type(),
            self.pat()
        )?;
        match self.0 & !(Self::RIGHTS | EptEntry::MEMORY_TYPE | EptEntry::IGNORE_PAT) {
            0 => write!(f, ")"),
            rest => write!(f, " {rest:#x})"),
        }
    }
}
