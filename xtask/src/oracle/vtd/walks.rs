// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scalable mode in our machine as their rules would have it. `lab/ledgers/vtd-scalable.md` has a section for each.

use hvkit_page_table::{Fault, Root, walk};
use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Access, Request, Unit};
use hvkit_vtd_iommu::spec::context::ScalableContextEntry;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::first_stage::FirstStageEntry;
use hvkit_vtd_iommu::spec::pasid::{PasidDirectoryEntry, PasidEntry, TranslationKind};
use hvkit_vtd_iommu::spec::root::RootEntry;
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::FirstStage;

use super::HOST_BITS;
use super::program::layout;
use super::quirks::Quirks;

/// What they do not look at in a PASID entry: reserved bits below the addresses; SSADE; page and walk snoop; SRE, ERE, WPE, SMEP and EAFE.
const UNCHECKED: [u64; 8] = [0xe20, !0xffff, 0xfd3 & !NXE, !0, !0, !0, !0, !0];
/// DTE, PASIDE and PRE of a context entry, without the capabilities.
const UNSUPPORTED: u64 = 0x1c;
/// P, FPD.
const PRESENT: u64 = 1;
const FAULTS_DISABLED: u64 = 2;
/// Of the third word of a PASID entry.
const NXE: u64 = 1 << 5;
/// Of a fault record's upper half: T1, a read.
const READ: u64 = 1 << 62;

/// What they write down for a record whose upper half is `high`.
pub(super) fn named(quirks: Quirks, unit: &Unit, high: u64) -> u64 {
    let reason = FaultReason((high >> 32) as u8);
    let second_stage = unit.options().extended.second_stage();
    let mut name = reason;
    if quirks.has(Quirks::LEGACY_NAMES) {
        name = legacy_name(reason, high & READ != 0);
        if reason == FaultReason::SM_NO_WRITE && second_stage {
            name = FaultReason::NO_WRITE;
        }
    }
    high & !(0xff << 32) | u64::from(name.0) << 32
}

/// The name that legacy mode has for a fault of scalable mode.
fn legacy_name(reason: FaultReason, reads: bool) -> FaultReason {
    match reason {
        FaultReason::SM_ROOT_ACCESS => FaultReason::ROOT_ACCESS,
        FaultReason::SM_ROOT_NOT_PRESENT => FaultReason::ROOT_NOT_PRESENT,
        FaultReason::SM_ROOT_RESERVED => FaultReason::ROOT_RESERVED,
        FaultReason::SM_CONTEXT_ACCESS => FaultReason::CONTEXT_ACCESS,
        FaultReason::SM_CONTEXT_NOT_PRESENT => FaultReason::CONTEXT_NOT_PRESENT,
        FaultReason::SM_CONTEXT_RESERVED => FaultReason::CONTEXT_RESERVED,
        FaultReason::SM_CONTEXT_INVALID => FaultReason::CONTEXT_INVALID,
        FaultReason::SM_SECOND_STAGE_ACCESS => FaultReason::TABLE_ACCESS,
        FaultReason::SM_SECOND_STAGE_TOP_ACCESS => FaultReason::CONTEXT_INVALID,
        FaultReason::SM_SECOND_STAGE_RESERVED => FaultReason::TABLE_RESERVED,
        FaultReason::SM_SECOND_STAGE_NO_PERMISSION if reads => FaultReason::NO_READ,
        FaultReason::SM_SECOND_STAGE_NO_PERMISSION => FaultReason::NO_WRITE,
        FaultReason::SM_ADDRESS_BEYOND_WIDTH => FaultReason::ADDRESS_BEYOND_WIDTH,
        FaultReason::SM_NO_READ => FaultReason::NO_READ,
        other => other,
    }
}

