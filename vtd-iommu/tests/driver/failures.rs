// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Units that do not do as they are told.

use hvkit_page_table::{Cause, Span};
use hvkit_vtd_iommu::driver::{
    Ability, Attachment, Deferred, DeferredFlush, DestinationMode, DriverError, Options, StillOwed,
    Switch, Unit, Waiting, probe,
};
use hvkit_vtd_iommu::spec::invalidation::{Descriptor, DeviceTlb, InterruptScope, RawDescriptor};
use hvkit_vtd_iommu::spec::registers::{Capability, ExtendedCapability, PMEN, QueueError};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::puppet::{DEVICE, Failure, Puppet, cap, ecap};

const RW: SecondStageAttributes = SecondStageAttributes::READ_WRITE;

fn take(puppet: &Puppet) -> Result<(), DriverError> {
    let options = Options::legacy(46);
    Unit::take(puppet, &puppet.memory, &puppet.memory, options).map(drop)
}

#[test]
fn nobody_is_no_unit() {
    for (version, capability) in [
        (0, cap()),
        (!0, cap()),
        (0x10, Capability(!0)),
        (0x10, Capability(0)),
    ] {
        let puppet = Puppet::new(capability, ecap());
        puppet.set32(0, version);
        let absent = DriverError::Absent {
            version,
            capability: capability.0,
        };
        assert_eq!(probe(&puppet).unwrap_err(), absent);
        assert_eq!(take(&puppet).unwrap_err(), absent);
    }
}

#[test]
fn each_command_is_waited_for_and_not_forever() {
    let times_out = |bit: u32, waiting| {
        let puppet = Puppet::new(cap(), ecap());
        puppet.deaf_to.set(1 << bit);
        assert_eq!(take(&puppet).unwrap_err(), DriverError::TimedOut(waiting));
    };
    times_out(26, Waiting::QueuedInvalidation);
    times_out(30, Waiting::RootTable);
    let with = ecap()
        .with_interrupt_remapping(true)
        .with_extended_interrupt_mode(true);
    let puppet = Puppet::new(
        cap().with_write_buffer_flush(true).with_protected_low(true),
        with,
    );
    let mut unit = puppet.legacy();
    puppet.deaf_to.set(1 << 31);
    assert_eq!(
        unit.enable().unwrap_err(),
        DriverError::TimedOut(Waiting::Translation)
    );
    puppet.deaf_to.set(1 << 24);
    let interrupts = unit
        .enable_interrupts(DestinationMode::X2Apic, None)
        .map(drop);
    assert_eq!(
        interrupts.unwrap_err(),
        DriverError::TimedOut(Waiting::InterruptTable)
    );
    puppet.deaf_to.set(1 << 25);
    let interrupts = unit
        .enable_interrupts(DestinationMode::X2Apic, None)
        .map(drop);
    assert_eq!(
        interrupts.unwrap_err(),
        DriverError::TimedOut(Waiting::InterruptRemapping)
    );
    puppet.deaf_to.set(1 << 23);
    let compatible = unit.set_compatibility_interrupts(Switch::On);
    assert_eq!(
        compatible.unwrap_err(),
        DriverError::TimedOut(Waiting::CompatibilityInterrupts)
    );
    puppet.deaf_to.set(1 << 27);
    let mut domain = unit.new_domain().unwrap();
    let fresh = domain.map(0x1000..0x2000, 0x1000, RW).unwrap();
    let published = unit.publish(&domain, fresh);
    assert_eq!(
        published.unwrap_err(),
        DriverError::TimedOut(Waiting::WriteBuffer)
    );
}

#[test]
fn firmwares_protection_is_released() {
    let puppet = Puppet::new(cap().with_protected_low(true), ecap());
    puppet.set32(PMEN.offset(), 0x8000_0001);
    let mut unit = puppet.legacy();
    unit.enable().unwrap();
    assert_eq!(
        hvkit_vtd_iommu::driver::Mmio::read32(&puppet, PMEN.offset()),
        0
    );
}

