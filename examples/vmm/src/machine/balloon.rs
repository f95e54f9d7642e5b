// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is said to the balloon at its [socket](super::line_socket).
//!
//! ```text
//!   target 64M      ok                                       the guest is asked to do without that much
//!   target          target=67108864 actual=67108864          in bytes; what the guest says it has given
//!   stats           free=123 total=456 ...                   new ones, from the guest
//!   hints           bytes=123 ranges=4                       what the guest has free at this moment
//! ```

use crate::cli::size;
use hvkit_virtio_devices::balloon::{Control, Hints, Round, Statistics};
use hvkit_virtio_devices::patience::end_of;
use hvkit_virtio_devices::reclaim::PAGE;
use std::thread;
use std::time::{Duration, Instant};

/// How long a guest has for its statistics or hints: it may be slow, and its client can hang up.
const GUEST_PATIENCE: Duration = Duration::from_secs(20);

/// Pages of the balloon in `bytes`, rounded up; none if there are too many.
#[must_use]
pub fn pages(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(PAGE)).ok()
}

/// What becomes of the balloon of `control`, and what is answered.
pub(super) fn obey(line: &str, control: &Control) -> String {
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
    use std::sync::Arc;

    struct Nobody;

    impl Reclaim for Nobody {
        fn reclaim(&self, _address: u64, _length: u64) -> Result<(), ReclaimError> {
            Ok(())
        }
    }

    #[test]
    fn a_line_asks_and_a_line_answers() {
        let balloon = Balloon::new(Options::new(), Arc::new(Nobody)).unwrap();
        let control = balloon.control();
        let ask = |line: &str| obey(line, &control);
        assert_eq!(ask("target 64M"), "ok");
        assert_eq!(ask("target"), "target=67108864 actual=0");
        assert_eq!(ask("target 16T"), "error: '16T' is not a size such as 64M");
        assert!(ask("inflate").contains("unknown command 'inflate'"));
        // No guest, no statistics.
        assert!(ask("stats").starts_with("error: "));
        assert!(ask("hints").starts_with("error: "));
        assert_eq!(ask("target 4097"), "ok");
        assert_eq!(control.target(), 2);
    }
}
