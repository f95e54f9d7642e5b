// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMX root operation, and VMCSs that are active on this processor.
#![expect(unsafe_code, reason = "VMX instructions and the facts they need")]

use core::marker::PhantomData;
use core::mem::ManuallyDrop;

use hvkit_vmcs::check::LaunchState;
use hvkit_vmcs::exit::InstructionError;
use hvkit_vmcs::{Processor, fields as f};

use crate::current::Current;
use crate::instructions::{self, Flags};
use crate::{
    Enabled, InvEpt, InvVpid, InvalidateError, Physical, VmFail, VmcsKind, VmcsRegion, VmxonRegion,
};

/// Proof that this processor is in VMX root operation.
///
/// It is not `Send`: the fact is about one processor. Dropping it runs VMXOFF, and keeps the region for good;
/// [`leave`](Self::leave) gives it back.
#[derive(Debug)]
pub struct Root {
    processor: Processor,
    region: *mut VmxonRegion,
}

impl Root {
    /// VMXON. The region is the processor's until [`leave`](Self::leave).
    ///
    /// # Errors
    ///
    /// [`VmFail::Invalid`], if the address or the revision of the region is wrong; [`VmFail::Valid`] with error 15 in VMX
    /// root operation.
    ///
    /// # Safety
    ///
    /// 1. As long as the value lives, the code that uses it and what comes of it runs on this processor, at CPL 0, and
    ///    CR0 and CR4 stay as [`Detected::enable`](crate::Detected::enable) left them where VMX fixes them.
    /// 2. Nobody else runs VMX instructions on this processor meanwhile.
    pub unsafe fn enter(
        enabled: &Enabled,
        region: &'static mut VmxonRegion,
        memory: &impl Physical,
    ) -> Result<Self, VmFail> {
        let processor = *enabled.processor();
        region.prepare(processor.vmx.basic.revision());
        // SAFETY: `enabled` proves what VMXON needs; the region was given away for good.
        match unsafe { instructions::vmxon(memory.of(region)) } {
            Flags::Succeed => Ok(Self { processor, region }),
            Flags::FailInvalid => Err(VmFail::Invalid),
            // The processor is in VMX root operation, with a current VMCS: its error can be read.
            Flags::FailValid => Err(why()),
        }
    }

