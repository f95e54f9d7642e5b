// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulated unit, as a guest's driver and devices see it: raw words in memory and registers.

mod caches;
mod device_tlb;
mod errant;
mod faults;
mod interrupts;
mod legacy;
mod machine;
mod queue;
mod routes;
mod scalable;
mod shadow;
mod state;
