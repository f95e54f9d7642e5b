// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queues: the driver asks which ports there are, and is told what becomes of them.
//!
//! ```text
//!   message   id:32  event:16  value:16  (a name behind PORT_NAME, a size behind RESIZE)
//!
//!   driver: DEVICE_READY --> PORT_ADD for each port
//!   driver: PORT_READY   --> CONSOLE_PORT, RESIZE (port 0) or PORT_NAME (the others), PORT_OPEN
//! ```
//!
//! "Multiport Device Operation" (5.3.6.2).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Size;
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// Bytes of a message without what is behind it.
const MESSAGE: u64 = 8;

/// An event's code. Open: what we do not know is ignored.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Event(u16);

impl Event {
    const DEVICE_READY: Self = Self(0);
    const PORT_ADD: Self = Self(1);
    const PORT_READY: Self = Self(3);
    const CONSOLE_PORT: Self = Self(4);
    const RESIZE: Self = Self(5);
    const PORT_OPEN: Self = Self(6);
    const PORT_NAME: Self = Self(7);
}

/// How a driver learns that the terminal has another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeBy {
    /// By a message on the control queue.
    Message,
    /// By a change of configuration.
    Configuration,
    /// Not at all: it did not ask for it.
    Nothing,
}

/// What the control queues and the configuration say.
#[derive(Debug)]
pub(super) struct Control {
    names: Vec<String>,
    size: Size,
    /// How the driver is told of it. None: there is no driver.
    size_by: Option<SizeBy>,
    /// The size that the driver knew of when it was saved, until it is back.
    known: Option<Size>,
    /// For the driver, in order. At most [`MOST`](Self::most) of them: a driver that asks and never listens loses
    /// the answers.
    messages: VecDeque<Vec<u8>>,
    /// Written when there are messages.
    event: EventFd,
}

