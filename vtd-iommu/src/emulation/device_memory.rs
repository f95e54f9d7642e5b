// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's memory as one device sees it: vm-memory's `GuestMemory`, without vm-memory's IOTLB. Feature `vm-memory`.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;
use core::iter::FusedIterator;
use core::sync::atomic::{AtomicU64, Ordering};

use ::vm_memory::bitmap::BS;
use ::vm_memory::guest_memory::GuestMemorySliceIterator;
use ::vm_memory::iommu::{Error, IovaRange};
use ::vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    MemoryRegionAddress, Permissions, VolatileSlice,
};

use super::host::Host;
use super::kept::{Kept, NO_READ, NO_WRITE};
use super::options::Caching;
use super::request::Refused;
use super::vm_memory::{DeviceIommu, FRAGMENTS};

/// What one device sees memory through: a [`GuestMemory`] of its own.
///
/// `vm_memory::IommuMemory` over a [`DeviceIommu`] does the same, by way of an `Iotlb` for each access. Here a page that
/// the device was led to before is found again without a lock, until the unit is told to forget anything at all; a
/// unit that keeps nothing ([`Caching::Never`]) is asked each time. Writes are tracked in the bitmaps of physical memory.
///
/// What was found is used after the unit was asked, as with any `Iommu`: who must not reach a page once an
/// invalidation is done waits for accesses under way.
pub struct DeviceMemory<B, H> {
    device: DeviceIommu<B, H>,
    changes: Arc<AtomicU64>,
    kept: Kept,
    /// Whether anything may be kept.
    keeps: bool,
}

impl<B, H> fmt::Debug for DeviceMemory<B, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeviceMemory").field(&self.device).finish()
    }
}

impl<B: GuestMemoryBackend, H: Host> DeviceMemory<B, H> {
    /// The memory of `device`. One for each queue, or one for all: what it keeps is its own.
    #[must_use]
    pub fn new(device: DeviceIommu<B, H>) -> Self {
        let caching = device.shared.with(|unit, _, _| unit.options().caching);
        Self {
            changes: device.shared.changes(),
            kept: Kept::new(),
            keeps: caching == Caching::UntilInvalidated,
            device,
        }
    }

    fn physical(&self) -> &B {
        self.device.shared.memory()
    }

    /// Where the byte at `address` led before, if nothing has changed since.
    #[inline(always)]
    fn kept_target(&self, address: u64, access: Permissions) -> Option<u64> {
        let needed = match access {
            // No right is asked for, and none is looked up.
            Permissions::No => return None,
            Permissions::Read => NO_READ,
            Permissions::Write => NO_WRITE,
            Permissions::ReadWrite => NO_READ | NO_WRITE,
        };
        let changes = self.changes.load(Ordering::Acquire);
        let kept = self.kept.get(changes, address >> 12, needed)?;
        Some(address ^ (kept & !0xfff))
    }

    /// Where the byte at `address` leads.
    #[inline(always)]
    fn target(&self, address: u64, access: Permissions) -> Result<u64, Refused> {
        match self.kept_target(address, access) {
            Some(target) => Ok(target),
            None => self.ask(address, access),
        }
    }

    #[inline(never)]
    fn ask(&self, address: u64, access: Permissions) -> Result<u64, Refused> {
        self.device.shared.with(|unit, memory, host| {
            let to = self.device.reach(unit, memory, host, address, access)?;
            if let Some(to) = to
                && self.keeps
            {
                let no_read = if to.reads { 0 } else { NO_READ };
                let no_write = if to.writes { 0 } else { NO_WRITE };
                let differs = (to.address ^ address) & !0xfff;
                // The unit is ours while it is asked: nothing changes between the question and this.
                let changes = self.changes.load(Ordering::Relaxed);
                let kept = differs | no_read | no_write;
                self.kept.put(changes, address >> 12, kept);
            }
            Ok(to.map_or(address, |to| to.address))
        })
    }

