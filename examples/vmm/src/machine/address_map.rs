// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where everything is in the guest's physical address space and on its ports.
//!
//! ```text
//!   0                                                        low RAM
//!   LOW_RAM_LIMIT      0xc000_0000   PCI memory window below 4 GiB
//!   ECAM_BASE          0xe000_0000   PCI configuration space, 1 MiB a segment, which has one bus
//!   VIRTIO_MMIO        0xfeb0_0000   registers of virtio devices that are not on PCI
//!   IO_APIC_BASE       0xfec0_0000
//!   VTD_BASE           0xfed9_0000   remapping units' registers, 4 KiB each, if there are any
//!   LOCAL_APIC_BASE    0xfee0_0000   interrupt messages land here too
//!   KVM_TSS            0xfffb_d000   three pages Intel's KVM wants for itself, and an identity map
//!   HIGH_RAM_BASE    0x1_0000_0000   RAM that did not fit below
//!                                    PCI memory window above 4 GiB, up to the processor's limit
//! ```
//!
//! Segments of PCI have equal parts of both windows.

use std::ops::Range;

/// RAM that does not fit below this address continues at [`HIGH_RAM_BASE`].
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// Where RAM continues above the 32-bit hole.
pub const HIGH_RAM_BASE: u64 = 1 << 32;

/// The window for memory BARs that must lie below 4 GiB.
pub const PCI_MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI Express enhanced configuration space.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Bytes of configuration space of a bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM_BUS: u64 = 1 << 20;
/// Bytes for all configuration space.
pub const ECAM_LENGTH: u64 = 256 * ECAM_BUS;
/// Segments of PCI, of one bus each, that there may be.
pub const MOST_SEGMENTS: u16 = 16;

/// Registers of virtio devices that are not on PCI.
pub const VIRTIO_MMIO: Range<u64> = 0xfeb0_0000..IO_APIC_BASE;
/// The I/O APIC's registers (in KVM).
pub const IO_APIC_BASE: u64 = 0xfec0_0000;
/// Interrupt inputs of the I/O APIC: global system interrupts 0 to 23.
pub const IO_APIC_PINS: u32 = 24;
/// The registers of the first emulated VT-d unit; those of the others follow.
pub const VTD_BASE: u64 = 0xfed9_0000;
/// Emulated VT-d units that there may be.
pub const MOST_UNITS: usize = 16;
/// The local APIC's registers (in KVM).
pub const LOCAL_APIC_BASE: u64 = 0xfee0_0000;
/// Three pages for the task state segment that KVM needs on Intel processors without
/// unrestricted guest mode.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page for the identity map that goes with it.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The part of conventional memory that a BIOS keeps: the ACPI root pointer is looked for from
/// 0xe0000, and the kernel's own search ends at 1 MiB.
pub const BIOS_AREA: Range<u64> = 0xa_0000..0x10_0000;
/// Where ACPI tables are written; the root pointer is at its first byte, where a search finds it.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_f000;

/// Port of the first serial line, eight registers.
pub const COM1_PORT: u16 = 0x3f8;
/// Global system interrupt of the first serial line.
pub const COM1_GSI: u32 = 4;
/// Port of the paravirtual panic device, one register.
pub const PANIC_PORT: u16 = 0x505;
/// The ports of PCI configuration mechanism #1, address then data.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// The reset control register, inside the PCI configuration address port's dword.
pub const RESET_PORT: u16 = 0xcf9;
/// The keyboard controller's command port; a pulse on its output 0 resets the machine.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// Ports for the ACPI power devices (status, control, sleep), 16 of them.
pub const ACPI_POWER_PORT: u16 = 0x600;
/// The watchdog's registers.
pub const WATCHDOG_PORT: u16 = 0x620;
/// The window for I/O BARs.
pub const PCI_IO: Range<u16> = 0xc000..0xf000;

/// The window above 4 GiB starts at a multiple of this, so that large BARs need no moving.
const MMIO64_ALIGN: u64 = 1 << 30;
/// The window is no larger than this: 64 GiB hold any BARs that we can attach.
const MMIO64_MAX: u64 = 1 << 36;

