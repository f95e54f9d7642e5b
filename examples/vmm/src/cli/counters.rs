// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of `--counters` mean.

use super::key_value::{Keys, OptionError};
use super::options::file;
use std::path::PathBuf;

pub(super) fn counters(text: &str) -> Result<PathBuf, OptionError> {
    let keys = Keys::parse("counters", &["socket"], text)?;
    keys.required("socket", "a socket's name", file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket() {
        assert_eq!(counters("/s"), Ok("/s".into()));
        assert_eq!(counters("socket=/s"), Ok("/s".into()));
        for (text, said) in [
            ("", "--counters: socket= is not a socket's name"),
            (
                "/s,file=/b",
                "--counters: unknown key 'file' (known: socket)",
            ),
        ] {
            assert_eq!(counters(text).unwrap_err().to_string(), said);
        }
    }
}
