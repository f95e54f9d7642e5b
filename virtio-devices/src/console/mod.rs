// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A console: virtio-console, with one port that is the guest's terminal and any number of named ones.
//!
//! ```text
//!   queue 0, 1   port 0: to the guest, from the guest       queue 2, 3   control: to the guest, from it
//!   queue 4, 5   port 1 ...
//! ```
//!
//! A driver without VIRTIO_CONSOLE_F_MULTIPORT has port 0 alone, and a console of one port does not offer that: versions of
//! Linux disagree about the order of columns and rows in a message, and agree about the configuration.
//!
//! "Console Device" (5.3).
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

mod control;
mod port;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;

use self::control::{Control, FromDriver, SizeBy, ToDriver};
use self::port::{FromGuest, ToGuest};
pub use self::port::{Input, Port};
use crate::bytes::read_at;
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, ConfigEvents, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::serve::QueueServer;
use crate::worker::Worker;

/// Feature bits of a console.
pub mod feature {
    use crate::features::Features;

    /// VIRTIO_CONSOLE_F_SIZE: `cols` and `rows` are the terminal's size.
    pub const SIZE: Features = Features::from_bits_retain(1 << 0);
    /// VIRTIO_CONSOLE_F_MULTIPORT: several ports and control queues.
    pub const MULTIPORT: Features = Features::from_bits_retain(1 << 1);
    /// VIRTIO_CONSOLE_F_EMERG_WRITE: `emerg_wr` takes a byte before the device is live.
    pub const EMERG_WRITE: Features = Features::from_bits_retain(1 << 2);
}

const QUEUE_SIZE: u16 = 256;
/// Ports that a console can have: Linux's driver counts no further, and no control message needs more.
const MAX_PORTS: usize = 32;
const CONTROL_TO_DRIVER: u16 = 2;
const CONTROL_FROM_DRIVER: u16 = 3;

/// Offset of `emerg_wr`.
const EMERGENCY: u64 = 8;

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Why a console cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// None, or more than the device has queues for.
    #[error("{count} ports; a console has 1 to 32")]
    Ports {
        /// Asked for.
        count: usize,
    },
    /// The host has no event file descriptor left.
    #[error("no event for the console")]
    Event(#[from] std::io::Error),
}

/// A console.
#[derive(Debug)]
pub struct Console {
    ports: Vec<Arc<Mutex<Port>>>,
    shared: Terminal,
    counters: Vec<Counters>,
}

/// The terminal of port 0, in the hands of whoever runs the device.
#[derive(Clone, Debug)]
pub struct Terminal {
    control: Arc<Mutex<Control>>,
    events: ConfigEvents,
}

impl Terminal {
    /// Says what size the terminal has now, and tells the driver if it is another.
    pub fn resize(&self, size: Size) {
        // A driver reads it in two parts.
        if self.lock().changes_config(size) {
            return self.events.changes(|| {
                self.lock().resize(size);
            });
        }
        // A driver that has come meanwhile.
        let by_config = self.lock().resize(size);
        if by_config {
            self.events.changed();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // A panic elsewhere left messages that a driver could have caused.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// A console with `ports`, the first of which is the terminal.
    pub fn new(ports: Vec<Port>) -> Result<Self, ConsoleError> {
        if !(1..=MAX_PORTS).contains(&ports.len()) {
            return Err(ConsoleError::Ports { count: ports.len() });
        }
        let names = ports.iter().map(|port| port.name().to_owned()).collect();
        let control = Control::new(names)?;
        Ok(Self {
            counters: Counters::each(queue_count(ports.len())),
            ports: ports.into_iter().map(Mutex::new).map(Arc::new).collect(),
            shared: Terminal {
                control: Arc::new(Mutex::new(control)),
                events: ConfigEvents::default(),
            },
        })
    }

    /// The terminal.
    pub fn terminal(&self) -> Terminal {
        self.shared.clone()
    }

    /// The numbers of each queue.
    pub fn counters(&self) -> &[Counters] {
        &self.counters
    }
}

/// Two for each port, and two for control where there are several.
fn queue_count(ports: usize) -> usize {
    let control = if ports > 1 { 2 } else { 0 };
    ports.saturating_mul(2).saturating_add(control)
}

/// The queues of a port: to the guest, from the guest (5.3.2).
fn queues_of(port: usize) -> [u16; 2] {
    let first = match port {
        0 => 0,
        // At most 32 ports.
        port => (port as u16).wrapping_mul(2).wrapping_add(2),
    };
    [first, first.wrapping_add(1)]
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn features(&self) -> Features {
        let several = match self.ports.len() {
            0 | 1 => Features::empty(),
            _ => feature::MULTIPORT,
        };
        feature::SIZE | feature::EMERG_WRITE | several
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; queue_count(self.ports.len())]
    }

    /// Reads "struct virtio_console_config".
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let size = self.shared.lock().size();
        let mut config = [0; 12];
        config[0..2].copy_from_slice(&size.columns.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4..8].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        read_at(&config, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, &[byte, ..], Some(port)) = (offset, data, self.ports.first()) {
            port::lock(port).emergency(byte);
        }
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation {
            memory,
            features,
            mut queues,
            interrupts,
        } = activation;
        let multiport = features.contains(feature::MULTIPORT);
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        /// A worker for a queue, with what all of them have.
        macro_rules! serve {
            ($active:expr, $handler:expr) => {{
                let active: ActiveQueue = $active;
                let counters = self.counters.get(usize::from(active.index)).cloned();
                let server =
                    QueueServer::new(memory.clone(), active, Arc::clone(&interrupts), $handler);
                workers.push(Box::new(server.with_counters(counters.unwrap_or_default())));
            }};
        }
        for (port, number) in self.ports.iter().zip(0..) {
            let [to, from] = queues_of(number);
            // A driver sets up the queues of the ports that it wants.
            if let Ok(active) = ActiveQueue::take(&mut queues, to) {
                serve!(active, ToGuest::new(number, Arc::clone(port)));
            }
            if let Ok(active) = ActiveQueue::take(&mut queues, from) {
                serve!(active, FromGuest::new(number, Arc::clone(port)));
            }
        }
        if multiport {
            let to = ActiveQueue::take(&mut queues, CONTROL_TO_DRIVER)?;
            let from = ActiveQueue::take(&mut queues, CONTROL_FROM_DRIVER)?;
            serve!(to, ToDriver::new(Arc::clone(&self.shared.control))?);
            serve!(from, FromDriver::new(Arc::clone(&self.shared.control)));
        }
        let size_by = match (multiport, features.contains(feature::SIZE)) {
            (true, _) => SizeBy::Message,
            (false, true) => SizeBy::Configuration,
            (false, false) => SizeBy::Nothing,
        };
        self.shared.events.connect(Some(interrupts));
        let by_config = self.shared.lock().connect(size_by);
        if by_config {
            self.shared.events.changed();
        }
        Ok(workers)
    }

    fn counters(&self) -> Vec<Counters> {
        self.counters.clone()
    }

    fn reset(&mut self) {
        self.shared.events.connect(None);
        self.shared.lock().reset();
    }

    /// The terminal's size and the messages that the driver has not taken yet.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(self.shared.lock().save())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        match self.shared.lock().restore(state) {
            true => Ok(()),
            false => Err(StateError::Length {
                saved: state.len(),
                expected: 4,
            }),
        }
    }
}
