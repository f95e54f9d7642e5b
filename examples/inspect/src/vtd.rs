// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect vtd`: the tables that a remapping unit reads, in a memory image.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use hvkit_page_table::{ReadEntry, Width};
use hvkit_vtd_iommu::emulation::{Access, Options as UnitOptions, Process, Request};
use hvkit_vtd_iommu::inspect::{self, Explanation, Kind};
use hvkit_vtd_iommu::spec::context::{ContextEntry, ScalableContextEntry, TranslationType};
use hvkit_vtd_iommu::spec::pasid::{PasidDirectoryEntry, PasidEntry, TranslationKind};
use hvkit_vtd_iommu::spec::registers::{RootTableAddress, TranslationTableMode};
use hvkit_vtd_iommu::spec::root::RootEntry;
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::{LargePages, SecondStage};
use serde::Serialize;

use crate::image::Image;
use crate::page::Page;
use crate::stretches::Map;
use crate::svg::{Svg, Tint};
use crate::{Found, Picture, input};

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// An image of physical memory. `-` is the standard input.
    file: PathBuf,
    /// The root table address register, which says the mode too (bits 11:10: 0 legacy, 1 scalable).
    #[arg(long, value_parser = input::number)]
    rtaddr: u64,
    /// The physical address of the image's first byte.
    #[arg(long, value_parser = input::number, default_value = "0")]
    base: u64,
    /// The width of the machine's physical addresses in bits.
    #[arg(long, default_value_t = 46, value_parser = clap::value_parser!(u32).range(30..=52))]
    host_bits: u32,
    /// Explain this address: every entry on the way, and where it leads.
    #[arg(long, value_parser = input::number, requires = "requester", conflicts_with = "svg")]
    explain: Option<u64>,
    /// Whose address: BUS:DEVICE.FUNCTION. Without --explain: print what this device's second stage maps.
    #[arg(long, value_parser = requester)]
    requester: Option<RequesterId>,
    /// The PASID of the request.
    #[arg(long, requires = "explain")]
    pasid: Option<u32>,
    /// Explain a write; without, a read.
    #[arg(long, requires = "explain")]
    write: bool,
    /// Print at most this many devices, PASIDs or stretches.
    #[arg(long, default_value_t = 1000)]
    lines: usize,
    #[command(flatten)]
    picture: Picture,
}

fn requester(text: &str) -> Result<RequesterId, String> {
    let parse = || {
        let (bus, rest) = text.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let byte = |text| u8::from_str_radix(text, 16).ok();
        RequesterId::new(byte(bus)?, byte(device)?, byte(function)?)
    };
    parse().ok_or_else(|| format!("{text} is not BUS:DEVICE.FUNCTION, such as 00:1f.2"))
}

/// A device, or one PASID of it, and what its addresses mean.
#[derive(Debug, Serialize)]
struct Row {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pasid: Option<u32>,
    domain: u16,
    translation: String,
    /// The second stage's root, unless there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    second_stage: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_stage: Option<u64>,
    #[serde(skip)]
    levels: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
}

/// Prints devices and domains, or what one of them maps, or where one address leads.
pub(crate) fn inspect(options: &Options, page: &mut Page<'_>) -> Result<Found> {
    let image = Image::read(&options.file, options.base)?;
    let root = RootTableAddress(options.rtaddr);
    if let (Some(address), Some(source)) = (options.explain, options.requester) {
        return explain(options, &image, root, (source, address), page);
    }
    let rows = rows(options, &image, root)?;
    if let Some(source) = options.requester {
        return map(options, &image, &rows, source, page);
    }
    if options.picture.json {
        page.json(&rows)?;
    } else if options.picture.svg {
        page.svg(&svg(&rows))?;
    } else {
        for row in &rows {
            page.line(row.line())?;
        }
        if rows.len() >= options.lines {
            page.line(format_args!(
                "... and perhaps more: --lines {}",
                options.lines
            ))?;
        }
    }
    let wrong = rows.iter().any(|row| row.wrong.is_some());
    Ok(if wrong {
        Found::Something
    } else {
        Found::Nothing
    })
}

