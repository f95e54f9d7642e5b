// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that the guest has as persistent memory: opened, given a place, and mapped.

use super::address_map::AddressMap;
use crate::config;
use hvkit_virtio_devices::pmem::{Backing, Pmem, PmemError, Writes};
use std::path::PathBuf;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Persistent memory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file.
    #[error(transparent)]
    File(#[from] PmemError),
    /// The guest's address space is too small.
    #[error("{}: {length} bytes do not fit in the guest's address space", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        length: u64,
    },
}

/// A device, and the memory that the guest must find where the device says.
pub(super) struct Placed {
    pub(super) device: Pmem,
    pub(super) region: Arc<GuestRegionMmap>,
}

/// Opens the files of `pmems` and gives each a place in `map`.
pub(super) fn place(
    pmems: &[config::Pmem],
    map: &mut AddressMap,
) -> Result<Vec<Placed>, PlaceError> {
    let place = |pmem: &config::Pmem| {
        let writes = match pmem.writes {
            config::Writes::Kept => Writes::Kept,
            config::Writes::Discarded => Writes::Discarded,
        };
        let backing = Backing::open(&pmem.path, writes)?;
        let length = backing.length();
        let no_room = || PlaceError::NoRoom {
            path: pmem.path.clone(),
            length,
        };
        let address = map.take_high(length).ok_or_else(no_room)?.start;
        let region = GuestRegionMmap::new(backing.map()?, GuestAddress(address));
        Ok(Placed {
            device: Pmem::new(backing, address)?,
            region: Arc::new(region.ok_or_else(no_room)?),
        })
    };
    pmems.iter().map(place).collect()
}
