// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty logging: flags, the log, write-protection; at every moment of it, a page is writable or watched.

use std::cell::Cell;

use hvkit_ept::access::{Access, GuestSpace, ShadowStack};
use hvkit_ept::dirty::harvest::{HarvestError, dirty_round};
use hvkit_ept::dirty::write_protect::{self, WriteFault};
use hvkit_ept::marks::Updates;
use hvkit_ept::spec::{Accesses, Controls, EptVpidCap, MemoryType, PageRights, Rights, WalkLength};
use hvkit_ept::{Attributes, Ept, Rule};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{Frames, MapError, Mapper, OwnEntries, Root, Span, Stale, Width, translate};

const CAP: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);

type Table<'a> = Mapper<Ept, &'a FakeTables, &'a FakeTables>;

fn mapper(memory: &FakeTables, controls: Controls) -> Table<'_> {
    let ept = Ept::new(CAP, 46, WalkLength::Four, controls).unwrap();
    Mapper::new(ept, memory, memory).unwrap()
}

/// An INVEPT that counts.
fn flush(count: &Cell<u32>) -> impl FnMut(&Stale) -> Result<(), u8> + '_ {
    move |_| {
        count.set(count.get() + 1);
        Ok(())
    }
}

fn guest_writes(mapper: &Table<'_>, guest_physical: u64) -> bool {
    let space = GuestSpace::new(mapper.format(), mapper.memory(), mapper.root());
    let write = Access::translation(Accesses::WRITE, PageRights::PAGING_OFF);
    let mut updates = Updates::new();
    let granted = space.access_marking(guest_physical, write, &mut updates);
    updates.apply(mapper.memory()).unwrap();
    granted.is_ok()
}

#[test]
fn a_round_finds_what_was_written_and_flushes_once() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory, Controls::ACCESSED_DIRTY);
    mapper.map(0..0x40_0000, 0, Attributes::RAM).unwrap();
    mapper
        .map(0x80_0000..0x80_4000, 0x80_0000, Attributes::RAM)
        .unwrap();
    let flushes = Cell::new(0);
    let round = |span: std::ops::Range<u64>| {
        let mut pages = vec![];
        let count = dirty_round(&mapper, span, &mut flush(&flushes), |marked| {
            assert!(marked.dirty && !marked.accessed);
            pages.push((marked.span.start, marked.span.length));
        });
        assert_eq!(count.unwrap(), pages.len() as u64);
        pages
    };
    assert_eq!(round(0..0x100_0000), []);
    assert_eq!(flushes.get(), 0, "nothing written, nothing flushed");
    for address in [0x1234, 0x80_1000, 0x80_2fff] {
        assert!(guest_writes(&mapper, address));
    }
    let written = [(0, 0x20_0000), (0x80_1000, 0x2000)];
    assert_eq!(
        round(0..0x100_0000),
        written,
        "a large page is dirty as a whole"
    );
    assert_eq!(flushes.get(), 1);
    assert_eq!(round(0..0x100_0000), []);
    assert!(guest_writes(&mapper, 0x80_1000));
    assert_eq!(round(0..0x40_0000), [], "only the range asked for");
    assert_eq!(round(0x80_0000..0x80_4000), [(0x80_1000, 0x1000)]);
}

