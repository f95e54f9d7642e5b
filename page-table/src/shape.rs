// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shape of a radix table: how many levels, how an address is cut into indices, how wide an entry is.
//!
//! Hardware chooses it at run time (VT-d's AGAW, LA57, PAE), so a shape is a value, not a type.

/// The most levels any shape has.
pub const MAX_LEVELS: usize = 5;

/// Bytes of one table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32-bit entries: x86 paging without PAE.
    Four,
    /// 64-bit entries: everything else here.
    Eight,
}

impl Width {
    /// 4 or 8.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// log2 of [`bytes`](Self::bytes).
    #[inline]
    pub(crate) const fn shift(self) -> u32 {
        match self {
            Self::Four => 2,
            Self::Eight => 3,
        }
    }
}

/// What the address bits above a table's reach must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Upper {
    /// All zero: guest-physical and I/O virtual addresses.
    Zero,
    /// All equal to the highest translated bit: canonical linear addresses.
    SignExtended,
}

/// A shape that no table here can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// Not 2 to 5 levels.
    #[error("{levels} levels, where 2 to 5 are supported")]
    Levels {
        /// How many were asked for.
        levels: usize,
    },
    /// An index of no bits, or of more than 12.
    #[error("level {level} is indexed by {bits} bits, where 1 to 12 are supported")]
    IndexBits {
        /// The level, 1 the lowest.
        level: u8,
        /// Its index bits.
        bits: u8,
    },
    /// A page smaller than 4 KiB or an address wider than 63 bits.
    #[error("addresses of {bits} bits over pages of 2^{page_bits} bytes")]
    AddressBits {
        /// Bits of a whole address.
        bits: u32,
        /// Bits of the offset in the smallest page.
        page_bits: u8,
    },
    /// Level 1 cannot hold leaves, or a level that does not exist can.
    #[error("leaf levels {leaves:#07b} of {levels} levels")]
    Leaves {
        /// Bit `level - 1` is set where leaves may be.
        leaves: u8,
        /// How many levels there are.
        levels: usize,
    },
}

/// The shape of a table: a value that a [`Format`](crate::Format) carries.
///
/// Levels count from the bottom, as the manuals do: level 1 holds the smallest pages, level
/// [`levels`](Self::levels) is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    levels: u8,
    width: Width,
    upper: Upper,
    leaves: u8,
    /// Index bits: 12 at most.
    index_bits: PerLevel<4>,
    /// Lowest address bit of the index: 63 at most.
    shifts: PerLevel<6>,
    address_bits: u8,
    /// Whether it is one of [`nines`](Self::nines): then indices can be cut with constants.
    nines: bool,
    /// One bit for each address bit that the table translates.
    mask: u64,
}

/// A number of `BITS` bits for each level, in one word; 0 for a level that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PerLevel<const BITS: u32>(u32);

impl<const BITS: u32> PerLevel<BITS> {
    const ALL_FIT: () = assert!(MAX_LEVELS as u32 * BITS <= 32);

    /// Where the number of `level` begins; behind the word for level 0.
    const fn place(level: u8) -> u32 {
        (level.wrapping_sub(1) as u32).wrapping_mul(BITS)
    }

    #[inline(always)]
    const fn get(self, level: u8) -> u32 {
        match self.0.checked_shr(Self::place(level)) {
            Some(word) => word & (1u32 << BITS).wrapping_sub(1),
            None => 0,
        }
    }

    /// The same with `number`, which fits, for `level`, which had none.
    const fn with(self, level: u8, number: u8) -> Self {
        let () = Self::ALL_FIT;
        match (number as u32).checked_shl(Self::place(level)) {
            Some(bits) => Self(self.0 | bits),
            None => self,
        }
    }
}

