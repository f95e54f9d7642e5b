// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk's size, which can become another while a guest uses it.

use std::io;
use std::sync::Arc;

use super::SECTOR;
use super::image::Image;
use crate::device::ConfigEvents;

/// The size of a disk, in the hands of whoever runs the device.
#[derive(Clone, Debug)]
pub struct Capacity {
    pub(super) image: Arc<Image>,
    pub(super) events: ConfigEvents,
}

/// Why a disk's size is not looked for, or not taken.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Only of a raw image is the length the disk's size.
    #[error("the image is not raw, and its length is not the disk's")]
    Format,
    /// Empty, or not a whole number of blocks.
    #[error("{length} bytes, which is not a whole number of blocks of {block}, or none")]
    Length {
        /// Of the image.
        length: u64,
        /// What it must be a multiple of.
        block: u64,
    },
    /// The host refused.
    #[error("the image's length cannot be found")]
    Host(#[from] io::Error),
}

impl Capacity {
    /// In sectors of 512 bytes, as the guest sees it.
    pub fn sectors(&self) -> u64 {
        self.image.sectors()
    }

    /// Looks how long a raw image is now, and has the guest have a disk of that size, which is returned, in sectors. A driver is told
    /// if it is another. Requests beyond the end of a disk that has become shorter are answered with I/O errors.
    ///
    /// # Errors
    ///
    /// The disk is as it was.
    pub fn look_again(&self) -> Result<u64, ResizeError> {
        let measured = self.image.measure()?;
        let sectors = measured.length / SECTOR;
        if sectors != self.image.sectors() {
            self.events.changes(|| self.image.set_sectors(sectors));
        }
        drop(measured);
        Ok(sectors)
    }
}