#[test]
fn a_round_that_fails_says_how() {
    let memory = FakeTables::new();
    let off = mapper(&memory, Controls::empty());
    let flushes = Cell::new(0);
    let none = dirty_round(&off, 0..0x1000, &mut flush(&flushes), |_| ());
    assert!(matches!(none, Err(HarvestError::NoFlags)));
    let mut mapper = mapper(&memory, Controls::ACCESSED_DIRTY);
    mapper.map(0..0x4000, 0, Attributes::RAM).unwrap();
    let bad = dirty_round(&mapper, 0..0x800, &mut flush(&flushes), |_| ());
    assert!(matches!(
        bad,
        Err(HarvestError::Refused(MapError::Unaligned { .. }))
    ));
    assert!(guest_writes(&mapper, 0x1000));
    let mut found = 0;
    let failing = &mut |_: &Stale| Err("no answer");
    let failed = dirty_round(&mapper, 0..0x4000, failing, |_| found += 1);
    let Err(HarvestError::Unsettled(unsettled)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(
        (found, unsettled.stale.spans()),
        (1, &[Span::new(0x1000, 0x1000)][..])
    );
    mapper
        .settle(unsettled.stale, &mut flush(&flushes))
        .unwrap();
    assert_eq!(flushes.get(), 1);
}

#[test]
fn write_protection_watches_each_page_until_it_is_written() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory, Controls::empty());
    let flushes = Cell::new(0);
    mapper
        .map(0..0x20_0000, 0x4000_0000, Attributes::RAM)
        .unwrap();
    let rom = Attributes::RAM.with_rights(Rights::READ | Rights::EXECUTE);
    mapper.map(0x20_0000..0x20_2000, 0x5000_0000, rom).unwrap();
    let stale = write_protect::start(&mut mapper, 0..0x40_0000).unwrap();
    assert_eq!(
        stale.spans(),
        [Span::new(0, 0x20_0000)],
        "read-only pages lost nothing"
    );
    mapper.settle(stale, &mut flush(&flushes)).unwrap();

    assert!(!guest_writes(&mapper, 0x5678));
    let before = memory.in_use();
    let Ok(WriteFault::Dirty { span, stale }) = write_protect::fault(&mut mapper, 0x5678) else {
        panic!("it was protected");
    };
    assert_eq!(span, Span::new(0x5000, 0x1000));
    assert_eq!(memory.in_use(), before + 1, "the large page was cut");
    mapper.settle(stale, &mut flush(&flushes)).unwrap();
    assert!(guest_writes(&mapper, 0x5678) && !guest_writes(&mapper, 0x6000));
    assert_eq!(mapper.translate(0x5678).unwrap().target, 0x4000_5678);
    assert_eq!(
        mapper.translate(0x5678).unwrap().attributes,
        Attributes::RAM
    );

    // Another processor's violation for the same page.
    assert!(matches!(
        write_protect::fault(&mut mapper, 0x5000),
        Ok(WriteFault::Writable)
    ));
    // The next page: no cut, and so nothing owed.
    let Ok(WriteFault::Dirty { stale, .. }) = write_protect::fault(&mut mapper, 0x6000) else {
        panic!("it was protected");
    };
    assert!(stale.is_empty());
    // Not ours: read-only, or not there.
    for address in [0x20_0000, 0x20_3000, 1 << 50] {
        let fault = write_protect::fault(&mut mapper, address);
        assert!(matches!(fault, Ok(WriteFault::NotTracked)), "{address:#x}");
    }

    // The next round: only what was written has to be protected again.
    let stale = write_protect::start(&mut mapper, 0..0x40_0000).unwrap();
    assert_eq!(stale.spans(), [Span::new(0x5000, 0x2000)]);
    mapper.settle(stale, &mut flush(&flushes)).unwrap();
    assert!(!guest_writes(&mapper, 0x5678));

    let stale = write_protect::stop(&mut mapper, 0..0x40_0000).unwrap();
    assert!(stale.is_empty(), "more rights leave nothing stale");
    for page in 0..512 {
        assert!(guest_writes(&mapper, page << 12));
        let attributes = mapper.translate(page << 12).unwrap().attributes;
        assert_eq!(attributes, Attributes::RAM);
    }
    assert!(!guest_writes(&mapper, 0x20_0000));
    assert_eq!(mapper.translate(0x20_0000).unwrap().attributes, rom);
}

