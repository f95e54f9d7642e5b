// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A tap interface: a network interface of the host whose other end is a file.
#![expect(
    unsafe_code,
    reason = "the kernel's requests to a tap have no safe form"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::feature;
use super::frames::HEADER;
use super::pairs::Attached;
use crate::bytes::put_at;
use crate::features::Features;

const DEVICE: &str = "/dev/net/tun";

/// Requests, flags and offloads of the kernel's `if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// Bytes of an interface's name, its end included.
const NAME: usize = 16;

/// "struct ifreq" as far as a tap needs it.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// Why a tap cannot be used.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Empty, longer than 15 bytes, or with a slash or a blank.
    #[error("\"{name}\" cannot be the name of a network interface")]
    Name {
        /// As given.
        name: String,
    },
    /// The host has no tap devices.
    #[error("{DEVICE}: there are no tap devices on this host (load the module tun)")]
    NoTun,
    /// Somebody else may use it, or nobody.
    #[error(
        "tap {name}: not permitted; it must be made for this user (ip tuntap add), or run with CAP_NET_ADMIN"
    )]
    NotPermitted {
        /// As given.
        name: String,
    },
    /// Another process has it.
    #[error("tap {name}: in use by another process")]
    Busy {
        /// As given.
        name: String,
    },
    /// It is there, and was made for one queue and is to have several, or the other way round.
    #[error(
        "tap {name}: made for one queue, or for several (ip tuntap add ... multi_queue), and not for as many as are asked for"
    )]
    Queues {
        /// As given.
        name: String,
    },
    /// The host refused for another reason.
    #[error("tap {name}: cannot be opened")]
    Host {
        /// As given.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open tap interface.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// What a tap can do for a driver.
    pub(super) const FEATURES: Features = feature::CSUM
        .union(feature::GUEST_CSUM)
        .union(feature::GUEST_TSO4)
        .union(feature::GUEST_TSO6)
        .union(feature::HOST_TSO4)
        .union(feature::HOST_TSO6);

    /// Opens the interface `name`, or makes it if there is none. Bringing it up is the host's affair.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_as(name, 0)
    }

    /// Opens `queues` queues of the interface `name`, over which the host spreads what comes by its connections; or
    /// makes it if there is none. An interface that was made before must have been made for several queues.
    pub fn open_queues(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        let open = |_| Self::open_as(name, IFF_MULTI_QUEUE);
        (0..queues).map(open).collect()
    }

    fn open_as(name: &str, queues: u16) -> Result<Self, TapError> {
        let bad = |byte: u8| !byte.is_ascii_graphic() || byte == b'/';
        if name.is_empty() || name.len() >= NAME || name.bytes().any(bad) {
            return Err(TapError::Name { name: name.into() });
        }
        let host = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name: name.into() },
            Some(libc::EBUSY) => TapError::Busy { name: name.into() },
            Some(libc::EINVAL) => TapError::Queues { name: name.into() },
            _ => TapError::Host {
                name: name.into(),
                source,
            },
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun,
                _ => host(source),
            })?;
        let mut request = Request {
            name: [0; NAME],
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues,
            rest: [0; 22],
        };
        put_at(&mut request.name, 0, name.as_bytes());
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `request` is; the file is open.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) };
        checked(set).map_err(host)?;
        let length = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int; the file is open.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &length) };
        checked(set).map_err(host)?;
        let tap = Self(file);
        tap.set_offloads(Features::empty()).map_err(host)?;
        Ok(tap)
    }

    /// Has the host send frames to this queue of several, or to the others only.
    pub(super) fn attach(&self, attached: Attached) -> io::Result<()> {
        let flags = match attached {
            Attached::Yes => IFF_ATTACH_QUEUE,
            Attached::No => IFF_DETACH_QUEUE,
        };
        let request = Request {
            name: [0; NAME],
            flags,
            rest: [0; 22],
        };
        // SAFETY: TUNSETQUEUE reads a `struct ifreq`, which `request` is; the file is open.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETQUEUE, &request) })
    }

    /// Tells the kernel which frames the driver can take as they are.
    pub(super) fn set_offloads(&self, features: Features) -> io::Result<()> {
        let mut offloads = 0;
        if features.contains(feature::GUEST_CSUM) {
            offloads |= TUN_F_CSUM;
            // Segmentation rests on checksums (5.1.3.1).
            for (wanted, offload) in [
                (feature::GUEST_TSO4, TUN_F_TSO4),
                (feature::GUEST_TSO6, TUN_F_TSO6),
            ] {
                if features.contains(wanted) {
                    offloads |= offload;
                }
            }
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value; the file is open.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETOFFLOAD, offloads) })
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", "tap\0", "täp"] {
            let error = Tap::open(name).unwrap_err();
            assert!(
                matches!(&error, TapError::Name { name: n } if n == name),
                "{error}"
            );
        }
    }
}
