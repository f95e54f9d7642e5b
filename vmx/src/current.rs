// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The current VMCS of this processor.
#![expect(unsafe_code, reason = "VMREAD and VMWRITE")]

use hvkit_vmcs::check::LaunchState;
use hvkit_vmcs::encoding::Encoding;
use hvkit_vmcs::store::{Fields, FieldsMut, NoSuchField};

use crate::instructions::{self, Flags};
use crate::{Root, VmFail};

/// Proof that a VMCS is current, and access to its fields by VMREAD and VMWRITE.
///
/// It is a store of `hvkit-vmcs`: fields are read and written by their types, checked, dumped and compared as any other.
///
/// ```no_run
/// use hvkit_vmcs::{fields, dump::Dump, store::{Fields, FieldsMut}};
///
/// fn show(vmcs: &mut hvkit_vmx::Current<'_>) -> Result<(), hvkit_vmcs::store::NoSuchField> {
///     vmcs.write(fields::GUEST_RIP, 0x1000)?;
///     println!("{:#x?}\n{}", vmcs.read(fields::EXIT_REASON), Dump(vmcs));
///     Ok(())
/// }
/// ```
///
/// Dropping it leaves the VMCS current until another is loaded; nobody can tell.
#[derive(Debug)]
pub struct Current<'a> {
    root: &'a Root,
    physical: u64,
    launch_state: &'a mut LaunchState,
}

impl<'a> Current<'a> {
    pub(crate) fn new(root: &'a Root, physical: u64, launch_state: &'a mut LaunchState) -> Self {
        Self {
            root,
            physical,
            launch_state,
        }
    }

    /// The proof of VMX root operation: for INVEPT and INVVPID.
    pub fn root(&self) -> &Root {
        self.root
    }

    /// The address of its region.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Whether it was entered since it was cleared: VMLAUNCH or VMRESUME.
    pub fn launch_state(&self) -> LaunchState {
        *self.launch_state
    }

    pub(crate) fn launched(&mut self) {
        *self.launch_state = LaunchState::Launched;
    }

    /// VMREAD.
    ///
    /// # Errors
    ///
    /// [`VmFail::Valid`] with error 12: this processor has no such field.
    #[inline(always)]
    pub fn vmread(&self, field: Encoding) -> Result<u64, VmFail> {
        // SAFETY: `self` proves root operation.
        match unsafe { instructions::vmread(field.0.into()) } {
            Ok(value) => Ok(value),
            Err(flags) => Err(self.failed(flags)),
        }
    }

    /// VMWRITE.
    ///
    /// # Errors
    ///
    /// [`VmFail::Valid`] with error 12, no such field; with error 13, a read-only field on a processor that does not
    /// write those.
    #[inline(always)]
    pub fn vmwrite(&mut self, field: Encoding, value: u64) -> Result<(), VmFail> {
        // SAFETY: `self` proves root operation. The fields that name memory or say where an exit comes back matter only
        // to a VM entry, whose caller answers for them.
        match unsafe { instructions::vmwrite(field.0.into(), value) } {
            Flags::Succeed => Ok(()),
            flags => Err(self.failed(flags)),
        }
    }

    #[cold]
    fn failed(&self, flags: Flags) -> VmFail {
        self.root.result(flags).err().unwrap_or(VmFail::Invalid)
    }
}

/// A field that this processor does not have is `None`. Reading one overwrites the VM-instruction error.
impl Fields for Current<'_> {
    #[inline(always)]
    fn get(&self, encoding: Encoding) -> Option<u64> {
        self.vmread(encoding).ok()
    }
}

impl FieldsMut for Current<'_> {
    /// VMWRITE.
    ///
    /// # Errors
    ///
    /// [`NoSuchField`] where [`Current::vmwrite`] fails for any reason.
    #[inline(always)]
    fn set(&mut self, encoding: Encoding, value: u64) -> Result<(), NoSuchField> {
        self.vmwrite(encoding, value)
            .map_err(|_| NoSuchField(encoding))
    }
}