/// An explanation, for programs.
#[derive(Debug, Serialize)]
struct Why {
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pasid: Option<u32>,
    address: u64,
    /// Every entry on the way, in the order in which they are read.
    entries: Vec<OnTheWay>,
    /// Where it leads; none, if the request is refused.
    to: Option<Leads>,
    refused: Option<Refused>,
}

/// An entry.
#[derive(Debug, Serialize)]
struct OnTheWay {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    at: u64,
    /// In hexadecimal, as no number of JSON's holds 64 bits everywhere: the lower one first.
    words: Vec<String>,
}

/// Where a request leads.
#[derive(Debug, Serialize)]
struct Leads {
    address: u64,
    reads: bool,
    writes: bool,
}

/// Why it is refused.
#[derive(Debug, Serialize)]
struct Refused {
    reason: u8,
    meaning: String,
}

impl Why {
    fn of(why: &Explanation) -> Self {
        Why {
            device: why.request.source.to_string(),
            pasid: why.request.pasid().map(|pasid| pasid.get()),
            address: why.request.address,
            entries: why.entries.iter().map(OnTheWay::of).collect(),
            to: why.verdict.as_ref().ok().map(|to| Leads {
                address: to.address,
                reads: to.reads,
                writes: to.writes,
            }),
            refused: why.verdict.as_ref().err().map(|reason| Refused {
                reason: reason.0,
                meaning: reason.to_string(),
            }),
        }
    }
}

impl OnTheWay {
    fn of(entry: &inspect::Entry) -> Self {
        let (kind, level, count) = match entry.kind {
            Kind::Root => ("root", None, 2),
            Kind::Context => ("context", None, 2),
            Kind::PasidDirectory => ("PASID directory", None, 1),
            Kind::Pasid => ("PASID", None, 2),
            Kind::FirstStage(level) => ("first stage", Some(level), 1),
            Kind::SecondStage(level) => ("second stage", Some(level), 1),
        };
        let words = entry.words.iter().take(count);
        OnTheWay {
            kind,
            level,
            at: entry.at,
            words: words.map(|word| format!("{word:#018x}")).collect(),
        }
    }
}

fn explain(
    options: &Options,
    image: &Image,
    root: RootTableAddress,
    (source, address): (RequesterId, u64),
    page: &mut Page<'_>,
) -> Result<Found> {
    let access = if options.write {
        Access::Write
    } else {
        Access::Read
    };
    let mut request = Request::new(source, address, access);
    if let Some(pasid) = options.pasid {
        let pasid = Pasid::new(pasid).with_context(|| format!("PASID {pasid} has over 20 bits"))?;
        request = request.with_process(Process::user(pasid));
    }
    let mut unit = UnitOptions::new(options.host_bits);
    if root.mode() == TranslationTableMode::Scalable {
        unit = unit.with_scalable_mode();
    }
    let why = Explanation::new(image, unit, root, request)?;
    if options.picture.json {
        page.json(&Why::of(&why))?;
    } else {
        page.text(&why.to_string())?;
    }
    Ok(match why.verdict {
        Ok(_) => Found::Nothing,
        Err(_) => Found::Something,
    })
}