const _: () = assert!(PCI_MMIO32.start >= LOW_RAM_LIMIT);
const _: () = assert!(PCI_MMIO32.end <= ECAM_BASE);
const _: () = assert!(ECAM_BASE + ECAM_LENGTH <= VIRTIO_MMIO.start);
const _: () = assert!(MOST_SEGMENTS as u64 * ECAM_BUS <= ECAM_LENGTH);
const _: () = assert!(VTD_BASE + ((MOST_UNITS as u64) << 12) <= LOCAL_APIC_BASE);

/// The machine needs more physical addresses than the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{memory} bytes of memory and its devices do not fit in {address_bits} physical address bits"
)]
pub struct DoesNotFit {
    /// Bytes of RAM asked for.
    pub memory: u64,
    /// Physical address width of the processor.
    pub address_bits: u8,
}

/// The parts of the map that depend on how much RAM there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressMap {
    low_ram: Range<u64>,
    high_ram: Range<u64>,
    pci_mmio64: Range<u64>,
    address_bits: u8,
    segments: u16,
}

impl AddressMap {
    /// The map of a machine with `memory` bytes of RAM, on a processor with `address_bits`.
    pub fn new(memory: u64, address_bits: u8) -> Result<Self, DoesNotFit> {
        let does_not_fit = DoesNotFit {
            memory,
            address_bits,
        };
        let low = memory.min(LOW_RAM_LIMIT);
        let high_end = HIGH_RAM_BASE
            .checked_add(memory.saturating_sub(low))
            .ok_or(does_not_fit)?;
        let limit = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        let window = high_end
            .checked_next_multiple_of(MMIO64_ALIGN)
            .ok_or(does_not_fit)?;
        if window >= limit {
            return Err(does_not_fit);
        }
        Ok(AddressMap {
            low_ram: 0..low,
            high_ram: HIGH_RAM_BASE..high_end,
            pci_mmio64: window..limit.min(window.saturating_add(MMIO64_MAX)),
            address_bits,
            segments: 1,
        })
    }

    /// The same with so many segments of PCI, 1 to [`MOST_SEGMENTS`].
    #[must_use]
    pub fn with_segments(self, segments: u16) -> Self {
        AddressMap {
            segments: segments.clamp(1, MOST_SEGMENTS),
            ..self
        }
    }

    /// The segments of PCI.
    pub fn segments(&self) -> Range<u16> {
        0..self.segments
    }

    /// What `segment` has of the window for memory BARs below 4 GiB, and of the one above all RAM.
    #[must_use]
    pub fn pci_windows(&self, segment: u16) -> [Range<u64>; 2] {
        [PCI_MMIO32, self.pci_mmio64()].map(|whole| self.part(&whole, segment))
    }

    fn part(&self, whole: &Range<u64>, segment: u16) -> Range<u64> {
        if self.segments <= 1 {
            return whole.clone();
        }
        // Powers of two, so that each part is aligned as the whole is.
        let length = whole.end.saturating_sub(whole.start);
        let share = length.checked_div(self.segments.into()).unwrap_or(0);
        let share = share.checked_ilog2().map_or(0, |bits| 1u64 << bits);
        let start = share.saturating_mul(segment.into());
        let start = start.saturating_add(whole.start);
        start..start.saturating_add(share)
    }

