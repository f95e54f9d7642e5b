// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMX on the laboratory's bare metal, as the oracles' payloads use it: [`payload_rt::vmx`] with the fields of
//! [`hvkit_vmcs`], and the processor as [`lab_cases`] describes it.
#![no_std]

use core::arch::x86_64::__cpuid;

use hvkit_vmcs::{
    Capabilities, Encoding, Vmcs, capability::Msr, encoding::Class, fields as f, seed::Seed,
    store::Fields,
};
use lab_cases::vm_entry::{Cpu, HOST_RIP};
use payload_rt::vmx;

/// VMX root operation, with a current VMCS whenever fields are read or written.
///
/// A proof held as a value: only [`Root::enter`] makes one.
pub struct Root {
    region: u64,
    cpu: Cpu,
    capabilities: Capabilities,
}

impl Root {
    /// Enters VMX operation, with `vmxon` and `vmcs` as regions: pages mapped one to one, and used by nothing else.
    ///
    /// # Safety
    ///
    /// That, and the processor has VMX.
    pub unsafe fn enter(vmxon: u64, vmcs: u64) -> Self {
        // SAFETY: the caller's promise.
        let cpu = unsafe { cpu() };
        let revision = u64::from(cpu.processor().vmx.basic.revision());
        for region in [vmxon, vmcs] {
            // SAFETY: the caller's promise.
            unsafe { (region as *mut u64).write_volatile(revision) };
        }
        // SAFETY: the regions have their revision.
        unsafe { vmx::enter_operation(vmxon) };
        let root = Self {
            region: vmcs,
            capabilities: cpu.processor().vmx,
            cpu,
        };
        root.start();
        root
    }

    /// The processor.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Its capabilities.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// VMCLEAR and VMPTRLD: the VMCS is current, and not launched.
    pub fn start(&self) {
        // SAFETY: in VMX operation; the region is ours.
        unsafe {
            vmx::clear(self.region);
            vmx::load(self.region);
        }
    }

    /// VMCLEAR: no VMCS is current.
    pub fn clear(&self) {
        // SAFETY: as above.
        unsafe { vmx::clear(self.region) };
    }

    /// VMREAD.
    pub fn read(&self, field: impl Into<Encoding>) -> u64 {
        // SAFETY: in VMX operation; without a current VMCS the answer means nothing, and nothing happens.
        unsafe { vmx::read(field.into().0) }
    }

    /// VMWRITE. A field that does not exist is passed over.
    pub fn write(&self, field: impl Into<Encoding>, value: u64) {
        // SAFETY: as above; what a field does to an entry is for `vmx::go` to promise.
        unsafe { vmx::write(field.into().0, value) };
    }

    /// Writes every field of `vmcs` that the processor has. Host RIP [`HOST_RIP`] becomes the way back to the payload.
    pub fn store(&self, vmcs: &Vmcs) {
        for info in &f::ALL {
            let (field, Some(mut value)) = (info.encoding, vmcs.get(info.encoding)) else {
                continue;
            };
            if field.class() == Class::ExitInformation || !info.exists.on(&self.capabilities) {
                continue;
            }
            if field == f::HOST_RIP.encoding() && value == HOST_RIP {
                value = vmx::way_back();
            }
            self.write(field, value);
        }
    }

    /// Writes the VMCS of a seed.
    pub fn store_seed(&self, seed: Seed) {
        self.store(&seed.vmcs(&self.cpu.processor()));
    }
}

/// # Safety
///
/// The processor has VMX.
unsafe fn cpu() -> Cpu {
    // SAFETY: only asked for MSRs that exist.
    let rdmsr = |msr: Msr| unsafe { vmx::rdmsr(msr.0) };
    let mut msrs = [0; Msr::ALL.len()];
    for (value, msr) in msrs.iter_mut().zip(Msr::ALL) {
        // PROCBASED_CTLS3 and EXIT_CTLS2 do not exist where nothing activates them.
        let exists = match msr {
            Msr::PROCBASED_CTLS3 => rdmsr(Msr::PROCBASED_CTLS) >> (32 + 17) & 1 != 0,
            Msr::EXIT_CTLS2 => rdmsr(Msr::EXIT_CTLS) >> 63 != 0,
            _ => true,
        };
        if exists {
            *value = rdmsr(msr);
        }
    }
    Cpu {
        msrs,
        physical_address_bits: __cpuid(0x8000_0008).eax as u8,
    }
}
