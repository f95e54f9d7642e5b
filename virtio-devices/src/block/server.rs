// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk does with a chain.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::GuestMemory;

use super::SERIAL;
use super::cache::Cache;
use super::image::Image;
use super::request::Disk;
use super::under_way::{Begun, UnderWay};
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// Serves one queue from an image.
pub(super) struct Server {
    pub(super) index: u16,
    pub(super) image: Arc<Image>,
    pub(super) serial: [u8; SERIAL],
    pub(super) cache: Arc<Cache>,
    /// Requests that go by a ring, if there is one.
    pub(super) under_way: Option<UnderWay>,
}

impl Server {
    fn disk(&self) -> Disk<'_> {
        Disk {
            image: &self.image,
            serial: &self.serial,
            cache: &self.cache,
        }
    }
}

impl<A> Handler<A> for Server {
    fn name(&self) -> String {
        format!("blk-q{}", self.index)
    }

    fn source(&self) -> Option<RawFd> {
        self.under_way.as_ref().map(UnderWay::source)
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        if self.under_way.is_some()
            && let Some(mut under_way) = self.under_way.take()
        {
            let asked = self.disk().asked(reach, chain);
            let begun = under_way.begin(reach, chain, &asked);
            self.under_way = Some(under_way);
            match begun {
                Begun::Yes(number) => {
                    let moved = self.disk().moved(chain);
                    return Answer::UnderWay { number, moved };
                }
                Begun::Full => return Answer::Later,
                Begun::No => {}
            }
        }
        self.disk().serve(reach, chain)
    }

    fn submit(&mut self) -> io::Result<bool> {
        self.under_way.as_ref().map_or(Ok(true), UnderWay::submit)
    }

    fn finished<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
    ) -> Option<(usize, Served)> {
        let mut under_way = self.under_way.take()?;
        let finished = under_way.finished(reach, &self.disk());
        self.under_way = Some(under_way);
        finished
    }

    fn under_way(&self) -> bool {
        self.under_way.as_ref().is_some_and(UnderWay::any)
    }

    fn wait(&mut self, patience: Duration) -> io::Result<()> {
        let under_way = self.under_way.as_ref();
        under_way.map_or(Ok(()), |under_way| under_way.wait(patience))
    }
}
