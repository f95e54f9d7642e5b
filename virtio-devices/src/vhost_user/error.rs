// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with a back end, each with what it was asked.

use std::io;
use std::ops::Range;
use std::time::Duration;

use super::message::Request;

/// A back end that cannot be used, or not any more.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum BackEndError {
    /// The connection has ended.
    #[error("the back end is gone{}", when(.asked))]
    Gone {
        /// What it was asked, if anything.
        asked: Option<Request>,
    },
    /// No answer, or none that ended.
    #[error("the back end has not answered {asked} within {patience:?}")]
    Silent {
        /// What it was asked.
        asked: Request,
        /// How long was waited.
        patience: Duration,
    },
    /// The host would not send or receive.
    #[error("cannot ask the back end for {asked}: {source}")]
    Host {
        /// What it was to be asked.
        asked: Request,
        /// Why.
        source: io::Error,
    },
    /// An answer to something else, or none at all.
    #[error("the back end answered {asked} with message {message} and flags {flags:#x}")]
    Answer {
        /// What it was asked.
        asked: Request,
        /// Number of its message.
        message: u32,
        /// Flags of its message.
        flags: u32,
    },
    /// An answer of a wrong length.
    #[error("the back end answered {asked} with {length} bytes instead of {expected}")]
    Length {
        /// What it was asked.
        asked: Request,
        /// Bytes of its answer.
        length: u32,
        /// What they should be.
        expected: usize,
    },
    /// An answer with a wrong number of files.
    #[error("the back end answered {asked} with {files} files instead of {expected}")]
    Files {
        /// What it was asked.
        asked: Request,
        /// In its answer.
        files: usize,
        /// What they should be.
        expected: usize,
    },
    /// It would not do something.
    #[error("the back end refused {asked} with code {code}")]
    Refused {
        /// What it was asked.
        asked: Request,
        /// Why, in its own words.
        code: u64,
    },
    /// An answer that makes no sense.
    #[error("the back end answered {asked} with {value:#x}, which is no {what}")]
    Value {
        /// What it was asked.
        asked: Request,
        /// What it answered.
        value: u64,
        /// What was expected.
        what: &'static str,
    },
    /// It sent something that it was not asked for.
    #[error("the back end sent what nobody asked for")]
    Unasked,
    /// It cannot do what any device needs.
    #[error("the back end has no {what}")]
    Lacks {
        /// What it cannot do.
        what: &'static str,
    },
    /// More queues than it has.
    #[error("{asked} queues, and the back end has {has}")]
    Queues {
        /// Asked for.
        asked: u64,
        /// The back end's.
        has: u64,
    },
    /// A queue that lies across two regions of memory.
    #[error("queue {index} lies in two regions of memory at {address:#x}")]
    Torn {
        /// Which one.
        index: u16,
        /// Where an area of it begins.
        address: u64,
    },
    /// It stopped a queue without finishing what it had begun.
    #[error(
        "the back end stopped queue {index} at {base}, and has finished only what is before {used}"
    )]
    Unfinished {
        /// Which one.
        index: u16,
        /// Where it would go on.
        base: u16,
        /// What the driver has seen used.
        used: u16,
    },
    /// Nobody is at the socket, where the device is to find its back end again.
    #[error("nobody serves the device at its socket: {source}")]
    Absent {
        /// Why.
        source: io::Error,
    },
    /// Who came in place of a back end that is gone offers less than the driver was offered.
    #[error(
        "the back end that came in place of the first lacks the features {missing:#x}, which the driver was offered"
    )]
    Fewer {
        /// Feature bits.
        missing: u64,
    },
    /// Who came in place of a back end that is gone speaks less of the protocol.
    #[error(
        "the back end that came in place of the first lacks the protocol's features {missing:#x}, which the first had"
    )]
    Protocol {
        /// Bits of the protocol's features.
        missing: u64,
    },
    /// Who came in place of a back end that is gone has another configuration.
    #[error(
        "the back end that came in place of the first has another configuration than the driver was told, from byte {at:#x} on"
    )]
    Configuration {
        /// Where it begins to differ.
        at: usize,
    },
    /// It reports an error on a queue.
    #[error("the back end reports an error on a queue")]
    Ring,
}

/// Addresses that a back end cannot be told of.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslationError {
    /// They lead to what it does not have.
    #[error(
        "device addresses {addresses:#x?} lead to {target:#x}, which is in no region that the back end shares"
    )]
    NotShared {
        /// The device's.
        addresses: Range<u64>,
        /// Where the first leads.
        target: u64,
    },
}

fn when(asked: &Option<Request>) -> String {
    asked.map_or_else(String::new, |asked| format!(": it was asked for {asked}"))
}

/// What no device served by another process can be.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// The back end.
    #[error(transparent)]
    BackEnd(#[from] BackEndError),
    /// Memory that other processes cannot be given.
    #[error("memory at {start:#x} is in no file, so no other process can be given it")]
    Private {
        /// First address of the region.
        start: u64,
    },
    /// More regions than a table has room for.
    #[error("{regions} regions of memory; a back end is told of at most 8")]
    Regions {
        /// How many there are.
        regions: usize,
    },
    /// A number of queues that there cannot be.
    #[error("{queues} queues; a device of this kind has {least} to {most}")]
    Queues {
        /// Asked for.
        queues: u16,
        /// At least.
        least: u16,
        /// At most.
        most: u16,
    },
    /// A size that no queue can have.
    #[error("{size} descriptors in a queue; it must be a power of two from 4 to 32768")]
    QueueSize {
        /// Asked for.
        size: u16,
    },
    /// A name that no file system can have.
    #[error("a tag of {length} bytes; it must have 1 to 36, and no zero among them")]
    Tag {
        /// Bytes.
        length: usize,
    },
    /// Whoever serves a file system cannot be replaced: which files are open is known to it alone.
    #[error("a file system cannot go on with another back end than its first")]
    Replaced,
    /// No time between two attempts to connect.
    #[error(
        "a back end that is looked for {interval:?} after the last attempt; it must be 1 ms or more"
    )]
    Interval {
        /// Asked for.
        interval: Duration,
    },
    /// The host has no resource left.
    #[error("the host refused a resource: {0}")]
    Host(#[from] io::Error),
}
