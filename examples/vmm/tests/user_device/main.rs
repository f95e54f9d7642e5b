// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vfio-user with peers that are not ours: the crate `vfio_user`, both of its halves, and QEMU 11.1 with Debian's kernel
//! on our server; and with one that says, byte by byte, what it should not.

mod hostile;
mod machine;
mod qemu;
#[path = "../support/mod.rs"]
mod support;
mod their_client;
mod their_server;
