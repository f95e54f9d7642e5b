// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How serving a VMM ends, if not by its hanging up.

use std::io;

use super::super::message::Request;

/// Why a device is not served any more.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection.
    #[error("cannot hear or answer the VMM: {0}")]
    Connection(#[from] io::Error),
    /// The VMM asked for what cannot be.
    #[error("the VMM's {asked} of {length} bytes makes no sense")]
    Request {
        /// What it asked.
        asked: Request,
        /// Bytes of its payload.
        length: u32,
    },
}
