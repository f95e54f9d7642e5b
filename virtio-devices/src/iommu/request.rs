// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A request of the driver: bytes in, a request or the status that refuses it out.
//!
//! ```text
//!   readable   type:8 reserved:24   what the type says
//!   writable   (PROBE: properties)   status:8 reserved:24
//! ```
//!
//! "Device operations" of the IOMMU device (5.13.6).

use crate::bytes::put_at;

/// Bytes of the part that the driver writes, by type. The first four are the head.
const ATTACH: usize = 20;
const DETACH: usize = 20;
const MAP: usize = 36;
const UNMAP: usize = 28;
const PROBE: usize = 72;

/// The longest readable part that any request has.
pub(super) const LONGEST: usize = PROBE;
/// Bytes that end the writable part: the status, and three that are reserved.
pub(super) const TAIL: u64 = 4;

bitflags::bitflags! {
    /// What a mapping allows: the flags of a MAP request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct MapFlags: u32 {
        /// VIRTIO_IOMMU_MAP_F_READ.
        const READ = 1 << 0;
        /// VIRTIO_IOMMU_MAP_F_WRITE.
        const WRITE = 1 << 1;
    }
}

/// How a request ended. Open: the device may report others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u8);

impl Status {
    /// All good.
    pub const OK: Self = Self(0);
    /// What is asked for is not supported: an endpoint in a domain whose mappings it may not have.
    pub const UNSUPPORTED: Self = Self(2);
    /// Invalid parameters.
    pub const INVALID: Self = Self(4);
    /// Out-of-range parameters.
    pub const RANGE: Self = Self(5);
    /// No such endpoint or domain.
    pub const NO_ENTRY: Self = Self(6);
    /// The device's resources are at an end.
    pub const NO_MEMORY: Self = Self(8);
}

/// A range of addresses, both ends included: the last page of the space has no end that could be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first address.
    pub first: u64,
    /// The last address.
    pub last: u64,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Request {
    Attach {
        domain: u32,
        endpoint: u32,
        bypass: Bypass,
    },
    Detach {
        domain: u32,
        endpoint: u32,
    },
    Map {
        domain: u32,
        span: Span,
        target: u64,
        flags: MapFlags,
    },
    Unmap {
        domain: u32,
        span: Span,
    },
    Probe {
        endpoint: u32,
    },
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// "If a request type is not recognized" (5.13.6.2): nothing is written, not even a status.
    UnknownType,
    /// The status tells.
    Invalid,
}

/// Whether a domain translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bypass {
    /// It does: by the mappings that the driver adds.
    No,
    /// Every address leads to itself.
    Yes,
}

impl Request {
    /// Reads a request from the readable part of its chain. Unknown flags, parts that are too short and reserved bytes
    /// of ATTACH and UNMAP that are set are refused. Those of the head, of DETACH and of PROBE are ignored: "The device
    /// MUST ignore" them, for drivers of later versions use them.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let head = field(bytes, 0, 4)?;
        // Truncations on purpose: the fields are that wide.
        let word = |at| Ok::<_, Malformed>(field(bytes, at, 4)? as u32);
        let long = |at| field(bytes, at, 8);
        let span = || {
            let (first, last) = (long(8)?, long(16)?);
            if last < first {
                return Err(Malformed::Invalid);
            }
            Ok(Span { first, last })
        };
        match head as u8 {
            1 => {
                let flags = word(12)?;
                zero(bytes, 16, ATTACH)?;
                let bypass = match flags {
                    0 => Bypass::No,
                    1 => Bypass::Yes,
                    _ => return Err(Malformed::Invalid),
                };
                Ok(Self::Attach {
                    domain: word(4)?,
                    endpoint: word(8)?,
                    bypass,
                })
            }
            2 => {
                zero(bytes, DETACH, DETACH)?;
                Ok(Self::Detach {
                    domain: word(4)?,
                    endpoint: word(8)?,
                })
            }
            3 => {
                zero(bytes, MAP, MAP)?;
                let flags = MapFlags::from_bits(word(32)?).ok_or(Malformed::Invalid)?;
                let (domain, target) = (word(4)?, long(24)?);
                Ok(Self::Map {
                    domain,
                    span: span()?,
                    target,
                    flags,
                })
            }
            4 => {
                zero(bytes, 24, UNMAP)?;
                Ok(Self::Unmap {
                    domain: word(4)?,
                    span: span()?,
                })
            }
            5 => {
                zero(bytes, PROBE, PROBE)?;
                Ok(Self::Probe { endpoint: word(4)? })
            }
            _ => Err(Malformed::UnknownType),
        }
    }
}

/// The little-endian number of `size` bytes at `at`.
fn field(bytes: &[u8], at: usize, size: usize) -> Result<u64, Malformed> {
    let end = at.checked_add(size).ok_or(Malformed::Invalid)?;
    let bytes = bytes.get(at..end).ok_or(Malformed::Invalid)?;
    let mut word = [0; 8];
    put_at(&mut word, 0, bytes);
    Ok(u64::from_le_bytes(word))
}

