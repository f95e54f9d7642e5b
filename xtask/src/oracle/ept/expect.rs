// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What our nested walk says of a case, as the record that the model should send.

use std::cell::Cell;
use std::convert::Infallible;

use anyhow::{Context, Result, bail};
use hvkit_ept::access::{Access as EptAccess, EptFault, GuestSpace};
use hvkit_ept::dirty::pml::PmlIndex;
use hvkit_ept::marks::Updates;
use hvkit_ept::nested_walk::{self, GuestFault as Nested};
use hvkit_ept::spec::{
    Accesses, Controls, EptEntry, EptVpidCap, Eptp, Misconfiguration, Qualification,
};
use hvkit_ept::{Ept, Rule};
use hvkit_page_table::{UpdateEntry, Width};
use hvkit_shadow_paging::guest::{
    Access, Features, GuestFault, Kind, LoadError, PagingMode, PdpteError, Privilege, Registers,
};
use lab_cases::ept::{
    ARENAS, CODE_OFFSETS, Case, DATA_OFFSETS, Doing, EptCpu, Nmi, PML_LOG, Record, STORED, Stored,
    VE_INFORMATION, Who, pattern, secondary,
};

use super::adapter::X86;
use super::kind::{
    EPT_MISCONFIGURATION, EPT_VIOLATION, GENERAL_PROTECTION, LOG_FULL, PAGE_FAULT, VIRTUALIZATION,
    VMCALL,
};
use super::quirks::{Quirks, Stop, Walk};
use crate::oracle::memory::Memory;

/// Where IRET's EFLAGS are on the stack. The manual leaves open what is read first; the model begins there.
const EFLAGS: u64 = 8;
/// Reserved in an entry that maps a large page.
const BIT_12: u64 = 1 << 12;
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
    /// The entry that is misconfigured by [`BIT_12`] alone.
    over_bit_12: Option<u64>,
}

/// Our processor.
struct Machine<'a> {
    case: &'a Case,
    quirks: Quirks,
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
pub(super) fn expect(case: &Case, cpu: &EptCpu, quirks: Quirks) -> Result<Expected> {
    let mut ignored = Vec::new();
    let (machine, (mut record, why)) = loop {
        let mut machine = Machine::new(case, cpu, quirks)?;
        for at in &ignored {
            machine.memory.flip(*at, BIT_12);
        }
        let ended = match machine.run()? {
            Ok(record) => break (machine, (record, "completed".to_owned())),
            Err(ended) => ended,
        };
        let place = ended
            .over_bit_12
            .and_then(|entry| machine.memory.find(entry));
        match place.filter(|_| quirks.has(Quirks::BIT_12_IGNORED)) {
            Some(at) => ignored.push(at),
            None => break (machine, (ended.record, ended.why)),
        }
    };
    for at in ignored {
        machine.memory.flip(at, BIT_12);
    }
    record.pml_index = machine.log.0;
    record.memory = machine.memory.digest(&ARENAS);
    Ok(Expected { record, why })
}

impl<'a> Machine<'a> {
    fn new(case: &'a Case, cpu: &EptCpu, quirks: Quirks) -> Result<Self> {
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
            quirks,
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
                go!(linear + EFLAGS, Kind::Read, privilege);
                // A null selector is popped for CS.
                return Ok(Err(exception(GENERAL_PROTECTION, 0, 0, "IRET to nowhere")));
            }
        }))
    }

    /// MOV to CR3.
    fn load_pdptes(&mut self) -> Result<Result<(), Ended>> {
        if self.quirks.has(Quirks::FULL_AT_ONCE) && self.logs() && self.log.next().is_none() {
            return Ok(Err(self.log_full()));
        }
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
        let guest = X86(self.guest);
        let result = if self.quirks == Quirks::NONE {
            let mut updates = Updates::new();
            let result =
                nested_walk::translate_marking(&space, &guest, linear, access, &mut updates);
            if let Err(ended) = self.apply(&updates) {
                return Ok(Err(ended));
            }
            result
                .map(|found| found.host.host_physical)
                .map_err(|fault| match fault {
                    Nested::Page(fault) => Nested::Page(fault),
                    Nested::Memory(fault) => Nested::Memory(Stop::Fault(fault)),
                })
        } else {
            let walk = Walk {
                space: &space,
                quirks: self.quirks,
                log: self.logs().then(|| Cell::new(self.log)),
            };
            let result = walk.translate(&guest, linear, access);
            self.log = walk.log.map_or(self.log, Cell::into_inner);
            result
        };
        Ok(match result {
            Ok(at) => Ok(at),
            Err(Nested::Page(fault)) => Err(match fault {
                GuestFault::Page { linear, code, .. } => {
                    exception(PAGE_FAULT, code.0 as u16, linear, &fault.to_string())
                }
                GuestFault::NonCanonical { .. } => {
                    exception(GENERAL_PROTECTION, 0, 0, &fault.to_string())
                }
                other => bail!("no outcome of a processor: {other}"),
            }),
            Err(Nested::Memory(Stop::Fault(fault))) => Err(self.exit(fault, linear)?),
            Err(Nested::Memory(Stop::LogFull)) => Err(self.log_full()),
        })
    }

    /// Whether there is anything to log, and a log.
    fn logs(&self) -> bool {
        let flags = self.ept.controls().contains(Controls::ACCESSED_DIRTY);
        flags && self.case.secondary & secondary::PML != 0
    }

    fn log_full(&self) -> Ended {
        let record = Record {
            reason: LOG_FULL,
            qualification: self.nmi_unblocking(),
            ..Record::default()
        };
        Ended {
            record,
            why: "the log is full".to_owned(),
            over_bit_12: None,
        }
    }

    /// The flags that were found, stored and logged, up to where the log is full.
    fn apply(&mut self, updates: &Updates) -> Result<(), Ended> {
        let logs = self.logs();
        for mark in updates.marks() {
            let epts = mark.set & (EptEntry::ACCESSED | EptEntry::DIRTY) != 0;
            if logs && epts && self.log.next().is_none() {
                return Err(self.log_full());
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
                let mut qualification = qualification.bits() | self.nmi_unblocking();
                let flags = self.ept.controls().contains(Controls::ACCESSED_DIRTY);
                let by_table = qualification & 0x180 == 0x80;
                if self.quirks.has(Quirks::TABLES_WRITTEN_ALONE) && flags && by_table {
                    qualification &= !Qualification::READ.bits();
                }
                let user_execute = Qualification::USER_EXECUTABLE.bits();
                if self.quirks.has(Quirks::USER_EXECUTE_AT_13) && qualification & user_execute != 0
                {
                    qualification ^= user_execute | 1 << 13;
                }
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
        let over_bit_12 = match fault {
            EptFault::Misconfiguration {
                level: 2 | 3,
                entry,
                rule: Rule::Misconfigured(Misconfiguration::Reserved { bits: BIT_12 }),
                ..
            } => Some(entry),
            _ => None,
        };
        Ok(Ended {
            record,
            why,
            over_bit_12,
        })
    }

    /// Bit 12, of an exit that IRET causes after it unblocked NMIs.
    fn nmi_unblocking(&self) -> u64 {
        let blocked = self.case.nmi != Nmi::Open || self.quirks.has(Quirks::IRET_UNBLOCKS);
        if blocked && self.unblocks == Unblocks::Yes {
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
        over_bit_12: None,
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
