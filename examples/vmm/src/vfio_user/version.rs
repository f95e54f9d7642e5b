// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first message of each side: version 0.1, and capabilities as JSON.
//!
//! "vfio-user Protocol Specification", "VFIO_USER_VERSION".

use super::message::{MOST_DATA, Words};
use hvkit_virtio_devices::vhost_user::channel::MOST_FILES;
use serde_json::Value;

const MAJOR: u16 = 0;
const MINOR: u16 = 1;

/// What the other side takes, where it differs from side to side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Files beside one message.
    pub(super) files: usize,
    /// Bytes that one message moves.
    pub(super) data: u32,
}

/// A first message that no peer of ours sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Another protocol, or another revision of it.
    #[error("it speaks version {major}.{minor} of the protocol, and this is 0.1")]
    Other {
        /// Theirs.
        major: u16,
        /// Theirs.
        minor: u16,
    },
    /// It cannot be read.
    #[error("its capabilities are no JSON that says so much")]
    Capabilities,
}

/// Our own.
pub(super) fn ours(minor: u16) -> Vec<u8> {
    let text = serde_json::json!({"capabilities": {
        "max_msg_fds": MOST_FILES,
        "max_data_xfer_size": MOST_DATA,
        "pgsizes": 4096,
    }});
    let mut bytes = MAJOR.to_ne_bytes().to_vec();
    bytes.extend(minor.min(MINOR).to_ne_bytes());
    bytes.extend(text.to_string().into_bytes());
    bytes.push(0);
    bytes
}

/// What we ask with.
pub(super) fn offer() -> Vec<u8> {
    ours(MINOR)
}

/// The other side's minor version, and what it takes.
pub(super) fn theirs(payload: &[u8]) -> Result<(u16, Limits), VersionError> {
    let mut words = Words(payload);
    let (major, minor) = match (words.half(), words.half()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => return Err(VersionError::Capabilities),
    };
    if major != MAJOR {
        return Err(VersionError::Other { major, minor });
    }
    let text = words.0.split(|byte| *byte == 0).next().unwrap_or_default();
    let said = match text {
        [] => Value::Null,
        text => serde_json::from_slice(text).map_err(|_| VersionError::Capabilities)?,
    };
    // "Capabilities": the defaults of what is not said.
    let capabilities = said.get("capabilities");
    let number = |key: &str, default: u64| match capabilities.and_then(|all| all.get(key)) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_u64().ok_or(VersionError::Capabilities),
    };
    let files = number("max_msg_fds", 1)?.clamp(1, MOST_FILES as u64);
    let data = number("max_data_xfer_size", 1 << 20)?.min(MOST_DATA.into());
    let limits = Limits {
        // At most `MOST_FILES` and `MOST_DATA`.
        files: files as usize,
        data: data as u32,
    };
    Ok((minor, limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<(u16, Limits), VersionError> {
        theirs(&[&[0, 0, 1, 0], text.as_bytes(), &[0]].concat())
    }

    #[test]
    fn what_is_not_said_is_as_the_specification_has_it() {
        let limits = |files, data| Ok((1, Limits { files, data }));
        assert_eq!(said(""), limits(1, 65536));
        assert_eq!(said("{}"), limits(1, 65536));
        let text = r#"{"capabilities":{"max_msg_fds":4,"max_data_xfer_size":512,"migration":{"pgsize":4096}}}"#;
        assert_eq!(said(text), limits(4, 512));
        let text = r#"{"capabilities":{"max_msg_fds":4000}}"#;
        assert_eq!(said(text), limits(8, 65536));
        assert_eq!(theirs(&[0, 0, 0, 0]).unwrap().0, 0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "{",
            "[1,",
            r#"{"capabilities":{"max_msg_fds":"x"}}"#,
            "\u{1}",
        ] {
            assert_eq!(said(text), Err(VersionError::Capabilities), "{text}");
        }
        assert_eq!(theirs(&[]), Err(VersionError::Capabilities));
        let (major, minor) = (1, 2);
        assert_eq!(
            theirs(&[1, 0, 2, 0]),
            Err(VersionError::Other { major, minor })
        );
    }

    #[test]
    fn ours_is_what_others_can_read() {
        let raw = offer();
        assert_eq!(raw[..4], [0, 0, 1, 0]);
        assert_eq!(raw.last(), Some(&0));
        let text: Value = serde_json::from_slice(&raw[4..raw.len() - 1]).unwrap();
        assert_eq!(text["capabilities"]["max_data_xfer_size"], 65536);
        assert_eq!(text["capabilities"]["max_msg_fds"], 8);
        // Who is older is answered as one.
        assert_eq!(ours(0)[2..4], [0, 0]);
    }
}