/// Sets the accessed flag in the entries that a first-stage walk passed before it was refused, for `reason`, at another.
pub(super) fn mark_early(ram: &Ram, reason: FaultReason, request: &Request) {
    let in_the_walk = matches!(
        reason,
        FaultReason::SM_FIRST_STAGE_ACCESS
            | FaultReason::SM_FIRST_STAGE_NOT_PRESENT
            | FaultReason::SM_FIRST_STAGE_RESERVED
            | FaultReason::SM_NO_USER
            | FaultReason::SM_NO_WRITE
            | FaultReason::SM_INTERRUPT_RANGE
    );
    let root = Way::of(ram, request.source).and_then(|way| way.first_stage(ram));
    let root = root.filter(|_| in_the_walk);
    let (Some(root), Ok(format)) = (root, FirstStage::new(4, HOST_BITS)) else {
        return;
    };
    let format = format.with_one_gib().with_no_execute();
    let walk = walk(&format, ram, Root::Table(root), request.address);
    let steps = walk.steps();
    let malformed = matches!(walk.outcome, Err(Fault::Malformed { .. }));
    for (i, step) in steps.iter().enumerate() {
        let entry = FirstStageEntry(step.entry);
        let writes = request.access == Access::Write;
        let refused = !entry.present()
            || step.entry & FirstStageEntry::USER == 0
            || writes && step.entry & FirstStageEntry::WRITE == 0
            || malformed && i + 1 == steps.len();
        let Some(at) = step.at.filter(|_| !refused) else {
            return;
        };
        ram.set(at, step.entry | FirstStageEntry::ACCESSED);
    }
}

/// Entries on the way to a request's tables, as far as memory is there.
struct Way {
    context: u64,
    directory: Option<u64>,
    entry: Option<u64>,
}

impl Way {
    fn of(ram: &Ram, source: RequesterId) -> Option<Self> {
        let root = RootEntry([read(ram, layout::ROOT)?, 0]).half(source);
        let at = ScalableContextEntry::address(root.context_table(), source);
        let context = ScalableContextEntry([read(ram, at)?, read(ram, at + 8)?, 0, 0]);
        let mut way = Self {
            context: at,
            directory: None,
            entry: None,
        };
        let pasid = Pasid::from_field(context.request_pasid() as u32);
        let directory = PasidDirectoryEntry::address(context.directory(), pasid);
        let Some(word) = read(ram, directory) else {
            return Some(way);
        };
        way.directory = Some(directory);
        let entry = PasidEntry::address(PasidDirectoryEntry(word).table(), pasid);
        let there = read(ram, entry + PasidEntry::SIZE - 8);
        way.entry = there.map(|_| entry);
        Some(way)
    }

    /// The first-stage table.
    fn first_stage(&self, ram: &Ram) -> Option<u64> {
        let at = self.entry? + 16;
        Some(ram.get(at) & FirstStageEntry::ADDRESS)
    }

    /// How the PASID entry has addresses translated.
    fn kind(&self, ram: &Ram) -> Option<TranslationKind> {
        let low = ram.get(self.entry?);
        Some(PasidEntry([low, 0, 0, 0, 0, 0, 0, 0]).kind())
    }
}

fn read(ram: &Ram, at: u64) -> Option<u64> {
    (at < ram.size()).then(|| ram.get(at))
}

/// What is put back when a request was translated, what was changed last first.
#[derive(Default)]
pub(super) struct Before {
    words: Vec<(u64, u64)>,
}

