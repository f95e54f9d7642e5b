// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk does with a chain.

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::SERIAL;
use super::image::Image;
use super::request::{Caching, Disk};
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler};

/// Serves one queue from an image.
pub(super) struct Server {
    pub(super) index: u16,
    pub(super) image: Arc<Image>,
    pub(super) serial: [u8; SERIAL],
    pub(super) caching: Caching,
}

impl<A> Handler<A> for Server {
    fn name(&self) -> String {
        format!("blk-q{}", self.index)
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let disk = Disk {
            image: &self.image,
            serial: &self.serial,
            caching: self.caching,
        };
        disk.serve(reach, chain)
    }
}
