// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scalable mode: PASIDs, both stages, nested.

use hvkit_vtd_iommu::emulation::{Access, Caching, Fetch, Options, Privilege, Process, Request};
use hvkit_vtd_iommu::spec::Pasid;
use hvkit_vtd_iommu::spec::context::AddressWidth;
use hvkit_vtd_iommu::spec::pasid::PasidEntry;

use super::machine::*;

const DIRECTORY: u64 = 0x8000;
const PASIDS: u64 = 0x9000;
/// The scalable-mode context entry of the device.
const ENTRY: u64 = CONTEXT + 0x18 * 32;
/// A first-stage table: four levels of it, then the data.
const FIRST: u64 = 0xa000;
const FIRST_LEAVES: u64 = 0xd000;

fn options() -> Options {
    Options::new(39)
        .with_scalable_mode()
        .with_caching(Caching::Never)
}

/// PASID 0 through the second stage, 1 through the first, 2 nested, 3 pass-through; PASID 70 in another table.
fn machine(options: Options) -> Machine {
    let mut machine = Machine::new(options);
    let ram = &machine.ram;
    ram.set(ROOT, CONTEXT | 1);
    ram.set_all(ENTRY, &[DIRECTORY | 9, 0, 0, 0]);
    ram.set(DIRECTORY, PASIDS | 1);
    machine.second_stage();
    // First stage: FIRST to FIRST_LEAVES, then pages 1 to 8 of guest-physical memory, which are the second stage's.
    for table in 0..3 {
        ram.set(FIRST + 0x1000 * table, (FIRST + 0x1000 * (table + 1)) | 7);
    }
    for page in 1..9 {
        ram.set(FIRST_LEAVES + 8 * page, page << 12 | 7);
    }
    // The tables themselves, where the second stage finds them.
    for page in 10..14 {
        ram.set(LEAVES + 8 * page, page << 12 | 3);
    }
    let narrow = AddressWidth::BITS_39;
    for (pasid, entry) in [
        (0, PasidEntry::second_stage(7, narrow, TOP)),
        (1, PasidEntry::first_stage(8, FIRST)),
        (2, PasidEntry::nested(9, FIRST, narrow, TOP)),
        (3, PasidEntry::pass_through(10, narrow)),
    ] {
        ram.set_all(PASIDS + 64 * pasid, &entry.0);
    }
    machine.turn_on(ROOT | 1 << 10);
    machine
}

/// What reading page 1 with `pasid` comes to after `word` was put at `at`.
fn with(pasid: u32, at: u64, word: u64) -> Result<u64, u8> {
    let mut machine = machine(options());
    machine.ram.set(at, word);
    machine.dma_with(pasid, 0x1008, Access::Read)
}

#[test]
fn each_kind_of_pasid_leads_where_it_should() {
    let mut machine = machine(options());
    assert_eq!(machine.read(0x1008), Ok(DATA + 0x1008));
    for (pasid, to) in [
        (0, DATA + 0x1008),
        (1, 0x1008),
        (2, DATA + 0x1008),
        (3, 0x1008),
    ] {
        assert_eq!(
            machine.dma_with(pasid, 0x1008, Access::Write),
            Ok(to),
            "{pasid}"
        );
    }
    // RID_PASID.
    machine.ram.set(ENTRY + 8, 1);
    assert_eq!(machine.read(0x1008), Ok(0x1008));
}

