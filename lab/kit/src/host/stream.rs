// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stream that comes out of the host: what its commands print, and our init's marks between.
//!
//! A mark is a line that starts with a token drawn anew for each run, so that no output can be
//! taken for one: `TOKEN begin 1`, `TOKEN end 1 STATUS`, `TOKEN done`.

/// No mark is longer after its token.
const LONGEST_MARK: usize = 40;

/// What was seen in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The command of this index (from 0) starts.
    Begin(usize),
    /// Output.
    Output(Vec<u8>),
    /// The command of this index ended with this status, as the shell gives it.
    End(usize, i32),
    /// All commands ended and their files are out.
    Done,
}

/// Takes the stream apart.
#[derive(Debug)]
pub(super) struct Stream {
    token: Vec<u8>,
    pending: Vec<u8>,
}

impl Stream {
    pub(super) fn new(token: &str) -> Self {
        Stream {
            token: token.into(),
            pending: Vec::new(),
        }
    }

    /// The events that `bytes` complete. Holds back only what may be the start of a mark.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(at) = find(&self.pending, &self.token) {
            let after = &self.pending[at + self.token.len()..];
            let Some(length) = after.iter().take(LONGEST_MARK).position(|&b| b == b'\n') else {
                if after.len() >= LONGEST_MARK {
                    // Not one of ours after all: our init writes whole marks.
                    self.output(at + self.token.len(), &mut events);
                    continue;
                }
                self.output(at, &mut events);
                return events;
            };
            let mark = parse(&after[..length]);
            self.output(at, &mut events);
            self.pending.drain(..self.token.len() + length + 1);
            events.extend(mark);
        }
        let held = (1..self.token.len().min(self.pending.len() + 1))
            .rev()
            .find(|&n| self.pending.ends_with(&self.token[..n]))
            .unwrap_or(0);
        self.output(self.pending.len() - held, &mut events);
        events
    }

    /// Moves the first `count` pending bytes out as output.
    fn output(&mut self, count: usize, events: &mut Vec<Event>) {
        if count > 0 {
            events.push(Event::Output(self.pending.drain(..count).collect()));
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// What a mark says after its token.
fn parse(mark: &[u8]) -> Option<Event> {
    let mark = std::str::from_utf8(mark).ok()?;
    let words: Vec<&str> = mark.split_ascii_whitespace().collect();
    match words[..] {
        ["begin", index] => Some(Event::Begin(index.parse().ok()?)),
        ["end", index, status] => Some(Event::End(index.parse().ok()?, status.parse().ok()?)),
        ["done"] => Some(Event::Done),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events with neighbouring pieces of output joined.
    fn joined(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let mut out: Vec<Event> = Vec::new();
        for event in events {
            match (out.last_mut(), event) {
                (Some(Event::Output(last)), Event::Output(more)) => last.extend(more),
                (_, event) => out.push(event),
            }
        }
        out
    }

    #[test]
    fn marks_are_found_however_the_stream_is_cut() {
        let text =
            b"@@x@ begin 0\nno newline@@x@ end 0 3\n@@x@ begin 1\n@@ @@x@ end 1 0\n@@x@ done\n";
        let expected = [
            Event::Begin(0),
            Event::Output(b"no newline".to_vec()),
            Event::End(0, 3),
            Event::Begin(1),
            Event::Output(b"@@ ".to_vec()),
            Event::End(1, 0),
            Event::Done,
        ];
        for size in 1..=text.len() {
            let mut stream = Stream::new("@@x@");
            let events = joined(text.chunks(size).flat_map(|piece| stream.feed(piece)));
            assert_eq!(events, expected, "pieces of {size}");
        }
    }

    #[test]
    fn output_is_not_held_back() {
        let mut stream = Stream::new("@@x@");
        assert_eq!(
            stream.feed(b"login: "),
            [Event::Output(b"login: ".to_vec())]
        );
        assert_eq!(stream.feed(b"@@"), []);
        assert_eq!(stream.feed(b"y"), [Event::Output(b"@@y".to_vec())]);
    }

    #[test]
    fn what_is_no_mark_after_all_is_output() {
        let mut stream = Stream::new("@@x@");
        let text = [b"@@x@".as_slice(), &[b'a'; LONGEST_MARK]].concat();
        assert_eq!(
            joined(stream.feed(&text)),
            [Event::Output(text.clone())],
            "no end of line"
        );
        assert_eq!(stream.feed(b"@@x@ nonsense\n"), [], "an unknown mark");
    }
}
