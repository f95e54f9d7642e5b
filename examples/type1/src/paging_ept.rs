// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What memory the guest has: its map as an EPT, and INVEPT for what is taken away.

use hvkit_ept::Ept;
use hvkit_ept::builder::{Policy, Region, build};
use hvkit_ept::spec::{Controls, EptVpidCap, MemoryType, WalkLength};
use hvkit_page_table::{Invalidate, Mapper, PhysicalWindow, Stale};
use hvkit_vmcs::Processor;
use hvkit_vmx::{InvEpt, InvalidateError, Root};

use crate::memory::Pool;
use crate::root_operation::{Failed, say};

/// An EPT in the arena.
pub type Tables<'p> = Mapper<Ept, &'p PhysicalWindow, &'p Pool>;

/// The EPT of `map`, with the largest pages there can be, and accessed and dirty flags where the processor has them.
pub fn tables<'p>(
    processor: &Processor,
    window: &'p PhysicalWindow,
    pool: &'p Pool,
    map: &[Region],
) -> Result<Tables<'p>, Failed> {
    let capability = EptVpidCap::from_msr(processor.vmx.ept_vpid.0);
    let controls = if capability.contains(EptVpidCap::ACCESSED_DIRTY) {
        Controls::ACCESSED_DIRTY
    } else {
        Controls::empty()
    };
    let bits = processor.physical_address_bits.into();
    let ept = Ept::new(capability, bits, WalkLength::Four, controls);
    let ept = ept.map_err(say("no EPT"))?;
    build(ept, window, pool, map, Policy::default()).map_err(say("the guest's memory"))
}

/// The EPTP for the VMCS.
pub fn pointer(tables: &Tables<'_>) -> Result<u64, Failed> {
    let eptp = tables.format().eptp(tables.root(), MemoryType::WriteBack);
    Ok(eptp.map_err(say("no EPTP"))?.0)
}

/// INVEPT for one EPT, on the one processor there is.
pub struct Forget<'a> {
    /// The proof of VMX root operation.
    pub root: &'a Root,
    /// Which EPT.
    pub eptp: u64,
}

impl Invalidate for Forget<'_> {
    type Error = InvalidateError;

    fn invalidate(&mut self, _: &Stale) -> Result<(), InvalidateError> {
        self.root.invept(InvEpt::SingleContext { eptp: self.eptp })
    }
}
