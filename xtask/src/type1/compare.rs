// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask type1 --compare`: one kernel and one piece of work, alone, under EPT and on shadow page tables.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::report::{Exits, Part, Seen};
use super::{Paging, kvm, linux, name, step};
use crate::chart;

/// Where the page and the chart are kept.
pub(super) const FOLDER: &str = "examples/type1/docs";
const PAGE: &str = "paging.md";
const CHART: &str = "paging.svg";
const LEGEND: [&str; 2] = [
    "instructions of the guest",
    "of the hypervisor; the kernel alone is 1",
];

/// Whether KVM is compared too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// It is not.
    None,
    /// In a host in Bochs, which takes some minutes.
    Kvm,
}

/// Boots three times, or four, prints what came, and writes it into `folder`.
pub(super) fn compare(folder: &Path, rounds: u32, others: Others, verbose: bool) -> Result<()> {
    let boot = |paging: Paging| {
        step(name(paging), || {
            let booted = linux::boot(linux::Run {
                paging: paging.into(),
                rounds,
                trace: 0,
                verbose,
            })?;
            let line = booted.line();
            Ok((booted, line))
        })
    };
    // A boot uses one processor, and KVM's takes as long as the others together.
    let (booted, under_kvm) = thread::scope(|scope| {
        let under_kvm = match others {
            Others::None => None,
            Others::Kvm => Some(scope.spawn(|| kvm::boot(rounds, verbose))),
        };
        let booted = [Paging::None, Paging::Ept, Paging::Shadow].map(&boot);
        let under_kvm = under_kvm.map(|kvm| {
            step("type1: Linux under KVM", || {
                let seen = kvm.join().ok().context("the thread died")??;
                let line = seen.line();
                Ok((seen, line))
            })
        });
        (booted, under_kvm)
    });
    let [alone, ept, shadow] = booted;
    let (alone, ept, shadow, under_kvm) = (alone?, ept?, shadow?, under_kvm.transpose()?);
    let all = [&alone.seen, &ept.seen, &shadow.seen];
    let of_kvm = under_kvm.as_ref().map(|kvm| [&kvm.ept, &kvm.shadow]);
    let everybody = || all.into_iter().chain(of_kvm.into_iter().flatten());
    ensure!(
        everybody().all(|seen| seen.checksum == alone.seen.checksum),
        "the guests' work came to different sums"
    );
    let about = format!(
        "Debian's kernel {} and `workload {rounds}` (`lab/workload`) in {}, one processor. Written by `cargo xtask type1 --compare \
         --rounds {rounds}{}`.",
        alone.kernel,
        alone.model,
        if of_kvm.is_some() { " --kvm" } else { "" }
    );
    let mut page = page(&about, all);
    if let Some(of_kvm) = of_kvm {
        page += &kvm_section(all, of_kvm);
    }
    println!("{page}");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in [
        (PAGE, page),
        (CHART, chart::draw(LEGEND, &bars(all, of_kvm))),
    ] {
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
fn rows<const N: usize>(all: [&Seen; N]) -> Vec<[Part; N]> {
    let count = all.iter().map(|seen| seen.parts.len()).min().unwrap_or(0);
    let mut rows: Vec<[Part; N]> = (0..count)
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

fn bars(all: [&Seen; 3], of_kvm: Option<[&Seen; 2]>) -> Vec<chart::Group> {
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
    let mut groups: Vec<chart::Group> = rows(all).into_iter().map(group).collect();
    let [alone, ..] = all;
    for (group, parts) in groups.iter_mut().zip(
        of_kvm
            .into_iter()
            .flat_map(|[ept, shadow]| rows([alone, ept, shadow])),
    ) {
        let [alone, ept, shadow] = parts;
        // What it takes beyond the kernel alone is KVM's and its host's.
        for (name, part) in [("KVM, EPT", ept), ("KVM, shadow", shadow)] {
            group.bars.push(chart::Bar {
                name,
                first: 1.0,
                second: (ratio(part.ticks, alone.ticks) - 1.0).max(0.0),
            });
        }
    }
    groups
}

/// Exits that are about the guest's memory.
const PAGING: [&str; 5] = [
    "exception or non-maskable interrupt (NMI)",
    "control-register access",
    "INVLPG",
    "INVPCID",
    "EPT violation",
];

fn of_paging(part: &Part) -> u64 {
    PAGING
        .iter()
        .filter_map(|reason| part.exits.get(*reason))
        .map(|exits| exits.count)
        .sum()
}

/// The same under KVM, in Markdown.
fn kvm_section([alone, ept, shadow]: [&Seen; 3], [kvm_ept, kvm_shadow]: [&Seen; 2]) -> String {
    let mut out = "\n## Beside KVM\n\nThe same kernel, initramfs and work under KVM, in a host of the same kernel in the same Bochs \
        (`lab/launcher`). Millions of instructions from mark to mark, whoever's: the guest's, KVM's, its host's; in brackets, against the kernel \
        alone. KVM's guest is not told of KVM. It has a serial line and KVM's own timer and interrupt controllers, and no ACPI: ticks of its \
        clock are I/O exits, and its boot is `quiet`. Exits of KVM are those of a second time that the guest does the work, while the \
        host's kernel counts them.\n\n\
        | | EPT | KVM | shadow | KVM |\n|---|--:|--:|--:|--:|\n"
        .to_owned();
    for [alone, ours @ ..] in rows([alone, ept, kvm_ept, shadow, kvm_shadow]) {
        let _ = write!(out, "| {} |", alone.name);
        for part in &ours {
            let against = ratio(part.ticks, alone.ticks);
            let _ = write!(out, " {:.2} ({against:.2}) |", millions(part.ticks));
        }
        out.push('\n');
    }
    out += "\nExits for paging: page faults, INVLPG, INVPCID, control registers, EPT violations.\n\n\
        | | EPT | KVM | shadow | KVM |\n|---|--:|--:|--:|--:|\n";
    for parts in rows([ept, kvm_ept, shadow, kvm_shadow]) {
        let _ = write!(out, "| {} |", parts[0].name);
        for part in &parts {
            let _ = write!(out, " {} |", of_paging(part));
        }
        out.push('\n');
    }
    out += "\nExits during the work by reason.\n\n| | EPT | KVM | shadow | KVM |\n|---|--:|--:|--:|--:|\n";
    let works = [ept, kvm_ept, shadow, kvm_shadow].map(work);
    let reasons: BTreeSet<&String> = works.iter().flat_map(|work| work.exits.keys()).collect();
    for reason in reasons {
        let _ = write!(out, "| {reason} |");
        for work in &works {
            let exits = work.exits.get(reason).copied().unwrap_or_default();
            let _ = write!(out, " {} |", exits.count);
        }
        out.push('\n');
    }
    out
}

/// The page, in Markdown.
fn page(about: &str, all: [&Seen; 3]) -> String {
    let mut out =
        format!("# EPT against shadow paging\n\n{about}\n\n![instructions by paging]({CHART})\n\n");
    out += "Millions of instructions, as Bochs counts them in the time-stamp counter (each round of a repeated string instruction \
            and each tick of an idle processor is one); in brackets, against the kernel alone. Exits, and the hypervisor's share of \
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
        let bars = bars([&one, &twice, &one], Some([&twice, &one]));
        let last = bars.last().unwrap();
        let length = |bar: &chart::Bar| bar.first + bar.second;
        let lengths: Vec<f64> = last.bars.iter().map(length).collect();
        assert_eq!(lengths, [1.0, 2.0, 1.0, 2.0, 1.0]);
    }

    #[test]
    fn exits_for_paging_are_counted_and_others_are_not() {
        let one = report::read(&report::tests::printed()).unwrap();
        let mut faulty = one.clone();
        for reason in [PAGING[0], "INVLPG", "CPUID"] {
            let exits = Exits {
                count: 20,
                ticks: 0,
            };
            faulty.parts[2].exits.insert(reason.to_owned(), exits);
        }
        let section = kvm_section([&one, &one, &faulty], [&one, &faulty]);
        assert!(
            section.contains("| all of the work | 0 | 0 | 40 | 40 |"),
            "{section}"
        );
        assert!(section.contains("| XSETBV | 2 | 2 | 2 | 2 |"), "{section}");
        assert!(
            section.contains("| boot | 0.00 (1.00) | 0.00 (1.00) |"),
            "{section}"
        );
    }
}
