// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page request queue: order, wrap, overflow, answers.

use hvkit_page_table::{OwnEntries, Width};
use hvkit_vtd_iommu::driver::{DriverError, Mmio, Polled, RingMemory};
use hvkit_vtd_iommu::spec::Pasid;
use hvkit_vtd_iommu::spec::invalidation::Descriptor;
use hvkit_vtd_iommu::spec::page_request::{PageRequest, PageRequestError, ResponseCode};
use hvkit_vtd_iommu::spec::registers::{PQA, PQH, PQT, PRS};

use crate::puppet::{DEVICE, Puppet, cap, scalable_ecap};

fn request(page: u64) -> PageRequest {
    PageRequest {
        source: DEVICE,
        pasid: Pasid::new(7),
        address: page << 12,
        read: true,
        write: false,
        execute: false,
        supervisor: false,
        group: (page & 0x1ff) as u16,
        last: true,
    }
}

/// What hardware does: a request at the tail, and the tail moves.
fn arrives(puppet: &Puppet, words: [u64; 4]) {
    let tail = puppet.read64(PQT.offset());
    for (i, word) in (0..).zip(words) {
        puppet.memory.write(
            puppet.read64(PQA.offset()) + tail + 8 * i,
            Width::Eight,
            word,
        );
    }
    puppet.set64(PQT.offset(), (tail + 32) % 4096);
    puppet.set32(PRS.offset(), 1);
}

#[test]
fn requests_come_in_order_and_the_ring_wraps() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut queue = unit.enable_page_requests(None).unwrap();
    assert_eq!(unit.poll_page_request(&mut queue), Polled::Empty);
    for page in 0..300 {
        arrives(&puppet, request(page).encode());
        if page % 3 == 2 {
            for late in page - 2..=page {
                let polled = unit.poll_page_request(&mut queue);
                assert_eq!(polled, Polled::Request(request(late)));
            }
            assert_eq!(unit.poll_page_request(&mut queue), Polled::Empty);
            assert_eq!(puppet.read64(PQH.offset()), (page + 1) * 32 % 4096);
            assert_eq!(puppet.read32(PRS.offset()), 0, "pending is cleared");
        }
    }
}

#[test]
fn strange_requests_are_skipped_and_overflow_is_told_once() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut queue = unit.enable_page_requests(None).unwrap();
    arrives(&puppet, [0x77, 0, 0, 0]);
    arrives(&puppet, request(1).encode());
    puppet.set32(PRS.offset(), 3);
    let unknown = Polled::Unknown(PageRequestError::Kind { kind: 0x77 });
    assert_eq!(unit.poll_page_request(&mut queue), unknown);
    assert_eq!(
        unit.poll_page_request(&mut queue),
        Polled::Request(request(1))
    );
    assert_eq!(unit.poll_page_request(&mut queue), Polled::Overflow);
    assert_eq!(unit.poll_page_request(&mut queue), Polled::Empty);
    // A tail that points nowhere is taken into the ring.
    puppet.set64(PQT.offset(), 0x7ffe0);
    for _ in 0..200 {
        if unit.poll_page_request(&mut queue) == Polled::Empty {
            return;
        }
    }
    panic!("polling does not end");
}

#[test]
fn a_group_is_answered_through_the_queue() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let response = request(9).response(ResponseCode::SUCCESS);
    unit.respond(response).unwrap();
    assert_eq!(
        puppet.take_asked(),
        [Descriptor::PageGroupResponse(response)]
    );
    let ring = RingMemory {
        address: 0x1001,
        size: 0,
    };
    let refused = unit.enable_page_requests(Some(ring)).map(drop).unwrap_err();
    assert_eq!(
        refused,
        DriverError::BadTable {
            address: 0x1001,
            size: 0
        }
    );
}
