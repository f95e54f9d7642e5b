// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the other process reaches of the guest's memory, and its requests for it.
//!
//! A request is looked up in the list of what was mapped, under the lock that an unmapping takes too: when that is over,
//! no request reaches the page.

use crate::machine::memory::GuestRam;
use hvkit_vtd_iommu::emulation::Mapping;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// A request that is not fulfilled: its first address that is not mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Astray {
    /// The address.
    pub address: u64,
    /// What was to be done there.
    pub access: Access,
}

/// Is told of requests that go astray.
pub type TellAstray = Box<dyn Fn(Astray) + Send + Sync>;

/// Memory that one server reaches.
pub(super) struct Dma {
    ram: GuestRam,
    /// By the first address of each.
    pieces: Mutex<BTreeMap<u64, Mapping>>,
    tell: OnceLock<TellAstray>,
}

impl fmt::Debug for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dma").finish_non_exhaustive()
    }
}

impl Dma {
    /// Nothing of `ram` yet.
    pub(super) fn new(ram: &GuestRam) -> Self {
        Dma {
            ram: ram.clone(),
            pieces: Mutex::default(),
            tell: OnceLock::new(),
        }
    }

    /// Who is told of requests that go astray, from now on; the first one stays.
    pub(super) fn tell_astray(&self, tell: TellAstray) {
        let _ = self.tell.set(tell);
    }

    fn pieces(&self) -> MutexGuard<'_, BTreeMap<u64, Mapping>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, piece: Mapping) {
        self.pieces().insert(piece.first, piece);
    }

    pub(super) fn remove(&self, piece: Mapping) {
        self.pieces().remove(&piece.first);
    }

    /// All of the guest's memory, as it is.
    pub(super) fn everything(&self) -> Vec<Mapping> {
        let regions = self.ram.iter().map(|region| {
            let first = region.start_addr().0;
            Mapping {
                first,
                last: region.last_addr().0,
                target: first,
                ..Mapping::IDENTITY
            }
        });
        regions.collect()
    }

    /// The file that `piece` is in, if it has one, and where.
    pub(super) fn file(&self, piece: Mapping) -> Option<(&File, u64)> {
        let region = self.ram.find_region(GuestAddress(piece.target))?;
        let inside = piece.target.checked_sub(region.start_addr().0)?;
        let file = region.file_offset()?;
        Some((file.file(), file.start().checked_add(inside)?))
    }

    /// Fills `data` with what is at `address`, or nothing of it.
    pub(super) fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Astray> {
        let pieces = self.pieces();
        let mut rest = data;
        self.walk(
            &pieces,
            address,
            rest.len(),
            Access::Read,
            |target, length| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut_checked(length)?;
                rest = later;
                self.ram.read_slice(now, GuestAddress(target)).ok()
            },
        )
    }

    /// Puts `data` where `address` is. What is before the first byte that is not mapped may have been written.
    pub(super) fn write(&self, address: u64, data: &[u8]) -> Result<(), Astray> {
        let pieces = self.pieces();
        let mut rest = data;
        self.walk(
            &pieces,
            address,
            rest.len(),
            Access::Write,
            |target, length| {
                let (now, later) = rest.split_at_checked(length)?;
                rest = later;
                self.ram.write_slice(now, GuestAddress(target)).ok()
            },
        )
    }

    /// Does `with` the places and lengths of `length` bytes at `address`, one after the other.
    fn walk(
        &self,
        pieces: &BTreeMap<u64, Mapping>,
        address: u64,
        length: usize,
        access: Access,
        mut with: impl FnMut(u64, usize) -> Option<()>,
    ) -> Result<(), Astray> {
        let (mut address, mut left) = (address, length as u64);
        while left != 0 {
            let astray = Astray { address, access };
            let below = (Bound::Unbounded, Bound::Included(address));
            let (_, piece) = pieces.range(below).next_back().ok_or(astray)?;
            let allowed = match access {
                Access::Read => piece.reads,
                Access::Write => piece.writes,
            };
            if !allowed {
                return Err(astray);
            }
            let behind = piece.last.checked_sub(address).ok_or(astray)?;
            let now = behind.saturating_add(1).min(left);
            let into = address.wrapping_sub(piece.first);
            let target = piece.target.wrapping_add(into);
            // At most `length`.
            with(target, now as usize).ok_or(astray)?;
            left = left.saturating_sub(now);
            address = address.wrapping_add(now);
            if left != 0 && address == 0 {
                return Err(Astray { address, access });
            }
        }
        Ok(())
    }

    /// Tells of what went astray. No lock is held.
    pub(super) fn report(&self, astray: Astray) {
        if let Some(tell) = self.tell.get() {
            tell(astray);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dma() -> Dma {
        let ranges = [(GuestAddress(0), 0x8000), (GuestAddress(0x10_0000), 0x4000)];
        Dma::new(&GuestRam::from_ranges(&ranges).unwrap())
    }

    fn piece(first: u64, last: u64, target: u64) -> Mapping {
        Mapping {
            first,
            last,
            target,
            reads: true,
            writes: true,
        }
    }

    fn astray(address: u64, access: Access) -> Result<(), Astray> {
        Err(Astray { address, access })
    }

    #[test]
    fn transfers_follow_what_is_mapped() {
        let dma = dma();
        dma.add(piece(0x5000, 0x5fff, 0x2000));
        dma.add(piece(0x6000, 0x6fff, 0x10_1000));
        dma.write(0x5ffe, &[1, 2, 3, 4]).unwrap();
        let byte = |address| dma.ram.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!(
            [0x2ffe, 0x2fff, 0x10_1000, 0x10_1001].map(byte),
            [1, 2, 3, 4]
        );
        let mut data = [0; 4];
        dma.read(0x5ffe, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
        dma.read(u64::MAX, &mut []).unwrap();
    }

    #[test]
    fn what_is_not_mapped_is_not_reached() {
        let dma = dma();
        assert_eq!(dma.read(0, &mut [0]), astray(0, Access::Read));
        dma.add(piece(0x5000, 0x5fff, 0x2000));
        let reads = Mapping {
            writes: false,
            ..piece(0x6000, 0x6fff, 0x3000)
        };
        dma.add(reads);
        assert_eq!(dma.write(0x4fff, &[0; 2]), astray(0x4fff, Access::Write));
        assert_eq!(dma.write(0x5fff, &[0; 2]), astray(0x6000, Access::Write));
        assert_eq!(dma.read(0x6fff, &mut [0; 2]), astray(0x7000, Access::Read));
        assert_eq!(
            dma.read(u64::MAX, &mut [0; 2]),
            astray(u64::MAX, Access::Read)
        );
        dma.remove(reads);
        assert_eq!(dma.read(0x6000, &mut [0]), astray(0x6000, Access::Read));
        // The end of all addresses is no way to their beginning.
        dma.add(piece(0, 0xfff, 0));
        dma.add(piece(u64::MAX - 0xfff, u64::MAX, 0x1000));
        dma.read(u64::MAX, &mut [0]).unwrap();
        assert_eq!(dma.read(u64::MAX, &mut [0; 2]), astray(0, Access::Read));
    }

    #[test]
    fn everything_is_the_guests_memory() {
        let all: Vec<_> = dma()
            .everything()
            .iter()
            .map(|m| (m.first, m.last))
            .collect();
        assert_eq!(all, [(0, 0x7fff), (0x10_0000, 0x10_3fff)]);
        assert!(dma().file(piece(0, 0xfff, 0)).is_none());
    }
}
