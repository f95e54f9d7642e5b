// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that a ring moves while their queue goes on.
//!
//! ```text
//!   asked --> Read:  start, copy to the guest, status
//!         --> Write: copy from the guest, start, [sync,] status
//!         --> Flush: sync, status
//! ```
//!
//! What moved in part goes on where it stopped.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::GuestMemory;

use super::request::{Asked, Caching, Disk, Refused};
use super::ring::{Operation, Ring, Ticket};
use super::transfer::{Direction, TransferError};
use crate::queue::{Chain, Reach};
use crate::serve::Served;

/// A ring, which outlives the worker that uses it: a confined process can make no other.
pub(super) type SharedRing = Arc<Mutex<Ring>>;

/// How often an operation that the host interrupted is started again.
const TRIES: u8 = 8;

/// What the ring does for one request.
#[derive(Debug)]
struct Moving {
    operation: Operation,
    offset: u64,
    length: usize,
    done: usize,
    tries: u8,
}

/// A request's chain, and what is under way for it.
#[derive(Debug, Default)]
struct Slot {
    chain: Chain,
    moving: Option<Moving>,
}

/// The requests of one queue that are under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    ring: SharedRing,
    source: RawFd,
    slots: Vec<Slot>,
}

/// What became of a request that could be under way.
pub(super) enum Begun {
    /// It is, under that number.
    Yes(usize),
    /// Not now: too many are.
    Full,
    /// It is none for the ring.
    No,
}

/// What is to be done with a request for which an operation has finished.
enum Next {
    /// That operation, from where the last has stopped.
    Start(Operation),
    /// It is to be answered.
    Answer(Result<(), io::Error>),
}

impl UnderWay {
    pub(super) fn new(ring: SharedRing) -> Self {
        let source = lock(&ring).source();
        Self {
            ring,
            source,
            slots: Vec::new(),
        }
    }

    /// Readable after something has finished; open for as long as the ring is.
    pub(super) fn source(&self) -> RawFd {
        self.source
    }

    /// Whether there is anything of this queue's worker. Of one before it, which could not wait for a host that has failed, the ring may
    /// have more.
    pub(super) fn any(&self) -> bool {
        let ours = self.slots.iter().any(|slot| slot.moving.is_some());
        ours && lock(&self.ring).under_way() > 0
    }

    /// As [`Ring::submit`].
    pub(super) fn submit(&self) -> io::Result<bool> {
        lock(&self.ring).submit()
    }

    /// As [`Ring::wait`].
    pub(super) fn wait(&self, patience: Duration) -> io::Result<()> {
        lock(&self.ring).wait(patience)
    }

    /// Begins what the chain asks, if the ring can do it.
    pub(super) fn begin<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        chain: &Chain,
        asked: &Asked<'_>,
    ) -> Begun {
        let mut ring = lock(&self.ring);
        let (operation, offset, length) = match asked {
            Asked::Move {
                direction: Direction::Read,
                offset,
                data,
            } => (Operation::Read, *offset, data.len()),
            Asked::Move {
                direction: Direction::Write,
                offset,
                data,
            } => (Operation::Write, *offset, data.len()),
            Asked::Flush => (Operation::Sync, 0, 0),
            Asked::Other => return Begun::No,
        };
        let Ok(length) = usize::try_from(length) else {
            return Begun::No;
        };
        // A move of nothing has nothing to wait for, and one too large for a buffer has none.
        if (length == 0 && operation != Operation::Sync) || length > super::ring::LARGEST {
            return Begun::No;
        }
        let Some(ticket) = ring.prepare(length) else {
            return Begun::Full;
        };
        let filled = match asked {
            Asked::Move {
                direction: Direction::Write,
                data,
                ..
            } => data.read(reach, ring.bytes(ticket, length)).ok() == Some(length),
            _ => true,
        };
        // A refusal is told of by who does without a ring.
        if !filled || ring.start(ticket, operation, offset, 0, length).is_err() {
            ring.release(ticket);
            return Begun::No;
        }
        let number = ticket.number();
        if self.slots.len() <= number {
            self.slots
                .resize_with(number.saturating_add(1), Slot::default);
        }
        if let Some(slot) = self.slots.get_mut(number) {
            slot.chain.copy_from(chain);
            slot.moving = Some(Moving {
                operation,
                offset,
                length,
                done: 0,
                tries: TRIES,
            });
        }
        Begun::Yes(number)
    }

    /// The next request that has been answered: its number, and what it came to.
    pub(super) fn finished<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        disk: &Disk<'_>,
    ) -> Option<(usize, Served)> {
        let mut ring = lock(&self.ring);
        loop {
            let (ticket, result) = ring.finished()?;
            let number = ticket.number();
            let Some(slot) = self.slots.get_mut(number) else {
                continue;
            };
            let Some(mut moving) = slot.moving.take() else {
                continue;
            };
            let result = match moving.next(result, disk.cache.caching()) {
                Next::Start(operation) => match moving.start(&mut ring, ticket, operation) {
                    Ok(()) => {
                        slot.moving = Some(moving);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Next::Answer(result) => result,
            };
            let answered = match result {
                Ok(()) if moving.operation == Operation::Read => {
                    let (_, to_guest) = disk.parts(&slot.chain);
                    let bytes = ring.bytes(ticket, moving.length);
                    match to_guest.write(reach, bytes) {
                        Ok(filled) => Ok(filled as u64),
                        Err(error) => Err(Refused::from(TransferError::from(error))),
                    }
                }
                Ok(()) => Ok(0),
                Err(error) => Err(Refused::from(error)),
            };
            ring.release(ticket);
            return Some((number, disk.conclude(reach, &slot.chain, answered)));
        }
    }
}

impl Moving {
    /// What comes after an operation that moved so many bytes.
    fn next(&mut self, result: io::Result<usize>, caching: Caching) -> Next {
        match result {
            Err(error) => {
                let again = matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                );
                match self.tries.checked_sub(1) {
                    Some(tries) if again => {
                        self.tries = tries;
                        Next::Start(self.operation)
                    }
                    _ => Next::Answer(Err(error)),
                }
            }
            Ok(_) if self.operation == Operation::Sync => Next::Answer(Ok(())),
            // Somebody has shortened the image.
            Ok(0) => Next::Answer(Err(match self.operation {
                Operation::Write => io::ErrorKind::WriteZero.into(),
                _ => io::ErrorKind::UnexpectedEof.into(),
            })),
            Ok(moved) => {
                self.done = self.done.saturating_add(moved);
                if self.done < self.length {
                    return Next::Start(self.operation);
                }
                match (self.operation, caching) {
                    (Operation::Write, Caching::WriteThrough) => Next::Start(Operation::Sync),
                    _ => Next::Answer(Ok(())),
                }
            }
        }
    }

    fn start(&mut self, ring: &mut Ring, ticket: Ticket, operation: Operation) -> io::Result<()> {
        self.operation = operation;
        let at = self.offset.checked_add(self.done as u64);
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        let from = match operation {
            Operation::Sync => self.length,
            _ => self.done,
        };
        ring.start(ticket, operation, at, from, self.length)
    }
}

