// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI function as a VMM sees it, whatever is behind it: a virtio device, a passed-through one.
//!
//! ```text
//!   PCI root (VMM)                  function                     interrupts (VMM)
//!   config_read / config_write ---> configuration space
//!   windows  <--------------------- BARs that decode now
//!   bar_read / bar_write ---------> registers
//!   window_added / _removed ------> what it maps itself
//!   doorbells <-------------------- eventfds for hot writes      MsiVectors <--- MSI-X table
//! ```
//!
//! The VMM asks for the windows again after each configuration write, and decides which of them the
//! guest reaches. Registers are offsets into them.
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

pub mod bar;
pub mod config;
pub mod msi;
pub mod msix;

use vmm_sys_util::eventfd::EventFd;

/// A stretch of guest-physical address space that a function answers to now.
///
/// PCI Local Bus 3.0, "Base Addresses".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Which base address register, 0 to 5.
    pub bar: u8,
    /// Guest-physical address of its first byte.
    pub address: u64,
    /// Bytes; a power of two.
    pub length: u64,
}

/// A write that a kernel may turn into an event without waking the VMM (KVM's ioeventfd).
#[derive(Debug)]
pub struct Doorbell<'a> {
    /// Which base address register.
    pub bar: u8,
    /// Offset in that register's window.
    pub offset: u64,
    /// Signalled by a write of any size at `offset`.
    pub event: &'a EventFd,
}

/// One PCI function.
pub trait PciFunction: Send {
    /// Reads configuration space: 1, 2 or 4 bytes at a naturally aligned `offset` below 4096.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, same shapes as [`config_read`](Self::config_read).
    fn config_write(&mut self, offset: u16, data: &[u8]);

    /// The windows that decode now: assigned, and memory space enabled in the command register.
    fn windows(&self) -> Vec<Window>;

    /// Reads registers: any length, any alignment, inside the window.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes registers: any length, any alignment, inside the window.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// Writes that need not wake the VMM. The same for the life of the function.
    fn doorbells(&self) -> Vec<Doorbell<'_>> {
        Vec::new()
    }

    /// Function level reset of what is behind the registers and of the interrupts: as after power-on. Configuration
    /// space is the caller's, who has cleared Bus Master before and writes all of it afterwards. A function that keeps
    /// nothing there has nothing to do.
    fn reset(&mut self) {}

    /// The VMM has put `window` where the guest reaches it. A function whose registers are memory of the
    /// host may map them there; whatever it does not map still comes by
    /// [`bar_read`](Self::bar_read) and [`bar_write`](Self::bar_write).
    fn window_added(&mut self, _window: Window) {}

    /// The VMM is about to take `window` away: nothing of it may be mapped when this returns.
    fn window_removed(&mut self, _window: Window) {}
}

/// An interrupt message: what is written, and where.
///
/// PCI Local Bus 3.0, "MSI-X Capability and Table Structures".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// The VMM refused to route or to deliver an interrupt message.
#[derive(Debug, thiserror::Error)]
#[error("vector {vector}: the interrupt could not be {action}")]
pub struct MsiError {
    /// The vector in question.
    pub vector: u16,
    /// What was attempted: "routed", "masked", "delivered".
    pub action: &'static str,
    /// Why, from the host.
    #[source]
    pub source: std::io::Error,
}

/// Where a function's MSI or MSI-X vectors lead: KVM's irqfd and GSI routes, a user-space APIC, a test.
///
/// The function keeps table, masks and pending bits; this side only routes and delivers.
pub trait MsiVectors: Send + Sync {
    /// `vector` was unmasked, or changed while unmasked: from now on it delivers `message`.
    fn route(&self, vector: u16, message: MsiMessage) -> Result<(), MsiError>;

    /// `vector` was masked: nothing may reach the guest from it until it is routed again.
    fn mask(&self, vector: u16) -> Result<(), MsiError>;

    /// Delivers `vector` now. Called only while it is routed.
    fn deliver(&self, vector: u16) -> Result<(), MsiError>;

    /// An eventfd that delivers `vector` when written while it is routed, for workers in other
    /// threads or processes.
    fn event(&self, vector: u16) -> Option<EventFd>;
}

/// The state of an interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The function wants attention.
    Asserted,
    /// It does not.
    Deasserted,
}

/// A function's interrupt pin, for guests that do not use messages.
///
/// Called with the function's locks held: must not call back into it.
pub trait InterruptLine: Send + Sync {
    /// Sets the level. May be called again with the same one.
    fn set(&self, level: Level);
}
