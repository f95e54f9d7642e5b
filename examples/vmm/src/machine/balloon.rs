// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's socket: a line asks, a line answers.
//!
//! ```text
//!   target 64M      ok                                       the guest is asked to do without that much
//!   target          target=67108864 actual=67108864          in bytes; what the guest says it has given
//!   stats           free=123 total=456 ...                   new ones, from the guest
//!   hints           bytes=123 ranges=4                       what the guest has free at this moment
//! ```

use crate::cli::size;
use crate::confine::{Confiner, Kind};
use crate::wake::Wake;
use hvkit_virtio_devices::balloon::{Control, Hints, Round, Statistics};
use hvkit_virtio_devices::patience::end_of;
use hvkit_virtio_devices::reclaim::PAGE;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a client has for its line.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest has for its statistics or hints: it may be slow, and its client can hang up.
const GUEST_PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the longest line.
const LINE: u64 = 64;

/// Pages of the balloon in `bytes`, rounded up; none if there are too many.
#[must_use]
pub fn pages(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(PAGE)).ok()
}

/// The thread that answers at the socket; both end with the value.
#[derive(Debug)]
pub struct BalloonSocket {
    path: PathBuf,
    end: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl BalloonSocket {
    /// Listens at `path` for what is to become of the balloon of `control`. The thread is confined by `confiner`.
    ///
    /// # Errors
    ///
    /// The host's: the path is in use, say.
    pub fn listen(path: &Path, control: Control, confiner: Confiner) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let end = Arc::new(Wake::new()?);
        let mut socket = BalloonSocket {
            path: path.to_path_buf(),
            end: Arc::clone(&end),
            thread: None,
        };
        let serve = move || match confiner.enter(Kind::Control) {
            Ok(()) => serve(&listener, &end, &control),
            Err(error) => log::error!("nobody answers at the balloon's socket: {error}"),
        };
        let thread = thread::Builder::new().name("balloon".to_owned());
        socket.thread = Some(thread.spawn(serve)?);
        Ok(socket)
    }
}

impl Drop for BalloonSocket {
    fn drop(&mut self) {
        self.end.signal();
        if let Some(thread) = self.thread.take() {
            // It has no way to panic; if it did, the machine is at its end here anyway.
            let _ = thread.join();
        }
        // If it is gone already, that is as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers one client after another until the end.
fn serve(listener: &UnixListener, end: &Wake, control: &Control) {
    loop {
        let mut sources = [
            PollFd::new(end, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !sources[0].revents().is_empty() {
            return;
        }
        if !sources[1].revents().is_empty()
            && let Ok((client, _)) = listener.accept()
        {
            // A client that is gone, or says nothing for too long, is no trouble.
            let _ = answer(&client, control);
        }
    }
}

fn answer(client: &UnixStream, control: &Control) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    io::Read::take(BufReader::new(client), LINE).read_line(&mut line)?;
    let answer = obey(line.trim_end(), control);
    (&*client).write_all(format!("{answer}\n").as_bytes())
}

fn obey(line: &str, control: &Control) -> String {
    let bytes = |pages: u32| u64::from(pages) * PAGE;
    match line.split_once(' ') {
        None if line == "target" => {
            let (target, actual) = (bytes(control.target()), bytes(control.actual()));
            format!("target={target} actual={actual}")
        }
        None if line == "stats" => match fresh(control) {
            Some(statistics) => words(&statistics),
            None => "error: the guest tells no statistics".to_owned(),
        },
        None if line == "hints" => match hinted(control) {
            Some(hints) => format!("bytes={} ranges={}", hints.bytes(), hints.ranges.len()),
            None => "error: the guest gives no hints".to_owned(),
        },
        Some(("target", text)) => match size(text).and_then(pages) {
            Some(pages) => {
                control.set_target(pages);
                "ok".to_owned()
            }
            None => format!("error: '{text}' is not a size such as 64M"),
        },
        _ => format!("error: unknown command '{line}' (known: target, target BYTES, stats, hints)"),
    }
}

/// Statistics that the guest has told after it was asked.
fn fresh(control: &Control) -> Option<Statistics> {
    let before = control.statistics().answers;
    control.ask_statistics().ok()?;
    within_patience(control, || {
        Some(control.statistics()).filter(|now| now.answers > before)
    })
}

/// The pages that the guest has free, which it may use again when this returns.
fn hinted(control: &Control) -> Option<Hints> {
    control.ask_hints();
    let hints = within_patience(control, || {
        let now = control.hints();
        (now.round == Round::Complete).then_some(now)
    });
    control.end_hints();
    hints
}

/// What `look` finds before the guest's time is over, or its driver gone.
fn within_patience<T>(control: &Control, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = end_of(GUEST_PATIENCE);
    loop {
        match look() {
            None if control.has_driver() && Instant::now() < end => {
                thread::sleep(Duration::from_millis(5));
            }
            found => return found,
        }
    }
}

fn words(statistics: &Statistics) -> String {
    let word = |(kind, value): (&hvkit_virtio_devices::balloon::Statistic, &u64)| {
        kind.name().map_or_else(
            || format!("kind{}={value}", kind.0),
            |name| format!("{name}={value}"),
        )
    };
    let words: Vec<String> = statistics.values.iter().map(word).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvkit_virtio_devices::balloon::{Balloon, Options};
    use hvkit_virtio_devices::reclaim::{Reclaim, ReclaimError};
    use std::io::Read;

    struct Nobody;

    impl Reclaim for Nobody {
        fn reclaim(&self, _address: u64, _length: u64) -> Result<(), ReclaimError> {
            Ok(())
        }
    }

    #[test]
    fn a_line_asks_and_a_line_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("balloon");
        let balloon = Balloon::new(Options::new(), Arc::new(Nobody)).unwrap();
        let socket = BalloonSocket::listen(&path, balloon.control(), Confiner::off()).unwrap();
        let ask = |line: &str| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        };
        assert_eq!(ask("target 64M\n"), "ok\n");
        assert_eq!(ask("target\n"), "target=67108864 actual=0\n");
        assert_eq!(
            ask("target 16T\n"),
            "error: '16T' is not a size such as 64M\n"
        );
        assert!(ask("inflate\n").contains("unknown command 'inflate'"));
        // No guest, no statistics.
        assert!(ask("stats\n").starts_with("error: "));
        assert!(ask("hints\n").starts_with("error: "));
        // A client that says nothing holds nobody up for long.
        let silent = UnixStream::connect(&path).unwrap();
        assert_eq!(ask("target 4097\n"), "ok\n");
        assert_eq!(balloon.control().target(), 2);
        drop(silent);
        drop(socket);
        assert!(!path.exists());
    }
}