impl Control {
    pub(super) fn new(names: Vec<String>) -> io::Result<Self> {
        Ok(Self {
            names,
            size: Size::default(),
            size_by: None,
            known: None,
            messages: VecDeque::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Whether the driver would be told of this size by the configuration.
    pub(super) fn changes_config(&self, size: Size) -> bool {
        self.size != size && self.size_by == Some(SizeBy::Configuration)
    }

    /// Takes a size; true if the driver is to be told by the configuration.
    pub(super) fn resize(&mut self, size: Size) -> bool {
        if std::mem::replace(&mut self.size, size) == size {
            return false;
        }
        self.tell()
    }

    /// Tells the driver of the size; true if that is to be by the configuration.
    fn tell(&mut self) -> bool {
        if self.size_by == Some(SizeBy::Message) {
            self.push_size();
        }
        self.size_by == Some(SizeBy::Configuration)
    }

    /// There is a driver; true if it is to be told of the size by the configuration now: Linux looks at it when it is
    /// told, and not before. By messages it asks itself, unless it did so before it was moved.
    pub(super) fn connect(&mut self, size_by: SizeBy) -> bool {
        self.size_by = Some(size_by);
        match self.known.take() {
            Some(known) => known != self.size && self.tell(),
            None => self.size != Size::default() && size_by == SizeBy::Configuration,
        }
    }

    pub(super) fn reset(&mut self) {
        self.size_by = None;
        self.known = None;
        self.messages.clear();
    }

    /// The size, and the messages that the driver has not taken, each behind its length.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut state = self.size.columns.to_le_bytes().to_vec();
        state.extend(self.size.rows.to_le_bytes());
        for message in &self.messages {
            // A port's name is the longest part, which was checked.
            state.extend((message.len() as u16).to_le_bytes());
            state.extend(message);
        }
        state
    }

    /// Takes what was saved, but for the size, if there is a terminal here that has one. Nothing changes if it cannot be that.
    pub(super) fn restore(&mut self, state: &[u8]) -> bool {
        let Some((&[c0, c1, r0, r1], mut rest)) = state.split_first_chunk() else {
            return false;
        };
        let mut messages = VecDeque::new();
        while let Some((&length, after)) = rest.split_first_chunk() {
            let length = u16::from_le_bytes(length).into();
            let Some((message, after)) = after.split_at_checked(length) else {
                return false;
            };
            messages.push_back(message.to_vec());
            rest = after;
        }
        if !rest.is_empty() || messages.len() > self.most() {
            return false;
        }
        let known = Size {
            columns: u16::from_le_bytes([c0, c1]),
            rows: u16::from_le_bytes([r0, r1]),
        };
        self.known = Some(known);
        if self.size == Size::default() {
            self.size = known;
        }
        self.messages = messages;
        // Fails only if the counter is full, and then it is readable.
        let _ = self.event.write(1);
        true
    }

    /// Four answers to each port's readiness, its addition, and a resize.
    fn most(&self) -> usize {
        self.names.len().saturating_mul(8).saturating_add(8)
    }

    fn push(&mut self, port: u32, event: Event, value: u16, behind: &[u8]) {
        if self.messages.len() >= self.most() {
            return;
        }
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.0.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(behind);
        self.messages.push_back(message);
        // Fails only if the counter is full, and then it is readable.
        let _ = self.event.write(1);
    }

    fn push_size(&mut self) {
        // The specification has columns first in the configuration and here (5.3.6.2.3). Most versions of Linux read rows
        // first here, so a console that needs no messages offers none.
        let [a, b] = self.size.columns.to_le_bytes();
        let [c, d] = self.size.rows.to_le_bytes();
        self.push(0, Event::RESIZE, 0, &[a, b, c, d]);
    }

    /// A message of the driver.
    fn hear(&mut self, port: u32, event: Event, value: u16) {
        match event {
            Event::DEVICE_READY if value == 1 => {
                for port in 0..self.names.len() as u32 {
                    self.push(port, Event::PORT_ADD, 0, &[]);
                }
            }
            Event::PORT_READY if value == 1 => {
                let name = usize::try_from(port).ok().and_then(|at| self.names.get(at));
                let Some(name) = name.cloned() else {
                    return;
                };
                if port == 0 {
                    self.push(port, Event::CONSOLE_PORT, 1, &[]);
                    if self.size != Size::default() {
                        self.push_size();
                    }
                } else {
                    // "The name is not NUL-terminated" (5.3.6.2.1).
                    self.push(port, Event::PORT_NAME, 1, name.as_bytes());
                }
                self.push(port, Event::PORT_OPEN, 1, &[]);
            }
            // That the guest has opened or closed a port changes nothing here.
            _ => {}
        }
    }
}

fn with<R>(control: &Mutex<Control>, run: impl FnOnce(&mut Control) -> R) -> R {
    run(&mut control.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Tells the driver.
pub(super) struct ToDriver {
    control: Arc<Mutex<Control>>,
    event: EventFd,
}

impl ToDriver {
    pub(super) fn new(control: Arc<Mutex<Control>>) -> io::Result<Self> {
        let event = with(&control, |control| control.event.try_clone())?;
        Ok(Self { control, event })
    }
}

impl<A> Handler<A> for ToDriver {
    fn name(&self) -> String {
        "con-ctl-in".to_owned()
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        // Before looking, so that a message that comes meanwhile is not lost.
        let _ = self.event.read();
        let Some(message) = with(&self.control, |control| control.messages.pop_front()) else {
            return Answer::Later;
        };
        // A buffer that is too small or nowhere gets what it can.
        let written = chain.writable().write(reach, &message).unwrap_or(0);
        Answer::Done(Served {
            written: written as u32,
            moved: written as u64,
            trouble: None,
        })
    }
}

/// Listens to the driver.
pub(super) struct FromDriver {
    control: Arc<Mutex<Control>>,
}

impl FromDriver {
    pub(super) fn new(control: Arc<Mutex<Control>>) -> Self {
        Self { control }
    }
}

impl<A> Handler<A> for FromDriver {
    fn name(&self) -> String {
        "con-ctl-out".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut raw = [0; MESSAGE as usize];
        let read = chain.readable().split_at(MESSAGE).0.read(reach, &mut raw);
        if read.ok() == Some(raw.len()) {
            let raw = u64::from_le_bytes(raw);
            // Truncations on purpose: one field each.
            let (port, event, value) = (raw as u32, Event((raw >> 32) as u16), (raw >> 48) as u16);
            with(&self.control, |control| control.hear(port, event, value));
        }
        Answer::Done(Served {
            moved: chain.readable().len(),
            ..Served::default()
        })
    }
}
