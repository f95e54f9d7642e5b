// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One of the guest's processors, as an exit handler sees it: page faults, control registers,
//! invalidations.

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry};

use super::hardware::{Hardware, Processor};
use super::invpcid::InvalidateKind;
use super::linear::{Linear, Unsupported};
use super::tags::Tags;
use super::transition;
use crate::guest::{
    Access, ErrorCode, Features, GuestFault, Kind, Layout, LoadError, ModeError, PagingMode,
    Privilege, Registers, cr0, cr4, efer,
};
use crate::mmu::{Answer, Failed, HostMap, Load, Machine, Mmu, Owed, Space, Top};

/// A page fault of the real processor, as the exit tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageFault {
    /// The error code.
    pub code: ErrorCode,
    /// The linear address: CR2, or the exit qualification.
    pub linear: u64,
    /// The guest's CPL.
    pub cpl: u8,
    /// The guest's RFLAGS.
    pub rflags: u64,
}

impl PageFault {
    /// The access that faulted.
    ///
    /// An implicit supervisor access made at CPL 0 to 2 cannot be told from an explicit one; with
    /// EFLAGS.AC set and CR4.SMAP it is taken for one that is allowed.
    #[must_use]
    pub const fn access(&self) -> Access {
        let kind = if self.code.contains(ErrorCode::FETCH) {
            Kind::Fetch
        } else if self.code.contains(ErrorCode::WRITE) {
            Kind::Write
        } else {
            Kind::Read
        };
        let privilege = if self.code.contains(ErrorCode::USER) {
            Privilege::User
        } else if self.cpl >= 3 {
            Privilege::Implicit
        } else {
            Privilege::explicit(self.cpl, self.rflags)
        };
        Access::new(kind, privilege)
    }
}

/// A control register was written.
#[derive(Debug)]
#[must_use = "settle what is owed"]
pub struct Control {
    /// To be settled before the guest runs on.
    pub owed: Owed,
    /// Whether the guest translates by another root now: [`Vcpu::hardware`] has changed, and what the
    /// processor's TLB holds under the same tag (VPID) must go, unless VM entry sees to that.
    pub root_changed: bool,
}

/// Why a control register was not written.
#[derive(Debug, thiserror::Error)]
pub enum ControlError<E> {
    /// The guest may not: its instruction ends in #GP(0). PDPTEs that cannot be read are the host's to
    /// judge.
    #[error(transparent)]
    General(LoadError<E>),
    /// The guest's CPUID should not have offered it.
    #[error("shadow tables cannot express this: {0}")]
    Unsupported(Unsupported),
    /// The MMU could not follow. Nothing has changed: settle and try again, or give up.
    #[error(transparent)]
    Failed(Failed<E>),
}

/// One of the guest's processors.
#[derive(Debug)]
pub struct Vcpu {
    registers: Registers,
    features: Features,
    processor: Processor,
    mode: PagingMode,
    space: Space<Linear>,
    tags: Tags,
}

/// The PCID in CR3.
const PCID: u64 = 0xfff;

/// Whether PDPTEs are read anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pdptes {
    Load,
    Keep,
}

