// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How registers are reached, and how long anything waits.

use super::{DriverError, Waiting};
use crate::spec::registers::{Readable, Register, Word, Writable};

/// How often a wait asks before it gives up, unless the [`Mmio`] says otherwise.
pub const SPINS: u32 = 1_000_000;

/// The registers of one unit: volatile memory, a test socket, an emulated unit.
///
/// Each access must reach the unit as one, in program order, and after every store to memory that came
/// before it.
pub trait Mmio {
    /// Reads the 4 bytes at `offset` from the unit's base.
    fn read32(&self, offset: u32) -> u32;
    /// Reads the 8 bytes at `offset`.
    fn read64(&self, offset: u32) -> u64;
    /// Writes 4 bytes.
    fn write32(&self, offset: u32, value: u32);
    /// Writes 8 bytes.
    fn write64(&self, offset: u32, value: u64);

    /// Called each time that hardware, asked `asked` times, was not ready: relax, look at a clock, and say
    /// whether to go on. The specification gives no limits; drivers allow seconds.
    fn keep_waiting(&self, asked: u32) -> bool {
        core::hint::spin_loop();
        asked < SPINS
    }
}

impl<T: Mmio + ?Sized> Mmio for &T {
    #[inline]
    fn read32(&self, offset: u32) -> u32 {
        (**self).read32(offset)
    }

    #[inline]
    fn read64(&self, offset: u32) -> u64 {
        (**self).read64(offset)
    }

    #[inline]
    fn write32(&self, offset: u32, value: u32) {
        (**self).write32(offset, value);
    }

    #[inline]
    fn write64(&self, offset: u32, value: u64) {
        (**self).write64(offset, value);
    }

    #[inline]
    fn keep_waiting(&self, asked: u32) -> bool {
        (**self).keep_waiting(asked)
    }
}

/// Registers by their types. Implemented for every [`Mmio`].
///
/// ```compile_fail
/// use hvkit_vtd_iommu::driver::{Mmio, Registers};
/// use hvkit_vtd_iommu::spec::registers::GCMD;
///
/// fn no(unit: &impl Mmio) {
///     unit.get(GCMD); // write-only: read GSTS instead
/// }
/// ```
pub trait Registers: Mmio {
    /// Reads a register.
    #[inline]
    fn get<T: Word, A: Readable>(&self, register: Register<T, A>) -> T {
        if T::BYTES == 4 {
            T::from_raw(self.read32(register.offset()).into())
        } else {
            T::from_raw(self.read64(register.offset()))
        }
    }

    /// Writes a register.
    #[inline]
    fn put<T: Word, A: Writable>(&self, register: Register<T, A>, value: T) {
        if T::BYTES == 4 {
            self.write32(register.offset(), value.raw() as u32);
        } else {
            self.write64(register.offset(), value.raw());
        }
    }

    /// Reads a register until `done`.
    ///
    /// # Errors
    ///
    /// [`DriverError::TimedOut`], with `waiting`.
    fn wait_for<T: Word, A: Readable>(
        &self,
        register: Register<T, A>,
        waiting: Waiting,
        done: impl Fn(T) -> bool,
    ) -> Result<T, DriverError> {
        let mut asked = 0u32;
        loop {
            let value = self.get(register);
            if done(value) {
                return Ok(value);
            }
            asked = asked.saturating_add(1);
            if !self.keep_waiting(asked) {
                return Err(DriverError::TimedOut(waiting));
            }
        }
    }
}

impl<T: Mmio + ?Sized> Registers for T {}
