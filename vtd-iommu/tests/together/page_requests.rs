// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device asks for pages that are not there; the driver maps them and answers; the device tries again.

use hvkit_vtd_iommu::driver::{Attachment, Options, Polled};
use hvkit_vtd_iommu::emulation::fake::Event;
use hvkit_vtd_iommu::emulation::{self, Queued};
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::invalidation::DeviceTlb;
use hvkit_vtd_iommu::spec::page_request::{PageGroupResponse, PageRequest, ResponseCode};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::FirstStageAttributes;

use crate::machine::{DATA, DEVICE, Inside, Machine};

const TLB: DeviceTlb = DeviceTlb {
    source: DEVICE,
    physical_source: RequesterId(0),
    max_pending: 0,
};

fn machine() -> Machine {
    Machine::new(
        emulation::Options::new(46)
            .with_scalable_mode()
            .with_device_tlbs(),
    )
}

fn process() -> Pasid {
    Pasid::new(7).unwrap()
}

/// A device asks for a page, for writing.
fn asked(page: u64, group: u16, last: bool) -> PageRequest {
    PageRequest {
        source: DEVICE,
        pasid: Some(process()),
        address: page,
        read: true,
        write: true,
        execute: false,
        supervisor: false,
        group,
        last,
    }
}

impl Machine {
    fn ask(&self, request: PageRequest) -> Result<Queued, FaultReason> {
        let mut inside = self.inside.lock().unwrap();
        let Inside { unit, world } = &mut *inside;
        let done = unit.page_request(&self.ram, world, request);
        done.map_err(|refused| refused.reason)
    }

    fn told(&self) -> Vec<Event> {
        self.inside.lock().unwrap().world.take()
    }
}

fn responses(events: &[Event]) -> Vec<PageGroupResponse> {
    let response = |event: &Event| match event {
        Event::Response(response) => Some(*response),
        _ => None,
    };
    events.iter().filter_map(response).collect()
}

#[test]
fn a_page_is_mapped_when_a_device_asks_for_it() {
    let machine = machine();
    let mut unit = machine.drive(Options::scalable(46));
    let mut domain = unit.new_first_stage_domain(4).unwrap();
    let device = Attachment::new(DEVICE).with_pasid(process()).with_tlb(TLB);
    unit.attach(&mut domain, device).unwrap();
    let mut queue = unit.enable_page_requests(None).unwrap();
    let page = 0x7fff_1234_5000;
    let refused = machine.write_as(process(), page + 8, 5).unwrap_err();
    assert_eq!(refused.reason, FaultReason::SM_FIRST_STAGE_NOT_PRESENT);

    // Two pages in one group, answered once.
    assert_eq!(machine.ask(asked(page, 3, false)), Ok(Queued::Waiting));
    assert_eq!(
        machine.ask(asked(page + 0x1000, 3, true)),
        Ok(Queued::Waiting)
    );
    machine.told();
    let mut to = DATA;
    loop {
        match unit.poll_page_request(&mut queue) {
            Polled::Request(request) => {
                assert_eq!(request.pasid, Some(process()));
                assert!(request.read && request.write && !request.supervisor);
                let at = request.address;
                let fresh = domain.map(at..at + 0x1000, to, FirstStageAttributes::READ_WRITE);
                unit.publish(&domain, fresh.unwrap()).unwrap();
                to += 0x1000;
                if request.last {
                    let response = request.response(ResponseCode::SUCCESS);
                    unit.respond(response).unwrap();
                }
            }
            Polled::Empty => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(to, DATA + 0x2000, "both were read");
    let [answer] = responses(&machine.told())[..] else {
        panic!("one response for one group");
    };
    assert_eq!((answer.group, answer.code), (3, ResponseCode::SUCCESS));
    assert_eq!((answer.source, answer.pasid), (DEVICE, Some(process())));
    machine.write_as(process(), page + 8, 0x55).unwrap();
    machine.write_as(process(), page + 0x1010, 0x66).unwrap();
    assert_eq!(machine.ram.get(DATA + 8), 0x55);
    assert_eq!(machine.ram.get(DATA + 0x1010), 0x66);
}

#[test]
fn what_finds_no_room_is_told_and_asked_again() {
    let machine = machine();
    let mut unit = machine.drive(Options::scalable(46));
    let mut domain = unit.new_first_stage_domain(4).unwrap();
    let device = Attachment::new(DEVICE).with_pasid(process()).with_tlb(TLB);
    unit.attach(&mut domain, device).unwrap();
    let mut queue = unit.enable_page_requests(None).unwrap();
    let room = 127;
    for page in 0..room {
        let request = asked(page << 12, 1, false);
        assert_eq!(machine.ask(request), Ok(Queued::Waiting));
    }
    machine.told();
    // The device wants an answer to this one, and the unit gives it: to be asked again.
    let lost = asked(room << 12, 2, true);
    assert_eq!(machine.ask(lost), Ok(Queued::Discarded));
    let answers = responses(&machine.told());
    assert_eq!(answers, [lost.response(ResponseCode::SUCCESS)]);

    let mut pages = Vec::new();
    let mut overflows = 0;
    loop {
        match unit.poll_page_request(&mut queue) {
            Polled::Request(request) => pages.push(request.address >> 12),
            Polled::Overflow => overflows += 1,
            Polled::Empty => break,
            Polled::Unknown(error) => panic!("{error}"),
        }
    }
    assert_eq!(pages, (0..room).collect::<Vec<_>>());
    assert_eq!(overflows, 1);
    // Round the ring's end, several times.
    for page in 0..300 {
        assert_eq!(machine.ask(asked(page << 12, 4, true)), Ok(Queued::Waiting));
        let Polled::Request(request) = unit.poll_page_request(&mut queue) else {
            panic!("request {page} is not there");
        };
        assert_eq!((request.address, request.group), (page << 12, 4));
        unit.respond(request.response(ResponseCode::INVALID_REQUEST))
            .unwrap();
    }
    assert_eq!(unit.poll_page_request(&mut queue), Polled::Empty);
    let answers = responses(&machine.told());
    assert_eq!(answers.len(), 300);
    assert!(
        answers
            .iter()
            .all(|one| one.code == ResponseCode::INVALID_REQUEST)
    );
}

#[test]
fn who_was_not_let_may_not_ask() {
    let machine = machine();
    let mut unit = machine.drive(Options::scalable(46));
    let mut domain = unit.new_first_stage_domain(4).unwrap();
    // Without a TLB of its own: no page requests.
    let device = Attachment::new(DEVICE).with_pasid(process());
    unit.attach(&mut domain, device).unwrap();
    let mut queue = unit.enable_page_requests(None).unwrap();
    assert_eq!(
        machine.ask(asked(0x1000, 1, true)),
        Err(FaultReason::SM_PAGE_REQUESTS_DISABLED)
    );
    let stranger = PageRequest {
        source: RequesterId(0x0420),
        ..asked(0x1000, 1, true)
    };
    assert!(machine.ask(stranger).is_err());
    assert_eq!(unit.poll_page_request(&mut queue), Polled::Empty);
    let faults = unit.take_faults().records;
    let [first, second] = faults[..] else {
        panic!("{faults:x?}");
    };
    assert_eq!(first.reason(), FaultReason::SM_PAGE_REQUESTS_DISABLED);
    assert_eq!(
        (first.source(), second.source()),
        (DEVICE, RequesterId(0x0420))
    );
}
