// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a machine that stands still to a snapshot, and back.

use super::platform::Platform;
use super::stop::Stop;
use super::threads::VcpuThreads;
use super::vcpu::Vcpu;
use super::vm::Vm;
use crate::config::Config;
use crate::console::Console;
use crate::snapshot::{
    Controllers, Description, Destination, Images, Manifest, SnapshotError, Source, VERSION,
    refused,
};
use kvm_ioctls::{Cap, Kvm};
use std::sync::Arc;

/// Bytes of extended registers that are saved.
const EXTENDED: u64 = 4096;

/// Registers that KVM keeps and does not list: memory types of ranges. SDM 4: IA32_MTRR_PHYSBASE0 to IA32_MTRR_PHYSMASK7,
/// IA32_MTRR_FIX64K_00000, _FIX16K_, _FIX4K_, IA32_MTRR_DEF_TYPE, which says whether the others count and so comes last.
const UNLISTED: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e,
    0x26f, 0x2ff,
];

/// `listed`, and what is not listed.
fn with_unlisted(listed: &[u32]) -> Arc<[u32]> {
    let more = UNLISTED.iter().filter(|index| !listed.contains(index));
    listed.iter().chain(more).copied().collect()
}

/// What is needed to save the machine, from before its first instruction.
#[derive(Debug)]
pub(super) struct Saving {
    description: Description,
    /// The model-specific registers that this KVM can tell.
    listed: Arc<[u32]>,
    to: Option<Destination>,
    images: Images,
    stop: Stop,
}

impl Saving {
    /// Of the machine `vm` of this `description`, which `stop` stops, to be saved where `config` says.
    pub(super) fn new(
        kvm: &Kvm,
        vm: &Vm,
        description: Description,
        config: &Config,
        stop: Stop,
    ) -> Result<Self, SnapshotError> {
        let to = config.snapshot.as_deref().map(Destination::create);
        let to = to.transpose()?;
        let images = match to.is_some() || config.restore.is_some() {
            true => {
                check_processor(vm)?;
                Images::open(config)?
            }
            false => Images::default(),
        };
        let list = kvm
            .get_msr_index_list()
            .map_err(refused("list the model-specific registers"))?;
        Ok(Saving {
            description,
            listed: with_unlisted(list.as_slice()),
            to,
            images,
            stop,
        })
    }

    /// Whether it may be asked for.
    pub(super) fn is_possible(&self) -> bool {
        self.to.is_some()
    }

    /// Saves the machine. Its vCPUs and devices stand still when this returns, if it was saved; else all goes on.
    pub(super) fn save(
        &mut self,
        vm: &Vm,
        threads: &VcpuThreads,
        platform: &Platform,
        console: Option<&Console>,
    ) -> Result<(), SnapshotError> {
        let saved = self.try_to_save(vm, threads, platform, console);
        if saved.is_err() {
            platform.chipset().resume();
            platform.go_on_watchdog();
            threads.go_on();
        }
        saved
    }

    fn try_to_save(
        &mut self,
        vm: &Vm,
        threads: &VcpuThreads,
        platform: &Platform,
        console: Option<&Console>,
    ) -> Result<(), SnapshotError> {
        let Some(to) = &mut self.to else {
            return Ok(());
        };
        platform.hold_watchdog();
        threads.pause()?;
        let chipset = platform.chipset();
        // What devices have begun ends in memory and in interrupts, so they stand still before either is looked at.
        chipset.pause();
        let devices = chipset.save_devices()?;
        let manifest = Manifest {
            version: VERSION,
            machine: self.description.clone(),
            processors: threads.save(&self.listed)?,
            clock: vm.fd().get_clock().map_err(refused("tell its clock"))?,
            interrupts: match chipset.io_apic() {
                Some(io_apic) => Controllers::Ours(io_apic.save()),
                None => Controllers::of_kvm(vm.fd())?,
            },
            chipset: chipset.save(),
            units: chipset.save_units(),
            serial: console.map(Console::save),
            watchdog: platform.save_watchdog(),
            disks: self.images.save()?,
            devices,
        };
        // What the vCPUs had to finish may have switched it off, or one saw nothing but the gate of what another did: nobody
        // can ask from here on.
        if let Some(reason) = self.stop.reason() {
            let reason = reason.clone();
            return Err(SnapshotError::Over { reason });
        }
        to.save(&manifest, vm.ram())?;
        log::info!("saved in {}", to.folder().display());
        Ok(())
    }

    /// Makes a new machine, of which nothing has run, the one in `source`. Its devices stand still until
    /// [`Chipset::resume`](crate::chipset::Chipset::resume).
    pub(super) fn restore(
        &self,
        source: Source,
        vm: &Vm,
        vcpus: &[Vcpu],
        platform: &Platform,
        console: Option<&Console>,
    ) -> Result<(), SnapshotError> {
        let chipset = platform.chipset();
        chipset.pause();
        source.read_memory(vm.ram())?;
        let saved = source.manifest;
        saved.machine.check(&self.description)?;
        self.images.check(&saved.disks)?;
        SnapshotError::unless_same("vCPUs", saved.processors.len(), vcpus.len())?;
        // Local APICs come first, and I/O APICs next: what devices have to say is for them.
        for (state, vcpu) in saved.processors.iter().zip(vcpus) {
            state.restore(vcpu.id(), vcpu.fd(), &self.listed)?;
        }
        let clock = kvm_bindings::kvm_clock_data {
            clock: saved.clock.clock,
            ..Default::default()
        };
        vm.fd()
            .set_clock(&clock)
            .map_err(refused("take its clock"))?;
        chipset.restore(&saved.chipset);
        chipset.restore_units(&saved.units)?;
        match (saved.interrupts, chipset.io_apic()) {
            (Controllers::Ours(state), Some(io_apic)) => io_apic.restore(&state),
            (Controllers::Kvm(chips), None) => Controllers::restore_kvm(vm.fd(), *chips)?,
            (Controllers::Ours(_), None) => {
                return Err(SnapshotError::only_saved("interrupt remapping"));
            }
            (Controllers::Kvm(_), Some(_)) => {
                return Err(SnapshotError::only_here("interrupt remapping"));
            }
        }
        chipset.restore_devices(&saved.devices)?;
        match (&saved.serial, console) {
            (Some(state), Some(console)) => console.restore(state)?,
            (None, None) => {}
            (Some(_), None) => return Err(SnapshotError::only_saved("a serial line")),
            (None, Some(_)) => return Err(SnapshotError::only_here("a serial line")),
        }
        platform.restore_watchdog(saved.watchdog.as_ref())
    }
}

/// Whether this host's KVM tells all of a processor.
fn check_processor(vm: &Vm) -> Result<(), SnapshotError> {
    // A KVM that does not know of the question has no more.
    match u64::try_from(vm.fd().check_extension_int(Cap::Xsave2)) {
        Ok(bytes) if bytes > EXTENDED => Err(SnapshotError::ExtendedRegisters { bytes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
