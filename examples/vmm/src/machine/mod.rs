// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: memory, processors and devices, from the first page to the last thread's end.

pub mod address_map;
pub mod stop;
