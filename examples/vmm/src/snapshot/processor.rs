// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU that stands still: all that KVM tells of it.
//!
//! The order of reading and of writing matters. KVM settles pending INIT and SIPI when it is asked for the state of
//! multiprocessing, so that is read first. The local APIC is written before the model-specific registers, of which the
//! timer's deadline comes last: it is compared with the time-stamp counter, and it counts only in the APIC's mode for it.
//!
//! KVM API, "KVM_GET_REGS" and those that follow.

use super::error::SnapshotError;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// SDM 4: IA32_TIME_STAMP_COUNTER, IA32_TSC_DEADLINE.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

/// How far the clock of a host may be from the saved one before KVM has to scale it, in millionths: what Linux takes for the
/// same.
const TOLERANCE: u64 = 250;

/// A vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Whether it runs, halts, or waits for its start.
    pub multiprocessing: kvm_mp_state,
    /// General registers.
    pub registers: kvm_regs,
    /// Segments, tables, control registers.
    pub system: kvm_sregs,
    /// x87, SSE and what came after.
    pub extended: Box<kvm_xsave>,
    /// XCR0.
    pub extended_control: kvm_xcrs,
    /// DR0 to DR7.
    pub debug: kvm_debugregs,
    /// The local APIC.
    pub apic: kvm_lapic_state,
    /// Model-specific registers: number, value.
    pub model_specific: Vec<(u32, u64)>,
    /// What is about to be delivered.
    pub events: kvm_vcpu_events,
    /// What the time-stamp counter counts by, in kHz.
    pub tsc_khz: u32,
}

