// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The log: lines on standard error.

use crate::stderr;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_shown(metadata, log::max_level())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            stderr::line(format_args!("vmm: {level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Whether a record is one for this level. What other crates warn of, or a guest makes them warn of, is
/// a detail: whoever calls them tells the user what it means.
fn is_shown(metadata: &Metadata<'_>, level: LevelFilter) -> bool {
    let ours = metadata.target().starts_with("hvkit");
    if ours || metadata.level() == Level::Error {
        metadata.level() <= level
    } else {
        metadata.level() < level
    }
}

/// Starts logging: warnings, and with each `-v` one level more.
pub(super) fn start(verbosity: u8) {
    stderr::open();
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    // A program that uses this library may have a logger already; then that one stays.
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_crates_are_one_level_quieter_but_for_errors() {
        let shown = |target, level, filter| {
            let metadata = Metadata::builder().target(target).level(level).build();
            is_shown(&metadata, filter)
        };
        assert!(shown("hvkit_vmm::chipset", Level::Warn, LevelFilter::Warn));
        assert!(!shown("hvkit_vmm::chipset", Level::Info, LevelFilter::Warn));
        assert!(!shown("vfio_ioctls", Level::Warn, LevelFilter::Warn));
        assert!(shown("vfio_ioctls", Level::Warn, LevelFilter::Info));
        assert!(shown("vfio_ioctls", Level::Error, LevelFilter::Warn));
    }
}
