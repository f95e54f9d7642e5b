// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function that the server has, as the machinery of pass-through wants it.
//!
//! What cannot be read is all ones, and what cannot be written is dropped: so a device looks that was pulled out.

use super::connection::{CallError, Connection};
use super::dma::TellAstray;
use super::message::{Command, Words, words};
use super::regions::UserRegion;
use super::table::{Given, UserTable};
use crate::passthrough::hardware::{PhysicalFunction, Region, Signals};
use crate::passthrough::pages::Pages;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

/// No interrupt index: none is in use.
const NO_INDEX: u32 = u32::MAX;
/// Base address registers.
const BARS: usize = 6;

/// A function that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// Another kind of device.
    #[error("it is not a PCI device")]
    NotPci,
    /// Nothing could ever be heard of it.
    #[error("it has neither MSI nor MSI-X, and pins are not supported")]
    NoMessages,
    /// The connection.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// What a server does of itself.
#[derive(Debug)]
pub struct News(Arc<Connection>);

impl News {
    /// Has the log say when the server is gone, from now on.
    pub fn log_end(&self) {
        self.0.say_when_gone();
    }

    /// Who is told of its requests for memory that go astray.
    pub fn tell_astray(&self, tell: TellAstray) {
        self.0.dma.tell_astray(tell);
    }
}

/// A function of a server's.
#[derive(Debug)]
pub struct UserFunction {
    connection: Arc<Connection>,
    bars: [UserRegion; BARS],
    can_reset: bool,
    /// The index of the interrupts in use.
    index: AtomicU32,
}

impl UserFunction {
    /// What is at the other end of `connection`, on which somebody listens. It is reset, if it can be.
    pub(super) fn new(connection: Arc<Connection>) -> Result<Self, FunctionError> {
        let payload = words(&[16, 0, 0, 0]);
        let reply = connection.ask(Command::GET_INFO, &payload, &[])?;
        let [_, flags, regions, irqs] =
            four(&reply.payload).ok_or_else(|| connection.senseless(Command::GET_INFO))?;
        if flags & VFIO_DEVICE_FLAGS_PCI == 0 || regions <= VFIO_PCI_CONFIG_REGION_INDEX {
            return Err(FunctionError::NotPci);
        }
        let mut bars: [UserRegion; BARS] = Default::default();
        for (bar, index) in bars.iter_mut().zip(0..) {
            *bar = UserRegion::ask(&connection, index)?;
        }
        let mut messages = false;
        for index in [VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX] {
            if index < irqs {
                messages |= vectors(&connection, index)? != 0;
            }
        }
        if !messages {
            return Err(FunctionError::NoMessages);
        }
        let function = UserFunction {
            connection,
            bars,
            can_reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            index: AtomicU32::new(NO_INDEX),
        };
        if function.can_reset {
            function.connection.ask(Command::RESET, &[], &[])?;
        }
        Ok(function)
    }

    /// Tells the server of all of the guest's memory.
    pub fn map_everything(&self, given: Given) -> io::Result<()> {
        let mut table = self.table(given);
        let all = self.connection.dma.everything();
        all.into_iter().try_for_each(|piece| table.map_piece(piece))
    }

    /// What the server reaches, to be filled as a remapping unit says.
    #[must_use]
    pub fn table(&self, given: Given) -> UserTable {
        UserTable::new(Arc::clone(&self.connection), given)
    }

    /// What tells of the server.
    #[must_use]
    pub fn news(&self) -> News {
        News(Arc::clone(&self.connection))
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // The guest's accesses have eight bytes at most.
        let length = data.len() as u32;
        let asked = access(region, offset, length);
        // Who does not answer is gone, and that was said; who refuses has nothing there.
        let Ok(reply) = self.connection.ask(Command::REGION_READ, &asked, &[]) else {
            return;
        };
        match reply.payload.get(16..) {
            Some(read) if read.len() == data.len() => data.copy_from_slice(read),
            _ => {
                self.connection.senseless(Command::REGION_READ);
            }
        }
    }

    fn set(&self, index: u32, flags: u32, range: Range<u32>, events: &[EventFd]) -> io::Result<()> {
        let count = range.end.saturating_sub(range.start);
        let payload = words(&[20, flags, index, range.start, count]);
        let files: Vec<BorrowedFd<'_>> = events.iter().map(borrowed).collect();
        self.connection.ask(Command::SET_IRQS, &payload, &files)?;
        Ok(())
    }

