// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looking into tables that someone else made: all of them in the layout that Linux users know, or one address of one
//! requester with every entry on its way.
//!
//! Nothing is written: not even accessed flags.
//!
//! ```
//! use hvkit_vtd_iommu::emulation::fake::Ram;
//! use hvkit_vtd_iommu::emulation::{Access, Options, Request};
//! use hvkit_vtd_iommu::inspect::{Explanation, requesters};
//! use hvkit_vtd_iommu::spec::RequesterId;
//! use hvkit_vtd_iommu::spec::registers::RootTableAddress;
//!
//! let memory = Ram::new(1 << 20);
//! memory.set(0x1000, 0x2001);
//! memory.set_all(0x2180, &[0x3001, 0x0701]);
//! memory.set(0x3000, 0x4003);
//! let root = RootTableAddress(0x1000);
//!
//! // As /sys/kernel/debug/iommu/intel/dmar_translation_struct has it.
//! let mut text = String::new();
//! requesters(&memory, root, &mut text).unwrap();
//! assert!(text.contains("00:03.0\t0x0000000000000000:0x0000000000002001\t"));
//!
//! let read = Request::new(RequesterId(0x18), 0x1234, Access::Read);
//! let why = Explanation::new(&memory, Options::new(39), root, read).unwrap();
//! assert_eq!(why.verdict.unwrap_err().0, 6);
//! println!("{why}");
//! ```

use alloc::vec::Vec;
use core::fmt::{self, Write};

use hvkit_page_table::{ReadEntry, Root, UpdateEntry, Width, walk};

use crate::emulation::{Caching, Memory, Nobody, Options, OptionsError, Request, Translated, Unit};
use crate::spec::Pasid;
use crate::spec::RequesterId;
use crate::spec::context::{ContextEntry, ScalableContextEntry};
use crate::spec::fault::FaultReason;
use crate::spec::pasid::{PasidDirectoryEntry, PasidEntry, TranslationKind};
use crate::spec::registers::{GCMD, RTADDR, RootTableAddress, TranslationTableMode};
use crate::spec::root::RootEntry;
use crate::tables::{FirstStage, SecondStage};

/// Memory that is only read: a store seems to be done, and is not.
struct Untouched<'a, M>(&'a M);

impl<M: ReadEntry> ReadEntry for Untouched<'_, M> {
    type Error = M::Error;

    fn read(&self, at: u64, width: Width) -> Result<u64, M::Error> {
        self.0.read(at, width)
    }
}

impl<M: ReadEntry> UpdateEntry for Untouched<'_, M> {
    fn compare_exchange(&self, at: u64, width: Width, _: u64, _: u64) -> Result<u64, M::Error> {
        self.0.read(at, width)
    }
}

impl<M: ReadEntry> Memory for Untouched<'_, M> {
    fn write(&self, _: u64, _: Width, _: u64) -> Result<(), M::Error> {
        Ok(())
    }
}

/// Words from `at` on, as far as they can be read.
fn words<const N: usize>(memory: &impl ReadEntry, at: u64) -> Option<[u64; N]> {
    let mut words = [0; N];
    let mut at = at;
    for word in &mut words {
        *word = memory.read(at, Width::Eight).ok()?;
        // A table may end where addresses do.
        at = at.wrapping_add(8);
    }
    Some(words)
}

/// Writes a line for each requester that has a context entry, in the layout of Linux's `dmar_translation_struct`: the
/// requester, its root entry and its context entry, high word first. Of scalable-mode context entries, which are
/// longer, the lower half.
///
/// # Errors
///
/// `out`'s own.
pub fn requesters(
    memory: &impl ReadEntry,
    root: RootTableAddress,
    out: &mut impl Write,
) -> fmt::Result {
    writeln!(out, "Root Table Address: {:#x}", root.table())?;
    writeln!(out, "B.D.F\tRoot_entry\t\t\t\tContext_entry")?;
    let scalable = root.mode() == TranslationTableMode::Scalable;
    for number in 0..=u16::MAX {
        let source = RequesterId(number);
        let Some(entry) = words(memory, RootEntry::address(root.table(), source)) else {
            continue;
        };
        let root = RootEntry(entry);
        let half = root.half(source);
        let (present, at) = if scalable {
            let at = ScalableContextEntry::address(half.context_table(), source);
            (half.present(), at)
        } else {
            let at = ContextEntry::address(root.context_table(), source);
            (root.present(), at)
        };
        if !present {
            continue;
        }
        let Some([low, high]) = words(memory, at) else {
            continue;
        };
        if low & 1 != 0 {
            let [first, second] = root.0;
            writeln!(
                out,
                "{source}\t{second:#018x}:{first:#018x}\t{high:#018x}:{low:#018x}"
            )?;
        }
    }
    Ok(())
}

/// What an entry on the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The root entry of the bus.
    Root,
    /// The context entry of the function: its first two words.
    Context,
    /// The PASID directory entry.
    PasidDirectory,
    /// The PASID table entry: its first and third words.
    Pasid,
    /// A first-stage paging entry, at this level.
    FirstStage(u8),
    /// A second-stage paging entry, at this level.
    SecondStage(u8),
}