/// What is taken away while writes are logged stays away: neither a write nor the end of the log gives it back.
#[test]
fn rights_that_change_meanwhile_are_what_is_left() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory, Controls::empty());
    mapper.map(0..0x4000, 0x4000_0000, Attributes::RAM).unwrap();
    let settle =
        |mapper: &Table<'_>, stale| mapper.settle(stale, &mut flush(&Cell::new(0))).unwrap();
    let stale = write_protect::start(&mut mapper, 0..0x4000).unwrap();
    settle(&mapper, stale);
    // The host revokes the right to write two pages, and the right to execute the third, as far as it goes.
    let read_only = Rights::READ | Rights::EXECUTE;
    let stale = mapper
        .protect(0..0x2000, |page| page.with_rights(read_only))
        .unwrap();
    settle(&mapper, stale);
    let data = |page: Attributes| page.with_rights(page.full_rights() - Rights::EXECUTE);
    let stale = mapper.protect(0x2000..0x3000, data).unwrap();
    settle(&mapper, stale);
    // And gives the fourth all, which it has already: it is still watched.
    let stale = mapper
        .protect(0x3000..0x4000, |page| {
            page.with_rights(Rights::READ_WRITE_EXECUTE)
        })
        .unwrap();
    settle(&mapper, stale);
    assert!(!guest_writes(&mapper, 0));
    let fault = write_protect::fault(&mut mapper, 0);
    assert!(matches!(fault, Ok(WriteFault::NotTracked)));
    assert!(!guest_writes(&mapper, 0), "a write gives nothing back");
    for page in [0x2000, 0x3000] {
        assert!(!guest_writes(&mapper, page));
        let fault = write_protect::fault(&mut mapper, page);
        assert!(matches!(fault, Ok(WriteFault::Dirty { .. })), "{page:#x}");
        assert!(guest_writes(&mapper, page));
    }
    let stale = write_protect::stop(&mut mapper, 0..0x4000).unwrap();
    settle(&mapper, stale);
    let rights = |page| mapper.translate(page).unwrap().attributes.rights();
    assert_eq!([0, 0x1000].map(rights), [read_only; 2], "nor does the end");
    assert_eq!(rights(0x2000), Rights::READ_WRITE);
    assert_eq!(rights(0x3000), Rights::READ_WRITE_EXECUTE);
}

/// Each in its own way lets writes through that the right to write is missing for: they would never be reported.
#[test]
fn pages_that_are_written_without_the_right_to_write_are_not_watched_in_vain() {
    let r = Rights::READ;
    let supervisor = Access::translation(Accesses::WRITE, PageRights::PAGING_OFF)
        .with_shadow_stack(ShadowStack::Supervisor);
    for (control, bit, write) in [
        (Controls::SUPERVISOR_SHADOW_STACK, 1 << 60, supervisor),
        (Controls::PAGING_WRITE, 1 << 58, Access::paging_write()),
        (
            Controls::SUB_PAGE_WRITE,
            1 << 61,
            Access::translation(Accesses::WRITE, PageRights::PAGING_OFF),
        ),
    ] {
        let memory = FakeTables::new();
        let cap = EptVpidCap::from_msr(0x0f01_06f3_41c1 | 1 << 23);
        let ept = Ept::new(cap, 46, WalkLength::Four, control).unwrap();
        let mut mapper = Mapper::new(ept, &memory, &memory).unwrap();
        // Of a sub-page permission table: root, two tables, and a vector that grants all of page 1.
        let [root, third, second, first] = [(); 4].map(|()| {
            let frame = memory.allocate().unwrap();
            memory.fill(frame, Width::Eight, 512, |_| 0);
            frame
        });
        for (table, next) in [(root, third), (third, second), (second, first)] {
            memory.write(table, Width::Eight, next | 1);
        }
        memory.write(first + 8, Width::Eight, 0x5555_5555_5555_5555);
        let written = |mapper: &Table<'_>| {
            let space = GuestSpace::new(mapper.format(), mapper.memory(), mapper.root());
            let space = space.with_sub_pages(root);
            space.access(0x1000, write).is_ok()
        };
        for rights in [r, Rights::READ_WRITE] {
            let page = Attributes::RAM.with_rights(rights).with_options(bit);
            mapper.map(0..0x1000, 0x10_0000, Attributes::RAM).unwrap();
            mapper.map(0x1000..0x2000, 0x10_1000, page).unwrap();
            memory.checkpoint();
            let refused = write_protect::start(&mut mapper, 0..0x2000);
            let Err(MapError::Unsupported {
                level: 1,
                rule: Rule::NotTrackable(bits),
                ..
            }) = refused
            else {
                panic!("{bit:#x}: {refused:?}, written: {}", written(&mapper));
            };
            assert_eq!(bits, bit);
            assert_eq!(memory.journal(), [], "nothing is changed");
            assert!(written(&mapper) && guest_writes(&mapper, 0));
            assert_eq!(mapper.translate(0x1000).unwrap().attributes, page);

            // Without that page all is well, and what is watched stays so.
            let stale = write_protect::start(&mut mapper, 0..0x1000).unwrap();
            mapper.settle(stale, &mut flush(&Cell::new(0))).unwrap();
            assert!(!guest_writes(&mapper, 0));
            let given = mapper.protect(0..0x1000, |page| page.with_options(bit));
            assert!(matches!(
                given,
                Err(MapError::Unsupported {
                    rule: Rule::NotTrackable(_),
                    ..
                })
            ));
            let stale = mapper.unmap(0..0x2000).unwrap();
            mapper.settle(stale, &mut flush(&Cell::new(0))).unwrap();
        }
    }
}

