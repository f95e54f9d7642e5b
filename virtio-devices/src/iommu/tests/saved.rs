// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is saved, byte by byte, and what nobody saved.

use super::super::domain::Offered;
use super::super::request::{Bypass, Request, Status};
use super::super::state;
use super::{attach, map, reads, unmap, world};
use crate::device::StateError;

#[test]
fn a_state_is_the_requests_that_lead_to_it() {
    let (mut domains, _, _) = world(Bypass::No);
    let mut serve = |request| assert_eq!(domains.serve(request, Offered::Yes), Status::OK);
    serve(attach(7, 1));
    serve(attach(7, 2));
    serve(map(7, 0x1000, 0x2fff, 0x8_7000));
    serve(map(7, 0x9000, 0x9fff, 0x3000));
    serve(unmap(7, 0x9000, 0x9fff));
    let saved = state::save(Bypass::Yes, &domains);
    // "ATTACH request" (5.13.6.3), "MAP request" (5.13.6.5): the readable parts, after the configuration's bypass.
    let mut raw = vec![1];
    for endpoint in [1, 2] {
        raw.extend([1, 0, 0, 0, 7, 0, 0, 0, endpoint, 0, 0, 0]);
        raw.extend([0; 8]);
    }
    raw.extend([3, 0, 0, 0, 7, 0, 0, 0]);
    raw.extend([0x00, 0x10, 0, 0, 0, 0, 0, 0]);
    raw.extend([0xff, 0x2f, 0, 0, 0, 0, 0, 0]);
    raw.extend([0x00, 0x70, 0x08, 0, 0, 0, 0, 0]);
    raw.extend([3, 0, 0, 0]);
    assert_eq!(saved, raw);

    let (mut again, [one, two], _) = world(Bypass::No);
    assert_eq!(
        state::restore(&raw, &mut again, Bypass::No),
        Ok(Bypass::Yes)
    );
    for endpoint in [&one, &two] {
        assert_eq!(reads(endpoint, 0x2123), Some(0x8_8123));
        assert_eq!(reads(endpoint, 0x9000), None);
    }
    // What is attached nowhere bypasses, as it was told.
    let detach = Request::Detach {
        domain: 7,
        endpoint: 1,
    };
    assert_eq!(again.serve(detach, Offered::Yes), Status::OK);
    assert_eq!(reads(&one, 0x9000), Some(0x9000));
}

#[test]
fn states_that_no_driver_leads_to() {
    let attach =
        |endpoint: u8| [&[1, 0, 0, 0, 7, 0, 0, 0, endpoint, 0, 0, 0][..], &[0; 8]].concat();
    let map = |first: u16| {
        let span = [u64::from(first), u64::from(first) + 0xfff, 0x3000];
        let words = span.into_iter().flat_map(u64::to_le_bytes);
        let head = [3, 0, 0, 0, 7, 0, 0, 0];
        head.into_iter()
            .chain(words)
            .chain([3, 0, 0, 0])
            .collect::<Vec<u8>>()
    };
    let nine: Vec<u8> = (1..10).flat_map(|page| map(page << 12)).collect();
    let forged: [(&[&[u8]], usize); 10] = [
        (&[], 0),
        (&[&[2]], 0),
        // An unknown type, and one that a state does not have.
        (&[&[0], &[9; 36]], 1),
        (&[&[0], &[2; 20]], 1),
        // A head that has more than a type.
        (&[&[0], &[1, 1, 0, 0], &attach(1)[4..]], 1),
        // An endpoint that there is not; a domain that there is not; a mapping twice; half a request.
        (&[&[0], &attach(3)], 1),
        (&[&[0], &map(0x1000)], 1),
        (&[&[0], &attach(1), &map(0x1000), &map(0x1000)], 57),
        (&[&[0], &attach(1), &map(0x1000)[..35]], 21),
        // More mappings than the limit.
        (&[&[0], &attach(1), &nine], 21 + 8 * 36),
    ];
    for (parts, at) in forged {
        let (mut domains, [one, _], _) = world(Bypass::Yes);
        let error = state::restore(&parts.concat(), &mut domains, Bypass::Yes).unwrap_err();
        assert_eq!(error, StateError::Content { at });
        assert_eq!(reads(&one, 0x1000), Some(0x1000), "as it was");
        assert_eq!(domains.requests().count(), 0);
    }
}
