// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of the qtest protocol: lines of text, queued and sent together.

use std::fmt::{Display, LowerHex, Write};

/// The answers that a chunk of requests may bring, in bytes. QEMU stops reading while its answers
/// are not read, so we stop writing before either side's socket is full.
const CHUNK_ANSWERS: usize = 32 << 10;
/// The requests of a chunk, in bytes; a larger single one goes alone.
const CHUNK_REQUESTS: usize = 32 << 10;
/// A value comes back as `OK 0x` and sixteen digits.
const VALUE_ANSWER: usize = 24;

/// Requests to send together. Methods that read return a handle for [`Answers`](super::Answers).
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(super) requests: Vec<Request>,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) line: String,
    pub(super) answer: Expected,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Nothing,
    Value,
    /// This many bytes.
    Bytes(usize),
}

/// Where a number that was read will be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(pub(super) usize);

/// Where bytes that were read will be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub(super) usize);

/// One method per width, as the protocol has them.
macro_rules! widths {
    ($($read:ident, $write:ident, $type:ty;)*) => {$(
        #[doc = concat!("Reads a `", stringify!($type), "` of the machine's physical address space.")]
        pub fn $read(&mut self, address: u64) -> Value {
            self.value(concat!(stringify!($read)), address)
        }

        #[doc = concat!("Writes a `", stringify!($type), "` of the machine's physical address space.")]
        pub fn $write(&mut self, address: u64, value: $type) {
            self.order(stringify!($write), address, value);
        }
    )*};
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of requests queued.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    widths! {
        readb, writeb, u8;
        readw, writew, u16;
        readl, writel, u32;
        readq, writeq, u64;
    }

    /// Reads an 8-bit port.
    pub fn inb(&mut self, port: u16) -> Value {
        self.value("inb", port.into())
    }

    /// Reads a 32-bit port.
    pub fn inl(&mut self, port: u16) -> Value {
        self.value("inl", port.into())
    }

    /// Writes an 8-bit port.
    pub fn outb(&mut self, port: u16, value: u8) {
        self.order("outb", port.into(), value);
    }

    /// Writes a 32-bit port.
    pub fn outl(&mut self, port: u16, value: u32) {
        self.order("outl", port.into(), value);
    }

    /// Reads `length` bytes of memory, which must not be 0.
    pub fn read(&mut self, address: u64, length: usize) -> Bytes {
        self.push(
            format!("read {address:#x} {length:#x}"),
            Expected::Bytes(length),
        );
        Bytes(self.requests.len() - 1)
    }

    /// Writes bytes to memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        // The protocol has no empty write.
        if bytes.is_empty() {
            return;
        }
        let mut line = format!("write {address:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            // Writing to a String does not fail.
            let _ = write!(line, "{byte:02x}");
        }
        self.push(line, Expected::Nothing);
    }

    /// Fills memory with one byte.
    pub fn fill(&mut self, address: u64, length: usize, byte: u8) {
        if length > 0 {
            self.push(
                format!("memset {address:#x} {length:#x} {byte:#x}"),
                Expected::Nothing,
            );
        }
    }

    pub(super) fn push(&mut self, line: String, answer: Expected) {
        self.requests.push(Request { line, answer });
    }

    fn value(&mut self, verb: &str, address: u64) -> Value {
        self.push(format!("{verb} {address:#x}"), Expected::Value);
        Value(self.requests.len() - 1)
    }

    fn order(&mut self, verb: &str, address: u64, value: impl Display + LowerHex) {
        self.push(format!("{verb} {address:#x} {value:#x}"), Expected::Nothing);
    }

    /// The requests in pieces that fit into the sockets' buffers, answers and all.
    pub(super) fn chunks(&self) -> Vec<&[Request]> {
        let mut chunks = Vec::new();
        let (mut start, mut sent, mut answered) = (0, 0, 0);
        for (index, request) in self.requests.iter().enumerate() {
            let answer = match request.answer {
                Expected::Nothing | Expected::Value => VALUE_ANSWER,
                Expected::Bytes(length) => VALUE_ANSWER + 2 * length,
            };
            let full =
                sent + request.line.len() > CHUNK_REQUESTS || answered + answer > CHUNK_ANSWERS;
            if full && index > start {
                chunks.push(&self.requests[start..index]);
                (start, sent, answered) = (index, 0, 0);
            }
            sent += request.line.len() + 1;
            answered += answer;
        }
        if start < self.requests.len() {
            chunks.push(&self.requests[start..]);
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_spelled_as_the_protocol_says() {
        let mut batch = Batch::new();
        batch.writeq(0xfed9_0020, 0x10_0000);
        batch.writeb(1, 0xff);
        batch.readl(0xfed9_0000);
        batch.outl(0xcf8, 0x8000_1800);
        batch.inb(0x64);
        batch.write(0x1000, &[0, 0xab]);
        batch.read(0x1000, 16);
        batch.fill(0x2000, 4096, 0);
        batch.write(0x1000, &[]);
        let lines: Vec<&str> = batch.requests.iter().map(|r| r.line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "writeq 0xfed90020 0x100000",
                "writeb 0x1 0xff",
                "readl 0xfed90000",
                "outl 0xcf8 0x80001800",
                "inb 0x64",
                "write 0x1000 0x2 0x00ab",
                "read 0x1000 0x10",
                "memset 0x2000 0x1000 0x0",
            ]
        );
    }

    #[test]
    fn chunks_keep_the_order_and_the_bounds() {
        let mut batch = Batch::new();
        for address in 0..5000 {
            batch.readq(address);
        }
        batch.read(0, 1 << 20);
        batch.write(0, &[0; 1 << 20]);
        batch.readb(7);
        let chunks = batch.chunks();
        let joined: Vec<&str> = chunks
            .iter()
            .copied()
            .flatten()
            .map(|r| r.line.as_str())
            .collect();
        let all: Vec<&str> = batch.requests.iter().map(|r| r.line.as_str()).collect();
        assert_eq!(joined, all);
        for chunk in &chunks {
            let sent: usize = chunk.iter().map(|r| r.line.len() + 1).sum();
            assert!(chunk.len() == 1 || sent <= CHUNK_REQUESTS, "{sent}");
            assert!(
                chunk.len() * VALUE_ANSWER <= CHUNK_ANSWERS,
                "{}",
                chunk.len()
            );
        }
        assert!(Batch::new().chunks().is_empty());
    }
}
