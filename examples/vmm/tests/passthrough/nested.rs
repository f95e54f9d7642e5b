// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest does that assigns a device to a program of its own. The program is this test, which runs in the guest too.

use std::env;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hvkit_vmm::peer::program::Device;
use lab_kit::qtest::edu::*;
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lab::VICTIM;

/// Where the program maps its page: the guest has no memory there.
pub(crate) const IOVA: u64 = 0x7000_0000;
/// Where in it the device writes.
const WRITTEN: u64 = IOVA + 0x800;
/// Where the device was told to write, when the program has taken the page back.
const KEPT: u64 = 0x7e57_7e57_7e57_7e57;
const WORDS: [u64; 8] = [
    0x0123_4567_89ab_cdef,
    1,
    2,
    3,
    5,
    8,
    13,
    0xfedc_ba98_7654_3210,
];
/// How long an interrupt and a transfer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// `edu`, assigned to this process.
struct Edu {
    device: Device,
    interrupt: EventFd,
}

impl Edu {
    fn open(path: &Path) -> Self {
        let device = Device::open(path, IOVA, 0x1000).unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        device.vfio().enable_msi(vec![&interrupt]).unwrap();
        // Memory space and bus master.
        let command = 6u16.to_le_bytes();
        device
            .vfio()
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, &command, 4);
        Edu { device, interrupt }
    }

    fn read(&self, register: u64) -> u32 {
        let mut raw = [0; 4];
        self.device.vfio().region_read(0, &mut raw, register);
        u32::from_le_bytes(raw)
    }

    fn write(&self, register: u64, value: u64) {
        // VFIO of this kernel writes no more than four bytes at a time, which the device takes for all eight.
        let value = u32::try_from(value).unwrap();
        self.device
            .vfio()
            .region_write(0, &value.to_le_bytes(), register);
    }

    /// As many bytes as [`WORDS`] has. What the IOMMU stops is over too.
    fn transfer(&self, source: u64, destination: u64, command: u64) {
        self.write(DMA_SOURCE, source);
        self.write(DMA_DESTINATION, destination);
        self.write(DMA_COUNT, size_of_val(&WORDS) as u64);
        self.write(DMA_COMMAND, START | command);
        wait("the transfer is not over", || {
            (self.read(DMA_COMMAND) & START as u32 == 0).then_some(())
        });
    }

    fn set(&self, address: u64, words: [u64; 8]) {
        let memory = self.device.memory();
        memory.write_obj(words, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> [u64; 8] {
        let memory = self.device.memory();
        memory.read_obj(GuestAddress(address)).unwrap()
    }
}

/// What `look` finds in time.
fn wait<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(2));
    }
}

/// In the guest it drives the device of `HVKIT_DEVICE` by VFIO, and with `HVKIT_THEN=unmap` has it reach for what is not mapped.
#[test]
fn drives_edu() {
    let Some(path) = env::var_os("HVKIT_DEVICE") else {
        let error = Device::open("/nowhere".as_ref(), IOVA, 0x1000).unwrap_err();
        assert!(error.to_string().starts_with("--device: /nowhere: "));
        return;
    };
    let edu = Edu::open(path.as_ref());
    edu.write(LIVENESS, 0x1234_5678);
    assert_eq!(edu.read(LIVENESS), 0xedcb_a987);

    // Out of the page and into it, by its addresses, and an interrupt at the end.
    edu.set(IOVA, WORDS);
    edu.transfer(IOVA, BUFFER, 0);
    edu.transfer(BUFFER, WRITTEN, TO_MEMORY | TELL);
    let times = wait("no interrupt came", || edu.interrupt.read().ok());
    assert_eq!((times, edu.read(INTERRUPT_STATUS)), (1, TRANSFERRED));
    edu.write(INTERRUPT_ACKNOWLEDGE, TRANSFERRED.into());
    assert_eq!(edu.get(WRITTEN), WORDS);
    let interrupts = fs::read_to_string("/proc/interrupts").unwrap();
    let ours = interrupts.lines().find(|line| line.contains("vfio-msi"));
    // A line of its own, whatever the test's runner has said before it.
    println!("\n@test interrupts {}", ours.unwrap_or_default().trim());

    if env::var_os("HVKIT_THEN").is_none() {
        // What is mapped still goes with this process.
        return;
    }
    edu.device.unmap().unwrap();
    edu.set(WRITTEN, [KEPT; 8]);
    edu.transfer(BUFFER, WRITTEN, TO_MEMORY);
    assert_eq!(edu.get(WRITTEN), [KEPT; 8]);
    // An address that never was its own.
    edu.transfer(BUFFER, VICTIM, TO_MEMORY);
    println!("@test stopped");
}
