// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crate's tests from outside, one module for each subject.

mod balloon;
mod behind_iommu;
mod console;
mod counters;
mod disk;
mod disk_settings;
mod entropy;
mod event_loop;
mod formats;
mod hostile;
mod hostile_cases;
mod hostile_devices;
mod hostile_kinds;
mod hostile_subject;
mod image;
#[cfg(feature = "iommu")]
mod iommu;
mod limits;
mod merge;
mod mmio;
mod moved;
mod msi;
mod msix;
mod net;
mod net_filter;
mod net_pairs;
mod packed;
mod packed_random;
mod pause;
mod pci_config;
mod pmem;
mod queue;
mod queue_random;
mod ring;
mod stream;
mod support;
mod transport_life;
mod transport_registers;
mod under_load;
mod vhost_user;
mod vsock;
mod worker;
