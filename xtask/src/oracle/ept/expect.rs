// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What our nested walk says of a case, as the record that the model should send.

use std::convert::Infallible;

use anyhow::{Context, Result, bail};
use hvkit_ept::Ept;
use hvkit_ept::access::{Access as EptAccess, EptFault, GuestSpace};
use hvkit_ept::dirty::pml::PmlIndex;
use hvkit_ept::marks::Updates;
use hvkit_ept::nested_walk::{self, GuestFault as Nested};
use hvkit_ept::spec::{Accesses, Controls, EptEntry, EptVpidCap, Eptp, Qualification};
use hvkit_page_table::{UpdateEntry, Width};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, LoadError, PagingMode, PdpteError, Privilege, Registers,
};
use lab_cases::ept::{
    ARENAS, CODE_OFFSETS, Case, DATA_OFFSETS, Doing, EptCpu, Mode, Nmi, PML_LOG, Record, STORED,
    Stored, VE_INFORMATION, Who, pattern, secondary,
};

use super::adapter::X86;
use super::quirks::Quirks;
use crate::oracle::memory::Memory;

/// #GP, #PF and #VE.
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const VIRTUALIZATION: u8 = 20;
/// Exit reasons.
const VMCALL: u32 = 18;
const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;
const LOG_FULL: u32 = 62;
/// Bytes of the instruction that loads CR3.
const MOV_CR3: u64 = 3;

/// Our side of a case.
pub(super) struct Expected {
    /// What the model should send.
    pub(super) record: Record,
    /// Why, in words.
    pub(super) why: String,
}

/// How a guest's instruction ended that did not complete.
struct Ended {
    record: Record,
    why: String,
}

/// Our processor.
struct Machine<'a> {
    case: &'a Case,
    ept: Ept,
    root: u64,
    memory: Memory,
    guest: PagingMode,
    registers: Registers,
    features: Features,
    log: PmlIndex,
    /// Whether the instruction runs that unblocks NMIs.
    unblocks: Unblocks,
}

/// Whether an access is one of IRET's own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unblocks {
    No,
    Yes,
}

/// Runs `case` on our walker, or on it as it would be with a model's `quirks`.
pub(super) fn expect(case: &Case, cpu: &EptCpu, _quirks: Quirks) -> Result<Expected> {
    let mut machine = Machine::new(case, cpu)?;
    let (mut record, why) = match machine.run()? {
        Ok(record) => (record, "completed".to_owned()),
        Err(ended) => (ended.record, ended.why),
    };
    record.pml_index = machine.log.0;
    record.memory = machine.memory.digest(&ARENAS);
    Ok(Expected { record, why })
}

impl<'a> Machine<'a> {
    fn new(case: &'a Case, cpu: &EptCpu) -> Result<Self> {
        let width = cpu.physical_address_bits;
        let eptp = Eptp(case.eptp);
        let capability = EptVpidCap::from_msr(cpu.processor().vmx.ept_vpid.0);
        let mut controls = Controls::empty();
        let has = |bit| case.secondary & bit != 0;
        controls.set(
            Controls::VIOLATION_EXCEPTION,
            has(secondary::VIOLATION_EXCEPTION),
        );
        controls.set(
            Controls::MODE_BASED_EXECUTE,
            has(secondary::MODE_BASED_EXECUTE),
        );
        let ept = Ept::from_eptp(eptp, capability, width.into(), controls)?;
        let registers = Registers {
            cr0: case.cr0,
            cr3: case.cr3,
            cr4: case.cr4,
            efer: case.efer,
            ..Registers::default()
        };
        let features = Features::all(width);
        let guest = PagingMode::with_pdptes(&registers, &features, case.pdptes)
            .context("the case cannot be")?;
        let memory = Memory::new(case.entries.slots(), word);
        memory.store(VE_INFORMATION + 4, Width::Four, case.ve_busy.into());
        Ok(Self {
            case,
            ept,
            root: eptp.root(),
            memory,
            guest,
            registers,
            features,
            log: PmlIndex(case.pml_index),
            unblocks: Unblocks::No,
        })
    }

    /// The sequence, from its first fetch.
    fn run(&mut self) -> Result<Result<Record, Ended>> {
        let case = self.case;
        let privilege = match case.who {
            Who::User => Privilege::User,
            Who::Supervisor => Privilege::Supervisor,
        };
        Ok(self
            .sequence(case, privilege)?
            .map(|(value, stored)| Record {
                reason: VMCALL,
                value,
                stored,
                ..Record::default()
            }))
    }