#[test]
fn frames_run_out() {
    for limit in 0..3 {
        let puppet = Puppet::new(cap(), ecap());
        puppet.memory.limit(limit);
        assert_eq!(take(&puppet).unwrap_err(), DriverError::OutOfFrames);
        assert_eq!(puppet.memory.in_use(), 0, "what was taken is given back");
    }
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    puppet.memory.limit(puppet.memory.in_use());
    assert_eq!(
        unit.new_domain().map(drop).unwrap_err(),
        DriverError::OutOfFrames
    );
    puppet.memory.limit(puppet.memory.in_use() + 1);
    // The root of the domain, but no context table.
    let mut domain = unit.new_domain().unwrap();
    let attached = unit.attach(&mut domain, Attachment::new(DEVICE));
    assert_eq!(attached.unwrap_err(), DriverError::OutOfFrames);
    puppet.memory.unlimit();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
}

#[test]
fn domain_ids_run_out_and_come_back() {
    // ND 0: 16 domains, of which 0 is nobody's.
    let puppet = Puppet::new(cap().with_nd(0), ecap());
    let mut unit = puppet.legacy();
    let mut domains: Vec<_> = (0..15).map(|_| unit.new_domain().unwrap()).collect();
    let mut ids: Vec<_> = domains.iter().map(|d| d.id()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..16).collect::<Vec<_>>());
    let none = unit.new_domain().map(drop).unwrap_err();
    assert_eq!(none, DriverError::OutOfDomains { count: 16 });
    let last = domains.pop().unwrap();
    let id = last.id();
    unit.destroy(last).map_err(|(_, error)| error).unwrap();
    assert_eq!(unit.new_domain().unwrap().id(), id);
}

#[test]
fn a_queue_that_does_not_move_gives_the_token_back() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let _ = domain.map(0x1000..0x3000, 0x1000, RW).unwrap();
    let stale = domain.unmap(0x1000..0x2000).unwrap();
    puppet.failure.set(Failure::DeafQueue);
    let before = puppet.memory.in_use();
    let owed = unit.settle(&domain, stale).unwrap_err();
    let cause = Cause::Failed(DriverError::TimedOut(Waiting::InvalidationWait));
    assert_eq!(owed.cause, cause);
    let owed = unit.settle_all([(&domain, owed.stale)]).unwrap_err();
    assert_eq!(owed.len(), 1);
    assert_eq!(puppet.memory.in_use(), before, "nothing was freed");
    // Detaching fails too, and the domain stays in use.
    let late = unit.detach(&mut domain, DEVICE, None).unwrap_err();
    assert_eq!(late, DriverError::TimedOut(Waiting::InvalidationWait));
    let (domain, error) = unit.destroy(domain).unwrap_err();
    let mut domain = domain;
    assert_eq!(error, DriverError::DomainInUse(domain.id()));
    // The unit wakes up: late status writes of old waits do not count for new ones.
    puppet.failure.set(Failure::None);
    for unsettled in owed {
        unit.settle(&domain, unsettled.stale).unwrap();
    }
    unit.detach(&mut domain, DEVICE, None).unwrap();
    unit.destroy(domain).map_err(|(_, error)| error).unwrap();
}

#[test]
fn a_full_ring_that_does_not_move_is_not_waited_for_forever() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    puppet.failure.set(Failure::DeafQueue);
    let queue = unit.queue().unwrap();
    let global = Descriptor::Interrupt(InterruptScope::Global);
    let answer = queue.run(&&puppet, (0..300).map(|_| global));
    assert_eq!(
        answer.unwrap_err(),
        DriverError::TimedOut(Waiting::QueueSpace)
    );
    puppet.failure.set(Failure::None);
    queue.reset(&&puppet).unwrap();
    queue.run(&&puppet, [global]).unwrap();
}