    /// Physical address width of the processor.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        self.address_bits
    }

    /// RAM below 4 GiB.
    #[must_use]
    pub fn low_ram(&self) -> Range<u64> {
        self.low_ram.clone()
    }

    /// RAM from 4 GiB up; empty if all of it fits below.
    #[must_use]
    pub fn high_ram(&self) -> Range<u64> {
        self.high_ram.clone()
    }

    /// The window for 64-bit memory BARs, above all RAM.
    #[must_use]
    pub fn pci_mmio64(&self) -> Range<u64> {
        self.pci_mmio64.clone()
    }

    /// Takes `length` bytes for memory that is no RAM, in front of the window for 64-bit BARs, which begins behind
    /// them from then on. Nothing if that would leave no window.
    pub fn take_high(&mut self, length: u64) -> Option<Range<u64>> {
        let Range { start, end } = self.pci_mmio64;
        let behind = start.checked_add(length)?;
        let window = behind.checked_next_multiple_of(MMIO64_ALIGN)?;
        if window >= end {
            return None;
        }
        self.pci_mmio64 = window..end;
        Some(start..behind)
    }

    /// Every range of RAM, in ascending order, none of them empty.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        [self.low_ram(), self.high_ram()]
            .into_iter()
            .filter(|range| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_stays_below_the_hole() {
        let map = AddressMap::new(512 << 20, 40).unwrap();
        assert!(map.ram().eq(std::iter::once(0..0x2000_0000)));
        assert_eq!(map.pci_mmio64(), 0x1_0000_0000..0x11_0000_0000);
    }

    #[test]
    fn large_memory_is_split_around_the_hole() {
        let map = AddressMap::new(4 << 30, 40).unwrap();
        assert_eq!(
            map.ram().collect::<Vec<_>>(),
            [0..0xc000_0000, 0x1_0000_0000..0x1_4000_0000]
        );
        assert_eq!(map.pci_mmio64().start, 0x1_4000_0000);
        // A last part of a gigabyte still leaves the window aligned.
        let map = AddressMap::new((4 << 30) + 0x1000, 40).unwrap();
        assert_eq!(map.high_ram().end, 0x1_4000_1000);
        assert_eq!(map.pci_mmio64().start, 0x1_8000_0000);
    }

    #[test]
    fn other_memory_is_taken_from_the_window() {
        let mut map = AddressMap::new(512 << 20, 40).unwrap();
        let end = map.pci_mmio64().end;
        assert_eq!(map.take_high(2 << 20), Some(0x1_0000_0000..0x1_0020_0000));
        assert_eq!(map.take_high(1 << 30), Some(0x1_4000_0000..0x1_8000_0000));
        assert_eq!(map.pci_mmio64(), 0x1_8000_0000..end);
        for too_long in [end - 0x1_8000_0000, 1 << 40, u64::MAX] {
            assert_eq!(map.take_high(too_long), None);
        }
        assert_eq!(map.pci_mmio64(), 0x1_8000_0000..end);
    }

    #[test]
    fn segments_have_equal_parts_of_the_windows() {
        let map = AddressMap::new(512 << 20, 40).unwrap();
        assert_eq!(map.segments(), 0..1);
        assert_eq!(map.pci_windows(0), [PCI_MMIO32, map.pci_mmio64()]);
        let map = map.with_segments(3);
        assert_eq!(map.segments(), 0..3);
        let share = 0x4_0000_0000;
        for segment in map.segments() {
            let number = u64::from(segment);
            let low = 0xc000_0000 + 0x800_0000 * number;
            let high = 0x1_0000_0000 + share * number;
            assert_eq!(
                map.pci_windows(segment),
                [low..low + 0x800_0000, high..high + share]
            );
        }
        // The least that there can be above memory, for the most segments.
        let map = AddressMap::new(62 << 30, 36).unwrap().with_segments(99);
        assert_eq!(map.segments(), 0..16);
        let [low, high] = map.pci_windows(15);
        assert_eq!(low, 0xde00_0000..0xe000_0000);
        assert_eq!(high, (0x10_0000_0000 - 0x400_0000)..0x10_0000_0000);
    }

    #[test]
    fn the_processor_bounds_it() {
        assert_eq!(
            AddressMap::new(64 << 30, 36),
            Err(DoesNotFit {
                memory: 64 << 30,
                address_bits: 36
            })
        );
        assert!(AddressMap::new(u64::MAX, 52).is_err());
        let map = AddressMap::new(60 << 30, 36).unwrap();
        assert_eq!(map.pci_mmio64(), (61 << 30)..(64 << 30));
    }
}
