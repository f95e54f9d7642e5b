// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What kind of unit is emulated.

use crate::spec::registers::{Capability, ExtendedCapability, Version};

/// Bytes of the register window.
pub const WINDOW: u32 = 4096;
/// Where fault records and IOTLB registers are unless the capabilities say otherwise: above the fixed ones.
const FAULT_RECORDS: u16 = 0x220 / 16;
const IOTLB_REGISTERS: u16 = 0x500 / 16;
/// The last byte of the registers with a fixed place that this unit has (page requests).
const FIXED_END: u32 = 0xf0;

/// What a unit keeps between an access and the invalidation that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Caching {
    /// Nothing: each request reads every table. A driver that forgets an invalidation is not noticed.
    Never,
    /// Context, PASID, paging-structure and IOTLB entries, until they are invalidated or displaced by others: what a
    /// driver must survive. Fast.
    #[default]
    UntilInvalidated,
}

/// A unit that cannot be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Capabilities of what is not emulated: advanced fault logging, write-buffer flushing, protected memory, enhanced
    /// commands.
    #[error("capability register bits {bits:#x} are of what is not emulated")]
    Capability {
        /// The bits.
        bits: u64,
    },
    /// Extended capabilities of what is not emulated: memory types, performance monitoring, virtual commands.
    #[error("extended capability register bits {bits:#x} are of what is not emulated")]
    Extended {
        /// The bits.
        bits: u64,
    },
    /// No table width (SAGAW) at all, or one that the specification reserves.
    #[error("supported guest address widths {sagaw:#07b}")]
    Widths {
        /// SAGAW.
        sagaw: u8,
    },
    /// A host address width that is not 30 to 52 bits.
    #[error("a host address width of {0} bits")]
    HostBits(u32),
    /// Fault records or IOTLB registers outside of the window, or over other registers.
    #[error("registers at {offset:#x} leave the window or lie over others")]
    Place {
        /// Where they would be.
        offset: u32,
    },
}

/// What kind of unit it is: its capability registers, and what they do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// VER_REG.
    pub version: Version,
    /// CAP_REG.
    pub capability: Capability,
    /// ECAP_REG.
    pub extended: ExtendedCapability,
    /// Width of the machine's physical addresses in bits, 30 to 52. Bits above are reserved in every table.
    pub host_bits: u32,
    /// What it keeps.
    pub caching: Caching,
    /// How many pages the IOTLB holds, about; a power of two from 64 to 2^20 (others are taken as the nearest).
    pub iotlb_pages: u32,
}

impl Options {
    /// A unit of legacy mode for `host_bits` of address: tables of 39 and 48 bits, large pages, queued
    /// invalidation, interrupt remapping with 32-bit destinations, pass-through, eight fault records.
    #[must_use]
    pub const fn new(host_bits: u32) -> Self {
        let capability = Capability(0)
            .with_nd(6)
            .with_sagaw(0b0110)
            .with_mgaw(47)
            .with_zero_length_read(true)
            .with_fro(FAULT_RECORDS)
            .with_second_stage_large_pages(0b11)
            .with_page_selective(true)
            .with_nfr(7)
            .with_max_address_mask(18)
            .with_drain_writes(true)
            .with_drain_reads(true)
            .with_enhanced_set_root_table(true)
            .with_enhanced_set_interrupt_table(true);
        let extended = ExtendedCapability(0)
            .with_coherent(true)
            .with_queued_invalidation(true)
            .with_interrupt_remapping(true)
            .with_extended_interrupt_mode(true)
            .with_pass_through(true)
            .with_snoop_control(true)
            .with_iro(IOTLB_REGISTERS)
            .with_max_handle_mask(15);
        Self {
            version: Version(0x10),
            capability,
            extended,
            host_bits,
            caching: Caching::UntilInvalidated,
            iotlb_pages: 4096,
        }
    }

    /// The same, with scalable mode: PASIDs, both stages, nested, and tables of 57 bits.
    #[must_use]
    pub const fn with_scalable_mode(mut self) -> Self {
        self.version = Version(0x60);
        self.capability = self
            .capability
            .with_sagaw(0b1110)
            .with_mgaw(56)
            .with_first_stage_1g(true)
            .with_first_stage_5_levels(true);
        self.extended = self
            .extended
            .with_scalable_mode(true)
            .with_second_stage(true)
            .with_first_stage(true)
            .with_nested(true)
            .with_pasid(true)
            .with_pss(19)
            .with_rid_pasid(true)
            .with_rid_priv(true)
            .with_scalable_walk_coherent(true)
            .with_second_stage_accessed_dirty(true)
            .with_extended_accessed(true)
            .with_supervisor_requests(true)
            .with_execute_requests(true)
            .with_abort_dma_mode(true);
        self
    }

