// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect vtd-faults`: what remapping units refused, from a kernel's log.
//!
//! ```text
//! [  123.4] DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x1000 [fault reason 0x06] PTE Read ...
//! [  123.4] DMAR: [DMA Write] Request device [00:02.0] fault addr 1000 [fault reason 05] PTE Write ...
//! [  123.4] DMAR: [INTR-REMAP] Request device [f0:1f.0] fault index 0x2 [fault reason 0x22] Present field ...
//! ```
//!
//! Older kernels print the same without `0x`, hexadecimal addresses and decimal reasons.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use serde::Serialize;

use crate::page::Page;
use crate::svg::{LINE, Svg, Tint};
use crate::{Found, Picture, input};

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// A kernel log, as `dmesg` prints it. `-` is the standard input.
    file: PathBuf,
    #[command(flatten)]
    picture: Picture,
}

/// One refused request.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Fault {
    /// Seconds since the kernel's start, if the log says.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<f64>,
    device: String,
    /// What the device asked for, in the kernel's words.
    request: String,
    /// The address; for an interrupt the index of its entry.
    at: u64,
    reason: u8,
    /// What the reason means, by the specification.
    meaning: String,
}

/// Prints the faults of a log.
pub(crate) fn inspect(options: &Options, page: &mut Page<'_>) -> Result<Found> {
    let bytes = input::read(&options.file)?;
    let log = String::from_utf8_lossy(&bytes);
    let faults: Vec<Fault> = log.lines().filter_map(fault).collect();
    if options.picture.json {
        page.json(&faults)?;
    } else if options.picture.svg {
        page.svg(&svg(&faults))?;
    } else {
        page.text(&text(&faults))?;
    }
    Ok(if faults.is_empty() {
        Found::Nothing
    } else {
        Found::Something
    })
}

/// The fault that a line of the log tells of, if it does.
fn fault(line: &str) -> Option<Fault> {
    let (before, rest) = line.split_once("DMAR: [")?;
    let (request, rest) = rest.split_once("] Request device [")?;
    let (device, rest) = rest.split_once(']')?;
    // After the device some kernels name a PASID; the address follows in any case.
    let (kind, rest) = rest.split_once("fault ")?.1.split_once(' ')?;
    let number = rest.split_whitespace().next()?;
    let at = match kind {
        // "addr 0x1000" and "addr 1000" are both hexadecimal.
        "addr" => u64::from_str_radix(number.trim_start_matches("0x"), 16).ok()?,
        "index" => match number.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok()?,
            None => u64::from_str_radix(number, 16).ok()?,
        },
        _ => return None,
    };
    let (reason, _) = rest.split_once("[fault reason ")?.1.split_once(']')?;
    let reason = match reason.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok()?,
        None => reason.parse().ok()?,
    };
    let time = before.trim().trim_start_matches('[').split(']').next();
    let request = request.strip_suffix(" NO_PASID").unwrap_or(request);
    Some(Fault {
        time: time.and_then(seconds),
        device: device.to_owned(),
        request: request.to_owned(),
        at,
        reason,
        meaning: FaultReason(reason).to_string(),
    })
}

/// A time as the kernel prints it.
fn seconds(text: &str) -> Option<f64> {
    let time: f64 = text.trim().parse().ok()?;
    // A log may say "inf" or "nan", in which no time lies between others.
    time.is_finite().then_some(time)
}

/// Faults that are alike but for time and address.
struct Group<'a> {
    first: &'a Fault,
    /// With their numbers in the log.
    faults: Vec<(&'a Fault, usize)>,
    lowest: u64,
    highest: u64,
}

fn groups(faults: &[Fault]) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<(&str, &str, u8), Group<'_>> = BTreeMap::new();
    for (fault, number) in faults.iter().zip(0..) {
        let key = (&fault.device[..], &fault.request[..], fault.reason);
        let group = groups.entry(key).or_insert(Group {
            first: fault,
            faults: Vec::new(),
            lowest: fault.at,
            highest: fault.at,
        });
        group.faults.push((fault, number));
        group.lowest = group.lowest.min(fault.at);
        group.highest = group.highest.max(fault.at);
    }
    groups.into_values().collect()
}

impl Group<'_> {
    fn line(&self) -> String {
        let Fault {
            device,
            request,
            reason,
            meaning,
            ..
        } = self.first;
        let span = if self.lowest == self.highest {
            format!("{:#x}", self.lowest)
        } else {
            format!("{:#x} to {:#x}", self.lowest, self.highest)
        };
        format!(
            "{device} {request}, {} times, at {span}: {reason:#x}, {meaning}",
            self.faults.len()
        )
    }
}

