// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest said it was given, held against what it was given.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What the guest's init said: every `@hvkit KEY VALUE...` of its console, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Said(BTreeMap<String, Vec<String>>);

impl Said {
    /// Picks the init's lines out of a console, which the kernel and terminals write to as well.
    pub(super) fn read(console: &str) -> Self {
        let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in console.lines() {
            let Some((_, rest)) = line.split_once("@hvkit ") else {
                continue;
            };
            let (key, value) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
            said.entry(key.to_owned())
                .or_default()
                .push(value.trim().to_owned());
        }
        Said(said)
    }

    /// Every value said for `key`.
    pub(super) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// The one value said for `key`; none if it was said never or more than once.
    pub(super) fn one(&self, key: &str) -> Option<&str> {
        match self.all(key) {
            [value] => Some(value),
            _ => None,
        }
    }
}

/// What the guest was given.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Length of the disk, in sectors of 512 bytes.
    pub disk_sectors: u64,
    /// SHA-256 of the part of the disk that the guest was to read.
    pub disk_digest: String,
}

/// What was seen from outside after the guest ended.
#[derive(Debug, Clone)]
pub(super) struct After {
    /// How the VMM ended.
    pub exit_code: Option<i32>,
    /// SHA-256 of the part of the disk that the guest was to write.
    pub disk_digest: String,
    /// What came out of the paravirtual console.
    pub console_file: String,
}

/// One thing that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// What.
    pub what: &'static str,
    /// What it should be.
    pub wanted: String,
    /// What was seen.
    pub seen: String,
    /// Whether it holds.
    pub holds: bool,
}

/// Holds what was said and seen against what was given.
pub(super) fn judge(given: &Given, said: &Said, after: &After) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what, wanted: String, seen: Option<&str>, holds: bool| {
        let seen = seen.unwrap_or("not said").to_owned();
        rows.push(Row {
            what,
            wanted,
            seen,
            holds,
        });
    };
    let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();

    let init = said.one("init");
    row(
        "kernel reaches its init",
        "yes".into(),
        init.map(|_| "yes"),
        init.is_some(),
    );

    let cpus = said.one("cpus");
    row(
        "processors",
        given.cpus.to_string(),
        cpus,
        cpus == Some(&*given.cpus.to_string()),
    );

    // The kernel keeps some for itself: its image, page descriptors, the initramfs.
    let kib: Option<u64> = said.one("memory-kib").and_then(|v| v.parse().ok());
    let all = given.memory_mib * 1024;
    let enough = kib.is_some_and(|k| k <= all && k >= all * 3 / 4);
    let seen = kib.map(|k| format!("{} MiB usable", k / 1024));
    row(
        "memory",
        format!("of {} MiB", given.memory_mib),
        seen.as_deref(),
        enough,
    );

    let pci = said.all("pci");
    let has = |ids: &str| {
        pci.iter()
            .any(|p| p.split_once(' ').is_some_and(|(_, r)| r.starts_with(ids)))
    };
    let seen = format!("{} functions", pci.len());
    row(
        "PCI: host bridge, virtio disk",
        "both".into(),
        Some(&seen),
        pci.iter().any(|p| p.ends_with(" 0x060000")) && has("0x1af4 0x1042"),
    );

    let sectors = said.one("disk-sectors");
    let wanted = given.disk_sectors.to_string();
    row(
        "disk length",
        format!("{wanted} sectors"),
        sectors,
        sectors == Some(&wanted),
    );

    let read = said.one("disk-read").map(short);
    row(
        "disk read, by checksum",
        short(&given.disk_digest),
        read.as_deref(),
        said.one("disk-read") == Some(&given.disk_digest),
    );

    let wrote = said.one("disk-wrote");
    let reread = said.one("disk-reread").map(short);
    let wanted = short(wrote.unwrap_or("what it wrote"));
    row(
        "disk written and read back",
        wanted.clone(),
        reread.as_deref(),
        wrote.is_some() && said.one("disk-reread") == wrote,
    );
    let outside = short(&after.disk_digest);
    row("disk written, seen from outside", wanted, Some(&outside), {
        wrote == Some(&after.disk_digest)
    });

    let count: u64 = said
        .one("disk-interrupts")
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    let kind = said.one("disk-vector-kind").unwrap_or("unknown");
    let seen = format!("{count} by {kind}");
    row("disk interrupts by MSI-X", "some".into(), Some(&seen), {
        count > 0 && kind.contains("MSI")
    });

    let rng = said.one("rng");
    row(
        "random bytes, from virtio",
        "512 bytes".into(),
        rng,
        rng.is_some_and(|seen| seen.starts_with("virtio_rng.") && seen.ends_with(" 512")),
    );

    let wrote = said.one("console-wrote");
    let outside = after.console_file.trim();
    row(
        "console line, seen from outside",
        wrote.map_or_else(|| "what it wrote".to_owned(), short),
        Some(&short(outside)),
        wrote.is_some() && wrote == Some(outside),
    );

    let trouble = said.all("trouble");
    let seen = if trouble.is_empty() {
        "none".to_owned()
    } else {
        trouble.join("; ")
    };
    row("trouble", "none".into(), Some(&seen), trouble.is_empty());

    let ended = said.one("end").is_some();
    let seen = after
        .exit_code
        .map_or("by a signal".to_owned(), |c| format!("exit code {c}"));
    row(
        "clean power-off",
        "exit code 0".into(),
        Some(&seen),
        ended && after.exit_code == Some(0),
    );
    rows
}

