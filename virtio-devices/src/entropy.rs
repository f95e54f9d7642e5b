// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entropy: virtio-rng. The driver gives buffers, the device fills them with random bytes.
//!
//! "Entropy Device" (5.4).
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

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{GuestAddressSpace, GuestMemory};

use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, Device};
use crate::features::{DeviceType, Features};
use crate::limit::{Allowance, Limits};
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, QueueServer, Served};
use crate::worker::Worker;

const QUEUE_SIZE: u16 = 256;
/// Bytes that one chain gets at most: a driver may ask for 4 GiB, and takes what it gets (5.4.6.2).
const MOST: u64 = 1 << 16;

/// Where random bytes come from.
type Source = Arc<Mutex<dyn Read + Send>>;

/// An entropy device.
pub struct Entropy {
    source: Source,
    allowance: Allowance,
    counters: Counters,
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entropy")
            .field("allowance", &self.allowance)
            .finish_non_exhaustive()
    }
}

impl Entropy {
    /// A device that gives what `source` gives, which must not wait for long.
    pub fn new(source: impl Read + Send + 'static) -> Self {
        Self {
            source: Arc::new(Mutex::new(source)),
            allowance: Allowance::new(Limits::default()),
            counters: Counters::default(),
        }
    }

    /// A device that gives what the host's kernel gives.
    pub fn of_host() -> io::Result<Self> {
        Ok(Self::new(File::open("/dev/urandom")?))
    }

    /// Limits how much the driver gets in a time.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.allowance = Allowance::new(limits);
        self
    }

    /// The numbers of its queue.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {
        // There is no configuration (5.4.4).
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation {
            memory,
            mut queues,
            interrupts,
            ..
        } = activation;
        let active = ActiveQueue::take(&mut queues, 0)?;
        let handler = Filler {
            source: Arc::clone(&self.source),
        };
        let server = QueueServer::new(memory, active, interrupts, handler)
            .with_limiter(self.allowance.limiter()?)
            .with_counters(self.counters.clone());
        Ok(vec![Box::new(server)])
    }

    fn counters(&self) -> Vec<Counters> {
        vec![self.counters.clone()]
    }

    fn reset(&mut self) {}
}

struct Filler {
    source: Source,
}

impl<A> Handler<A> for Filler {
    fn name(&self) -> String {
        "rng".to_owned()
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = chain.writable().split_at(MOST).0;
        let mut served = Served::default();
        let mut bytes = [0; 4096];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(bytes.len() as u64);
            let bytes = bytes.get_mut(..now.len() as usize).unwrap_or_default();
            if let Err(error) = source.read_exact(bytes) {
                served.trouble = Some(error);
                break;
            }
            // A buffer that is not in memory gets nothing, and the driver is told how much it got.
            if now.write(reach, bytes).is_err() {
                break;
            }
            // At most `MOST` together.
            served.written = served.written.saturating_add(bytes.len() as u32);
            served.moved = served.moved.saturating_add(bytes.len() as u64);
            rest = later;
        }
        Answer::Done(served)
    }
}
