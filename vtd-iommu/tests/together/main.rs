// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver against our emulated unit: what QEMU's lacks, and devices that do DMA while tables change.
//!
//! The emulated unit keeps translations until they are invalidated, so a driver that forgets one is caught.

mod concurrent;
mod errant;
mod machine;
mod modes;
mod page_requests;
