// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues of a device, as its back end is told of them: where they are, where they go on, what is in flight.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

use super::base;
use super::error::BackEndError;
use super::front_end::{FrontEnd, word};
use super::in_flight::InFlight;
use super::memory::SharedMemory;
use super::message::{PROTOCOL_FEATURES, Payload, Protocol, Request, halves};
use crate::features::Features;
use crate::queue::{Layout, Position, QueueConfig};

/// A queue for the back end to serve.
#[derive(Debug)]
pub(super) struct Ring<'r> {
    pub(super) index: u16,
    pub(super) config: QueueConfig,
    pub(super) layout: Layout,
    /// Where it goes on.
    pub(super) base: Position,
    pub(super) kick: &'r EventFd,
    pub(super) call: &'r EventFd,
    pub(super) error: &'r EventFd,
}

/// The queues that a back end was told to begin with.
#[derive(Clone, Debug, Default)]
pub(super) struct Started {
    queues: Vec<u16>,
    /// It serves those before this one.
    end: u16,
}

impl FrontEnd {
    /// Tells the back end all that it needs to serve `rings` with `features`, in place of all that it was told before.
    /// It begins nothing yet.
    ///
    /// It notes what is in flight in `noted`, if it can; what is there already was noted by another one, whose work this one
    /// is to finish.
    pub(super) fn prepare(
        &mut self,
        features: Features,
        memory: &SharedMemory,
        rings: &[Ring<'_>],
        noted: &mut Option<InFlight>,
    ) -> Result<(), BackEndError> {
        *self.started_mut() = Started::default();
        let protocol = self.all_features() & PROTOCOL_FEATURES;
        let translated = features.contains(Features::ACCESS_PLATFORM);
        let settled = features.bits() & self.all_features() | protocol;
        self.tell(Request::SET_FEATURES, &Payload::of(settled), &[])?;
        let (table, files) = memory.table();
        self.tell(Request::SET_MEM_TABLE, &table, &files)?;
        if noted.is_none() {
            *noted = self.ask_for_notes(Layout::of(features), rings)?;
        }
        if let Some(notes) = noted {
            let about = Payload::default().bytes(notes.about());
            self.tell(Request::SET_INFLIGHT_FD, &about, &[notes.file()])?;
        }
        for ring in rings {
            // A queue is where the driver says, in the addresses that the device has.
            let memory = (!translated).then_some(memory);
            self.place(ring, memory)?;
        }
        // Back ends keep translations queue by queue: DPDK's forgets what it hears before it has the queues.
        if translated {
            self.tell_space(memory)?;
        }
        Ok(())
    }

    /// Has the back end begin with `rings`, for which it is prepared; with those before queue `end` at once.
    pub(super) fn start(&mut self, rings: &[Ring<'_>], end: u16) -> Result<(), BackEndError> {
        for ring in rings {
            let queue = Payload::of(ring.index.into());
            self.tell(Request::SET_VRING_ERR, &queue, &[fd(ring.error)])?;
            self.tell(Request::SET_VRING_CALL, &queue, &[fd(ring.call)])?;
            self.tell(Request::SET_VRING_KICK, &queue, &[fd(ring.kick)])?;
        }
        let started = rings.iter().map(|ring| ring.index).collect();
        *self.started_mut() = Started {
            queues: started,
            end: 0,
        };
        self.enable_before(end)
    }

    /// Has those of the queues that were started be served that are before queue `end`, and no other.
    pub(super) fn enable_before(&mut self, end: u16) -> Result<(), BackEndError> {
        let Started {
            queues,
            end: before,
        } = self.started_mut().clone();
        self.started_mut().end = end;
        for index in queues {
            let on = index < end;
            if on != (index < before) {
                self.enable(index, on.into())?;
            }
        }
        Ok(())
    }

    fn ask_for_notes(
        &mut self,
        layout: Layout,
        rings: &[Ring<'_>],
    ) -> Result<Option<InFlight>, BackEndError> {
        if !self.protocol().contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let queues = rings.iter().map(|ring| ring.index.saturating_add(1)).max();
        let queues = queues.unwrap_or(0);
        let size = rings.iter().map(|ring| ring.config.size).max();
        let size = size.unwrap_or(0);
        let about = Payload::default()
            .u64(0)
            .u64(0)
            .u16(queues)
            .u16(size)
            .u32(0);
        let asked = Request::GET_INFLIGHT_FD;
        let (answer, files) = self.ask_for_files(asked, &about, about.as_slice().len(), 1)?;
        let file = files.into_iter().next().map(File::from);
        let region = file.and_then(|file| InFlight::new(&answer, file, queues, (layout, size)));
        if region.is_none() {
            let (value, what) = (word(&answer), "area for so many queues");
            return Err(self.end(BackEndError::Value { asked, value, what }));
        }
        Ok(region)
    }

    /// Says where a queue is: in this process where `memory` is given, or else in the device's own addresses.
    fn place(
        &mut self,
        ring: &Ring<'_>,
        memory: Option<&SharedMemory>,
    ) -> Result<(), BackEndError> {
        let Ring {
            index,
            config,
            layout,
            ..
        } = ring;
        let state = |value: u32| Payload::default().u32((*index).into()).u32(value);
        let base = base::said(*layout, ring.base);
        self.tell(Request::SET_VRING_NUM, &state(config.size.into()), &[])?;
        self.tell(Request::SET_VRING_BASE, &state(base), &[])?;
        let [table, available, used] = config.lengths(*layout).map(|(length, _)| length);
        let ours = |address, length| {
            let index = *index;
            let ours = memory.map_or(Some(address), |memory| memory.ours(address, length));
            ours.ok_or(BackEndError::Torn { index, address })
        };
        // Queue and flags; descriptors, used ring, available ring; and no log.
        let payload = Payload::default()
            .u32((*index).into())
            .u32(0)
            .u64(ours(config.descriptor_area, table)?)
            .u64(ours(config.device_area, used)?)
            .u64(ours(config.driver_area, available)?)
            .u64(0);
        self.tell(Request::SET_VRING_ADDR, &payload, &[])
    }

    fn enable(&mut self, index: u16, on: u32) -> Result<(), BackEndError> {
        // Without the protocol's features, a queue is on when it has started.
        if self.all_features() & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let payload = Payload::default().u32(index.into()).u32(on);
        self.tell(Request::SET_VRING_ENABLE, &payload, &[])
    }

    /// Stops the queue `index`, of `size` descriptors of `layout`; the result is where it would go on.
    pub(super) fn stop(
        &mut self,
        index: u16,
        layout: Layout,
        size: u16,
    ) -> Result<Position, BackEndError> {
        self.started_mut()
            .queues
            .retain(|started| *started != index);
        self.enable(index, 0)?;
        let asked = Request::GET_VRING_BASE;
        let state = Payload::default().u32(index.into()).u32(0);
        let value = word(&self.ask(asked, &state, 8)?);
        // Queue in the first half, where in the other; as they lie in memory.
        let (queue, said) = halves(value);
        if let (true, Some(base)) = (
            queue == u32::from(index),
            base::position(layout, size, said),
        ) {
            return Ok(base);
        }
        let what = match layout {
            Layout::Split => "index of that queue",
            Layout::Packed => "place in that packed queue",
        };
        Err(self.end(BackEndError::Value { asked, value, what }))
    }
}

#[expect(unsafe_code, reason = "vmm-sys-util's EventFd does not implement AsFd")]
fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` lives, and the result borrows it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
