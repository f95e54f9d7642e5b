// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains against the specification's sentences, and against a table of single pages.

mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::iommu::Error;
use vm_memory::{GuestAddress, Iommu, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::domain::{Domains, Limits, Offered};
use super::endpoint::{Endpoint, Faults, Reason, Reserved};
use super::request::{Bypass, MapFlags, Request, Span, Status};

const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

fn faults() -> Arc<Faults> {
    Arc::new(Faults::new(EventFd::new(EFD_NONBLOCK).unwrap()))
}

/// Two endpoints, 1 and 2; the second may not use 0xfee00000 to 0xfeefffff.
fn world(at_rest: Bypass) -> (Domains, [Arc<Endpoint>; 2], Arc<Faults>) {
    let faults = faults();
    let messages = Reserved::Messages(Span {
        first: 0xfee0_0000,
        last: 0xfeef_ffff,
    });
    let one = Arc::new(Endpoint::new(1, vec![], Arc::clone(&faults)));
    let two = Arc::new(Endpoint::new(2, vec![messages], Arc::clone(&faults)));
    let mut domains = Domains::new(
        Limits {
            mappings: 8,
            ..Limits::default()
        },
        at_rest,
    );
    assert!(domains.add(Arc::clone(&one)) && domains.add(Arc::clone(&two)));
    assert!(!domains.add(Arc::clone(&one)), "the number is taken");
    (domains, [one, two], faults)
}

fn attach(domain: u32, endpoint: u32) -> Request {
    Request::Attach {
        domain,
        endpoint,
        bypass: Bypass::No,
    }
}

fn map(domain: u32, first: u64, last: u64, target: u64) -> Request {
    Request::Map {
        domain,
        span: Span { first, last },
        target,
        flags: RW,
    }
}

fn unmap(domain: u32, first: u64, last: u64) -> Request {
    Request::Unmap {
        domain,
        span: Span { first, last },
    }
}

fn leads(
    endpoint: &Endpoint,
    iova: u64,
    length: usize,
    access: Permissions,
) -> Result<Vec<(u64, usize)>, Error> {
    let found = endpoint.translate(GuestAddress(iova), length, access)?;
    Ok(found.map(|range| (range.base.0, range.length)).collect())
}

fn reads(endpoint: &Endpoint, iova: u64) -> Option<u64> {
    leads(endpoint, iova, 1, Permissions::Read)
        .ok()
        .map(|found| found[0].0)
}

fn serve(domains: &mut Domains, request: Request) -> Status {
    domains.serve(request, Offered::No)
}

#[test]
fn an_endpoint_translates_by_its_domain() {
    let (mut domains, [one, two], faults) = world(Bypass::No);
    assert_eq!(reads(&one, 0x1000), None);
    assert_eq!(faults.first().unwrap().reason, Reason::Domain);
    faults.forget();
    assert_eq!(serve(&mut domains, attach(7, 1)), Status::OK);
    assert_eq!(
        serve(&mut domains, map(7, 0x1000, 0x2fff, 0x8_0000)),
        Status::OK
    );
    assert_eq!(
        serve(&mut domains, map(7, 0x3000, 0x3fff, 0x1_0000)),
        Status::OK
    );
    let found = leads(&one, 0x2ff0, 0x20, Permissions::ReadWrite).unwrap();
    assert_eq!(found, [(0x8_1ff0, 0x10), (0x1_0000, 0x10)]);
    assert_eq!(reads(&one, 0x4000), None);
    let fault = faults.first().unwrap();
    assert_eq!(
        (fault.endpoint, fault.reason, fault.access, fault.address),
        (1, Reason::Mapping, MapFlags::READ, 0x4000)
    );
    // A second endpoint sees what is there, and what comes.
    assert_eq!(reads(&two, 0x1000), None);
    assert_eq!(serve(&mut domains, attach(7, 2)), Status::OK);
    assert_eq!(reads(&two, 0x1000), Some(0x8_0000));
    assert_eq!(
        serve(&mut domains, map(7, 0x9000, 0x9fff, 0x9000)),
        Status::OK
    );
    assert_eq!(
        (reads(&one, 0x9000), reads(&two, 0x9000)),
        (Some(0x9000), Some(0x9000))
    );
    // "After all endpoints have been detached, it ceases to exist": its mappings are not found again.
    for endpoint in [1, 2] {
        assert_eq!(
            serve(
                &mut domains,
                Request::Detach {
                    domain: 7,
                    endpoint
                }
            ),
            Status::OK
        );
    }
    assert_eq!(
        serve(&mut domains, map(7, 0x9000, 0x9fff, 0)),
        Status::NO_ENTRY
    );
    assert_eq!(serve(&mut domains, attach(7, 1)), Status::OK);
    assert_eq!(reads(&one, 0x9000), None);
}

#[test]
fn the_fault_is_at_the_first_byte_that_is_refused() {
    let (mut domains, [one, _], faults) = world(Bypass::No);
    serve(&mut domains, attach(1, 1));
    serve(&mut domains, map(1, 0x1000, 0x1fff, 0));
    let read_only = Request::Map {
        domain: 1,
        span: Span {
            first: 0x2000,
            last: 0x2fff,
        },
        target: 0,
        flags: MapFlags::READ,
    };
    serve(&mut domains, read_only);
    assert!(leads(&one, 0x1ff8, 0x1010, Permissions::Write).is_err());
    let fault = faults.first().unwrap();
    assert_eq!((fault.address, fault.access), (0x2000, MapFlags::WRITE));
    faults.forget();
    // The end of the space, and beyond.
    for (at, length) in [
        (u64::MAX, 2),
        (u64::MAX - 1, usize::MAX),
        (0x1000, usize::MAX),
    ] {
        assert!(leads(&one, at, length, Permissions::Read).is_err());
        assert!(faults.first().is_some());
        faults.forget();
    }
    // However many there are, few wait.
    for _ in 0..1000 {
        assert!(leads(&one, 0, 1, Permissions::Read).is_err());
    }
    let mut waiting = 0;
    while faults.first().is_some() {
        faults.told();
        waiting += 1;
    }
    assert_eq!(waiting, 64);
}

#[test]
fn what_attach_refuses() {
    let (mut domains, [one, _], _) = world(Bypass::No);
    assert_eq!(serve(&mut domains, attach(1, 3)), Status::NO_ENTRY);
    let mut narrow = Domains::new(
        Limits {
            domains: (4, 5),
            ..Limits::default()
        },
        Bypass::No,
    );
    narrow.add(one);
    assert_eq!(serve(&mut narrow, attach(3, 1)), Status::RANGE);
    assert_eq!(serve(&mut narrow, attach(6, 1)), Status::RANGE);
    assert_eq!(serve(&mut narrow, attach(5, 1)), Status::OK);
    // A mapping where the newcomer may have none.
    serve(&mut domains, attach(1, 1));
    serve(&mut domains, map(1, 0xfeef_f000, 0xfeef_ffff, 0));
    assert_eq!(serve(&mut domains, attach(1, 2)), Status::UNSUPPORTED);
    // A bypass domain without the feature; the other kind of a domain that exists.
    let bypass = |domain| Request::Attach {
        domain,
        endpoint: 2,
        bypass: Bypass::Yes,
    };
    assert_eq!(serve(&mut domains, bypass(2)), Status::INVALID);
    assert_eq!(domains.serve(bypass(1), Offered::Yes), Status::INVALID);
    assert_eq!(domains.serve(bypass(2), Offered::Yes), Status::OK);
    assert_eq!(serve(&mut domains, map(2, 0, 0xfff, 0)), Status::INVALID);
    assert_eq!(serve(&mut domains, unmap(2, 0, 0xfff)), Status::INVALID);
}

#[test]
fn another_domain_takes_an_endpoint_away() {
    let (mut domains, [one, _], _) = world(Bypass::No);
    serve(&mut domains, attach(1, 1));
    serve(&mut domains, map(1, 0, 0xfff, 0x5000));
    assert_eq!(
        serve(&mut domains, attach(1, 1)),
        Status::OK,
        "it is there already"
    );
    assert_eq!(reads(&one, 0), Some(0x5000));
    assert_eq!(serve(&mut domains, attach(2, 1)), Status::OK);
    assert_eq!(reads(&one, 0), None);
    assert_eq!(
        serve(&mut domains, unmap(1, 0, 0xfff)),
        Status::NO_ENTRY,
        "nobody is left in it"
    );
    assert_eq!(
        serve(
            &mut domains,
            Request::Detach {
                domain: 1,
                endpoint: 1
            }
        ),
        Status::INVALID
    );
    assert_eq!(
        serve(
            &mut domains,
            Request::Detach {
                domain: 2,
                endpoint: 9
            }
        ),
        Status::NO_ENTRY
    );
}

#[test]
fn what_map_and_unmap_refuse() {
    let (mut domains, [_, two], _) = world(Bypass::No);
    serve(&mut domains, attach(1, 2));
    for (request, status) in [
        (map(9, 0, 0xfff, 0), Status::NO_ENTRY),
        (map(1, 1, 0xfff, 0), Status::RANGE),
        (map(1, 0, 0xffe, 0), Status::RANGE),
        (map(1, 0, 0xfff, 8), Status::RANGE),
        (map(1, 0, u64::MAX, 0), Status::RANGE),
        (map(1, 1 << 48, (1 << 48) + 0xfff, 0), Status::RANGE),
        (map(1, 0, 0x1fff, u64::MAX - 0xfff), Status::RANGE),
        (map(1, 0xfedf_f000, 0xfee0_0fff, 0), Status::INVALID),
        (map(1, 0x4000, 0x5fff, 0), Status::OK),
        (map(1, 0x5000, 0x6fff, 0), Status::INVALID),
        (map(1, 0x3000, 0x4fff, 0), Status::INVALID),
        (unmap(9, 0, 0xfff), Status::NO_ENTRY),
        (unmap(1, 0x4000, 0x4fff), Status::RANGE),
        (unmap(1, 0x5000, 0x9fff), Status::RANGE),
        (unmap(1, 0x10_0000, 0x10_0fff), Status::OK),
    ] {
        assert_eq!(serve(&mut domains, request), status, "{request:?}");
    }
    assert_eq!(
        reads(&two, 0x4000),
        Some(0),
        "nothing that was refused changed it"
    );
    assert_eq!(serve(&mut domains, unmap(1, 0, u64::MAX)), Status::OK);
    assert_eq!(reads(&two, 0x4000), None);
}

#[test]
fn mappings_are_counted() {
    let (mut domains, _, _) = world(Bypass::No);
    serve(&mut domains, attach(1, 1));
    serve(&mut domains, attach(2, 2));
    for page in 0..8 {
        assert_eq!(
            serve(
                &mut domains,
                map(1 + page as u32 % 2, page << 12, page << 12 | 0xfff, 0)
            ),
            Status::OK
        );
    }
    assert_eq!(
        serve(&mut domains, map(1, 0x10_0000, 0x10_0fff, 0)),
        Status::NO_MEMORY
    );
    // A domain that ends gives its mappings back.
    assert_eq!(
        serve(
            &mut domains,
            Request::Detach {
                domain: 2,
                endpoint: 2
            }
        ),
        Status::OK
    );
    for page in 0..4 {
        assert_eq!(
            serve(
                &mut domains,
                map(1, 0x10_0000 + (page << 12), 0x10_0fff + (page << 12), 0)
            ),
            Status::OK
        );
    }
    assert_eq!(
        serve(&mut domains, map(1, 0x20_0000, 0x20_0fff, 0)),
        Status::NO_MEMORY
    );
    domains.reset(Bypass::No);
    serve(&mut domains, attach(1, 1));
    assert_eq!(
        serve(&mut domains, map(1, 0x20_0000, 0x20_0fff, 0)),
        Status::OK
    );
}

#[test]
fn at_rest_an_endpoint_bypasses_or_is_blocked() {
    let (mut domains, [one, two], _) = world(Bypass::Yes);
    assert_eq!(
        leads(&one, 0x1234, 0x10, Permissions::ReadWrite).unwrap(),
        [(0x1234, 0x10)]
    );
    assert_eq!(reads(&one, u64::MAX - 1), Some(u64::MAX - 1));
    serve(&mut domains, attach(1, 1));
    assert_eq!(
        (reads(&one, 0x1234), reads(&two, 0x1234)),
        (None, Some(0x1234))
    );
    domains.set_at_rest(Bypass::No);
    assert_eq!((reads(&one, 0x1234), reads(&two, 0x1234)), (None, None));
    domains.set_at_rest(Bypass::Yes);
    assert_eq!(
        (reads(&one, 0x1234), reads(&two, 0x1234)),
        (None, Some(0x1234))
    );
    serve(
        &mut domains,
        Request::Detach {
            domain: 1,
            endpoint: 1,
        },
    );
    assert_eq!(reads(&one, 0x1234), Some(0x1234));
}

/// One domain as a table of single pages: what the specification's sentences come to.
#[derive(Default)]
struct Pages(BTreeMap<u64, (u64, u64)>);

impl Pages {
    fn map(&mut self, first: u64, count: u64, target: u64) -> bool {
        if (first..first + count).any(|page| self.0.contains_key(&page)) {
            return false;
        }
        // Remember which mapping a page is of: it goes whole.
        self.0
            .extend((0..count).map(|page| (first + page, (target + page, first))));
        true
    }

    fn unmap(&mut self, first: u64, count: u64) -> bool {
        let range = first..first + count;
        let starts: Vec<u64> = range
            .clone()
            .filter_map(|page| self.0.get(&page))
            .map(|(_, start)| *start)
            .collect();
        let whole = |start: &u64| {
            self.0
                .iter()
                .filter(|(_, (_, s))| s == start)
                .all(|(page, _)| range.contains(page))
        };
        if !starts.iter().all(whole) {
            return false;
        }
        self.0.retain(|page, _| !range.contains(page));
        true
    }
}

proptest! {
    #[test]
    fn as_a_table_of_pages(steps in proptest::collection::vec((any::<bool>(), 0..12_u64, 1..4_u64, 0..16_u64), 1..60)) {
        let faults = faults();
        let endpoint = Arc::new(Endpoint::new(1, vec![], faults));
        let mut domains = Domains::new(Limits::default(), Bypass::No);
        domains.add(Arc::clone(&endpoint));
        serve(&mut domains, attach(1, 1));
        let mut pages = Pages::default();
        for (maps, first, count, target) in steps {
            let (from, to) = (first << 12, (first + count) << 12);
            let (status, expected) = if maps {
                let expected = if pages.map(first, count, target) { Status::OK } else { Status::INVALID };
                (serve(&mut domains, map(1, from, to - 1, target << 12)), expected)
            } else {
                let expected = if pages.unmap(first, count) { Status::OK } else { Status::RANGE };
                (serve(&mut domains, unmap(1, from, to - 1)), expected)
            };
            prop_assert_eq!(status, expected);
            for page in 0..16 {
                let expected = pages.0.get(&page).map(|(target, _)| (target << 12) + 5);
                prop_assert_eq!(reads(&endpoint, (page << 12) + 5), expected);
            }
        }
    }
}
