// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask type1 --compare`: one kernel and one piece of work, alone, under EPT and on shadow page tables.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::report::{Exits, Part, Seen};
use super::{Paging, linux, name};
use crate::chart;
use crate::step::Step;

/// Where the page and the chart are kept.
pub(super) const FOLDER: &str = "examples/type1/docs";
const PAGE: &str = "paging.md";
const CHART: &str = "paging.svg";
const LEGEND: [&str; 2] = [
    "instructions of the guest",
    "of the hypervisor; the kernel alone is 1",
];

/// Boots three times, prints what came, and writes it into `folder`.
pub(super) fn compare(folder: &Path, rounds: u32, verbose: bool) -> Result<()> {
    let boot = |paging: Paging| {
        let step = Step::start(name(paging));
        let run = linux::Run {
            paging: paging.into(),
            rounds,
            trace: 0,
            verbose,
        };
        match linux::boot(run) {
            Ok(booted) => {
                step.done(booted.line());
                Ok(booted)
            }
            Err(error) => {
                step.failed("");
                Err(error)
            }
        }
    };
    let alone = boot(Paging::None)?;
    let ept = boot(Paging::Ept)?;
    let shadow = boot(Paging::Shadow)?;
    let all = [&alone.seen, &ept.seen, &shadow.seen];
    ensure!(
        all.iter().all(|seen| seen.checksum == alone.seen.checksum),
        "the guests' work came to different sums"
    );
    let about = format!(
        "Debian's kernel {} and `workload {rounds}` (`lab/workload`) in {}, one processor. Written by `cargo xtask type1 --compare \
         --rounds {rounds}`.",
        alone.kernel, alone.model
    );
    let page = page(&about, all);
    println!("{page}");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in [(PAGE, page), (CHART, chart::draw(LEGEND, &bars(all)))] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// All of the work, without the boot.
fn work(seen: &Seen) -> Part {
    let mut all = Part {
        name: "all of the work".to_owned(),
        ..Part::default()
    };
    for part in seen.parts.iter().skip(1) {
        all.ticks += part.ticks;
        for (reason, more) in &part.exits {
            let exits = all.exits.entry(reason.clone()).or_default();
            exits.count += more.count;
            exits.ticks += more.ticks;
        }
    }
    all
}

/// The boot, the parts of the work, all of it.
fn rows(all: [&Seen; 3]) -> Vec<[Part; 3]> {
    let count = all.iter().map(|seen| seen.parts.len()).min().unwrap_or(0);
    let mut rows: Vec<[Part; 3]> = (0..count)
        .map(|index| all.map(|seen| seen.parts[index].clone()))
        .collect();
    rows.push(all.map(work));
    rows
}

fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

fn millions(ticks: u64) -> f64 {
    ticks as f64 / 1e6
}

fn bars(all: [&Seen; 3]) -> Vec<chart::Group> {
    let group = |[alone, ept, shadow]: [Part; 3]| chart::Group {
        name: alone.name.clone(),
        bars: [("alone", &alone), ("EPT", &ept), ("shadow", &shadow)]
            .map(|(name, part)| chart::Bar {
                name,
                first: ratio(part.ticks - part.hypervisor(), alone.ticks),
                second: ratio(part.hypervisor(), alone.ticks),
            })
            .to_vec(),
    };
    rows(all).into_iter().map(group).collect()
}

/// The page, in Markdown.
fn page(about: &str, all: [&Seen; 3]) -> String {
    let mut out =
        format!("# EPT against shadow paging\n\n{about}\n\n![instructions by paging]({CHART})\n\n");
    out += "Millions of instructions, as Bochs counts them in the time-stamp counter (each round of a repeated string instruction \
            and each tick of an idle processor is one; the last digits vary); in brackets, against the kernel alone. Exits, and the hypervisor's share of \
            the instructions.\n\n";
    out += "| | alone | EPT | exits | hypervisor | shadow | exits | hypervisor |\n|---|--:|--:|--:|--:|--:|--:|--:|\n";
    for [alone, ept, shadow] in rows(all) {
        let _ = write!(out, "| {} | {:.2} |", alone.name, millions(alone.ticks));
        for part in [ept, shadow] {
            let _ = write!(
                out,
                " {:.2} ({:.2}) | {} | {:.2}% |",
                millions(part.ticks),
                ratio(part.ticks, alone.ticks),
                part.count(),
                100.0 * ratio(part.hypervisor(), part.ticks)
            );
        }
        out.push('\n');
    }
    out += "\nExits during the work by reason, and instructions of the hypervisor for each.\n\n\
            | | EPT | each | shadow | each |\n|---|--:|--:|--:|--:|\n";
    let (ept, shadow) = (work(all[1]), work(all[2]));
    let reasons: BTreeSet<&String> = ept.exits.keys().chain(shadow.exits.keys()).collect();
    for reason in reasons {
        let _ = write!(out, "| {reason} |");
        for part in [&ept, &shadow] {
            let Exits { count, ticks } = part.exits.get(reason).copied().unwrap_or_default();
            let _ = write!(out, " {count} | {:.0} |", ratio(ticks, count));
        }
        out.push('\n');
    }
    out += "\nThe shadow MMU, from the boot to the power-off.\n\n| | |\n|---|--:|\n";
    for (count, what) in &all[2].shadow {
        let _ = writeln!(out, "| {what} | {count} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type1::report;

    #[test]
    fn the_work_is_all_but_the_boot_and_ratios_are_to_the_kernel_alone() {
        let one = report::read(&report::tests::printed()).unwrap();
        let twice = {
            let mut twice = one.clone();
            for part in &mut twice.parts {
                part.ticks *= 2;
            }
            twice
        };
        assert_eq!((work(&one).ticks, work(&one).count()), (500, 2));
        let page = page("", [&one, &twice, &one]);
        assert!(
            page.contains("| boot | 0.00 | 0.01 (2.00) | 3 | 0.38% | 0.00 (1.00) | 3 | 0.75% |"),
            "{page}"
        );
        assert!(page.contains("| XSETBV | 2 | 4 | 2 | 4 |"), "{page}");
        assert!(page.contains("| pages mapped | 12 |"), "{page}");
        let bars = bars([&one, &twice, &one]);
        let last = bars.last().unwrap();
        assert_eq!(last.bars[1].first + last.bars[1].second, 2.0);
    }
}
