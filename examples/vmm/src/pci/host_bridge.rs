// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function at 00:00.0: a host bridge that says it is one, and nothing else.
//!
//! Guests look for it to believe in configuration mechanism #1.

use hvkit_virtio_devices::pci::{PciFunction, Window};

/// Red Hat's generic PCI Express host bridge: no guest has a workaround for it.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0008;
/// Base class 06h "bridge", sub-class 00h "host bridge". PCI, "Class Codes".
const CLASS: u32 = 0x06_00_00;

/// The header's first 16 bytes; the rest of the function is zero. PCI, "Configuration Space
/// Organization".
const HEADER: [u32; 4] = [
    (DEVICE as u32) << 16 | VENDOR as u32,
    0,
    // Revision 0.
    CLASS << 8,
    // Header type 0.
    0,
];

/// A host bridge without registers.
#[derive(Debug, Default)]
pub struct HostBridge;

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let bytes = HEADER.iter().flat_map(|word| word.to_le_bytes());
        let mut from = bytes.skip(offset.into());
        data.fill_with(|| from.next().unwrap_or(0));
    }

    /// Nothing here is writable: even the command register's bits may be hardwired.
    fn config_write(&mut self, _offset: u16, _data: &[u8]) {}

    fn windows(&self) -> Vec<Window> {
        Vec::new()
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_a_host_bridges() {
        let read = |offset: u16| {
            let mut data = [0; 4];
            HostBridge.config_read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(0x00), 0x0008_1b36);
        assert_eq!(read(0x08), 0x0600_0000);
        // Single function, type 0; no BAR, no capability list, no interrupt pin.
        for offset in [0x04, 0x0c, 0x10, 0x24, 0x34, 0x3c, 0x100, 0xffc] {
            assert_eq!(read(offset), 0, "{offset:#x}");
        }
        let mut class = [0; 2];
        HostBridge.config_read(0x0a, &mut class);
        assert_eq!(class, [0x00, 0x06]);
    }

    #[test]
    fn writes_change_nothing_and_it_has_no_window() {
        HostBridge.config_write(0x04, &[0xff; 4]);
        let mut data = [0; 4];
        HostBridge.config_read(0x04, &mut data);
        assert_eq!(data, [0; 4]);
        assert!(HostBridge.windows().is_empty());
    }
}
