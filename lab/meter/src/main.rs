// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `meter --until WORD --guest-kib N --timeout SECONDS -- COMMAND...`
//!
//! Starts a VMM, reads its standard output until WORD stands in it, and prints one line of what
//! that took: wall-clock and processor time in microseconds, resident memory in KiB with and
//! without the guest's own. Then ends the VMM. Needs nothing but `/proc`, so that it runs in an
//! initramfs; has no dependencies, so that it is quick to build.

mod proc;

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Output kept for a message when the word never comes.
const KEPT: usize = 2000;

struct Options {
    until: String,
    guest_kib: u64,
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
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("meter: {what}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut until = None;
    let mut guest_kib = 0;
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
            "--until" => until = arguments.next(),
            "--" => {
                let command: Vec<String> = arguments.collect();
                let until = until
                    .filter(|u| !u.is_empty())
                    .ok_or("--until WORD is missing")?;
                if command.is_empty() {
                    return Err("no command after --".into());
                }
                let timeout = Duration::from_secs(timeout);
                return Ok(Options {
                    until,
                    guest_kib,
                    timeout,
                    command,
                });
            }
            other => return Err(format!("{other} is not an option")),
        }
    }
    Err("no command: -- COMMAND... is missing".into())
}

fn measure(options: &Options) -> Result<String, String> {
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
    let result = watch(&mut child, options, start);
    // The figures are taken; how the VMM ends is not what is measured.
    let _ = child.kill();
    let _ = child.wait();
    result
}

fn watch(child: &mut Child, options: &Options, start: Instant) -> Result<String, String> {
    let out = child.stdout.take().ok_or("no standard output")?;
    let copy = out
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| format!("standard output: {e}"))?;
    let (send, chunks) = mpsc::channel();
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
    let word = options.until.as_bytes();
    let mut seen: Vec<u8> = Vec::new();
    loop {
        let left = options.timeout.saturating_sub(start.elapsed());
        let Ok((when, chunk)) = chunks.recv_timeout(left) else {
            let tail = &seen[seen.len().saturating_sub(KEPT)..];
            return Err(format!(
                "`{}` did not come in {:.1} s of {}; the end of the output:\n{}",
                options.until,
                start.elapsed().as_secs_f64(),
                options.timeout.as_secs(),
                String::from_utf8_lossy(tail)
            ));
        };
        // The word may straddle two chunks; what lies before them was already looked at.
        let from = seen.len().saturating_sub(word.len());
        seen.extend(chunk);
        if seen[from..].windows(word.len()).any(|w| w == word) {
            let pid = child.id();
            let cpu = proc::cpu_micros(pid)?;
            let memory = proc::memory(pid, options.guest_kib)?;
            return Ok(format!(
                "wall_us={} cpu_us={cpu} rss_kib={} own_kib={}",
                when.duration_since(start).as_micros(),
                memory.all_kib,
                memory.own_kib
            ));
        }
    }
}
