// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What their machine does that the specification does not say. Each has a section in the ledger of its oracle, in `lab/ledgers`.

use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Nobody, Unit};
use hvkit_vtd_iommu::spec::registers::{
    CCMD, ECAP, FEUADDR, FSTS, GCMD, GSTS, IEDATA, IEUADDR, IQA, IQERCD, IQH, IQT, QueueError,
};

use super::program::layout;

/// A rule, and its name in the ledger.
pub(super) type Rule = (Quirks, &'static str);

/// A set of rules of the ledgers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quirks(u32);

macro_rules! quirks {
    ($(#[$doc:meta])* $all:ident: $($name:ident = $bit:literal, $rule:literal;)* $(+ $shared:ident, $again:literal;)*) => {
        impl Quirks {
            $(pub(super) const $name: Self = Self(1 << $bit);)*
        }
        $(#[$doc])*
        pub(super) const $all: &[Rule] = &[
            $((Quirks::$name, $rule),)*
            $((Quirks::$shared, $again),)*
        ];
    };
}

quirks! {
    /// The rules of `vtd`.
    LEGACY:
    SILENT_WHEN_KEPT = 0, "silent-when-kept";
    NO_COMPATIBILITY_FORMAT = 1, "no-compatibility-format";
    QUEUE_IN_USE = 2, "queue-in-use";
    NO_ERROR_RECORD = 3, "no-error-record";
    DESCRIPTORS = 4, "descriptors";
    EVENT_DATA = 5, "event-data";
    LEAVES_AFTER_WAIT = 6, "leaves-after-wait";
    NO_RESUME = 7, "no-resume";
    STUCK_COMMAND = 8, "stuck-command";
    COARSE_CONTEXT = 9, "coarse-context";
    RESERVED_CONTEXT = 10, "reserved-context";
    WIDE_PASS_THROUGH = 11, "wide-pass-through";
    EXTENDED_KEPT = 26, "extended-kept";
}

quirks! {
    /// The rules of `vtd-interrupts`.
    INTERRUPTS:
    COMPATIBILITY_ALWAYS = 12, "compatibility-always";
    BUSES_SWAPPED = 13, "buses-swapped";
    INDEX_WRAPS = 14, "index-wraps";
    NOBODYS_DMA = 15, "nobodys-dma";
    POSTING_IGNORED = 16, "posting-ignored";
    RESERVED_CHECK = 17, "reserved-check";
    RESERVED_LAST = 18, "reserved-last";
    DESTINATION_UNCHECKED = 27, "destination-unchecked";
    + EXTENDED_KEPT, "extended-kept";
}

quirks! {
    /// The rules of `vtd-scalable`.
    SCALABLE:
    LEGACY_NAMES = 19, "legacy-names";
    INVALID_BEFORE_ABSENT = 20, "invalid-before-absent";
    MARKS_EARLY = 21, "marks-early";
    RESERVED_UNCHECKED = 22, "reserved-unchecked";
    DIRTY_LOST = 23, "dirty-lost";
    SNOOP_IGNORED = 24, "snoop-ignored";
    ABSENT_IS_SHOWN = 25, "absent-is-shown";
    + SILENT_WHEN_KEPT, "silent-when-kept";
    + RESERVED_CONTEXT, "reserved-context";
    + WIDE_PASS_THROUGH, "wide-pass-through";
}

impl Quirks {
    pub(super) const NONE: Self = Self(0);
    /// Those that take tables for something else than they are.
    pub(super) const OF_TABLES: Self = Self::DIRTY_LOST
        .and(Self::RESERVED_UNCHECKED)
        .and(Self::ABSENT_IS_SHOWN)
        .and(Self::INVALID_BEFORE_ABSENT);

    /// All of `rules` together.
    pub(super) fn all(rules: &[Rule]) -> Self {
        rules
            .iter()
            .fold(Self::NONE, |all, (quirk, _)| all.and(*quirk))
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

const COMPATIBILITY: u32 = 1 << 23;
const QUEUE_ON: u32 = 1 << 26;
const QUEUE_ERROR: u32 = 1 << 4;
const INVALIDATE: u32 = 1 << 31;
/// Where their IOTLB register is.
const IOTLB: u32 = 0xf8;

/// The registers of our unit as their rules would have them.
pub(super) struct Front {
    quirks: Quirks,
    /// The queue that was there when the queue was last turned on.
    queue: u64,
    /// The tail as it was last written.
    tail: Option<u64>,
    /// The upper halves of CCMD and IOTLB, if their commands are stuck.
    commands: [Option<u32>; 2],
    /// IEDATA as it was last written.
    event_data: u32,
}

impl Front {
    pub(super) fn new(quirks: Quirks) -> Self {
        Self {
            quirks,
            queue: 0,
            tail: None,
            commands: [None; 2],
            event_data: 0,
        }
    }

    /// Writes 4 or 8 bytes.
    pub(super) fn write(
        &mut self,
        unit: &mut Unit,
        ram: &Ram,
        offset: u32,
        value: u64,
        bytes: usize,
    ) {
        let mut value = value;
        let was_on = unit.register(GSTS).queued_invalidation();
        let has = |quirk| self.quirks.has(quirk);
        if offset == GCMD.offset() {
            let mut command = value as u32;
            let compatible = Quirks::NO_COMPATIBILITY_FORMAT.and(Quirks::COMPATIBILITY_ALWAYS);
            if has(compatible) {
                command &= !COMPATIBILITY;
            }
            let leaves = was_on && command & QUEUE_ON == 0;
            if has(Quirks::LEAVES_AFTER_WAIT) && leaves && !after_wait(unit, ram) {
                command |= QUEUE_ON;
            }
            value = value & !0xffff_ffff | u64::from(command);
        }
        if offset == IEDATA.offset() {
            self.event_data = value as u32;
        }
        let tail = offset == IQT.offset();
        if has(Quirks::DESCRIPTORS) && (tail || offset == GCMD.offset()) {
            rewrite_queue(unit, ram);
        }
        if tail {
            self.tail = None;
        }
        let error = unit.register(FSTS).queue_error();
        let clears = offset == FSTS.offset() && value as u32 & QUEUE_ERROR != 0;
        if has(Quirks::NO_RESUME) && error && clears {
            // While the error stands the doorbell is dead: the tail can be moved to where the head is.
            self.tail.get_or_insert(unit.register(IQT).0);
            let head = unit.register(IQH).0;
            unit.write64(ram, &mut Nobody, IQT.offset(), head);
        }
        let before = [CCMD.offset(), IOTLB].map(|at| unit.read32(at + 4));
        unit.write(ram, &mut Nobody, offset, &value.to_le_bytes()[..bytes]);
        for (at, (stuck, before)) in [CCMD.offset(), IOTLB]
            .into_iter()
            .zip(self.commands.iter_mut().zip(before))
        {
            let high = match (offset, bytes) {
                (offset, 8) if offset == at => (value >> 32) as u32,
                (offset, 4) if offset == at + 4 => value as u32,
                _ => continue,
            };
            // Once refused, it shows the granularity of the last that was not.
            let refused = high & INVALIDATE != 0 && was_on;
            let refused = refused || stuck.is_some() && high & INVALIDATE == 0;
            let kept = stuck.unwrap_or(before);
            let (writable, actual) = if at == IOTLB {
                (0xb003_ffff, 0x0600_0000)
            } else {
                (0xe000_0000, 0x1800_0000)
            };
            *stuck = if self.quirks.has(Quirks::STUCK_COMMAND) && refused {
                Some(high & writable | kept & actual)
            } else {
                None
            };
        }
        if !was_on && unit.register(GSTS).queued_invalidation() {
            self.queue = unit.register(IQA).queue();
        }
    }

    /// Reads 4 bytes.
    pub(super) fn read32(&self, unit: &Unit, offset: u32) -> u32 {
        const QUEUE: u32 = IQA.offset();
        const QUEUE_HIGH: u32 = IQA.offset() + 4;
        const ERROR: u32 = IQERCD.offset();
        const ERROR_HIGH: u32 = IQERCD.offset() + 4;
        const TAIL: u32 = IQT.offset();
        const EVENT: u32 = IEDATA.offset();
        const CAPABILITIES: u32 = ECAP.offset();
        const FAULT_UPPER: u32 = FEUADDR.offset();
        const EVENT_UPPER: u32 = IEUADDR.offset();
        const CONTEXT_HIGH: u32 = CCMD.offset() + 4;
        const IOTLB_HIGH: u32 = IOTLB + 4;
        let value = unit.read32(offset);
        let has = |quirk| self.quirks.has(quirk);
        let [context, iotlb] = self.commands;
        match offset {
            QUEUE if has(Quirks::QUEUE_IN_USE) => self.queue as u32 | value & 7,
            QUEUE_HIGH if has(Quirks::QUEUE_IN_USE) => (self.queue >> 32) as u32,
            ERROR | ERROR_HIGH if has(Quirks::NO_ERROR_RECORD) => 0,
            TAIL => self.tail.map_or(value, |tail| tail as u32),
            EVENT if has(Quirks::EVENT_DATA) => self.event_data,
            // Our unit has extended interrupt mode then, so that it keeps EIME.
            CAPABILITIES if has(Quirks::EXTENDED_KEPT) => value & !(1 << 4),
            FAULT_UPPER | EVENT_UPPER if has(Quirks::EXTENDED_KEPT) => 0,
            CONTEXT_HIGH => {
                let value = context.unwrap_or(value);
                // Granularity 2, by domain, is done as 1.
                if has(Quirks::COARSE_CONTEXT) && value >> 27 & 3 == 2 {
                    value & !(3 << 27) | 1 << 27
                } else {
                    value
                }
            }
            IOTLB_HIGH => iotlb.unwrap_or(value),
            _ => value,
        }
    }
}

/// Whether their unit would leave its queue: it is empty, and the last descriptor was a wait.
fn after_wait(unit: &Unit, ram: &Ram) -> bool {
    let (head, tail) = (unit.register(IQH).offset(), unit.register(IQT).offset());
    let address = unit.register(IQA);
    let size = u64::from(address.bytes());
    let last = address.queue() + (head + size - 16) % size;
    let kind = ram_word(ram, last) & 0xf;
    // Of an error in a descriptor, that was the last; of one in the tail, there was none.
    let error = unit.register(FSTS).queue_error();
    let error = error && unit.register(IQERCD).error() != QueueError::INVALID_TAIL;
    head == tail && (kind == 5 || kind == 0) && !error
}

fn ram_word(ram: &Ram, at: u64) -> u64 {
    if at < ram.size() { ram.get(at) } else { 0 }
}

/// Makes of each descriptor in the queue what their unit takes it for.
fn rewrite_queue(unit: &Unit, ram: &Ram) {
    let address = unit.register(IQA);
    if address.queue() >= ram.size() {
        return;
    }
    for at in (address.queue()..address.queue() + u64::from(address.bytes())).step_by(16) {
        let words = [ram.get(at), ram.get(at + 8)];
        let taken = as_taken(words);
        if taken != words {
            ram.set_all(at, &taken);
        }
    }
}

/// A descriptor that does nothing, and one that is an error.
const NOTHING: [u64; 2] = [0x45, 0];
const ERROR: [u64; 2] = [0xf, 0];

fn as_taken([low, high]: [u64; 2]) -> [u64; 2] {
    let verdict = |reserved: bool| if reserved { ERROR } else { NOTHING };
    match low & 0xf {
        // Device TLB: taken though the unit has none.
        3 => verdict(low & 0xffff_0000_ffe0_fff8 != 0 || high & 0xffe != 0),
        // Interrupt entry cache: no bit is reserved.
        4 => [low & 0x0000_ffff_7800_001f, 0],
        // A wait for neither status nor interrupt, or whose status has no memory.
        5 if low & 0x30 == 0 => ERROR,
        5 if low & 0x20 != 0 && high >= layout::MEMORY => ERROR,
        // PASIDs: taken, whatever they say, though the unit has none.
        6 | 7 => NOTHING,
        _ => [low, high],
    }
}
