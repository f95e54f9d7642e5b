// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that the processor owns in VMX operation, and where it lies. SDM Vol. 3C, "Format of the VMCS Region", "VMXON
//! Region".
#![expect(
    unsafe_code,
    reason = "a program's claim about its memory, and a static that is taken once"
)]

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

/// Where objects of this program lie in physical memory.
///
/// # Safety
///
/// For every object of this program that `address` is asked about, it is the physical address of its first byte, all of
/// it lies there in one piece and in ordinary write-back memory, and it stays there.
pub unsafe trait Physical {
    /// The physical address of the object at `virtual_address`.
    fn address(&self, virtual_address: usize) -> u64;

    /// The physical address of an object, for a field of the VMCS.
    fn of<T>(&self, object: &T) -> u64 {
        self.address((&raw const *object).addr())
    }
}

/// Memory that is mapped at a fixed distance from where it lies: the identity map, a kernel's direct map.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    distance: u64,
}

impl Linear {
    /// Physical address 0 is mapped at `distance`.
    ///
    /// # Safety
    ///
    /// This is so for every object whose address is asked for, as [`Physical`] says.
    pub const unsafe fn new(distance: u64) -> Self {
        Self { distance }
    }
}

// SAFETY: what `new` was promised.
unsafe impl Physical for Linear {
    fn address(&self, virtual_address: usize) -> u64 {
        (virtual_address as u64).wrapping_sub(self.distance)
    }
}

/// A page whose first word is a revision identifier, and whose rest is the processor's.
#[repr(C, align(4096))]
struct Region {
    revision: u32,
    abort: u32,
    data: [u8; 4088],
}

impl Region {
    const fn new() -> Self {
        Self {
            revision: 0,
            abort: 0,
            data: [0; 4088],
        }
    }
}

/// Memory for VMXON: the processor uses it as long as it is in VMX operation.
#[repr(transparent)]
pub struct VmxonRegion(Region);

impl VmxonRegion {
    /// A region that no processor uses.
    pub const fn new() -> Self {
        Self(Region::new())
    }

    /// Puts the revision identifier (bits 30:0 of `IA32_VMX_BASIC`) where VMXON looks for it; bit 31 is 0.
    #[cfg(any(target_arch = "x86_64", test))]
    pub(crate) fn prepare(&mut self, revision: u32) {
        self.0.revision = revision & 0x7fff_ffff;
    }
}

/// Which kind of VMCS a region is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmcsKind {
    /// One that guests are entered with.
    Ordinary,
    /// One that a guest's VMREAD and VMWRITE reach, by the link pointer. Needs "VMCS shadowing".
    Shadow,
}

/// Memory for a VMCS: the processor owns its content from VMCLEAR until the last VMCLEAR.
#[repr(transparent)]
pub struct VmcsRegion(Region);

impl VmcsRegion {
    /// A region that no processor uses.
    pub const fn new() -> Self {
        Self(Region::new())
    }

    /// Puts the revision identifier and the shadow-VMCS indicator (bit 31) where VMPTRLD looks for them.
    #[cfg(any(target_arch = "x86_64", test))]
    pub(crate) fn prepare(&mut self, revision: u32, kind: VmcsKind) {
        let shadow = match kind {
            VmcsKind::Ordinary => 0,
            VmcsKind::Shadow => 1 << 31,
        };
        self.0.revision = revision & 0x7fff_ffff | shadow;
        self.0.abort = 0;
    }

    /// The VMX-abort indicator: not 0 if a VM exit could not be completed. SDM Vol. 3C, "VMX Aborts". Of use when another
    /// processor, or the next start of the machine, looks at what an abort left.
    pub fn abort(&self) -> u32 {
        // SAFETY: a reference is valid; the processor may have written the word behind the compiler's back.
        unsafe { (&raw const self.0.abort).read_volatile() }
    }
}

macro_rules! plain {
    ($($name:ident)*) => {$(
        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(revision {:#x}, {} bytes)"), self.0.revision, self.0.data.len().saturating_add(8))
            }
        }
    )*};
}
plain! { VmxonRegion VmcsRegion }

/// Something in a static that one owner takes, once: a region, on a machine without an allocator.
///
/// ```
/// use hvkit_vmx::{Once, VmcsRegion};
///
/// static VMCS: Once<VmcsRegion> = Once::new(VmcsRegion::new());
/// let region = VMCS.take().expect("nobody took it yet");
/// assert_eq!((&raw const *region).addr() % 4096, 0);
/// assert!(VMCS.take().is_none());
/// ```
pub struct Once<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through the one reference that `take` gives away, to any thread.
unsafe impl<T: Send> Sync for Once<T> {}

impl<T> Once<T> {
    /// Something that nobody took yet.
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes it; `None` from the second time on.
    #[expect(clippy::mut_from_ref, reason = "given away once; that is the point")]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: only the first swap comes here, so this is the only reference there will ever be.
        Some(unsafe { &mut *self.value.get() })
    }
}

impl<T> fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(region: &Region) -> [u32; 2] {
        [region.revision, region.abort]
    }

    #[test]
    fn regions_are_pages_with_the_revision_in_front() {
        assert_eq!(
            (size_of::<VmxonRegion>(), align_of::<VmxonRegion>()),
            (4096, 4096)
        );
        assert_eq!(
            (size_of::<VmcsRegion>(), align_of::<VmcsRegion>()),
            (4096, 4096)
        );
        assert_eq!(core::mem::offset_of!(Region, revision), 0);
        assert_eq!(core::mem::offset_of!(Region, abort), 4);
        let mut on = VmxonRegion::new();
        on.prepare(0xffff_ffff);
        assert_eq!(words(&on.0), [0x7fff_ffff, 0], "bit 31 is 0 for VMXON");
        let mut vmcs = VmcsRegion::new();
        vmcs.0.abort = 4;
        assert_eq!(vmcs.abort(), 4);
        vmcs.prepare(0x2b, VmcsKind::Ordinary);
        assert_eq!(words(&vmcs.0), [0x2b, 0]);
        vmcs.prepare(0x2b, VmcsKind::Shadow);
        assert_eq!(words(&vmcs.0), [0x8000_002b, 0]);
        assert_eq!(
            format!("{vmcs:?}"),
            "VmcsRegion(revision 0x8000002b, 4096 bytes)"
        );
    }

    #[test]
    fn a_linear_map_is_a_subtraction() {
        // SAFETY: the addresses are only looked at.
        let (identity, direct) = unsafe { (Linear::new(0), Linear::new(0xffff_8880_0000_0000)) };
        assert_eq!(identity.address(0x1234), 0x1234);
        assert_eq!(direct.address(0xffff_8880_0012_3000), 0x12_3000);
        let region = VmcsRegion::new();
        assert_eq!(identity.of(&region), (&raw const region).addr() as u64);
    }

    #[test]
    fn what_is_taken_is_taken() {
        static ONE: Once<u32> = Once::new(7);
        let one = ONE.take().unwrap();
        *one += 1;
        assert_eq!(*one, 8);
        assert!(ONE.take().is_none());
    }
}
