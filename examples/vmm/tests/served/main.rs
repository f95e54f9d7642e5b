// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that other processes serve: by Debian's own back ends, by `vmm serve`, and by a guest of another machine.

mod again;
mod daemons;
mod linux;
mod service;
mod user_linux;
