// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host wants a device back: somebody unbinds it, or pulls it out.
//!
//! Whoever unbinds it waits until the device's file is closed, so the guest loses it. Linux,
//! `include/uapi/linux/vfio.h`, `VFIO_PCI_REQ_IRQ_INDEX`.

use crate::pci::FunctionAddress;
use rustix::event::epoll;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vmm_sys_util::eventfd::EventFd;

/// A device that the guest has, until the host wants it.
#[derive(Debug)]
struct Lent {
    name: String,
    at: FunctionAddress,
    event: EventFd,
}

/// The devices that the host may want back.
#[derive(Debug)]
pub struct Reclaim {
    /// Readable when any of them is wanted.
    any: OwnedFd,
    lent: Vec<Lent>,
}

impl Reclaim {
    /// No device.
    pub fn new() -> io::Result<Self> {
        Ok(Reclaim {
            any: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            lent: Vec::new(),
        })
    }

    /// One more, which the user calls `name` and the guest finds at `at`. The host writes `event` when it wants it back; reading
    /// that must not wait.
    pub fn lend(&mut self, name: &str, at: FunctionAddress, event: EventFd) -> io::Result<()> {
        epoll::add(
            &self.any,
            file(&event),
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )?;
        self.lent.push(Lent {
            name: name.to_owned(),
            at,
            event,
        });
        Ok(())
    }

    /// The next device that the host wants: what the user calls it, and where it is. It is told once.
    pub fn wanted(&mut self) -> Option<(String, FunctionAddress)> {
        let index = self.lent.iter().position(|l| l.event.read().is_ok())?;
        let Lent { name, at, event } = self.lent.swap_remove(index);
        // Nobody has the event's file but this: closed, it leaves the set.
        drop(event);
        Some((name, at))
    }
}

#[expect(unsafe_code, reason = "an event gives its file as a number")]
fn file(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the file is open for as long as the event, which is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

impl AsFd for Reclaim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    fn is_readable(reclaim: &Reclaim) -> bool {
        let mut fds = [PollFd::new(reclaim, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&at_once)).unwrap() == 1
    }

    #[test]
    fn each_device_that_is_wanted_is_told_of_once() {
        let mut reclaim = Reclaim::new().unwrap();
        let mut hosts = Vec::new();
        for (name, device) in [("disk", 1), ("card", 2), ("edu", 3)] {
            let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
            // As the kernel has it: the same counter.
            hosts.push(event.try_clone().unwrap());
            let at = FunctionAddress::of_device(device).unwrap();
            reclaim.lend(name, at, event).unwrap();
        }
        assert!(!is_readable(&reclaim));
        assert_eq!(reclaim.wanted(), None);
        hosts[2].write(1).unwrap();
        hosts[0].write(1).unwrap();
        assert!(is_readable(&reclaim));
        let mut told = [reclaim.wanted(), reclaim.wanted()].map(Option::unwrap);
        told.sort();
        let at = |device| FunctionAddress::of_device(device).unwrap();
        let expected = [("disk", at(1)), ("edu", at(3))];
        assert_eq!(told, expected.map(|(name, at)| (name.to_owned(), at)));
        assert_eq!(reclaim.wanted(), None);
        // The kernel asks again, until it has the device.
        let [first, second, third] = &hosts[..] else {
            unreachable!()
        };
        first.write(1).unwrap();
        third.write(1).unwrap();
        assert_eq!(reclaim.wanted(), None);
        second.write(1).unwrap();
        assert_eq!(reclaim.wanted(), Some(("card".to_owned(), at(2))));
    }
}
