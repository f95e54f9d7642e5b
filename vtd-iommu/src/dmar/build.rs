// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writing a table.

use alloc::vec;
use alloc::vec::Vec;

use super::scope::{NewScope, SCOPE_HEADER};
use super::structure::{Atsr, Drhd, DrhdFlags, Rhsa, Rmrr, Satc, Sidp, StructureKind, TableFlags};
use super::{Andd, HEADER};

/// Who made the table: fields of ACPI's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Oem {
    /// OEMID.
    pub id: [u8; 6],
    /// OEM table id.
    pub table_id: [u8; 8],
    /// OEM revision.
    pub revision: u32,
    /// Vendor of the program that made it.
    pub creator: [u8; 4],
    /// Revision of that program.
    pub creator_revision: u32,
}

impl Default for Oem {
    fn default() -> Self {
        Self {
            id: *b"HVKIT ",
            table_id: *b"HVKITVTD",
            revision: 1,
            creator: *b"HVKT",
            creator_revision: 1,
        }
    }
}

/// Why a table cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A host address width of 0, or of more than 256 bits.
    #[error("{0} bits are no host address width")]
    HostAddressBits(u32),
    /// A path without a step, or with more than a scope has room for.
    #[error("a path of {steps} steps")]
    Path {
        /// How many.
        steps: usize,
    },
    /// A structure of more than 65,535 bytes.
    #[error("a structure of type {kind} with {bytes} bytes")]
    TooLong {
        /// Its type.
        kind: u16,
        /// Its bytes.
        bytes: usize,
    },
    /// A name with a zero in it.
    #[error("a name with a zero at {at}")]
    Name {
        /// Where.
        at: usize,
    },
    /// Bytes of a structure that are shorter than a header, or whose length field says otherwise.
    #[error("a structure of {bytes} bytes whose length is said to be {length}")]
    Raw {
        /// Bytes given.
        bytes: usize,
        /// What they say.
        length: u16,
    },
    /// A table of more than 4 GiB.
    #[error("a table of {bytes} bytes")]
    Table {
        /// Its bytes.
        bytes: usize,
    },
}

/// A table in the making. Structures may be given in any order; they are written in the order of their types,
/// as the specification wants them, and units with INCLUDE_PCI_ALL after those without.
#[derive(Clone, Debug)]
pub struct Builder {
    host_address_bits: u32,
    flags: TableFlags,
    structures: Vec<(StructureKind, DrhdFlags, Vec<u8>)>,
    error: Option<BuildError>,
}

impl Builder {
    /// An empty table for a host with addresses of so many bits.
    #[must_use]
    pub const fn new(host_address_bits: u32, flags: TableFlags) -> Self {
        Self {
            host_address_bits,
            flags,
            structures: Vec::new(),
            error: None,
        }
    }

