// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver against a puppet: a unit that does no more than answer, records what it is asked, and fails on
//! command. What QEMU's unit cannot show is here: time-outs, device-TLBs, write buffers, the order of stores.

mod caches;
mod devices;
mod failures;
mod interrupts;
mod moments;
mod nesting;
mod page_requests;
mod puppet;
mod release;
mod requests;
mod ring;
mod tlbs;
