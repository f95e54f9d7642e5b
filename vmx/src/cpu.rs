// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a processor has VMX, and switching it on. SDM Vol. 3C, "Discovering Support for VMX", "Enabling and Entering
//! VMX Operation", "Restrictions on VMX Operation".

mod writable;

use core::fmt;

use hvkit_vmcs::capability::Features;
use hvkit_vmcs::{Capabilities, Processor};

/// What the four registers hold after CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// What detecting and enabling ask of a logical processor: [`ThisProcessor`](crate::ThisProcessor), or a test's table.
///
/// A value stands for one logical processor at CPL 0. Only registers that the manual says exist are asked for.
pub trait Machine {
    /// CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid;
    /// RDMSR.
    fn rdmsr(&self, index: u32) -> u64;
    /// CR0.
    fn cr0(&self) -> u64;
    /// CR4.
    fn cr4(&self) -> u64;
    /// Sets "VMX outside SMX operation" and the lock in `IA32_FEATURE_CONTROL`, which is not locked, and keeps its other bits.
    fn allow_vmx(&mut self);
    /// Sets CR0.NE: floating-point errors are exceptions.
    fn set_ne(&mut self);
    /// Sets CR4.VMXE.
    fn set_vmxe(&mut self);
}

/// `IA32_FEATURE_CONTROL`, MSR 3AH.
const FEATURE_CONTROL: u32 = 0x3a;

bitflags::bitflags! {
    /// `IA32_FEATURE_CONTROL` (3AH). SDM Vol. 4, "IA-32 Architectural MSRs".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FeatureControl: u64 {
        /// Lock: the register cannot be written until the next reset.
        const LOCK = 1 << 0;
        /// VMX inside SMX operation.
        const VMX_INSIDE_SMX = 1 << 1;
        /// VMX outside SMX operation: what VMXON needs.
        const VMX_OUTSIDE_SMX = 1 << 2;
        const _ = !0;
    }
}

/// Why there is no VMX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// This program runs on another architecture.
    #[error("VMX is a part of x86 processors, and this program was built for another architecture")]
    Architecture,
    /// CPUID does not report VMX: another vendor, an old processor, or a virtual one.
    #[error("CPUID.01H:ECX is {ecx:#x}: bit 5, VMX, is clear")]
    NoVmx {
        /// ECX of leaf 1.
        ecx: u32,
    },
    /// The processor is not a 64-bit one, or not in IA-32e mode; this crate is for those.
    #[error("CPUID.80000001H:EDX is {edx:#x}: bit 29, Intel 64 architecture, is clear")]
    NoIntel64 {
        /// EDX of leaf 80000001H.
        edx: u32,
    },
}

/// Bits of CR0 or CR4, shown by name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ControlBits {
    /// The register: 0 or 4.
    pub register: u8,
    /// The bits.
    pub bits: u64,
}

const CR0_NAMES: &[(u32, &str)] = &[
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (4, "ET"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];

const CR4_NAMES: &[(u32, &str)] = &[
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (13, "VMXE"),
    (14, "SMXE"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (19, "KL"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
    (23, "CET"),
    (24, "PKS"),
    (25, "UINTR"),
    (28, "LAM_SUP"),
    (32, "FRED"),
];

impl fmt::Display for ControlBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CR{}", self.register)?;
        let names = if self.register == 0 {
            CR0_NAMES
        } else {
            CR4_NAMES
        };
        let mut separator = '.';
        for bit in (0..64).filter(|bit| self.bits >> bit & 1 != 0) {
            f.write_fmt(format_args!("{separator}"))?;
            match names.iter().find(|(number, _)| *number == bit) {
                Some((_, name)) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
            separator = ',';
        }
        Ok(())
    }
}

impl fmt::Debug for ControlBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:#x})", self.bits)
    }
}

/// Why VMX operation cannot be entered on a processor that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnableError {
    /// Firmware locked `IA32_FEATURE_CONTROL` without "VMX outside SMX operation".
    #[error(
        "firmware keeps VMX off: IA32_FEATURE_CONTROL is {0:?}, locked without VMX_OUTSIDE_SMX"
    )]
    LockedByFirmware(FeatureControl),
    /// Bits that VMX operation needs, and that are not this crate's to set: they change the mode of the processor.
    #[error("VMX operation needs {0} to be 1")]
    MustBeOne(ControlBits),
    /// Bits that this processor does not allow in VMX operation.
    #[error("VMX operation needs {0} to be 0")]
    MustBeZero(ControlBits),
}