impl Shape {
    /// A shape from its numbers.
    ///
    /// Tables of up to 12 index bits can be walked. A [`Mapper`](crate::Mapper) makes those that are no larger than a frame
    /// of 4 KiB: 9 bits for 8-byte entries, 10 for 4-byte ones.
    ///
    /// `index_bits[i]` belongs to level `i + 1`; `leaf_levels` names each level that may hold leaves by
    /// its bit `level - 1`, and level 1 must.
    ///
    /// # Errors
    ///
    /// [`ShapeError`] names the number that is out of bounds.
    pub const fn new(
        page_bits: u8,
        index_bits: &[u8],
        leaf_levels: u8,
        width: Width,
        upper: Upper,
    ) -> Result<Self, ShapeError> {
        let levels = index_bits.len();
        if levels < 2 || levels > MAX_LEVELS {
            return Err(ShapeError::Levels { levels });
        }
        if leaf_levels & 1 == 0 || leaf_levels >> levels != 0 {
            return Err(ShapeError::Leaves {
                leaves: leaf_levels,
                levels,
            });
        }
        let mut shape = Self {
            levels: levels as u8,
            width,
            upper,
            leaves: leaf_levels,
            index_bits: PerLevel(0),
            shifts: PerLevel(0),
            address_bits: page_bits,
            nines: page_bits == 12 && matches!(width, Width::Eight),
            mask: 0,
        };
        let (mut level, mut rest) = (1u8, index_bits);
        while let [bits, above @ ..] = rest {
            let (bits, shift) = (*bits, shape.address_bits);
            if bits == 0 || bits > 12 {
                return Err(ShapeError::IndexBits { level, bits });
            }
            // 63 bits at most, and 12 more: far from what a byte holds, if `page_bits` is not.
            let next = shift.saturating_add(bits);
            if page_bits < 12 || next > 63 {
                return Err(ShapeError::AddressBits {
                    bits: (shift as u32).saturating_add(bits as u32),
                    page_bits,
                });
            }
            shape.nines = shape.nines && bits == 9;
            shape.index_bits = shape.index_bits.with(level, bits);
            shape.shifts = shape.shifts.with(level, shift);
            shape.address_bits = next;
            level = level.saturating_add(1);
            rest = above;
        }
        shape.mask = (1u64 << shape.address_bits).wrapping_sub(1);
        Ok(shape)
    }

