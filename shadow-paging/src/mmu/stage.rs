// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seam: what the engine must know of a guest's tables and of the tables hardware gets.
//!
//! ```text
//!                 guest's tables                          shadow
//!  linear      x86 formats, CR0.WP, SMEP ...  Linear   x86 with 8-byte entries
//!  nested      L1's EPT                        ...      EPT
//!  I/O         a guest's VT-d second stage     ...      VT-d second stage
//! ```

use core::fmt::Debug;

use hvkit_page_table::{Encode, MAX_LEVELS, Shape, Step, UpdateEntry};

use super::host::HostRights;

/// What a guest's entries grant along a path, in bits that the stage defines.
///
/// For tables it is part of the key by which a shadow table is found again, for a page it is all that the
/// shadow's entry depends on: rights, the dirty flag, memory type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rights(pub u16);

/// Where a guest's tables begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Top {
    /// At a guest-physical address.
    Table(u64),
    /// In registers: PAE's PDPTEs.
    Registers([u64; 4]),
    /// There are none: each address is its own translation.
    Direct,
}

/// A table on a path: where it is, and what is granted above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// Guest-physical address.
    pub frame: u64,
    /// Granted by all entries above it.
    pub above: Rights,
}

/// The way to a page, allowed and marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The table at level `i + 1`, from the leaf's level up; those in memory.
    pub tables: [Table; MAX_LEVELS],
    /// Guest-physical address of the byte asked for.
    pub target: u64,
    /// Level of the leaf.
    pub level: u8,
    /// log2 of the bytes of the page.
    pub shift: u32,
    /// What the path grants.
    pub rights: Rights,
}

impl Path {
    /// From the entries that a walk read, of which `of` tells what they grant (folded with those above);
    /// `all` is granted above the root.
    pub fn of_steps<A: Copy>(
        steps: &[Step<A>],
        all: Rights,
        of: impl Fn(A) -> Rights,
    ) -> [Table; MAX_LEVELS] {
        let mut tables = [Table::default(); MAX_LEVELS];
        let mut above = all;
        for step in steps {
            if let Some(slot) = tables.get_mut(usize::from(step.level).wrapping_sub(1)) {
                let frame = step.at.unwrap_or(0) & !0xfff;
                *slot = Table { frame, above };
            }
            above = step.attributes.map_or(above, &of);
        }
        tables
    }
}

/// Why an access has no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped<R, E> {
    /// The guest's own tables refuse it.
    Refused(R),
    /// An entry could not be read or updated.
    Memory {
        /// Level of its table.
        level: u8,
        /// Guest-physical address.
        at: u64,
        /// The memory's reason.
        error: E,
    },
    /// Someone else kept changing the entries.
    Contended,
}

/// What one entry of a guest's table says to hardware that may use it without asking anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// No translation, or one that must be marked first.
    Nothing,
    /// A table.
    Table(Table),
    /// A page.
    Page {
        /// Guest-physical address of its first byte.
        target: u64,
        /// What is granted, with all above.
        rights: Rights,
    },
}

/// A guest's tables, and the tables that stand in for them.
///
/// A plain value without a root: equal values mean that the same guest table means the same, so that its
/// shadow can be used again. Shadow tables have at most 512 entries of 8 bytes and as many levels as
/// the guest's, or one more at the top.
///
/// The methods are more than a handful because there are two formats to speak of, and every one is a
/// single question about one entry.
pub trait Stage: Copy + PartialEq {
    /// The format of the shadow tables.
    type Shadow: Encode + Copy;
    /// One access: what it does, and with whose rights.
    type Access: Copy + Debug;
    /// What a guest is told when its own tables refuse.
    type Refusal: Debug;

    /// The format of the shadow tables.
    fn shadow(&self) -> &Self::Shadow;

    /// The shape of the guest's tables; `None` if it has none.
    fn guest(&self) -> Option<&Shape>;

    /// What is granted above the root, and everywhere where there are no tables.
    fn all(&self) -> Rights;

    /// Width of the addresses that a root may have, in bits: CR3 of PAE paging holds 32.
    fn root_bits(&self) -> u32 {
        self.shadow().frame_bits()
    }

    /// Walks the guest's tables for `access` to `address`, decides, and sets what flags the guest's
    /// hardware would.
    ///
    /// # Errors
    ///
    /// What the guest is to be told, or why that is not known.
    fn resolve<M: UpdateEntry>(
        &self,
        top: &Top,
        memory: &M,
        address: u64,
        access: Self::Access,
    ) -> Result<Path, Stopped<Self::Refusal, M::Error>>;

    /// What `entry` of a guest's table at `level` means, under entries that grant `above`.
    fn meaning(&self, entry: u64, level: u8, above: Rights) -> Meaning;

    /// The attributes of a shadow leaf for a page with `rights`, as wide as both sides allow. With
    /// `access`, which the guest's tables allow, they admit that access.
    ///
    /// `None` if no entry could say it without granting what the guest forbids.
    fn grant(
        &self,
        rights: Rights,
        host: HostRights,
        access: Option<Self::Access>,
    ) -> Option<<Self::Shadow as hvkit_page_table::Format>::Attributes>;

    /// Whether a shadow leaf may have `attributes` where the guest grants `rights` and the host `host`.
    fn admits(
        &self,
        attributes: <Self::Shadow as hvkit_page_table::Format>::Attributes,
        rights: Rights,
        host: HostRights,
    ) -> bool;

    /// Whether what was right under rights `then` is right under `now`: equal, or `now` has a page
    /// marked dirty that was not.
    fn includes(&self, now: Rights, then: Rights) -> bool;

    /// `attributes` without the right to write, `None` if they cannot do without. Equal ones if there
    /// is no such right in them.
    fn protect(
        &self,
        attributes: <Self::Shadow as hvkit_page_table::Format>::Attributes,
    ) -> Option<<Self::Shadow as hvkit_page_table::Format>::Attributes>;

    /// Whether the access changes memory.
    fn writes(&self, access: Self::Access) -> bool;
}