    /// The longest piece from the start of `left` that leads to one place.
    #[inline(always)]
    fn piece(&self, left: Left) -> Result<Piece, Refused> {
        let target = self.target(left.address, left.access)?;
        let page = 0x1000usize.saturating_sub((left.address & 0xfff) as usize);
        if left.length <= page {
            return Ok(Piece {
                target,
                length: left.length,
            });
        }
        self.longer_piece(left, target, page)
    }

    /// [`piece`](Self::piece), from page to page for as long as each leads to where the one before ends.
    #[inline(never)]
    fn longer_piece(&self, left: Left, target: u64, page: usize) -> Result<Piece, Refused> {
        let mut length = page;
        while length < left.length {
            let next = left.address.wrapping_add(length as u64);
            match self.target(next, left.access) {
                Ok(to) if to == target.wrapping_add(length as u64) => {}
                // Elsewhere, or refused: the next piece is, or says so.
                _ => break,
            }
            length = left.length.min(length.saturating_add(0x1000));
        }
        Ok(Piece { target, length })
    }

    /// Where `left` is, if it is in one page that was found before, and that page in the first region: almost always.
    #[inline(always)]
    fn at_hand(&self, left: Left) -> Option<Slice<'_, B>> {
        // A length that wraps is longer than any region; of a length of 0 there is no piece, wherever it is.
        let behind = left.address.wrapping_add(left.length as u64);
        if (left.address ^ behind.wrapping_sub(1)) >> 12 != 0 {
            return None;
        }
        let target = self.kept_target(left.address, left.access)?;
        let region = self.physical().iter().next()?;
        let offset = target.wrapping_sub(region.start_addr().0);
        region
            .get_slice(MemoryRegionAddress(offset), left.length)
            .ok()
    }

    /// What is to be gone through, if all of it may be, and is not scattered too widely.
    #[inline(always)]
    fn admit(
        &self,
        address: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<Pieces<'_, B, H>, GuestMemoryError> {
        let left = Left {
            address: address.0,
            length,
            access,
        };
        let (ready, piece) = match self.at_hand(left) {
            Some(slice) => (Some(slice), Piece::NONE),
            None => match self.admit_slowly(left) {
                Ok(piece) => (None, piece),
                Err(error) => return Err(*error),
            },
        };
        Ok(Pieces {
            memory: self,
            left,
            ready,
            piece,
        })
    }

    #[inline(never)]
    fn admit_slowly(&self, left: Left) -> Result<Piece, Box<GuestMemoryError>> {
        if left.length == 0 {
            return Ok(Piece::NONE);
        }
        let piece = self
            .piece(left)
            .map_err(|why| refused(left, &why.to_string()))?;
        if piece.length < left.length {
            self.admit_rest(left, piece.length)?;
        }
        Ok(piece)
    }

    #[inline(never)]
    fn admit_rest(&self, whole: Left, first: usize) -> Result<(), Box<GuestMemoryError>> {
        let reaches_end = u64::try_from(whole.length)
            .ok()
            .and_then(|length| whole.address.checked_add(length.saturating_sub(1)));
        if reaches_end.is_none() {
            return Err(refused(whole, "the range leaves the address space"));
        }
        let mut left = whole.after(first);
        for _ in 1..FRAGMENTS {
            if left.length == 0 {
                return Ok(());
            }
            let piece = self
                .piece(left)
                .map_err(|why| refused(whole, &why.to_string()))?;
            left = left.after(piece.length);
        }
        if left.length == 0 {
            return Ok(());
        }
        Err(refused(
            whole,
            "the range is scattered over too many places",
        ))
    }
}

impl<B: GuestMemoryBackend, H: Host> Clone for DeviceMemory<B, H> {
    /// The same memory; what it keeps is its own.
    fn clone(&self) -> Self {
        Self::new(self.device.clone())
    }
}

#[cold]
fn refused(whole: Left, reason: &str) -> Box<GuestMemoryError> {
    Box::new(GuestMemoryError::IommuError(Error::CannotResolve {
        iova_range: IovaRange {
            base: GuestAddress(whole.address),
            length: whole.length,
        },
        reason: reason.to_string(),
    }))
}

