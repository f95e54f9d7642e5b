// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything about a processor that decides whether a VM entry succeeds.

use super::Capabilities;

bitflags::bitflags! {
    /// Features outside VMX that change a VM-entry check.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    pub struct Features: u32 {
        /// SGX: interruptibility bit 4 may be set. CPUID.07H.00H:EBX bit 2.
        const SGX = 1 << 0;
        /// RTM: pending-debug bit 16 may be set. CPUID.07H.00H:EBX bit 11.
        const RTM = 1 << 1;
        /// Linear-address masking: CR3 bits 62:61 may be set. CPUID.07H.01H:EAX bit 26.
        const LAM = 1 << 2;
        /// An NMI may be injected into a guest that is blocking by STI. The manual forbids it; its older editions left
        /// it to the processor.
        const NMI_DESPITE_STI = 1 << 3;
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Features {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self::from_bits_truncate(u.arbitrary()?))
    }
}

/// For each MSR that VM entry or VM exit may load from a field: the bits that are not reserved.
///
/// They depend on the model; the defaults are those of a processor with the oldest features. `detect` of `hvkit-vmx` asks
/// CPUID for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Writable {
    /// `IA32_EFER`: SCE (0), LME (8), LMA (10), NXE (11).
    pub efer: u64,
    /// `IA32_DEBUGCTL`: LBR (0), BTF (1), and on most processors bits 15:6.
    pub debugctl: u64,
    /// `IA32_PERF_GLOBAL_CTRL`: one bit a counter.
    pub perf_global_ctrl: u64,
    /// `IA32_RTIT_CTL`.
    pub rtit_ctl: u64,
    /// `IA32_LBR_CTL`.
    pub lbr_ctl: u64,
    /// `IA32_SPEC_CTRL`.
    pub spec_ctrl: u64,
    /// `IA32_S_CET` below bit 12: bits 5:0, 10 and 11 with indirect-branch tracking.
    pub s_cet: u64,
}

impl Default for Writable {
    fn default() -> Self {
        Self {
            efer: 0xd01,
            debugctl: 0xffc3,
            perf_global_ctrl: 0x7_0000_00ff,
            rtit_ctl: 0,
            lbr_ctl: 0,
            spec_ctrl: 0x7,
            s_cet: 0xc3f,
        }
    }
}

/// A processor as the VM-entry checks see it: its VMX capabilities, and what CPUID adds.
///
/// This crate describes processors that support Intel 64 architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Processor {
    /// The VMX capability MSRs.
    pub vmx: Capabilities,
    /// MAXPHYADDR, at most 52: CPUID.80000008H:EAX bits 7:0, less what memory encryption takes.
    pub physical_address_bits: u8,
    /// Linear-address bits: 48, or 57 with 5-level paging. CPUID.80000008H:EAX bits 15:8.
    pub linear_address_bits: u8,
    /// Features outside VMX.
    pub features: Features,
    /// Bits of MSRs that are not reserved.
    pub writable: Writable,
}

impl Processor {
    /// A processor with these capabilities and the plainest rest: 39 physical and 48 linear
    /// address bits, no features.
    pub fn new(vmx: Capabilities) -> Self {
        Self {
            vmx,
            physical_address_bits: 39,
            linear_address_bits: 48,
            features: Features::empty(),
            writable: Writable::default(),
        }
    }

    /// Bits that no physical address has. Widths outside 32..=52 count as the nearest.
    #[inline(always)]
    pub const fn beyond_physical(&self) -> u64 {
        let bits = self.physical_address_bits as u32;
        u64::MAX
            << if bits < 32 {
                32
            } else if bits > 52 {
                52
            } else {
                bits
            }
    }

    /// Whether an address has the canonical form: all bits from the top linear-address bit upwards
    /// are equal. Widths outside 32..=63 count as the nearest.
    #[inline(always)]
    pub const fn is_canonical(&self, address: u64) -> bool {
        let unused = u64::BITS.saturating_sub(self.linear_bits());
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// Whether bits 63:N are equal, N being the number of linear-address bits: what the manual
    /// asks of guest RIP and SSP, which may be one past the canonical range.
    #[inline(always)]
    pub const fn is_nearly_canonical(&self, address: u64) -> bool {
        let upper = address as i64 >> self.linear_bits();
        upper == 0 || upper == -1
    }

    #[inline(always)]
    const fn linear_bits(&self) -> u32 {
        let bits = self.linear_address_bits as u32;
        if bits < 32 {
            32
        } else if bits > 63 {
            63
        } else {
            bits
        }
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Processor {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            vmx: u.arbitrary()?,
            physical_address_bits: u.int_in_range(32..=52)?,
            linear_address_bits: if u.arbitrary()? { 57 } else { 48 },
            features: u.arbitrary()?,
            writable: u.arbitrary()?,
        })
    }
}
