// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A copy of the checkout with mutants woven into one crate, and its tests, compiled once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab_kit::paths;
use serde_json::Value;

use super::list::Mutant;
use super::weave;

/// The switch's crate in the copy.
const SWITCH: &str = "hvkit-mutant-switch";

/// How often those that do not compile are taken out before we give up.
const ATTEMPTS: u32 = 40;

/// The copy.
pub(super) struct Tree<'a> {
    root: PathBuf,
    package: &'a str,
}

/// A compiled test.
#[derive(Debug, Clone)]
pub(super) struct Binary {
    /// The target's name: a file or folder of `tests/`, or the crate's.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl<'a> Tree<'a> {
    /// Copies what git knows of, to a folder of that name.
    pub(super) fn copy(package: &'a str, name: &str) -> Result<Self> {
        let root = paths::target().join("mutants").join(name);
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let listed = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(paths::root())
            .output()
            .context("cannot start git")?;
        for name in String::from_utf8_lossy(&listed.stdout).split_terminator('\0') {
            let (from, to) = (paths::root().join(name), root.join(name));
            if from.is_file() {
                fs::create_dir_all(to.parent().unwrap_or(&root))?;
                fs::copy(&from, &to).with_context(|| format!("cannot copy {name}"))?;
            }
        }
        Ok(Tree { root, package })
    }

    /// Gives the crate the switch, by which a woven program asks which mutant it is to be.
    pub(super) fn add_switch(&self) -> Result<()> {
        let Tree { root, package } = self;
        let switch = root.join(SWITCH);
        fs::create_dir_all(switch.join("src"))?;
        fs::write(switch.join("src/lib.rs"), include_str!("switch.rs"))?;
        fs::write(
            switch.join("Cargo.toml"),
            format!("[package]\nname = \"{SWITCH}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n"),
        )?;
        let manifest = root.join(package).join("Cargo.toml");
        let text = fs::read_to_string(&manifest)?;
        let with = format!("[dependencies]\n{SWITCH} = {{ path = \"../{SWITCH}\" }}\n");
        ensure!(
            text.contains("[dependencies]\n"),
            "{package} has no [dependencies]"
        );
        fs::write(&manifest, text.replacen("[dependencies]\n", &with, 1))?;
        // The switch asks whether it runs in a constant, which stable Rust only lets the standard library ask.
        let wrapper = root.join("rustc-wrapper");
        fs::write(&wrapper, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec \"$@\"\n")?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The same copy, for another crate in it.
    pub(super) fn beside(&self, package: &'a str) -> Self {
        Tree {
            root: self.root.clone(),
            package,
        }
    }

    /// The copy's root.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The crate's folder in the copy.
    pub(super) fn folder(&self) -> PathBuf {
        self.root.join(self.package)
    }

    /// Weaves the mutants in and takes out those that do not compile; returns their numbers, and those of which no place was found.
    pub(super) fn weave(&self, mutants: &[Mutant]) -> Result<BTreeSet<u32>> {
        let mut out = BTreeSet::new();
        for attempt in 0..ATTEMPTS {
            let lost = self.write(mutants, &out)?;
            for id in &lost {
                let Some(Mutant { name, place, .. }) = mutants.get(*id as usize) else {
                    continue;
                };
                println!(
                    "cannot be woven, counts as unviable: {}:{}: {name}",
                    place.0, place.1
                );
            }
            out.extend(lost);
            let wrong = self.wrong()?;
            if wrong.is_empty() {
                return Ok(out);
            }
            println!("attempt {attempt}: {} do not compile", wrong.len());
            let before = out.len();
            out.extend(wrong);
            ensure!(
                out.len() > before,
                "what is left does not compile, for another reason"
            );
        }
        bail!("still not compiled after {ATTEMPTS} attempts")
    }

    fn write(&self, mutants: &[Mutant], out: &BTreeSet<u32>) -> Result<Vec<u32>> {
        let mut all_lost = Vec::new();
        let mut files: BTreeMap<&Path, Vec<(u32, &Mutant)>> = BTreeMap::new();
        for (id, mutant) in (0..).zip(mutants) {
            let of_file = files.entry(&mutant.file).or_default();
            if !out.contains(&id) {
                of_file.push((id, mutant));
            }
        }
        for (file, mutants) in files {
            let source = fs::read_to_string(paths::root().join(file))?;
            let (woven, lost) = weave::weave(&source, &mutants)
                .with_context(|| format!("cannot weave {}", file.display()))?;
            fs::write(self.root.join(file), woven)?;
            all_lost.extend(lost);
        }
        Ok(all_lost)
    }

    /// The mutants at which the compiler takes offence.
    fn wrong(&self) -> Result<BTreeSet<u32>> {
        let out = self.cargo(&["check", "--lib"]).output()?;
        let mut wrong = BTreeSet::new();
        for message in messages(&out.stdout) {
            let message = &message["message"];
            if message["level"] != "error" {
                continue;
            }
            for span in message["spans"].as_array().into_iter().flatten() {
                if span["is_primary"] != true {
                    continue;
                }
                let (Some(file), Some(byte)) =
                    (span["file_name"].as_str(), span["byte_end"].as_u64())
                else {
                    continue;
                };
                let text = fs::read_to_string(self.root.join(file))?;
                // E0004: a match lacks an arm, because of one of its own.
                if message["code"]["code"] == "E0004" {
                    wrong.extend(weave::asked_within(&text, byte as usize));
                } else {
                    wrong.extend(weave::asked_before(&text, &[byte as usize]));
                }
            }
        }
        ensure!(
            out.status.success() || !wrong.is_empty(),
            "the woven crate does not compile:\n{}\n{}",
            String::from_utf8_lossy(&out.stderr),
            messages(&out.stdout)
                .filter_map(|message| Some(message["message"]["rendered"].as_str()?.to_owned()))
                .collect::<String>()
        );
        Ok(if out.status.success() {
            BTreeSet::new()
        } else {
            wrong
        })
    }

    /// Compiles the crate's tests.
    pub(super) fn tests(&self) -> Result<Vec<Binary>> {
        let out = self
            .cargo(&["test", "--no-run", "--lib", "--tests"])
            .output()?;
        ensure!(
            out.status.success(),
            "the tests do not compile: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let binary = |message: Value| {
            Some(Binary {
                name: message["target"]["name"].as_str()?.to_owned(),
                path: message["executable"].as_str()?.into(),
            })
        };
        let tests = messages(&out.stdout).filter(|message| message["profile"]["test"] == true);
        Ok(tests.filter_map(binary).collect())
    }

    /// A cargo command on the package in the copy.
    pub(super) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = self.plain_cargo(arguments);
        command
            .arg("--message-format=json")
            .env("RUSTC_WORKSPACE_WRAPPER", self.root.join("rustc-wrapper"));
        command
    }

    /// The same without the switch, and with messages for people.
    pub(super) fn plain_cargo(&self, arguments: &[&str]) -> Command {
        // The last part of the folder, as with `examples/vmm`.
        let name = self.package.rsplit('/').next().unwrap_or(self.package);
        let mut command = Command::new("cargo");
        command
            .current_dir(&self.root)
            .args(arguments)
            .args(["--package", &format!("hvkit-{name}"), "--all-features"])
            .env("CARGO_TARGET_DIR", paths::target().join("mutants/build"));
        command
    }
}

fn messages(out: &[u8]) -> impl Iterator<Item = Value> {
    out.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}