impl Before {
    /// Makes of the tables what they take them for.
    pub(super) fn of(quirks: Quirks, ram: &Ram, unit: &Unit, request: &Request) -> Self {
        let mut before = Self::default();
        if !quirks.has(Quirks::OF_TABLES) {
            return before;
        }
        let Some(way) = Way::of(ram, request.source) else {
            return before;
        };
        if quirks.has(Quirks::DIRTY_LOST)
            && request.access == Access::Write
            && let Some(root) = way.first_stage(ram)
        {
            let marks = FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY;
            let marked = |(_, entry): &(u64, u64)| entry & marks != 0;
            before
                .words
                .extend(leaf(ram, root, request.address).filter(marked));
        }
        if quirks.has(Quirks::RESERVED_UNCHECKED) {
            before.ignore_reserved(ram, &way);
        }
        let (Some(directory), Some(entry)) = (way.directory, way.entry) else {
            return before;
        };
        let absent = ram.get(entry) & PRESENT == 0;
        let words = std::array::from_fn(|word| ram.get(entry + 8 * word as u64));
        let invalid = is_invalid(unit, PasidEntry(words));
        if quirks.has(Quirks::ABSENT_IS_SHOWN)
            && (invalid || absent || ram.get(directory) & PRESENT == 0)
        {
            before.clear(ram, directory, FAULTS_DISABLED);
            before.clear(ram, entry, FAULTS_DISABLED);
        }
        if quirks.has(Quirks::INVALID_BEFORE_ABSENT) && absent && invalid {
            before.set(ram, entry, PRESENT);
        }
        before
    }

    /// Clears what they do not look at.
    fn ignore_reserved(&mut self, ram: &Ram, way: &Way) {
        self.clear(ram, way.context, UNSUPPORTED);
        if let Some(directory) = way.directory {
            self.clear(ram, directory, 0xffc);
        }
        let Some(entry) = way.entry else { return };
        // Execute-disable is not reserved without NXE.
        self.set(ram, entry + 16, NXE);
        for (at, bits) in (entry..).step_by(8).zip(UNCHECKED) {
            self.clear(ram, at, bits);
        }
        // The table of the stage that is not used.
        let kind = way.kind(ram);
        if kind != Some(TranslationKind::SecondStage) {
            self.clear(ram, entry, !0xfff);
        }
        if kind != Some(TranslationKind::FirstStage) {
            self.clear(ram, entry + 16, !0xfff);
        }
    }

    fn set(&mut self, ram: &Ram, at: u64, bits: u64) {
        let word = ram.get(at);
        self.words.insert(0, (at, word));
        ram.set(at, word | bits);
    }

    fn clear(&mut self, ram: &Ram, at: u64, bits: u64) {
        let word = ram.get(at);
        if word & bits != 0 {
            self.words.insert(0, (at, word));
            ram.set(at, word & !bits);
        }
    }

    pub(super) fn undo(self, ram: &Ram) {
        for (at, word) in self.words {
            ram.set(at, word);
        }
    }
}

/// Whether a PASID entry asks for what the unit does not have.
fn is_invalid(unit: &Unit, entry: PasidEntry) -> bool {
    let (capability, extended) = (unit.options().capability, unit.options().extended);
    let levels = entry.address_width().levels();
    let wide = levels.is_some_and(|levels| capability.second_stage_levels(levels));
    match entry.kind() {
        TranslationKind::FirstStage => {
            !extended.first_stage() || entry.first_stage_levels() != Some(4)
        }
        TranslationKind::SecondStage => !extended.second_stage() || !wide,
        TranslationKind::PassThrough => !extended.pass_through(),
        TranslationKind::Nested | TranslationKind::Reserved(_) => true,
    }
}

/// Whether the request's tables are of a first stage: asking them marks them.
pub(super) fn is_first_stage(ram: &Ram, unit: &Unit, request: &Request) -> bool {
    let kind = Way::of(ram, request.source).and_then(|way| way.kind(ram));
    unit.options().extended.scalable_mode() && kind == Some(TranslationKind::FirstStage)
}

/// The first-stage leaf for `address`, and where it is.
fn leaf(ram: &Ram, root: u64, address: u64) -> Option<(u64, u64)> {
    let format = FirstStage::new(4, HOST_BITS)
        .ok()?
        .with_one_gib()
        .with_no_execute();
    let walk = walk(&format, ram, Root::Table(root), address);
    let step = walk
        .outcome
        .is_ok()
        .then(|| walk.steps().last().copied())??;
    Some((step.at?, step.entry))
}
