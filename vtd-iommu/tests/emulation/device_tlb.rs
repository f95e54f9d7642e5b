// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translation requests, translated requests, page requests, and the answers to them.

use hvkit_vtd_iommu::emulation::fake::Event;
use hvkit_vtd_iommu::emulation::{
    Access, Fate, Fetch, Options, Privilege, Process, Queued, Request, Wanted,
};
use hvkit_vtd_iommu::spec::Pasid;
use hvkit_vtd_iommu::spec::page_request::{PageRequest, ResponseCode};

use super::machine::*;

const REQUESTS: u64 = 0xa000;

fn options() -> Options {
    let mut options = Options::new(39).with_device_tlbs();
    options.extended = options.extended.with_no_write_flag(true);
    options
}

fn legacy(kind: u64) -> Machine {
    legacy_of(options(), kind)
}

fn legacy_of(options: Options, kind: u64) -> Machine {
    let machine = Machine::legacy(options);
    machine.ram.set(ENTRY, TOP | kind << 2 | 1);
    machine
}

/// Rights, or the reason's code.
fn ask(machine: &mut Machine, address: u64, wanted: Wanted) -> Result<(bool, bool), u8> {
    let request = Request::new(DEVICE, address, Access::Read);
    let done = machine
        .unit
        .translate_for_device(&machine.ram, &mut machine.host, &request, wanted);
    done.map(|to| (to.reads, to.writes)).map_err(|r| r.reason.0)
}

#[test]
fn a_device_learns_what_it_may() {
    let mut machine = legacy(1);
    machine.ram.set(LEAVES + 16, (DATA + 0x2000) | 1);
    let both = Wanted::ReadsAndWrites;
    assert_eq!(ask(&mut machine, 0x1000, both), Ok((true, true)));
    assert_eq!(ask(&mut machine, 0x1000, Wanted::Reads), Ok((true, false)));
    assert_eq!(ask(&mut machine, 0x2000, both), Ok((true, false)));
    // What is not there is no fault.
    assert_eq!(ask(&mut machine, 0x10_0000, both), Ok((false, false)));
    assert_eq!(machine.unit.read32(0x34), 0);
    // Reserved bits are; AT 1 is in the record.
    machine.ram.set(LEAVES + 24, 1 << 50 | 3);
    assert_eq!(ask(&mut machine, 0x3000, both), Err(0xc));
    assert_eq!(machine.unit.read64(0x228), 0x9000_000c_0000_0018 | 1 << 62);
    assert_eq!(ask(&mut legacy(0), 0x1000, both), Err(0xd));
}

/// "Remapping hardware not supporting no-write-flag (NWFS=0) ignores value of NW field".
#[test]
fn a_unit_that_has_no_such_flag_ignores_it() {
    let mut machine = legacy_of(Options::new(39).with_device_tlbs(), 1);
    assert_eq!(ask(&mut machine, 0x1000, Wanted::Reads), Ok((true, true)));
}

/// A device with DTE, in scalable mode: PASID 0 through the second stage, 1 through a first stage of nothing, and
/// no PASID 2. `context` is the first word of its context entry.
fn scalable(context: u64) -> Machine {
    let mut machine = Machine::new(Options::new(39).with_scalable_mode().with_device_tlbs());
    machine.ram.set(ROOT, CONTEXT | 1);
    machine.ram.set(CONTEXT + 0x18 * 32, context);
    machine.ram.set(0x8000, 0x9001);
    machine.second_stage();
    // P, PGTT and AW; DID. The first stage has the table in its third word.
    machine.ram.set_all(0x9000, &[TOP | 2 << 6 | 1 << 2 | 1, 7]);
    machine
        .ram
        .set_all(0x9040, &[1 << 6 | 1 << 2 | 1, 8, 0xb000]);
    machine.turn_on(ROOT | 1 << 10);
    machine
}

/// P, DTE, PASIDE; the directory.
const CONTEXT_WORD: u64 = 0x800d;

