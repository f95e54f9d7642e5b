// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a guest's memory map to its EPT.
//!
//! ```text
//!   guest-physical   | RAM | hole | ROM |      device       |   hole: accesses violate
//!                       |            |           |
//!   EPT               RWX WB       R-X WB      RW- UC           largest pages that alignment, processor
//!                                                               and policy allow
//! ```

use hvkit_page_table::{Frames, Invalidate, Mapper, OwnEntries, Refused, Sizes, Span, Stale};

use crate::attributes::Attributes;
use crate::format::Ept;
use crate::mtrr::Mtrrs;
use crate::spec::{Controls, MemoryType, Pat, Rights};

/// A piece of a guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Region {
    /// First guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub length: u64,
    /// What is there.
    pub kind: Kind,
}

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Kind {
    /// Memory at host-physical `host`: read, write, execute; write-back unless MTRRs say otherwise.
    Ram {
        /// First host-physical address.
        host: u64,
    },
    /// Memory that the guest cannot write: firmware. A write violates.
    Rom {
        /// First host-physical address.
        host: u64,
    },
    /// A device's registers at host-physical `host`: read and write, never code; uncacheable, whatever
    /// MTRRs and the guest's PAT say.
    Device {
        /// First host-physical address.
        host: u64,
    },
    /// Emulated: nothing is mapped and every access violates. As a hole, but no other region may be
    /// there.
    Emulated,
}

impl Region {
    /// Memory.
    #[must_use]
    pub const fn ram(guest: u64, length: u64, host: u64) -> Self {
        Self {
            guest,
            length,
            kind: Kind::Ram { host },
        }
    }

    /// Memory that the guest cannot write.
    #[must_use]
    pub const fn rom(guest: u64, length: u64, host: u64) -> Self {
        Self {
            guest,
            length,
            kind: Kind::Rom { host },
        }
    }

    /// A device passed through.
    #[must_use]
    pub const fn device(guest: u64, length: u64, host: u64) -> Self {
        Self {
            guest,
            length,
            kind: Kind::Device { host },
        }
    }

    /// A device emulated.
    #[must_use]
    pub const fn emulated(guest: u64, length: u64) -> Self {
        Self {
            guest,
            length,
            kind: Kind::Emulated,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let end = |region: &Self| region.guest.saturating_add(region.length);
        self.guest < end(other) && other.guest < end(self)
    }

    /// Where it leads and with what, but for the memory type; `None` for what is not mapped.
    fn mapping(&self, ept: &Ept) -> Option<(u64, Attributes)> {
        let user = ept.controls().contains(Controls::MODE_BASED_EXECUTE);
        let execute = Rights::EXECUTE
            | if user {
                Rights::USER_EXECUTE
            } else {
                Rights::empty()
            };
        let (host, rights, memory_type) = match self.kind {
            Kind::Ram { host } => (host, Rights::READ_WRITE | execute, MemoryType::WriteBack),
            Kind::Rom { host } => (host, Rights::READ | execute, MemoryType::WriteBack),
            Kind::Device { host } => (host, Rights::READ_WRITE, MemoryType::Uncacheable),
            Kind::Emulated => return None,
        };
        let attributes = Attributes::new(rights, memory_type);
        Some((
            host,
            match self.kind {
                Kind::Device { .. } => attributes.with_pat(Pat::Ignored),
                _ => attributes,
            },
        ))
    }
}

/// Where the memory types of RAM and ROM come from.
#[derive(Clone, Copy, Debug, Default)]
pub enum Types<'a> {
    /// Write-back throughout; the guest's PAT modifies it.
    #[default]
    WriteBack,
    /// The host's MTRRs, by host-physical address: a guest that runs on the bare machine's memory.
    Host(&'a Mtrrs<'a>),
    /// The guest's own MTRRs, by guest-physical address.
    Guest(&'a Mtrrs<'a>),
}

/// How a memory map is mapped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy<'a> {
    /// Limits on page sizes. `largest_executable: 1` where an executable page that changes size makes
    /// the processor stop with a machine check.
    pub sizes: Sizes,
    /// Memory types.
    pub types: Types<'a>,
}

/// Why a memory map could not be built. No frame is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two regions share an address.
    #[error("{first:x?} and {second:x?} overlap")]
    Overlap {
        /// The one that comes first in the map.
        first: Region,
        /// The other.
        second: Region,
    },
    /// A region that cannot be mapped: unaligned, out of reach, empty.
    #[error("{region:x?}: {error}")]
    Region {
        /// The region.
        region: Region,
        /// What the mapper said.
        error: Refused<Ept>,
    },
    /// Not even a root: no frames.
    #[error("no root table: {0}")]
    Root(Refused<Ept>),
}

/// The EPT of `map`, in frames of `frames`, with the policy's page sizes and memory types.
///
/// No flush is owed: no processor knows the table.
///
/// # Errors
///
/// [`BuildError`] names the region; every frame is back in the pool.
pub fn build<M: OwnEntries, P: Frames>(
    ept: Ept,
    memory: M,
    frames: P,
    map: &[Region],
    policy: Policy<'_>,
) -> Result<Mapper<Ept, M, P>, BuildError> {
    for (behind, first) in (1..).zip(map) {
        if let Some(&second) = map
            .iter()
            .skip(behind)
            .find(|second| first.overlaps(second))
        {
            return Err(BuildError::Overlap {
                first: *first,
                second,
            });
        }
    }
    let mut mapper = Mapper::new(ept, memory, frames)
        .map_err(BuildError::Root)?
        .with_sizes(policy.sizes);
    for &region in map {
        if let Err(error) = add(&mut mapper, region, policy.types) {
            // Nobody walked it: there is nothing to forget.
            let _ = mapper.destroy(&mut Unseen);
            return Err(BuildError::Region { region, error });
        }
    }
    Ok(mapper)
}

/// Maps one region.
fn add<M: OwnEntries, P: Frames>(
    mapper: &mut Mapper<Ept, M, P>,
    region: Region,
    types: Types<'_>,
) -> Result<(), Refused<Ept>> {
    let Some((host, attributes)) = region.mapping(mapper.format()) else {
        return Ok(());
    };
    let Region {
        guest,
        length,
        kind,
    } = region;
    let whole = Span::new(guest, length);
    let (mtrrs, first) = match (kind, types) {
        (Kind::Device { .. }, _) | (_, Types::WriteBack) => {
            return mapper.map(whole, host, attributes);
        }
        (_, Types::Host(mtrrs)) => (mtrrs, host),
        (_, Types::Guest(mtrrs)) => (mtrrs, guest),
    };
    let mut done = 0u64;
    while done < length {
        // Beyond what MTRRs reach, the mapper refuses the address or the default has no meaning.
        let run = mtrrs.run(first.saturating_add(done));
        let left = length.saturating_sub(done);
        let (piece, memory_type) = match run {
            Some(run) => {
                let here = run.end.saturating_sub(run.start);
                (left.min(here), run.effect.or_uncacheable())
            }
            None => (left, MemoryType::Uncacheable),
        };
        let span = Span::new(guest.saturating_add(done), piece);
        let attributes = attributes.with_memory_type(memory_type);
        mapper.map(span, host.saturating_add(done), attributes)?;
        done = done.saturating_add(piece);
    }
    if length == 0 {
        mapper.map(whole, host, attributes)
    } else {
        Ok(())
    }
}

/// A table that no processor has seen.
struct Unseen;

impl Invalidate for Unseen {
    type Error = core::convert::Infallible;

    fn invalidate(&mut self, _: &Stale) -> Result<(), Self::Error> {
        Ok(())
    }
}
