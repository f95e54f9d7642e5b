// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TCP stream from a guest to its host, or back.

use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use crate::mark::around;

/// Bytes of one write.
const CHUNK: usize = 64 << 10;
/// Of the chunks, as many as one in so many are sent before the first mark: the window opens, and pages are there that later chunks find.
const WARM: u64 = 8;

/// The chunks before the first mark for `chunks` behind it.
fn warm(chunks: u64) -> u64 {
    chunks / WARM
}

/// Sends `chunks` chunks between marks, the last until the other end has taken all.
pub(crate) fn send(name: &str, address: &str, chunks: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let chunk = vec![0x5a; CHUNK];
    for _ in 0..warm(chunks) {
        stream.write_all(&chunk)?;
    }
    around(name, || {
        for _ in 0..chunks {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        let taken = u64::from_le_bytes(count);
        if taken != (warm(chunks) + chunks) * CHUNK as u64 {
            return Err(Error::other(format!("{taken} bytes arrived")));
        }
        Ok(chunks)
    })
}

/// Takes one stream to its end, and answers with the number of bytes.
pub(crate) fn sink(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; 4 * CHUNK];
    let mut taken = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => taken += count as u64,
        }
    }
    stream.write_all(&taken.to_le_bytes())
}

/// Takes `chunks` chunks between marks from a [`source`].
pub(crate) fn take(name: &str, address: &str, chunks: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&chunks.to_le_bytes())?;
    let mut buffer = vec![0; 4 * CHUNK];
    let mut left = CHUNK as u64 * warm(chunks);
    let mut read = |stream: &mut TcpStream, most: u64| {
        let most = most.min(4 * CHUNK as u64) as usize;
        match stream.read(&mut buffer[..most])? {
            0 => Err(Error::other("the source ended early")),
            count => Ok(count as u64),
        }
    };
    while left > 0 {
        left -= read(&mut stream, left)?;
    }
    // The source waits for a word: while the mark is made, nothing is under way.
    around(name, || {
        stream.write_all(&[1])?;
        let mut left = CHUNK as u64 * chunks;
        while left > 0 {
            left -= read(&mut stream, left)?;
        }
        Ok(chunks)
    })
}

/// Sends one [`take`] what it asks for.
pub(crate) fn source(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let (mut count, mut word) = ([0; 8], [0]);
    stream.read_exact(&mut count)?;
    let count = u64::from_le_bytes(count);
    let chunk = vec![0xa5; CHUNK];
    for _ in 0..warm(count) {
        stream.write_all(&chunk)?;
    }
    stream.read_exact(&mut word)?;
    for _ in 0..count {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sink = std::thread::spawn(move || sink(&listener));
        send("test", &address, 17).unwrap();
        sink.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_asked_for_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let source = std::thread::spawn(move || source(&listener));
        take("test", &address, 17).unwrap();
        source.join().unwrap().unwrap();
    }
}