fn ask_as(
    machine: &mut Machine,
    pasid: u32,
    privilege: Privilege,
    fetch: Fetch,
) -> Result<(bool, bool), u8> {
    let process = Process {
        pasid: Pasid::new(pasid).unwrap(),
        privilege,
        fetch,
    };
    let request = Request::new(DEVICE, 0x1000, Access::Read).with_process(process);
    let (ram, host) = (&machine.ram, &mut machine.host);
    let both = Wanted::ReadsAndWrites;
    let done = machine.unit.translate_for_device(ram, host, &request, both);
    done.map(|to| (to.reads, to.writes)).map_err(|r| r.reason.0)
}

/// "Fault Conditions and Remapping Hardware Behavior for Various Requests": translation requests are answered with
/// neither right, and nothing is recorded, where others are refused.
#[test]
fn what_is_not_to_be_had_is_answered_with_nothing() {
    let nothing = Ok((false, false));
    let (user, supervisor) = (Privilege::User, Privilege::Supervisor);
    let mut machine = scalable(CONTEXT_WORD);
    // No SRE, no ERE, no page, no PASID, no directory entry.
    for (pasid, privilege, fetch) in [
        (1, supervisor, Fetch::Data),
        (1, user, Fetch::Code),
        (1, user, Fetch::Data),
        (2, user, Fetch::Data),
        (64, user, Fetch::Data),
    ] {
        let told = ask_as(&mut machine, pasid, privilege, fetch);
        assert_eq!(told, nothing, "{pasid} {privilege:?} {fetch:?}");
    }
    // A reserved bit of the first stage; one that is not canonical, one that is too wide.
    machine.ram.set(0xb000, 0x81);
    assert_eq!(ask_as(&mut machine, 1, user, Fetch::Data), nothing);
    let both = Wanted::ReadsAndWrites;
    assert_eq!(ask(&mut machine, 1 << 39, both), nothing);
    assert_eq!(ask(&mut legacy(1), 1 << 39, both), nothing);
    assert_eq!(machine.unit.read32(0x34), 0);
    // Tables that are wrong are told of.
    machine.ram.set(LEAVES + 8, 1 << 50 | 3);
    assert_eq!(ask(&mut machine, 0x1000, both), Err(0x7a));
    assert_ne!(machine.unit.read32(0x34), 0);
    // Without DTE the PASID's entry is not looked at.
    let mut machine = scalable(0x8009);
    for pasid in [1, 2, 64] {
        assert_eq!(ask_as(&mut machine, pasid, user, Fetch::Data), Err(0x44));
    }
}

/// "Handling of Translated Requests", "Handling of ATS Protocol Errors".
#[test]
fn translated_requests_reach_no_interrupts_and_have_no_pasid() {
    for (mut machine, reason) in [(legacy(1), 0x0e), (scalable(CONTEXT_WORD), 0x87)] {
        let unit = &mut machine.unit;
        let mut admit = |request| {
            let done = unit.admit_translated(&machine.ram, &mut machine.host, &request);
            done.map(|to| (to.address, to.page_bits))
        };
        for (address, admitted) in [
            (0xfedf_ffff, true),
            (0xfee0_0000, false),
            (0xfeef_fffc, false),
            (0xfef0_0000, true),
        ] {
            let done = admit(Request::new(DEVICE, address, Access::Write));
            match done {
                Ok(to) => assert_eq!((to, admitted), ((address, 12), true)),
                Err(refused) => assert_eq!((refused.reason.0, admitted), (reason, false)),
            }
        }
        let process = Process::user(Pasid::new(1).unwrap());
        let request = Request::new(DEVICE, 0x1000, Access::Write).with_process(process);
        assert_eq!(admit(request).unwrap_err().fate, Fate::Silent);
    }
    // The fault is recorded, AT 2.
    let mut machine = legacy(1);
    let request = Request::new(DEVICE, 0xfee0_0000, Access::Write);
    let unit = &mut machine.unit;
    let refused = unit.admit_translated(&machine.ram, &mut machine.host, &request);
    assert_eq!(refused.unwrap_err().fate, Fate::Recorded(0));
    assert_eq!(machine.unit.read64(0x228), 0xa000_000e_0000_0018);
}

