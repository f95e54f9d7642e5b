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
use crate::wake::Wake;
use hvkit_virtio_devices::balloon::{Control, Hints, Round, Statistics};
use hvkit_virtio_devices::patience::end_of;
use hvkit_virtio_devices::reclaim::PAGE;
use std::time::{Duration, Instant};

/// How long a guest has for its statistics or hints: it may be slow, and its client can hang up.
const GUEST_PATIENCE: Duration = Duration::from_secs(20);

/// Pages of the balloon in `bytes`, rounded up; none if there are too many.
#[must_use]
pub fn pages(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(PAGE)).ok()
}

/// What becomes of the balloon of `control`, and what is answered. At the `end` nothing is waited for.
pub(super) fn obey(line: &str, control: &Control, end: &Wake) -> String {
    let bytes = |pages: u32| u64::from(pages) * PAGE;
    match line.split_once(' ') {
        None if line == "target" => {
            let (target, actual) = (bytes(control.target()), bytes(control.actual()));
            format!("target={target} actual={actual}")
        }
        None if line == "stats" => match fresh(control, end) {
            Some(statistics) => words(&statistics),
            None => "error: the guest tells no statistics".to_owned(),
        },
        None if line == "hints" => match hinted(control, end) {
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
fn fresh(control: &Control, end: &Wake) -> Option<Statistics> {
    let before = control.statistics().answers;
    control.ask_statistics().ok()?;
    within_patience(control, end, || {
        Some(control.statistics()).filter(|now| now.answers > before)
    })
}

/// The pages that the guest has free, which it may use again when this returns.
fn hinted(control: &Control, end: &Wake) -> Option<Hints> {
    control.ask_hints();
    let hints = within_patience(control, end, || {
        let now = control.hints();
        (now.round == Round::Complete).then_some(now)
    });
    control.end_hints();
    hints
}

/// What `look` finds before the guest's time is over, its driver gone, or the machine at its `end`.
fn within_patience<T>(
    control: &Control,
    end: &Wake,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let over = end_of(GUEST_PATIENCE);
    loop {
        match look() {
            None if control.has_driver() && Instant::now() < over => {
                if end.within(Duration::from_millis(5)) {
                    return None;
                }
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
    use hvkit_virtio_devices::fake::{ByHand, Driver, Vectors};
    use hvkit_virtio_devices::reclaim::{Reclaim, ReclaimError};
    use hvkit_virtio_devices::transport::pci::VirtioPci;
    use std::sync::Arc;
    use std::thread;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

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
        let end = Wake::new().unwrap();
        let ask = |line: &str| obey(line, &control, &end);
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

    /// A guest whose driver is there and never answers holds up whoever asks, and not the end of the machine.
    #[test]
    fn the_end_does_not_wait_for_the_guest() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
        let memory = Arc::new(memory.unwrap());
        let options = Options::new().with_free_page_hints();
        let balloon = Balloon::new(options, Arc::new(Nobody)).unwrap();
        let control = balloon.control();
        let (workers, vectors) = (Box::new(ByHand::default()), Arc::new(Vectors::default()));
        let function = VirtioPci::new(Box::new(balloon), Arc::clone(&memory), vectors, workers);
        let mut driver = Driver::probe(function.unwrap());
        driver.negotiate(u64::MAX);
        for queue in 0..4 {
            driver.queue(queue, &memory, 0x1000 + u64::from(queue) * 0x4000, 16);
        }
        assert_eq!(driver.set_status(0xf), 0xf);
        assert!(control.has_driver());
        for (line, answer) in [
            ("stats", "error: the guest tells no statistics"),
            ("hints", "error: the guest gives no hints"),
        ] {
            let end = Wake::new().unwrap();
            let begun = Instant::now();
            thread::scope(|scope| {
                let asked = scope.spawn(|| obey(line, &control, &end));
                thread::sleep(Duration::from_millis(100));
                assert!(!asked.is_finished(), "{line}: nobody waited");
                end.signal();
                assert_eq!(asked.join().unwrap(), answer);
            });
            assert!(begun.elapsed() < GUEST_PATIENCE / 2, "{line}");
        }
    }
}
