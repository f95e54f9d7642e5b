// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of each option mean.

use super::key_value::{Keys, OptionError, number, size, switch};
use crate::config::{
    Access, Balloon, Confinement, Disk, Dma, Format, HostDevice, Iommufd, Net, NetWire, Place,
    Pmem, Rings, Rng, Serial, VirtioConsole, Vsock, Writes,
};
use crate::machine::address_map::MOST_SEGMENTS;
use crate::machine::balloon::pages;
use hvkit_virtio_devices::limit::{Limits, Rate};
use hvkit_virtio_devices::net::{MAX_PAIRS, MOST_SPEED};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

/// Where random bytes come from, unless somebody says otherwise.
pub(super) const RANDOM: &str = "/dev/urandom";

/// What a number of a PCI segment looks like.
pub(super) const SEGMENT: &str = "the number of a PCI segment";

pub(super) fn cpus(text: &str) -> Result<u32, OptionError> {
    Keys::parse("cpus", &["boot"], text)?.required("boot", "a number of processors", number)
}

pub(super) fn memory(text: &str) -> Result<u64, OptionError> {
    Keys::parse("memory", &["size"], text)?.required(
        "size",
        "a size such as 512M, 2G or 1048576",
        size,
    )
}

/// The keys of a disk in a file, and then those that only the disk of a machine has: where it is in that.
const DISK: [&str; 16] = [
    "path",
    "readonly",
    "serial",
    "num_queues",
    "queue_size",
    "image_type",
    "backing",
    "direct",
    "bw_size",
    "bw_refill_time",
    "ops_size",
    "ops_refill_time",
    "iommu",
    "packed",
    "pci_segment",
    "control",
];

/// The disk of a machine.
pub(super) fn disk(text: &str) -> Result<Disk, OptionError> {
    disk_with(&DISK, text)
}

/// A disk for another VMM, which has control of it, and says where it is, behind which unit and with which queues.
pub(super) fn disk_to_serve(text: &str) -> Result<Disk, OptionError> {
    const KEYS: &[&str] = match DISK.split_last_chunk::<4>() {
        Some((keys, _of_a_machine)) => keys,
        None => &[],
    };
    disk_with(KEYS, text)
}

fn disk_with(known: &'static [&'static str], text: &str) -> Result<Disk, OptionError> {
    let keys = Keys::parse("disk", known, text)?;
    let readonly = keys.optional("readonly", "on or off", switch)?;
    // Never guessed: a guest that writes its own first sector must not choose.
    let format = keys.optional("image_type", "raw or qcow2", |text| match text {
        "raw" => Some(Format::Raw),
        "qcow2" => Some(Format::Qcow2),
        _ => None,
    })?;
    let on = |key| Ok(keys.optional(key, "on or off", switch)?.unwrap_or_default());
    let (dma, place) = placed(&keys)?;
    Ok(Disk {
        access: match readonly {
            Some(true) => Access::ReadOnly,
            Some(false) | None => Access::ReadWrite,
        },
        serial: keys
            .optional("serial", "a text", |text| Some(text.to_owned()))?
            .unwrap_or_default(),
        queues: keys.optional("num_queues", "a number of queues", number)?,
        queue_size: keys.optional("queue_size", "a number of descriptors", number)?,
        limits: limits(&keys)?,
        format: format.unwrap_or(Format::Raw),
        backing: on("backing")?,
        direct: on("direct")?,
        control: keys.optional("control", "a socket's name", file)?,
        dma,
        place,
        ..Disk::new(keys.required("path", "a file's name", file)?)
    })
}

pub(super) fn device(text: &str) -> Result<HostDevice, OptionError> {
    const KEYS: &[&str] = &["path", "id", "iommu", "iommufd", "pci_segment"];
    let keys = Keys::parse("device", KEYS, text)?;
    let (dma, place) = placed(&keys)?;
    let iommufd = keys.optional("iommufd", "auto, on or off", |text| match text {
        "auto" => Some(Iommufd::Auto),
        "on" => Some(Iommufd::On),
        "off" => Some(Iommufd::Off),
        _ => None,
    })?;
    Ok(HostDevice {
        path: keys.required("path", "a folder's name", file)?,
        id: keys.optional("id", "a name", |id| (!id.is_empty()).then(|| id.to_owned()))?,
        iommufd: iommufd.unwrap_or_default(),
        dma,
        place,
    })
}

/// The keys of a card whose wire has keys of its own.
macro_rules! card_keys {
    ($($own:expr),*) => {
        &[
            $($own,)*
            "mac",
            "mtu",
            "speed",
            "iommu",
            "packed",
            "pci_segment",
            "bw_size",
            "bw_refill_time",
            "ops_size",
            "ops_refill_time",
        ]
    };
}
pub(super) use card_keys;

