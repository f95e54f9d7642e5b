// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `io-load`: a fixed amount of input and output, for a guest whose devices are measured from outside.
//!
//! ```text
//! io-load disk NAME DEVICE write|read|mixed DEPTH REQUESTS     requests at random places, DEPTH of them at a time
//! io-load send NAME ADDRESS CHUNKS                             a TCP stream of CHUNKS of 64 KiB
//! io-load sink ADDRESS                                         takes such a stream, then ends
//! io-load take NAME ADDRESS CHUNKS                             the same stream the other way
//! io-load source ADDRESS                                       gives such a stream, then ends
//! io-load map NAME PARAMETER PAIRS                             has lab/map-load map and unmap: PARAMETER is its file
//! ```
//!
//! `disk`, `send`, `take` and `map` print a line before and after what is measured, under NAME; whoever runs the guest's VMM reads them
//! (`lab/meter`). What they do is the same in every run: no clock decides anything, and chance has a seed.

mod aio;
mod disk;
mod map;
mod mark;
mod stream;

use std::io::{Error, Result};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("io-load {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["disk", name, device, job, depth, requests] => {
            let job = disk::Job::named(job).ok_or_else(|| wrong("no such job"))?;
            disk::run(name, device, job, number(depth)?, number(requests)?)
        }
        ["send", name, address, chunks] => stream::send(name, address, number(chunks)?),
        ["sink", address] => stream::sink(&TcpListener::bind(address)?),
        ["take", name, address, chunks] => stream::take(name, address, number(chunks)?),
        ["source", address] => stream::source(&TcpListener::bind(address)?),
        ["map", name, parameter, pairs] => map::run(name, Path::new(parameter), number(pairs)?),
        _ => Err(wrong("see the first lines of its source")),
    }
}

fn number(word: &str) -> Result<u64> {
    word.parse().map_err(|_| wrong("not a number"))
}

fn wrong(what: &str) -> Error {
    Error::other(what.to_owned())
}