    fn sequence(
        &mut self,
        case: &Case,
        privilege: Privilege,
    ) -> Result<Result<(u32, Stored), Ended>> {
        macro_rules! go {
            ($linear:expr, $kind:expr, $privilege:expr) => {
                match self.access($linear, Access::new($kind, $privilege))? {
                    Ok(at) => at,
                    Err(ended) => return Ok(Err(ended)),
                }
            };
        }
        go!(case.code, Kind::Fetch, privilege);
        let linear = case.linear;
        Ok(Ok(match case.doing {
            Doing::Read => {
                let at = go!(linear, Kind::Read, privilege);
                (self.memory.load_32(at), Stored::No)
            }
            Doing::Write => {
                let at = go!(linear.wrapping_add(4), Kind::Write, privilege);
                self.memory.store_32(at, STORED);
                let at = go!(linear, Kind::Read, privilege);
                let value = self.memory.load_32(at);
                (value, self.stored(value, 4))
            }
            Doing::Exchange => {
                let at = go!(linear, Kind::Write, privilege);
                let value = self.memory.load_32(at);
                self.memory.store_32(at, STORED);
                (value, self.stored(value, 0))
            }
            Doing::Fetch => {
                let at = go!(linear, Kind::Fetch, privilege);
                if !pattern().contains(&at) || !CODE_OFFSETS.contains(&(at & 0xfff)) {
                    bail!("the case runs what is at {at:#x}, which is no code");
                }
                (at as u32, Stored::No)
            }
            Doing::Implicit => {
                go!(linear, Kind::Read, Privilege::Implicit);
                (0, Stored::No)
            }
            Doing::LoadPdptes => {
                if let Err(ended) = self.load_pdptes()? {
                    return Ok(Err(ended));
                }
                go!(case.code + MOV_CR3, Kind::Fetch, privilege);
                (0, Stored::No)
            }
            Doing::Iret => {
                self.unblocks = Unblocks::Yes;
                go!(linear, Kind::Read, privilege);
                // A null selector is popped for CS.
                return Ok(Err(exception(GENERAL_PROTECTION, 0, 0, "IRET to nowhere")));
            }
        }))
    }

    /// MOV to CR3.
    fn load_pdptes(&mut self) -> Result<Result<(), Ended>> {
        self.registers.cr3 = self.case.linear;
        let space = GuestSpace::new(&self.ept, &self.memory, self.root);
        let reader = space.reader(EptAccess::no_linear_address(Accesses::READ));
        let loaded = PagingMode::load(&self.registers, &self.features, &reader);
        let updates = reader.into_updates();
        if let Err(ended) = self.apply(&updates) {
            return Ok(Err(ended));
        }
        Ok(match loaded {
            Ok(mode) => {
                self.guest = mode;
                Ok(())
            }
            Err(LoadError::Pdpte(PdpteError::Unreadable { error, .. })) => {
                Err(self.exit(error, self.case.linear)?)
            }
            Err(LoadError::Pdpte(why @ PdpteError::Reserved { .. })) => {
                Err(exception(GENERAL_PROTECTION, 0, 0, &why.to_string()))
            }
            Err(other) => bail!("the case cannot be: {other}"),
        })
    }

    /// One access to a linear address, with all that it stores but data. Returns the host-physical address.
    fn access(&mut self, linear: u64, access: Access) -> Result<Result<u64, Ended>> {
        let space = GuestSpace::new(&self.ept, &self.memory, self.root);
        let mut updates = Updates::new();
        let guest = X86(self.guest);
        let result = nested_walk::translate_marking(&space, &guest, linear, access, &mut updates);
        if let Err(ended) = self.apply(&updates) {
            return Ok(Err(ended));
        }
        Ok(match result {
            Ok(found) => Ok(found.host.host_physical),
            Err(Nested::Page(fault)) => Err(match fault {
                GuestFault::Page { linear, code, .. } => {
                    exception(PAGE_FAULT, code.0 as u16, linear, &fault.to_string())
                }
                GuestFault::NonCanonical { .. } => {
                    exception(GENERAL_PROTECTION, 0, 0, &fault.to_string())
                }
                other => bail!("no outcome of a processor: {other}"),
            }),
            Err(Nested::Memory(fault)) => Err(self.exit(fault, linear)?),
        })
    }

