// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device's registers, its window and its worker have together: status, memory, doorbells.
//!
//! Its lock is the innermost of the device's; the host is called with it held.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::link::{PeerError, RegionError};
use super::table;
use super::{Held, Host, Mapping};
use crate::resources::{DOORBELL_STRIDE, Place, Resources};

/// VIRTIO_VHOST_USER_STATUS_BACKEND_UP: the driver wants a connection.
pub(super) const BACKEND_UP: u32 = 1 << 0;
/// VIRTIO_VHOST_USER_STATUS_FRONTEND_UP: there is one.
pub(super) const FRONTEND_UP: u32 = 1 << 1;

pub(super) struct Shared {
    host: Arc<dyn Host>,
    queues: u16,
    memory: u64,
    /// Written when the driver changes the status.
    wake: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    status: u32,
    place: Option<Place>,
    regions: Vec<Region>,
    /// By queue.
    calls: Vec<Option<Call>>,
    /// What could not be shown where the window was put.
    failed: Option<io::Error>,
}

struct Region {
    // Dropped first: it leads to the mapping.
    held: Option<Held>,
    place: u64,
    mapping: Box<dyn Mapping>,
}

struct Call {
    held: Option<Held>,
    event: EventFd,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Shared")
            .field("status", &state.status)
            .field("place", &state.place)
            .field("regions", &state.regions.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(host: Arc<dyn Host>, queues: u16, memory: u64) -> io::Result<Self> {
        Ok(Self {
            host,
            queues,
            memory,
            wake: EventFd::new(EFD_NONBLOCK)?,
            state: Mutex::new(State {
                calls: (0..queues).map(|_| None).collect(),
                ..State::default()
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn queues(&self) -> u16 {
        self.queues
    }

    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    pub(super) fn status(&self) -> u32 {
        self.state().status
    }

    /// The driver writes the status: whether it wants a connection. What was shown of one before is gone.
    pub(super) fn set_wanted(&self, wanted: bool) {
        let mut state = self.state();
        let was = state.status & BACKEND_UP != 0;
        if was == wanted {
            return;
        }
        state.forget();
        state.status = if wanted { BACKEND_UP } else { 0 };
        drop(state);
        // Fails only if the counter is full, and then the worker has been told.
        let _ = self.wake.write(1);
    }

    /// There is a connection now, if the driver still wants one.
    pub(super) fn connected(&self) -> bool {
        let mut state = self.state();
        let wanted = state.status == BACKEND_UP;
        if wanted {
            state.status |= FRONTEND_UP;
        }
        wanted
    }

    /// The connection has ended. The memory stays.
    pub(super) fn hung_up(&self) {
        let mut state = self.state();
        // The driver may have given it up meanwhile, and want another.
        if state.status & FRONTEND_UP != 0 {
            state.status = 0;
        }
        state.calls.iter_mut().for_each(|call| *call = None);
    }

    /// As after a reset.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.forget();
        state.status = 0;
    }

    /// What went wrong when the window was put somewhere, once.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.state().failed.take()
    }

    /// Shows `regions` in place of those before.
    pub(super) fn set_regions(&self, regions: Vec<table::Region>) -> Result<(), PeerError> {
        let wrong = |index| {
            move |source| PeerError::Region {
                index,
                why: RegionError::Host(source),
            }
        };
        let map = |(index, region): (usize, table::Region)| {
            let mapping = self
                .host
                .map(region.file.as_fd(), region.offset, region.length);
            Ok(Region {
                held: None,
                place: region.place,
                mapping: mapping.map_err(wrong(index))?,
            })
        };
        let mapped = regions.into_iter().enumerate().map(map);
        let mapped = mapped.collect::<Result<Vec<_>, PeerError>>()?;
        let mut state = self.state();
        let place = state.place;
        // Those before go first: they are where these will be.
        state.regions.clear();
        state.regions = mapped;
        if let Some(place) = place {
            for (index, region) in state.regions.iter_mut().enumerate() {
                region.show(place).map_err(wrong(index))?;
            }
        }
        Ok(())
    }

    /// Doorbell `index` rings `event` from now on, or nobody.
    pub(super) fn set_call(&self, index: u16, event: Option<EventFd>) -> io::Result<()> {
        let mut state = self.state();
        let place = state.place;
        let Some(slot) = state.calls.get_mut(usize::from(index)) else {
            return Ok(());
        };
        *slot = None;
        let Some(event) = event else {
            return Ok(());
        };
        let call = slot.insert(Call { held: None, event });
        place.map_or(Ok(()), |place| call.hang(&*self.host, index, place))
    }
}

impl State {
    fn forget(&mut self) {
        self.regions.clear();
        self.calls.iter_mut().for_each(|call| *call = None);
        self.failed = None;
    }
}

impl Region {
    fn show(&mut self, place: Place) -> io::Result<()> {
        // Inside the window, which ends before the last address.
        let address = place.memory.saturating_add(self.place);
        self.held = Some(self.mapping.show(address)?);
        Ok(())
    }
}

impl Call {
    fn hang(&mut self, host: &dyn Host, index: u16, place: Place) -> io::Result<()> {
        // Inside the window, as in `show`.
        let offset = DOORBELL_STRIDE.saturating_mul(index.into());
        let address = place.doorbells.saturating_add(offset);
        self.held = Some(host.ring(address, &self.event)?);
        Ok(())
    }
}

/// The window.
pub(super) struct Window(pub(super) Arc<Shared>);

impl Resources for Window {
    fn doorbells(&self) -> u16 {
        self.0.queues
    }

    fn notifications(&self) -> u16 {
        self.0.queues
    }

    fn memory(&self) -> u64 {
        self.0.memory
    }

    fn placed(&mut self, place: Place) {
        let mut guard = self.0.state();
        let state = &mut *guard;
        state.place = Some(place);
        let shown = state
            .regions
            .iter_mut()
            .try_for_each(|region| region.show(place));
        let calls = (0..).zip(&mut state.calls);
        let mut calls = calls.filter_map(|(index, call)| Some((index, call.as_mut()?)));
        let hung = shown.and_then(|()| {
            calls.try_for_each(|(index, call)| call.hang(&*self.0.host, index, place))
        });
        state.failed = hung.err();
        if state.failed.is_some() {
            // The worker ends the connection.
            let _ = self.0.wake.write(1);
        }
    }

    fn removed(&mut self) {
        let mut state = self.0.state();
        state.place = None;
        for region in &mut state.regions {
            region.held = None;
        }
        for call in state.calls.iter_mut().flatten() {
            call.held = None;
        }
    }
}
