// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of devices mean that other processes serve.

use super::key_value::{Keys, OptionError, number, switch};
use super::options::{dma, file, mac, placed};
use crate::config::Rings;
use crate::served::{Served, What};
use crate::vfio_user::{Given, UserDevice};
use std::time::Duration;

/// Whether `text`, the value of `--disk` or `--net`, speaks of another process.
pub(super) fn is_meant(text: &str) -> bool {
    text.split(',').any(|part| part.starts_with("vhost_user="))
}

pub(super) fn disk(text: &str) -> Result<Served, OptionError> {
    const KEYS: &[&str] = &[
        "socket",
        "vhost_user",
        "num_queues",
        "queue_size",
        "reconnect",
        "iommu",
        "packed",
    ];
    let keys = Keys::parse("disk", KEYS, text)?;
    served(&keys, What::Disk)
}

pub(super) fn net(text: &str) -> Result<Served, OptionError> {
    const KEYS: &[&str] = &[
        "socket",
        "vhost_user",
        "mac",
        "mtu",
        "num_queue_pairs",
        "queue_size",
        "reconnect",
        "iommu",
        "packed",
    ];
    let keys = Keys::parse("net", KEYS, text)?;
    let what = What::Net {
        mac: keys.optional("mac", "an address such as 52:54:00:12:34:56", mac)?,
        mtu: keys.optional("mtu", "a number of bytes", number)?,
    };
    let queues = keys.optional("num_queue_pairs", "a number of queue pairs", number)?;
    Ok(Served {
        queues,
        ..served(&keys, what)?
    })
}

pub(super) fn fs(text: &str) -> Result<Served, OptionError> {
    const KEYS: &[&str] = &[
        "tag",
        "socket",
        "num_queues",
        "queue_size",
        "iommu",
        "packed",
    ];
    let keys = Keys::parse("fs", KEYS, text)?;
    let tag = keys.required("tag", "a name of 1 to 36 bytes", |tag| {
        (1..=36).contains(&tag.len()).then(|| tag.to_owned())
    })?;
    served(&keys, What::FileSystem { tag })
}

pub(super) fn user_device(text: &str) -> Result<UserDevice, OptionError> {
    let keys = Keys::parse(
        "user-device",
        &["socket", "id", "iommu", "share", "pci_segment"],
        text,
    )?;
    let given = keys.optional("share", "on or off", switch)?;
    let (dma, place) = placed(&keys)?;
    Ok(UserDevice {
        socket: keys.required("socket", "a socket's name", file)?,
        id: keys.optional("id", "a name", |id| (!id.is_empty()).then(|| id.to_owned()))?,
        dma,
        given: match given {
            Some(false) => Given::Nothing,
            Some(true) | None => Given::Files,
        },
        place,
    })
}

fn served(keys: &Keys<'_>, what: What) -> Result<Served, OptionError> {
    // Who says off means an option of the VMM's own, which has no such key.
    keys.optional("vhost_user", "on", |text| switch(text).filter(|on| *on))?;
    Ok(Served {
        what,
        socket: keys.required("socket", "a socket's name", file)?,
        queues: keys.optional("num_queues", "a number of queues", number)?,
        queue_size: keys.optional("queue_size", "a number of descriptors", number)?,
        reconnect: keys.optional("reconnect", "a number of seconds from 1 to 3600", interval)?,
        dma: dma(keys)?,
        // Not without being asked: of a packed queue, a process that is gone has to have noted what it had begun.
        rings: match keys.optional("packed", "on or off", switch)? {
            Some(true) => Rings::Both,
            Some(false) | None => Rings::Split,
        },
    })
}