/// What the second stage of `source` maps.
fn map(
    options: &Options,
    image: &Image,
    rows: &[Row],
    source: RequesterId,
    page: &mut Page<'_>,
) -> Result<Found> {
    let name = source.to_string();
    let Some(row) = rows.iter().find(|row| row.device == name) else {
        bail!("{name} has no context entry");
    };
    let (Some(table), Some(levels)) = (row.second_stage, row.levels) else {
        bail!("{name} has no second stage: {}", row.translation);
    };
    let format = SecondStage::new(levels, options.host_bits)?.with_large_pages(LargePages::all());
    let map = Map::read(&format, image, table, options.lines, |attributes| {
        let letter = |has: bool, letter| if has { letter } else { '-' };
        let mut text: String = [
            letter(attributes.reads(), 'r'),
            letter(attributes.writes(), 'w'),
        ]
        .iter()
        .collect();
        if attributes.snoops() {
            text += " snooped";
        }
        text
    });
    if options.picture.json {
        page.json(&map)?;
    } else if options.picture.svg {
        let title = format!(
            "{name}, domain {}: DMA addresses, and where they lead",
            row.domain
        );
        page.svg(&map.svg(&title))?;
    } else {
        page.text(&map.text())?;
    }
    Ok(if map.is_wrong() {
        Found::Something
    } else {
        Found::Nothing
    })
}

/// Words from `at` on.
fn words<const N: usize>(memory: &Image, at: u64) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (word, offset) in words.iter_mut().zip((0..).step_by(8)) {
        *word = memory.read(at.checked_add(offset)?, Width::Eight).ok()?;
    }
    Some(words)
}

/// Every device with a context entry, every PASID of it.
fn rows(options: &Options, image: &Image, root: RootTableAddress) -> Result<Vec<Row>> {
    let scalable = match root.mode() {
        TranslationTableMode::Legacy => false,
        TranslationTableMode::Scalable => true,
        mode => bail!(
            "{:#x}: mode {mode:?} is neither legacy nor scalable",
            root.0
        ),
    };
    let mut rows = Vec::new();
    for source in (0..=u16::MAX).map(RequesterId) {
        if rows.len() >= options.lines {
            break;
        }
        let Some(entry) = words(image, RootEntry::address(root.table(), source)).map(RootEntry)
        else {
            continue;
        };
        if scalable {
            let half = entry.half(source);
            if half.present() {
                let at = ScalableContextEntry::address(half.context_table(), source);
                pasids(options, image, source, at, &mut rows);
            }
        } else if entry.present() {
            let at = ContextEntry::address(entry.context_table(), source);
            if let Some(context) = words(image, at).map(ContextEntry)
                && context.present()
            {
                rows.push(legacy(options, source, context));
            }
        }
    }
    Ok(rows)
}

fn legacy(options: &Options, source: RequesterId, context: ContextEntry) -> Row {
    let kind = context.translation_type();
    let second_stage = (kind != TranslationType::PassThrough).then(|| context.table());
    let reserved = context.reserved(options.host_bits);
    let width = context.address_width();
    let wrong = match (reserved, width.levels()) {
        ([0, 0], Some(_)) => None,
        ([0, 0], None) => Some(format!("address width {} is reserved", width.0)),
        ([low, high], _) => Some(format!("reserved bits {high:#x}:{low:#x} are set")),
    };
    Row {
        device: source.to_string(),
        pasid: None,
        domain: context.domain() as u16,
        translation: match kind {
            TranslationType::PassThrough => "passed through".to_owned(),
            TranslationType::Reserved => "reserved translation type".to_owned(),
            _ => format!("{} bits", width.bits().unwrap_or(0)),
        },
        second_stage,
        first_stage: None,
        levels: width.levels(),
        wrong,
    }
}

/// The PASIDs of one device in scalable mode, from its context entry at `at`.
fn pasids(options: &Options, image: &Image, source: RequesterId, at: u64, rows: &mut Vec<Row>) {
    let Some(context) = words(image, at).map(ScalableContextEntry) else {
        return;
    };
    if !context.present() {
        return;
    }
    /// A directory entry is for as many.
    const PASIDS: u32 = 64;
    for block in (0..context.pasids()).step_by(PASIDS as usize) {
        let at = PasidDirectoryEntry::address(context.directory(), Pasid::from_field(block));
        let Some([word]) = words(image, at) else {
            return;
        };
        let directory = PasidDirectoryEntry(word);
        if !directory.present() {
            continue;
        }
        for pasid in block..block.saturating_add(PASIDS) {
            if rows.len() >= options.lines {
                return;
            }
            let at = PasidEntry::address(directory.table(), Pasid::from_field(pasid));
            if let Some(entry) = words(image, at).map(PasidEntry)
                && entry.present()
            {
                rows.push(scalable(options, source, pasid, entry));
            }
        }
    }
}

