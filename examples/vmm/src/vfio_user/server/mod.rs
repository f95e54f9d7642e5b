// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI function, served to the VMM of another process.
//!
//! ```text
//!   VMM --- socket --- Server --- PciFunction: registers
//!                        |-- GivenMemory -------- its DMA: files of the guest's memory, where the VMM says
//!                        '-- Events ------------- its MSI-X vectors: the VMM's events
//! ```
//!
//! The VMM has the MSI-X table to itself: a vector of the function's is live when the VMM has given its event.
//!
//! The VMM is not believed either: what makes no sense is answered with an error, and changes nothing; a message that is
//! none ends the connection. It can end this process all the same, by making the memory that it shares shorter. Memory
//! without a file, which would have to be asked for transfer by transfer, is not used: such a DMA_MAP is answered with
//! an error.

mod memory;
mod shape;
mod vectors;

pub use memory::{GivenMemory, Mapped};
pub use vectors::Events;

use self::shape::{BARS, MsixPlace, bar_lengths, msix_place};
use super::connection::PATIENCE;
use super::message::{Command, Header, MOST_DATA, Words, receive, refusal, reply, sized, words};
use super::version::{VersionError, ours, theirs};
use hvkit_virtio_devices::patience::end_of;
use hvkit_virtio_devices::pci::config::register;
use hvkit_virtio_devices::pci::{MsiVectors, PciFunction, msix};
use hvkit_virtio_devices::vhost_user::back_end::event;
use hvkit_virtio_devices::vhost_user::channel::Channel;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vm_memory::Permissions;

/// Bytes of configuration space that the client sees.
const CONFIG: u64 = 256;
/// The MSI-X capability's Message Control, and in it Enable.
const MSIX_CONTROL: u16 = 2;
const MSIX_ENABLE: u16 = 1 << 15;
/// DMA_UNMAP: everything.
const UNMAP_ALL: u32 = 1 << 1;

