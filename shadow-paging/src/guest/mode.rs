// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a guest's linear addresses are translated now: the format, where it begins, and who may what.

use hvkit_page_table::{ReadEntry, Root, Walk, walk};

use super::attributes::GuestAttributes;
use super::format::{GuestFormat, Layout};
use super::pdpte::{PdpteError, Pdptes};
use super::registers::{Features, ModeError, Registers, cr0, cr4, efer};
use super::reserved::Reserved;
use super::rights::{AccessControl, KeyRights, Keys};

/// Why a [`PagingMode`] cannot be made. `E` is the memory's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// Registers or features that no processor can have.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// PAE's PDPTEs are not accepted or could not be read.
    #[error(transparent)]
    Pdpte(PdpteError<E>),
}

/// A guest's paging, as its registers select it.
///
/// A plain value: make a new one when CR0, CR3, CR4 or EFER changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagingMode {
    tables: Option<(GuestFormat, Begin)>,
    control: AccessControl,
    /// Whether error codes tell fetches from reads.
    pub(crate) fetch_reported: bool,
}

/// Where the tables begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Begin {
    Table(u64),
    Registers(Pdptes),
}

impl PagingMode {
    /// The mode after a load of CR3: in PAE paging the PDPTEs are read from `memory`, in no other mode
    /// is it touched.
    ///
    /// # Errors
    ///
    /// Registers or features that no processor can have; PDPTEs with a reserved bit (the guest's
    /// instruction ends in #GP(0)) or outside memory.
    pub fn load<M: ReadEntry>(
        registers: &Registers,
        features: &Features,
        memory: &M,
    ) -> Result<Self, LoadError<M::Error>> {
        Self::new(registers, features, |format| {
            Pdptes::load(memory, registers.cr3, format)
        })
    }

    /// The mode where the PDPTE registers are known: from a VMCS, or from `KVM_GET_SREGS2`. `pdptes` is
    /// read in PAE paging only.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), except that nothing is read.
    pub fn with_pdptes(
        registers: &Registers,
        features: &Features,
        pdptes: [u64; 4],
    ) -> Result<Self, LoadError<core::convert::Infallible>> {
        Self::new(registers, features, |format| Pdptes::check(pdptes, format))
    }

    fn new<E>(
        registers: &Registers,
        features: &Features,
        pdptes: impl FnOnce(&GuestFormat) -> Result<Pdptes, PdpteError<E>>,
    ) -> Result<Self, LoadError<E>> {
        let layout = layout(registers, features)?;
        let Some(layout) = layout else {
            return Ok(Self {
                tables: None,
                control: AccessControl::OFF,
                fetch_reported: false,
            });
        };
        let format = GuestFormat::new(layout, registers, features);
        let frame = registers.cr3 & !0xfff;
        let (begin, keys) = match layout {
            Layout::ThirtyTwoBit => (Begin::Table(frame & 0xffff_ffff), Keys::None),
            Layout::Pae => (
                Begin::Registers(pdptes(&format).map_err(LoadError::Pdpte)?),
                Keys::None,
            ),
            Layout::FourLevel | Layout::FiveLevel => (
                Begin::Table(long_root(registers.cr3, features)?),
                Keys::Exist,
            ),
        };
        let execute_disable = layout != Layout::ThirtyTwoBit && registers.efer & efer::NXE != 0;
        Ok(Self {
            tables: Some((format, begin)),
            control: AccessControl::new(registers, keys),
            // SDM 3A, "Page-Fault Exceptions", of I/D: CR4.SMEP = 1, or CR4.PAE = 1 and NXE = 1.
            fetch_reported: registers.cr4 & cr4::SMEP != 0 || execute_disable,
        })
    }

    /// The tables' format; `None` without paging.
    #[inline]
    #[must_use]
    pub const fn format(&self) -> Option<&GuestFormat> {
        match &self.tables {
            Some((format, _)) => Some(format),
            None => None,
        }
    }