fn scalable(options: &Options, source: RequesterId, pasid: u32, entry: PasidEntry) -> Row {
    let kind = entry.kind();
    let has_second = matches!(kind, TranslationKind::SecondStage | TranslationKind::Nested);
    let has_first = matches!(kind, TranslationKind::FirstStage | TranslationKind::Nested);
    let reserved = entry.reserved(options.host_bits);
    let wrong = reserved
        .iter()
        .any(|&word| word != 0)
        .then(|| format!("reserved bits are set: {reserved:x?}"));
    Row {
        device: source.to_string(),
        pasid: Some(pasid),
        domain: entry.domain() as u16,
        translation: format!("{kind:?}"),
        second_stage: has_second.then(|| entry.second_stage_table()),
        first_stage: has_first.then(|| entry.first_stage_table()),
        levels: entry.address_width().levels(),
        wrong,
    }
}

impl Row {
    fn line(&self) -> String {
        let mut line = self.who();
        line += &format!("  {}", self.what());
        if let Some(wrong) = &self.wrong {
            line += &format!("  WRONG: {wrong}");
        }
        line
    }

    fn who(&self) -> String {
        match self.pasid {
            Some(pasid) => format!("{} PASID {pasid:#x}", self.device),
            None => self.device.clone(),
        }
    }

    /// What devices share: the domain, and its tables.
    fn what(&self) -> String {
        let mut text = format!("domain {} {}", self.domain, self.translation);
        if let Some(table) = self.first_stage {
            text += &format!(", first stage {table:#x}");
        }
        if let Some(table) = self.second_stage {
            text += &format!(", second stage {table:#x}");
        }
        text
    }
}

/// Devices on the left, domains with their tables on the right.
fn svg(rows: &[Row]) -> String {
    /// What is drawn at most.
    const MOST: usize = 200;
    const LEFT: u32 = 10;
    const RIGHT: u32 = 420;
    let mut svg = Svg::default();
    svg.words(LEFT, 8, "VT-d: devices, and the domains that they are in");
    let mut domains: BTreeMap<String, u32> = BTreeMap::new();
    let mut next = 38;
    for row in rows.iter().take(MOST) {
        let what = row.what();
        if let Entry::Vacant(new) = domains.entry(what) {
            let words = [new.key().clone()];
            let height = svg.label(RIGHT, next, 580, Tint::Unit, &words);
            new.insert(next.saturating_add(height / 2));
            next = next.saturating_add(height).saturating_add(10);
        }
    }
    let mut y = 38;
    for row in rows.iter().take(MOST) {
        let mut lines = vec![row.who()];
        let mut tint = Tint::Device;
        if let Some(wrong) = &row.wrong {
            lines.push(wrong.clone());
            tint = Tint::Wrong;
        }
        let height = svg.label(LEFT, y, 290, tint, &lines);
        if let Some(&to) = domains.get(&row.what()) {
            let middle = y.saturating_add(height / 2);
            svg.line((LEFT + 290, middle), (RIGHT, to));
        }
        y = y.saturating_add(height).saturating_add(10);
    }
    let hidden = rows.len().saturating_sub(MOST);
    if hidden > 0 {
        svg.words(LEFT, y, &format!("... and {hidden} more"));
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requesters_are_read_as_they_are_printed() {
        assert_eq!(requester("00:1f.2"), Ok(RequesterId(0xfa)));
        for wrong in ["", "1f.2", "00:20.0", "00:1f.8", "100:00.0", "00:1f"] {
            assert!(requester(wrong).is_err(), "{wrong}");
        }
    }
}
