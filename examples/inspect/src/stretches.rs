// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tables map, from address 0 up, as stretches that lead on linearly with the same rights; and their picture.

use std::fmt::Write;

use hvkit_page_table::{Fault, Format, ReadEntry, Root, walk};
use serde::Serialize;

use crate::svg::{LINE, Svg, Tint};

/// Paths looked at: the 4-KiB pages of 64 GiB.
const MOST_WALKS: u64 = 1 << 24;

/// Addresses that lead on linearly with the same rights, or that lead nowhere because something is wrong.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Stretch {
    /// The first address.
    pub(crate) start: u64,
    /// The first behind it.
    pub(crate) end: u64,
    /// Where it leads, unless something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Target>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wrong: Option<String>,
}

/// Where a stretch leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Target {
    /// The address of its first byte.
    pub(crate) address: u64,
    /// Bytes of the pages that map it.
    pub(crate) page: u64,
    /// Rights and what else holds, in words.
    pub(crate) rights: String,
}

/// A map, as far as it was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Map {
    /// What is mapped, in order.
    pub(crate) stretches: Vec<Stretch>,
    /// Where looking ended, if before the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) on_from: Option<u64>,
    /// Paths that were read.
    pub(crate) paths: u64,
}

impl Stretch {
    /// Its bytes.
    fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// What it is, in words.
    fn line(&self) -> String {
        let Stretch {
            start,
            end,
            to,
            wrong,
        } = self;
        match to {
            Some(to) => {
                let pages = self.length().checked_div(to.page).unwrap_or(0);
                format!(
                    "{start:#014x}-{end:#014x} -> {:#014x}  {pages} of {}  {}",
                    to.address,
                    size(to.page),
                    to.rights
                )
            }
            None => {
                let wrong = wrong.as_deref().unwrap_or_default();
                format!("{start:#014x}              {wrong}")
            }
        }
    }
}

impl Map {
    /// What the tables at `root` map, at most `most` stretches; `describe` says what attributes mean.
    pub(crate) fn read<F: Format, M: ReadEntry>(
        format: &F,
        memory: &M,
        root: u64,
        most: usize,
        describe: impl Fn(F::Attributes) -> String,
    ) -> Self
    where
        Fault<F::Rule, M::Error>: std::fmt::Display,
    {
        let shape = format.shape();
        let end = 1 << shape.address_bits();
        let mut map = Map {
            stretches: Vec::new(),
            on_from: None,
            paths: 0,
        };
        // Each turn reads one path. A table that leads back into itself has a path for every page there could be.
        let mut address = 0;
        while address < end && map.paths < MOST_WALKS {
            map.paths = map.paths.saturating_add(1);
            let walk = walk(format, memory, Root::Table(root), address);
            let (level, to, wrong) = match walk.outcome {
                Ok(found) => {
                    let to = Target {
                        address: found.target,
                        page: shape.size(found.level),
                        rights: describe(found.attributes),
                    };
                    (found.level, Some(to), None)
                }
                Err(fault) => {
                    let is_wrong =
                        matches!(fault, Fault::Malformed { .. } | Fault::Unreadable { .. });
                    let level = fault.level();
                    let level = level.unwrap_or(if is_wrong { 1 } else { shape.levels() });
                    (level, None, is_wrong.then(|| fault.to_string()))
                }
            };
            let size = shape.size(level);
            // A page's size is a power of two: what is below it are the low bits.
            let next = (address | size.saturating_sub(1)).saturating_add(1);
            if to.is_some() || wrong.is_some() {
                let stretch = Stretch {
                    start: address,
                    end: next,
                    to,
                    wrong,
                };
                if !map.join(&stretch) {
                    if map.stretches.len() == most {
                        break;
                    }
                    map.stretches.push(stretch);
                }
            }
            address = next;
        }
        map.on_from = (address < end).then_some(address);
        map
    }