    /// Where the tables begin; `None` without paging.
    #[inline]
    #[must_use]
    pub fn root(&self) -> Option<Root<'_, GuestAttributes>> {
        match &self.tables {
            Some((_, Begin::Table(table))) => Some(Root::Table(*table)),
            Some((_, Begin::Registers(pdptes))) => Some(Root::Registers(pdptes.values())),
            None => None,
        }
    }

    /// The PDPTE registers; `None` outside PAE paging.
    #[inline]
    #[must_use]
    pub const fn pdptes(&self) -> Option<&Pdptes> {
        match &self.tables {
            Some((_, Begin::Registers(pdptes))) => Some(pdptes),
            _ => None,
        }
    }

    /// Who may what.
    #[inline]
    #[must_use]
    pub const fn control(&self) -> &AccessControl {
        &self.control
    }

    /// The same mode after WRPKRU, or a write of `IA32_PKRS`. Read as in [`Registers`]: only where
    /// protection keys are enabled.
    #[must_use]
    pub fn with_keys(mut self, pkru: u32, pkrs: u32) -> Self {
        self.control.user_keys = self.control.user_keys.map(|_| KeyRights(pkru));
        self.control.supervisor_keys = self.control.supervisor_keys.map(|_| KeyRights(pkrs));
        self
    }

    /// The root table that `cr3` names in this mode, if MOV to CR3 changes nothing else.
    pub(crate) fn root_named(
        &self,
        cr3: u64,
        features: &Features,
    ) -> Option<Result<u64, ModeError>> {
        match &self.tables {
            Some((format, Begin::Table(_))) if format.layout() == Layout::ThirtyTwoBit => {
                Some(Ok(cr3 & 0xffff_f000))
            }
            Some((_, Begin::Table(_))) => Some(long_root(cr3, features)),
            _ => None,
        }
    }

    /// The same mode with the root that [`root_named`](Self::root_named) found.
    pub(crate) fn begin_at(&mut self, root: u64) {
        if let Some((_, Begin::Table(table))) = &mut self.tables {
            *table = root;
        }
    }

    /// The same mode without its root: equal for all address spaces whose entries mean the same.
    #[must_use]
    pub(crate) fn rootless(mut self) -> Self {
        if let Some((_, begin)) = &mut self.tables {
            *begin = Begin::Table(0);
        }
        self
    }

    /// Every entry that translates `linear`, and what they say, whoever may use it; `None` without
    /// paging.
    ///
    /// The fault of an address that is not canonical, or wider than 32 bits outside IA-32e mode, is
    /// [`Fault::Address`](hvkit_page_table::Fault::Address).
    #[inline]
    pub fn walk<M: ReadEntry>(
        &self,
        memory: &M,
        linear: u64,
    ) -> Option<Walk<GuestAttributes, Reserved, M::Error>> {
        let root = self.root()?;
        let format = self.format()?;
        Some(walk(format, memory, root, linear))
    }
}

/// Which paging the registers select; `None`: none.
fn layout(registers: &Registers, features: &Features) -> Result<Option<Layout>, ModeError> {
    let Registers { cr0, cr4, efer, .. } = *registers;
    let physical_address_bits = features.physical_address_bits;
    if !(32..=52).contains(&physical_address_bits) {
        return Err(ModeError::PhysicalAddressBits {
            physical_address_bits,
        });
    }
    if efer & efer::NXE != 0 && !features.execute_disable {
        return Err(ModeError::NoExecuteDisable { efer });
    }
    if cr4 & cr4::CET != 0 && cr0 & cr0::WP == 0 {
        return Err(ModeError::CetUnprotected { cr4 });
    }
    if cr0 & cr0::PG == 0 {
        return Ok(None);
    }
    if cr0 & cr0::PE == 0 {
        return Err(ModeError::PagingUnprotected { cr0 });
    }
    let (pae, long) = (cr4 & cr4::PAE != 0, efer & efer::LME != 0);
    match (pae, long) {
        (false, true) => Err(ModeError::LongWithoutPae { cr4 }),
        (false, false) => Ok(Some(Layout::ThirtyTwoBit)),
        (true, false) => Ok(Some(Layout::Pae)),
        (true, true) if cr4 & cr4::LA57 != 0 => Ok(Some(Layout::FiveLevel)),
        (true, true) => Ok(Some(Layout::FourLevel)),
    }
}

/// The root table that CR3 names in IA-32e mode.
fn long_root(cr3: u64, features: &Features) -> Result<u64, ModeError> {
    /// Linear-address masking for user pointers: applied before there is a linear address.
    const LAM: u64 = 0b11 << 61;
    let physical_address_bits = features.physical_address_bits;
    let cr3 = cr3 & !LAM;
    match cr3.checked_shr(u32::from(physical_address_bits)) {
        Some(0) => Ok(cr3 & !0xfff),
        _ => Err(ModeError::Cr3Width {
            cr3,
            physical_address_bits,
        }),
    }
}
