// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crate's tests from outside, one module for each subject.

mod disk;
mod hostile;
mod hostile_cases;
mod image;
mod msi;
mod msix;
mod pci_config;
mod queue;
mod queue_random;
mod support;
mod transport_life;
mod transport_registers;
mod worker;
