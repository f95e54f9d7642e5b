// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What memory the guest has: its map as an EPT, and INVEPT for what is taken away.

use hvkit_ept::builder::{Policy, Region, build};
use hvkit_ept::spec::{Controls, EptVpidCap, MemoryType, Rights, WalkLength};
use hvkit_ept::{Attributes, Ept};
use hvkit_page_table::{Invalidate, Mapper, PhysicalWindow, Span, Stale};
use hvkit_vmcs::exit::EptViolation;
use hvkit_vmcs::{Processor, fields as f};
use hvkit_vmx::exit::{CrAccess, EptFault};
use hvkit_vmx::{Current, Exit, InvEpt, InvalidateError, Root};
use payload_rt::println;

use crate::isolation::{How, Isolation, refuse};
use crate::memory::{FRAME, Pool};
use crate::root_operation::{Failed, say};
use crate::run::{Next, Paging};

/// An EPT in the arena.
pub type Tables<'p> = Mapper<Ept, &'p PhysicalWindow, &'p Pool<'p>>;

/// The EPT of `map`, with the largest pages there can be, and accessed and dirty flags where the processor has them.
pub fn tables<'p>(
    processor: &Processor,
    window: &'p PhysicalWindow,
    pool: &'p Pool<'p>,
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

/// CR0.NE and CR4.VMXE: what VMX fixes.
const NE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;

fn is_vmx_on(access: CrAccess) -> bool {
    matches!(access, CrAccess::Write { number: 4, value } if value & VMXE != 0)
}

/// A guest on an EPT that maps its memory to itself.
pub struct Extended<'t, 'p> {
    tables: &'t mut Tables<'p>,
    /// A frame of zeros.
    nothing: u64,
}

impl<'t, 'p> Extended<'t, 'p> {
    /// The guest on `tables`. At `nothing` is a frame of zeros.
    pub fn new(tables: &'t mut Tables<'p>, nothing: u64) -> Self {
        Self { tables, nothing }
    }

    /// Memory that is not the guest's: it reads as zeros, and cannot be written or executed.
    fn memory(
        &mut self,
        mut exit: EptFault<'_, Current<'_>>,
        how: EptViolation,
        isolation: &mut Isolation,
    ) -> Next {
        let rip = exit.guest.read(f::GUEST_RIP);
        if isolation.meets(exit.physical, How::Violation(how), rip) {
            return refuse(&mut exit.guest);
        }
        let page = Span::new(exit.physical & !(FRAME - 1), FRAME);
        let readable = Attributes::new(Rights::READ, MemoryType::WriteBack);
        if let Err(error) = self.tables.map(page, self.nothing, readable) {
            println!("type1: {error}");
            return Next::Give("a page of nothing cannot be mapped");
        }
        exit.retry();
        Next::Go
    }
}

impl Paging for Extended<'_, '_> {
    fn answer(&mut self, exit: Exit<'_, Current<'_>>, isolation: &mut Isolation) -> Next {
        match exit {
            // There is no VMX for it to switch on.
            Exit::ControlRegister(exit) if is_vmx_on(exit.access) => {
                exit.fault();
                Next::Go
            }
            Exit::ControlRegister(exit) if exit.refuses_cr0(exit.guest.read(f::GUEST_EFER)) => {
                exit.fault();
                Next::Go
            }
            Exit::ControlRegister(exit) => {
                let fixed = if exit.new_cr0().is_some() { NE } else { VMXE };
                exit.allow(fixed);
                Next::Go
            }
            Exit::EptViolation(exit, how) => self.memory(exit, how, isolation),
            other => {
                println!("type1: {other:?}");
                Next::Give("an exit that was not expected")
            }
        }
    }

    fn hides(&self, _: u32, _: u32) -> [u32; 4] {
        [0; 4]
    }

    fn print(&self) {}
}
