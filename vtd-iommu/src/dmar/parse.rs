// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a table.

use super::structure::{
    Andd, Atsr, AtsrFlags, Drhd, DrhdFlags, Rhsa, Rmrr, Satc, SatcFlags, Sidp, Structure,
    StructureKind, TableFlags,
};
use super::{HEADER, Scopes};

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmarError {
    /// Too few bytes for a table, or for what its length says.
    #[error("{bytes} bytes are no table of length {length}")]
    Truncated {
        /// Bytes there are.
        bytes: usize,
        /// What the table's header says; 48 if there is no header.
        length: u32,
    },
    /// It is another table.
    #[error("the signature is {0:02x?}, not DMAR")]
    Signature([u8; 4]),
    /// The bytes do not sum to 0.
    #[error("the bytes sum to {sum:#x}, not to 0")]
    Checksum {
        /// Their sum.
        sum: u8,
    },
    /// A structure that is shorter than its type has it, or ends behind the table.
    #[error("the structure at {offset:#x} (type {kind}, length {length}) is malformed")]
    Structure {
        /// Where it begins.
        offset: usize,
        /// Its type.
        kind: u16,
        /// Its length field.
        length: u16,
    },
    /// A device scope that is too short, ends behind its structure, or has half a step in its path.
    #[error("the device scope at {offset:#x} is malformed")]
    Scope {
        /// Where it begins.
        offset: usize,
    },
}

/// A DMAR table, looked at.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'a> {
    bytes: &'a [u8],
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    at(bytes, offset).map(u64::from_le_bytes)
}

impl<'a> Dmar<'a> {
    /// Looks at a table; bytes behind its end are left out.
    ///
    /// # Errors
    ///
    /// It is no DMAR table, or damaged. Structures are looked at later.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        let truncated = |length| DmarError::Truncated {
            bytes: bytes.len(),
            length,
        };
        let least = truncated(48);
        let signature: [u8; 4] = at(bytes, 0).ok_or(least)?;
        if signature != *b"DMAR" {
            return Err(DmarError::Signature(signature));
        }
        let length = u32_at(bytes, 4).ok_or(least)?;
        let table = usize::try_from(length)
            .ok()
            .and_then(|end| bytes.get(..end));
        let table = table.filter(|table| table.len() >= HEADER);
        let bytes = table.ok_or(truncated(length))?;
        let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        if sum != 0 {
            return Err(DmarError::Checksum { sum });
        }
        Ok(Self { bytes })
    }

    /// The table's bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn byte(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0)
    }

    /// The table's revision.
    #[must_use]
    pub fn revision(&self) -> u8 {
        self.byte(8)
    }

    /// The width of physical addresses for DMA, in bits.
    #[must_use]
    pub fn host_address_bits(&self) -> u32 {
        u32::from(self.byte(36)).saturating_add(1)
    }

    /// Flags.
    #[must_use]
    pub fn flags(&self) -> TableFlags {
        TableFlags::from_bits_retain(self.byte(37))
    }

    /// Each structure, until the first that is malformed.
    #[must_use]
    pub fn structures(&self) -> Structures<'a> {
        Structures {
            bytes: self.bytes.get(HEADER..).unwrap_or(&[]),
            offset: HEADER,
        }
    }
}

/// The structures of a table. An error is the last item.
#[derive(Clone, Copy, Debug)]
pub struct Structures<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Structures<'a> {
    type Item = Result<Structure<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let offset = self.offset;
        let kind = u16_at(self.bytes, 0).unwrap_or(0);
        let length = u16_at(self.bytes, 2).unwrap_or(0);
        let found = self
            .bytes
            .split_at_checked(usize::from(length))
            .and_then(|(bytes, rest)| Some((structure(kind, bytes, offset)?, rest)));
        match found {
            Some((structure, rest)) => {
                self.bytes = rest;
                self.offset = offset.saturating_add(usize::from(length));
                Some(Ok(structure))
            }
            None => {
                self.bytes = &[];
                Some(Err(DmarError::Structure {
                    offset,
                    kind,
                    length,
                }))
            }
        }
    }
}

/// One structure, which `bytes` is all of. `None` if it is too short.
fn structure(kind: u16, bytes: &[u8], offset: usize) -> Option<Structure<'_>> {
    let scopes = |from: usize| {
        let rest = bytes.get(from..)?;
        Some(Scopes::new(rest, offset.saturating_add(from)))
    };
    Some(match StructureKind(kind) {
        StructureKind::DRHD => {
            let drhd = Drhd {
                flags: DrhdFlags::from_bits_retain(*bytes.get(4)?),
                size: *bytes.get(5)?,
                segment: u16_at(bytes, 6)?,
                base: u64_at(bytes, 8)?,
            };
            Structure::Drhd(drhd, scopes(16)?)
        }
        StructureKind::RMRR => {
            let rmrr = Rmrr {
                segment: u16_at(bytes, 6)?,
                base: u64_at(bytes, 8)?,
                limit: u64_at(bytes, 16)?,
            };
            Structure::Rmrr(rmrr, scopes(24)?)
        }
        StructureKind::ATSR => {
            let atsr = Atsr {
                flags: AtsrFlags::from_bits_retain(*bytes.get(4)?),
                segment: u16_at(bytes, 6)?,
            };
            Structure::Atsr(atsr, scopes(8)?)
        }
        StructureKind::RHSA => Structure::Rhsa(Rhsa {
            base: u64_at(bytes, 8)?,
            proximity_domain: u32_at(bytes, 16)?,
        }),
        StructureKind::ANDD => {
            let device = *bytes.get(7)?;
            let name = bytes.get(8..)?;
            // Ended by a zero, or by the structure.
            let name = name.split(|&byte| byte == 0).next().unwrap_or(name);
            Structure::Andd(Andd { device, name })
        }
        StructureKind::SATC => {
            let satc = Satc {
                flags: SatcFlags::from_bits_retain(*bytes.get(4)?),
                segment: u16_at(bytes, 6)?,
            };
            Structure::Satc(satc, scopes(8)?)
        }
        StructureKind::SIDP => {
            let segment = u16_at(bytes, 6)?;
            Structure::Sidp(Sidp { segment }, scopes(8)?)
        }
        // Not even a header would be no step forward.
        _ if bytes.len() < 4 => return None,
        kind => Structure::Unknown { kind, bytes },
    })
}
