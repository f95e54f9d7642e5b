// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feature bits, and the kinds of device.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

bitflags::bitflags! {
    /// The 64 low feature bits.
    ///
    /// Bits 0 to 23 and 50 to 63 belong to the device type and have their names in its module. Those
    /// named here mean the same for every device. A bit without a name is kept as it is.
    ///
    /// "Feature Bits" (2.2) and "Reserved Feature Bits" (6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// VIRTIO_F_INDIRECT_DESC: a descriptor may point at a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// VIRTIO_F_EVENT_IDX: each side names the index at which it wants to be told.
        const EVENT_IDX = 1 << 29;
        /// VIRTIO_F_VERSION_1: this specification, not the one before 1.0.
        const VERSION_1 = 1 << 32;
        /// VIRTIO_F_ACCESS_PLATFORM: the device's accesses are limited or translated by the platform.
        const ACCESS_PLATFORM = 1 << 33;
        /// VIRTIO_F_RING_PACKED: the packed virtqueue layout.
        const RING_PACKED = 1 << 34;
        /// VIRTIO_F_IN_ORDER: buffers are used in the order in which they were made available.
        const IN_ORDER = 1 << 35;
        /// VIRTIO_F_ORDER_PLATFORM: memory accesses are ordered as for a device of the platform.
        const ORDER_PLATFORM = 1 << 36;
        /// VIRTIO_F_SR_IOV: single root I/O virtualization.
        const SR_IOV = 1 << 37;
        /// VIRTIO_F_NOTIFICATION_DATA: a notification says how far the driver has got.
        const NOTIFICATION_DATA = 1 << 38;
        /// VIRTIO_F_NOTIF_CONFIG_DATA: the device chooses what a notification writes.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// VIRTIO_F_RING_RESET: queues can be reset one by one.
        const RING_RESET = 1 << 40;
        const _ = !0;
    }
}

impl Features {
    /// What our queues can do for any device. A transport offers it for all of them.
    pub const QUEUES: Self = Self::INDIRECT_DESC
        .union(Self::EVENT_IDX)
        .union(Self::RING_PACKED)
        .union(Self::IN_ORDER);
}

/// What a device is. Open: a type that this crate does not know is a value like any other.
///
/// "Device Types" (5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u8);

impl DeviceType {
    /// Network card.
    pub const NETWORK: Self = Self(1);
    /// Block device.
    pub const BLOCK: Self = Self(2);
    /// Console.
    pub const CONSOLE: Self = Self(3);
    /// Entropy source.
    pub const ENTROPY: Self = Self(4);
    /// Memory balloon.
    pub const BALLOON: Self = Self(5);
    /// Socket device.
    pub const VSOCK: Self = Self(19);
    /// IOMMU.
    pub const IOMMU: Self = Self(23);
    /// File system.
    pub const FILE_SYSTEM: Self = Self(26);
    /// Persistent memory.
    pub const PMEM: Self = Self(27);
    /// What carries vhost-user into a guest. A proposal: the specification has no number for it, and this is the one of
    /// the last published implementation.
    pub const VHOST_USER_BACK_END: Self = Self(43);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_the_specifications() {
        // Section 6, bit numbers as printed.
        for (feature, bit) in [
            (Features::INDIRECT_DESC, 28),
            (Features::EVENT_IDX, 29),
            (Features::VERSION_1, 32),
            (Features::ACCESS_PLATFORM, 33),
            (Features::RING_PACKED, 34),
            (Features::IN_ORDER, 35),
            (Features::ORDER_PLATFORM, 36),
            (Features::SR_IOV, 37),
            (Features::NOTIFICATION_DATA, 38),
            (Features::NOTIF_CONFIG_DATA, 39),
            (Features::RING_RESET, 40),
        ] {
            assert_eq!(feature.bits().trailing_zeros(), bit);
            assert_eq!(feature.bits().count_ones(), 1);
        }
    }

    #[test]
    fn an_unknown_bit_is_kept() {
        assert_eq!(Features::from_bits_retain(1 << 63).bits(), 1 << 63);
        assert_eq!(Features::from_bits_truncate(1 << 5).bits(), 1 << 5);
    }
}
