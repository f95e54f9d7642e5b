// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is a device's own in serving its queue: what it does with a chain, and what became of it.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use vm_memory::GuestMemory;

use crate::queue::{Chain, Reach};

/// What a device does with one chain.
pub(crate) trait Handler<A>: Send {
    /// A name for the worker.
    fn name(&self) -> String;

    /// Readable when a chain that was answered with [`Answer::Later`] may be tried again.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// Serves a chain. What it returns is bounded work.
    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer;

    /// There is no chain after those that were answered with [`Answer::More`].
    fn no_more<M: GuestMemory + ?Sized>(&mut self, _reach: &Reach<'_, M>) -> Answer {
        Answer::Retry
    }

    /// Whether a driver that had chains served is likely to be about to make more available, and to be kept from that by this worker,
    /// if both share a processor.
    fn is_stream(&self) -> bool {
        false
    }

    /// Sets all going that was answered with [`Answer::UnderWay`]. `false`: it is to be called again soon.
    fn submit(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// The next chain that was under way and is served: its number, and what it came to.
    fn finished<M: GuestMemory + ?Sized>(
        &mut self,
        _reach: &Reach<'_, M>,
    ) -> Option<(usize, Served)> {
        None
    }

    /// Whether any chain is under way.
    fn under_way(&self) -> bool {
        false
    }

    /// Waits until one that is under way may be served, or for `patience`.
    ///
    /// # Errors
    ///
    /// The host's, each time from then on: some are never served.
    fn wait(&mut self, _patience: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// What became of a chain.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It was served, if only with an error.
    Done(Served),
    /// It is being served. [`Handler::finished`] tells of the end.
    UnderWay {
        /// Under which number: small, and no other's meanwhile.
        number: usize,
        /// As [`Served::moved`] will be.
        moved: u64,
    },
    /// There is nothing for it yet: it is the next one again.
    Later,
    /// The same, and at once.
    Retry,
    /// As later, because the host has failed: whoever runs the device is told.
    Gone(io::Error),
    /// There is no room in it for any answer.
    Unanswerable,
    /// It is not enough: the next belongs to it. What comes of them is said of all together.
    More,
    /// None came, and those there are do not do: they are the next ones again, when the driver has made more available.
    Short,
}

/// What a served chain came to.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// Bytes written from the start of the chain's writable part without a gap, for the used ring; of several
    /// chains, all together. Those that none was written to are given back, but the first.
    pub(crate) written: u32,
    /// Bytes of data that it moved, or tried to.
    pub(crate) moved: u64,
    /// What the host refused.
    pub(crate) trouble: Option<io::Error>,
}
