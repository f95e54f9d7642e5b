// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The log: lines on standard error.

use log::{LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!(
                "vmm: {}: {}",
                record.level().as_str().to_ascii_lowercase(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Starts logging: warnings, and with each `-v` one level more.
pub(super) fn start(verbosity: u8) {
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
