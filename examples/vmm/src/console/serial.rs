// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial line on the bus: vm-superio's 16550, its interrupt an eventfd, its output buffered.

use super::output::Output;
use crate::bus::BusDevice;
use crate::snapshot::{SerialState, SnapshotError};
use crate::wake::Wake;
use std::io;
use std::sync::Arc;
use vm_superio::serial::{Error, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Ports that the line answers.
pub const PORTS: u64 = 8;

/// The line's interrupt: an eventfd that KVM turns into an edge.
#[derive(Debug)]
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the reader of the user's input that the line can take more of it.
#[derive(Debug)]
struct Room(Arc<Wake>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// A serial line.
#[derive(Debug)]
pub struct SerialLine {
    uart: Serial<Interrupt, Room, Output>,
    room: Arc<Wake>,
}

impl SerialLine {
    /// Bytes that wait for the guest at most: the FIFO of a 16550 as vm-superio has it.
    const ROOM: usize = 64;

    /// A line that prints to `output` and interrupts the guest by signalling `interrupt`.
    pub fn new(interrupt: EventFd, output: Output) -> io::Result<Self> {
        let room = Arc::new(Wake::new()?);
        let uart = Serial::with_events(Interrupt(interrupt), Room(Arc::clone(&room)), output);
        Ok(SerialLine { uart, room })
    }

    /// Signalled when the guest has read all input.
    #[must_use]
    pub fn room(&self) -> Arc<Wake> {
        Arc::clone(&self.room)
    }

    /// Bytes of input that the line can take now.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Its registers, and what the guest has not read.
    #[must_use]
    pub fn save(&self) -> SerialState {
        self.uart.state().into()
    }

    /// Becomes the line that was saved; an interrupt that it had raised comes again.
    ///
    /// # Errors
    ///
    /// More is waiting than a line holds; it is as it was.
    pub fn restore(&mut self, state: &SerialState) -> Result<(), SnapshotError> {
        let (bytes, room) = (state.received.len(), SerialLine::ROOM);
        if bytes > room {
            return Err(SnapshotError::Serial { bytes, room });
        }
        let failed = |source| SnapshotError::Machine {
            action: "take the serial line's interrupt",
            source,
        };
        let interrupt = self.uart.interrupt_evt().0.try_clone().map_err(failed)?;
        let output = std::mem::replace(
            self.uart.writer_mut(),
            Output::new(Box::new(io::sink()), None),
        );
        let room = Room(Arc::clone(&self.room));
        let made = Serial::from_state(&state.into(), Interrupt(interrupt), room, output);
        self.uart = made.map_err(|error| failed(io::Error::other(format!("{error:?}"))))?;
        Ok(())
    }

    /// Gives the guest input, at most [`capacity`](Self::capacity) bytes of it; the rest is lost,
    /// as on a real line.
    pub fn type_in(&mut self, input: &[u8]) {
        match self.uart.enqueue_raw_bytes(input) {
            Ok(_) => {}
            Err(error) => log::debug!("serial input: {error:?}"),
        }
    }

    /// Writes what of the output waits.
    pub fn drain(&mut self) {
        self.uart.writer_mut().drain();
    }
}

impl BusDevice for SerialLine {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The registers are bytes: of a wider access only the first one answers.
        data.fill(0xff);
        if let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first_mut()) {
            *first = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), Some(&first)) = (u8::try_from(offset), data.first()) else {
            return;
        };
        match self.uart.write(offset, first) {
            Ok(()) => {}
            // An eventfd whose counter is full has an interrupt pending already.
            Err(Error::Trigger(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::debug!("serial line: {error:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// 16550 registers, by offset from the first port.
    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Default)]
    struct Place(Arc<Mutex<Vec<u8>>>);
    impl Write for Place {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line() -> (SerialLine, Place) {
        let (line, place, _) = line_with_interrupt();
        (line, place)
    }
    fn line_with_interrupt() -> (SerialLine, Place, EventFd) {
        let place = Place::default();
        let output = Output::new(Box::new(place.clone()), None);
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = SerialLine::new(interrupt.try_clone().unwrap(), output).unwrap();
        (line, place, interrupt)
    }

    fn read(line: &mut SerialLine, register: u64) -> u8 {
        let mut data = [0];
        line.read(register, &mut data);
        data[0]
    }

    #[test]
    fn the_guest_prints() {
        let (mut line, place) = line();
        // Transmitter empty (bits 5 and 6), nothing received (bit 0).
        assert_eq!(read(&mut line, LINE_STATUS) & 0x61, 0x60);
        for byte in b"ok\n" {
            line.write(DATA, &[*byte]);
        }
        assert_eq!(*place.0.lock().unwrap(), b"ok\n");
    }

    #[test]
    fn the_guest_reads_what_is_typed_and_makes_room() {
        let (mut line, _, interrupt) = line_with_interrupt();
        line.write(INTERRUPT_ENABLE, &[1]);
        line.type_in(b"ab");
        assert!(interrupt.read().is_ok(), "no interrupt");
        assert_eq!(read(&mut line, LINE_STATUS) & 1, 1);
        assert_eq!(read(&mut line, DATA), b'a');
        assert!(!line.room().clear(), "there is still a byte");
        assert_eq!(read(&mut line, DATA), b'b');
        assert!(line.room().clear());
        assert_eq!(read(&mut line, LINE_STATUS) & 1, 0);
    }

    #[test]
    fn wide_and_empty_accesses_are_harmless() {
        let (mut line, _) = line();
        let mut data = [0; 4];
        line.read(LINE_STATUS, &mut data);
        assert_eq!(data[1..], [0xff; 3]);
        line.write(DATA, &[]);
        line.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
        let capacity = line.capacity();
        line.type_in(&vec![b'x'; capacity]);
        line.type_in(b"lost");
        assert_eq!(line.capacity(), 0);
    }
}