    /// The same, with device TLBs and page requests.
    #[must_use]
    pub const fn with_device_tlbs(mut self) -> Self {
        self.extended = self
            .extended
            .with_device_tlb(true)
            .with_page_requests(true)
            .with_page_request_drain(true);
        self
    }

    /// The same, with posted interrupts.
    #[must_use]
    pub const fn with_posted_interrupts(mut self) -> Self {
        self.capability = self.capability.with_posted_interrupts(true);
        self
    }

    /// The same, in caching mode: a guest's driver invalidates after mapping too, so that shadows follow.
    #[must_use]
    pub const fn with_caching_mode(mut self) -> Self {
        self.capability = self.capability.with_caching_mode(true);
        self
    }

    /// The same, keeping what `caching` says.
    #[must_use]
    pub const fn with_caching(mut self, caching: Caching) -> Self {
        self.caching = caching;
        self
    }

    /// Whether such a unit can be emulated.
    ///
    /// # Errors
    ///
    /// What stands against it.
    pub fn check(&self) -> Result<(), OptionsError> {
        let Self {
            capability,
            extended,
            host_bits,
            ..
        } = *self;
        let unsupported = Capability(0)
            .with_advanced_fault_logging(true)
            .with_write_buffer_flush(true)
            .with_protected_low(true)
            .with_protected_high(true)
            .with_enhanced_commands(true);
        let bits = capability.0 & (unsupported.0 | !Capability::DEFINED);
        if bits != 0 {
            return Err(OptionsError::Capability { bits });
        }
        let unsupported = ExtendedCapability(0)
            .with_memory_types(true)
            .with_performance_monitoring(true)
            .with_virtual_commands(true);
        let bits = extended.0 & (unsupported.0 | !ExtendedCapability::DEFINED);
        if bits != 0 {
            return Err(OptionsError::Extended { bits });
        }
        let sagaw = capability.sagaw();
        if sagaw & 0b1110 == 0 || sagaw & !0b1110 != 0 {
            return Err(OptionsError::Widths { sagaw });
        }
        if !(30..=52).contains(&host_bits) {
            return Err(OptionsError::HostBits(host_bits));
        }
        let records = capability.fault_record_offset(0);
        let records = records..records.saturating_add(u32::from(capability.fault_records()) << 4);
        let iotlb = extended.invalidate_address_offset();
        let iotlb = iotlb..iotlb.saturating_add(16);
        for place in [&records, &iotlb] {
            if place.start < FIXED_END || place.end > WINDOW {
                return Err(OptionsError::Place {
                    offset: place.start,
                });
            }
        }
        if records.start < iotlb.end && iotlb.start < records.end {
            return Err(OptionsError::Place {
                offset: iotlb.start,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_can_be_emulated() {
        for options in [
            Options::new(39),
            Options::new(48)
                .with_caching_mode()
                .with_posted_interrupts(),
            Options::new(52).with_scalable_mode().with_device_tlbs(),
        ] {
            assert_eq!(options.check(), Ok(()));
        }
        // Right behind the last fixed register, and up to the window's last byte.
        let mut options = Options::new(48);
        options.capability = options.capability.with_fro(0x0f);
        options.extended = options.extended.with_iro(0xff);
        assert_eq!(options.check(), Ok(()));
        options.capability = options.capability.with_fro(0x0e);
        let place = OptionsError::Place { offset: 0xe0 };
        assert_eq!(options.check(), Err(place));
    }

    #[test]
    fn what_is_not_emulated_is_named() {
        let plain = Options::new(48);
        let with = |change: fn(&mut Options)| {
            let mut options = plain;
            change(&mut options);
            options.check().unwrap_err()
        };
        assert_eq!(
            with(|o| o.capability.0 |= 0x20),
            OptionsError::Capability { bits: 0x20 }
        );
        assert_eq!(
            with(|o| o.extended.0 |= 1 << 25 | 1 << 63),
            OptionsError::Extended {
                bits: 1 << 25 | 1 << 63
            }
        );
        assert_eq!(
            with(|o| o.capability = o.capability.with_sagaw(1)),
            OptionsError::Widths { sagaw: 1 }
        );
        assert_eq!(with(|o| o.host_bits = 53), OptionsError::HostBits(53));
        assert_eq!(
            with(|o| o.capability = o.capability.with_fro(0)),
            OptionsError::Place { offset: 0 }
        );
        assert_eq!(
            with(|o| o.extended = o.extended.with_iro(0x3ff)),
            OptionsError::Place { offset: 0x3ff0 }
        );
        assert_eq!(
            with(|o| o.extended = o.extended.with_iro(0x22)),
            OptionsError::Place { offset: 0x220 }
        );
    }
}
