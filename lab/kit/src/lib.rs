// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laboratory: machines written by others, on which our own work is tried.
//!
//! Each machine is one call from a test. [`host`] is a Linux host with KVM, VT-d and VFIO inside
//! QEMU; what it needs to boot is made by [`initramfs`] and fetched by [`kernel`]. [`qtest`] is
//! QEMU's VT-d unit without a guest. [`bochs`] is a processor with VMX that runs a bare-metal
//! program, which [`payload`] builds. [`probe`] tells whether this machine's own KVM makes the host
//! unnecessary, [`models`] fetches newer models on request, and [`skip`] is for tests that cannot run
//! here. `lab/README.md` shows the same by hand, and `cargo xtask lab`
//! is the command. [`paths`] says where things are.

pub mod bochs;
pub mod cpio;
pub mod elf;
pub mod host;
pub mod initramfs;
pub mod kernel;
pub mod models;
pub mod paths;
pub mod payload;
pub mod probe;
pub mod process;
pub mod qtest;
pub mod skip;
