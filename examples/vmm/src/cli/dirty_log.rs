// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of `--dirty-log` mean.

use super::key_value::{Keys, OptionError};
use super::options::file;
use crate::config::DirtyLog;

pub(super) fn dirty_log(text: &str) -> Result<DirtyLog, OptionError> {
    let keys = Keys::parse("dirty-log", &["socket", "bitmap"], text)?;
    Ok(DirtyLog {
        socket: keys.required("socket", "a socket's name", file)?,
        bitmap: keys.optional("bitmap", "a file's name", file)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_and_a_file() {
        let log = |bitmap: Option<&str>| DirtyLog {
            socket: "/s".into(),
            bitmap: bitmap.map(Into::into),
        };
        assert_eq!(dirty_log("/s"), Ok(log(None)));
        assert_eq!(dirty_log("socket=/s,bitmap=/b"), Ok(log(Some("/b"))));
        for (text, said) in [
            ("bitmap=/b", "--dirty-log: key 'socket' is missing"),
            ("", "--dirty-log: socket= is not a socket's name"),
            ("/s,bitmap", "--dirty-log: bitmap= is not a file's name"),
            (
                "/s,file=/b",
                "--dirty-log: unknown key 'file' (known: socket, bitmap)",
            ),
        ] {
            assert_eq!(dirty_log(text).unwrap_err().to_string(), said);
        }
    }
}
