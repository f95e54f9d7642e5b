// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver has settled, to be saved: the requests that would settle it again, as the driver spells them.
//!
//! ```text
//!   bypass:8   ATTACH of 20 bytes | MAP of 36 bytes, a domain's endpoints before its mappings
//! ```
//!
//! So whatever is restored is decided as the driver's own requests are, and bounded as they are. Faults that the driver has
//! not been told of are not saved: a report may be lost (5.13.6.8).

use super::domain::{Domains, Offered};
use super::request::{Bypass, Request, Span, Status};
use crate::device::StateError;

/// Types of requests (5.13.6).
const ATTACH: u8 = 1;
const MAP: u8 = 3;
/// Bytes of their readable parts.
const ATTACH_LENGTH: usize = 20;
const MAP_LENGTH: usize = 36;
/// VIRTIO_IOMMU_ATTACH_F_BYPASS.
const BYPASS: u32 = 1;

/// `bypass` of the configuration, and all domains.
pub(super) fn save(bypass: Bypass, domains: &Domains) -> Vec<u8> {
    let mut bytes = vec![u8::from(bypass == Bypass::Yes)];
    for request in domains.requests() {
        encode(request, &mut bytes);
    }
    bytes
}

/// Spells ATTACH and MAP, of which a state is made.
fn encode(request: Request, bytes: &mut Vec<u8>) {
    match request {
        Request::Attach {
            domain,
            endpoint,
            bypass,
        } => {
            let flags = if bypass == Bypass::Yes { BYPASS } else { 0 };
            bytes.extend([ATTACH, 0, 0, 0]);
            for word in [domain, endpoint, flags, 0] {
                bytes.extend(word.to_le_bytes());
            }
        }
        Request::Map {
            domain,
            span: Span { first, last },
            target,
            flags,
        } => {
            bytes.extend([MAP, 0, 0, 0]);
            bytes.extend(domain.to_le_bytes());
            for address in [first, last, target] {
                bytes.extend(address.to_le_bytes());
            }
            bytes.extend(flags.bits().to_le_bytes());
        }
        Request::Detach { .. } | Request::Unmap { .. } | Request::Probe { .. } => {}
    }
}

/// Makes `domains`, in which there is nothing, those that were saved; the configuration's `bypass`.
///
/// # Errors
///
/// What no driver could have settled with these endpoints and limits: then there is nothing in `domains` again, and `before`
/// is what endpoints do.
pub(super) fn restore(
    state: &[u8],
    domains: &mut Domains,
    before: Bypass,
) -> Result<Bypass, StateError> {
    let restored = replay(state, domains);
    if restored.is_err() {
        domains.reset(before);
    }
    restored
}

fn replay(state: &[u8], domains: &mut Domains) -> Result<Bypass, StateError> {
    let bad = |at| StateError::Content { at };
    let (bypass, mut rest) = match state {
        [0, rest @ ..] => (Bypass::No, rest),
        [1, rest @ ..] => (Bypass::Yes, rest),
        _ => return Err(bad(0)),
    };
    domains.reset(bypass);
    while !rest.is_empty() {
        let at = state.len().saturating_sub(rest.len());
        // What a driver may set in a head is not saved.
        let length = match rest {
            [ATTACH, 0, 0, 0, ..] => ATTACH_LENGTH,
            [MAP, 0, 0, 0, ..] => MAP_LENGTH,
            _ => return Err(bad(at)),
        };
        let (request, after) = rest.split_at_checked(length).ok_or(bad(at))?;
        let request = Request::decode(request).map_err(|_| bad(at))?;
        // Domains that bypass were attached to by a driver that may.
        if domains.serve(request, Offered::Yes) != Status::OK {
            return Err(bad(at));
        }
        rest = after;
    }
    Ok(bypass)
}
