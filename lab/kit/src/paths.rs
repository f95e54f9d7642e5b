// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are: the checkout, the build output, and the cache of what was fetched.

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds; `CARGO_TARGET_DIR` is honoured.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// What was fetched or built once and can be thrown away: kernels, initramfs parts, newer models.
///
/// `HVKIT_CACHE` moves it, so that several checkouts share one.
pub fn cache() -> PathBuf {
    std::env::var_os("HVKIT_CACHE").map_or_else(|| target().join("hvkit-cache"), PathBuf::from)
}

/// Where the logs of long steps go.
pub fn logs() -> PathBuf {
    target().join("hvkit-logs")
}