/// With translation off, and in abort-DMA mode, nobody is answered and nothing recorded.
#[test]
fn a_unit_that_is_off_is_silent() {
    let off = Machine::new(options());
    let mut aborting = scalable(CONTEXT_WORD);
    aborting.turn_on(ROOT | 3 << 10);
    for mut machine in [off, aborting] {
        let request = Request::new(DEVICE, 0x1000, Access::Read);
        let (ram, host) = (&machine.ram, &mut machine.host);
        let unit = &mut machine.unit;
        let both = Wanted::ReadsAndWrites;
        let asked = unit.translate_for_device(ram, host, &request, both);
        assert_eq!(asked.unwrap_err().fate, Fate::Silent);
        let translated = unit.admit_translated(ram, host, &request);
        assert_eq!(translated.unwrap_err().fate, Fate::Silent);
        assert_eq!(unit.read32(0x34), 0);
        let record = unit.read64(0x228);
        assert_eq!(record, 0);
    }
}

#[test]
fn translated_requests_need_leave() {
    let request = Request::new(DEVICE, 0x5_4321, Access::Write);
    let mut machine = legacy(1);
    let unit = &mut machine.unit;
    let to = unit.admit_translated(&machine.ram, &mut machine.host, &request);
    assert_eq!(to.unwrap().address, 0x5_4321);
    let wide = Request::new(DEVICE, 1 << 39, Access::Write);
    let refused = unit.admit_translated(&machine.ram, &mut machine.host, &wide);
    assert_eq!(refused.unwrap_err().reason.0, 4);
    let mut machine = legacy(0);
    let unit = &mut machine.unit;
    let refused = unit.admit_translated(&machine.ram, &mut machine.host, &request);
    assert_eq!(refused.unwrap_err().reason.0, 0xd);
}

#[test]
fn device_tlbs_are_invalidated_and_may_not_answer() {
    let mut machine = legacy(1);
    machine.queue_on(0);
    machine.submit(&[[0x18_0000_0003, 0x1000], [0x1_0000_0025, STATUS]]);
    let events = machine.host.take();
    assert!(matches!(events[..], [Event::Device(tlb, None, range)]
        if tlb.source == DEVICE && range.address == 0x1000 && range.order == 0));
    assert_eq!(machine.ram.get(STATUS), 1);
    // ITE: the wait behind it is aborted, and what is behind that is not fetched.
    machine.host.silent = true;
    let wait = |data: u64| [data << 32 | 0x25, STATUS];
    machine.submit(&[[0x18_0000_0003, 0x1000], [0x12, 0], wait(2), wait(3)]);
    assert_eq!(machine.ram.get(STATUS), 1);
    assert_eq!(machine.unit.read32(0x34), 0x40);
    assert_eq!(machine.unit.read64(0xb0), 0x18 << 32);
    assert_eq!(machine.unit.read64(0x80), 5 * 16, "behind the aborted wait");
    assert_eq!(machine.host.take().len(), 1);
    // Cleared, it goes on there: neither the invalidation nor the aborted wait is done again.
    machine.write32(0x34, 0x40);
    assert_eq!(machine.ram.get(STATUS), 3);
    assert_eq!(machine.host.take(), []);
    assert_eq!(machine.unit.read32(0x34), 0);
    // Without a wait it is told of when there is nothing left to fetch.
    machine.submit(&[[0x18_0000_0003, 0x1000]]);
    assert_eq!(machine.unit.read32(0x34), 0x40);
    assert_eq!(machine.unit.read64(0x80), 7 * 16);
    machine.write32(0x34, 0x40);
    // An error behind it stops the queue too.
    machine.submit(&[[0x18_0000_0003, 0x1000], [0xf, 0]]);
    assert_eq!(machine.unit.read32(0x34), 0x50);
    assert_eq!(machine.unit.read64(0x80), 8 * 16);
}

fn asked(last: bool) -> PageRequest {
    PageRequest {
        source: DEVICE,
        pasid: None,
        address: 0x5000,
        read: true,
        write: false,
        execute: false,
        supervisor: false,
        group: 3,
        last,
    }
}