    /// Adds a unit.
    #[must_use]
    pub fn drhd(mut self, drhd: Drhd, scopes: &[NewScope<'_>]) -> Self {
        let mut body = vec![drhd.flags.bits(), drhd.size];
        body.extend(drhd.segment.to_le_bytes());
        body.extend(drhd.base.to_le_bytes());
        let last = drhd.flags & DrhdFlags::INCLUDE_PCI_ALL;
        self.add(StructureKind::DRHD, last, body, scopes);
        self
    }

    /// Adds reserved memory.
    #[must_use]
    pub fn rmrr(mut self, rmrr: Rmrr, scopes: &[NewScope<'_>]) -> Self {
        let mut body = vec![0, 0];
        body.extend(rmrr.segment.to_le_bytes());
        body.extend(rmrr.base.to_le_bytes());
        body.extend(rmrr.limit.to_le_bytes());
        self.add(StructureKind::RMRR, DrhdFlags::empty(), body, scopes);
        self
    }

    /// Adds root ports with ATS.
    #[must_use]
    pub fn atsr(mut self, atsr: Atsr, scopes: &[NewScope<'_>]) -> Self {
        let mut body = vec![atsr.flags.bits(), 0];
        body.extend(atsr.segment.to_le_bytes());
        self.add(StructureKind::ATSR, DrhdFlags::empty(), body, scopes);
        self
    }

    /// Adds a unit's affinity.
    #[must_use]
    pub fn rhsa(mut self, rhsa: Rhsa) -> Self {
        let mut body = vec![0; 4];
        body.extend(rhsa.base.to_le_bytes());
        body.extend(rhsa.proximity_domain.to_le_bytes());
        self.add(StructureKind::RHSA, DrhdFlags::empty(), body, &[]);
        self
    }

    /// Adds a named device.
    #[must_use]
    pub fn andd(mut self, andd: Andd<'_>) -> Self {
        if let Some(at) = andd.name.iter().position(|&byte| byte == 0) {
            self.fail(BuildError::Name { at });
            return self;
        }
        let mut body = vec![0, 0, 0, andd.device];
        body.extend(andd.name);
        body.push(0);
        self.add(StructureKind::ANDD, DrhdFlags::empty(), body, &[]);
        self
    }

    /// Adds devices with address translation caches.
    #[must_use]
    pub fn satc(mut self, satc: Satc, scopes: &[NewScope<'_>]) -> Self {
        let mut body = vec![satc.flags.bits(), 0];
        body.extend(satc.segment.to_le_bytes());
        self.add(StructureKind::SATC, DrhdFlags::empty(), body, scopes);
        self
    }

    /// Adds device properties.
    #[must_use]
    pub fn sidp(mut self, sidp: Sidp, scopes: &[NewScope<'_>]) -> Self {
        let mut body = vec![0, 0];
        body.extend(sidp.segment.to_le_bytes());
        self.add(StructureKind::SIDP, DrhdFlags::empty(), body, scopes);
        self
    }

    /// Adds a structure as it is, from its type on: an unknown one that was read.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        let word = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let (kind, length) = (word(0), word(2).unwrap_or(0));
        match kind {
            Some(kind) if bytes.len() >= 4 && usize::from(length) == bytes.len() => {
                let first = DrhdFlags::empty();
                self.structures
                    .push((StructureKind(kind), first, bytes.to_vec()));
            }
            _ => self.fail(BuildError::Raw {
                bytes: bytes.len(),
                length,
            }),
        }
        self
    }

    fn fail(&mut self, error: BuildError) {
        self.error.get_or_insert(error);
    }

    fn add(
        &mut self,
        kind: StructureKind,
        last: DrhdFlags,
        body: Vec<u8>,
        scopes: &[NewScope<'_>],
    ) {
        let mut rest = body;
        for scope in scopes {
            let steps = scope.path.len();
            let length = steps.saturating_mul(2).saturating_add(SCOPE_HEADER);
            let length = u8::try_from(length);
            let (Ok(length), true) = (length, steps > 0) else {
                self.fail(BuildError::Path { steps });
                return;
            };
            rest.extend([
                scope.kind.0,
                length,
                scope.flags,
                0,
                scope.enumeration_id,
                scope.start_bus,
            ]);
            rest.extend(scope.path_bytes());
        }
        // With the type and the length before it.
        let bytes = rest.len().saturating_add(4);
        let Ok(length) = u16::try_from(bytes) else {
            let kind = kind.0;
            self.fail(BuildError::TooLong { kind, bytes });
            return;
        };
        let mut bytes = Vec::with_capacity(bytes);
        bytes.extend(kind.0.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(rest);
        self.structures.push((kind, last, bytes));
    }

    /// The table, with its checksum.
    ///
    /// # Errors
    ///
    /// The first thing that was given and cannot be.
    pub fn build(mut self, oem: Oem) -> Result<Vec<u8>, BuildError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let bits = self.host_address_bits;
        let width = bits.checked_sub(1).and_then(|less| u8::try_from(less).ok());
        let width = width.ok_or(BuildError::HostAddressBits(bits))?;
        self.structures
            .sort_by_key(|(kind, last, _)| (*kind, last.bits()));
        let structures = self.structures.iter().map(|(_, _, bytes)| bytes);
        let sizes = structures.clone().map(Vec::len);
        let bytes = sizes.fold(HEADER, usize::saturating_add);
        let length = u32::try_from(bytes).map_err(|_| BuildError::Table { bytes })?;
        // The checksum stands between the two.
        let mut table = Vec::with_capacity(bytes);
        table.extend(b"DMAR");
        table.extend(length.to_le_bytes());
        table.push(1);
        let mut rest = Vec::with_capacity(bytes);
        rest.extend(oem.id);
        rest.extend(oem.table_id);
        rest.extend(oem.revision.to_le_bytes());
        rest.extend(oem.creator);
        rest.extend(oem.creator_revision.to_le_bytes());
        rest.extend([width, self.flags.bits()]);
        rest.extend([0; 10]);
        rest.extend(structures.flatten());
        let all = table.iter().chain(&rest);
        let sum = all.fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        table.push(sum.wrapping_neg());
        table.extend(rest);
        Ok(table)
    }
}
