// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a unit does to the world apart from memory.

use super::notify::Mapping;
use crate::spec::interrupt::Message;
use crate::spec::{Pasid, RequesterId};

/// An invalidation for a device's own TLB (ATS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceInvalidation {
    /// The device.
    pub target: RequesterId,
    /// Of one PASID only, or of requests without.
    pub pasid: Option<Pasid>,
    /// First address.
    pub address: u64,
    /// log2 of the bytes, 12 to 64.
    pub size_bits: u8,
    /// G: of every PASID.
    pub global: bool,
}

/// What a device is told of a page request group that it asked for (PRS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageResponse {
    /// The device.
    pub target: RequesterId,
    /// The PASID that was asked with.
    pub pasid: Option<Pasid>,
    /// The group's index.
    pub group: u16,
    /// The response code: 0 success, 1 invalid request, 15 failure; others are reserved.
    pub code: u8,
}

/// What a unit does apart from memory. Each method has a default that does nothing, or says so.
///
/// Called while the unit is borrowed: an implementation that must call the unit back keeps a list and does it
/// later.
pub trait Host {
    /// The unit raises an interrupt of its own: faults, invalidation completion, page requests. Such
    /// messages are not remapped.
    fn message(&mut self, message: Message) {
        let _ = message;
    }

    /// Makes a device forget translations. The next wait descriptor counts on its being done.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`] from a device that does not answer in time: FSTS.ITE.
    fn invalidate_device(&mut self, invalidation: DeviceInvalidation) -> Result<(), NoAnswer> {
        let _ = invalidation;
        Ok(())
    }

    /// Answers a device's page request group.
    fn respond(&mut self, response: PageResponse) {
        let _ = response;
    }

    /// The watched requester `source` (see [`Unit::watch`](super::Unit::watch)) now reaches `mapping`,
    /// where it reached nothing.
    fn map(&mut self, source: RequesterId, mapping: Mapping) {
        let _ = (source, mapping);
    }

    /// The watched requester `source` no longer reaches anything in `mapping`, which it was given as a
    /// whole. When this returns, the device must not reach it.
    fn unmap(&mut self, source: RequesterId, mapping: Mapping) {
        let _ = (source, mapping);
    }

    /// The watched requester `source` reaches more places than its limit: those above are not mapped, so the
    /// device faults on them.
    fn map_limit(&mut self, source: RequesterId) {
        let _ = source;
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

    fn invalidate_device(&mut self, invalidation: DeviceInvalidation) -> Result<(), NoAnswer> {
        (**self).invalidate_device(invalidation)
    }

    fn respond(&mut self, response: PageResponse) {
        (**self).respond(response);
    }

    fn map(&mut self, source: RequesterId, mapping: Mapping) {
        (**self).map(source, mapping);
    }

    fn unmap(&mut self, source: RequesterId, mapping: Mapping) {
        (**self).unmap(source, mapping);
    }

    fn map_limit(&mut self, source: RequesterId) {
        (**self).map_limit(source);
    }
}
