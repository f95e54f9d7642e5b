// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Physical memory that some rules look into.

/// Physical memory that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("physical memory at {address:#x} cannot be read")]
pub struct Unreadable {
    /// Where reading began.
    pub address: u64,
}

/// Reads the physical memory of the processor that enters: the host's, or for a VMCS12 the guest's.
pub trait PhysicalMemory {
    /// Fills `into` from `address` on.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] where not all of it is there; the rule is then undecided.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// No memory: rules that look there are undecided.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMemory;

impl PhysicalMemory for NoMemory {
    #[inline(always)]
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), Unreadable> {
        Err(Unreadable { address })
    }
}

impl<F: Fn(u64, &mut [u8]) -> Result<(), Unreadable>> PhysicalMemory for F {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        self(address, into)
    }
}
