// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel files with headers that no linker writes.

#[path = "support/bzimage.rs"]
mod bzimage;
#[path = "support/elf.rs"]
mod elf;

use bzimage::bzimage;
use elf::kernel;
use hvkit_vmm::boot::{self, BootError, Payload};
use hvkit_vmm::machine::address_map::AddressMap;
use hvkit_vmm::machine::memory;
use std::fs;
use tempfile::TempDir;

/// SplitMix64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A kernel file is data from a stranger: whatever its headers say, loading it ends with an entry
/// point or an error.
#[test]
fn no_kernel_file_breaks_the_loader() {
    /// Values that wrap, that are one too many, or that are merely large.
    const EDGES: [u64; 6] = [0, 1, 0x7fff_ffff, 1 << 63, u64::MAX - 4, u64::MAX];
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("image");
    let map = AddressMap::new(16 << 20, 40).unwrap();
    let ram = memory::reserve(&map).unwrap();
    let mut numbers = Numbers(1);
    let (mut loaded, mut refused) = (0, 0);
    for case in 0..1500 {
        let mut bytes = match case % 2 {
            0 => kernel(&[0xf4]),
            _ => bzimage(16, 0x1000),
        };
        // Headers are where it matters: the first 200 bytes of the one, 0x1f1 up of the other.
        let start = if case % 2 == 0 { 4 } else { 0x1f1 };
        for _ in 0..=numbers.below(3) {
            let at = start + numbers.below(196 - start.min(8));
            if at + 8 > bytes.len() {
                continue;
            }
            match numbers.below(3) {
                0 => bytes[at] = numbers.next() as u8,
                1 => {
                    let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
                    bytes[at & !7..(at & !7) + 8].copy_from_slice(&edge);
                }
                _ => bytes.truncate(at + 8),
            }
        }
        fs::write(&path, &bytes).unwrap();
        let payload = Payload {
            kernel: &path,
            initramfs: Some(&path),
            command_line: "",
            rsdp: None,
        };
        match boot::load(&payload, &map, &ram) {
            Ok(_) => loaded += 1,
            Err(BootError::Memory(error)) => panic!("case {case}: {error}"),
            Err(_) => refused += 1,
        }
    }
    // Neither all nor none: the cases reach both ends.
    assert!(
        loaded > 100 && refused > 500,
        "{loaded} loaded, {refused} refused"
    );
}
