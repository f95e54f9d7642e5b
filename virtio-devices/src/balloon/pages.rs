// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that come and go: the queues for inflating, deflating and reporting.
//!
//! "Device Operation" (5.5.6), "Free Page Reporting" (5.5.6.7).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::GuestMemory;

use super::Shared;
use crate::queue::{Chain, Reach};
use crate::reclaim::{PAGE, Reclaim, ReclaimError};
use crate::serve::{Answer, Handler, Served};

/// Bytes of a page number.
const NUMBER: usize = 4;
/// Bytes of page numbers that are looked at together.
const PART: usize = 1024;
/// Bytes of page numbers that are taken from one chain. Known drivers send 1024; what is beyond is left.
const MOST: u64 = 1 << 16;

/// Gives pages back, and notes what came of it.
fn give(reclaim: &dyn Reclaim, address: u64, length: u64, served: &mut Served) {
    match reclaim.reclaim(address, length) {
        Ok(()) => served.moved = served.moved.saturating_add(length),
        // A page that is none is the driver's own loss.
        Err(ReclaimError::NotMemory { .. }) => {}
        Err(error) => served.trouble = Some(io::Error::other(error)),
    }
}

/// Takes the pages whose numbers it gets.
pub(super) struct Inflate {
    reclaim: Arc<dyn Reclaim>,
}

impl Inflate {
    pub(super) fn new(reclaim: Arc<dyn Reclaim>) -> Self {
        Self { reclaim }
    }
}

impl<A> Handler<A> for Inflate {
    fn name(&self) -> String {
        "balloon-in".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut rest = chain.readable().split_at(MOST).0;
        let mut served = Served::default();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(PART as u64);
            let mut raw = [0; PART];
            let raw = raw.get_mut(..now.len() as usize).unwrap_or_default();
            if now.read(reach, raw).is_err() {
                break;
            }
            let mut numbers = Vec::with_capacity(PART / NUMBER);
            for number in raw.as_chunks::<NUMBER>().0 {
                numbers.push(u32::from_le_bytes(*number));
            }
            // Drivers find pages in any order; neighbours go together.
            numbers.sort_unstable();
            numbers.dedup();
            for run in numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
                let Some(first) = run.first() else { continue };
                // Numbers have 32 bits: neither product has more than 44.
                let address = u64::from(*first).wrapping_mul(PAGE);
                let length = (run.len() as u64).wrapping_mul(PAGE);
                give(&*self.reclaim, address, length, &mut served);
            }
            rest = later;
        }
        Answer::Done(served)
    }
}

/// Lets the guest have its pages again: it has them as soon as it touches them.
pub(super) struct Deflate;

impl<A> Handler<A> for Deflate {
    fn name(&self) -> String {
        "balloon-out".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, _reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let bytes = chain.readable().len().min(MOST);
        let numbers = bytes.checked_div(NUMBER as u64).unwrap_or(0);
        Answer::Done(Served {
            moved: numbers.wrapping_mul(PAGE),
            ..Served::default()
        })
    }
}

/// Takes the pages that it gets as buffers.
pub(super) struct Report {
    reclaim: Arc<dyn Reclaim>,
    shared: Arc<Shared>,
}

impl Report {
    pub(super) fn new(reclaim: Arc<dyn Reclaim>, shared: Arc<Shared>) -> Self {
        Self { reclaim, shared }
    }
}

impl<A> Handler<A> for Report {
    fn name(&self) -> String {
        "balloon-free".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, _reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut served = Served::default();
        // A guest that fills its free pages wants to find them so, and we would leave zeros (5.5.6.7.2).
        if self.shared.poison.load(Ordering::SeqCst) == 0 {
            for segment in chain.writable_segments() {
                // Only whole pages. The end does not wrap.
                let end = segment.address.saturating_add(segment.length.into()) & !(PAGE - 1);
                let start = segment.address.checked_next_multiple_of(PAGE);
                if let Some(start) = start
                    && start < end
                {
                    give(
                        &*self.reclaim,
                        start,
                        end.saturating_sub(start),
                        &mut served,
                    );
                }
            }
        }
        Answer::Done(served)
    }
}
