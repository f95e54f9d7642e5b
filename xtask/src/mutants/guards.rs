// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask guards`: the guard against each known class of bugs is taken out, and the test that is named after the class must
//! fail. What came of it is committed as `mutants/guards.txt`, for EVIDENCE.md: `COMMIT` and then a line `TEST` for each.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab_kit::paths;

use super::tree::Tree;
use crate::evidence::git;

/// A guard, and what notices that it is gone.
struct Guard {
    /// The package's folder.
    package: &'static str,
    /// The file, from that folder.
    file: &'static str,
    /// The guard, as it is written; once in the file.
    with: &'static str,
    /// The code without it.
    without: &'static str,
    /// The test target: `lib`, or a file or folder of `tests`.
    target: &'static str,
    /// The test function.
    test: &'static str,
}

const GUARDS: &[Guard] = &[
    // XSA-378: reserved memory of a device.
    Guard {
        package: "vtd-iommu",
        file: "src/driver/place.rs",
        with: "self.devices.get(&source).filter(|_| pasid.is_none());",
        without: "self.devices.get(&source).filter(|_| false);",
        target: "driver",
        test: "a_pasid_that_goes_leaves_reserved_memory_reserved",
    },
    // XSA-346: a page is given away before the unit forgot it.
    Guard {
        package: "vtd-iommu",
        file: "src/emulation/caches/mod.rs",
        with: "self.small.remove(Tag::new(space, first));",
        without: "",
        target: "emulation",
        test: "after_unmap_and_wait_it_is_over",
    },
    // CVE-2024-35843: a device that is removed.
    Guard {
        package: "vtd-iommu",
        file: "src/driver/release.rs",
        with: "self.memory.write(at, Width::Eight, 0);",
        without: "",
        target: "driver",
        test: "an_unplugged_device_leaves_nothing_behind",
    },
    // Wrong layouts.
    Guard {
        package: "vtd-iommu",
        file: "src/spec/interrupt/irte.rs",
        with: "u64 [1; 17:16] sq, with_sq;",
        without: "u64 [1; 21:20] sq, with_sq;",
        target: "twins",
        test: "every_high_half_and_requesters_near_it",
    },
];

/// Takes each guard out in a copy of the checkout, and runs its test there.
pub fn guards() -> Result<()> {
    let mut noticed = Vec::new();
    let packages: BTreeSet<&str> = GUARDS.iter().map(|guard| guard.package).collect();
    for package in packages {
        let tree = Tree::copy(package, "guards")?;
        let here = || GUARDS.iter().filter(|guard| guard.package == package);
        for guard in here() {
            ensure!(run(&tree, guard)?, "{} fails with its guard", guard.test);
        }
        for guard in here() {
            let path = tree.folder().join(guard.file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
            ensure!(
                text.matches(guard.with).count() == 1,
                "{}: the guard {:?} is not there once",
                guard.file,
                guard.with
            );
            fs::write(&path, text.replacen(guard.with, guard.without, 1))?;
            let passes = run(&tree, guard)?;
            fs::write(&path, text)?;
            ensure!(
                !passes,
                "{} passes without its guard in {}",
                guard.test,
                guard.file
            );
            println!("{}: fails without its guard, as it must", guard.test);
            noticed.push(guard.test);
        }
    }
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let text = format!("{commit}\n{}\n", noticed.join("\n"));
    let path = record();
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The committed record.
fn record() -> PathBuf {
    paths::root().join("mutants/guards.txt")
}

/// The commit at which guards were taken out, and the tests that noticed; `None` if nobody tried.
pub(crate) fn noticed() -> Option<(String, Vec<String>)> {
    let text = fs::read_to_string(record()).ok()?;
    let (commit, tests) = text.split_once('\n')?;
    Some((
        commit.to_owned(),
        tests.lines().map(str::to_owned).collect(),
    ))
}

/// Whether the test passes. It must compile.
fn run(tree: &Tree<'_>, guard: &Guard) -> Result<bool> {
    let target: &[&str] = match guard.target {
        "lib" => &["--lib"],
        name => &["--test", name],
    };
    let build = |more: &[&str]| -> Command {
        let mut command = tree.cargo(&["test"]);
        command.args(target).args(more).stdout(Stdio::null());
        command
    };
    ensure!(
        build(&["--no-run"]).status()?.success(),
        "{} does not compile",
        guard.file
    );
    let out = build(&["--", guard.test]).stdout(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(said.contains(guard.test), "there is no test {}", guard.test);
    Ok(out.status.success())
}