    /// VMXOFF. Returns the region. VMCSs that are still active stay so: deactivate them first.
    ///
    /// # Errors
    ///
    /// [`VmFail::Valid`] with error 23, under dual-monitor treatment; then the processor is still in VMX operation and
    /// keeps the region.
    pub fn leave(self) -> Result<&'static mut VmxonRegion, VmFail> {
        let this = ManuallyDrop::new(self);
        this.result(this.off())?;
        let region = this.region;
        // SAFETY: `enter` was given the only reference, and the processor has no more use for the region.
        Ok(unsafe { &mut *region })
    }

    fn off(&self) -> Flags {
        // SAFETY: `self` is the proof.
        unsafe { instructions::vmxoff() }
    }

    /// What the processor can do.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Makes a VMCS of a region, with the launch state clear: VMCLEAR, after the revision identifier was written.
    ///
    /// # Errors
    ///
    /// [`VmFail`]; with a region of this type only if `memory` is wrong.
    pub fn activate(
        &self,
        region: &'static mut VmcsRegion,
        kind: VmcsKind,
        memory: &impl Physical,
    ) -> Result<ActiveVmcs, VmFail> {
        region.prepare(self.processor.vmx.basic.revision(), kind);
        let mut vmcs = ActiveVmcs {
            physical: memory.of(region),
            launch_state: LaunchState::Clear,
            region,
            _here: PhantomData,
        };
        vmcs.clear(self)?;
        Ok(vmcs)
    }

    /// VMPTRLD: makes the VMCS current, until the value that is returned is dropped.
    ///
    /// # Errors
    ///
    /// [`VmFail`]: error 9 or 11 for a region that is not what it seems, as a shadow VMCS on a processor without them.
    pub fn load<'a>(&'a mut self, vmcs: &'a mut ActiveVmcs) -> Result<Current<'a>, VmFail> {
        // SAFETY: `self` is the proof of root operation; the region is `vmcs`'s.
        let flags = unsafe { instructions::vmptrld(vmcs.physical) };
        self.result(flags)?;
        Ok(Current::new(self, vmcs.physical, &mut vmcs.launch_state))
    }

    /// VMPTRST: the address of the current VMCS, if there is one.
    pub fn current_pointer(&self) -> Option<u64> {
        // SAFETY: `self` is the proof.
        let pointer = unsafe { instructions::vmptrst() };
        (pointer != u64::MAX).then_some(pointer)
    }

    /// INVEPT.
    ///
    /// # Errors
    ///
    /// [`InvalidateError`]; the instruction is not run where the processor does not have it.
    pub fn invept(&self, what: InvEpt) -> Result<(), InvalidateError> {
        what.check(self.processor.vmx.ept_vpid)?;
        let (kind, descriptor) = what.operands();
        // SAFETY: `self` is the proof of root operation, and the processor has the instruction.
        let flags = unsafe { instructions::invept(kind, descriptor) };
        Ok(self.result(flags)?)
    }

    /// INVVPID.
    ///
    /// # Errors
    ///
    /// [`InvalidateError`]; the instruction is not run where the processor does not have it.
    pub fn invvpid(&self, what: InvVpid) -> Result<(), InvalidateError> {
        what.check(self.processor.vmx.ept_vpid)?;
        let (kind, descriptor) = what.operands();
        // SAFETY: as above.
        let flags = unsafe { instructions::invvpid(kind, descriptor) };
        Ok(self.result(flags)?)
    }

    pub(crate) fn result(&self, flags: Flags) -> Result<(), VmFail> {
        match flags {
            Flags::Succeed => Ok(()),
            Flags::FailInvalid => Err(VmFail::Invalid),
            Flags::FailValid => Err(why()),
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // It fails only under dual-monitor treatment of SMIs, which no operating system is under.
        let _ = self.off();
    }
}

/// The VM-instruction error, read right after an instruction said that there is one.
pub(crate) fn why() -> VmFail {
    // SAFETY: VMfailValid happens in VMX root operation only, with a current VMCS.
    let error = unsafe { instructions::vmread(f::INSTRUCTION_ERROR.encoding().0.into()) };
    VmFail::Valid(InstructionError(error.unwrap_or(0) as u32))
}

/// A VMCS that is active on this processor: the processor may keep parts of it in itself, and writes its region when it
/// likes. So the region is given away, and comes back by [`deactivate`](Self::deactivate).
///
/// It is not `Send`: another processor must not use it before it was deactivated here.
#[derive(Debug)]
pub struct ActiveVmcs {
    physical: u64,
    launch_state: LaunchState,
    region: *mut VmcsRegion,
    _here: PhantomData<*mut ()>,
}

impl ActiveVmcs {
    /// The address of its region: for the link pointer of another VMCS.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Whether it was entered since it was cleared.
    pub fn launch_state(&self) -> LaunchState {
        self.launch_state
    }

    /// VMCLEAR: all of it is in memory, and its launch state is clear. It can be loaded again.
    ///
    /// # Errors
    ///
    /// [`VmFail`]: errors 2 and 3, if the address is wrong.
    pub fn clear(&mut self, root: &Root) -> Result<(), VmFail> {
        // SAFETY: `root` is the proof of root operation; the region is this value's.
        let flags = unsafe { instructions::vmclear(self.physical) };
        root.result(flags)?;
        self.launch_state = LaunchState::Clear;
        Ok(())
    }

    /// VMCLEAR, and the region is the caller's again: for another processor, or another use.
    ///
    /// # Errors
    ///
    /// [`VmFail`], as of [`clear`](Self::clear), with the value.
    pub fn deactivate(mut self, root: &Root) -> Result<&'static mut VmcsRegion, (Self, VmFail)> {
        match self.clear(root) {
            // SAFETY: `activate` was given the only reference, and the processor has no more use for the region.
            Ok(()) => Ok(unsafe { &mut *self.region }),
            Err(error) => Err((self, error)),
        }
    }
}
