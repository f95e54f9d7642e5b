// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt messages through our unit, as their rules would have them. `lab/ledgers/vtd-interrupts.md` has a section for each.

use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Delivered, Interrupt, Nobody, Refused, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::{Irte, Message, SourceCheck, SourceQualifier};
use hvkit_vtd_iommu::spec::registers::InterruptTableAddress;

use super::quirks::Quirks;

/// IM.
const POSTED: u64 = 1 << 15;
/// The source that they write down for DMA.
const NOBODY: RequesterId = RequesterId(0xffff);

/// Who asks, of which table.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    pub(super) source: RequesterId,
    /// The table of entries; `None` while interrupts are not remapped.
    pub(super) table: Option<InterruptTableAddress>,
    pub(super) quirks: Quirks,
}

impl Asker {
    /// What comes of a message.
    pub(super) fn send(
        mut self,
        unit: &mut Unit,
        ram: &Ram,
        mut message: Message,
    ) -> Option<Interrupt> {
        let Some(asks) = message.to_remappable().filter(|_| self.table.is_some()) else {
            if self.quirks.has(Quirks::COMPATIBILITY_ALWAYS) {
                return Some(unchanged(message));
            }
            return arrives(unit.remap(ram, &mut Nobody, self.source, message));
        };
        let by_dma = message.data >> 16 != 0;
        if by_dma && self.quirks.has(Quirks::NOBODYS_DMA) {
            self.source = NOBODY;
        }
        let reserved = by_dma && asks.subhandle.is_some();
        if self.quirks.has(Quirks::INDEX_WRAPS) {
            let Message { address, .. } = Message::remappable(asks.index() as u16);
            message.address = address;
        }
        if !(reserved && self.quirks.has(Quirks::RESERVED_LAST)) {
            return arrives(self.remap(unit, ram, message));
        }
        // The entry is looked at first, and without its index what is then refused is written down.
        message.data &= 0xffff;
        let refused = self.remap(&mut unit.clone(), ram, message).is_err();
        if refused {
            let _ = self.remap(unit, ram, message);
        } else {
            let first = Message {
                data: 1 << 16,
                ..Message::remappable_block(0, 0)
            };
            let _ = unit.remap(ram, &mut Nobody, self.source, first);
        }
        None
    }

    /// The entry that a message asks for, and where it is.
    fn entry(self, ram: &Ram, message: Message) -> Option<(u64, Irte)> {
        let index = message.to_remappable()?.index();
        let at = self.table?.table() + u64::from(index) * Irte::SIZE;
        let there = at + Irte::SIZE <= ram.size();
        there.then(|| (at, Irte([ram.get(at), ram.get(at + 8)])))
    }

    /// Remaps, with the entry as they take it in place of what is there.
    fn remap(self, unit: &mut Unit, ram: &Ram, message: Message) -> Result<Delivered, Refused> {
        let entry = self.entry(ram, message);
        if let Some((at, entry)) = entry {
            ram.set_all(at, &self.taken(entry).0);
        }
        let sent = unit.remap(ram, &mut Nobody, self.source, message);
        if let Some((at, entry)) = entry {
            ram.set_all(at, &entry.0);
        }
        sent
    }

    /// What they take an entry for.
    fn taken(self, mut entry: Irte) -> Irte {
        if self.quirks.has(Quirks::POSTING_IGNORED) {
            entry.0[0] &= !POSTED;
        }
        let wide = |table: InterruptTableAddress| table.extended_interrupt_mode();
        if self.quirks.has(Quirks::DESTINATION_UNCHECKED) && !self.table.is_some_and(wide) {
            entry.0[0] &= !(entry.reserved_destination() << 32);
        }
        if self.source == NOBODY {
            return entry.with_svt(0);
        }
        match entry.svt() {
            2 if self.quirks.has(Quirks::BUSES_SWAPPED) => {
                entry.with_sid((entry.sid() as u16).swap_bytes().into())
            }
            // A check that nobody passes.
            3 if self.quirks.has(Quirks::RESERVED_CHECK) => {
                let nobody = RequesterId(!self.source.0);
                entry.with_source_check(SourceCheck::Requester(nobody, SourceQualifier::All))
            }
            _ => entry,
        }
    }
}

fn arrives(sent: Result<Delivered, Refused>) -> Option<Interrupt> {
    match sent {
        Ok(Delivered::Unchanged(message)) => Some(unchanged(message)),
        Ok(Delivered::Remapped(interrupt)) => Some(interrupt),
        Ok(Delivered::Posted { notification }) => notification,
        Err(_) => None,
    }
}

/// What a message of the compatibility format asks for.
fn unchanged(message: Message) -> Interrupt {
    Interrupt {
        vector: message.vector(),
        delivery: message.delivery(),
        destination: message.destination().into(),
        logical: message.is_logical(),
        redirection_hint: message.redirection_hint(),
        level_triggered: message.is_level(),
    }
}
