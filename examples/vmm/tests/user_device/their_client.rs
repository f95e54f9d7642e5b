// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm serve --protocol vfio-user`, confined as it is, and a driver of bytes behind the crate's client, then behind
//! ours: registers, requests, interrupts, memory that is taken back, reset.

use crate::machine::{Machine, until};
use crate::support::{Folder, run, vmm};
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{Driver, Ring, TestFunction};
use hvkit_vmm::passthrough::PhysicalFunction;
use hvkit_vmm::passthrough::hardware::Signals;
use hvkit_vmm::vfio_user::{Given, UserFunction};
use hvkit_vmm::viommu::DmaTable;
use hvkit_vtd_iommu::emulation::Mapping;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Stdio};
use vfio_user::Client;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const DATA: u64 = 0x10_0000;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;

/// The crate's client as a function.
struct Theirs(Client);

impl TestFunction for Theirs {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.region_read(CONFIG, offset.into(), data).unwrap();
    }
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.0.region_write(CONFIG, offset.into(), data).unwrap();
    }
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.0.region_read(bar.into(), offset, data).unwrap();
    }
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.0.region_write(bar.into(), offset, data).unwrap();
    }
}

/// Ours, likewise.
struct Ours(UserFunction);

impl TestFunction for Ours {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.config_read(offset, data);
    }
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.0.config_write(offset, data);
    }
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.0.bar_read(bar, offset, data);
    }
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.0.bar_write(bar, offset, data);
    }
}

/// `vmm serve`, ended with this.
pub(crate) struct Serving(Child);

impl Serving {
    pub(crate) fn start(image: &Path, socket: &Path) -> Self {
        let mut command = vmm();
        command
            .args(["serve", "--protocol", "vfio-user", "--disk"])
            .arg(image)
            .arg("--socket")
            .arg(socket)
            .stderr(Stdio::inherit());
        let serving = Serving(command.spawn().unwrap());
        until("somebody listens", || socket.exists());
        serving
    }

