// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk, read and written at random places, some requests at a time.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use crate::aio::{Buffer, Request, Slots};
use crate::mark::around;

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
/// Of the requests, one in so many is made before the first mark: the first ones pay for what later ones find.
const WARM: u64 = 8;

/// What kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Writes of 4 KiB.
    Write,
    /// Reads of 4 KiB.
    Read,
    /// As many reads as writes, of 512 bytes to 8 KiB.
    Mixed,
}

impl Job {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "write" => Self::Write,
            "read" => Self::Read,
            "mixed" => Self::Mixed,
            _ => return None,
        })
    }

    /// The next request to a disk of `length` bytes.
    fn next(self, random: &mut Random, length: u64) -> Request {
        let (unit, units, write) = match self {
            Self::Write => (PAGE, 1, true),
            Self::Read => (PAGE, 1, false),
            Self::Mixed => {
                let most = Buffer::LENGTH as u64 / SECTOR;
                (SECTOR, 1 + random.below(most), random.below(2) == 0)
            }
        };
        Request {
            write,
            offset: random.below(length / unit - units + 1) * unit,
            length: (unit * units) as usize,
        }
    }
}

/// Makes `requests` requests to `device`, `depth` at a time, between marks.
pub(crate) fn run(name: &str, device: &str, job: Job, depth: u64, requests: u64) -> Result<()> {
    let mut file = open(device)?;
    let length = file.seek(SeekFrom::End(0))?;
    if length < 1 << 20 || depth == 0 {
        return Err(Error::other("too small a disk, or no depth"));
    }
    let mut slots = Slots::new(file, depth as usize)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut make = |count| {
        serve(&mut slots, depth.min(count) as usize, count, || {
            job.next(&mut random, length)
        })
    };
    make(requests / WARM)?;
    around(name, || make(requests).map(|()| requests))
}

/// Keeps `depth` requests in flight until `count` were made and are done.
fn serve(
    slots: &mut Slots,
    depth: usize,
    count: u64,
    mut next: impl FnMut() -> Request,
) -> Result<()> {
    let mut left = count;
    let mut free: Vec<usize> = (0..depth).collect();
    let mut asked = Vec::with_capacity(depth);
    loop {
        asked.clear();
        while left > 0
            && let Some(slot) = free.pop()
        {
            asked.push((slot, next()));
            left -= 1;
        }
        slots.submit(&asked)?;
        if slots.in_flight() == 0 {
            return Ok(());
        }
        slots.wait(&mut free)?;
    }
}

fn open(device: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
}

/// Numbers without pattern, the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper half of a product: as even as 64 bits can be.
        ((u128::from(self.0) * u128::from(limit)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_inside_the_disk_and_of_every_size() {
        let length = 1 << 20;
        let mut random = Random(1);
        for job in [Job::Write, Job::Read, Job::Mixed] {
            let made: Vec<Request> = (0..20_000).map(|_| job.next(&mut random, length)).collect();
            assert!(
                made.iter()
                    .all(|made| made.offset + made.length as u64 <= length)
            );
            let unit = if job == Job::Mixed { SECTOR } else { PAGE };
            assert!(made.iter().all(|made| made.offset % unit == 0));
            let last = made.iter().map(|made| made.offset + made.length as u64);
            assert_eq!(last.max(), Some(length));
            let lengths: std::collections::BTreeSet<_> = made.iter().map(|m| m.length).collect();
            let writes = made.iter().filter(|made| made.write).count();
            match job {
                Job::Write => assert_eq!((lengths.len(), writes), (1, made.len())),
                Job::Read => assert_eq!((lengths.len(), writes), (1, 0)),
                Job::Mixed => {
                    assert_eq!(lengths, (1..=16).map(|sectors| sectors * 512).collect());
                    assert!(writes > 9_000 && writes < 11_000);
                }
            }
        }
    }
}
