// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the process may use of the host, beyond the guest's memory.

use crate::machine::processors::MOST;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Open files: what the vCPUs take, one each; every device's queues, two each and what the device itself has; and some hundred
/// connections of a guest. A machine without devices has 20 besides.
const FILES: u64 = 4096;
const _: () = assert!(
    FILES >= 3 * MOST as u64,
    "the most vCPUs leave little for devices"
);

/// Bounds the process, for ever: no core file, in which a guest's memory would lie, and not more than 4096 files.
///
/// Memory is the guest's plus what the lists of the devices are bounded to. Files that grow as the guest writes (a
/// serial line's log, a sparse disk) are bounded by the file system's quota only.
pub fn bound() -> io::Result<()> {
    lower(Resource::Core, 0)?;
    lower(Resource::Nofile, FILES)
}

/// Lowers both the limit and what it may be raised to.
fn lower(resource: Resource, to: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let at_most = |limit: Option<u64>| Some(limit.map_or(to, |limit| limit.min(to)));
    let limit = Rlimit {
        current: at_most(now.current),
        maximum: at_most(now.maximum),
    };
    Ok(setrlimit(resource, limit)?)
}