/// An entry that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub at: u64,
    /// What it says.
    pub words: [u64; 2],
}

/// One address of one requester: every entry on its way, and the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whose, and which.
    pub request: Request,
    /// The entries, in the order in which they are read. Of nested translation those of the first stage whose tables
    /// are where the second stage leaves them.
    pub entries: Vec<Entry>,
    /// Where it leads, or why nowhere.
    pub verdict: Result<Translated, FaultReason>,
}

impl Explanation {
    /// Explains `request` by the tables at `root`, as a unit of `options` reads them.
    ///
    /// # Errors
    ///
    /// `options` that no unit has.
    pub fn new(
        memory: &impl ReadEntry,
        options: Options,
        root: RootTableAddress,
        request: Request,
    ) -> Result<Self, OptionsError> {
        let memory = Untouched(memory);
        let mut unit = Unit::new(options.with_caching(Caching::Never))?;
        unit.write64(&memory, &mut Nobody, RTADDR.offset(), root.0);
        for command in [1 << 30, 1 << 31] {
            unit.write32(&memory, &mut Nobody, GCMD.offset(), command);
        }
        let verdict = unit.translate(&memory, &mut Nobody, &request);
        let mut entries = Vec::new();
        follow(&memory, &options, root, &request, &mut entries);
        Ok(Self {
            request,
            entries,
            verdict: verdict.map_err(|refused| refused.reason),
        })
    }
}

/// The entries on the way; it ends where one cannot be read or is not present.
fn follow(
    memory: &impl ReadEntry,
    options: &Options,
    root: RootTableAddress,
    request: &Request,
    entries: &mut Vec<Entry>,
) -> Option<()> {
    let source = request.source;
    let mut see = |kind, at, words| entries.push(Entry { kind, at, words });
    let at = RootEntry::address(root.table(), source);
    let entry = RootEntry(words(memory, at)?);
    see(Kind::Root, at, entry.0);
    if root.mode() != TranslationTableMode::Scalable {
        entry.present().then_some(())?;
        let at = ContextEntry::address(entry.context_table(), source);
        let context = ContextEntry(words(memory, at)?);
        see(Kind::Context, at, context.0);
        context.present().then_some(())?;
        let levels = context.address_width().levels()?;
        return second_stage(memory, options, levels, context.table(), request, entries);
    }
    let half = entry.half(source);
    half.present().then_some(())?;
    let at = ScalableContextEntry::address(half.context_table(), source);
    let context = ScalableContextEntry(words(memory, at)?);
    let [first, second, ..] = context.0;
    see(Kind::Context, at, [first, second]);
    context.present().then_some(())?;
    let pasid = match request.pasid() {
        Some(pasid) => pasid,
        None => Pasid::from_field(context.request_pasid() as u32),
    };
    let at = PasidDirectoryEntry::address(context.directory(), pasid);
    let [word] = words(memory, at)?;
    see(Kind::PasidDirectory, at, [word, 0]);
    let directory = PasidDirectoryEntry(word);
    directory.present().then_some(())?;
    let at = PasidEntry::address(directory.table(), pasid);
    let entry = PasidEntry(words(memory, at)?);
    let [first, _, third, ..] = entry.0;
    see(Kind::Pasid, at, [first, third]);
    entry.present().then_some(())?;
    match entry.kind() {
        TranslationKind::FirstStage | TranslationKind::Nested => {
            let format = FirstStage::new(entry.first_stage_levels()?, options.host_bits).ok()?;
            let root = Root::Table(entry.first_stage_table());
            let walk = walk(&format, memory, root, request.address);
            for step in walk.steps() {
                entries.push(Entry {
                    kind: Kind::FirstStage(step.level),
                    at: step.at?,
                    words: [step.entry, 0],
                });
            }
            Some(())
        }
        TranslationKind::SecondStage => {
            let levels = entry.address_width().levels()?;
            let table = entry.second_stage_table();
            second_stage(memory, options, levels, table, request, entries)
        }
        TranslationKind::PassThrough | TranslationKind::Reserved(_) => Some(()),
    }
}

