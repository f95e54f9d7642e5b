// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Long steps: progress while they run, one line with the time when they end, and the end of
//! their log when they fail.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use lab_kit::paths;

/// How much of a failed step's log is shown.
const SHOWN_LINES: usize = 40;

/// The terminal, which steps that run side by side share.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One long step: says what runs, shows that it lives, and ends in one line.
#[derive(Debug)]
pub struct Step {
    name: String,
    start: Instant,
    bar: ProgressBar,
}

impl Step {
    /// Announces a step.
    pub fn start(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = BARS.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(name.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        } else {
            ProgressBar::hidden()
        };
        Step {
            name,
            start: Instant::now(),
            bar,
        }
    }

    /// Says how far the step is.
    pub fn progress(&self, what: impl AsRef<str>) {
        self.bar
            .set_message(format!("{}: {}", self.name, what.as_ref()));
    }

    /// Ends the step: one line with its result and time. Returns the time.
    pub fn done(self, result: impl AsRef<str>) -> Duration {
        let took = self.start.elapsed();
        self.end("ok", result.as_ref());
        took
    }

    /// Ends the step as failed.
    pub fn failed(self, why: impl AsRef<str>) {
        self.end("FAILED", why.as_ref());
    }

    /// Ends the step as skipped: loud, and never counted as passed.
    pub fn skipped(self, why: impl AsRef<str>) {
        self.end("SKIPPED", why.as_ref());
    }

    fn end(&self, verdict: &str, text: &str) {
        self.bar.finish_and_clear();
        let seconds = self.start.elapsed().as_secs_f64();
        let colon = if text.is_empty() { "" } else { ": " };
        BARS.suspend(|| eprintln!("{verdict:>7} {seconds:7.1} s  {}{colon}{text}", self.name));
    }
}

/// Runs `command` as a step, its output in a log file; shows the log's end if it fails.
pub fn run(name: &str, command: &mut Command) -> Result<Duration> {
    let log = log_path(name)?;
    let step = Step::start(name);
    match logged(command, &log) {
        Ok(()) => Ok(step.done("")),
        Err(error) => {
            step.failed("");
            show_end(&log);
            Err(error.context(format!("{name} failed; its whole log: {}", log.display())))
        }
    }
}

/// The log file of a step, its folder made.
pub fn log_path(name: &str) -> Result<PathBuf> {
    let folder = paths::logs();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    Ok(folder.join(format!("{plain}.log")))
}

fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!(
            "{} ended with {status}",
            command.get_program().to_string_lossy()
        );
    }
    Ok(())
}

/// Prints the last lines of a log.
pub fn show_end(log: &Path) {
    let Ok(mut file) = File::open(log) else {
        return;
    };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut tail = Vec::new();
    if file
        .seek(SeekFrom::Start(length.saturating_sub(16 << 10)))
        .is_err()
        || file.read_to_end(&mut tail).is_err()
    {
        return;
    }
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        eprintln!("    | {line}");
    }
}
