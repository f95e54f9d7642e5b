// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel files of any bytes: loading one ends with an entry point or an error.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use hvkit_vmm::boot::{self, Payload};
use hvkit_vmm::machine::address_map::AddressMap;
use hvkit_vmm::machine::memory::{self, GuestRam};

/// Bytes of guest memory.
const MEMORY: u64 = 8 << 20;
/// The longest file: headers are where it matters.
const LONGEST: usize = 64 << 10;

/// What all inputs share.
struct Bench {
    map: AddressMap,
    ram: GuestRam,
    path: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let map = AddressMap::new(MEMORY, 40).expect("a small machine");
        let ram = memory::reserve(&map).expect("memory");
        let folder = if PathBuf::from("/dev/shm").is_dir() {
            PathBuf::from("/dev/shm")
        } else {
            std::env::temp_dir()
        };
        let name = format!("hvkit-boot-image-{}", std::process::id());
        Bench {
            map,
            ram,
            path: folder.join(name),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Nothing is lost by a file that stays.
        let _ = fs::remove_file(&self.path);
    }
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

/// The file as a kernel, alone and with itself as the initial file system. A file that loads does so twice alike.
pub fn run(data: &[u8]) {
    let data = &data[..data.len().min(LONGEST)];
    BENCH.with_borrow(|bench| {
        fs::write(&bench.path, data).expect("room for a small file");
        let load = |with_initramfs: bool| {
            let payload = Payload {
                kernel: &bench.path,
                initramfs: with_initramfs.then_some(bench.path.as_path()),
                command_line: "console=ttyS0",
                rsdp: Some(0xe_0000),
            };
            boot::load(&payload, &bench.map, &bench.ram)
        };
        let (first, second) = (load(false), load(false));
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        if let Err(error) = load(true) {
            assert!(!error.to_string().is_empty());
        }
    });
}