#[test]
fn the_way_to_the_pasid_entry() {
    assert_eq!(with(1, ROOT, 0), Err(0x39));
    assert_eq!(with(1, ROOT, CONTEXT | 3), Err(0x3a));
    assert_eq!(with(1, ROOT, 0x10_0001), Err(0x40));
    assert_eq!(with(1, ENTRY, 0), Err(0x41));
    assert_eq!(with(1, ENTRY, DIRECTORY | 0x109), Err(0x42));
    assert_eq!(with(1, ENTRY + 16, 1), Err(0x42));
    // DTE without device TLBs.
    assert_eq!(with(1, ENTRY, DIRECTORY | 0xd), Err(0x43));
    assert_eq!(with(1, ENTRY, DIRECTORY | 1), Err(0x45));
    assert_eq!(with(8192, ENTRY, DIRECTORY | 9), Err(0x46));
    assert_eq!(with(1, ENTRY, 0x10_0009), Err(0x50));
    assert_eq!(with(70, DIRECTORY + 8, 0), Err(0x51));
    assert_eq!(with(70, DIRECTORY + 8, PASIDS | 5), Err(0x52));
    assert_eq!(with(70, DIRECTORY + 8, 0x10_0001), Err(0x58));
    assert_eq!(with(4, DIRECTORY + 8, 0), Err(0x59));
    assert_eq!(with(1, PASIDS + 64 + 24, 1), Err(0x5a));
    // PGTT 0, FSPM 2, a width that the unit has not.
    assert_eq!(with(1, PASIDS + 64, 1), Err(0x5b));
    assert_eq!(with(1, PASIDS + 64 + 16, FIRST | 8), Err(0x5b));
    assert_eq!(with(0, PASIDS, TOP | 0x91), Err(0x5b));
    // RID_PASID outside of the directory.
    let mut machine = machine(options());
    machine.ram.set(ENTRY + 8, 8192);
    assert_eq!(machine.read(0x1000), Err(0x48));
}

#[test]
fn second_stage_has_reasons_of_its_own() {
    assert_eq!(with(0, LEAVES + 8, 0), Err(0x79));
    assert_eq!(with(0, LEAVES + 8, (DATA + 0x1000) | 2), Err(0x86));
    assert_eq!(
        with(0, LEAVES + 8, (DATA + 0x1000) | 3 | 1 << 51),
        Err(0x7a)
    );
    assert_eq!(with(0, TOP, 0x10_0003), Err(0x78));
    assert_eq!(with(0, PASIDS, 0x10_0085), Err(0x7b));
    let mut machine = machine(options());
    assert_eq!(machine.dma_with(0, 1 << 39, Access::Read), Err(0x83));
    machine.ram.set(LEAVES + 8, (DATA + 0x1000) | 1);
    assert_eq!(machine.dma_with(0, 0x1000, Access::Write), Err(0x85));
}

#[test]
fn first_stage_has_reasons_of_its_own() {
    assert_eq!(with(1, FIRST_LEAVES + 8, 0), Err(0x71));
    assert_eq!(with(1, FIRST_LEAVES + 8, 0x1007 | 1 << 51), Err(0x72));
    assert_eq!(with(1, FIRST_LEAVES + 8, 0x1003), Err(0x81));
    assert_eq!(with(1, FIRST, 0x10_0007), Err(0x70));
    assert_eq!(with(1, PASIDS + 64 + 16, 0x10_0000), Err(0x73));
    let mut machine = machine(options());
    machine.ram.set(FIRST_LEAVES + 8, 0x1005);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x1000));
    assert_eq!(machine.dma_with(1, 0x1000, Access::Write), Err(0x85));
    assert_eq!(machine.dma_with(1, 1 << 47, Access::Read), Err(0x80));
    machine.ram.set(FIRST + 511 * 8, (FIRST + 0x1000) | 7);
    assert_eq!(
        machine.dma_with(1, 0xffff_ff80_0000_1000, Access::Read),
        Ok(0x1000)
    );
}

#[test]
fn nested_translation_checks_both() {
    let machine_with = |at, word| {
        let machine = machine(options());
        machine.ram.set(at, word);
        machine
    };
    // Guest-physical page 1 cannot be read, written.
    let mut machine = machine_with(LEAVES + 8, 0);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x79));
    let mut machine = machine_with(LEAVES + 8, (DATA + 0x1000) | 1);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Ok(DATA + 0x1000));
    assert_eq!(machine.dma_with(2, 0x1000, Access::Write), Err(0x85));
    // The first stage's own tables: the top one, another one; accessed flags need writing.
    let mut machine = machine_with(LEAVES + 10 * 8, 0);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x75));
    let mut machine = machine_with(LEAVES + 11 * 8, 0);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x76));
    let mut machine = machine_with(LEAVES + 13 * 8, 0xd001);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x77));
    let mut machine = machine_with(FIRST, 0x40_0000_0000 << 1 | 7);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x72));
    // What the first stage yields is wider than the second translates.
    let options = Options {
        host_bits: 46,
        ..options()
    };
    let mut machine = self::machine(options);
    machine.ram.set(FIRST_LEAVES + 8, 1 << 40 | 7);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x84));
    machine.ram.set(FIRST, 1 << 40 | 7);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Err(0x74));
}