    fn enable(&self, index: u32, events: &[EventFd]) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.index.store(index, Ordering::Relaxed);
        let mut start = 0;
        for events in events.chunks(self.connection.limits.files) {
            // At most 2048 in all.
            let end = u32::saturating_add(start, events.len() as u32);
            self.set(index, flags, start..end, events)?;
            start = end;
        }
        Ok(())
    }
}

#[expect(
    unsafe_code,
    reason = "vmm-sys-util's event gives its file as a number"
)]
fn borrowed(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns this file, and the result lives no longer than the reference to it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Where an access goes: offset, region, bytes.
fn access(region: u32, offset: u64, length: u32) -> Vec<u8> {
    let mut payload = offset.to_ne_bytes().to_vec();
    payload.extend(words(&[region, length]));
    payload
}

/// The first four words of an answer.
fn four(payload: &[u8]) -> Option<[u32; 4]> {
    let mut fields = Words(payload);
    Some([
        fields.word()?,
        fields.word()?,
        fields.word()?,
        fields.word()?,
    ])
}

/// How many vectors of the kind `index` there are that can be told by an event.
fn vectors(connection: &Connection, index: u32) -> Result<u32, CallError> {
    let payload = words(&[16, 0, index, 0]);
    let reply = connection.ask(Command::GET_IRQ_INFO, &payload, &[])?;
    match four(&reply.payload) {
        Some([_, flags, same, count]) if same == index => {
            Ok(if flags & VFIO_IRQ_INFO_EVENTFD != 0 {
                count
            } else {
                0
            })
        }
        _ => Err(connection.senseless(Command::GET_IRQ_INFO)),
    }
}

impl PhysicalFunction for UserFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.read(VFIO_PCI_CONFIG_REGION_INDEX, offset.into(), data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        // At most four bytes.
        let mut payload = access(region, offset.into(), data.len() as u32);
        payload.extend_from_slice(data);
        if let Err(error @ CallError::Refused { .. }) =
            self.connection.ask(Command::REGION_WRITE, &payload, &[])
        {
            log::debug!("configuration space at {offset:#x}: {error}");
        }
    }

    fn region(&self, bar: u8) -> Region {
        let bar = self.bars.get(usize::from(bar));
        bar.map_or_else(Region::default, |bar| Region {
            length: bar.length,
            mappable: bar.mappable.clone(),
        })
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.read(bar.into(), offset, data);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        // As the guest's accesses have it: eight bytes at most.
        let mut payload = access(bar.into(), offset, data.len() as u32);
        payload.extend_from_slice(data);
        // Posted, as writes are on the bus: a read that follows comes after it. Who is gone was told of.
        let _ = self.connection.tell(Command::REGION_WRITE, &payload);
    }

    fn pages(&self, bar: u8, range: Range<u64>) -> io::Result<Pages> {
        let bar = self.bars.get(usize::from(bar));
        bar.ok_or(ErrorKind::InvalidInput)?.pages(&range)
    }

    fn has_pin(&self) -> bool {
        // Servers do not agree on how a pin is unmasked.
        false
    }

    fn signal(&self, signals: Signals<'_>) -> io::Result<()> {
        let before = self.index.swap(NO_INDEX, Ordering::Relaxed);
        if before != NO_INDEX {
            let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
            self.set(before, flags, 0..0, &[])?;
        }
        match signals {
            Signals::Off => Ok(()),
            Signals::Pin { .. } => Err(ErrorKind::Unsupported.into()),
            Signals::Msi(events) => self.enable(VFIO_PCI_MSI_IRQ_INDEX, events),
            Signals::Msix(events) => self.enable(VFIO_PCI_MSIX_IRQ_INDEX, events),
        }
    }

    fn is_gone(&self) -> bool {
        self.connection.is_gone()
    }

    fn reset(&self) -> io::Result<()> {
        if !self.can_reset {
            return Err(ErrorKind::Unsupported.into());
        }
        self.connection.ask(Command::RESET, &[], &[])?;
        Ok(())
    }
}

impl Drop for UserFunction {
    fn drop(&mut self) {
        self.connection.close();
    }
}
