// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask fuzz`: cargo-fuzz, installed first where it is missing, and the seeds it leaves.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tempfile::TempDir;

use lab_kit::paths;

use crate::checkout::Stamp;
use crate::{cargo, setup};

pub(crate) mod record;

use record::Run;

/// The version that was tried here.
const CARGO_FUZZ: &str = "0.13.2";

/// Seconds after which one input is a hang. libFuzzer's own default is twenty minutes.
const HANG: u32 = 20;

/// What `cargo xtask fuzz` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A target of fuzz/fuzz_targets, such as `mapper`; without one, they are listed.
    target: Option<String>,
    /// Seconds to run.
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// The longest input, in bytes; 0 lets libFuzzer choose.
    #[arg(long, default_value_t = 0)]
    max_len: u32,
    /// What the program is built with beside libFuzzer.
    #[arg(long, value_enum, default_value_t = Sanitizer::Address)]
    sanitizer: Sanitizer,
    /// Afterwards, make fuzz/seeds/TARGET the fewest inputs that reach all that was reached.
    #[arg(long)]
    seeds: bool,
    /// Afterwards, note the executions in fuzz/record/TARGET, for EVIDENCE.md.
    #[arg(long)]
    record: bool,
}

/// What finds faults that are no panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sanitizer {
    /// AddressSanitizer, for what unsafe code does.
    Address,
    /// Nothing. Several times as fast, and as good where all code under test is safe.
    None,
}

impl Sanitizer {
    /// As the record has it.
    fn name(self) -> &'static str {
        match self {
            Sanitizer::Address => "address",
            Sanitizer::None => "none",
        }
    }

    /// What cargo-fuzz takes. Builds of different kinds lie apart, so that none undoes another.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Sanitizer::Address => &[],
            Sanitizer::None => &["--sanitizer", "none", "--target-dir", "target/fuzz-plain"],
        }
    }
}

/// Fuzzes one target for a while. Fails if it found something; the input is then in fuzz/artifacts.
pub fn fuzz(options: &Options) -> Result<()> {
    let targets = names(&paths::root().join("fuzz/fuzz_targets"))?;
    let Some(target) = &options.target else {
        println!("{}", targets.join("\n"));
        return Ok(());
    };
    if !targets.contains(target) {
        bail!("no fuzz target {target}; there are: {}", targets.join(", "));
    }
    setup::setup()?;
    install()?;
    let (seeds, corpus) = (folder("seeds", target)?, folder("corpus", target)?);
    // What is found goes to the first folder; git ignores it.
    let sanitizer = options.sanitizer;
    let stamp = Stamp::now()?;
    let run = run(target, sanitizer, &[&corpus, &seeds], &limits(options)).with_context(|| {
        format!("{target} found something, or could not run; inputs it found are in fuzz/artifacts/{target}")
    })?;
    if options.record {
        run.append(target, &stamp, sanitizer.name())?;
    }
    if options.seeds {
        distil(target, sanitizer, &corpus, &seeds)?;
    }
    Ok(())
}

/// libFuzzer's arguments for a run.
fn limits(options: &Options) -> Vec<String> {
    let mut limits = vec![
        format!("-max_total_time={}", options.time),
        format!("-timeout={HANG}"),
        "-print_final_stats=1".to_owned(),
    ];
    if options.max_len > 0 {
        limits.push(format!("-max_len={}", options.max_len));
    }
    limits
}

/// Replaces the seeds by the fewest inputs that cover as much as seeds and corpus together.
///
/// A seed with a name somebody gave it stays: it was a finding once.
fn distil(target: &str, sanitizer: Sanitizer, corpus: &Path, seeds: &Path) -> Result<()> {
    let mine = beside(seeds)?;
    // Within it, since it is for nobody else to read, and seeds are.
    let fresh = &mine.path().join("new");
    fs::create_dir(fresh)?;
    for seed in files(seeds)? {
        if !is_hash(&seed) {
            let name = seed.file_name().unwrap_or_default();
            fs::copy(&seed, fresh.join(name))?;
        }
    }
    let merged = run(
        target,
        sanitizer,
        &[fresh, seeds, corpus],
        &["-set_cover_merge=1".into()],
    );
    merged.context("the seeds are as they were")?;
    replace(seeds, fresh)?;
    let mut bytes = 0;
    let kept = files(seeds)?;
    for seed in &kept {
        bytes += seed.metadata()?.len();
    }
    println!(
        "{} seeds, {bytes} bytes, in {}",
        kept.len(),
        seeds.display()
    );
    Ok(())
}

