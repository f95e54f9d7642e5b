// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crate's server with a device of a page of code: registers, DMA, MSI, and an area of its registers in a file.
//!
//! ```text
//!   BAR 0  0x00 identity   0x08 source   0x10 destination   0x18 count   0x20 a write copies, then vector 0 is raised
//!          0x1000..0x2000 in the file
//! ```

use crate::machine::{Machine, until};
use crate::support::Folder;
use hvkit_vmm::passthrough::{PhysicalFunction, hardware::Signals};
use hvkit_vmm::vfio_user::Given;
use hvkit_vmm::viommu::DmaTable;
use hvkit_vtd_iommu::emulation::Mapping;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use vfio_bindings::bindings::vfio::{vfio_region_info, vfio_region_sparse_mmap_area};
use vfio_user::{
    DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const IDENTITY: u64 = 0x1122_3344_5566_7788;

/// What the device was told, for the test to see.
#[derive(Debug, Default)]
struct Told {
    maps: Vec<(u64, u64, u64, bool)>,
    unmaps: Vec<(u64, u64)>,
    resets: u32,
    irqs: Vec<(u32, u32, u32, u32, usize)>,
}

struct Device {
    told: Arc<Mutex<Told>>,
    config: [u8; 256],
    words: [u64; 8],
    memory: Vec<(u64, u64, u64, File)>,
    event: Option<File>,
    page: File,
}

impl Device {
    fn copy(&self) -> Option<()> {
        let at = |address: u64, length: u64| {
            let found = self
                .memory
                .iter()
                .find(|(first, size, ..)| address >= *first && address - first + length <= *size);
            found.map(|(first, _, offset, file)| (file, offset + address - first))
        };
        let [_, source, destination, count, ..] = self.words;
        let mut data = vec![0; usize::try_from(count).unwrap().min(4096)];
        let (file, offset) = at(source, count)?;
        file.read_exact_at(&mut data, offset).unwrap();
        let (file, offset) = at(destination, count)?;
        file.write_all_at(&data, offset).unwrap();
        Some(())
    }
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        match region {
            7 => data.copy_from_slice(&self.config[from..from + data.len()]),
            0 if offset >= 0x1000 => self.page.read_exact_at(data, offset)?,
            0 => {
                let words: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
                data.copy_from_slice(&words[from..from + data.len()]);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        match region {
            7 => self.config[from..from + data.len()].copy_from_slice(data),
            0 => {
                let mut word = [0; 8];
                word[..data.len()].copy_from_slice(data);
                self.words[from / 8] = u64::from_le_bytes(word);
                if from == 0x20 {
                    self.copy();
                    if let Some(event) = &mut self.event {
                        io::Write::write_all(event, &1u64.to_ne_bytes())?;
                    }
                }
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        let maps = &mut self.told.lock().unwrap().maps;
        maps.push((address, size, offset, file.is_some()));
        if let Some(file) = file {
            self.memory.push((address, size, offset, file));
        }
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.told.lock().unwrap().unmaps.push((address, size));
        self.memory.retain(|(first, ..)| *first != address);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.told.lock().unwrap().resets += 1;
        self.words = [IDENTITY, 0, 0, 0, 0, 0, 0, 0];
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        files: Vec<File>,
    ) -> io::Result<()> {
        let told = (index, flags, start, count, files.len());
        self.told.lock().unwrap().irqs.push(told);
        self.event = files.into_iter().next();
        Ok(())
    }
}

/// Has the crate serve the device at `socket`; `seal`s the file of its registers.
fn serve(socket: &Path, seals: SealFlags) -> Arc<Mutex<Told>> {
    let told = Arc::<Mutex<Told>>::default();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let page: OwnedFd = memfd_create("registers", flags).unwrap();
    ftruncate(&page, 0x2000).unwrap();
    fcntl_add_seals(&page, seals).unwrap();
    let page = File::from(page);
    page.write_all_at(b"in a file", 0x1000).unwrap();
    let mut config = [0; 256];
    config[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
    // A list of capabilities: MSI with one vector and 64 bits of address, at 0x40.
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    config[0x40..0x44].copy_from_slice(&[5, 0, 0x80, 0]);
    let mut device = Device {
        told: Arc::clone(&told),
        config,
        words: [0; 8],
        memory: Vec::new(),
        event: None,
        page: page.try_clone().unwrap(),
    };
    let region = |index: u32| {
        let (size, flags) = match index {
            0 => (0x2000, 0xf),
            7 => (256, 3),
            _ => (0, 0),
        };
        let area = vfio_region_sparse_mmap_area {
            offset: 0x1000,
            size: 0x1000,
        };
        ServerRegion {
            region_info: vfio_region_info {
                index,
                flags,
                size,
                ..Default::default()
            },
            sparse_areas: (index == 0)
                .then_some(SparseArea { area })
                .into_iter()
                .collect(),
            mmap_fd: (index == 0).then_some(page.as_raw_fd()),
        }
    };
    let irq = |index: u32| IrqInfo {
        index,
        flags: 1,
        count: u32::from(index == 1),
    };
    let irqs = (0..5).map(irq).collect();
    let server = Server::new(socket, true, irqs, (0..9).map(region).collect()).unwrap();
    thread::spawn(move || {
        let _page = page;
        server.run(&mut device)
    });
    told
}

fn word(function: &dyn PhysicalFunction, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    function.bar_read(0, offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn a_device_of_the_crates_server_moves_data_and_interrupts() {
    let folder = Folder::new();
    let socket = folder.path("socket");
    let told = serve(&socket, SealFlags::empty());
    let machine = Machine::new();
    let function = machine.open(&socket).unwrap();
    assert_eq!(told.lock().unwrap().resets, 1);
    function.map_everything(Given::Files).unwrap();
    assert_eq!(told.lock().unwrap().maps, [(0, 4 << 20, 0, true)]);
    let mut id = [0; 4];
    function.config_read(0, &mut id);
    assert_eq!(id, [0x34, 0x12, 0xe8, 0x11]);
    assert_eq!(word(&function, 0), IDENTITY);
    assert_eq!(function.region(0).length, 0x2000);
    // The crate answers an error, and that is nothing there.
    let mut byte = [0];
    function.bar_read(3, 0, &mut byte);
    assert_eq!(byte, [0xff]);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    function
        .signal(Signals::Msi(std::slice::from_ref(&event)))
        .unwrap();
    machine
        .ram
        .write_slice(b"by the device", GuestAddress(0x1000))
        .unwrap();
    for (offset, value) in [(8, 0x1000u64), (0x10, 0x30_0000), (0x18, 13), (0x20, 1)] {
        function.bar_write(0, offset, &value.to_le_bytes());
    }
    until("the interrupt", || event.read().is_ok());
    let mut copied = [0; 13];
    machine
        .ram
        .read_slice(&mut copied, GuestAddress(0x30_0000))
        .unwrap();
    assert_eq!(&copied, b"by the device");
    function.signal(Signals::Off).unwrap();
    // MSI has index 1. Events as triggers, one of them; then no data, none.
    assert_eq!(
        told.lock().unwrap().irqs,
        [(1, 0x24, 0, 1, 1), (1, 0x21, 0, 0, 0)]
    );
    assert!(!function.is_gone());
}

#[test]
fn memory_comes_and_goes_as_a_unit_says() {
    let folder = Folder::new();
    let socket = folder.path("socket");
    let told = serve(&socket, SealFlags::empty());
    let machine = Machine::new();
    let function = machine.open(&socket).unwrap();
    let mapping = |first, target| Mapping {
        first,
        last: first + 0xfff,
        target,
        reads: true,
        writes: true,
    };
    let mut table = function.table(Given::Files);
    table.map(mapping(0xffff_f000, 0x5000)).unwrap();
    table.map(mapping(0x7_0000_0000, 0x6000)).unwrap();
    table.unmap(mapping(0xffff_f000, 0x5000)).unwrap();
    {
        let told = told.lock().unwrap();
        let maps = [
            (0xffff_f000, 0x1000, 0x5000, true),
            (0x7_0000_0000, 0x1000, 0x6000, true),
        ];
        assert_eq!(told.maps, maps);
        assert_eq!(told.unmaps, [(0xffff_f000, 0x1000)]);
    }
    // Without files the server is told all the same; a read comes after what was told.
    let mut table = function.table(Given::Nothing);
    table.map(mapping(0x9000, 0x6000)).unwrap();
    assert_eq!(word(&function, 0), IDENTITY);
    assert_eq!(
        told.lock().unwrap().maps.last(),
        Some(&(0x9000, 0x1000, 0, false))
    );
}

#[test]
fn registers_in_a_file_that_lasts_are_mapped() {
    let machine = Machine::new();
    let folder = Folder::new();
    let area = 0x1000..0x2000;
    for (name, seals, mapped) in [
        ("loose", SealFlags::empty(), &[][..]),
        ("sealed", SealFlags::SHRINK, std::slice::from_ref(&area)),
    ] {
        let socket = folder.path(name);
        let _told = serve(&socket, seals);
        let function = machine.open(&socket).unwrap();
        assert_eq!(function.region(0).mappable, mapped, "{name}");
        // Mapped or not, they can be read.
        let mut bytes = [0; 9];
        function.bar_read(0, 0x1000, &mut bytes);
        assert_eq!(&bytes, b"in a file");
        let pages = function.pages(0, area.clone()).unwrap();
        assert_eq!(pages.length(), 0x1000);
    }
}