#[test]
fn no_frame_to_cut_a_page_with() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory, Controls::empty());
    mapper
        .map(0..0x20_0000, 0x4000_0000, Attributes::RAM)
        .unwrap();
    let stale = write_protect::start(&mut mapper, 0..0x20_0000).unwrap();
    mapper.settle(stale, &mut flush(&Cell::new(0))).unwrap();
    memory.limit(memory.in_use());
    let refused = write_protect::fault(&mut mapper, 0x5678);
    assert!(matches!(refused, Err(MapError::OutOfFrames)));
    assert!(!guest_writes(&mapper, 0x5678), "still watched");
    assert!(mapper.translate(0x5678).unwrap().attributes.write_tracked());
}

/// Between any two stores of a fault's answer, each page of the large page that is cut leads where it
/// did, and is either still watched or the one that was written.
#[test]
fn every_moment_of_a_fault() {
    let memory = FakeTables::new();
    let mut mapper = mapper(&memory, Controls::empty());
    let data = Attributes::new(Rights::READ_WRITE, MemoryType::WriteThrough);
    mapper.map(0..0x20_0000, 0x4000_0000, data).unwrap();
    let stale = write_protect::start(&mut mapper, 0..0x20_0000).unwrap();
    mapper.settle(stale, &mut flush(&Cell::new(0))).unwrap();
    memory.checkpoint();
    let Ok(WriteFault::Dirty { stale, .. }) = write_protect::fault(&mut mapper, 0x7_5000) else {
        panic!("it was protected");
    };
    let mut moments = 0;
    memory.each_moment(|_, words| {
        moments += 1;
        for page in 0..512u64 {
            let root = Root::Table(mapper.root());
            let found = translate(mapper.format(), words, root, page << 12).unwrap();
            assert_eq!(found.target, 0x4000_0000 + (page << 12));
            assert_eq!(found.attributes.memory_type(), MemoryType::WriteThrough);
            let writable = found.attributes.rights().contains(Rights::WRITE);
            assert_eq!(writable, !found.attributes.write_tracked());
            assert!(!writable || page == 0x75);
        }
    });
    assert!(moments > 2);
    mapper.settle(stale, &mut flush(&Cell::new(0))).unwrap();
}
