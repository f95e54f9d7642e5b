// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of `--vhost-user-backend` mean.

use super::key_value::{Keys, OptionError, size};
use super::options::{dma, file};
use crate::peer::BackEnd;

/// The most memory of another machine's that there can be room for: what the PCI window has.
const MOST: u64 = 32 << 30;

pub(super) fn back_end(text: &str) -> Result<BackEnd, OptionError> {
    let keys = Keys::parse("vhost-user-backend", &["socket", "memory", "iommu"], text)?;
    let fits = |text: &str| size(text).filter(|bytes| (1..=MOST).contains(bytes));
    Ok(BackEnd {
        socket: keys.required("socket", "a socket's name", file)?,
        memory: keys.optional("memory", "a size from 1 to 32G", fits)?,
        dma: dma(&keys)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dma;

    #[test]
    fn a_machine_that_serves_another() {
        let plain = BackEnd {
            socket: "/s".into(),
            memory: None,
            dma: Dma::Direct,
        };
        assert_eq!(back_end("/s").as_ref(), Ok(&plain));
        assert_eq!(
            back_end("socket=/s,memory=1G,iommu=on"),
            Ok(BackEnd {
                memory: Some(1 << 30),
                dma: Dma::Translated,
                ..plain
            })
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("memory=1G", "--vhost-user-backend: key 'socket' is missing"),
            ("", "--vhost-user-backend: socket= is not a socket's name"),
            (
                "/s,memory=0",
                "--vhost-user-backend: memory=0 is not a size from 1 to 32G",
            ),
            (
                "/s,memory=33G",
                "--vhost-user-backend: memory=33G is not a size from 1 to 32G",
            ),
            (
                "/s,queues=2",
                "--vhost-user-backend: unknown key 'queues' (known: socket, memory, iommu)",
            ),
        ] {
            assert_eq!(back_end(text).unwrap_err().to_string(), said);
        }
    }
}
