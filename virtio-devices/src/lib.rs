// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio devices and their transports, for any VMM.
#![forbid(unsafe_code)]

pub mod pci;