    /// The flags that were found, stored and logged, up to where the log is full.
    fn apply(&mut self, updates: &Updates) -> Result<(), Ended> {
        let logs = self.case.secondary & secondary::PML != 0;
        for mark in updates.marks() {
            let epts = mark.set & (EptEntry::ACCESSED | EptEntry::DIRTY) != 0;
            if logs && epts && self.log.next().is_none() {
                let record = Record {
                    reason: LOG_FULL,
                    qualification: self.nmi_unblocking(),
                    ..Record::default()
                };
                let why = "the log is full".to_owned();
                return Err(Ended { record, why });
            }
            let Ok(_) = self.memory.compare_exchange(
                mark.at,
                mark.width,
                mark.entry,
                mark.entry | mark.set,
            );
            if let (true, Some(page)) = (logs, mark.logged) {
                let at = PML_LOG + u64::from(self.log.0) * 8;
                self.memory.store(at, Width::Eight, page);
                self.log = PmlIndex(self.log.0.wrapping_sub(1));
            }
        }
        Ok(())
    }

    /// The exit, or the exception in its place.
    fn exit(&self, fault: EptFault<Infallible>, linear: u64) -> Result<Ended> {
        let why = fault.to_string();
        let record = match fault {
            EptFault::Violation {
                guest_physical,
                qualification,
                convertible,
            } => {
                let qualification = qualification.bits() | self.nmi_unblocking();
                let valid = Qualification::LINEAR_ADDRESS_VALID.bits();
                let linear = if qualification & valid != 0 {
                    linear
                } else {
                    0
                };
                let case = self.case;
                if convertible && case.cr0 & 1 != 0 && case.ve_busy == 0 {
                    let words = [
                        u64::from(EPT_VIOLATION) | 0xffff_ffff << 32,
                        qualification,
                        linear,
                        guest_physical,
                    ];
                    for (at, word) in (VE_INFORMATION..).step_by(8).zip(words) {
                        self.memory.store(at, Width::Eight, word);
                    }
                    return Ok(exception(VIRTUALIZATION, 0, 0, &why));
                }
                Record {
                    reason: EPT_VIOLATION,
                    qualification,
                    guest_physical,
                    linear,
                    ..Record::default()
                }
            }
            EptFault::Misconfiguration { guest_physical, .. } => Record {
                reason: EPT_MISCONFIGURATION,
                guest_physical,
                ..Record::default()
            },
            other => bail!("no outcome of a processor: {other}"),
        };
        Ok(Ended { record, why })
    }

    /// Bit 12, of an exit that IRET causes after it unblocked NMIs.
    fn nmi_unblocking(&self) -> u64 {
        if self.case.nmi != Nmi::Open && self.unblocks == Unblocks::Yes {
            Qualification::NMI_UNBLOCKING.bits()
        } else {
            0
        }
    }

    /// What the payload finds `offset` above the address that it read, if that is one of the pattern.
    fn stored(&self, value: u32, offset: u64) -> Stored {
        let at = u64::from(value);
        let there = pattern().contains(&at) && at.is_multiple_of(4);
        if there && self.memory.load_32(at + offset) == STORED {
            Stored::Yes
        } else {
            Stored::No
        }
    }
}

fn exception(vector: u8, error: u16, address: u64, why: &str) -> Ended {
    let record = Record {
        vector,
        error,
        qualification: address,
        ..Record::default()
    };
    Ended {
        record,
        why: why.to_owned(),
    }
}

/// The 8 bytes at `at` as the payload prepares them.
fn word(at: u64) -> u64 {
    let offset = at & 0xfff;
    if !pattern().contains(&at) {
        0
    } else if DATA_OFFSETS.contains(&offset) {
        at
    } else if CODE_OFFSETS.contains(&offset) {
        0xb8 | at << 8 | 0xc1_010f << 40
    } else {
        0
    }
}

/// What kind of case it was, for the count of what was exercised: mode, and how it ended.
pub(super) fn kind(case: &Case, record: &Record) -> String {
    let mode = match case.mode {
        Mode::Real => "real mode",
        Mode::Unpaged => "no paging",
        Mode::ThirtyTwoBit => "32-bit",
        Mode::Pae => "PAE",
        Mode::FourLevel => "4-level",
    };
    let outcome = match (record.reason, record.vector) {
        (0, PAGE_FAULT) => "#PF".to_owned(),
        (0, GENERAL_PROTECTION) => "#GP".to_owned(),
        (0, VIRTUALIZATION) => "#VE".to_owned(),
        (0, vector) => format!("vector {vector}"),
        (VMCALL, _) => "completed".to_owned(),
        (EPT_VIOLATION, _) => match record.qualification & 0x180 {
            0 => "violation without a linear address",
            0x80 => "violation by a table",
            _ => "violation by the page",
        }
        .to_owned(),
        (EPT_MISCONFIGURATION, _) => "misconfiguration".to_owned(),
        (LOG_FULL, _) => "log full".to_owned(),
        (reason, _) => format!("exit reason {reason:#x}"),
    };
    format!("{mode}: {outcome}")
}