/// The rows as a table.
pub(super) fn table(rows: &[Row]) -> String {
    let width = |f: fn(&Row) -> &str, title: &str| {
        rows.iter()
            .map(|r| f(r).chars().count())
            .chain([title.len()])
            .max()
            .unwrap_or(0)
    };
    let (a, b, c) = (
        width(|r| r.what, "verified"),
        width(|r| &r.wanted, "given"),
        width(|r| &r.seen, "seen by the guest"),
    );
    let mut text = format!(
        "{:a$}  {:b$}  {:c$}\n",
        "verified", "given", "seen by the guest"
    );
    for r in rows {
        let verdict = if r.holds { "ok" } else { "WRONG" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:a$}  {:b$}  {:c$}  {verdict}",
            r.what, r.wanted, r.seen
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[    0.5] Linux\r\n@hvkit init 0.51\r\n@hvkit cpus 2\n@hvkit memory-kib 230000\n\
        @hvkit pci 0000:00:00.0 0x8086 0x0d57 0x060000\n@hvkit pci 0000:00:01.0 0x1af4 0x1042 0x018000\n\
        @hvkit disk-sectors 32768\n[1.0] noise @hvkit disk-read aaaa\n@hvkit disk-wrote bbbb\n\
        @hvkit disk-reread bbbb\n@hvkit disk-interrupts 12\n@hvkit disk-vector-kind PCI-MSI\n\
        @hvkit rng virtio_rng.0 512\n@hvkit console-wrote 0dd-b00t\n@hvkit end 1.9\n";

    fn given() -> Given {
        Given {
            cpus: 2,
            memory_mib: 256,
            disk_sectors: 32768,
            disk_digest: "aaaa".into(),
        }
    }
    fn after() -> After {
        After {
            exit_code: Some(0),
            disk_digest: "bbbb".into(),
            console_file: "0dd-b00t\r\n".into(),
        }
    }
    fn wrong(console: &str, after: &After) -> Vec<&'static str> {
        let rows = judge(&given(), &Said::read(console), after);
        rows.into_iter()
            .filter(|r| !r.holds)
            .map(|r| r.what)
            .collect()
    }

    #[test]
    fn a_good_guest_has_no_wrong_row() {
        assert_eq!(wrong(GOOD, &after()), [""; 0]);
    }

    #[test]
    fn each_lie_is_one_wrong_row() {
        let cases = [
            ("init 0.51", "x", "kernel reaches its init"),
            ("cpus 2", "cpus 1", "processors"),
            ("memory-kib 230000", "memory-kib 130000", "memory"),
            ("memory-kib 230000", "memory-kib 270000", "memory"),
            (
                "0x1af4 0x1042",
                "0x1af4 0x1041",
                "PCI: host bridge, virtio disk",
            ),
            ("0x060000", "0x060400", "PCI: host bridge, virtio disk"),
            ("sectors 32768", "sectors 32767", "disk length"),
            ("disk-read aaaa", "disk-read aaab", "disk read, by checksum"),
            (
                "disk-reread bbbb",
                "disk-reread bbbc",
                "disk written and read back",
            ),
            ("interrupts 12", "interrupts 0", "disk interrupts by MSI-X"),
            ("PCI-MSI", "IO-APIC", "disk interrupts by MSI-X"),
            ("virtio_rng.0", "tpm-rng", "random bytes, from virtio"),
            ("rng.0 512", "rng.0 0", "random bytes, from virtio"),
            ("0dd-b00t", "0dd-b00k", "console line, seen from outside"),
            ("end 1.9", "end 1.9\n@hvkit trouble module", "trouble"),
            ("@hvkit end", "@hvkit no", "clean power-off"),
        ];
        for (from, to, what) in cases {
            assert!(GOOD.contains(from), "{from}");
            assert_eq!(
                wrong(&GOOD.replace(from, to), &after()),
                [what],
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn what_is_seen_from_outside_counts() {
        let rows = wrong(
            GOOD,
            &After {
                exit_code: Some(1),
                ..after()
            },
        );
        assert_eq!(rows, ["clean power-off"]);
        let rows = wrong(
            GOOD,
            &After {
                disk_digest: "cccc".into(),
                ..after()
            },
        );
        assert_eq!(rows, ["disk written, seen from outside"]);
        let rows = wrong(
            GOOD,
            &After {
                console_file: String::new(),
                ..after()
            },
        );
        assert_eq!(rows, ["console line, seen from outside"]);
        assert!(wrong("", &after()).len() >= 8);
    }
}