#[test]
fn the_units_reason_is_handed_on() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let queue = unit.queue().unwrap();
    for (words, error) in [
        ([0x0f, 0], QueueError::INVALID_TYPE),
        ([0x02, 0], QueueError::RESERVED_FIELD),
        ([0x8012, 0], QueueError::RESERVED_FIELD),
    ] {
        let answer = queue.run_raw(&&puppet, RawDescriptor::from_narrow(words));
        let first = words[0];
        assert_eq!(answer.unwrap_err(), DriverError::Queue { error, first });
    }
    queue
        .run(&&puppet, [Descriptor::Interrupt(InterruptScope::Global)])
        .unwrap();
}

#[test]
fn devices_that_do_not_answer_are_named() {
    let tlb = DeviceTlb {
        source: DEVICE,
        physical_source: DEVICE,
        max_pending: 0,
    };
    for (failure, error) in [
        (
            Failure::DeviceTlbTimesOut,
            DriverError::DeviceTlbTimedOut { source_id: DEVICE },
        ),
        (
            Failure::DeviceTlbUnasked,
            DriverError::DeviceTlbUnasked { source_id: DEVICE },
        ),
    ] {
        let puppet = Puppet::new(cap(), ecap());
        let mut unit = puppet.legacy();
        let mut domain = unit.new_domain().unwrap();
        let device = Attachment::new(DEVICE).with_tlb(tlb);
        unit.attach(&mut domain, device).unwrap();
        let _ = domain.map(0x1000..0x2000, 0x1000, RW).unwrap();
        let stale = domain.unmap(0x1000..0x2000).unwrap();
        puppet.failure.set(failure);
        let owed = unit.settle(&domain, stale).unwrap_err();
        assert_eq!(owed.cause, Cause::Failed(error));
        // The error is cleared, and trying again is right.
        puppet.failure.set(Failure::None);
        unit.settle(&domain, owed.stale).unwrap();
        assert_eq!(hvkit_vtd_iommu::driver::Mmio::read32(&puppet, 0x34), 0);
    }
}

#[test]
fn registers_may_refuse_and_may_be_deaf() {
    let without = ExtendedCapability(ecap().0 & !2);
    let fails = |failure| {
        let puppet = Puppet::new(cap(), without);
        puppet.failure.set(failure);
        take(&puppet).unwrap_err()
    };
    let refused = fails(Failure::RefusesRegisters);
    assert!(
        matches!(refused, DriverError::NotInvalidated { .. }),
        "{refused:?}"
    );
    let deaf = fails(Failure::DeafRegisters);
    assert_eq!(deaf, DriverError::TimedOut(Waiting::ContextCommand));
    let puppet = Puppet::new(cap(), without);
    let mut unit = puppet.legacy();
    puppet.failure.set(Failure::None);
    assert!(unit.queue().is_none());
    let unsupported = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .map(drop);
    let ability = Ability::InterruptRemapping;
    assert_eq!(unsupported.unwrap_err(), DriverError::Unsupported(ability));
}

/// "Software must not submit another invalidation request through this register while the ICC field is Set", nor IVT.
#[test]
fn a_register_whose_command_is_late_is_not_written_again_until_it_is_done() {
    let puppet = Puppet::new(cap(), ExtendedCapability(ecap().0 & !2));
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let _ = domain.map(0x1000..0x3000, 0x1000, RW).unwrap();
    let stale = domain.unmap(0x1000..0x2000).unwrap();
    // A page: IVA and the IOTLB register. The puppet waits for four reads.
    puppet.late_by.set(6);
    let owed = unit.settle(&domain, stale).unwrap_err();
    let late = |waiting| DriverError::TimedOut(waiting);
    assert_eq!(owed.cause, Cause::Failed(late(Waiting::IotlbCommand)));
    unit.settle(&domain, owed.stale).unwrap();
    assert_eq!(puppet.written_while_pending.get(), 0);

    puppet.late_by.set(6);
    let detached = unit.detach(&mut domain, DEVICE, None);
    assert_eq!(detached, Err(late(Waiting::ContextCommand)));
    unit.detach(&mut domain, DEVICE, None).unwrap();
    assert_eq!(puppet.written_while_pending.get(), 0);

    // One that is never done is waited for in the same patience, and not written either.
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    puppet.late_by.set(u32::MAX);
    for _ in 0..3 {
        let detached = unit.detach(&mut domain, DEVICE, None);
        assert_eq!(detached, Err(late(Waiting::ContextCommand)));
    }
    assert_eq!(puppet.written_while_pending.get(), 0);
}

