// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the machine can do: host pointers found once, every index and address checked.

use std::hint::black_box;
use std::ptr::{read_volatile, write_volatile};
use std::sync::atomic::{AtomicU16, Ordering};

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use crate::driver::{DEVICE, DRIVER, Driver, Layout, SIZE, Shape, TABLE};
use crate::harness::time;

struct Raw {
    table: *const u8,
    available: *const u8,
    used: *mut u8,
    next: u16,
    completed: u16,
    /// Packed: the wrap counters at `next` and `completed`, and what was taken and not given back.
    wraps: [bool; 2],
    in_flight: u16,
    regions: [(u64, u64, *mut u8); 2],
}

impl Raw {
    fn new(memory: &GuestMemoryMmap) -> Self {
        let at = |address| memory.get_host_address(GuestAddress(address)).unwrap();
        let mut regions = [(0, 0, std::ptr::null_mut()); 2];
        for (place, region) in regions.iter_mut().zip(memory.iter()) {
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap();
            *place = (region.start_addr().0, region.len(), host);
        }
        Self {
            table: at(TABLE),
            available: at(DRIVER),
            used: at(DEVICE),
            next: 0,
            completed: 0,
            wraps: [true; 2],
            in_flight: 0,
            regions,
        }
    }

    fn host(&self, address: u64, length: u32) -> Option<*mut u8> {
        for (start, size, host) in &self.regions {
            let offset = address.wrapping_sub(*start);
            if offset < *size {
                // SAFETY: inside the region, which is mapped.
                return (size - offset >= u64::from(length))
                    .then(|| unsafe { host.add(offset as usize) });
            }
        }
        None
    }

    /// Serves all that is available; returns how many chains.
    ///
    /// # Safety
    ///
    /// The memory that it was made from is still mapped.
    unsafe fn serve(&mut self) -> usize {
        // SAFETY: the areas have room for what is accessed: indices are masked or checked against SIZE.
        unsafe {
            let index = |area: *const u8| &*area.add(2).cast::<AtomicU16>();
            let available = index(self.available).load(Ordering::Acquire);
            let mut served = 0;
            while self.next != available {
                let slot = usize::from(self.next & (SIZE - 1));
                let head = read_volatile(self.available.add(4 + 2 * slot).cast::<u16>());
                let (mut at, mut left, mut written) = (head, SIZE, 0);
                loop {
                    if at >= SIZE || left == 0 {
                        return served;
                    }
                    left -= 1;
                    let words =
                        read_volatile(self.table.add(16 * usize::from(at)).cast::<[u64; 2]>());
                    let (length, flags, next) = (
                        words[1] as u32,
                        (words[1] >> 32) as u16,
                        (words[1] >> 48) as u16,
                    );
                    let Some(host) = self.host(words[0], length) else {
                        return served;
                    };
                    black_box((host, length, flags & 2));
                    if flags & 2 != 0 {
                        written += length;
                    }
                    if flags & 1 == 0 {
                        break;
                    }
                    at = next;
                }
                let slot = usize::from(self.completed & (SIZE - 1));
                let element = u64::from(head) | u64::from(written) << 32;
                write_volatile(self.used.add(4 + 8 * slot).cast::<u64>(), element);
                self.completed = self.completed.wrapping_add(1);
                self.next = self.next.wrapping_add(1);
                served += 1;
            }
            index(self.used).store(self.completed, Ordering::Release);
            served
        }
    }

    /// As [`serve`](Self::serve), from a packed ring.
    ///
    /// # Safety
    ///
    /// As there.
    unsafe fn serve_packed(&mut self) -> usize {
        const USED: u16 = 1 << 15;
        const AVAILABLE: u16 = 1 << 7;
        let on = |place: &mut u16, wrap: &mut bool| {
            *place += 1;
            if *place == SIZE {
                *place = 0;
                *wrap = !*wrap;
            }
        };
        let mut held: Option<(u16, u16)> = None;
        let mut served = 0;
        // SAFETY: the caller keeps the memory mapped. The ring has SIZE descriptors of 16 bytes from `table` on, and every
        // slot is below SIZE: `next` and `completed` begin at 0, `on` takes them back there, and `held` is one of them.
        unsafe {
            let at = |slot: u16| self.table.cast_mut().add(16 * usize::from(slot));
            loop {
                let flags = (*at(self.next).add(14).cast::<AtomicU16>()).load(Ordering::Acquire);
                let marks = if self.wraps[0] { AVAILABLE } else { USED };
                if flags & (AVAILABLE | USED) != marks {
                    break;
                }
                let (mut taken, mut written, mut flags) = (0, 0, flags);
                let id = loop {
                    if self.in_flight == SIZE {
                        return served;
                    }
                    self.in_flight += 1;
                    let words = read_volatile(at(self.next).cast::<[u64; 2]>());
                    if taken > 0 {
                        flags = (words[1] >> 48) as u16;
                    }
                    let length = words[1] as u32;
                    let Some(host) = self.host(words[0], length) else {
                        return served;
                    };
                    black_box((host, length, flags & 2));
                    if flags & 2 != 0 {
                        written += length;
                    }
                    taken += 1;
                    on(&mut self.next, &mut self.wraps[0]);
                    if flags & 1 == 0 {
                        break (words[1] >> 32) as u16;
                    }
                };
                let used = if self.wraps[1] { AVAILABLE | USED } else { 0 };
                let place = at(self.completed);
                if held.is_none() {
                    write_volatile(place.add(8).cast::<u32>(), written);
                    write_volatile(place.add(12).cast::<u16>(), id);
                    held = Some((self.completed, used));
                } else {
                    let word = u64::from(written) | u64::from(id) << 32 | u64::from(used) << 48;
                    write_volatile(place.add(8).cast::<u64>(), word);
                }
                for _ in 0..taken {
                    on(&mut self.completed, &mut self.wraps[1]);
                }
                self.in_flight -= taken;
                served += 1;
            }
            if let Some((slot, flags)) = held {
                (*at(slot).add(14).cast::<AtomicU16>()).store(flags, Ordering::Release);
            }
        }
        served
    }
}

pub fn case(
    memory: GuestMemoryMmap,
    shape: Shape,
    layout: Layout,
    rounds: usize,
) -> Box<dyn FnMut() -> f64> {
    Box::new(move || {
        let mut driver = Driver::new(memory.clone(), shape, layout);
        let mut raw = Raw::new(&memory);
        time(|| {
            for _ in 0..rounds {
                driver.post();
                // SAFETY: `memory` lives as long as this closure.
                let served = match layout {
                    Layout::Split => unsafe { raw.serve() },
                    // SAFETY: as above.
                    Layout::Packed => unsafe { raw.serve_packed() },
                };
                assert_eq!(served, shape.batch);
            }
        })
    })
}

/// Nobody serves: what the driver takes of all the others' time.
pub fn driver_alone(
    memory: GuestMemoryMmap,
    shape: Shape,
    layout: Layout,
    rounds: usize,
) -> Box<dyn FnMut() -> f64> {
    Box::new(move || {
        let mut driver = Driver::new(memory.clone(), shape, layout);
        time(|| {
            for _ in 0..rounds {
                driver.post();
                black_box(&mut driver);
            }
        })
    })
}
