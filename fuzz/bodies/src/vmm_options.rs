// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM's command line, of any bytes: lines are arguments.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use hvkit_vmm::cli::parse;

/// The most arguments of an input.
const ARGUMENTS: usize = 24;

/// An argument list is understood or refused with words; what is understood makes sense, and is understood so each time.
pub fn run(data: &[u8]) {
    let arguments: Vec<OsString> = data
        .split(|&byte| byte == b'\n')
        .take(ARGUMENTS)
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect();
    let line = || [OsString::from("vmm")].into_iter().chain(arguments.clone());
    let config = match parse(line()) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let again = parse(line()).expect("as the first time");
    assert_eq!(config, again);
    for disk in &config.disks {
        assert!(!disk.path.as_os_str().is_empty(), "{disk:?}");
    }
    for device in &config.devices {
        assert!(!device.path.as_os_str().is_empty(), "{device:?}");
    }
    for net in &config.nets {
        assert!(!net.wire.to_string().is_empty(), "{net:?}");
    }
}