/// Names the vCPU and what was tried.
fn refused(vcpu: u32, action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SnapshotError {
    move |error| SnapshotError::Processor {
        vcpu,
        action,
        source: error.into(),
    }
}

impl Processor {
    /// vCPU number `vcpu` as it stands, with those of the model-specific registers `listed` that it has.
    pub(crate) fn of(vcpu: u32, fd: &VcpuFd, listed: &[u32]) -> Result<Self, SnapshotError> {
        let told = |what| refused(vcpu, what);
        Ok(Processor {
            multiprocessing: fd.get_mp_state().map_err(told("tell whether it runs"))?,
            registers: fd.get_regs().map_err(told("tell its registers"))?,
            system: fd.get_sregs().map_err(told("tell its system registers"))?,
            extended: Box::new(
                fd.get_xsave()
                    .map_err(told("tell its extended registers"))?,
            ),
            extended_control: fd.get_xcrs().map_err(told("tell XCR0"))?,
            debug: fd
                .get_debug_regs()
                .map_err(told("tell its debug registers"))?,
            apic: fd.get_lapic().map_err(told("tell of its local APIC"))?,
            model_specific: model_specific(vcpu, fd, listed)?,
            events: fd
                .get_vcpu_events()
                .map_err(told("tell its pending events"))?,
            tsc_khz: fd.get_tsc_khz().map_err(told("tell its clock's rate"))?,
        })
    }

    /// Gives a new vCPU, whose CPUID is set, this state.
    pub(crate) fn restore(
        &self,
        vcpu: u32,
        fd: &VcpuFd,
        listed: &[u32],
    ) -> Result<(), SnapshotError> {
        let taken = |what| refused(vcpu, what);
        let unlisted = |&&(index, _): &&(u32, u64)| !listed.contains(&index);
        if let Some(&(index, value)) = self.model_specific.iter().find(unlisted) {
            return Err(SnapshotError::Register { vcpu, index, value });
        }
        self.set_rate(fd).map_err(taken("take its clock's rate"))?;
        fd.set_mp_state(self.multiprocessing)
            .map_err(taken("take whether it runs"))?;
        fd.set_regs(&self.registers)
            .map_err(taken("take its registers"))?;
        fd.set_sregs(&self.system)
            .map_err(taken("take its system registers"))?;
        set_extended(fd, &self.extended).map_err(taken("take its extended registers"))?;
        fd.set_xcrs(&self.extended_control)
            .map_err(taken("take XCR0"))?;
        fd.set_debug_regs(&self.debug)
            .map_err(taken("take its debug registers"))?;
        fd.set_lapic(&self.apic)
            .map_err(taken("take its local APIC"))?;
        let deadline_last = |&(index, _): &(u32, u64)| index == TSC_DEADLINE;
        let (last, first): (Vec<_>, Vec<_>) =
            self.model_specific.iter().copied().partition(deadline_last);
        for (index, value) in first.into_iter().chain(last) {
            set_one(vcpu, fd, index, value)?;
        }
        fd.set_vcpu_events(&self.events)
            .map_err(taken("take its pending events"))?;
        // The guest was stopped, and its watchdog is to know. Not all guests use KVM's clock.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }

    /// The rate of the time-stamp counter, if this host's is another one.
    fn set_rate(&self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let (saved, ours) = (u64::from(self.tsc_khz), u64::from(fd.get_tsc_khz()?));
        let apart = saved.abs_diff(ours).saturating_mul(1_000_000);
        if apart <= ours.saturating_mul(TOLERANCE) {
            return Ok(());
        }
        fd.set_tsc_khz(self.tsc_khz)
    }
}

/// Those of `listed` that the vCPU has. KVM stops at the first that it does not tell: it lists more than a vCPU of this
/// CPUID has.
fn model_specific(
    vcpu: u32,
    fd: &VcpuFd,
    listed: &[u32],
) -> Result<Vec<(u32, u64)>, SnapshotError> {
    let mut found = Vec::with_capacity(listed.len());
    let mut rest = listed;
    while let [_, after @ ..] = rest {
        let entries: Vec<kvm_msr_entry> = rest.iter().map(|&index| entry(index, 0)).collect();
        let mut msrs =
            wrapped(&entries).map_err(refused(vcpu, "tell its model-specific registers"))?;
        let count = fd
            .get_msrs(&mut msrs)
            .map_err(refused(vcpu, "tell its model-specific registers"))?;
        let told = msrs.as_slice().iter().take(count);
        found.extend(told.map(|entry| (entry.index, entry.data)));
        rest = rest.get(count.saturating_add(1)..).unwrap_or_default();
        if count == 0 {
            rest = after;
        }
    }
    expired_deadline(&mut found);
    Ok(found)
}

/// A deadline that has passed reads 0, also while its interrupt is not delivered yet, which KVM tells nowhere. One that is
/// long past makes the interrupt come again: a guest that had it finds that there is nothing to do.
fn expired_deadline(found: &mut [(u32, u64)]) {
    let now = found
        .iter()
        .find(|(index, _)| *index == TSC)
        .map(|&(_, now)| now);
    let deadline = found.iter_mut().find(|(index, _)| *index == TSC_DEADLINE);
    if let (Some(now), Some((_, deadline @ 0))) = (now, deadline) {
        *deadline = now;
    }
}

/// One register at a time: a refusal has a name.
fn set_one(vcpu: u32, fd: &VcpuFd, index: u32, value: u64) -> Result<(), SnapshotError> {
    let action = "take its model-specific registers";
    let msrs = wrapped(&[entry(index, value)]).map_err(refused(vcpu, action))?;
    if matches!(fd.set_msrs(&msrs), Ok(1)) {
        return Ok(());
    }
    // Some can be read only; then they must be what they were.
    let mut now = wrapped(&[entry(index, 0)]).map_err(refused(vcpu, action))?;
    let same = |now: &Msrs| now.as_slice().first().is_some_and(|now| now.data == value);
    if matches!(fd.get_msrs(&mut now), Ok(1)) && same(&now) {
        return Ok(());
    }
    Err(SnapshotError::Register { vcpu, index, value })
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// As KVM takes them.
fn wrapped(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm_ioctls::Error> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

#[expect(unsafe_code, reason = "KVM may read more than the structure has")]
fn set_extended(fd: &VcpuFd, extended: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads more than the 4096 bytes of `kvm_xsave` only of a guest with features that the process has to ask
    // the kernel for (`arch_prctl`, `ARCH_REQ_XCOMP_GUEST_PERM`), which this one never does.
    unsafe { fd.set_xsave(extended) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_has_passed_is_made_to_pass_again() {
        let mut registers = [(0x6e0, 0), (0x10, 77), (0x1a0, 0)];
        expired_deadline(&mut registers);
        assert_eq!(registers, [(0x6e0, 77), (0x10, 77), (0x1a0, 0)]);
        let mut registers = [(0x10, 77), (0x6e0, 99)];
        expired_deadline(&mut registers);
        assert_eq!(registers[1], (0x6e0, 99));
        let mut none = [(0x6e0, 0)];
        expired_deadline(&mut none);
        assert_eq!(none, [(0x6e0, 0)]);
    }
}
