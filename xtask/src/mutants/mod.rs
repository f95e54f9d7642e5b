// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask mutants`: which changes of a crate's code no test of the crate notices.
//!
//! The changes are those of cargo-mutants, which compiles the crate once for each. We draw a sample, weave it into one program
//! (`weave`) and switch one mutant on at a time: minutes instead of days. Constants, which are computed
//! before a switch could be turned, are left out, and so are the fakes that tests are made with; and a mutant in a `const fn` is
//! on when the function runs, not in constants: it
//! may survive here where cargo-mutants would not let it, never the other way round.
//!
//! `HVKIT_CASES=6` in the environment has tests that take so many random cases be quick: what a few cases catch, many do.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use lab_kit::paths;

use crate::cargo::{folder_of, install};
use crate::checkout::Stamp;

pub(crate) mod guards;
mod list;
pub(crate) mod record;
mod tree;
mod trial;
mod weave;

pub use guards::{Options as GuardsOptions, guards};
use record::Run;
use tree::Tree;
use trial::{End, Test};

/// The version that was tried here.
const CARGO_MUTANTS: &str = "27.1.0";

/// What `cargo xtask mutants` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A library crate, such as `ept` or `hvkit-ept`.
    package: String,
    /// How many mutants to draw.
    #[arg(long, default_value_t = 150)]
    sample: usize,
    /// By which lots.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Test binaries to leave out, such as those that start an emulator.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "qtest,iasl",
        value_delimiter = ','
    )]
    without: Vec<String>,
    /// Stop after so many minutes of trying.
    #[arg(long, default_value_t = 600)]
    minutes: u64,
    /// How many mutants are tried at once.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
}

/// How many that are unviable lie before the first that was not tried, since the time was up: the sample ends there.
fn came_to(unviable: &BTreeSet<u32>, tried: &[u32], ends: &[Option<End>]) -> u64 {
    let untried = tried.iter().zip(ends).find(|(_, end)| end.is_none());
    let end = untried.map_or(u32::MAX, |(id, _)| *id);
    unviable.range(..end).count() as u64
}

/// Tries mutants of a crate and writes the record. Survivors are no failure: they are listed.
pub fn mutants(options: &Options) -> Result<()> {
    let Options { package, seed, .. } = options;
    let package = folder_of(package);
    ensure!(
        paths::root().join(package).join("Cargo.toml").exists(),
        "there is no crate {package}"
    );
    install("mutants", CARGO_MUTANTS)?;
    let all = list::all(package)?;
    let count = all.len();
    let drawn = list::sample(all, options.sample, *seed);
    let stamp = Stamp::now()?;
    let tree = Tree::copy(package, "tree")?;
    tree.add_switch()?;
    let unviable = tree.weave(&drawn)?;
    let mut tests = Vec::new();
    for binary in tree.tests()? {
        if !options.without.contains(&binary.name) {
            let test = Test::measure(binary, &tree.folder())?;
            println!("{}", test.describe());
            tests.push(test);
        }
    }
    let ids: Vec<u32> = (0..drawn.len() as u32)
        .filter(|id| !unviable.contains(id))
        .collect();
    let time = Duration::from_secs(options.minutes.saturating_mul(60));
    let ends = trial::try_all(&ids, &mut tests, &tree.folder(), options.jobs, time)?;
    let mut run = Run {
        unviable: came_to(&unviable, &ids, &ends),
        ..Run::default()
    };
    for (id, end) in ids.iter().zip(ends) {
        match end {
            Some(End::Caught) => run.caught += 1,
            Some(End::TimedOut) => run.timeout += 1,
            None => {}
            Some(End::Missed) => {
                let mutant = &drawn[*id as usize];
                let (line, column) = mutant.place;
                println!("missed at {line}:{column}: {}", mutant.name);
                run.missed.push(mutant.name.clone());
            }
        }
    }
    let without = options.without.join("+");
    let tried = run.tried() + run.unviable;
    // Random tests may be told to try fewer cases than CI does.
    let cases = std::env::var("HVKIT_CASES").map(|cases| format!(",cases={cases}"));
    let cases = cases.unwrap_or_default();
    let sample = format!("{tried}of{count},seed={seed},without={without}{cases}");
    let path = run.write(package, &stamp, &sample)?;
    println!(
        "{package}: {} of {} caught; {} survive, in {}",
        run.caught + run.timeout,
        run.tried(),
        run.missed.len(),
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_was_broken_off_has_no_mutants_of_behind_its_end() {
        let unviable = BTreeSet::from([0, 3, 5, 9]);
        let tried = [1, 2, 4, 6, 7, 8];
        let mut ends = [Some(End::Caught); 6];
        assert_eq!(came_to(&unviable, &tried, &ends), 4);
        ends[3..].fill(None);
        // 6 was not tried: 0, 3 and 5 were drawn before it.
        assert_eq!(came_to(&unviable, &tried, &ends), 3);
        ends.fill(None);
        assert_eq!(came_to(&unviable, &tried, &ends), 1);
    }
}