/// Why a device is not served any more.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection.
    #[error("cannot hear or answer the VMM: {0}")]
    Connection(#[from] io::Error),
    /// The VMM does not begin as it should.
    #[error("the VMM's first message: {0}")]
    Version(#[from] VersionError),
    /// The VMM begins with something else.
    #[error("the VMM begins with {0}, not with its version")]
    Greeting(Command),
}

/// What an answer has after its header, or an error number.
type Answer = Result<Vec<u8>, i32>;

/// A function that is served to one client.
pub struct Server {
    channel: Channel,
    function: Box<dyn PciFunction>,
    memory: GivenMemory,
    events: Arc<Events>,
    bars: [u64; BARS],
    msix: Option<MsixPlace>,
    /// Configuration space as it was before the client wrote to it.
    initial: Vec<u8>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("bars", &self.bars)
            .field("msix", &self.msix)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `function`, whose DMA goes to `memory` and whose vectors are `events`, to the client at `socket`.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn new(
        socket: UnixStream,
        mut function: Box<dyn PciFunction>,
        memory: GivenMemory,
        events: Arc<Events>,
    ) -> io::Result<Self> {
        let mut initial = vec![0; CONFIG as usize];
        for (dword, at) in initial.chunks_exact_mut(4).zip((0u16..).step_by(4)) {
            function.config_read(at, dword);
        }
        let mut server = Server {
            channel: Channel::new(socket)?,
            bars: bar_lengths(&mut *function),
            msix: msix_place(&mut *function),
            function,
            memory,
            events,
            initial,
        };
        server.unmask();
        Ok(server)
    }

    /// Every vector's message is the client's affair, so none is masked here. Where it would lead does not matter.
    fn unmask(&mut self) {
        if let Some(place) = self.msix {
            for vector in 0..u64::from(self.events.count()) {
                let entry = vector.saturating_mul(msix::ENTRY);
                let control = entry.saturating_add(place.table).saturating_add(12);
                self.function.bar_write(place.bar, control, &[0; 4]);
            }
        }
    }

    /// Serves until the client hangs up.
    ///
    /// # Errors
    ///
    /// [`ServeError`]: the client does not speak this protocol, or the connection broke.
    pub fn run(mut self) -> Result<(), ServeError> {
        let served = self.serve();
        // No DMA without a client, and no events.
        self.function.config_write(register::COMMAND, &[0, 0]);
        self.events.clear();
        self.memory.clear();
        served
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        let mut greeted = false;
        loop {
            self.channel.wait_for_more()?;
            let (header, payload, files) = match receive(&self.channel, end_of(PATIENCE)) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                received => received?,
            };
            let answer = if header.is_reply() {
                continue;
            } else if greeted {
                self.handle(header.command, &payload, files)
            } else if header.command == Command::VERSION {
                greeted = true;
                let (minor, _) = theirs(&payload)?;
                Ok(ours(minor))
            } else {
                return Err(ServeError::Greeting(header.command));
            };
            if header.wants_reply() {
                self.answer(header, answer)?;
            }
        }
    }

    fn answer(&self, header: Header, answer: Answer) -> io::Result<()> {
        let message = match answer {
            Ok(payload) => reply(header, &payload),
            Err(error) => refusal(header, error),
        };
        self.channel.send(&message, &[], end_of(PATIENCE))
    }

    fn handle(&mut self, command: Command, payload: &[u8], files: Vec<OwnedFd>) -> Answer {
        let mut fields = Words(payload);
        let fields = &mut fields;
        let short = libc::EINVAL;
        match command {
            Command::DMA_MAP => self.map(fields, files).ok_or(short)?,
            Command::DMA_UNMAP => self.unmap(fields).ok_or(short)?,
            Command::SET_IRQS => self.set_irqs(fields, files).ok_or(short)?,
            Command::GET_INFO => Ok(words(&[
                16,
                VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
                VFIO_PCI_NUM_REGIONS,
                VFIO_PCI_NUM_IRQS,
            ])),
            Command::GET_REGION_INFO => self.region_info(fields).ok_or(short)?,
            Command::GET_IRQ_INFO => self.irq_info(fields).ok_or(short)?,
            Command::REGION_READ => self.read(fields).ok_or(short)?,
            Command::REGION_WRITE => self.write(fields).ok_or(short)?,
            Command::RESET => {
                self.reset();
                Ok(Vec::new())
            }
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    /// `argsz`, flags, offset, address, size.
    fn map(&self, fields: &mut Words<'_>, files: Vec<OwnedFd>) -> Option<Answer> {
        let (_, flags) = (fields.word()?, fields.word()?);
        let (offset, address, size) = (fields.long()?, fields.long()?, fields.long()?);
        let rights = match flags & 3 {
            1 => Permissions::Read,
            2 => Permissions::Write,
            3 => Permissions::ReadWrite,
            _ => return Some(Err(libc::EINVAL)),
        };
        let mut files = files.into_iter();
        let file = match (files.next(), files.next()) {
            (Some(file), None) => file,
            (None, _) => return Some(Err(libc::EOPNOTSUPP)),
            _ => return Some(Err(libc::EINVAL)),
        };
        let mapped = self.memory.map(address, size, file, offset, rights);
        Some(mapped.map(|()| Vec::new()))
    }

    /// `argsz`, flags, address, size.
    fn unmap(&self, fields: &mut Words<'_>) -> Option<Answer> {
        let (_, flags) = (fields.word()?, fields.word()?);
        let (address, size) = (fields.long()?, fields.long()?);
        let done = match flags {
            0 => self.memory.unmap(address, size),
            UNMAP_ALL => {
                self.memory.clear();
                Ok(())
            }
            _ => Err(libc::EOPNOTSUPP),
        };
        Some(done.map(|()| sized(flags, &[address, size])))
    }

    fn region_length(&self, region: u32) -> u64 {
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => CONFIG,
            bar => {
                let length = usize::try_from(bar).ok().and_then(|bar| self.bars.get(bar));
                length.copied().unwrap_or(0)
            }
        }
    }

    fn region_info(&self, fields: &mut Words<'_>) -> Option<Answer> {
        let (_, _, region) = (fields.word()?, fields.word()?, fields.word()?);
        if region >= VFIO_PCI_NUM_REGIONS {
            return None;
        }
        let length = self.region_length(region);
        let flags = match length {
            0 => 0,
            _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
        };
        let mut answer = words(&[32, flags, region, 0]);
        answer.extend([length, 0].map(u64::to_ne_bytes).concat());
        Some(Ok(answer))
    }

    fn irq_count(&self, index: u32) -> u32 {
        match (index, self.msix) {
            (VFIO_PCI_MSIX_IRQ_INDEX, Some(_)) => self.events.count(),
            _ => 0,
        }
    }

    fn irq_info(&self, fields: &mut Words<'_>) -> Option<Answer> {
        let (_, _, index) = (fields.word()?, fields.word()?, fields.word()?);
        if index >= VFIO_PCI_NUM_IRQS {
            return None;
        }
        let flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE;
        Some(Ok(words(&[16, flags, index, self.irq_count(index)])))
    }

    /// `argsz`, flags, index, start, count; events.
    fn set_irqs(&mut self, fields: &mut Words<'_>, files: Vec<OwnedFd>) -> Option<Answer> {
        let (_, flags, index) = (fields.word()?, fields.word()?, fields.word()?);
        let (start, count) = (fields.word()?, fields.word()?);
        let end = start.checked_add(count)?;
        if end > self.irq_count(index) {
            // Turning off what is not there is no harm.
            let off = count == 0 && index < VFIO_PCI_NUM_IRQS;
            return off.then(|| Ok(Vec::new()));
        }
        if flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            return Some(Err(libc::EOPNOTSUPP));
        }
        let kind = flags & !VFIO_IRQ_SET_ACTION_TRIGGER;
        match kind {
            VFIO_IRQ_SET_DATA_NONE if count == 0 => {
                self.enable_msix(0);
                self.events.clear();
            }
            // As if the device had raised it.
            VFIO_IRQ_SET_DATA_NONE => {
                for vector in start..end {
                    let vector = u16::try_from(vector).ok()?;
                    // Ours does not fail.
                    let _ = self.events.deliver(vector);
                }
            }
            // Without a file, the vector is not heard any more.
            VFIO_IRQ_SET_DATA_EVENTFD if files.is_empty() || files.len() == count as usize => {
                let mut files = files.into_iter();
                for vector in start..end {
                    self.events.set(vector, files.next().and_then(event));
                }
                self.enable_msix(MSIX_ENABLE);
            }
            _ => return None,
        }
        Some(Ok(Vec::new()))
    }

    fn enable_msix(&mut self, control: u16) {
        if let Some(place) = self.msix {
            let at = place.capability.saturating_add(MSIX_CONTROL);
            self.function.config_write(at, &control.to_le_bytes());
        }
    }

    /// Offset, region, count: where an access goes, if there is such a place.
    fn place(&self, fields: &mut Words<'_>) -> Option<(u64, u32, usize)> {
        let (offset, region, count) = (fields.long()?, fields.word()?, fields.word()?);
        let end = offset.checked_add(count.into())?;
        let there = end <= self.region_length(region) && count <= MOST_DATA;
        there.then_some((offset, region, count as usize))
    }

    fn read(&mut self, fields: &mut Words<'_>) -> Option<Answer> {
        let (offset, region, count) = self.place(fields)?;
        let mut answer = offset.to_ne_bytes().to_vec();
        // At most `MOST_DATA`.
        answer.extend(words(&[region, count as u32]));
        let mut data = vec![0; count];
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                for (at, piece) in pieces(offset, count) {
                    self.function.config_read(at, data.get_mut(piece)?);
                }
            }
            bar => self
                .function
                .bar_read(u8::try_from(bar).ok()?, offset, &mut data),
        }
        answer.extend(data);
        Some(Ok(answer))
    }

    fn write(&mut self, fields: &mut Words<'_>) -> Option<Answer> {
        let (offset, region, count) = self.place(fields)?;
        let data = fields.0;
        if data.len() != count {
            return None;
        }
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                for (at, piece) in pieces(offset, count) {
                    self.function.config_write(at, data.get(piece)?);
                }
            }
            bar => self
                .function
                .bar_write(u8::try_from(bar).ok()?, offset, data),
        }
        let mut answer = offset.to_ne_bytes().to_vec();
        answer.extend(words(&[region, count as u32]));
        Some(Ok(answer))
    }

    /// As after power-on.
    fn reset(&mut self) {
        self.events.clear();
        // Bus mastering first: then its DMA has ended.
        self.function.config_write(register::COMMAND, &[0, 0]);
        self.function.reset();
        for (dword, at) in self.initial.chunks_exact(4).zip((0u16..).step_by(4)) {
            self.function.config_write(at, dword);
        }
        self.unmask();
    }
}

/// An access to configuration space, in the shapes that a function takes: one, two or four bytes, aligned.
fn pieces(offset: u64, count: usize) -> impl Iterator<Item = (u16, std::ops::Range<usize>)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        let left = count.checked_sub(done)?;
        // Below `CONFIG`.
        let at = (offset as usize).checked_add(done)?;
        let length = [4, 2, 1]
            .into_iter()
            .find(|length| at.is_multiple_of(*length) && *length <= left)?;
        let piece = done..done.checked_add(length)?;
        done = piece.end;
        Some((at as u16, piece))
    })
}