#[test]
fn flags_are_set_as_accesses_need() {
    let mut machine = machine(options());
    machine.dma_with(1, 0x1000, Access::Read).unwrap();
    assert_eq!(machine.ram.get(FIRST), (FIRST + 0x1000) | 0x27);
    assert_eq!(machine.ram.get(FIRST_LEAVES + 8), 0x1027);
    machine.dma_with(1, 0x1000, Access::Write).unwrap();
    assert_eq!(machine.ram.get(FIRST_LEAVES + 8), 0x1067);
    // SSADE: bits 8 and 9 of the second stage. EAFE: bit 10 of the first.
    machine.ram.set(PASIDS, TOP | 0x285);
    machine.dma_with(0, 0x2000, Access::Read).unwrap();
    assert_eq!(machine.ram.get(LEAVES + 16), (DATA + 0x2000) | 0x103);
    machine.dma_with(0, 0x2000, Access::Write).unwrap();
    assert_eq!(machine.ram.get(LEAVES + 16), (DATA + 0x2000) | 0x303);
    machine.ram.set(PASIDS + 64 + 16, FIRST | 0x80);
    machine.dma_with(1, 0x3000, Access::Read).unwrap();
    assert_eq!(machine.ram.get(FIRST_LEAVES + 24), 0x3427);
}

#[test]
fn a_kept_read_does_not_hide_a_first_write() {
    let mut machine = machine(options().with_caching(Caching::UntilInvalidated));
    machine.dma_with(1, 0x1000, Access::Read).unwrap();
    assert_eq!(machine.ram.get(FIRST_LEAVES + 8), 0x1027);
    machine.dma_with(1, 0x1000, Access::Write).unwrap();
    assert_eq!(machine.ram.get(FIRST_LEAVES + 8), 0x1067);
}

#[test]
fn privilege_and_code() {
    let mut machine = machine(options());
    let pasid = Pasid::new(1).unwrap();
    let ask = |machine: &mut Machine, privilege, fetch, access| {
        let process = Process {
            pasid,
            privilege,
            fetch,
        };
        let request = Request::new(DEVICE, 0x1000, access).with_process(process);
        machine
            .request(request)
            .map(|to| to.address)
            .map_err(|r| r.reason.0)
    };
    let (user, supervisor) = (Privilege::User, Privilege::Supervisor);
    assert_eq!(
        ask(&mut machine, supervisor, Fetch::Data, Access::Read),
        Err(0x5d)
    );
    assert_eq!(
        ask(&mut machine, user, Fetch::Code, Access::Read),
        Err(0x5c)
    );
    // SRE and ERE.
    machine.ram.set(PASIDS + 64 + 16, FIRST | 3);
    machine.ram.set(FIRST_LEAVES + 8, 0x1001);
    assert_eq!(
        ask(&mut machine, user, Fetch::Data, Access::Read),
        Err(0x81)
    );
    assert_eq!(
        ask(&mut machine, supervisor, Fetch::Code, Access::Read),
        Ok(0x1000)
    );
    // Without WPE supervisors write where they may only read.
    assert_eq!(
        ask(&mut machine, supervisor, Fetch::Data, Access::Write),
        Ok(0x1000)
    );
    machine.ram.set(PASIDS + 64 + 16, FIRST | 0x13);
    assert_eq!(
        ask(&mut machine, supervisor, Fetch::Data, Access::Write),
        Err(0x85)
    );
    // NXE and XD; SMEP and a user's page.
    machine.ram.set(PASIDS + 64 + 16, FIRST | 0x23);
    machine.ram.set(FIRST_LEAVES + 8, 1 << 63 | 0x1007);
    assert_eq!(
        ask(&mut machine, user, Fetch::Code, Access::Read),
        Err(0x82)
    );
    machine.ram.set(PASIDS + 64 + 16, FIRST | 0x43);
    machine.ram.set(FIRST_LEAVES + 8, 0x1007);
    assert_eq!(
        ask(&mut machine, user, Fetch::Code, Access::Read),
        Ok(0x1000)
    );
    assert_eq!(
        ask(&mut machine, supervisor, Fetch::Code, Access::Read),
        Err(0x82)
    );
}

