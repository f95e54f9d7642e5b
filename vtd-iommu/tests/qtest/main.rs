// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver against QEMU's unit, with `edu` as the device that does DMA and raises interrupts.
//!
//! No guest runs: registers, memory and devices are reached over QEMU's test socket. QEMU 7.2 of Debian 12 has
//! legacy mode and scalable mode's second stage; its first stage needs QEMU 11 (`cargo xtask lab fetch qemu-11`).

mod by_register;
mod caching_mode;
mod errant;
mod faults;
mod interrupts;
mod machine;
mod queue;
mod reserved;
mod scalable;
mod translation;