    /// How it ends by itself.
    pub(crate) fn status(mut self) -> Option<i32> {
        let mut status = None;
        until("its end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sectors that differ.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 512 * 7 + at % 251) as u8)
        .collect()
}

fn start<F: TestFunction>(driver: &mut Driver<F>, machine: &Machine) -> Ring {
    // VIRTIO_F_ACCESS_PLATFORM is offered: its addresses are those that it was told of.
    assert_ne!(driver.offered() >> 33 & 1, 0);
    driver.negotiate(u64::MAX);
    let ring = driver.queue(0, &machine.ram, 0x1_0000, 64);
    assert_eq!(driver.set_status(0xf), 0xf);
    ring
}

/// Reads a sector: what the device says, and what is there then.
fn read<F: TestFunction>(
    driver: &mut Driver<F>,
    machine: &Machine,
    ring: &mut Ring,
    sector: u64,
) -> (u8, Vec<u8>) {
    let put = |at, bytes: &[u8]| machine.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    let mut header = [0; 16];
    header[8..].copy_from_slice(&sector.to_le_bytes());
    put(HEADER, &header);
    put(STATUS, &[0xee]);
    put(DATA, &[0; 512]);
    ring.submit(&[
        Readable(HEADER, 16),
        Writable(DATA, 512),
        Writable(STATUS, 1),
    ]);
    driver.kick(0);
    until("the request's end", || ring.take().is_some());
    let mut data = vec![0; 512];
    machine
        .ram
        .read_slice(&mut data, GuestAddress(DATA))
        .unwrap();
    let status: u8 = machine.ram.read_obj(GuestAddress(STATUS)).unwrap();
    (status, data)
}

#[test]
fn the_crates_client_drives_a_disk_that_we_serve() {
    let folder = Folder::new();
    let contents = pattern(1 << 16);
    let (image, socket) = (folder.file("image", &contents), folder.path("socket"));
    let serving = Serving::start(&image, &socket);
    let machine = Machine::new();
    let mut client = Client::new(&socket).unwrap();
    let region = machine.ram.iter().next().unwrap();
    let file = region.file_offset().unwrap();
    let fd = file.file().as_raw_fd();
    client.dma_map(file.start(), 0, region.len(), fd).unwrap();
    let irq = client.get_irq_info(MSIX).unwrap();
    assert_eq!((irq.flags & 1, irq.count), (1, 2));
    let events: Vec<_> = (0..2)
        .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
        .collect();
    let fds: Vec<_> = events.iter().map(AsRawFd::as_raw_fd).collect();
    // Events as triggers.
    client.set_irqs(MSIX, 0x24, 0, 2, &fds).unwrap();
    // One region of registers, and configuration space.
    let sizes: Vec<u64> = (0..9).map(|at| client.region(at).unwrap().size).collect();
    assert!(
        sizes[0].is_power_of_two() && sizes[0] >= 0x1000,
        "{sizes:x?}"
    );
    assert_eq!(sizes[1..], [0, 0, 0, 0, 0, 0, 256, 0]);
    let mut driver = Driver::probe(Theirs(client));
    assert_eq!(driver.get(driver.device, 0, 8), 128);
    for _ in 0..2 {
        let mut ring = start(&mut driver, &machine);
        for sector in [0u64, 77, 127] {
            let at = sector as usize * 512;
            let read = read(&mut driver, &machine, &mut ring, sector);
            assert_eq!(read, (0, contents[at..at + 512].to_vec()), "{sector}");
            until("the interrupt", || events[1].read().is_ok());
        }
        // As after power-on, but for what it was told of memory.
        driver.function.0.reset().unwrap();
        assert_eq!(driver.config(4, 2), 0);
        driver.function.0.set_irqs(MSIX, 0x24, 0, 2, &fds).unwrap();
        driver = Driver::probe(driver.function);
        assert_eq!(driver.status(), 0);
    }
    drop(driver);
    assert_eq!(serving.status(), Some(0));
}

#[test]
fn our_client_drives_a_disk_that_we_serve_and_sees_its_end() {
    let folder = Folder::new();
    let contents = pattern(1 << 16);
    let (image, socket) = (folder.file("image", &contents), folder.path("socket"));
    let mut serving = Serving::start(&image, &socket);
    let machine = Machine::new();
    let function = machine.open(&socket).unwrap();
    function.map_everything(Given::Files).unwrap();
    let events: Vec<_> = (0..2)
        .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
        .collect();
    function.signal(Signals::Msix(&events)).unwrap();
    let mut driver = Driver::probe(Ours(function));
    let mut ring = start(&mut driver, &machine);
    let (status, data) = read(&mut driver, &machine, &mut ring, 5);
    assert_eq!((status, &data[..]), (0, &contents[5 * 512..6 * 512]));
    until("the interrupt", || events[1].read().is_ok());
    // Memory that is not given: this one takes none of which it has no file.
    let mut table = driver.function.0.table(Given::Nothing);
    let piece = Mapping {
        first: 1 << 40,
        last: (1 << 40) + 0xfff,
        ..Mapping::IDENTITY
    };
    table.map(piece).unwrap();
    assert_eq!(read(&mut driver, &machine, &mut ring, 6).0, 0);
    serving.0.kill().unwrap();
    until("it is gone", || driver.function.0.is_gone());
    // All ones from now on, and nothing is waited for.
    assert_eq!(driver.config(0, 4), u32::MAX);
    assert_eq!(driver.status(), 0xff);
    driver.kick(0);
    assert!(driver.function.0.reset().is_err());
    assert!(driver.function.0.signal(Signals::Msix(&events)).is_err());
}

#[test]
fn protocols_that_there_are_not() {
    let mut command = vmm();
    command.args([
        "serve",
        "--disk",
        "d",
        "--socket",
        "s",
        "--protocol",
        "nvme-of",
    ]);
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    assert!(stderr.contains("vhost-user, vfio-user"), "{stderr}");
}
