// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which way the function's interrupts go: MSI-X if the guest enabled it, else MSI, else the pin.
//!
//! A vector's event is the host's at one end and KVM's at the other, so that an interrupt passes this
//! process by. While the guest has a vector masked, KVM does not listen, and the event keeps what the
//! host writes: that is the vector's pending bit.

use super::hardware::{PhysicalFunction, Signals};
use crate::interrupts::LevelEvent;
use hvkit_virtio_devices::pci::MsiVectors;
use hvkit_virtio_devices::pci::msi::Msi;
use hvkit_virtio_devices::pci::msix::Msix;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// MSI-X: the table the guest writes, and the vectors' events.
#[derive(Debug)]
pub(super) struct MsixPart {
    pub(super) state: Msix,
    pub(super) offset: u16,
    events: Vec<EventFd>,
}

/// MSI: the capability, and the vectors' events.
#[derive(Debug)]
pub(super) struct MsiPart {
    pub(super) state: Msi,
    pub(super) offset: u16,
    events: Vec<EventFd>,
}

impl MsixPart {
    /// None if the vectors have no events: then nothing would come.
    pub(super) fn new(state: Msix, offset: u8, vectors: &Arc<dyn MsiVectors>) -> Option<Self> {
        let events = events(state.count(), vectors)?;
        Some(MsixPart {
            state,
            offset: offset.into(),
            events,
        })
    }

    /// Reads the pending bits. The vectors' events are asked, and keep what they hold.
    pub(super) fn pending_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, index) in data.iter_mut().zip(0..) {
            let at = offset.checked_add(index);
            let first = at
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|byte| byte.checked_mul(8));
            let events = first.and_then(|first| self.events.get(first..));
            *byte = events
                .unwrap_or_default()
                .iter()
                .zip(0..8)
                .fold(0, |bits, (event, bit)| bits | u8::from(holds(event)) << bit);
        }
    }
}

impl MsiPart {
    /// None if the vectors have no events: then nothing would come.
    pub(super) fn new(state: Msi, offset: u8, vectors: &Arc<dyn MsiVectors>) -> Option<Self> {
        let events = events(state.count(), vectors)?;
        Some(MsiPart {
            state,
            offset: offset.into(),
            events,
        })
    }
}

fn events(count: u16, vectors: &Arc<dyn MsiVectors>) -> Option<Vec<EventFd>> {
    let events: Option<Vec<_>> = (0..count).map(|vector| vectors.event(vector)).collect();
    if events.is_none() {
        log::warn!("a capability with {count} vectors is hidden: no more events");
    }
    events
}

/// Whether an event was written since somebody last listened. KVM may not be listening: then it would
/// hold nothing, and what it gets meanwhile is not ours to give back.
fn holds(event: &EventFd) -> bool {
    match event.read() {
        Ok(count) => {
            // Cannot fail: the count was there a moment ago, and the host adds ones.
            let _ = event.write(count);
            true
        }
        Err(_) => false,
    }
}

/// What the function was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Off,
    Pin,
    Msi(u16),
    Msix,
}

/// The interrupts of a function.
#[derive(Debug)]
pub(super) struct Interrupts {
    pub(super) msix: Option<MsixPart>,
    pub(super) msi: Option<MsiPart>,
    pin: Option<LevelEvent>,
    way: Way,
    /// A refusal was said once: the guest can cause it as often as it likes.
    said: bool,
}

impl Interrupts {
    pub(super) fn new(
        msix: Option<MsixPart>,
        msi: Option<MsiPart>,
        pin: Option<LevelEvent>,
    ) -> Self {
        Interrupts {
            msix,
            msi,
            pin,
            way: Way::Off,
            said: false,
        }
    }

    /// Tells the function the way its interrupts go now, if that changed.
    pub(super) fn settle(&mut self, physical: &dyn PhysicalFunction) {
        let way = self.wanted();
        if way != self.way {
            self.go(way, physical);
        }
    }

    /// No interrupts, until the next [`settle`](Self::settle).
    pub(super) fn off(&mut self, physical: &dyn PhysicalFunction) {
        self.go(Way::Off, physical);
    }

    fn wanted(&self) -> Way {
        if self.msix.as_ref().is_some_and(|m| m.state.is_enabled()) {
            return Way::Msix;
        }
        match self.msi.as_ref().map_or(0, |m| m.state.in_use()) {
            0 if self.pin.is_some() => Way::Pin,
            0 => Way::Off,
            count => Way::Msi(count),
        }
    }

    fn go(&mut self, way: Way, physical: &dyn PhysicalFunction) {
        let msix = self.msix.as_ref().map_or(&[][..], |m| &m.events);
        let msi = self.msi.as_ref().map_or(&[][..], |m| &m.events);
        let signals = match (way, &self.pin) {
            (Way::Msix, _) => Signals::Msix(msix),
            (Way::Msi(count), _) => Signals::Msi(msi.get(..count.into()).unwrap_or(msi)),
            (Way::Pin, Some(pin)) => Signals::Pin {
                trigger: pin.trigger(),
                resample: pin.resample(),
            },
            (Way::Pin, None) | (Way::Off, _) => Signals::Off,
        };
        // What was pending on the way left is not news when the guest comes back to it.
        let left = match self.way {
            Way::Msix if way != Way::Msix => msix,
            Way::Msi(_) if !matches!(way, Way::Msi(_)) => msi,
            _ => &[],
        };
        let told = physical.signal(signals);
        for event in left {
            // Nothing to read is what is wanted.
            let _ = event.read();
        }
        match told {
            Ok(()) => self.way = way,
            Err(error) => {
                // Nothing is signalled; when the guest touches the capability next, it is tried again.
                self.way = Way::Off;
                if !self.said {
                    self.said = true;
                    log::error!("the device's interrupts do not go by {way:?}: {error}");
                }
            }
        }
    }
}
