// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What kind of unit the user asks for.

use super::UnitError;
use crate::config::{DmaWidth, Vtd};
use hvkit_vtd_iommu::emulation::Options;

/// The unit that `vtd` describes, in a machine with so many bits of physical address.
///
/// # Errors
///
/// Wishes that contradict each other, or that the emulated unit cannot fulfil.
pub fn unit_options(vtd: &Vtd, address_bits: u8) -> Result<Options, UnitError> {
    let mut options = Options::new(address_bits.into());
    if vtd.scalable {
        // Tables of the first stage have four levels at least.
        if vtd.width < DmaWidth::Bits48 {
            return Err(UnitError::NarrowScalable {
                bits: vtd.width.bits(),
            });
        }
        options = options.with_scalable_mode();
    }
    if vtd.caching {
        options = options.with_caching_mode();
    }
    // Guests do not tell of new mappings of the first stage, caching mode or not ("Caching Mode" names tables of the second
    // stage), so that no device of the host could follow them: they are offered the second stage only.
    let first_stage = vtd.scalable && !vtd.caching;
    if vtd.scalable && vtd.caching {
        options.extended = options
            .extended
            .with_first_stage(false)
            .with_nested(false)
            .with_extended_accessed(false)
            .with_supervisor_requests(false)
            .with_execute_requests(false);
        options.capability = options.capability.with_first_stage_1g(false);
    }
    // Bit 1: three levels; bit 2: four; bit 3: five.
    let levels = match vtd.width {
        DmaWidth::Bits39 => 0b0010,
        DmaWidth::Bits48 => 0b0110,
        DmaWidth::Bits57 => 0b1110,
    };
    options.capability = options
        .capability
        .with_sagaw(levels)
        .with_mgaw(vtd.width.bits().saturating_sub(1))
        .with_first_stage_5_levels(first_stage && vtd.width == DmaWidth::Bits57);
    if !vtd.interrupts {
        options.extended = options
            .extended
            .with_interrupt_remapping(false)
            .with_extended_interrupt_mode(false)
            .with_max_handle_mask(0);
    }
    options.check()?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DmaWidth::{Bits39, Bits48, Bits57};

    fn capability(vtd: &Vtd) -> u64 {
        unit_options(vtd, 40).unwrap().capability.0
    }

    #[test]
    fn widths_are_in_the_capability_register() {
        // "Capability Register": SAGAW in 12:8, MGAW in 21:16.
        for (width, sagaw, mgaw) in [(Bits39, 2, 38), (Bits48, 6, 47), (Bits57, 14, 56)] {
            let found = capability(&Vtd {
                width,
                ..Vtd::default()
            });
            assert_eq!((found >> 8 & 0x1f, found >> 16 & 0x3f), (sagaw, mgaw));
        }
    }

    #[test]
    fn interrupt_remapping_is_told_with_extended_mode() {
        // "Extended Capability Register": IR is bit 3, EIM bit 4.
        for (interrupts, bits) in [(true, 3), (false, 0)] {
            let vtd = Vtd {
                interrupts,
                ..Vtd::default()
            };
            assert_eq!(unit_options(&vtd, 40).unwrap().extended.0 >> 3 & 3, bits);
        }
    }

    #[test]
    fn caching_mode_and_scalable_mode_are_told() {
        // CM is bit 7; SMTS is bit 43 of the extended register.
        let vtd = Vtd::default();
        assert_eq!(capability(&vtd) >> 7 & 1, 0);
        let caching = Vtd {
            caching: true,
            ..vtd.clone()
        };
        assert_eq!(capability(&caching) >> 7 & 1, 1);
        let scalable = Vtd {
            scalable: true,
            ..vtd.clone()
        };
        let extended = |vtd| unit_options(vtd, 40).unwrap().extended.0;
        assert_eq!([&vtd, &scalable].map(|vtd| extended(vtd) >> 43 & 1), [0, 1]);
        // NEST is bit 26, SSTS bit 46, FSTS bit 47: what a shadow cannot follow is not offered.
        let both = Vtd {
            caching: true,
            ..scalable.clone()
        };
        let stages = |vtd| (extended(vtd) >> 26 & 1, extended(vtd) >> 46 & 3);
        assert_eq!((stages(&scalable), stages(&both)), ((1, 3), (0, 1)));
        let narrow = Vtd {
            width: Bits39,
            ..scalable
        };
        let error = unit_options(&narrow, 40).unwrap_err();
        assert!(matches!(error, UnitError::NarrowScalable { bits: 39 }));
    }
}
