// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue: how many pairs of queues the driver uses.
//!
//! ```text
//!   class:8  command:8  data        the device reads
//!   ack:8                           and writes: 0 done, 1 refused
//! ```
//!
//! "Control Virtqueue" (5.1.6.5).

use std::io;

use vm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// VIRTIO_NET_CTRL_MQ and VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const PAIRS_SET: [u8; 2] = [4, 0];
/// VIRTIO_NET_OK.
const OK: u8 = 0;
/// VIRTIO_NET_ERR.
const REFUSED: u8 = 1;

/// Has so many pairs used.
type Set = Box<dyn FnMut(u16) -> io::Result<()> + Send>;

/// Obeys the driver.
pub(crate) struct Control {
    set: Set,
    /// How many pairs the driver knows of.
    known: u16,
    /// Wakes who serves each receive queue: a wire that frames come from again says nothing of those that came before.
    wake: Vec<EventFd>,
}

impl Control {
    pub(crate) fn new(
        set: impl FnMut(u16) -> io::Result<()> + Send + 'static,
        known: u16,
        wake: Vec<EventFd>,
    ) -> Self {
        Self {
            set: Box::new(set),
            known,
            wake,
        }
    }

    fn obey(&mut self, command: [u8; 4]) -> Result<u8, io::Error> {
        let [class, number, low, high] = command;
        let used = u16::from_le_bytes([low, high]);
        if [class, number] != PAIRS_SET || !(1..=self.known).contains(&used) {
            return Ok(REFUSED);
        }
        (self.set)(used)?;
        for kick in &self.wake {
            // Fails only if the counter is full, and then it is readable.
            let _ = kick.write(1);
        }
        Ok(OK)
    }
}

impl<A> Handler<A> for Control {
    fn name(&self) -> String {
        "net-ctrl".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let room = chain.writable();
        if room.is_empty() {
            return Answer::Unanswerable;
        }
        let mut command = [0; 4];
        let asked = chain.readable();
        let whole = asked.len() == 4 && asked.read(reach, &mut command).ok() == Some(4);
        let (ack, trouble) = match whole.then(|| self.obey(command)) {
            Some(Ok(ack)) => (ack, None),
            Some(Err(error)) => (REFUSED, Some(error)),
            None => (REFUSED, None),
        };
        // An acknowledgement that is not in memory is the driver's own loss.
        let written = room.split_at(1).0.write(reach, &[ack]).unwrap_or(0);
        Answer::Done(Served {
            written: u32::from(written > 0),
            moved: 0,
            trouble,
        })
    }
}
