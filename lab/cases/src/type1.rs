// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `cargo xtask type1` asks the hypervisor of `examples/type1`: the first byte says what; for Linux, 64 bytes and the
//! command line.

/// Take the tour.
pub const TOUR: u8 = b't';
/// Boot Linux.
pub const LINUX: u8 = b'l';

/// What to boot, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linux {
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
}

impl Linux {
    /// Bytes before the command line.
    pub const BYTES: usize = 64;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let ports = u64::from(self.power_port) | u64::from(self.command_line) << 16;
        let words = [
            u64::from(LINUX),
            self.kernel.0,
            self.kernel.1,
            self.initramfs.0,
            self.initramfs.1,
            self.memory,
            ports,
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
            _,
        ] = words;
        (asked == u64::from(LINUX)).then_some(Self {
            kernel: (kernel, kernel_bytes),
            initramfs: (initramfs, initramfs_bytes),
            memory,
            power_port: ports as u16,
            command_line: (ports >> 16) as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_where_the_hypervisor_looks() {
        let order = Linux {
            kernel: (0x800_0000, 0xd8_7000),
            initramfs: (0xa00_0000, 0x12_3456),
            memory: 256 << 20,
            power_port: 0xb004,
            command_line: 0x55,
        };
        let bytes = order.to_bytes();
        assert_eq!(bytes[0], LINUX);
        assert_eq!(bytes[8..16], 0x800_0000_u64.to_le_bytes());
        assert_eq!(bytes[32..40], 0x12_3456_u64.to_le_bytes());
        assert_eq!(bytes[48..52], [0x04, 0xb0, 0x55, 0]);
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
    }
}
