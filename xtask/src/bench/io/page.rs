// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures as a page in Markdown, and as a chart.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::machine::{self, Machine};
use super::report::{Figures, Report};
use crate::chart::{self, Bar, Group};

/// The chart's file, beside the page.
pub(super) const CHART: &str = "io.svg";

const LEGEND: [&str; 2] = [
    "the guest's threads",
    "all others (time a request, as part of the first)",
];

/// What was measured, by machine; a machine that was not run has a reason.
#[derive(Debug, Default)]
pub(super) struct Results {
    reports: BTreeMap<&'static str, Report>,
    failed: BTreeMap<&'static str, String>,
}

impl Results {
    /// Adds what a machine came to, or why it came to nothing.
    pub(super) fn add(&mut self, machine: &Machine, report: Result<Report, String>) {
        match report {
            Ok(report) => drop(self.reports.insert(machine.name, report)),
            Err(why) => drop(self.failed.insert(machine.name, why)),
        }
    }

    fn job(&self, machine: &Machine, job: &str) -> Option<Figures> {
        self.reports.get(machine.name)?.jobs.get(job).copied()
    }

    fn why_not(&self, machine: &Machine) -> &str {
        let why = self.failed.get(machine.name);
        why.map_or("not run", String::as_str)
    }
}

/// A job for the devices: its name for people, its unit, and what the project wants of its rate against QEMU's.
struct Wanted {
    job: &'static str,
    name: &'static str,
    times: Option<f64>,
}

const WANTED: &[Wanted] = &[
    Wanted {
        job: "write",
        name: "4 KiB random writes, 16 at a time",
        times: Some(3.0),
    },
    Wanted {
        job: "mixed",
        name: "reads and writes of 512 B to 8 KiB, 16 at a time",
        times: Some(2.7),
    },
    Wanted {
        job: "read",
        name: "4 KiB random reads, 16 at a time",
        times: None,
    },
    Wanted {
        job: "send",
        name: "TCP from the guest, by 64 KiB",
        times: Some(2.5),
    },
    Wanted {
        job: "take",
        name: "TCP to the guest, by 64 KiB",
        times: None,
    },
];

/// A way to have a disk.
struct Model {
    name: &'static str,
    plain: Machine,
    behind: Machine,
    /// What it keeps apart.
    apart: &'static str,
}

const MODELS: &[Model] = &[
    Model {
        name: "monolithic: virtio-blk in the VMM",
        plain: machine::OURS,
        behind: machine::OURS_BEHIND,
        apart: "The device is the VMM's: whoever breaks it has what the VMM's confined thread has, all of the guest's memory. \
                Behind the unit its transfers go where the guest's tables lead.",
    },
    Model {
        name: "service process: vhost-user",
        plain: machine::SERVED,
        behind: machine::SERVED_BEHIND,
        apart: "The device is another process's, which has all of the guest's memory and nothing else of the VMM; it may die \
                without the VMM. Behind the unit it is told where the device's addresses lead; that bounds the guest's driver, not the \
                process.",
    },
    Model {
        name: "pass-through: NVMe by VFIO",
        plain: machine::PASSED,
        behind: machine::PASSED_BEHIND,
        apart: "The VMM takes no part in a request. The host's IOMMU keeps the device to the guest's memory; behind the unit, to \
                what the guest maps for it.",
    },
];

/// The page.
pub(super) fn page(about: &[String], results: &Results) -> String {
    let mut out = format!(
        "# Devices and models of input and output\n\n{}\n\n![processor time a request]({CHART})\n",
        about.join("\n")
    );
    devices(&mut out, results);
    bound(&mut out, results);
    models(&mut out, results);
    unit(&mut out, results);
    out
}

/// Writing to a String cannot fail.
macro_rules! put {
    ($out:expr, $($text:tt)*) => { { let _ = writeln!($out, $($text)*); } };
}

fn devices(out: &mut String, results: &Results) {
    put!(
        out,
        "\n## Devices, ours and QEMU's\n\n\
         One queue each, a raw image in memory, a tap interface. Processor time is the VMM's for one request, all threads, the \
         guest's own instructions included; in brackets without the threads that run the guest.\n\n\
         | job | ours, a second | QEMU, a second | ours / QEMU | wanted | ours, us | QEMU, us | exits a request: ours | QEMU |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for wanted in WANTED {
        let Wanted { job, name, times } = wanted;
        let (Some(ours), Some(qemu)) = (
            results.job(&machine::OURS, job),
            results.job(&machine::QEMU, job),
        ) else {
            put!(
                out,
                "| {name} | ours: {}; QEMU: {} | | | | | | | |",
                results.why_not(&machine::OURS),
                results.why_not(&machine::QEMU)
            );
            continue;
        };
        let ratio = ours.rate() / qemu.rate();
        let verdict = times.map_or(String::new(), |times| {
            let met = if ratio >= times { "met" } else { "**missed**" };
            format!("{times:.1}, {met}")
        });
        put!(
            out,
            "| {name} | {:.0} | {:.0} | {ratio:.2} | {verdict} | {} | {} | {:.2} | {:.2} |",
            ours.rate(),
            qemu.rate(),
            time(&ours),
            time(&qemu),
            ours.exits(),
            qemu.exits()
        );
    }
}