/// A card on `wire`, by the keys that all have.
pub(super) fn card(keys: &Keys<'_>, wire: NetWire) -> Result<Net, OptionError> {
    const _: () = assert!(MOST_SPEED == 2_147_483_647);
    let (dma, place) = placed(keys)?;
    Ok(Net {
        wire,
        mac: keys.optional("mac", "an address such as 52:54:00:12:34:56", mac)?,
        mtu: keys.optional("mtu", "a number of bytes", number)?,
        speed: keys.optional("speed", "a number of Mbit/s up to 2147483647", |text| {
            number(text).filter(|megabits| *megabits <= MOST_SPEED)
        })?,
        limits: limits(keys)?,
        dma,
        place,
    })
}

pub(super) fn net(text: &str) -> Result<Net, OptionError> {
    const KEYS: &[&str] = card_keys!("tap", "socket", "num_queue_pairs");
    let keys = Keys::parse("net", KEYS, text)?;
    let tap = keys.optional("tap", "an interface's name", |text| {
        (!text.is_empty()).then(|| text.to_owned())
    })?;
    let socket = keys.optional("socket", "a socket's name", file)?;
    const WANTED: &str = "a number of pairs from 1 to 64; a socket has 1";
    const _: () = assert!(MAX_PAIRS == 64);
    let most = if socket.is_some() { 1 } else { MAX_PAIRS };
    let pairs = keys.optional("num_queue_pairs", WANTED, |text| {
        number(text).filter(|pairs| (1..=most).contains(pairs))
    })?;
    let wire = match (tap, socket) {
        (Some(name), None) => NetWire::Tap {
            name,
            pairs: pairs.unwrap_or(1),
        },
        (None, Some(socket)) => NetWire::Socket(socket),
        (tap, _) => {
            return Err(OptionError::OneOf {
                option: "net",
                keys: ["tap", "socket"],
                given: match tap {
                    Some(_) => "both",
                    None => "neither",
                },
            });
        }
    };
    card(&keys, wire)
}

/// `iommu=on`: behind the remapping unit.
pub(super) fn dma(keys: &Keys<'_>) -> Result<Dma, OptionError> {
    let translated = keys.optional("iommu", "on or off", switch)?;
    Ok(match translated {
        Some(true) => Dma::Translated,
        Some(false) | None => Dma::Direct,
    })
}

/// `iommu=on`: behind the remapping unit of its segment; `iommu=NAME`: behind that one. `pci_segment=N`: where it is.
pub(super) fn placed(keys: &Keys<'_>) -> Result<(Dma, Place), OptionError> {
    let behind = keys.optional("iommu", "on, off or the id of a --vtd", |text| {
        match (switch(text), text) {
            (Some(true), _) => Some((Dma::Translated, None)),
            (Some(false), _) => Some((Dma::Direct, None)),
            (None, "") => None,
            (None, name) => Some((Dma::Translated, Some(name.to_owned()))),
        }
    })?;
    let (dma, unit) = behind.unwrap_or_default();
    let segment = keys.optional("pci_segment", SEGMENT, number)?;
    let place = Place {
        segment: segment.unwrap_or_default(),
        unit,
        rings: rings(keys)?,
    };
    Ok((dma, place))
}

/// `packed=off`: queues are split.
fn rings(keys: &Keys<'_>) -> Result<Rings, OptionError> {
    let packed = keys.optional("packed", "on or off", switch)?;
    Ok(match packed {
        Some(false) => Rings::Split,
        Some(true) | None => Rings::Both,
    })
}

pub(super) fn platform(text: &str) -> Result<u16, OptionError> {
    let keys = Keys::parse("platform", &["num_pci_segments"], text)?;
    keys.required("num_pci_segments", "1 to 16", |text| {
        number(text).filter(|count| (1..=MOST_SEGMENTS).contains(count))
    })
}

/// A bucket of so many bytes or requests, refilled in so many milliseconds (1000 if not given).
pub(super) fn limits(keys: &Keys<'_>) -> Result<Limits, OptionError> {
    const TIME: &str = "a number of milliseconds above 0";
    let rate = |burst: Option<u64>, time: Option<NonZeroU64>| {
        let burst = burst?;
        let time = time.map_or(1000, NonZeroU64::get);
        Some(Rate {
            tokens: burst,
            per: Duration::from_millis(time),
            burst,
        })
    };
    // Nothing at all is no limit that a disk could be used with.
    let above_zero = |number: &u64| *number > 0;
    let bytes = keys.optional("bw_size", "a number of bytes above 0", |text| {
        size(text).filter(above_zero)
    })?;
    let time = keys.optional("bw_refill_time", TIME, number)?;
    let requests = keys.optional("ops_size", "a number of requests above 0", |text| {
        number(text).filter(above_zero)
    })?;
    let requests_time = keys.optional("ops_refill_time", TIME, number)?;
    keys.needs("bw_refill_time", "bw_size")?;
    keys.needs("ops_refill_time", "ops_size")?;
    Ok(Limits {
        bytes: rate(bytes, time),
        requests: rate(requests, requests_time),
    })
}

