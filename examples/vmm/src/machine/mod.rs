// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: memory, processors and devices, from the first page to the last thread's end.

pub mod address_map;
pub mod cpuid;
mod exit;
pub mod kvm;
pub mod memory;
pub mod registers;
pub mod stop;
pub mod threads;
pub mod vcpu;
pub mod vm;
