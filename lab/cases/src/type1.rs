// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `cargo xtask type1` asks the hypervisor of `examples/type1`: the first byte says what; for Linux, 64 bytes and the
//! command line. And how a guest tells the hypervisor, or nobody, how far it is.

/// Take the tour.
pub const TOUR: u8 = b't';
/// Let guests reach for the hypervisor in every way, and their processor be reset.
pub const REACH: u8 = b'r';
/// Fault in the hypervisor itself.
pub const FAULT: u8 = b'f';
/// Boot Linux.
pub const LINUX: u8 = b'l';

/// CPUID leaf that a guest's program executes to mark a point of its work, with the mark's number in ECX. A processor has
/// no such leaf and answers as for the highest it has, so it does no harm where there is no hypervisor.
pub const MARK: u32 = 0x4856_4b00;
/// The port that a mark's number is also written to, where the program under the guest hears of ports only: KVM's.
pub const MARK_PORT: u16 = 0x0700;
/// The parts of the work; mark N comes before part N, and one more after the last.
pub const PARTS: [&str; 5] = [
    "processes",
    "copies on write",
    "files",
    "mappings",
    "switches",
];
/// How many marks there are.
pub const MARKS: usize = PARTS.len() + 1;

/// How the guest's memory is virtualized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// Not at all: the kernel is entered without a hypervisor.
    None,
    /// Extended page tables.
    Ept,
    /// Shadow page tables, EPT off.
    Shadow,
}

impl Paging {
    const ALL: [Self; 3] = [Self::None, Self::Ept, Self::Shadow];

    const fn number(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Ept => 1,
            Self::Shadow => 2,
        }
    }
}

/// What to boot, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linux {
    /// With what kind of paging.
    pub paging: Paging,
    /// Where the bzImage lies, and its length.
    pub kernel: (u64, u64),
    /// Where the initramfs lies, and its length.
    pub initramfs: (u64, u64),
    /// Bytes of memory.
    pub memory: u64,
    /// The port of the chipset's power-management control register, whose "sleep enable" ends the guest.
    pub power_port: u16,
    /// Bytes of the command line, which follows.
    pub command_line: u16,
    /// How many bytes of paging events to record, from the first mark on; 0 for none. Under shadow paging.
    pub trace: u64,
}

impl Linux {
    /// Bytes before the command line.
    pub const BYTES: usize = 64;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let ports = u64::from(self.power_port) | u64::from(self.command_line) << 16;
        let words = [
            u64::from(LINUX) | self.paging.number() << 8,
            self.kernel.0,
            self.kernel.1,
            self.initramfs.0,
            self.initramfs.1,
            self.memory,
            ports,
            self.trace,
        ];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// From bytes; `None` if they ask for something else.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut words = [0; 8];
        for (word, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*from);
        }
        let [
            asked,
            kernel,
            kernel_bytes,
            initramfs,
            initramfs_bytes,
            memory,
            ports,
            trace,
        ] = words;
        if asked as u8 != LINUX {
            return None;
        }
        let paging = Paging::ALL.into_iter().find(|p| p.number() == asked >> 8)?;
        Some(Self {
            paging,
            kernel: (kernel, kernel_bytes),
            initramfs: (initramfs, initramfs_bytes),
            memory,
            power_port: ports as u16,
            command_line: (ports >> 16) as u16,
            trace,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_where_the_hypervisor_looks() {
        let order = Linux {
            paging: Paging::Shadow,
            trace: 0x7777,
            kernel: (0x800_0000, 0xd8_7000),
            initramfs: (0xa00_0000, 0x12_3456),
            memory: 256 << 20,
            power_port: 0xb004,
            command_line: 0x55,
        };
        let bytes = order.to_bytes();
        assert_eq!(bytes[..8], [LINUX, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], 0x800_0000_u64.to_le_bytes());
        assert_eq!(bytes[32..40], 0x12_3456_u64.to_le_bytes());
        assert_eq!(bytes[48..52], [0x04, 0xb0, 0x55, 0]);
        assert_eq!(bytes[56..], 0x7777_u64.to_le_bytes());
        assert_eq!(Linux::from_bytes(&bytes), Some(order));
    }

    #[test]
    fn other_orders_are_not_for_linux() {
        let mut bytes = [0; Linux::BYTES];
        assert_eq!(Linux::from_bytes(&bytes), None);
        bytes[0] = TOUR;
        assert_eq!(Linux::from_bytes(&bytes), None);
        bytes = [b'l'; Linux::BYTES];
        assert_eq!(Linux::from_bytes(&bytes), None);
        bytes[..8].copy_from_slice(&[LINUX, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Linux::from_bytes(&bytes), None);
    }
}