    /// Lengthens the last stretch by `next` if that goes on from it.
    fn join(&mut self, next: &Stretch) -> bool {
        let Some(last) = self.stretches.last_mut() else {
            return false;
        };
        let (Some(from), Some(to)) = (&last.to, &next.to) else {
            return false;
        };
        let goes_on = from.address.checked_add(last.length()) == Some(to.address);
        let joins =
            last.end == next.start && goes_on && (from.page, &from.rights) == (to.page, &to.rights);
        if joins {
            last.end = next.end;
        }
        joins
    }

    /// Whether something is wrong.
    pub(crate) fn is_wrong(&self) -> bool {
        self.stretches.iter().any(|stretch| stretch.wrong.is_some())
    }

    /// A line for each stretch.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for stretch in &self.stretches {
            text.push_str(&stretch.line());
            text.push('\n');
        }
        if let Some(address) = self.on_from {
            // A string takes what is written to it.
            let _ = writeln!(
                text,
                "... and on from {address:#x}, after {} paths and {} lines",
                self.paths,
                self.stretches.len()
            );
        }
        text
    }

    /// The addresses on the left, where they lead on the right, each in order.
    pub(crate) fn svg(&self, title: &str) -> String {
        /// What is drawn at most.
        const MOST: usize = 200;
        /// Where the columns begin, how wide they are, and how far apart rows.
        const LEFT: u32 = 10;
        const RIGHT: u32 = 560;
        const WIDTH: u32 = 420;
        const LEFT_END: u32 = LEFT + WIDTH;
        const ROW: u32 = LINE + 10;
        const MIDDLE: u32 = LINE.midpoint(6);
        const TOP: u32 = 34;
        let mut svg = Svg::default();
        svg.words(LEFT, 8, title);
        let rows = || (TOP..).step_by(ROW as usize);
        let mut targets = Vec::new();
        let mut below = TOP;
        for (stretch, y) in self.stretches.iter().take(MOST).zip(rows()) {
            let (start, end) = (stretch.start, stretch.end.saturating_sub(1));
            let (tint, words) = match (&stretch.to, &stretch.wrong) {
                (Some(to), _) => {
                    targets.push((to, stretch.length(), y));
                    let tint = match to.rights.as_bytes().get(1) {
                        Some(b'w') => Tint::Memory,
                        _ => Tint::ReadOnly,
                    };
                    (tint, format!("{start:#x}-{end:#x} {}", to.rights))
                }
                (None, wrong) => {
                    let wrong = wrong.as_deref().unwrap_or_default();
                    (Tint::Wrong, format!("{start:#x} {wrong}"))
                }
            };
            svg.label(LEFT, y, WIDTH, tint, &[words]);
            below = y.saturating_add(ROW);
        }
        targets.sort_by_key(|(to, ..)| to.address);
        for ((to, length, from), y) in targets.into_iter().zip(rows()) {
            let last = to.address.saturating_add(length.saturating_sub(1));
            let words = format!("{:#x}-{last:#x} {}", to.address, size(to.page));
            svg.label(RIGHT, y, WIDTH, Tint::Unit, &[words]);
            let point = |y: u32| y.saturating_add(MIDDLE);
            svg.line((LEFT_END, point(from)), (RIGHT, point(y)));
        }
        let hidden = self.stretches.len().saturating_sub(MOST);
        if hidden > 0 || self.on_from.is_some() {
            let words = match self.on_from {
                Some(address) => format!("... {hidden} more read, and on from {address:#x}"),
                None => format!("... and {hidden} more"),
            };
            svg.words(LEFT, below, &words);
        }
        svg.finish()
    }
}

/// A page size in words.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0x1000 => "4 KiB".to_owned(),
        0x20_0000 => "2 MiB".to_owned(),
        0x4000_0000 => "1 GiB".to_owned(),
        bytes => format!("{} GiB", bytes >> 30),
    }
}