/// Refuses a part shorter than `end`, and one whose reserved bytes from `start` are set.
fn zero(bytes: &[u8], start: usize, end: usize) -> Result<(), Malformed> {
    let reserved = bytes.get(start..end).ok_or(Malformed::Invalid)?;
    if reserved.iter().any(|byte| *byte != 0) {
        return Err(Malformed::Invalid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn requests_as_the_specification_draws_them() {
        let attach = bytes(&[
            &[1, 0, 0, 0],
            &[7, 0, 0, 0],
            &[0x18, 1, 0, 0],
            &[0; 4],
            &[0; 4],
        ]);
        let expected = Request::Attach {
            domain: 7,
            endpoint: 0x118,
            bypass: Bypass::No,
        };
        assert_eq!(Request::decode(&attach), Ok(expected));
        let map = bytes(&[
            &[3, 0, 0, 0],
            &[7, 0, 0, 0],
            &0x1000_u64.to_le_bytes(),
            &0x2fff_u64.to_le_bytes(),
            &0x9_0000_0000_u64.to_le_bytes(),
            &[3, 0, 0, 0],
        ]);
        let span = Span {
            first: 0x1000,
            last: 0x2fff,
        };
        let flags = MapFlags::READ | MapFlags::WRITE;
        let expected = Request::Map {
            domain: 7,
            span,
            target: 0x9_0000_0000,
            flags,
        };
        assert_eq!(Request::decode(&map), Ok(expected));
        let unmap = bytes(&[&[4, 0, 0, 0, 7, 0, 0, 0], &map[8..24], &[0; 4]]);
        assert_eq!(
            Request::decode(&unmap),
            Ok(Request::Unmap { domain: 7, span })
        );
        let detach = bytes(&[&[2, 0, 0, 0], &attach[4..12], &[0; 8]]);
        assert_eq!(
            Request::decode(&detach),
            Ok(Request::Detach {
                domain: 7,
                endpoint: 0x118
            })
        );
        let probe = bytes(&[&[5, 0, 0, 0], &attach[8..12], &[0; 64]]);
        assert_eq!(
            Request::decode(&probe),
            Ok(Request::Probe { endpoint: 0x118 })
        );
        for whole in [attach, map, unmap, detach, probe] {
            for short in 0..whole.len() {
                assert_eq!(Request::decode(&whole[..short]), Err(Malformed::Invalid));
            }
        }
    }

    /// "If the reserved field of an ATTACH request is not zero, the device MUST reject the request" (5.13.6.3.2), and of an
    /// UNMAP request it "MAY" (5.13.6.6.2). "The device MUST ignore field reserved of struct virtio_iommu_req_head"
    /// (5.13.6.2), "The device MUST ignore reserved" (5.13.6.4.2, DETACH), "The device MUST ignore field reserved of a
    /// PROBE request" (5.13.6.7.2).
    #[test]
    fn reserved_bytes_are_refused_where_the_specification_says_so_and_else_ignored() {
        let refused = Err(Malformed::Invalid);
        let kinds = [
            (1_u8, 16..20, Some(refused)),
            (2, 12..20, None),
            (3, 36..36, None),
            (4, 24..28, Some(refused)),
            (5, 8..72, None),
        ];
        for (kind, reserved, verdict) in kinds {
            let mut raw = vec![0; LONGEST];
            raw[0] = kind;
            let plain = Request::decode(&raw);
            assert!(plain.is_ok());
            for at in (1..4).chain(reserved.clone()) {
                let mut raw = raw.clone();
                raw[at] = 1;
                let expected = verdict.filter(|_| reserved.contains(&at)).unwrap_or(plain);
                assert_eq!(Request::decode(&raw), expected, "type {kind} byte {at}");
            }
        }
    }

    #[test]
    fn what_is_not_known() {
        // Flags that are not defined, and MMIO, which is not offered.
        for (kind, at, flag) in [(1_u8, 12, 2), (3, 32, 4), (3, 32, 8), (3, 35, 0x80)] {
            let mut raw = vec![0; LONGEST];
            (raw[0], raw[at]) = (kind, flag);
            assert_eq!(Request::decode(&raw), Err(Malformed::Invalid));
        }
        for kind in [0, 6, 255] {
            assert_eq!(
                Request::decode(&[kind; 1].map(|k| [k, 0, 0, 0]).concat()),
                Err(Malformed::UnknownType)
            );
        }
    }

    #[test]
    fn a_range_that_ends_before_it_begins() {
        let mut raw = vec![0; LONGEST];
        (raw[0], raw[9]) = (4, 1);
        assert_eq!(Request::decode(&raw), Err(Malformed::Invalid));
    }
}