#[test]
fn a_deferred_flush_that_fails_is_owed_until_one_succeeds() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let _ = domain.map(0x1000..0x3000, 0x1000, RW).unwrap();
    let mapped = puppet.memory.in_use();
    let mut deferred = Deferred::new(&domain, 2);
    let stale = domain.unmap(0x1000..0x2000).unwrap();
    let flushed = deferred.defer(&mut unit, &domain, stale).unwrap();
    assert_eq!(flushed, DeferredFlush::NotYet);
    puppet.failure.set(Failure::DeafQueue);
    let late = Cause::Failed(DriverError::TimedOut(Waiting::InvalidationWait));
    // The second unmapping makes it flush, and leaves a table behind that the unit may still read.
    let stale = domain.unmap(0x2000..0x3000).unwrap();
    let owed = deferred.defer(&mut unit, &domain, stale).unwrap_err();
    assert!(
        matches!(owed, StillOwed::Kept(cause) if cause == late),
        "{owed}"
    );
    let owed = deferred.flush(&mut unit, &domain).unwrap_err();
    assert!(
        matches!(owed, StillOwed::Kept(cause) if cause == late),
        "{owed}"
    );
    assert_eq!(deferred.owed(), 2);
    assert_eq!(puppet.memory.in_use(), mapped, "nothing was freed");
    puppet.failure.set(Failure::None);
    puppet.forget_asked();
    deferred.flush(&mut unit, &domain).unwrap();
    assert_eq!(deferred.owed(), 0);
    let asked = puppet.asked.borrow();
    assert!(
        asked
            .iter()
            .any(|one| matches!(one, Descriptor::Iotlb { .. })),
        "{asked:?}"
    );
}

#[test]
fn a_device_that_was_half_attached_is_taken_out_when_the_unit_answers() {
    let late = DriverError::TimedOut(Waiting::InvalidationWait);
    let puppet = Puppet::new(cap().with_caching_mode(true), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    puppet.failure.set(Failure::DeafQueue);
    let attached = unit.attach(&mut domain, Attachment::new(DEVICE));
    assert_eq!(attached.unwrap_err(), late);
    // The unit may have seen the entry: the domain's tables are not to be freed under it.
    puppet.failure.set(Failure::None);
    let (mut domain, error) = unit.destroy(domain).unwrap_err();
    assert_eq!(error, DriverError::DomainInUse(domain.id()));
    unit.detach(&mut domain, DEVICE, None).unwrap();
    unit.destroy(domain).map_err(|(_, error)| error).unwrap();

    puppet.failure.set(Failure::DeafQueue);
    assert_eq!(unit.attach_pass_through(DEVICE).unwrap_err(), late);
    puppet.failure.set(Failure::None);
    unit.detach_pass_through(DEVICE).unwrap();
    unit.attach_pass_through(DEVICE).unwrap();
}

#[test]
fn a_refused_attachment_leaves_no_reserved_memory_mapped() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let regions = [0x5000..0x6000, 0x9000..0xa000].map(Span::from);
    unit.reserve(DEVICE, &regions).unwrap();
    let mut domain = unit.new_domain().unwrap();
    let fresh = domain.map(0x9000..0xa000, 0x1000, RW).unwrap();
    unit.publish(&domain, fresh).unwrap();
    let refused = unit.attach(&mut domain, Attachment::new(DEVICE));
    let in_the_way = DriverError::ReservedMemory {
        source_id: DEVICE,
        start: 0x9000,
    };
    assert_eq!(refused.unwrap_err(), in_the_way);
    // There is room where the first region was.
    let fresh = domain.map(0x5000..0x6000, 0x7000, RW).unwrap();
    unit.publish(&domain, fresh).unwrap();
}