/// How near the network's jobs are to what they cost without any machine.
fn bound(out: &mut String, results: &Results) {
    put!(
        out,
        "\nThe same streams from a process of the host to another: both ends' own work, with no guest, interface or VMM between them. The last \
         column is what a machine would reach that cost nothing.\n\n\
         | job | the host alone, a second | ours, of it | QEMU, of it | the host alone / QEMU |\n|---|--:|--:|--:|--:|"
    );
    for wanted in WANTED {
        let Wanted { job, name, .. } = wanted;
        let rate = |machine| results.job(machine, job).map(|figures| figures.rate());
        if !machine::ALONE.jobs().contains(job) {
            continue;
        }
        let Some(alone) = rate(&machine::ALONE) else {
            let why = results.why_not(&machine::ALONE);
            put!(out, "| {name} | {why} | | | |");
            continue;
        };
        let part =
            |rate: Option<f64>| rate.map_or(String::new(), |rate| format!("{:.2}", rate / alone));
        let (ours, qemu) = (rate(&machine::OURS), rate(&machine::QEMU));
        let most = qemu.map_or(String::new(), |qemu| format!("{:.2}", alone / qemu));
        put!(
            out,
            "| {name} | {alone:.0} | {} | {} | {most} |",
            part(ours),
            part(qemu)
        );
    }
}

fn time(figures: &Figures) -> String {
    format!("{:.1} ({:.1})", figures.cpu_us(), figures.worker_us())
}

fn models(out: &mut String, results: &Results) {
    put!(
        out,
        "\n## Three models of a disk\n\n\
         4 KiB random writes, 16 at a time, without and with the emulated VT-d unit (strict). Pass-through: the rate is \
         that of the emulated NVMe disk, which the guest waits for; compare its processor time and exits.\n\n\
         | model | unit | a second | exits a request | processor time, us | what is kept apart |\n|---|---|--:|--:|--:|---|"
    );
    for model in MODELS {
        let name = model.name;
        for (unit, machine, apart) in [
            ("no", &model.plain, model.apart),
            ("yes", &model.behind, ""),
        ] {
            match results.job(machine, "write") {
                Some(figures) => put!(
                    out,
                    "| {name} | {unit} | {:.0} | {:.2} | {} | {apart} |",
                    figures.rate(),
                    figures.exits(),
                    time(&figures)
                ),
                None => {
                    let why = results.why_not(machine);
                    put!(out, "| {name} | {unit} | {why} | | | {apart} |");
                }
            }
        }
    }
}

/// What a unit adds to a request, in microseconds; none if it was not measured.
fn added(results: &Results, plain: &Machine, behind: &Machine, job: &str) -> Option<f64> {
    let (without, with) = (results.job(plain, "read")?, results.job(behind, job)?);
    Some(with.ns / with.requests / 1e3 - without.ns / without.requests / 1e3)
}

fn unit(out: &mut String, results: &Results) {
    put!(
        out,
        "\n## What mapping and unmapping cost the guest's driver\n\n\
         4 KiB random reads, 16 at a time, by the same driver without a unit and behind one: what is added to a request, which \
         maps and unmaps header, data and status, and at QEMU the table of its descriptors too: ours offers no such tables behind a unit. \
         What a single pair costs is in [map.md](map.md).\n\n\
         | | ours: added, us | QEMU: added, us | QEMU / ours | wanted | exits added: ours | QEMU |\n\
         |---|--:|--:|--:|--:|--:|--:|"
    );
    for (name, job) in [("strict", "read"), ("lazy (flush queue)", "read-lazy")] {
        let ours = added(results, &machine::OURS, &machine::OURS_BEHIND, job);
        let qemu = added(results, &machine::QEMU, &machine::QEMU_BEHIND, job);
        let (Some(ours), Some(qemu)) = (ours, qemu) else {
            put!(out, "| {name} | not measured | | | | | |");
            continue;
        };
        let ratio = qemu / ours;
        let met = if ratio >= 2.0 { "met" } else { "**missed**" };
        let exits = |plain: &Machine, behind: &Machine| {
            let both = results.job(plain, "read").zip(results.job(behind, job));
            both.map_or(0.0, |(without, with)| with.exits() - without.exits())
        };
        put!(
            out,
            "| {name} | {ours:.1} | {qemu:.1} | {ratio:.2} | 2.0, {met} | {:.2} | {:.2} |",
            exits(&machine::OURS, &machine::OURS_BEHIND),
            exits(&machine::QEMU, &machine::QEMU_BEHIND)
        );
    }
}