/// A machine whose device may ask for pages.
fn asking() -> Machine {
    let options = Options::new(39).with_scalable_mode().with_device_tlbs();
    let mut machine = Machine::new(options);
    machine.ram.set(ROOT, CONTEXT | 1);
    // PRE, DTE, PASIDE; a PASID entry of pass-through.
    machine.ram.set(CONTEXT + 0x18 * 32, 0x801d);
    machine.ram.set(0x8000, 0x9001);
    machine.ram.set_all(0x9000, &[0x105, 7]);
    machine.turn_on(ROOT | 1 << 10);
    machine
}

#[test]
fn page_requests_wait_in_their_queue() {
    let mut machine = asking();
    machine.write64(0xd0, REQUESTS);
    machine.write32(0xe0, 0);
    let ask = |machine: &mut Machine, request| {
        let done = machine
            .unit
            .page_request(&machine.ram, &mut machine.host, request);
        done.map_err(|refused| refused.reason.0)
    };
    assert_eq!(ask(&mut machine, asked(true)), Ok(Queued::Waiting));
    assert_eq!(machine.ram.get(REQUESTS), 0x18_0001);
    assert_eq!(machine.ram.get(REQUESTS + 8), 0x501d);
    assert_eq!(
        (machine.unit.read64(0xc8), machine.unit.read32(0xdc)),
        (0x20, 1)
    );
    assert!(matches!(machine.host.take()[..], [Event::Message(_)]));
    // 127 fit; then PRO, and the device is told to try again.
    for _ in 1..127 {
        assert_eq!(ask(&mut machine, asked(false)), Ok(Queued::Waiting));
    }
    assert_eq!(ask(&mut machine, asked(false)), Ok(Queued::Discarded));
    assert_eq!(machine.unit.read32(0xdc), 3);
    assert!(machine.host.take().is_empty());
    assert_eq!(ask(&mut machine, asked(true)), Ok(Queued::Discarded));
    let again = asked(true).response(ResponseCode::SUCCESS);
    assert_eq!(machine.host.take(), [Event::Response(again)]);
    // The driver reads, moves the head, clears both.
    machine.write64(0xc0, 0xfe0);
    machine.write32(0xdc, 3);
    assert_eq!(ask(&mut machine, asked(false)), Ok(Queued::Waiting));
    // Its answer comes through the invalidation queue.
    machine.queue_on(1);
    machine.ram.set_all(QUEUE, &[0x18_0009, 3 << 3 | 4, 0, 0]);
    machine.write64(0x88, 0x20);
    let events = machine.host.take();
    assert!(matches!(events.last(), Some(Event::Response(r)) if r.group == 3 && r.last));
    // Without PRE, and in legacy mode.
    machine.ram.set(CONTEXT + 0x18 * 32, 0x800d);
    machine.write64(0x20, ROOT | 1 << 10);
    machine.write32(0x18, 0xc400_0000);
    assert_eq!(ask(&mut machine, asked(false)), Err(0x47));
    assert_eq!(
        machine.unit.read64(0x220),
        0x5000,
        "the record has the page"
    );
    assert_eq!(ask(&mut legacy(1), asked(false)), Err(0x32));
}

/// "Page Request Event Control Register", IP: it goes when the message is sent, or when software clears all of
/// "Page Request Status Register"; with one of two conditions left the message still comes.
#[test]
fn only_clearing_every_condition_withdraws_the_page_requests_event() {
    for (written, sent) in [(0, 1), (1, 1), (2, 1), (3, 0)] {
        let mut machine = asking();
        machine.write64(0xd0, REQUESTS);
        assert_eq!(machine.unit.read32(0xe0), 1 << 31);
        let ask = |machine: &mut Machine| {
            let (ram, host) = (&machine.ram, &mut machine.host);
            machine.unit.page_request(ram, host, asked(false)).unwrap()
        };
        for _ in 0..127 {
            assert_eq!(ask(&mut machine), Queued::Waiting);
        }
        assert_eq!(ask(&mut machine), Queued::Discarded);
        assert_eq!(machine.unit.read32(0xdc), 3);
        assert_eq!(machine.unit.read32(0xe0), 3 << 30);
        machine.write32(0xdc, written);
        machine.write32(0xd8, !0);
        machine.write32(0xe0, 0);
        assert_eq!(machine.host.take().len(), sent, "{written}");
    }
}
