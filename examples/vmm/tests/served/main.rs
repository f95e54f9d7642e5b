// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that other processes serve: by Debian's own back ends, and by `vmm serve`.

mod daemons;
mod linux;
mod user_linux;