/// A processor with VMX, and what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detected {
    /// What decides whether VM entries succeed: give it to [`hvkit_vmcs::check::Checker`].
    ///
    /// Reserved bits of `IA32_DEBUGCTL` and `IA32_EFER` differ between models that CPUID does not tell apart: those are
    /// as in [`Writable`](hvkit_vmcs::capability::Writable).
    pub processor: Processor,
    /// `IA32_FEATURE_CONTROL` as firmware left it.
    pub feature_control: FeatureControl,
}

/// Looks for VMX.
///
/// # Errors
///
/// [`Unsupported`] says what is missing.
pub fn detect(machine: &impl Machine) -> Result<Detected, Unsupported> {
    let features = machine.cpuid(1, 0);
    if features.ecx >> 5 & 1 == 0 {
        return Err(Unsupported::NoVmx { ecx: features.ecx });
    }
    let extended = |leaf: u32| {
        if machine.cpuid(0x8000_0000, 0).eax >= leaf {
            machine.cpuid(leaf, 0)
        } else {
            Cpuid::default()
        }
    };
    let edx = extended(0x8000_0001).edx;
    if edx >> 29 & 1 == 0 {
        return Err(Unsupported::NoIntel64 { edx });
    }
    let [physical, linear, ..] = extended(0x8000_0008).eax.to_le_bytes();
    let vmx = Capabilities::from_msrs(|msr| Some(machine.rdmsr(msr.0)));
    let processor = Processor {
        physical_address_bits: physical,
        linear_address_bits: linear,
        features: other_features(machine),
        writable: writable::writable(machine),
        vmx,
    };
    Ok(Detected {
        processor,
        feature_control: FeatureControl::from_bits_retain(machine.rdmsr(FEATURE_CONTROL)),
    })
}

/// The features outside VMX that change a VM-entry check.
fn other_features(machine: &impl Machine) -> Features {
    let mut found = Features::empty();
    if machine.cpuid(0, 0).eax < 7 {
        return found;
    }
    let leaf = machine.cpuid(7, 0);
    found.set(Features::SGX, leaf.ebx >> 2 & 1 != 0);
    found.set(Features::RTM, leaf.ebx >> 11 & 1 != 0);
    if leaf.eax >= 1 {
        found.set(Features::LAM, machine.cpuid(7, 1).eax >> 26 & 1 != 0);
    }
    found
}

/// Proof that VMXON will not fault on this processor: VMX is enabled and locked, CR0 and CR4 are as it wants them.
#[derive(Debug)]
pub struct Enabled {
    processor: Processor,
    /// The fact is about one processor.
    _here: core::marker::PhantomData<*mut ()>,
}

impl Enabled {
    /// What the processor can do.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }
}

const CR0_NE: u64 = 1 << 5;
const CR4_VMXE: u64 = 1 << 13;

impl Detected {
    /// Enables VMX: "VMX outside SMX operation" with the lock where firmware left the choice, CR0.NE and CR4.VMXE.
    ///
    /// # Errors
    ///
    /// [`EnableError`]; then CR0 and CR4 are as they were.
    pub fn enable(&self, machine: &mut impl Machine) -> Result<Enabled, EnableError> {
        let wanted = FeatureControl::LOCK | FeatureControl::VMX_OUTSIDE_SMX;
        let found = FeatureControl::from_bits_retain(machine.rdmsr(FEATURE_CONTROL));
        if found.contains(FeatureControl::LOCK) && !found.contains(wanted) {
            return Err(EnableError::LockedByFirmware(found));
        }
        let vmx = &self.processor.vmx;
        fixed(0, machine.cr0() | CR0_NE, vmx.cr0_fixed0, vmx.cr0_fixed1)?;
        fixed(4, machine.cr4() | CR4_VMXE, vmx.cr4_fixed0, vmx.cr4_fixed1)?;
        if !found.contains(wanted) {
            machine.allow_vmx();
        }
        machine.set_ne();
        machine.set_vmxe();
        Ok(Enabled {
            processor: self.processor,
            _here: core::marker::PhantomData,
        })
    }
}

/// Whether the processor allows the value in VMX operation. SDM Vol. 3D, "VMX-Fixed Bits in CR0", "VMX-Fixed Bits in CR4".
fn fixed(register: u8, value: u64, fixed0: u64, fixed1: u64) -> Result<(), EnableError> {
    let named = |bits| ControlBits { register, bits };
    if fixed0 & !value != 0 {
        return Err(EnableError::MustBeOne(named(fixed0 & !value)));
    }
    if value & !fixed1 != 0 {
        return Err(EnableError::MustBeZero(named(value & !fixed1)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
