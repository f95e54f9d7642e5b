// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory traits over memories that exist.

#[cfg(feature = "identity")]
pub(crate) mod identity;
#[cfg(feature = "vm-memory")]
pub(crate) mod vm_memory;