impl Vcpu {
    /// A processor with `registers` and `features`, whose guest runs on `processor`.
    ///
    /// # Errors
    ///
    /// Registers that no processor has, that shadow tables cannot serve, or no memory for the root.
    pub fn new<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        registers: Registers,
        features: Features,
        processor: Processor,
    ) -> Result<(Self, Owed), ControlError<M::Error>> {
        let mode = PagingMode::load(&registers, &features, machine.memory)
            .map_err(ControlError::General)?;
        let stage = stage(&mode, &registers, processor)?;
        let (space, owed) = mmu
            .open(stage, Linear::top(&mode), machine)
            .map_err(ControlError::Failed)?;
        let mut vcpu = Self {
            registers,
            features,
            processor,
            mode,
            space,
            tags: Tags::default(),
        };
        vcpu.forget_tags();
        Ok((vcpu, owed))
    }

    /// The guest's registers.
    #[must_use]
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// How the guest's own tables are read now.
    #[must_use]
    pub const fn mode(&self) -> &PagingMode {
        &self.mode
    }

    /// What it translates by.
    pub const fn space(&self) -> &Space<Linear> {
        &self.space
    }

    /// How the real processor is to be set up when the guest runs on.
    #[must_use]
    pub fn hardware(&self) -> Hardware {
        use crate::mmu::Stage as _;
        let format = self.space.stage().shadow();
        Hardware::of(format, self.space.root(), &self.registers)
    }

    /// The real processor faulted while the guest ran.
    ///
    /// # Errors
    ///
    /// As [`Mmu::fault`].
    pub fn handle_fault<T: OwnEntries, P: Frames, M: UpdateEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        fault: PageFault,
    ) -> Result<Answer<GuestFault<core::convert::Infallible>>, Failed<M::Error>> {
        mmu.fault(&self.space, machine, fault.linear, fault.access())
    }

    /// MOV to CR3. Bit 63 keeps the TLB while CR4.PCIDE is set, if the root is the one that was loaded last with this PCID;
    /// otherwise more is invalidated than asked for.
    ///
    /// # Errors
    ///
    /// See [`ControlError`]; nothing has changed then.
    pub fn write_cr3<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        value: u64,
    ) -> Result<Control, ControlError<M::Error>> {
        const KEEP: u64 = 1 << 63;
        let tagged = self.registers.cr4 & cr4::PCIDE != 0;
        let (cr3, keep) = if tagged {
            (value & !KEEP, value & KEEP != 0)
        } else {
            (value, false)
        };
        transition::to_cr3(&self.registers, cr3).map_err(refused)?;
        let Some(root) = self.mode.root_named(cr3, &self.features) else {
            let registers = Registers {
                cr3,
                ..self.registers
            };
            return self.load(mmu, machine, registers, Pdptes::Load);
        };
        let root = root.map_err(refused)?;
        let pcid = if tagged { cr3 & PCID } else { 0 };
        let load = if keep && self.tags.holds(pcid, root) {
            Load::Keep
        } else {
            Load::Forget
        };
        let before = self.space.root();
        let owed = mmu
            .switch(&mut self.space, Top::Table(root), load, machine)
            .map_err(ControlError::Failed)?;
        self.registers.cr3 = cr3;
        self.mode.begin_at(root);
        self.tags.load(pcid, root);
        Ok(Control {
            owed,
            root_changed: self.space.root() != before,
        })
    }

    /// MOV to CR0, LMSW, CLTS: the new value.
    ///
    /// # Errors
    ///
    /// See [`ControlError`]; nothing has changed then.
    pub fn write_cr0<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        value: u64,
    ) -> Result<Control, ControlError<M::Error>> {
        transition::to_cr0(&self.registers, value).map_err(refused)?;
        let registers = Registers {
            cr0: value,
            ..self.registers
        };
        let changed = value ^ self.registers.cr0;
        // SDM 3A, "PDPTE Registers".
        let pdptes = if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            Pdptes::Load
        } else {
            Pdptes::Keep
        };
        self.change(mmu, machine, registers, changed, pdptes)
    }

    /// MOV to CR4: the new value.
    ///
    /// # Errors
    ///
    /// See [`ControlError`]; nothing has changed then.
    pub fn write_cr4<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        value: u64,
    ) -> Result<Control, ControlError<M::Error>> {
        transition::to_cr4(&self.registers, value).map_err(refused)?;
        let registers = Registers {
            cr4: value,
            ..self.registers
        };
        let changed = value ^ self.registers.cr4;
        let pdptes = if changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 {
            Pdptes::Load
        } else {
            Pdptes::Keep
        };
        self.change(mmu, machine, registers, changed, pdptes)
    }

    /// WRMSR to `IA32_EFER`: the new value.
    ///
    /// # Errors
    ///
    /// See [`ControlError`]; nothing has changed then.
    pub fn write_efer<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        value: u64,
    ) -> Result<Control, ControlError<M::Error>> {
        transition::to_efer(&self.registers, value).map_err(refused)?;
        let registers = Registers {
            efer: value,
            ..self.registers
        };
        let changed = (value ^ self.registers.efer) & (efer::LME | efer::NXE);
        self.change(mmu, machine, registers, changed, Pdptes::Keep)
    }

    /// INVLPG. An address that is not canonical invalidates nothing.
    ///
    /// # Errors
    ///
    /// As [`Mmu::invalidate`].
    pub fn invlpg<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        linear: u64,
    ) -> Result<Owed, Failed<M::Error>> {
        mmu.invalidate(&self.space, machine, linear)
    }

    /// INVPCID, its operands [decoded](InvalidateKind::decode). The PCID does not matter: more is invalidated than asked for.
    ///
    /// # Errors
    ///
    /// As [`Mmu::invalidate_all`].
    pub fn invpcid<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        kind: InvalidateKind,
    ) -> Result<Owed, Failed<M::Error>> {
        match kind {
            InvalidateKind::Address(linear) => self.invlpg(mmu, machine, linear),
            InvalidateKind::Context | InvalidateKind::AllWithGlobal | InvalidateKind::All => {
                // Whatever it comes to: a tag less costs a comparison.
                self.forget_tags();
                mmu.invalidate_all(machine)
            }
        }
    }

    /// The processor is no more.
    pub fn retire<T: OwnEntries, P: Frames>(self, mmu: &mut Mmu<Linear, T, P>) {
        mmu.close(self.space);
    }

    /// Loads registers of which `changed` are other than before, if paging reads any.
    fn change<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        registers: Registers,
        changed: u64,
        pdptes: Pdptes,
    ) -> Result<Control, ControlError<M::Error>> {
        let pae = |mode: &PagingMode| mode.pdptes().is_some();
        if changed == 0 {
            return Ok(Control {
                owed: Owed::default(),
                root_changed: false,
            });
        }
        // Without registers to keep, they are loaded: paging has just become PAE.
        let pdptes = if pae(&self.mode) {
            pdptes
        } else {
            Pdptes::Load
        };
        self.load(mmu, machine, registers, pdptes)
    }

    fn load<T: OwnEntries, P: Frames, M: ReadEntry, B: HostMap>(
        &mut self,
        mmu: &mut Mmu<Linear, T, P>,
        machine: Machine<'_, M, B>,
        registers: Registers,
        pdptes: Pdptes,
    ) -> Result<Control, ControlError<M::Error>> {
        let mode = match (pdptes, self.mode.pdptes()) {
            (Pdptes::Keep, Some(kept)) => {
                PagingMode::with_pdptes(&registers, &self.features, *kept.values())
                    .map_err(|error| ControlError::General(widen(error)))?
            }
            _ => PagingMode::load(&registers, &self.features, machine.memory)
                .map_err(ControlError::General)?,
        };
        let stage = stage(&mode, &registers, self.processor)?;
        let before = self.space.root();
        let top = Linear::top(&mode);
        let owed = mmu
            .enter(&mut self.space, stage, top, Load::Forget, machine)
            .map_err(ControlError::Failed)?;
        self.registers = registers;
        self.mode = mode;
        self.forget_tags();
        Ok(Control {
            owed,
            root_changed: self.space.root() != before,
        })
    }

    /// The TLB is empty, or what it holds under some PCID is gone: what it may hold from now on is of the root in use.
    fn forget_tags(&mut self) {
        self.tags = Tags::default();
        if let Top::Table(root) = *self.space.top() {
            let tagged = self.registers.cr4 & cr4::PCIDE != 0;
            let pcid = if tagged { self.registers.cr3 & PCID } else { 0 };
            self.tags.load(pcid, root);
        }
    }
}

