// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that knows what it may be asked to show, and where.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::vhost_user::to_guest::{Held, Host, Mapping};
use rustix::fs::{SealFlags, fcntl_get_seals};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the window.
pub(super) const WINDOW: u64 = 0x40_0000;

/// Where something is shown, and its bytes.
pub(super) type Places = Arc<Mutex<Vec<(u64, u64)>>>;

/// A host that knows what it may be asked.
#[derive(Default)]
pub(super) struct FakeHost {
    pub(super) window: Mutex<Option<u64>>,
    pub(super) shown: Places,
    doorbells: Places,
    pub(super) refuses: AtomicBool,
}

/// Adds `length` bytes at `address` to what is there, where nothing is.
fn hold(places: &Places, address: u64, length: u64) -> Held {
    let mut there = places.lock().expect("no panic");
    let free = |(at, size): &(u64, u64)| address + length <= *at || at + size <= address;
    assert!(there.iter().all(free), "two at {address:#x}: {there:x?}");
    there.push((address, length));
    let places = Arc::clone(places);
    Held::new(move || {
        let mut there = places.lock().expect("no panic");
        there.retain(|place| *place != (address, length));
    })
}

impl FakeHost {
    fn asked(&self) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        let none = |places: &Places| places.lock().expect("no panic").is_empty();
        none(&self.shown) && none(&self.doorbells)
    }

    fn inside(&self, address: u64, length: u64) {
        let window = self.window.lock().expect("no panic");
        let begin = window.expect("nothing is shown without a window");
        let end = begin + WINDOW;
        assert!(
            begin <= address && address + length <= end,
            "{address:#x} is outside the window"
        );
    }
}

struct Piece {
    host: Arc<FakeHost>,
    length: u64,
}

/// The host, as the device has it.
pub(super) struct Handle(pub(super) Arc<FakeHost>);

impl Host for Handle {
    fn map(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<Box<dyn Mapping>> {
        assert!(length > 0 && (offset | length) & 0xfff == 0, "whole pages");
        let seals = fcntl_get_seals(file).expect("a file in memory");
        assert!(
            seals.contains(SealFlags::SHRINK),
            "it could be made shorter"
        );
        let size = File::from(file.try_clone_to_owned()?).metadata()?.size();
        assert!(offset + length <= size, "behind the end of its file");
        self.0.asked()?;
        Ok(Box::new(Piece {
            host: Arc::clone(&self.0),
            length,
        }))
    }

    fn ring(&self, address: u64, _event: &EventFd) -> io::Result<Held> {
        self.0.inside(address, 4);
        self.0.asked()?;
        Ok(hold(&self.0.doorbells, address, 4))
    }
}

impl Mapping for Piece {
    fn show(&self, address: u64) -> io::Result<Held> {
        self.host.inside(address, self.length);
        self.host.asked()?;
        Ok(hold(&self.host.shown, address, self.length))
    }
}
