// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the checks of one VMCS share.

use super::{
    Moment,
    memory::PhysicalMemory,
    report::{Expected, Place, Sink, Violation},
    rule::Rule,
    verdict::Verdict,
};
use crate::{
    capability::Processor,
    controls::{Entry, ExitPrimary, ExitSecondary, PinBased, Primary, Secondary, Tertiary},
    encoding::Encoding,
    event::Event,
    field::{Access, Field, WidthType},
    fields,
    store::Fields,
};

/// The controls as they take effect: those that are not activated count as 0.
pub(super) struct Controls {
    pub(super) pin: PinBased,
    pub(super) primary: Primary,
    pub(super) secondary: Secondary,
    pub(super) tertiary: Tertiary,
    pub(super) exit: ExitPrimary,
    pub(super) exit2: ExitSecondary,
    pub(super) entry: Entry,
    pub(super) event: Event,
    pub(super) guest_cr0: u64,
}

impl Controls {
    #[inline(always)]
    pub(super) fn ia32e_guest(&self) -> bool {
        self.entry.contains(Entry::IA32E_MODE_GUEST)
    }

    #[inline(always)]
    pub(super) fn unrestricted(&self) -> bool {
        self.secondary.contains(Secondary::UNRESTRICTED_GUEST)
    }
}

/// One run of the checker.
pub(super) struct Run<'a, S, M, K: ?Sized> {
    vmcs: &'a S,
    pub(super) cpu: &'a Processor,
    pub(super) now: &'a Moment,
    memory: &'a M,
    sink: &'a mut K,
    verdict: Verdict,
}

impl<'a, S: Fields, M: PhysicalMemory, K: Sink + ?Sized> Run<'a, S, M, K> {
    pub(super) fn new(
        vmcs: &'a S,
        cpu: &'a Processor,
        now: &'a Moment,
        memory: &'a M,
        sink: &'a mut K,
    ) -> Self {
        Self {
            vmcs,
            cpu,
            now,
            memory,
            sink,
            verdict: Verdict::default(),
        }
    }

    pub(super) fn into_verdict(self) -> Verdict {
        self.verdict
    }

    /// The value of a field.
    #[inline(always)]
    pub(super) fn get<T: WidthType, A: Access>(&mut self, field: Field<T, A>) -> u64 {
        match self.vmcs.get(field.encoding()) {
            Some(value) => value,
            None => self.missing(field.encoding()),
        }
    }

    #[cold]
    #[inline(never)]
    fn missing(&mut self, field: Encoding) -> u64 {
        self.verdict.missing = self.verdict.missing.saturating_add(1);
        self.sink.missing(field);
        0
    }

    #[inline(always)]
    pub(super) fn load_controls(&mut self) -> Controls {
        let primary = Primary::from_bits_retain(self.get(fields::PRIMARY_CONTROLS) as u32);
        let exit = ExitPrimary::from_bits_retain(self.get(fields::PRIMARY_EXIT_CONTROLS) as u32);
        let secondary = if primary.contains(Primary::ACTIVATE_SECONDARY) {
            self.get(fields::SECONDARY_CONTROLS) as u32
        } else {
            0
        };
        let tertiary = if primary.contains(Primary::ACTIVATE_TERTIARY) {
            self.get(fields::TERTIARY_CONTROLS)
        } else {
            0
        };
        let exit2 = if exit.contains(ExitPrimary::ACTIVATE_SECONDARY) {
            self.get(fields::SECONDARY_EXIT_CONTROLS)
        } else {
            0
        };
        Controls {
            pin: PinBased::from_bits_retain(self.get(fields::PIN_BASED_CONTROLS) as u32),
            primary,
            secondary: Secondary::from_bits_retain(secondary),
            tertiary: Tertiary::from_bits_retain(tertiary),
            exit,
            exit2: ExitSecondary::from_bits_retain(exit2),
            entry: Entry::from_bits_retain(self.get(fields::ENTRY_CONTROLS) as u32),
            event: Event(self.get(fields::INJECTED_EVENT) as u32),
            guest_cr0: self.get(fields::GUEST_CR0),
        }
    }

    /// Reports unless `holds`. The place is the field.
    #[inline(always)]
    pub(super) fn require<T: WidthType, A: Access>(
        &mut self,
        holds: bool,
        rule: &'static Rule,
        (field, value): (Field<T, A>, u64),
        expected: Expected,
    ) {
        if !holds {
            self.broken(rule, Place::Field(field.encoding()), value, expected);
        }
    }

    /// Reports a broken rule. Kept out of line: entries that work never come here.
    #[cold]
    #[inline(never)]
    pub(super) fn broken(
        &mut self,
        rule: &'static Rule,
        place: Place,
        value: u64,
        expected: Expected,
    ) {
        let entry = match place {
            Place::MsrEntry { number, .. } => number,
            _ => 0,
        };
        self.verdict.broken(rule, entry);
        self.sink.violation(&Violation {
            rule,
            place,
            value,
            expected,
        });
    }

    /// Requires that only bits of `may_be_one` are set.
    #[inline(always)]
    pub(super) fn only_bits<T: WidthType, A: Access>(
        &mut self,
        may_be_one: u64,
        rule: &'static Rule,
        (field, value): (Field<T, A>, u64),
    ) {
        let expected = Expected::Bits {
            must_be_one: 0,
            may_be_one,
        };
        self.require(value & !may_be_one == 0, rule, (field, value), expected);
    }

    /// Requires a physical address that is a multiple of `alignment`.
    #[inline(always)]
    pub(super) fn address<T: WidthType, A: Access>(
        &mut self,
        alignment: u64,
        rule: &'static Rule,
        field: Field<T, A>,
    ) {
        let value = self.get(field);
        let forbidden = self.cpu.beyond_physical() | alignment.wrapping_sub(1);
        let bits = self.cpu.physical_address_bits;
        let expected = Expected::PhysicalAddress { alignment, bits };
        self.require(value & forbidden == 0, rule, (field, value), expected);
    }

    /// Requires a canonical address.
    #[inline(always)]
    pub(super) fn canonical<T: WidthType, A: Access>(
        &mut self,
        rule: &'static Rule,
        (field, value): (Field<T, A>, u64),
    ) {
        let expected = Expected::Canonical {
            bits: self.cpu.linear_address_bits,
        };
        self.require(self.cpu.is_canonical(value), rule, (field, value), expected);
    }

    /// Reads a little-endian number of `N` bytes from physical memory; notes the rule as undecided if that fails.
    pub(super) fn read_memory<const N: usize>(
        &mut self,
        rule: &'static Rule,
        address: u64,
    ) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.memory.read(address, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(_) => {
                self.undecided(rule);
                None
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn undecided(&mut self, rule: &'static Rule) {
        self.verdict.undecided = self.verdict.undecided.saturating_add(1);
        self.sink.undecided(rule);
    }
}