#[test]
fn a_record_names_the_pasid() {
    let mut machine = machine(options());
    assert_eq!(machine.dma_with(1, 0x7000_0000, Access::Read), Err(0x71));
    assert_eq!(machine.unit.read64(0x220), 0x7000_0000);
    // T1, PV 1, FR 71h, PP, SID.
    assert_eq!(machine.unit.read64(0x228), 0xc000_0171_8000_0018);
}

#[test]
fn invalidations_by_pasid() {
    let mut machine = machine(options().with_caching(Caching::UntilInvalidated));
    machine.queue_on(1);
    let all = [(1, 0x1000), (2, DATA + 0x1000)];
    for (pasid, to) in all {
        assert_eq!(machine.dma_with(pasid, 0x1000, Access::Read), Ok(to));
    }
    machine.ram.set(FIRST_LEAVES + 8, 0x2007);
    for (pasid, to) in all {
        assert_eq!(machine.dma_with(pasid, 0x1000, Access::Read), Ok(to));
    }
    // By page, of PASID 1 of domain 8: nobody else's.
    machine.submit(&[[0x1_0008_0036, 0x1000]]);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x2000));
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Ok(DATA + 0x1000));
    // All of PASID 2 of domain 9.
    machine.submit(&[[0x2_0009_0026, 0]]);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Ok(DATA + 0x2000));
    // The stage below changes: by domain, every PASID of it is looked up again.
    machine.ram.set(LEAVES + 16, (DATA + 0x5000) | 3);
    machine.submit(&[[0x9_0032, 0x2000]]);
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Ok(DATA + 0x5000));
    // PASID entries themselves.
    machine.ram.set(PASIDS + 64, 0);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x2000));
    machine.submit(&[[0x1_0008_0017, 0]]);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Err(0x59));
}

#[test]
fn modes_that_the_root_pointer_may_have() {
    let mut machine = machine(options());
    machine.turn_on(ROOT | 3 << 10);
    assert_eq!(machine.read(0x1000), Err(0x30));
    assert_eq!(machine.unit.read32(0x34), 0, "abort-DMA mode is silent");
    machine.turn_on(ROOT | 2 << 10);
    assert_eq!(machine.read(0x1000), Err(0x30));
    assert_eq!(machine.unit.read32(0x34), 2);
}

#[test]
fn five_levels() {
    let mut options = options();
    options.host_bits = 46;
    let mut machine = machine(options);
    // Second stage of 57 bits.
    machine.ram.set(0xe000, 0xf003);
    machine.ram.set(0xf000, TOP | 3);
    let entry = PasidEntry::second_stage(7, AddressWidth::BITS_57, 0xe000);
    machine.ram.set_all(PASIDS, &entry.0);
    assert_eq!(machine.read(0x1008), Ok(DATA + 0x1008));
    assert_eq!(machine.read(1 << 57), Err(0x83));
    // First stage of 57 bits.
    machine.ram.set(0x1_a000, FIRST | 7);
    machine.ram.set(PASIDS + 64 + 16, 0x1_a004);
    assert_eq!(machine.dma_with(1, 0x1008, Access::Read), Ok(0x1008));
    assert_eq!(machine.dma_with(1, 1 << 47, Access::Read), Err(0x71));
    assert_eq!(machine.dma_with(1, 1 << 56, Access::Read), Err(0x80));
}

