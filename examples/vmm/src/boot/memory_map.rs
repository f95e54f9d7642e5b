// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest is told of its physical address space: RAM, and what is not to be used.

use crate::machine::address_map::{
    AddressMap, BIOS_AREA, ECAM_BASE, ECAM_LENGTH, KVM_IDENTITY_MAP, KVM_TSS,
};
use std::ops::Range;

/// What a range is. The numbers are those of ACPI 6.4, "Address Range Types", which Linux and PVH
/// both use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// RAM for the guest.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// The whole map, in ascending order.
pub(super) fn entries(map: &AddressMap) -> Vec<(Range<u64>, Kind)> {
    let low = map.low_ram().end;
    let mut entries = vec![
        (0..low.min(BIOS_AREA.start), Kind::Ram),
        // ACPI tables are here, and a kernel probes for what a BIOS would leave.
        (BIOS_AREA, Kind::Reserved),
        (BIOS_AREA.end..low.max(BIOS_AREA.end), Kind::Ram),
        // Linux believes MCFG only if the range is reserved.
        (ECAM_BASE..ECAM_BASE + ECAM_LENGTH, Kind::Reserved),
        (KVM_IDENTITY_MAP..KVM_TSS + 0x3000, Kind::Reserved),
        (map.high_ram(), Kind::Ram),
    ];
    entries.retain(|(range, _)| !range.is_empty());
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_all_there_but_for_the_bios_area() {
        let entries = |size| entries(&AddressMap::new(size, 40).unwrap());
        let ram = |size| {
            entries(size)
                .into_iter()
                .filter(|(_, kind)| *kind == Kind::Ram)
                .map(|(range, _)| range)
                .collect::<Vec<_>>()
        };
        assert_eq!(ram(64 << 20), [0..0xa_0000, 0x10_0000..0x400_0000]);
        assert_eq!(
            ram(5 << 30),
            [
                0..0xa_0000,
                0x10_0000..0xc000_0000,
                0x1_0000_0000..0x1_8000_0000
            ]
        );
        assert_eq!(ram(0x8_0000), vec![0..0x8_0000]);
        assert!(entries(5 << 30).is_sorted_by(|(a, _), (b, _)| a.end <= b.start));
    }
}