fn lock(ring: &SharedRing) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use super::super::ring::tests::ring;
    use super::*;

    fn moving(operation: Operation, done: usize) -> Moving {
        Moving {
            operation,
            offset: 0x1000,
            length: 4096,
            done,
            tries: TRIES,
        }
    }

    /// What a real file seldom does: a move in parts, an interruption, an end before the end.
    #[test]
    fn what_moved_in_part_goes_on_and_what_fails_ends() {
        use Caching::{WriteBack, WriteThrough};
        use Operation::{Read, Sync, Write};

        let mut part = moving(Read, 0);
        assert!(matches!(part.next(Ok(512), WriteBack), Next::Start(Read)));
        assert_eq!(part.done, 512);
        assert!(matches!(
            part.next(Ok(4096 - 512), WriteBack),
            Next::Answer(Ok(()))
        ));

        let last = |operation, caching| moving(operation, 0).next(Ok(4096), caching);
        assert!(matches!(last(Write, WriteBack), Next::Answer(Ok(()))));
        assert!(matches!(last(Write, WriteThrough), Next::Start(Sync)));
        assert!(matches!(last(Read, WriteThrough), Next::Answer(Ok(()))));
        assert!(matches!(
            moving(Sync, 4096).next(Ok(0), WriteThrough),
            Next::Answer(Ok(()))
        ));

        let ended = |operation| match moving(operation, 512).next(Ok(0), WriteBack) {
            Next::Answer(Err(error)) => error.kind(),
            _ => panic!("nothing moved, and it goes on"),
        };
        assert_eq!(ended(Read), io::ErrorKind::UnexpectedEof);
        assert_eq!(ended(Write), io::ErrorKind::WriteZero);

        let mut tried = moving(Read, 0);
        let interrupted = || Err(io::ErrorKind::Interrupted.into());
        for _ in 0..TRIES {
            assert!(matches!(
                tried.next(interrupted(), WriteBack),
                Next::Start(Read)
            ));
        }
        assert!(matches!(
            tried.next(interrupted(), WriteBack),
            Next::Answer(Err(_))
        ));
    }

    /// Of a worker that could not wait for the host, the ring keeps what is under way. Nobody else is to wait for it.
    #[test]
    fn what_an_earlier_worker_left_in_the_ring_is_not_waited_for() {
        let (nothing, mut pipe) = io::pipe().unwrap();
        // A read of which the end does not come.
        let Some(mut ring) = ring(&File::from(OwnedFd::from(nothing)), 2) else {
            return;
        };
        let ticket = ring.prepare(512).unwrap();
        ring.start(ticket, Operation::Read, 0, 0, 512).unwrap();
        assert!(ring.submit().unwrap());
        let ring = Arc::new(Mutex::new(ring));
        let mut first = UnderWay::new(Arc::clone(&ring));
        let second = UnderWay::new(Arc::clone(&ring));
        first.slots.resize_with(2, Slot::default);
        first.slots[ticket.number()].moving = Some(moving(Operation::Read, 0));
        assert!(first.any());
        assert!(!second.any());
        // None is left when the kernel has nothing any more.
        pipe.write_all(&[0; 512]).unwrap();
        let begun = Instant::now();
        while lock(&ring).finished().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "not finished");
        }
        assert!(!first.any());
    }
}
