// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What cargo-mutants would change in a crate, and a sample of it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab_kit::paths;
use serde_json::Value;

/// One change of the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mutant {
    /// As cargo-mutants calls it, without line and column: `src/a.rs: replace f -> u8 with 0`.
    pub(super) name: String,
    /// The file, from the checkout's root.
    pub(super) file: PathBuf,
    /// What sort of change.
    pub(super) kind: Kind,
    /// Line and column, both from 1, in characters, where the changed text begins.
    pub(super) place: (usize, usize),
    /// What comes in its place.
    pub(super) replacement: String,
}

/// The sorts of change that can be woven into one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A function returns this at once.
    Body,
    /// Another operator between two operands.
    Binary,
    /// No operator before an operand.
    Unary,
    /// An arm of a match is not there.
    Arm,
    /// A guard of an arm is always true, or never.
    Guard,
}

/// All changes of a package's functions, in cargo-mutants' order, of the kinds that can be woven. Not of its fakes: they are what
/// tests are made with, and a test that is made weaker fails for nobody.
pub(super) fn all(package: &str) -> Result<Vec<Mutant>> {
    let out = Command::new("cargo")
        .args(["mutants", "--list", "--json", "--package"])
        .arg(format!("hvkit-{package}"))
        .current_dir(paths::root())
        .output()
        .context("cannot start cargo mutants")?;
    ensure!(
        out.status.success(),
        "cargo mutants --list: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    let list: Vec<Value> = serde_json::from_slice(&out.stdout).context("no list of mutants")?;
    Ok(list.iter().filter_map(mutant).collect())
}

fn mutant(value: &Value) -> Option<Mutant> {
    let text = |key: &str| value[key].as_str();
    let number = |key: &str| Some(value["span"]["start"][key].as_u64()? as usize);
    let kind = match text("genre")? {
        "FnValue" => Kind::Body,
        "BinaryOperator" => Kind::Binary,
        "UnaryOperator" => Kind::Unary,
        "MatchArm" => Kind::Arm,
        "MatchArmGuard" => Kind::Guard,
        _ => return None,
    };
    // What is computed when the crate is compiled cannot be switched when it runs.
    if value["function"].is_null() {
        return None;
    }
    let file = PathBuf::from(text("file")?);
    let is_fake = |part: &OsStr| part == "fake" || part == "fake.rs";
    if file.iter().any(is_fake) {
        return None;
    }
    Some(Mutant {
        name: super::record::without_place(text("name")?),
        file,
        kind,
        place: (number("line")?, number("column")?),
        replacement: text("replacement")?.to_owned(),
    })
}

/// `count` of them, each as likely as any other, in the order of the lots, so that the first few are a sample too; the same
/// ones for the same seed.
pub(super) fn sample(mut all: Vec<Mutant>, count: usize, seed: u64) -> Vec<Mutant> {
    let mut state = seed;
    let mut drawn = Vec::new();
    while drawn.len() < count && !all.is_empty() {
        let at = (next(&mut state) % all.len() as u64) as usize;
        drawn.push(all.swap_remove(at));
    }
    drawn
}

/// SplitMix64: enough to draw lots.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: usize) -> Vec<Mutant> {
        let one = |line| Mutant {
            name: String::new(),
            file: PathBuf::new(),
            kind: Kind::Body,
            place: (line, 1),
            replacement: String::new(),
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn fakes_are_left_alone() {
        let at = |file: &str| {
            mutant(&serde_json::json!({
                "genre": "FnValue", "name": "a.rs:1:1: replace f with ()", "file": file, "replacement": "()",
                "function": {"function_name": "f"}, "span": {"start": {"line": 1, "column": 1}},
            }))
        };
        assert!(at("shadow-paging/src/fake/tlb.rs").is_none());
        assert!(at("page-table/src/fake.rs").is_none());
        assert_eq!(
            at("ept/src/faked.rs").unwrap().file,
            PathBuf::from("ept/src/faked.rs")
        );
    }

    #[test]
    fn a_sample_is_a_part_and_the_same_for_the_same_seed() {
        let lines = |seed| -> Vec<usize> {
            let sample = sample(numbered(1000), 100, seed);
            sample.iter().map(|mutant| mutant.place.0).collect()
        };
        let one = lines(1);
        assert_eq!(one.len(), 100);
        let different: std::collections::BTreeSet<_> = one.iter().collect();
        assert_eq!(different.len(), 100, "none is drawn twice");
        let early = one[..20].iter().filter(|line| **line < 500).count();
        assert!((3..=17).contains(&early), "the first few spread over all");
        assert_eq!(one, lines(1));
        assert_ne!(one, lines(2));
        assert_eq!(sample(numbered(3), 100, 1).len(), 3);
    }
}