fn second_stage(
    memory: &impl ReadEntry,
    options: &Options,
    levels: u8,
    table: u64,
    request: &Request,
    entries: &mut Vec<Entry>,
) -> Option<()> {
    let large = options.capability.second_stage_large_pages();
    let large = crate::tables::LargePages::from_bits_truncate(large);
    let format = SecondStage::new(levels, options.host_bits)
        .ok()?
        .with_large_pages(large);
    let walk = walk(&format, memory, Root::Table(table), request.address);
    for step in walk.steps() {
        entries.push(Entry {
            kind: Kind::SecondStage(step.level),
            at: step.at?,
            words: [step.entry, 0],
        });
    }
    Some(())
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request {
            source, address, ..
        } = self.request;
        writeln!(f, "{source} {address:#x}")?;
        for Entry { kind, at, words } in &self.entries {
            let [low, high] = words;
            match kind {
                Kind::Root => writeln!(f, "  root entry      {at:#x}: {high:#018x}:{low:#018x}")?,
                Kind::Context => {
                    writeln!(f, "  context entry   {at:#x}: {high:#018x}:{low:#018x}")?;
                }
                Kind::PasidDirectory => writeln!(f, "  PASID directory {at:#x}: {low:#018x}")?,
                Kind::Pasid => writeln!(f, "  PASID entry     {at:#x}: {high:#018x}:{low:#018x}")?,
                Kind::FirstStage(level) => {
                    writeln!(f, "  first stage  {level}  {at:#x}: {low:#018x}")?;
                }
                Kind::SecondStage(level) => {
                    writeln!(f, "  second stage {level}  {at:#x}: {low:#018x}")?;
                }
            }
        }
        match &self.verdict {
            Ok(to) => {
                let right = |has: bool, name| if has { name } else { "-" };
                let (reads, writes) = (right(to.reads, "r"), right(to.writes, "w"));
                writeln!(f, "  leads to {:#x}, {reads}{writes}", to.address)
            }
            Err(reason) => writeln!(f, "  refused ({:#x}): {reason}", reason.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulation::Access;
    use crate::emulation::fake::Ram;
    use alloc::string::{String, ToString};

    fn tables() -> Ram {
        let memory = Ram::new(1 << 20);
        memory.set(0x1000, 0x2001);
        memory.set_all(0x2180, &[0x3001, 0x0701]);
        memory.set(0x3000, 0x4003);
        memory.set(0x4000, 0x5003);
        memory.set(0x5008, 0x9001);
        memory
    }

    #[test]
    fn every_entry_on_the_way_and_the_verdict() {
        let memory = tables();
        let before = memory.hash();
        let options = Options::new(39);
        let explain = |address, access| {
            let request = Request::new(RequesterId(0x18), address, access);
            Explanation::new(&memory, options, RootTableAddress(0x1000), request).unwrap()
        };
        let good = explain(0x1234, Access::Read);
        assert_eq!(good.entries.len(), 5);
        assert_eq!(good.verdict.unwrap().address, 0x9234);
        let text = good.to_string();
        assert!(
            text.contains("  second stage 1  0x5008: 0x0000000000009001\n"),
            "{text}"
        );
        assert!(text.ends_with("leads to 0x9234, r-\n"), "{text}");
        let bad = explain(0x1234, Access::Write);
        assert_eq!(bad.verdict, Err(FaultReason::NO_WRITE));
        assert!(bad.to_string().contains("refused (0x5)"));
        assert_eq!(explain(0x20_0000, Access::Read).entries.len(), 4);
        assert_eq!(memory.hash(), before);
    }

    #[test]
    fn scalable_tables_are_explained_without_setting_flags() {
        let memory = tables();
        memory.set_all(0x2300, &[0x6009, 0]);
        memory.set(0x6000, 0x7001);
        memory.set_all(0x7000, &[0x41, 7, 0x8000]);
        memory.set(0x8000, 0xa007);
        memory.set(0xa000, 0xb007);
        memory.set(0xb000, 0xc007);
        memory.set(0xc008, 0x9007);
        let before = memory.hash();
        let request = Request::new(RequesterId(0x18), 0x1234, Access::Write);
        let options = Options::new(39).with_scalable_mode();
        let root = RootTableAddress(0x1400);
        let why = Explanation::new(&memory, options, root, request).unwrap();
        assert_eq!(why.verdict.unwrap().address, 0x9234);
        assert_eq!(why.entries.len(), 8);
        assert_eq!(memory.hash(), before);
    }

    #[test]
    fn the_list_has_a_line_for_each_context_entry() {
        let memory = tables();
        memory.set(0x2000 + 0xff * 16, 1);
        // A context table that is nowhere.
        memory.set(0x1010, 0x10_0001);
        let mut text = String::new();
        requesters(&memory, RootTableAddress(0x1000), &mut text).unwrap();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(
            lines[0],
            "00:03.0\t0x0000000000000000:0x0000000000002001\t0x0000000000000701:0x0000000000003001"
        );
        assert!(lines[1].starts_with("00:1f.7\t"));
    }

    /// Memory with a one in every bit, up to the last address.
    struct Ones;

    impl ReadEntry for Ones {
        type Error = core::convert::Infallible;

        fn read(&self, _: u64, _: Width) -> Result<u64, Self::Error> {
            Ok(u64::MAX)
        }
    }

    #[test]
    fn tables_may_end_where_addresses_do() {
        let mut text = String::new();
        let last = RootTableAddress(!0xfff);
        requesters(&Ones, last, &mut text).unwrap();
        assert_eq!(text.lines().skip(2).count(), 1 << 16);
        assert!(text.contains("\nff:1f.7\t0xffffffffffffffff:"));
    }
}
