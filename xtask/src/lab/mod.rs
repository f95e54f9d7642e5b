// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laboratory: machines written by others, on which our own work is tried.
//!
//! Each machine is one call from a test. [`host`] is a Linux host with KVM, VT-d and VFIO inside
//! QEMU. What it needs to boot is made by [`initramfs`] and fetched by [`kernel`].
//! `lab/README.md` shows the same by hand.

pub mod cli;
pub mod cpio;
pub mod elf;
pub mod host;
pub mod initramfs;
pub mod kernel;
pub mod process;
