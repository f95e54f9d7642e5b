// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Register-based invalidation: for units without a queue. Legacy mode only.

use super::{Ability, DriverError, Mmio, Registers, Waiting};
use crate::spec::invalidation::{ContextScope, Descriptor, Drain, IotlbScope};
use crate::spec::registers::{
    CCMD, ContextCommand, ExtendedCapability, InvalidateAddress, IotlbInvalidate,
};

/// Does what `descriptor` asks for, through registers.
///
/// # Errors
///
/// A descriptor that has no register, a unit that refuses, or one that does not answer.
pub(super) fn invalidate<R: Mmio>(
    unit: &R,
    ecap: ExtendedCapability,
    descriptor: Descriptor,
) -> Result<(), DriverError> {
    match descriptor {
        Descriptor::Context(scope) => context(unit, scope),
        Descriptor::Iotlb { scope, drain } => iotlb(unit, ecap, scope, drain),
        Descriptor::Wait(_) => Ok(()),
        _ => Err(DriverError::Unsupported(Ability::RegisterBasedInvalidation)),
    }
}

fn context<R: Mmio>(unit: &R, scope: ContextScope) -> Result<(), DriverError> {
    let word = ContextCommand(0).with_invalidate(true);
    let word = match scope {
        ContextScope::Global => word.with_granularity(1),
        ContextScope::Domain { domain } => word.with_granularity(2).with_domain(domain),
        ContextScope::Device {
            domain,
            source,
            function_mask,
        } => word
            .with_granularity(3)
            .with_domain(domain)
            .with_source(source.0)
            .with_function_mask(function_mask),
    };
    let idle = || unit.wait_for(CCMD, Waiting::ContextCommand, |c| !c.invalidate());
    // Not while a command that timed out is pending: the bit that clears may be that one's.
    idle()?;
    unit.put(CCMD, word);
    let left = idle()?;
    if left.actual_granularity() == 0 {
        return Err(DriverError::NotInvalidated { register: left.0 });
    }
    Ok(())
}

fn iotlb<R: Mmio>(
    unit: &R,
    ecap: ExtendedCapability,
    scope: IotlbScope,
    drain: Drain,
) -> Result<(), DriverError> {
    let register = ecap.iotlb_invalidate();
    let word = IotlbInvalidate(0)
        .with_invalidate(true)
        .with_drain_reads(drain.contains(Drain::READS))
        .with_drain_writes(drain.contains(Drain::WRITES));
    let idle = || unit.wait_for(register, Waiting::IotlbCommand, |c| !c.invalidate());
    // As above; the address register, too, is the pending command's.
    idle()?;
    let word = match scope {
        IotlbScope::Global => word.with_granularity(1),
        IotlbScope::Domain { domain } => word.with_granularity(2).with_domain(domain),
        IotlbScope::Pages { domain, pages } => {
            let address = InvalidateAddress(0)
                .with_address(pages.address)
                .with_mask(pages.order)
                .with_leaves_only(pages.leaves_only);
            unit.put(ecap.invalidate_address(), address);
            word.with_granularity(3).with_domain(domain)
        }
    };
    unit.put(register, word);
    let left = idle()?;
    if left.actual_granularity() == 0 {
        return Err(DriverError::NotInvalidated { register: left.0 });
    }
    Ok(())
}
