// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Output to somebody who may not read: the guest waits, as for a slow line, but not the end of the machine.

use crate::machine::stop::Stop;
use crate::unread;
use rustix::event::Timespec;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often it is looked whether the machine goes on.
const SLICE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// How long a reader has once the machine is at its end.
const LAST: Duration = Duration::from_secs(3);

/// A writer that waits for its reader for as long as the machine runs, and a little longer; not at all once a signal has
/// told the VMM to end.
#[derive(Debug)]
pub struct Patient<W> {
    to: W,
    /// The same file, if it could be opened so that writing does not wait.
    anew: Option<OwnedFd>,
    stop: Stop,
}

impl<W: AsFd> Patient<W> {
    /// Writes to the file `to`, while the machine of `stop` goes on. A terminal or a pipe is opened once more, so this is to
    /// be called before the process gives up opening files.
    pub fn new(to: W, stop: Stop) -> Self {
        let anew = unread::anew(&to);
        Patient { to, anew, stop }
    }
}

impl<W: AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut since = None;
        loop {
            let written = match &self.anew {
                Some(file) => unread::write(file, bytes, &SLICE)?,
                None => unread::write(&self.to, bytes, &SLICE)?,
            };
            if let Some(written) = written {
                return Ok(written);
            }
            let late =
                self.stop.is_asked() && since.get_or_insert_with(Instant::now).elapsed() >= LAST;
            if late || self.stop.signal().is_some() {
                let why = "nobody reads it, and the machine is at its end";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::stop::StopReason;
    use std::io::{PipeWriter, Read};
    use std::sync::atomic::Ordering;
    use std::thread;

    /// A pipe that is full.
    fn stalled(stop: &Stop) -> (io::PipeReader, Patient<PipeWriter>) {
        let (reader, writer) = io::pipe().unwrap();
        let mut patient = Patient::new(writer, stop.clone());
        // pipe(7), "Pipe capacity".
        patient.write_all(&[b'x'; 65536]).unwrap();
        (reader, patient)
    }

    #[test]
    fn a_slow_reader_gets_everything() {
        let stop = Stop::new().unwrap();
        let (mut reader, mut patient) = stalled(&stop);
        let slow = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        patient.write_all(b"the end").unwrap();
        drop(patient);
        assert!(slow.join().unwrap().ends_with(b"xthe end"));
    }

    #[test]
    fn a_reader_that_does_not_read_holds_up_neither_a_signal_nor_the_end() {
        let stop = Stop::new().unwrap();
        let (_reader, mut patient) = stalled(&stop);
        stop.arrived().store(15, Ordering::Release);
        let error = patient.write_all(b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let stop = Stop::new().unwrap();
        let (_reader, mut patient) = stalled(&stop);
        stop.ask(StopReason::PowerOff);
        let asked = Instant::now();
        let error = patient.write_all(b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(asked.elapsed() >= LAST, "it had time to read");
    }

    #[test]
    fn a_closed_pipe_is_told_at_once() {
        let stop = Stop::new().unwrap();
        let (reader, mut patient) = stalled(&stop);
        drop(reader);
        let error = patient.write_all(b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
