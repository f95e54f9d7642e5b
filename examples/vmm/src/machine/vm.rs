// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine as KVM knows it: its descriptor, and the memory it was given.

use super::address_map::{IO_APIC_PINS, KVM_IDENTITY_MAP, KVM_TSS};
use super::kvm::KvmError;
use super::memory::GuestRam;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// Whether writes are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logging {
    /// They are.
    On,
    /// They are not, and cost no more than a write.
    Off,
}

/// A virtual machine with its memory. Whoever runs its vCPUs holds it, so that the memory outlives
/// them.
#[derive(Debug)]
pub struct Vm {
    // Declared, and so dropped, before the memory that KVM reaches through it.
    fd: Arc<VmFd>,
    ram: GuestRam,
    /// Memory that the guest has and devices do not reach.
    other: Vec<Arc<GuestRegionMmap>>,
}

impl Vm {
    /// Creates a machine with this memory, RAM and `other`, and nothing else in it.
    pub fn new(
        kvm: &Kvm,
        ram: GuestRam,
        other: Vec<Arc<GuestRegionMmap>>,
    ) -> Result<Self, KvmError> {
        let fd = kvm
            .create_vm()
            .map_err(KvmError::refused("create a machine"))?;
        let vm = Vm {
            fd: Arc::new(fd),
            ram,
            other,
        };
        vm.register(0)
            .map_err(KvmError::refused("register guest memory"))?;
        Ok(vm)
    }

    /// Its memory, by slot.
    fn slotted(&self) -> impl Iterator<Item = (u32, &GuestRegionMmap)> {
        let other = self.other.iter().map(|region| &**region);
        (0u32..).zip(self.ram.iter().chain(other))
    }

    /// Tells KVM of the memory, or of other `flags` for it.
    #[expect(unsafe_code, reason = "KVM is given ranges of this process's memory")]
    fn register(&self, flags: u32) -> Result<(), kvm_ioctls::Error> {
        self.slotted().try_for_each(|(slot, region)| {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: 1. `userspace_addr` and `memory_size` are those of one mapping of a `GuestRam` or a
            // `GuestRegionMmap`, which unmaps it only when its last clone is dropped. `Vm` owns a clone and drops it after
            // `fd`; every vCPU holds its `Vm`; so the mapping is there whenever the guest runs. 2. The mapping is
            // memory used for nothing but this guest, and vm-memory reaches it by volatile access only, so the
            // guest's writes break no reference of ours. 3. A slot has the same range each time.
            unsafe { self.fd.set_user_memory_region(region) }
        })
    }

    /// Whether KVM logs which pages the processors write.
    ///
    /// # Errors
    ///
    /// KVM's. If there was no log, there is none then.
    pub fn log_writes(&self, logging: Logging) -> io::Result<()> {
        let flags = match logging {
            Logging::On => KVM_MEM_LOG_DIRTY_PAGES,
            Logging::Off => 0,
        };
        self.register(flags).map_err(|error| {
            // That of slots before the one that failed.
            let _ = self.register(0);
            error.into()
        })
    }

    /// Tells `each` region's first address, and the bits of the pages that were written since the log began or this was asked
    /// last.
    ///
    /// # Errors
    ///
    /// KVM's: there is no log.
    pub fn written(&self, mut each: impl FnMut(u64, &[u64])) -> io::Result<()> {
        self.slotted().try_for_each(|(slot, region)| {
            // The target is 64-bit.
            let bits = self.fd.get_dirty_log(slot, region.len() as usize)?;
            each(region.start_addr().0, &bits);
            Ok(())
        })
    }

    /// The addresses of all its memory.
    pub fn memory(&self) -> impl Iterator<Item = Range<u64>> {
        self.slotted().map(|(_, region)| {
            let start = region.start_addr().0;
            start..start.saturating_add(region.len())
        })
    }

    /// Gives the machine KVM's interrupt controllers: PIC, I/O APIC, local APICs.
    ///
    /// Needed before the first vCPU is made.
    pub fn add_interrupt_controllers(&self) -> Result<(), KvmError> {
        self.place_intel_pages()?;
        self.fd
            .create_irq_chip()
            .map_err(KvmError::refused("create the interrupt controllers"))
    }

    /// Intel's KVM wants four pages of guest-physical space; others ignore this.
    fn place_intel_pages(&self) -> Result<(), KvmError> {
        self.fd
            .set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(KvmError::refused("place the identity map"))?;
        self.fd
            .set_tss_address(KVM_TSS as usize)
            .map_err(KvmError::refused("place the task state segment"))
    }

    /// Gives the machine KVM's local APICs only: the I/O APIC is the VMM's, and there is no PIC. Interrupt messages may
    /// have destinations of 32 bits.
    ///
    /// Needed before the first vCPU is made.
    pub fn add_local_apics(&self) -> Result<(), KvmError> {
        self.place_intel_pages()?;
        let split = [IO_APIC_PINS.into(), 0, 0, 0];
        let wide = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        for (name, cap, args) in [
            (Cap::SplitIrqchip, KVM_CAP_SPLIT_IRQCHIP, split),
            (Cap::X2ApicApi, KVM_CAP_X2APIC_API, [wide.into(), 0, 0, 0]),
        ] {
            let enable = kvm_enable_cap {
                cap,
                args,
                ..Default::default()
            };
            self.fd
                .enable_cap(&enable)
                .map_err(|source| KvmError::NoSplit {
                    lacks: name,
                    source: source.into(),
                })?;
        }
        Ok(())
    }

    /// The machine's descriptor.
    #[must_use]
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// How many of KVM's memory slots its memory takes: the first ones.
    #[must_use]
    pub fn slots(&self) -> u32 {
        // One for each region, counted in `u32` when they were made.
        self.ram.num_regions().saturating_add(self.other.len()) as u32
    }

    /// The machine's memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}