/// #GP(0).
const fn refused<E>(error: ModeError) -> ControlError<E> {
    ControlError::General(LoadError::Mode(error))
}

/// What the mode means, if shadows can express it.
fn stage<E>(
    mode: &PagingMode,
    registers: &Registers,
    processor: Processor,
) -> Result<Linear, ControlError<E>> {
    if registers.cr4 & cr4::CET != 0 {
        return Err(ControlError::Unsupported(Unsupported::ShadowStacks));
    }
    let long = mode
        .format()
        .is_some_and(|format| format.layout() >= Layout::FourLevel);
    if long && registers.cr4 & (cr4::PKE | cr4::PKS) != 0 {
        return Err(ControlError::Unsupported(Unsupported::ProtectionKeys));
    }
    Linear::new(mode, processor).map_err(ControlError::Unsupported)
}

/// The error of a load that reads no memory, as of one that does.
fn widen<E>(error: LoadError<core::convert::Infallible>) -> LoadError<E> {
    use crate::guest::PdpteError;
    match error {
        LoadError::Mode(error) => LoadError::Mode(error),
        LoadError::Pdpte(PdpteError::Reserved { index, entry, rule }) => {
            LoadError::Pdpte(PdpteError::Reserved { index, entry, rule })
        }
        LoadError::Pdpte(PdpteError::Unreadable { error, .. }) => match error {},
    }
}