fn text(faults: &[Fault]) -> String {
    let mut text = String::new();
    for group in groups(faults) {
        text += &group.line();
        text.push('\n');
        let mut times = group.faults.iter().filter_map(|(fault, _)| fault.time);
        if let Some(first) = times.next() {
            let last = times.next_back().unwrap_or(first);
            text += &format!("    from {first:.6} s to {last:.6} s\n");
        }
    }
    text
}

/// Where the faults of a log are between left and right.
enum Axis {
    /// By time.
    Time { from: f64, to: f64 },
    /// By their order, for the log has no times.
    Order { count: usize },
}

impl Axis {
    fn of(faults: &[Fault]) -> Self {
        let times = faults.iter().filter_map(|fault| fault.time);
        let span = times.fold(None, |span: Option<(f64, f64)>, time| {
            let (from, to) = span.unwrap_or((time, time));
            Some((from.min(time), to.max(time)))
        });
        match span {
            Some((from, to)) => Axis::Time { from, to },
            None => Axis::Order {
                count: faults.len(),
            },
        }
    }

    /// From 0 to 1; none, if the log does not say.
    fn place(&self, fault: &Fault, number: usize) -> Option<f64> {
        match self {
            Axis::Time { from, to } => fault.time.map(|time| (time - from) / (to - from).max(1e-6)),
            // Counts of lines, which a double holds.
            Axis::Order { count } => Some(number as f64 / (*count as f64).max(1.0)),
        }
    }

    fn title(&self, faults: &[Fault]) -> String {
        let count = faults.len();
        match self {
            _ if count == 0 => "no VT-d faults in this log".to_owned(),
            Axis::Order { .. } => {
                format!("{count} VT-d faults in the order of the log, which has no times")
            }
            Axis::Time { from, to } => {
                let untimed = faults.iter().filter(|fault| fault.time.is_none());
                let untimed = match untimed.count() {
                    0 => String::new(),
                    count => format!("; {count} without a time have no mark"),
                };
                format!("{count} VT-d faults, from {from:.3} s to {to:.3} s{untimed}")
            }
        }
    }
}

/// A line for each group, a mark for each of its faults, time from left to right.
fn svg(faults: &[Fault]) -> String {
    /// What is drawn at most of a group.
    const MOST: usize = 2000;
    const LEFT: u32 = 10;
    const WIDTH: f64 = 900.0;
    /// All of a line, with a mark at its end.
    const LINE_WIDTH: u32 = WIDTH as u32 + 4;
    let axis = Axis::of(faults);
    let mut svg = Svg::default();
    svg.words(LEFT, 8, &axis.title(faults));
    let mut y: u32 = 38;
    for group in groups(faults) {
        svg.words(LEFT, y, &group.line());
        y = y.saturating_add(LINE + 2);
        svg.rectangle(LEFT, y, LINE_WIDTH, 14, Tint::Device);
        for (fault, number) in group.faults.iter().take(MOST) {
            if let Some(place) = axis.place(fault, *number) {
                // Between 0 and the width: casts that cannot lose anything that is seen.
                let x = LEFT.saturating_add((place.clamp(0.0, 1.0) * WIDTH) as u32);
                svg.mark(x, y, 14);
            }
        }
        y = y.saturating_add(30);
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_fault_are_understood() {
        let new = "[   12.345678] DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x7f000 [fault reason 0x06] PTE Read access is not set";
        let old = "DMAR: [DMA Read] Request device [00:02.0] fault addr 7f000 [fault reason 06] PTE Read access is not set";
        let expected = Fault {
            time: Some(12.345_678),
            device: "00:02.0".into(),
            request: "DMA Read".into(),
            at: 0x7f000,
            reason: 6,
            meaning: FaultReason(6).to_string(),
        };
        assert_eq!(fault(new), Some(expected.clone()));
        let old = fault(old).unwrap();
        assert_eq!((old.time, old.at, old.reason), (None, 0x7f000, 6));
        let interrupt = "DMAR: [INTR-REMAP] Request device [f0:1f.0] fault index 0x2 [fault reason 0x22] Present field in the IRTE entry is clear";
        let interrupt = fault(interrupt).unwrap();
        assert_eq!((interrupt.at, interrupt.reason), (2, 0x22));
    }

    #[test]
    fn lines_that_tell_of_no_fault_are_passed_over() {
        for line in [
            "",
            "DMAR: [",
            "DMAR: DRHD: handling fault status reg 2",
            "DMAR: [DMA Read] Request device [00:02.0] fault addr zz [fault reason 06] x",
            "DMAR: [DMA Read] Request device [00:02.0] fault addr 1 [fault reason 999] x",
        ] {
            assert_eq!(fault(line), None, "{line}");
        }
    }
}