    /// `levels` levels of 512 8-byte entries over 4 KiB pages: EPT, VT-d, 4- and 5-level paging.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub const fn nines(levels: u8, leaf_levels: u8, upper: Upper) -> Result<Self, ShapeError> {
        const NINES: [u8; MAX_LEVELS] = [9; MAX_LEVELS];
        if levels as usize > MAX_LEVELS {
            return Err(ShapeError::Levels {
                levels: levels as usize,
            });
        }
        let (index_bits, _) = NINES.split_at(levels as usize);
        Self::new(12, index_bits, leaf_levels, Width::Eight, upper)
    }

    /// How many levels: the root's level.
    #[inline]
    #[must_use]
    pub const fn levels(&self) -> u8 {
        self.levels
    }

    /// How wide an entry is.
    #[inline]
    #[must_use]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// Whether a leaf at `level` exists in this shape.
    #[inline]
    #[must_use]
    pub const fn leaf_at(&self, level: u8) -> bool {
        // Level 0 is one far beyond all bits, and no bit is set of levels that are not there.
        let bits = self.leaves.checked_shr((level as u32).wrapping_sub(1));
        matches!(bits, Some(bits) if bits & 1 != 0)
    }

    /// Bits of an address that the table translates.
    #[inline]
    #[must_use]
    pub const fn address_bits(&self) -> u32 {
        self.address_bits as u32
    }

    /// log2 of the bytes that one entry of a table at `level` covers. 0 for a level that is not there.
    #[inline]
    #[must_use]
    pub const fn shift(&self, level: u8) -> u32 {
        self.shifts.get(level)
    }

    /// Bytes that one entry of a table at `level` covers.
    #[inline]
    #[must_use]
    pub const fn size(&self, level: u8) -> u64 {
        1u64.wrapping_shl(self.shift(level))
    }

    /// The address bits below those that select an entry at `level`.
    #[inline]
    #[must_use]
    pub const fn below(&self, level: u8) -> u64 {
        // A size is a power of two.
        self.size(level).wrapping_sub(1)
    }

    /// The first address that the same entry at `level` covers as `address`.
    #[inline]
    pub(crate) const fn base(&self, address: u64, level: u8) -> u64 {
        address & !self.below(level)
    }

    /// The first address behind those that the same entry at `level` covers as `address`, which is stripped: of 63
    /// bits at most, so nothing wraps.
    #[inline]
    pub(crate) const fn behind(&self, address: u64, level: u8) -> u64 {
        (address | self.below(level)).wrapping_add(1)
    }

    /// Entries of a table at `level`. 1 for a level that is not there.
    #[inline]
    #[must_use]
    pub const fn entries(&self, level: u8) -> u64 {
        1u64.wrapping_shl(self.index_bits.get(level))
    }

    /// The lowest level at which a table is larger than a frame, and its bytes.
    pub(crate) fn too_large(&self) -> Option<(u8, u64)> {
        if self.nines {
            return None;
        }
        (1..=self.levels)
            // 4096 entries at most, of 8 bytes.
            .map(|level| (level, self.entries(level) << self.width.shift()))
            .find(|&(_, bytes)| bytes > 0x1000)
    }

    /// Which entry of a table at `level` translates `address`.
    #[inline]
    #[must_use]
    pub const fn index(&self, address: u64, level: u8) -> u64 {
        address.wrapping_shr(self.shift(level)) & self.entries(level).wrapping_sub(1)
    }

    /// Where the entry that translates `address` lies in the table at physical address `table`.
    #[inline]
    #[must_use]
    pub const fn entry_at(&self, table: u64, address: u64, level: u8) -> u64 {
        self.slot_at(table, self.index(address, level))
    }

    /// Where entry `index` of the table at physical address `table` lies.
    #[inline]
    #[must_use]
    pub const fn slot_at(&self, table: u64, index: u64) -> u64 {
        table.wrapping_add(index.wrapping_shl(self.width.shift()))
    }

    /// The translated bits of `address`, or `None` where its upper bits are not as they must be.
    #[inline]
    #[must_use]
    pub const fn strip(&self, address: u64) -> Option<u64> {
        let bits = address & self.mask;
        if self.extend(bits) == address {
            Some(bits)
        } else {
            None
        }
    }

    /// The address that [`strip`](Self::strip) made `bits` of: upper bits restored.
    #[inline]
    #[must_use]
    pub const fn extend(&self, bits: u64) -> u64 {
        let spare = 64u32.wrapping_sub(self.address_bits());
        match self.upper {
            Upper::Zero => bits & self.mask,
            Upper::SignExtended => (bits.wrapping_shl(spare) as i64).wrapping_shr(spare) as u64,
        }
    }

    /// [`entry_at`](Self::entry_at) and [`size`](Self::size) for a level that is there, with constants if
    /// they can be used. To be asked for once a walk.
    #[inline(always)]
    pub(crate) const fn cut(&self) -> Cut<'_> {
        Cut {
            shape: self,
            nines: self.nines,
        }
    }
}

/// How a walk cuts its address: see [`Shape::cut`].
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    shape: &'a Shape,
    nines: bool,
}

impl Cut<'_> {
    /// [`Shape::entry_at`].
    #[inline(always)]
    pub(crate) const fn entry_at(self, table: u64, address: u64, level: u8) -> u64 {
        if self.nines {
            let shift = 9u32.wrapping_mul(level as u32);
            table.wrapping_add(address.wrapping_shr(shift) & 0xff8)
        } else {
            self.shape.entry_at(table, address, level)
        }
    }

    /// [`Shape::shift`].
    #[inline(always)]
    pub(crate) const fn shift(self, level: u8) -> u32 {
        if self.nines {
            3u32.wrapping_add(9u32.wrapping_mul(level as u32))
        } else {
            self.shape.shift(level)
        }
    }

    /// [`Shape::size`].
    #[inline(always)]
    pub(crate) const fn size(self, level: u8) -> u64 {
        1u64.wrapping_shl(self.shift(level))
    }

    /// [`Shape::width`].
    #[inline(always)]
    pub(crate) const fn width(self) -> Width {
        if self.nines {
            Width::Eight
        } else {
            self.shape.width
        }
    }
}

#[cfg(test)]
mod tests;
