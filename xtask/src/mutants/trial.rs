// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One mutant after the other against the tests that reach it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_kit::paths;

use super::tree::Binary;

/// What a test may map: a loop that a mutant made endless may allocate, too.
const MEMORY: &str = "--as=8589934592";

/// A test may compute this many times as long as it takes without a mutant, and this many seconds more: of the processor's
/// time, so that no mutant counts as noticed because the machine did something else.
const TIMES: u32 = 8;
const MORE: Duration = Duration::from_secs(60);
/// A test that computes nothing for so long waits for what will not come.
const IDLE: Duration = Duration::from_secs(60);

/// A test binary, and what is known of it.
pub(super) struct Test {
    binary: Binary,
    /// How long it takes when nothing fails.
    takes: Duration,
    /// The mutants whose places it reaches.
    reaches: BTreeSet<u32>,
    /// Whether no panic is part of its work, so that the first one means failure.
    calm: bool,
}

/// How a mutant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A test failed.
    Caught,
    /// A test did not end.
    TimedOut,
    /// All tests passed.
    Missed,
}

impl Test {
    /// Runs it without a mutant. Fails if it does.
    pub(super) fn measure(binary: Binary, folder: &Path) -> Result<Self> {
        let notes = paths::target().join("mutants/reached");
        let _ = fs::remove_file(&notes);
        let noted = [("HVKIT_MUTANT_REACHED", notes.display().to_string())];
        let (passed, _) = run(&binary, folder, &noted, None)?;
        ensure!(
            passed == Some(true),
            "{} fails without a mutant",
            binary.name
        );
        let text = fs::read_to_string(&notes).unwrap_or_default();
        let exit = [("HVKIT_MUTANT_EXIT", "1".to_owned())];
        let (calm, takes) = run(&binary, folder, &exit, None)?;
        Ok(Test {
            binary,
            takes,
            reaches: text.lines().filter_map(|line| line.parse().ok()).collect(),
            calm: calm == Some(true),
        })
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let Test {
            binary,
            takes,
            reaches,
            calm,
        } = self;
        let calm = if *calm { "" } else { ", panics on purpose" };
        format!(
            "{}: {:.1} s, reaches {}{calm}",
            binary.name,
            takes.as_secs_f32(),
            reaches.len()
        )
    }

    fn try_mutant(&self, id: u32, folder: &Path) -> Result<End> {
        let mut set = vec![("HVKIT_MUTANT", id.to_string())];
        if self.calm {
            set.push(("HVKIT_MUTANT_EXIT", "1".to_owned()));
        }
        let (passed, _) = run(&self.binary, folder, &set, Some(self.takes * TIMES + MORE))?;
        Ok(match passed {
            Some(true) => End::Missed,
            Some(false) => End::Caught,
            None => End::TimedOut,
        })
    }
}

/// Tries each mutant until the time is up, `jobs` at once; what came of it, in the order of `ids`.
pub(super) fn try_all(
    ids: &[u32],
    tests: &mut [Test],
    folder: &Path,
    jobs: u32,
    time: Duration,
) -> Result<Vec<Option<End>>> {
    tests.sort_by_key(|test| test.takes);
    let tests = &*tests;
    let next = AtomicU32::new(0);
    let ends = Mutex::new(vec![None; ids.len()]);
    let start = Instant::now();
    let work = || -> Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed) as usize;
            let Some(id) = ids.get(at).filter(|_| start.elapsed() < time) else {
                return Ok(());
            };
            let mut end = End::Missed;
            for test in tests.iter().filter(|test| test.reaches.contains(id)) {
                end = test.try_mutant(*id, folder)?;
                if end != End::Missed {
                    break;
                }
            }
            println!("{at} of {}: mutant {id} {end:?}", ids.len());
            if let Ok(mut ends) = ends.lock() {
                ends[at] = Some(end);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    ends.into_inner().context("a worker panicked")
}

/// Whether it passed, `None` if it did not end within `patience` of the processor's time; and how long it took.
fn run(
    binary: &Binary,
    folder: &Path,
    environment: &[(&str, String)],
    patience: Option<Duration>,
) -> Result<(Option<bool>, Duration)> {
    let start = Instant::now();
    // Limits are in seconds: a signal at the first, an end at the second.
    let soft = patience.map(|patience| patience.as_secs().saturating_add(1));
    let limit = soft.map(|soft| format!("--cpu={soft}:{}", soft.saturating_add(5)));
    let mut child = Command::new("prlimit")
        .arg(MEMORY)
        .args(limit)
        .arg(&binary.path)
        .arg("-q")
        .current_dir(folder)
        // cargo sets it for tests; some find their data by it.
        .env("CARGO_MANIFEST_DIR", folder)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.path.display()))?;
    let (mut computed, mut since) = (None, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            let passed = (status.signal() != Some(SIGXCPU)).then(|| status.success());
            return Ok((passed, start.elapsed()));
        }
        let now = ticks(child.id());
        if now != computed {
            (computed, since) = (now, Instant::now());
        }
        if patience.is_some() && since.elapsed() > IDLE {
            child.kill()?;
            child.wait()?;
            return Ok((None, start.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The signal for more processor time than was allowed.
const SIGXCPU: i32 = 24;

/// How long a process has computed, in the kernel's ticks. `proc(5)`: `utime` and `stime`.
fn ticks(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    ticks_of(&stat)
}

/// From such a line: the name in parentheses may have anything in it.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn shell(script: &str, patience: Duration) -> Option<bool> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let name = "shell".to_owned();
        let binary = Binary { name, path };
        run(&binary, folder.path(), &[], Some(patience)).unwrap().0
    }

    #[test]
    fn a_test_passes_fails_or_computes_too_long() {
        let second = Duration::from_secs(1);
        assert_eq!(shell("exit 0", second), Some(true));
        assert_eq!(shell("exit 1", second), Some(false));
        assert_eq!(shell("while :; do :; done", second), None);
    }

    #[test]
    fn what_a_process_computed_is_told_behind_its_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 20 22 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }
}
