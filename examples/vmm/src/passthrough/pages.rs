// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stretch of a function's registers in this process's address space, to be mapped on into the guest.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::BorrowedFd;

/// Mapped pages. Nothing in this process reads or writes them.
#[derive(Debug)]
pub struct Pages {
    address: usize,
    length: usize,
}

impl Pages {
    /// Maps `length` bytes of `file` at `offset`, both multiples of a page.
    #[expect(unsafe_code, reason = "a mapping of a device's registers")]
    pub fn map(file: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let place = std::ptr::null_mut();
        // SAFETY: without a fixed address the kernel puts the new mapping where there was none, so
        // no memory of ours changes. Nobody gets a reference into it: `Pages` gives out its address
        // as a number only.
        let address = unsafe { mmap(place, length, access, MapFlags::SHARED, file, offset) }?;
        Ok(Pages {
            address: address as usize,
            length,
        })
    }

    /// Where it is in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length as u64
    }
}

impl Drop for Pages {
    #[expect(unsafe_code, reason = "the end of the mapping")]
    fn drop(&mut self) {
        let address = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is the one that `map` made, and only this drop unmaps it. KVM, which is
        // the only other user, keeps an `Arc` of this value for as long as it knows the range.
        let unmapped = unsafe { munmap(address, self.length) };
        if let Err(error) = unmapped {
            log::error!("registers stay mapped: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn is_mapped(address: u64) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let (first, rest) = line.split_once('-').unwrap();
            let (end, _) = rest.split_once(' ').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            number(first) <= address && address < number(end) && line.contains("(deleted)")
        })
    }

    #[test]
    fn pages_are_there_until_they_are_dropped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let pages = Pages::map(file.as_fd(), 0x1000, 0x2000).unwrap();
        let address = pages.address();
        assert_eq!(pages.length(), 0x2000);
        assert!(is_mapped(address) && is_mapped(address + 0x1fff));
        drop(pages);
        assert!(!is_mapped(address));
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert!(Pages::map(file.as_fd(), 0, 0).is_err());
        assert!(Pages::map(file.as_fd(), 1, 0x1000).is_err());
    }
}