/// Processor time a request, of what there are figures for.
pub(super) fn chart(results: &Results) -> String {
    let group = |name: &str, bars: &[(&'static str, &Machine, &str)]| {
        let measured: Vec<_> = bars
            .iter()
            .filter_map(|&(name, machine, job)| Some((name, results.job(machine, job)?)))
            .collect();
        let one = measured.first().map_or(1.0, |(_, first)| first.cpu_us());
        let bars = measured.iter().map(|(name, figures)| Bar {
            name,
            first: (figures.cpu_us() - figures.worker_us()) / one,
            second: figures.worker_us() / one,
        });
        Group {
            name: name.to_owned(),
            bars: bars.collect(),
        }
    };
    let both = |name, job| {
        let (ours, qemu) = (&machine::OURS, &machine::QEMU);
        group(name, &[("QEMU", qemu, job), ("ours", ours, job)])
    };
    let behind = |name, job| {
        let (ours, qemu) = (&machine::OURS_BEHIND, &machine::QEMU_BEHIND);
        group(name, &[("QEMU", qemu, job), ("ours", ours, job)])
    };
    let groups = [
        both("writes", "write"),
        both("mixed", "mixed"),
        both("TCP", "send"),
        behind("reads, strict", "read"),
        behind("reads, lazy", "read-lazy"),
        group(
            "models",
            &[
                ("in the VMM", &machine::OURS, "write"),
                ("served", &machine::SERVED, "write"),
                ("passed through", &machine::PASSED, "write"),
            ],
        ),
        group(
            "with a unit",
            &[
                ("in the VMM", &machine::OURS_BEHIND, "write"),
                ("served", &machine::SERVED_BEHIND, "write"),
                ("passed through", &machine::PASSED_BEHIND, "write"),
            ],
        ),
    ];
    let drawn = groups.into_iter().filter(|group| !group.bars.is_empty());
    chart::draw(LEGEND, &drawn.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_compared_with_one_that_no_machine_carries() {
        let mut results = Results::default();
        for (machine, ns) in [
            (&machine::OURS, 200_000.0),
            (&machine::QEMU, 250_000.0),
            (&machine::ALONE, 100_000.0),
        ] {
            results.add(machine, Ok(report(&[("send", ns)])));
        }
        let mut out = String::new();
        bound(&mut out, &results);
        let expected = "| TCP from the guest, by 64 KiB | 10000 | 0.50 | 0.40 | 2.50 |";
        assert!(out.lines().any(|line| line == expected), "{out}");
        assert!(!out.contains("random"), "{out}");
    }

    fn report(jobs: &[(&str, f64)]) -> Report {
        let figures = |ns| Figures {
            requests: 1.0,
            ns,
            cpu_ns: ns,
            vcpu_ns: ns / 2.0,
            exits: 3.0,
        };
        Report {
            jobs: jobs
                .iter()
                .map(|&(job, ns)| (job.to_owned(), figures(ns)))
                .collect(),
            said: Vec::new(),
        }
    }

    #[test]
    fn ratios_and_what_is_missing() {
        let mut results = Results::default();
        let ours = [("write", 10_000.0), ("read", 20_000.0)];
        results.add(&machine::OURS, Ok(report(&ours)));
        results.add(
            &machine::QEMU,
            Ok(report(&[("write", 31_000.0), ("read", 20_000.0)])),
        );
        results.add(&machine::OURS_BEHIND, Ok(report(&[("read", 30_000.0)])));
        results.add(&machine::QEMU_BEHIND, Ok(report(&[("read", 35_000.0)])));
        results.add(&machine::PASSED, Err("the host hung".to_owned()));
        let page = page(&["About.".to_owned()], &results);
        let row = |start: &str| page.lines().find(|line| line.starts_with(start)).unwrap();
        let write = "| 4 KiB random writes, 16 at a time | 100000 | 32258 | 3.10 | 3.0, met | 10.0 (5.0) | 31.0 (15.5) |";
        assert!(row("| 4 KiB random writes").starts_with(write), "{page}");
        // 10 us added by ours, 15 by theirs.
        assert!(row("| strict |").starts_with("| strict | 10.0 | 15.0 | 1.50 | 2.0, **missed** |"));
        assert_eq!(
            row("| lazy"),
            "| lazy (flush queue) | not measured | | | | | |"
        );
        assert!(row("| pass-through: NVMe by VFIO | no |").contains("| the host hung |"));
        assert!(row("| pass-through: NVMe by VFIO | yes |").contains("| not run |"));
        assert!(row("| service process: vhost-user | no |").contains("| not run |"));
        assert!(row("| service process: vhost-user | yes |").contains("| not run |"));
        assert!(row("| TCP").contains("ours: not run; QEMU: not run"));
        let rows = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(rows("| TCP from the guest, by 64 KiB | not run |"), 1);

        let chart = chart(&results);
        assert!(
            chart.contains(">writes<") && !chart.contains(">TCP<"),
            "{chart}"
        );
        assert!(
            chart.contains(">1.00<") && chart.contains(">0.32<"),
            "{chart}"
        );
    }
}
