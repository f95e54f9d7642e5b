// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the meter printed, as numbers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// What one job came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    /// Requests of a disk; chunks of 64 KiB of a stream.
    pub(super) requests: f64,
    /// By the guest's clock.
    pub(super) ns: f64,
    /// Processor time of the VMM and its helpers.
    pub(super) cpu_ns: f64,
    /// Of it, of the threads that run the guest.
    pub(super) vcpu_ns: f64,
    pub(super) exits: f64,
}

impl Figures {
    /// Requests in a second.
    pub(super) fn rate(&self) -> f64 {
        self.requests / (self.ns / 1e9)
    }

    /// Microseconds of processor time for a request.
    pub(super) fn cpu_us(&self) -> f64 {
        self.cpu_ns / self.requests / 1e3
    }

    /// Of them, outside the threads that run the guest.
    pub(super) fn worker_us(&self) -> f64 {
        (self.cpu_ns - self.vcpu_ns) / self.requests / 1e3
    }

    /// Exits for a request.
    pub(super) fn exits(&self) -> f64 {
        self.exits / self.requests
    }
}

/// The figures of each job by its name, and what the guest said besides, by its first word.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    pub(super) jobs: BTreeMap<String, Figures>,
    pub(super) said: Vec<(String, String)>,
}

impl Report {
    /// All jobs in a line.
    pub(super) fn line(&self) -> String {
        let jobs = self.jobs.iter().map(|(name, figures)| {
            let (rate, cpu, exits) = (figures.rate(), figures.cpu_us(), figures.exits());
            format!("{name} {rate:.0}/s {cpu:.1} us {exits:.2} exits")
        });
        jobs.collect::<Vec<_>>().join(", ")
    }
}

/// Reads a machine's output. It must have come to its end, with all of `jobs`.
pub(super) fn read(text: &str, jobs: &[&str]) -> Result<Report> {
    let mut report = Report::default();
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("@say ") {
            let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
            ensure!(word != "trouble", "the guest could not do {rest}");
            report.said.push((word.to_owned(), rest.to_owned()));
        } else if let Some(figures) = line.strip_prefix("@figures ") {
            let (name, figures) = figures.split_once(' ').context("a job without figures")?;
            report.jobs.insert(name.to_owned(), numbers(figures)?);
        }
    }
    ensure!(
        report.said.iter().any(|(word, _)| word == "done"),
        "the guest did not come to its end"
    );
    if let Some(job) = jobs.iter().find(|&&job| !report.jobs.contains_key(job)) {
        bail!("no figures for {job}");
    }
    Ok(report)
}

fn numbers(text: &str) -> Result<Figures> {
    let mut values = BTreeMap::new();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').context("not key=value")?;
        values.insert(key, value.parse::<f64>()?);
    }
    let value = |key: &str| {
        values
            .get(key)
            .copied()
            .with_context(|| format!("no {key}"))
    };
    let figures = Figures {
        requests: value("requests")?,
        ns: value("ns")?,
        cpu_ns: value("cpu_ns")?,
        vcpu_ns: value("vcpu_ns")?,
        exits: value("exits")?,
    };
    ensure!(
        figures.requests > 0.0 && figures.ns > 0.0,
        "nothing was done"
    );
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "noise\n@say group DMA\n\
        @figures write requests=1000 ns=20000000 cpu_ns=19000000 vcpu_ns=15000000 exits=1500\n@say done\n";

    #[test]
    fn rates_are_worked_out() {
        let report = read(TEXT, &["write"]).unwrap();
        let write = report.jobs["write"];
        assert_eq!(write.rate(), 50_000.0);
        assert_eq!((write.cpu_us(), write.worker_us()), (19.0, 4.0));
        assert_eq!(write.exits(), 1.5);
        assert_eq!(report.line(), "write 50000/s 19.0 us 1.50 exits");
        assert_eq!(report.said[0], ("group".to_owned(), "DMA".to_owned()));
    }

    #[test]
    fn what_is_missing_is_told() {
        let told = |text: &str, jobs: &[&str]| read(text, jobs).unwrap_err().to_string();
        assert_eq!(told(TEXT, &["write", "send"]), "no figures for send");
        let cut = TEXT.replace("@say done\n", "");
        assert_eq!(told(&cut, &[]), "the guest did not come to its end");
        let trouble = format!("@say trouble send\n{TEXT}");
        assert_eq!(told(&trouble, &[]), "the guest could not do send");
        let none = TEXT.replace("requests=1000", "requests=0");
        assert_eq!(told(&none, &[]), "nothing was done");
        assert_eq!(told(&TEXT.replace("ns=2", "x=2"), &[]), "no ns");
    }
}