/// Addresses that are still to be gone through.
#[derive(Clone, Copy)]
struct Left {
    address: u64,
    length: usize,
    access: Permissions,
}

impl Left {
    /// Without the first `length` bytes.
    const fn after(self, length: usize) -> Self {
        Self {
            address: self.address.wrapping_add(length as u64),
            length: self.length.saturating_sub(length),
            ..self
        }
    }
}

/// Bytes that are in one place, as far as translation goes.
#[derive(Clone, Copy)]
struct Piece {
    target: u64,
    length: usize,
}

impl Piece {
    const NONE: Self = Self {
        target: 0,
        length: 0,
    };
}

/// A piece of physical memory.
type Slice<'a, B> =
    VolatileSlice<'a, BS<'a, <<B as GuestMemoryBackend>::R as GuestMemoryRegion>::B>>;

/// Slices of physical memory, in the order of the device's addresses.
///
/// All of its parts are words, which the compiler keeps in registers if nobody takes their address: one that is made in
/// memory out of halves and read as a whole costs more than finding it did.
struct Pieces<'a, B: GuestMemoryBackend, H> {
    memory: &'a DeviceMemory<B, H>,
    left: Left,
    /// All of `left`, if it was found at once.
    ready: Option<Slice<'a, B>>,
    /// The piece at the start of `left`, as far as it is known.
    piece: Piece,
}

impl<'a, B: GuestMemoryBackend, H: Host> Iterator for Pieces<'a, B, H> {
    type Item = Result<Slice<'a, B>, GuestMemoryError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left.length == 0 {
            return None;
        }
        if let Some(slice) = self.ready.take() {
            self.left.length = 0;
            return Some(Ok(slice));
        }
        match slice_of(self.memory, self.left, self.piece) {
            Ok((slice, left, piece)) => {
                (self.left, self.piece) = (left, piece);
                Some(Ok(slice))
            }
            Err(error) => {
                self.left.length = 0;
                Some(Err(*error))
            }
        }
    }
}

/// A slice, and what is left behind it.
type Step<'a, B> = (Slice<'a, B>, Left, Piece);

/// The first slice of `left`, of which `piece` is known.
#[inline(never)]
fn slice_of<B: GuestMemoryBackend, H: Host>(
    memory: &DeviceMemory<B, H>,
    left: Left,
    mut piece: Piece,
) -> Result<Step<'_, B>, Box<GuestMemoryError>> {
    if piece.length == 0 {
        piece = memory
            .piece(left)
            .map_err(|why| refused(left, &why.to_string()))?;
    }
    let at = GuestAddress(piece.target);
    let Some(region) = memory.physical().find_region(at) else {
        return Err(Box::new(GuestMemoryError::InvalidGuestAddress(at)));
    };
    let offset = piece.target.wrapping_sub(region.start_addr().0);
    let there = usize::try_from(region.len().wrapping_sub(offset)).unwrap_or(usize::MAX);
    let length = piece.length.min(there);
    let slice = region
        .get_slice(MemoryRegionAddress(offset), length)
        .map_err(Box::new)?;
    let rest = Piece {
        target: piece.target.wrapping_add(length as u64),
        length: piece.length.saturating_sub(length),
    };
    Ok((slice, left.after(length), rest))
}

impl<B: GuestMemoryBackend, H: Host> FusedIterator for Pieces<'_, B, H> {}

impl<'a, B: GuestMemoryBackend, H: Host>
    GuestMemorySliceIterator<'a, BS<'a, <B::R as GuestMemoryRegion>::B>> for Pieces<'a, B, H>
{
}

impl<B: GuestMemoryBackend, H: Host> GuestMemory for DeviceMemory<B, H> {
    type PhysicalMemory = B;
    type Bitmap = <B::R as GuestMemoryRegion>::B;

    fn check_range(&self, address: GuestAddress, length: usize, access: Permissions) -> bool {
        match self.admit(address, length, access) {
            Ok(mut pieces) => pieces.all(|slice| slice.is_ok()),
            Err(_) => false,
        }
    }

    #[inline(always)]
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        self.admit(address, length, access)
    }
}