/// A folder of this run alone, on the same storage as `seeds`: another run, of another target or of this one, has its own. Whatever happens,
/// nothing half made stays behind.
fn beside(seeds: &Path) -> Result<TempDir> {
    let parent = seeds.parent().and_then(Path::parent);
    let parent = parent.with_context(|| format!("no folder for {}", seeds.display()))?;
    tempfile::Builder::new()
        .prefix(".seeds.")
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a folder in {}", parent.display()))
}

/// Puts what is in `fresh` in the place of `seeds`. What was there is removed last: it comes back if nothing takes its place.
fn replace(seeds: &Path, fresh: &Path) -> Result<()> {
    let place = beside(seeds)?;
    let old = place.path().join("old");
    fs::rename(seeds, &old).with_context(|| format!("cannot move {}", seeds.display()))?;
    let moved = fs::rename(fresh, seeds);
    if moved.is_err() {
        fs::rename(&old, seeds)
            .with_context(|| format!("the seeds are {}", place.keep().display()))?;
    }
    moved.with_context(|| format!("cannot move {}", fresh.display()))
}

/// Whether libFuzzer named this file: by the SHA-1 of what is in it.
fn is_hash(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `fuzz/KIND/TARGET`, made if it is missing.
fn folder(kind: &str, target: &str) -> Result<PathBuf> {
    let folder = paths::root().join("fuzz").join(kind).join(target);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The files in a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// The names of the files in a folder, without their endings.
fn names(folder: &Path) -> Result<Vec<String>> {
    let stem = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    Ok(files(folder)?.iter().filter_map(stem).collect())
}

/// Installs cargo-fuzz where it is missing.
fn install() -> Result<()> {
    if !nightly(&["--version"]).output()?.status.success() {
        bail!("fuzzing needs a nightly toolchain: rustup toolchain install nightly");
    }
    cargo::install("fuzz", CARGO_FUZZ)
}

/// Runs libFuzzer, and counts. Its own output is the progress: executions, coverage, the finding if there is one.
fn run(target: &str, sanitizer: Sanitizer, folders: &[&Path], arguments: &[String]) -> Result<Run> {
    let mut child = nightly(&["fuzz", "run"])
        .args(sanitizer.arguments())
        .arg(target)
        .args(folders)
        .arg("--")
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut run = Run::default();
    if let Some(said) = child.stderr.take() {
        for line in BufReader::new(said).split(b'\n') {
            let line = line.context("cannot read what libFuzzer says")?;
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            run.hear(&line);
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("{target} ended with {status}");
    }
    Ok(run)
}

/// The nightly toolchain's cargo: the sanitizer that cargo-fuzz builds with needs it.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::root())
        // Set by the cargo that runs us, and it would win over `+nightly`.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .arg("+nightly")
        .args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run left, as a folder of seeds.
    fn seeded(folder: &Path, seed: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(seed), seed).unwrap();
    }

    #[test]
    fn two_runs_at_once_leave_each_others_seeds_alone() {
        let root = tempfile::tempdir().unwrap();
        let [mapper, walk] =
            ["mapper", "walk"].map(|target| root.path().join("seeds").join(target));
        seeded(&mapper, "old");
        seeded(&walk, "old");
        let of_mapper = beside(&mapper).unwrap();
        let of_walk = beside(&walk).unwrap();
        let again = beside(&walk).unwrap();
        seeded(of_mapper.path(), "new");
        seeded(of_walk.path(), "new");
        seeded(again.path(), "newer");
        replace(&mapper, of_mapper.path()).unwrap();
        drop(of_mapper);
        assert!(of_walk.path().join("new").exists());
        replace(&walk, of_walk.path()).unwrap();
        replace(&walk, again.path()).unwrap();
        drop((of_walk, again));
        let names = |folder: &Path| names(folder).unwrap();
        assert_eq!(names(&mapper), ["new"]);
        assert_eq!(names(&walk), ["newer"]);
        assert_eq!(names(root.path()), ["seeds"], "nothing half made");
    }

    #[test]
    fn seeds_stay_if_nothing_comes_in_their_place() {
        let root = tempfile::tempdir().unwrap();
        let seeds = root.path().join("seeds/mapper");
        seeded(&seeds, "old");
        assert!(replace(&seeds, &root.path().join("none")).is_err());
        assert_eq!(names(&seeds).unwrap(), ["old"]);
        assert_eq!(names(root.path()).unwrap(), ["seeds"]);
    }

    #[test]
    fn a_seed_that_somebody_named_is_told_from_one_by_libfuzzer() {
        let hash = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";
        assert!(is_hash(&Path::new("seeds").join(hash)));
        assert!(!is_hash(Path::new("seeds/split-across-the-hole")));
        assert!(!is_hash(&Path::new("seeds").join(&hash[1..])));
    }
}