/// Six bytes in hexadecimal, two digits each, between colons.
pub(super) fn mac(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

pub(super) fn rng(text: &str) -> Result<Rng, OptionError> {
    let keys = Keys::parse("rng", &["src", "iommu", "packed", "pci_segment"], text)?;
    let source = keys.optional("src", "a file's name", file)?;
    let (dma, place) = placed(&keys)?;
    Ok(Rng {
        source: source.unwrap_or_else(|| RANDOM.into()),
        dma,
        place,
    })
}

pub(super) fn balloon(text: &str) -> Result<Balloon, OptionError> {
    const KEYS: &[&str] = &[
        "size",
        "deflate_on_oom",
        "free_page_reporting",
        "free_page_hints",
        "socket",
        "packed",
    ];
    let keys = Keys::parse("balloon", KEYS, text)?;
    let on = |key| Ok(keys.optional(key, "on or off", switch)?.unwrap_or_default());
    Ok(Balloon {
        size: keys
            .optional("size", "a size such as 64M", |text| {
                size(text).filter(|bytes| pages(*bytes).is_some())
            })?
            .unwrap_or(0),
        deflate_on_oom: on("deflate_on_oom")?,
        free_page_reporting: on("free_page_reporting")?,
        free_page_hints: on("free_page_hints")?,
        socket: keys.optional("socket", "a socket's name", file)?,
        rings: rings(&keys)?,
    })
}

pub(super) fn vsock(text: &str) -> Result<Vsock, OptionError> {
    const KEYS: &[&str] = &["cid", "socket", "iommu", "packed", "pci_segment"];
    let keys = Keys::parse("vsock", KEYS, text)?;
    let (dma, place) = placed(&keys)?;
    Ok(Vsock {
        cid: keys.required("cid", "a number of 3 and more", number)?,
        socket: keys.required("socket", "a socket's name", file)?,
        dma,
        place,
    })
}

pub(super) fn pmem(text: &str) -> Result<Pmem, OptionError> {
    const KEYS: &[&str] = &["path", "discard_writes", "packed", "pci_segment"];
    let keys = Keys::parse("pmem", KEYS, text)?;
    let discard = keys.optional("discard_writes", "on or off", switch)?;
    Ok(Pmem {
        path: keys.required("path", "a file's name", file)?,
        writes: match discard {
            Some(true) => Writes::Discarded,
            Some(false) | None => Writes::Kept,
        },
        place: placed(&keys)?.1,
    })
}

pub(super) fn console(text: &str) -> Result<(VirtioConsole, Dma, Place), OptionError> {
    const KEYS: &[&str] = &["mode", "file", "iommu", "packed", "pci_segment"];
    let keys = Keys::parse("console", KEYS, text)?;
    let (dma, place) = placed(&keys)?;
    keys.not_both(["mode", "file"])?;
    let path = keys.optional("file", "a file's name", file)?;
    let console = match path {
        Some(path) => VirtioConsole::File(path),
        None => keys.required(
            "mode",
            "off, null, tty, pty or file=PATH",
            |mode| match mode {
                "off" => Some(VirtioConsole::Off),
                "null" => Some(VirtioConsole::Null),
                "tty" => Some(VirtioConsole::Tty),
                "pty" => Some(VirtioConsole::Pty),
                _ => None,
            },
        )?,
    };
    Ok((console, dma, place))
}

pub(super) fn file(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// The serial line beside `console`: the terminal can be the user's end of one of them.
pub(super) fn terminal(
    serial: Option<&str>,
    console: &VirtioConsole,
) -> Result<Serial, OptionError> {
    let taken = *console == VirtioConsole::Tty;
    match serial.map(self::serial).transpose()? {
        Some(Serial::Tty) if taken => Err(OptionError::Terminal),
        None if taken => Ok(Serial::Null),
        None => Ok(Serial::Tty),
        Some(serial) => Ok(serial),
    }
}

fn serial(text: &str) -> Result<Serial, OptionError> {
    let keys = Keys::parse("serial", &["mode", "file"], text)?;
    keys.not_both(["mode", "file"])?;
    let path = keys.optional("file", "a file's name", file)?;
    match path {
        Some(path) => Ok(Serial::File(path)),
        None => keys.required("mode", "tty, null, off or file=PATH", |mode| match mode {
            "tty" => Some(Serial::Tty),
            "null" => Some(Serial::Null),
            "off" => Some(Serial::Off),
            _ => None,
        }),
    }
}

pub(super) fn confinement(text: &str) -> Result<Confinement, OptionError> {
    let keys = Keys::parse("confine", &["mode"], text)?;
    keys.required("mode", "on or off", |text| {
        Some(if switch(text)? {
            Confinement::On
        } else {
            Confinement::Off
        })
    })
}
