// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The capability list of a device, whatever the device says.

/// Status register, low byte: there is a list. PCI, "Device Status".
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const FIRST: usize = 0x34;
/// No capability lies inside the header.
const HEADER_END: u8 = 0x40;

/// PCI Express capability. PCI Express, "PCI Express Capability Structure".
pub(super) const EXPRESS: u8 = 0x10;
/// Vendor-specific; its third byte is its length.
pub(super) const VENDOR: u8 = 0x09;

/// A capability and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) offset: u8,
    pub(super) id: u8,
}

/// The capabilities of a configuration space, in ascending order of their offsets. A list that
/// leads into the header or in a circle ends there.
///
/// PCI Local Bus 3.0, "Capabilities List".
pub(super) fn list(config: &[u8; 256]) -> Vec<Capability> {
    let mut found: Vec<Capability> = Vec::new();
    if config[STATUS] & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut offset = config[FIRST] & !3;
    while offset >= HEADER_END && found.iter().all(|c| c.offset != offset) {
        let behind = config.get(usize::from(offset)..).unwrap_or_default();
        let [id, next, ..] = *behind else {
            break;
        };
        found.push(Capability { offset, id });
        offset = next & !3;
    }
    found.sort_by_key(|capability| capability.offset);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bytes: &[(usize, u8)]) -> [u8; 256] {
        let mut config = [0; 256];
        config[STATUS] = 0x10;
        for &(at, byte) in bytes {
            config[at] = byte;
        }
        config
    }

    fn offsets(config: &[u8; 256]) -> Vec<(u8, u8)> {
        list(config).iter().map(|c| (c.offset, c.id)).collect()
    }

    #[test]
    fn the_list_is_followed_and_sorted() {
        let chain = [
            (0x34, 0x80),
            (0x80, 0x10),
            (0x81, 0x43),
            (0x40, 0x11),
            (0x41, 0x60),
        ];
        let mut space = config(&chain);
        space[0x60] = 0x05;
        // The low bits of a link mean nothing.
        assert_eq!(offsets(&space), [(0x40, 0x11), (0x60, 0x05), (0x80, 0x10)]);
        space[STATUS] = 0;
        assert!(offsets(&space).is_empty());
    }

    #[test]
    fn lists_that_do_not_end_do() {
        assert_eq!(offsets(&config(&[(0x34, 0x40), (0x41, 0x40)])).len(), 1);
        let circle = [(0x34, 0x40), (0x41, 0x50), (0x51, 0x40)];
        assert_eq!(offsets(&config(&circle)).len(), 2);
        assert!(offsets(&config(&[(0x34, 0x3c)])).is_empty());
        // Every dword links to the next.
        let mut space = [0xff; 256];
        for at in (0x40..0xfc).step_by(4) {
            space[at + 1] = at as u8 + 4;
        }
        space[FIRST] = 0x40;
        assert_eq!(offsets(&space).len(), 48);
    }
}
