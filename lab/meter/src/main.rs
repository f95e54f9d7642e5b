// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `meter --until WORD --guest-kib N --timeout SECONDS -- COMMAND...`
//! `meter --marks --also PID --timeout SECONDS -- COMMAND...`
//!
//! Starts a VMM, reads its standard output until WORD stands in it, and prints one line of what
//! that took: wall-clock and processor time in microseconds, resident memory in KiB with and
//! without the guest's own. Then ends the VMM. With `--marks` it runs the VMM to its end, and prints what passed between the
//! marks that `lab/io-load` makes in the guest. Needs nothing but `/proc`, so that it runs in an
//! initramfs; has no dependencies, so that it is quick to build.

mod marks;
mod proc;

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Output kept for a message when the word never comes.
const KEPT: usize = 2000;

/// What is measured.
enum What {
    /// The start, until this word stands in the output; this much of the memory is the guest's.
    Start { until: String, guest_kib: u64 },
    /// What lies between marks; these processes work for the VMM.
    Marks { helpers: Vec<u32> },
}

struct Options {
    what: What,
    timeout: Duration,
    command: Vec<String>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("meter: {what}");
            return ExitCode::from(2);
        }
    };
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("meter: {what}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut until = None;
    let mut guest_kib = 0;
    let mut helpers: Option<Vec<u32>> = None;
    let mut timeout = 60;
    while let Some(argument) = arguments.next() {
        let mut number = |name: &str| {
            let value = arguments.next().ok_or(format!("{name} wants a number"))?;
            value
                .parse::<u64>()
                .map_err(|e| format!("{name} {value}: {e}"))
        };
        match argument.as_str() {
            "--guest-kib" => guest_kib = number("--guest-kib")?,
            "--timeout" => timeout = number("--timeout")?,
            "--marks" => helpers = Some(helpers.unwrap_or_default()),
            "--also" => {
                let pid = number("--also")?;
                let pid = u32::try_from(pid).map_err(|e| format!("--also {pid}: {e}"))?;
                helpers.get_or_insert_default().push(pid);
            }
            "--until" => until = arguments.next(),
            "--" => {
                let command: Vec<String> = arguments.collect();
                let until = until.filter(|u| !u.is_empty());
                let what = match (until, helpers) {
                    (Some(until), None) => What::Start { until, guest_kib },
                    (None, Some(helpers)) => What::Marks { helpers },
                    _ => return Err("one of --until WORD and --marks is wanted".into()),
                };
                if command.is_empty() {
                    return Err("no command after --".into());
                }
                let timeout = Duration::from_secs(timeout);
                return Ok(Options {
                    what,
                    timeout,
                    command,
                });
            }
            other => return Err(format!("{other} is not an option")),
        }
    }
    Err("no command: -- COMMAND... is missing".into())
}

fn measure(options: &Options) -> Result<(), String> {
    let [program, arguments @ ..] = options.command.as_slice() else {
        return Err("no command".into());
    };
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    let result =
        Output::of(&mut child, start, options.timeout).and_then(|mut output| match &options.what {
            What::Start { until, guest_kib } => until_word(&mut output, until, *guest_kib),
            What::Marks { helpers } => between_marks(&mut output, helpers),
        });
    // The figures are taken; how the VMM ends is not what is measured.
    let _ = child.kill();
    let _ = child.wait();
    result
}

/// A VMM's standard output, as it comes.
struct Output {
    pid: u32,
    start: Instant,
    patience: Duration,
    pieces: mpsc::Receiver<(Instant, Vec<u8>)>,
    /// The end of what came.
    seen: Vec<u8>,
}

impl Output {
    fn of(child: &mut Child, start: Instant, patience: Duration) -> Result<Self, String> {
        let out = child.stdout.take().ok_or("no standard output")?;
        let copy = out
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| format!("standard output: {e}"))?;
        let (send, pieces) = mpsc::channel();
        // A thread, because a pipe's read has no time-out; it ends with the pipe, and with us.
        thread::spawn(move || {
            let mut pipe = std::fs::File::from(copy);
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                if send
                    .send((Instant::now(), buffer[..length].to_vec()))
                    .is_err()
                {
                    break;
                }
            }
        });
        Ok(Self {
            pid: child.id(),
            start,
            patience,
            pieces,
            seen: Vec::new(),
        })
    }

    /// The next piece; none at the end.
    fn next(&mut self) -> Result<Option<(Instant, Vec<u8>)>, String> {
        let left = self.patience.saturating_sub(self.start.elapsed());
        match self.pieces.recv_timeout(left) {
            Ok((when, piece)) => {
                self.seen.extend(&piece);
                let passed = self.seen.len().saturating_sub(KEPT);
                self.seen.drain(..passed);
                Ok(Some((when, piece)))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self.late("the end")),
        }
    }

    fn late(&self, what: &str) -> String {
        format!(
            "{what} did not come in {:.1} s of {}; the end of the output:\n{}",
            self.start.elapsed().as_secs_f64(),
            self.patience.as_secs(),
            String::from_utf8_lossy(&self.seen)
        )
    }
}

fn until_word(output: &mut Output, until: &str, guest_kib: u64) -> Result<(), String> {
    let word = until.as_bytes();
    // What of the word the piece before may end with.
    let mut before: Vec<u8> = Vec::new();
    loop {
        let Some((when, piece)) = output.next()? else {
            return Err(output.late(&format!("`{until}`")));
        };
        before.extend(piece);
        if before.windows(word.len()).any(|w| w == word) {
            let cpu = proc::cpu_micros(output.pid)?;
            let memory = proc::memory(output.pid, guest_kib)?;
            println!(
                "wall_us={} cpu_us={cpu} rss_kib={} own_kib={}",
                when.duration_since(output.start).as_micros(),
                memory.all_kib,
                memory.own_kib
            );
            return Ok(());
        }
        let passed = before.len().saturating_sub(word.len());
        before.drain(..passed);
    }
}

fn between_marks(output: &mut Output, helpers: &[u32]) -> Result<(), String> {
    let mut marks = marks::Marks::default();
    let pid = output.pid;
    while let Some((_, piece)) = output.next()? {
        for line in marks.feed(&piece, &mut || marks::Sample::take(pid, helpers))? {
            println!("{line}");
        }
    }
    Ok(())
}
