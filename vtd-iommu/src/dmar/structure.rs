// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The structures of the table: what each says, apart from its device scopes.

use bitflags::bitflags;

use super::Scopes;

bitflags! {
    /// Flags of the table. "DMA Remapping Reporting Structure".
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct TableFlags: u8 {
        /// The platform supports interrupt remapping.
        const INTR_REMAP = 1 << 0;
        /// Firmware asks the operating system not to turn x2APIC mode on.
        const X2APIC_OPT_OUT = 1 << 1;
        /// Firmware takes part in protecting memory from DMA at boot.
        const DMA_CTRL_PLATFORM_OPT_IN = 1 << 2;
        /// What has no name yet.
        const _ = !0;
    }
}

bitflags! {
    /// Flags of a [`Drhd`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct DrhdFlags: u8 {
        /// The unit has every PCI device of its segment that no other unit has.
        const INCLUDE_PCI_ALL = 1 << 0;
        /// What has no name yet.
        const _ = !0;
    }
}

bitflags! {
    /// Flags of an [`Atsr`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct AtsrFlags: u8 {
        /// Every root port of the segment supports ATS.
        const ALL_PORTS = 1 << 0;
        /// What has no name yet.
        const _ = !0;
    }
}

bitflags! {
    /// Flags of a [`Satc`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SatcFlags: u8 {
        /// The devices work only with their address translation caches on.
        const ATC_REQUIRED = 1 << 0;
        /// What has no name yet.
        const _ = !0;
    }
}

/// The type of a structure. Open: tables newer than this crate have others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StructureKind(pub u16);

impl StructureKind {
    /// DMA Remapping Hardware Unit Definition.
    pub const DRHD: Self = Self(0);
    /// Reserved Memory Region Reporting.
    pub const RMRR: Self = Self(1);
    /// Root Port ATS Capability Reporting.
    pub const ATSR: Self = Self(2);
    /// Remapping Hardware Static Affinity.
    pub const RHSA: Self = Self(3);
    /// ACPI Name-space Device Declaration.
    pub const ANDD: Self = Self(4);
    /// SoC Integrated Address Translation Cache.
    pub const SATC: Self = Self(5);
    /// SoC Integrated Device Property.
    pub const SIDP: Self = Self(6);
}

/// A remapping unit. "DMA Remapping Hardware Unit Definition Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Drhd {
    /// Flags.
    pub flags: DrhdFlags,
    /// Bits 3:0: the registers take 2^N pages of 4 KiB. The others are reserved.
    pub size: u8,
    /// PCI segment.
    pub segment: u16,
    /// Where its registers are.
    pub base: u64,
}

impl Drhd {
    /// Bytes of its registers.
    #[must_use]
    pub const fn register_bytes(self) -> u64 {
        4096 << (self.size & 0xf)
    }
}

/// Memory that devices may use at any time. "Reserved Memory Region Reporting Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rmrr {
    /// PCI segment of the devices.
    pub segment: u16,
    /// First address, 4-KiB aligned.
    pub base: u64,
    /// Last address.
    pub limit: u64,
}

impl Rmrr {
    /// The memory, if it is some: page-aligned, and not ending before it begins.
    #[must_use]
    pub const fn span(self) -> Option<hvkit_page_table::Span> {
        let Some(length) = self.limit.wrapping_add(1).checked_sub(self.base) else {
            return None;
        };
        if length == 0 || (self.base | length) & 0xfff != 0 {
            return None;
        }
        Some(hvkit_page_table::Span::new(self.base, length))
    }
}

/// Root ports that support ATS. "Root Port ATS Capability Reporting Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Atsr {
    /// Flags.
    pub flags: AtsrFlags,
    /// PCI segment.
    pub segment: u16,
}

/// Where a unit is near. "Remapping Hardware Static Affinity Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rhsa {
    /// The unit's registers, as its [`Drhd`] has them.
    pub base: u64,
    /// Proximity domain of ACPI.
    pub proximity_domain: u32,
}

/// A device without PCI configuration space. "ACPI Name-space Device Declaration Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Andd<'a> {
    /// The number that device scopes name it by.
    pub device: u8,
    /// Its name in ACPI's name space, without the terminating zero. Firmware's bytes: perhaps no text.
    pub name: &'a [u8],
}

/// Devices with address translation caches. "SoC Integrated Address Translation Cache Reporting Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Satc {
    /// Flags.
    pub flags: SatcFlags,
    /// PCI segment.
    pub segment: u16,
}

/// Properties of integrated devices, which are in the flags of the scopes. "SoC Integrated Device Property
/// Reporting Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sidp {
    /// PCI segment.
    pub segment: u16,
}

/// One structure of the table, with its device scopes.
#[derive(Clone, Copy, Debug)]
pub enum Structure<'a> {
    /// A remapping unit.
    Drhd(Drhd, Scopes<'a>),
    /// Reserved memory.
    Rmrr(Rmrr, Scopes<'a>),
    /// Root ports with ATS.
    Atsr(Atsr, Scopes<'a>),
    /// Affinity.
    Rhsa(Rhsa),
    /// A named device.
    Andd(Andd<'a>),
    /// Address translation caches.
    Satc(Satc, Scopes<'a>),
    /// Device properties.
    Sidp(Sidp, Scopes<'a>),
    /// Something newer.
    Unknown {
        /// Its type.
        kind: StructureKind,
        /// All of it, from the type on.
        bytes: &'a [u8],
    },
}