fn interval(text: &str) -> Option<Duration> {
    let seconds = number(text).filter(|seconds| (1..=3600).contains(seconds));
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Dma, Place};

    fn error(result: Result<Served, OptionError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn devices_of_other_processes() {
        assert!(is_meant("vhost_user=on,socket=/s") && is_meant("/s,vhost_user=on"));
        assert!(!is_meant("path=a.img") && !is_meant("socket=/tmp/passt"));
        let plain = |what| Served {
            what,
            socket: "/s".into(),
            queues: None,
            queue_size: None,
            reconnect: None,
            dma: Dma::Direct,
            rings: Rings::Split,
        };
        assert_eq!(disk("vhost_user=on,socket=/s"), Ok(plain(What::Disk)));
        assert_eq!(
            disk("/s,vhost_user=on,num_queues=2,queue_size=128,iommu=on"),
            Ok(Served {
                queues: Some(2),
                queue_size: Some(128),
                dma: Dma::Translated,
                ..plain(What::Disk)
            })
        );
        assert_eq!(
            disk("vhost_user=on,socket=/s,reconnect=3600"),
            Ok(Served {
                reconnect: Some(Duration::from_secs(3600)),
                ..plain(What::Disk)
            })
        );
        let packed = disk("vhost_user=on,socket=/s,packed=on").unwrap();
        assert_eq!(packed.rings, Rings::Both);
        for split in [
            "vhost_user=on,socket=/s,packed=off",
            "vhost_user=on,socket=/s",
        ] {
            assert_eq!(net(split).unwrap().rings, Rings::Split);
        }
        assert_eq!(fs("tag=a,socket=/s,packed=on").unwrap().rings, Rings::Both);
        let (mac, mtu) = (Some([0x52, 0x54, 0, 1, 2, 3]), Some(1400));
        assert_eq!(
            net("vhost_user=on,socket=/s,mac=52:54:00:01:02:03,mtu=1400"),
            Ok(plain(What::Net { mac, mtu }))
        );
        assert_eq!(
            net("vhost_user=on,socket=/s,num_queue_pairs=4"),
            Ok(Served {
                queues: Some(4),
                ..plain(What::Net {
                    mac: None,
                    mtu: None
                })
            })
        );
        let tag = "host".to_owned();
        assert_eq!(
            fs("tag=host,socket=/s"),
            Ok(plain(What::FileSystem { tag }))
        );
    }

    #[test]
    fn pci_devices_of_other_processes() {
        let plain = UserDevice {
            socket: "/s".into(),
            id: None,
            dma: Dma::Direct,
            given: Given::Files,
            place: Place::default(),
        };
        assert_eq!(user_device("/s"), Ok(plain.clone()));
        assert_eq!(user_device("socket=/s,share=on,iommu=off"), Ok(plain));
        let device = user_device("socket=/s,id=edu,iommu=on,share=off").unwrap();
        assert_eq!(
            (device.dma, device.given),
            (Dma::Translated, Given::Nothing)
        );
        assert_eq!(device.name(), "edu");
        for (text, line) in [
            ("id=a", "--user-device: key 'socket' is missing"),
            ("/s,id=", "--user-device: id= is not a name"),
            ("/s,share=no", "--user-device: share=no is not on or off"),
        ] {
            assert_eq!(user_device(text).unwrap_err().to_string(), line);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            error(disk("vhost_user=on")),
            "--disk: key 'socket' is missing"
        );
        assert_eq!(
            error(disk("vhost_user=off,socket=/s")),
            "--disk: vhost_user=off is not on"
        );
        assert_eq!(
            error(disk("vhost_user=on,socket=/s,readonly=on")),
            "--disk: unknown key 'readonly' (known: socket, vhost_user, num_queues, queue_size, reconnect, iommu, packed)"
        );
        for wrong in ["0", "3601", "-1", "on", ""] {
            assert_eq!(
                error(net(&format!("vhost_user=on,socket=/s,reconnect={wrong}"))),
                format!("--net: reconnect={wrong} is not a number of seconds from 1 to 3600")
            );
        }
        // Whoever serves files knows what is open.
        assert!(error(fs("tag=a,socket=/s,reconnect=1")).contains("unknown key 'reconnect'"));
        assert_eq!(error(fs("socket=/s")), "--fs: key 'tag' is missing");
        assert_eq!(
            error(fs("tag=,socket=/s")),
            "--fs: tag= is not a name of 1 to 36 bytes"
        );
        assert_eq!(error(fs("tag=a")), "--fs: key 'socket' is missing");
    }
}
