// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is said to a disk at its [socket](super::line_socket).
//!
//! ```text
//!   size      size=4194304       as the guest sees it, in bytes
//!   resize    size=8388608       the same, after a look at how long the raw image is by now; the guest is told
//! ```

use hvkit_virtio_devices::block::{Capacity, ResizeError, SECTOR};
use std::error::Error;

/// What becomes of the disk of `capacity`, and what is answered.
pub(super) fn obey(line: &str, capacity: &Capacity) -> String {
    let size = |sectors: u64| format!("size={}", sectors.saturating_mul(SECTOR));
    match line {
        "size" => size(capacity.sectors()),
        "resize" => match capacity.look_again() {
            Ok(sectors) => size(sectors),
            Err(error) => refused(&error),
        },
        _ => format!("error: unknown command '{line}' (known: size, resize)"),
    }
}

fn refused(error: &ResizeError) -> String {
    match error.source() {
        Some(source) => format!("error: {error}: {source}"),
        None => format!("error: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvkit_virtio_devices::block::{Block, Options};

    #[test]
    fn a_disk_is_as_long_as_its_image_when_somebody_says_so() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let length = |bytes| image.as_file().set_len(bytes).unwrap();
        length(4096);
        let block = Block::open(Options::new(image.path())).unwrap();
        let capacity = block.capacity();
        let say = |line| obey(line, &capacity);
        assert_eq!(say("size"), "size=4096");
        length(8192);
        assert_eq!(say("size"), "size=4096");
        assert_eq!(say("resize"), "size=8192");
        assert_eq!(say("size"), "size=8192");
        length(1000);
        let refused = say("resize");
        assert!(
            refused.starts_with("error: 1000 bytes, which is not"),
            "{refused}"
        );
        assert_eq!(say("size"), "size=8192");
        for line in ["", "resize 1M", "target"] {
            let unknown = format!("error: unknown command '{line}' (known: size, resize)");
            assert_eq!(say(line), unknown);
        }
    }
}