/// A kept page is found by 57 bits of its address at most: what lies above must be looked at too, and differently by
/// each stage.
#[test]
fn a_kept_page_is_not_found_by_addresses_that_have_none() {
    let mut machine = machine(options().with_caching(Caching::UntilInvalidated));
    // Second stage: bits above the width are 0.
    for access in [Access::Read, Access::Write] {
        assert_eq!(machine.dma_with(0, 0x1008, access), Ok(DATA + 0x1008));
        for bit in 57..64 {
            assert_eq!(machine.dma_with(0, 0x1008 | 1 << bit, access), Err(0x83));
        }
    }
    // First stage and nested: bits 63:47 are alike. Entry 256 of the first table leads the way of entry 0.
    machine.ram.set(FIRST + 8 * 256, (FIRST + 0x1000) | 7);
    let low = 0x2008;
    let high = 0xffff_8000_0000_2008;
    for (pasid, to) in [(1, low), (2, DATA + low)] {
        for access in [Access::Read, Access::Write] {
            for good in [low, high] {
                assert_eq!(machine.dma_with(pasid, good, access), Ok(to), "{good:#x}");
                for bit in 57..64 {
                    let bad = good ^ 1 << bit;
                    assert_eq!(machine.dma_with(pasid, bad, access), Err(0x80), "{bad:#x}");
                }
                assert_eq!(machine.dma_with(pasid, good, access), Ok(to), "{good:#x}");
            }
        }
    }
}

/// What is kept of a page says nothing of fetches, nor of supervisors under SMEP.
#[test]
fn a_kept_page_is_not_enough_for_code() {
    let pasid = Pasid::new(1).unwrap();
    // NXE and an XD page for users; SMEP and a user's page for supervisors.
    for (controls, leaf, privilege) in [
        (0x23, 1 << 63 | 0x1007, Privilege::User),
        (0x43, 0x1007, Privilege::Supervisor),
    ] {
        let mut machine = machine(options().with_caching(Caching::UntilInvalidated));
        machine.ram.set(PASIDS + 64 + 16, FIRST | controls);
        machine.ram.set(FIRST_LEAVES + 8, leaf);
        let mut ask = |privilege, fetch| {
            let process = Process {
                pasid,
                privilege,
                fetch,
            };
            let request = Request::new(DEVICE, 0x1000, Access::Read).with_process(process);
            let done = machine.request(request);
            done.map(|to| to.address).map_err(|r| r.reason.0)
        };
        for _ in 0..2 {
            assert_eq!(ask(Privilege::User, Fetch::Data), Ok(0x1000));
            assert_eq!(ask(privilege, Fetch::Code), Err(0x82), "{privilege:?}");
        }
    }
}

/// "IOTLB Invalidate": a global one goes for every PASID of every domain.
#[test]
fn a_global_invalidation_forgets_what_each_pasid_had() {
    let mut machine = machine(options().with_caching(Caching::UntilInvalidated));
    machine.queue_on(1);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x1000));
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Ok(DATA + 0x1000));
    machine.ram.set(FIRST_LEAVES + 8, 0x2007);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x1000));
    machine.ram.set_all(QUEUE, &[0x12, 0, 0, 0]);
    machine.write64(0x88, 0x20);
    assert_eq!(machine.unit.read64(0x80), 0x20, "it was done");
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x2000));
    assert_eq!(machine.dma_with(2, 0x1000, Access::Read), Ok(DATA + 0x2000));
}

/// "Context-cache Invalidate Descriptor": in scalable mode a domain-selective one is global. Source-ids tag the cache.
#[test]
fn context_entries_have_no_domain() {
    let mut machine = machine(options().with_caching(Caching::UntilInvalidated));
    machine.queue_on(1);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x1000));
    machine.ram.set(ENTRY, 0);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x1000));
    // The PASID's entry has domain 8.
    machine.submit(&[[0x55_0021, 0], [0x37, 0], [0x12, 0]]);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Err(0x41));
    // Alone, too.
    machine.ram.set(ENTRY, DIRECTORY | 9);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Ok(0x1000));
    machine.ram.set(ENTRY, 0);
    machine.submit(&[[0x55_0021, 0]]);
    assert_eq!(machine.dma_with(1, 0x1000, Access::Read), Err(0x41));
}
