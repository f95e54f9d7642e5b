// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a unit does to the world apart from memory.

use super::interrupts::Delivered;
use super::notify::Mapping;
use crate::spec::fault::FaultReason;
use crate::spec::interrupt::Message;
use crate::spec::invalidation::{AtsRange, DeviceTlb};
use crate::spec::page_request::PageGroupResponse;
use crate::spec::{Pasid, RequesterId};

/// What a unit does apart from memory. Each method has a default: nothing is there to hear of it.
///
/// Called while the unit is borrowed: an implementation that must call the unit back keeps a list and does it
/// later.
pub trait Host {
    /// The unit raises an interrupt of its own: faults, invalidation completion, page requests. Such
    /// messages are not remapped.
    fn message(&mut self, message: Message) {
        let _ = message;
    }

    /// Where interrupt requests lead may have changed: remapping was switched, the table is another one, or kept
    /// entries were invalidated. `now` is [`Unit::remapped`](super::Unit::remapped). A VMM that has requests go past
    /// the unit, as KVM's routes do, asks for each of them; when this returns, none may lead where it led before.
    fn interrupts_changed(
        &mut self,
        now: &dyn Fn(RequesterId, Message) -> Result<Delivered, FaultReason>,
    ) {
        let _ = now;
    }

    /// Makes a device's TLB forget `range`: of one PASID; of all, and of requests without, if `pasid` is `None`.
    /// The next wait descriptor counts on its being done when this returns.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`] from a device that does not answer in time: FSTS.ITE.
    fn invalidate_device(
        &mut self,
        device: DeviceTlb,
        pasid: Option<Pasid>,
        range: AtsRange,
    ) -> Result<(), NoAnswer> {
        let _ = (device, pasid, range);
        Ok(())
    }

    /// Answers a device's page request group.
    fn respond(&mut self, response: PageGroupResponse) {
        let _ = response;
    }

    /// The watched requester `source` (see [`Unit::watch`](super::Unit::watch)) now reaches `mapping`,
    /// where it reached nothing.
    fn map(&mut self, source: RequesterId, mapping: Mapping) {
        let _ = (source, mapping);
    }

    /// The watched requester `source` no longer reaches `mapping`, which it was given as it is here. When this
    /// returns, the device must not reach it.
    fn unmap(&mut self, source: RequesterId, mapping: Mapping) {
        let _ = (source, mapping);
    }
}

/// A device did not answer an invalidation in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the device did not answer an invalidation in time")]
pub struct NoAnswer;

/// A world without interrupts, device TLBs and shadows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nobody;

impl Host for Nobody {}

impl<T: Host + ?Sized> Host for &mut T {
    fn message(&mut self, message: Message) {
        (**self).message(message);
    }

    fn interrupts_changed(
        &mut self,
        now: &dyn Fn(RequesterId, Message) -> Result<Delivered, FaultReason>,
    ) {
        (**self).interrupts_changed(now);
    }

    fn invalidate_device(
        &mut self,
        device: DeviceTlb,
        pasid: Option<Pasid>,
        range: AtsRange,
    ) -> Result<(), NoAnswer> {
        (**self).invalidate_device(device, pasid, range)
    }

    fn respond(&mut self, response: PageGroupResponse) {
        (**self).respond(response);
    }

    fn map(&mut self, source: RequesterId, mapping: Mapping) {
        (**self).map(source, mapping);
    }

    fn unmap(&mut self, source: RequesterId, mapping: Mapping) {
        (**self).unmap(source, mapping);
    }
}
