// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's console: a serial line to the guest, a terminal, file or nothing to the user.

pub mod escape;
pub mod input;
pub mod output;
pub mod serial;
pub mod terminal;
