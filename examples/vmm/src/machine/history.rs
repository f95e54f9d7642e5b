// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest did last: each vCPU's last exits, for whoever has to understand a crash.
//!
//! A vCPU's thread writes its own ring; anybody may read it at any time, a signal handler too. Nothing is locked, so an
//! exit that is being written may be read half old, half new.

use crate::stderr;
use kvm_ioctls::VcpuExit;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Exits that are kept of each vCPU.
const KEPT: usize = 16;

/// What an exit was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    PortRead,
    PortWrite,
    MemoryRead,
    MemoryWrite,
    Other,
}

impl Kind {
    const ALL: [Kind; 5] = [
        Kind::PortRead,
        Kind::PortWrite,
        Kind::MemoryRead,
        Kind::MemoryWrite,
        Kind::Other,
    ];

    fn words(self) -> &'static str {
        match self {
            Kind::PortRead => "read of port",
            Kind::PortWrite => "write to port",
            Kind::MemoryRead => "read of memory",
            Kind::MemoryWrite => "write to memory",
            Kind::Other => "another exit",
        }
    }
}

/// One exit in a ring.
#[derive(Debug, Default)]
struct Slot {
    /// Bits 7:0 the kind, 63:8 the length of the access.
    what: AtomicU64,
    address: AtomicU64,
    /// The first 8 bytes of what was written.
    data: AtomicU64,
}

/// The last exits of one vCPU.
#[derive(Debug, Default)]
pub struct Exits {
    /// All exits so far.
    count: AtomicU64,
    slots: [Slot; KEPT],
}

impl Exits {
    /// Notes an exit, before it is answered.
    pub(super) fn note(&self, exit: &VcpuExit<'_>) {
        match exit {
            VcpuExit::IoIn(port, data) => self.put(Kind::PortRead, (*port).into(), data.len(), &[]),
            VcpuExit::IoOut(port, data) => {
                self.put(Kind::PortWrite, (*port).into(), data.len(), data);
            }
            VcpuExit::MmioRead(address, data) => {
                self.put(Kind::MemoryRead, *address, data.len(), &[]);
            }
            VcpuExit::MmioWrite(address, data) => {
                self.put(Kind::MemoryWrite, *address, data.len(), data);
            }
            // A signal is nothing that the guest did.
            VcpuExit::Intr => {}
            _ => self.put(Kind::Other, 0, 0, &[]),
        }
    }

    /// Where exit `number` is noted: there always is such a place.
    fn slot(&self, number: u64) -> Option<&Slot> {
        let index = number.checked_rem(KEPT as u64)?;
        self.slots.get(usize::try_from(index).ok()?)
    }

    fn put(&self, kind: Kind, address: u64, length: usize, written: &[u8]) {
        let mut data = [0; 8];
        for (to, from) in data.iter_mut().zip(written) {
            *to = *from;
        }
        let count = self.count.load(Ordering::Relaxed);
        // The vCPU's thread alone writes.
        if let Some(slot) = self.slot(count) {
            let what = (length as u64) << 8 | kind as u64;
            slot.what.store(what, Ordering::Relaxed);
            slot.address.store(address, Ordering::Relaxed);
            slot.data.store(u64::from_le_bytes(data), Ordering::Relaxed);
        }
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count.load(Ordering::Acquire);
        for number in count.saturating_sub(KEPT as u64)..count {
            let Some(slot) = self.slot(number) else {
                continue;
            };
            let what = slot.what.load(Ordering::Relaxed);
            let (length, address) = (what >> 8, slot.address.load(Ordering::Relaxed));
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| *kind as u64 == what & 0xff);
            let kind = kind.unwrap_or(Kind::Other);
            write!(f, "  {number}: {}", kind.words())?;
            if kind != Kind::Other {
                write!(f, " {address:#x}, {length} bytes")?;
            }
            if matches!(kind, Kind::PortWrite | Kind::MemoryWrite) {
                write!(f, ": {:#x}", slot.data.load(Ordering::Relaxed))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The last exits of all vCPUs.
#[derive(Clone, Debug, Default)]
pub struct History {
    vcpus: Vec<(u32, Arc<Exits>)>,
}

impl History {
    /// Of these vCPUs.
    pub(super) fn of(vcpus: impl Iterator<Item = (u32, Arc<Exits>)>) -> Self {
        History {
            vcpus: vcpus.collect(),
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut silent = 0usize;
        for (id, exits) in &self.vcpus {
            let told = exits.to_string();
            if told.is_empty() {
                silent = silent.saturating_add(1);
            } else {
                write!(f, "the last exits of vCPU {id}, newest last:\n{told}")?;
            }
        }
        match silent {
            0 => Ok(()),
            _ => writeln!(f, "vCPUs without an exit: {silent}"),
        }
    }
}

/// Tells the history if the thread that holds it panics.
#[derive(Debug)]
pub(super) struct TellOnPanic<'a>(pub(super) &'a History);

impl Drop for TellOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            stderr::text(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_exits_are_told_in_order() {
        let exits = Arc::new(Exits::default());
        for byte in 0..20u8 {
            exits.note(&VcpuExit::IoOut(0x3f8, &[byte]));
        }
        exits.note(&VcpuExit::Intr);
        exits.note(&VcpuExit::MmioRead(0xfee0_0000, &mut [0; 4]));
        exits.note(&VcpuExit::MmioWrite(
            0x1_0000_0000,
            &[1, 2, 3, 4, 5, 6, 7, 8],
        ));
        exits.note(&VcpuExit::Hlt);
        let history = History::of([(3, exits)].into_iter());
        let text = history.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 17, "{text}");
        assert_eq!(lines[0], "the last exits of vCPU 3, newest last:");
        assert_eq!(lines[1], "  7: write to port 0x3f8, 1 bytes: 0x7");
        assert_eq!(lines[14], "  20: read of memory 0xfee00000, 4 bytes");
        assert_eq!(
            lines[15],
            "  21: write to memory 0x100000000, 8 bytes: 0x807060504030201"
        );
        assert_eq!(lines[16], "  22: another exit");
    }

    #[test]
    fn vcpus_that_never_left_the_guest_are_counted() {
        let exits = Arc::new(Exits::default());
        exits.note(&VcpuExit::Hlt);
        let vcpus = [
            (0, Arc::default()),
            (1, Arc::default()),
            (2, exits),
            (3, Arc::default()),
        ];
        assert_eq!(
            History::of(vcpus.into_iter()).to_string(),
            "the last exits of vCPU 2, newest last:\n  0: another exit\nvCPUs without an exit: 3\n"
        );
    }
}
