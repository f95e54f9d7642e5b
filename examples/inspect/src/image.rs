// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Physical memory from a file.

use std::path::Path;

use anyhow::Result;
use hvkit_page_table::{ReadEntry, Width};

use crate::input;

/// Physical memory from a file.
pub(crate) struct Image {
    bytes: Vec<u8>,
    base: u64,
}

/// The image does not hold this address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotInTheImage;

impl Image {
    /// The file's first byte is at physical address `base`.
    pub(crate) fn read(path: &Path, base: u64) -> Result<Self> {
        let bytes = input::read(path)?;
        Ok(Image { bytes, base })
    }
}

impl ReadEntry for Image {
    type Error = NotInTheImage;

    fn read(&self, at: u64, width: Width) -> Result<u64, NotInTheImage> {
        let start = at.checked_sub(self.base).ok_or(NotInTheImage)?;
        let start = usize::try_from(start).map_err(|_| NotInTheImage)?;
        let count = match width {
            Width::Four => 4,
            Width::Eight => 8,
        };
        let end = start.checked_add(count).ok_or(NotInTheImage)?;
        let bytes = self.bytes.get(start..end).ok_or(NotInTheImage)?;
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(u64::from_le_bytes(word))
    }
}
