// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk is asked to be, and how it says so: feature bits and configuration space.
//!
//! "Feature bits" (5.2.3), "Device configuration layout" (5.2.4).

use std::path::{Path, PathBuf};

use super::Access;
use crate::features::Features;

/// The largest number of data buffers in a request: what a chain of the default queue size has room for
/// beside the header and the status.
const QUEUE_SIZE: u16 = 256;

/// What a disk should be.
#[derive(Clone, Debug)]
pub struct Options {
    path: PathBuf,
    access: Access,
    serial: [u8; 20],
    queues: u16,
    queue_size: u16,
}

impl Options {
    /// A disk of one queue over the raw image at `path`, to be read and written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access: Access::default(),
            serial: [0; 20],
            queues: 1,
            queue_size: QUEUE_SIZE,
        }
    }

    /// Chooses what may be done to the image.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    pub(super) fn features(&self) -> Features {
        Features::INDIRECT_DESC | Features::EVENT_IDX
    }

    pub(super) fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    pub(super) fn config_read(&self, sectors: u64, offset: u64, data: &mut [u8]) {
        let image = sectors.to_le_bytes();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|i| image.get(i))
                .copied()
                .unwrap_or(0);
        }
    }
}
