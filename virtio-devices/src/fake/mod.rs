// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other sides of this crate's seams, in memory, for tests: interrupts that are recorded, workers that
//! are stepped by hand, and a driver.
//!
//! The driver shares no code with the devices: it writes the specification's words itself, so that a
//! misunderstanding cannot hide on both sides. Its methods panic on misuse, as a test wants.

mod by_hand;
mod clock;
mod driver;
mod interrupts;
mod mmio;
mod packed;
mod ring;
mod slots;
mod tables;

pub use by_hand::ByHand;
pub use clock::Clock;
pub use driver::{Driver, Region, TestFunction};
pub use interrupts::{Event, Line, Refuse, Vectors};
pub use mmio::MmioDriver;
pub use packed::PackedRing;
pub use ring::{Buffer, Ring, Used};
pub use tables::{Behind, Tables};
