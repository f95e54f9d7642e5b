// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that gives the guest a number and remembers what the guest does with it.

use crate::bus::BusDevice;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the guest did, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bytes printed.
    pub(super) printed: Vec<u8>,
    /// Offset and value of each read.
    pub(super) read: Vec<(u64, u64)>,
    /// Offset and value of each write.
    pub(super) written: Vec<(u64, u64)>,
}

/// More accesses than this tell nothing new, and a guest gone wrong could make them for ever.
const ENOUGH: usize = 64;

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device whose every register reads as `number`.
#[derive(Debug)]
pub(super) struct Witness {
    seen: Arc<Mutex<Seen>>,
    number: u64,
}

impl Witness {
    pub(super) fn new(seen: Arc<Mutex<Seen>>, number: u64) -> Self {
        Witness { seen, number }
    }
}

impl BusDevice for Witness {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let number = self.number.to_le_bytes();
        for (to, from) in data.iter_mut().zip(number) {
            *to = from;
        }
        let mut seen = lock(&self.seen);
        if seen.read.len() < ENOUGH {
            seen.read.push((offset, value(data)));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut seen = lock(&self.seen);
        if seen.written.len() < ENOUGH {
            seen.written.push((offset, value(data)));
        }
    }
}

/// Up to eight bytes as a number.
fn value(data: &[u8]) -> u64 {
    data.iter()
        .take(8)
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Where the guest's serial line prints to.
#[derive(Debug)]
pub(super) struct Printed(pub(super) Arc<Mutex<Seen>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut seen = lock(&self.0);
        if seen.printed.len() < ENOUGH {
            seen.printed.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
