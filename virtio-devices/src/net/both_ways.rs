// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Both directions of a card in one worker.
//!
//! ```text
//!   kick, timer of the transmit queue         --> transmit
//!   kick, timer of the receive queue, wire    --> receive
//! ```
//!
//! What is sent is often answered before the call that sent it returns. With a thread for each direction the answer to the first
//! frame would wake the other thread, and interrupt the driver, before the second frame is sent; so all that was
//! available is sent first, and what came meanwhile is received at once.

use std::os::fd::RawFd;

use crate::queue::Position;
use crate::worker::{Progress, Worker};

/// Serves the queues of a card, one after the other.
pub(super) struct BothWays<T, R> {
    pub(super) transmit: T,
    pub(super) receive: R,
}

impl<T: Worker, R: Worker> Worker for BothWays<T, R> {
    fn name(&self) -> String {
        "net".to_owned()
    }

    fn sources(&self) -> Vec<RawFd> {
        let mut sources = self.transmit.sources();
        sources.extend(self.receive.sources());
        sources
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        let mut positions = self.receive.positions();
        positions.extend(self.transmit.positions());
        positions
    }

    fn started(&mut self) {
        self.transmit.started();
        self.receive.started();
    }

    fn stopping(&mut self) {
        self.transmit.stopping();
        self.receive.stopping();
    }

    fn ready(&mut self, index: usize) -> Progress {
        match index.checked_sub(self.transmit.sources().len()) {
            None => self.transmit.ready(index),
            Some(index) => self.receive.ready(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    /// Remembers which sources it was called for.
    struct Direction {
        number: u16,
        sources: Vec<OwnedFd>,
        called: Vec<usize>,
        /// How often it was told that it is started, and stopping.
        told: [u32; 2],
        next: Progress,
    }

    impl Direction {
        fn new(number: u16, sources: usize, next: Progress) -> Self {
            let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            Self {
                number,
                sources: (0..sources).map(|_| open()).collect(),
                called: Vec::new(),
                told: [0; 2],
                next,
            }
        }
    }

    impl Worker for Direction {
        fn name(&self) -> String {
            String::new()
        }

        fn sources(&self) -> Vec<RawFd> {
            self.sources.iter().map(AsRawFd::as_raw_fd).collect()
        }

        fn positions(&self) -> Vec<(u16, Position)> {
            vec![(self.number, Position::default())]
        }

        fn started(&mut self) {
            self.told[0] += 1;
        }

        fn stopping(&mut self) {
            self.told[1] += 1;
        }

        fn ready(&mut self, index: usize) -> Progress {
            self.called.push(index);
            self.next
        }
    }

    /// A direction may have requests under way that only `stopping` waits for.
    #[test]
    fn both_directions_are_told_of_a_start_and_a_stop_once() {
        let mut both = BothWays {
            transmit: Direction::new(1, 1, Progress::Wait),
            receive: Direction::new(0, 1, Progress::Wait),
        };
        both.started();
        assert_eq!([both.transmit.told, both.receive.told], [[1, 0]; 2]);
        both.stopping();
        assert_eq!([both.transmit.told, both.receive.told], [[1, 1]; 2]);
    }

    #[test]
    fn each_source_calls_its_direction() {
        let mut both = BothWays {
            transmit: Direction::new(1, 2, Progress::More),
            receive: Direction::new(0, 3, Progress::Wait),
        };
        let sources = both.sources();
        let own = |direction: &Direction| direction.sources();
        assert_eq!(sources, [own(&both.transmit), own(&both.receive)].concat());
        let numbers = both.positions().into_iter().map(|(number, _)| number);
        assert_eq!(numbers.collect::<Vec<_>>(), [0, 1]);
        let answers: Vec<Progress> = (0..5).map(|index| both.ready(index)).collect();
        let expected = [
            Progress::More,
            Progress::More,
            Progress::Wait,
            Progress::Wait,
            Progress::Wait,
        ];
        assert_eq!(answers, expected);
        assert_eq!(both.transmit.called, [0, 1]);
        assert_eq!(both.receive.called, [0, 1, 2]);
    }
}
