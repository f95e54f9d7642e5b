// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest may try, one by one.

use hvkit_page_table::{Span, Width};
use hvkit_shadow_paging::fake::FakeHost;
use hvkit_shadow_paging::mmu::{
    Cause, HostReason, HostRights, Load, Mmu, Top, Tuning, Unsync, Verdict,
};
use hvkit_shadow_paging::nested::{Grants, Nested, Refused, Unsupported};
use hvkit_vtd_iommu::tables::{SecondStage, SecondStageAttributes};

use crate::devices::{Devices, Domain, machine, unit};

const ALL: Span = Span::new(0, 1 << 48);

fn set(host: &FakeHost, at: u64, value: u64) {
    host.store(host.host(at).unwrap(), Width::Eight, value);
}

/// Tables from 0x1000 down to 0x4000, all with index 0.
fn chain(host: &FakeHost) {
    (0..3).for_each(|level| set(host, 0x1000 + level * 0x1000, 0x2003 + level * 0x1000));
}

fn go(devices: &mut Devices<'_>, domain: &Domain, span: Span) {
    devices.follow(domain, span, |_| ());
}

#[test]
fn a_large_page_is_split_where_the_host_is_in_pieces_and_whole_again_after() {
    let host = FakeHost::new(0x1000_0000);
    chain(&host);
    set(&host, 0x3000 + 8, 0x40_0083);
    let mut devices = Devices::new(&host, 64);
    let gone = host.migrate(0x40_5000).unwrap();
    let domain = devices.open(unit(4), 0x1000);
    go(&mut devices, &domain, ALL);
    for at in [0, 0x5008, 0x1f_f000] {
        let there = devices.dma(&domain, 0x20_0000 + at).map(|there| there.0);
        assert_eq!(there, host.host(0x40_0000 + at));
        assert_ne!(there.unwrap() & !0xfff, gone.host);
    }
    let split = devices.mmu.usage().tables;
    set(&host, 0x3000 + 8, 0x60_0083);
    go(&mut devices, &domain, Span::new(0x20_0000, 0x20_0000));
    assert_eq!(
        devices.dma(&domain, 0x20_5008).unwrap().0,
        host.host(0x60_5008).unwrap()
    );
    devices.audit();
    let owed = devices.mmu.shrink(64);
    devices.settle(owed);
    assert_eq!(
        devices.mmu.usage().tables,
        split - 1,
        "one large leaf, no table of small ones"
    );
    assert!(
        devices.dma(&domain, 0x20_5008).is_some(),
        "what is linked stays"
    );
    devices.mmu.close(domain);
}

/// The guest's table of each level leads to the one of the next in all 512 entries: 2^36 pages, all mapped. One leaf
/// table serves all, and each table is looked at once.
#[test]
fn tables_that_unfold_to_billions_of_pages_are_followed_once() {
    let host = FakeHost::new(0x1000_0000);
    for level in 0..4 {
        let below = if level == 3 {
            0x40_0003
        } else {
            0x2003 + level * 0x1000
        };
        (0..512).for_each(|index| {
            let page = if level == 3 { index << 12 } else { 0 };
            set(&host, 0x1000 + level * 0x1000 + index * 8, below + page);
        });
    }
    let mut devices = Devices::new(&host, 64);
    let domain = devices.open(unit(4), 0x1000);
    go(&mut devices, &domain, ALL);
    assert_eq!(devices.mmu.usage().tables, 4);
    assert_eq!(
        devices.dma(&domain, 0xffff_ffff_f000).unwrap().0,
        host.host(0x5f_f000).unwrap()
    );
    // A table that is its own: levels are told apart.
    set(&host, 0x1000, 0x1003);
    go(&mut devices, &domain, ALL);
    devices.audit();
    devices.mmu.close(domain);
}

#[test]
fn without_frames_what_is_unmapped_is_gone_all_the_same() {
    let host = FakeHost::new(0x1000_0000);
    chain(&host);
    set(&host, 0x4000, 0x9003);
    let mut devices = Devices::new(&host, 16);
    let domain = devices.open(unit(4), 0x1000);
    go(&mut devices, &domain, ALL);
    assert!(devices.dma(&domain, 0).is_some());
    // The page goes, and thirty tables come: more than the budget.
    set(&host, 0x4000, 0);
    (1..31).for_each(|i| {
        set(&host, 0x3000 + i * 8, 0x10_0003 + i * 0x1000);
        set(&host, 0x10_0000 + i * 0x1000, 0x9003);
    });
    let view = host.guest();
    let failed = devices
        .mmu
        .follow(&domain, machine(&host, &view), ALL)
        .unwrap_err();
    assert!(matches!(failed.cause, Cause::OutOfFrames));
    assert_eq!(
        failed.owed.frames(),
        0,
        "nothing that is mapped is taken back"
    );
    devices.settle(failed.owed);
    assert!(devices.dma(&domain, 0).is_none());
    assert!(
        devices.dma(&domain, 0x20_0000).is_some(),
        "as far as frames went"
    );
    devices.audit();
    devices.mmu.close(domain);
}

#[test]
fn a_table_that_was_unlinked_comes_back_as_it_is_then() {
    let host = FakeHost::new(0x1000_0000);
    chain(&host);
    set(&host, 0x4000, 0x9003);
    set(&host, 0x4008, 0xa003);
    let mut devices = Devices::new(&host, 64);
    let domain = devices.open(unit(4), 0x1000);
    go(&mut devices, &domain, ALL);
    set(&host, 0x3000, 0);
    go(&mut devices, &domain, ALL);
    // The frame is something else for a while, nobody is told; then a table again, in which one page is mapped and
    // invalidated.
    set(&host, 0x4000, 0xb003);
    set(&host, 0x4008, 0);
    set(&host, 0x3000, 0x4003);
    go(&mut devices, &domain, Span::new(0, 0x1000));
    assert_eq!(
        devices.dma(&domain, 0).unwrap().0,
        host.host(0xb000).unwrap()
    );
    assert!(
        devices.dma(&domain, 0x1000).is_none(),
        "0xa000 is the guest's own again"
    );
    devices.mmu.close(domain);
}

#[test]
fn an_unreadable_entry_maps_nothing_and_hides_nothing_else() {
    let host = FakeHost::new(0x1000_0000);
    chain(&host);
    set(&host, 0x3008, 0x70_0000_0003); // No memory of the guest's.
    set(&host, 0x4000, 0x9003);
    set(&host, 0x4008, 0xa003);
    let mut devices = Devices::new(&host, 64);
    let domain = devices.open(unit(4), 0x1000);
    let view = host.guest();
    let failed = devices
        .mmu
        .follow(&domain, machine(&host, &view), ALL)
        .unwrap_err();
    assert_eq!(
        failed.cause.to_string(),
        "the guest's table at 0x7000000000 is not in memory"
    );
    devices.settle(failed.owed);
    assert!(devices.dma(&domain, 0x1000).is_some());
    set(&host, 0x3008, 0);
    // A read that fails in the first pass drops what it was about.
    set(&host, 0x4008, 0);
    let (_, before) = host.counts();
    host.fail_read(Some(4));
    let failed = devices
        .mmu
        .follow(&domain, machine(&host, &view), ALL)
        .unwrap_err();
    host.fail_read(None);
    assert!(matches!(failed.cause, Cause::Memory { .. }), "{failed}");
    assert!(host.counts().1 > before);
    devices.settle(failed.owed);
    assert!(devices.dma(&domain, 0x1000).is_none());
    go(&mut devices, &domain, ALL);
    assert!(devices.dma(&domain, 0).is_some());
    devices.audit();
    devices.mmu.close(domain);
}

#[test]
fn a_page_that_is_mapped_too_often_is_refused_by_name() {
    let host = FakeHost::new(0x1000_0000);
    (0..2).for_each(|level| set(&host, 0x1000 + level * 0x1000, 0x2003 + level * 0x1000));
    for table in 0..33 {
        set(&host, 0x3000 + table * 8, 0x10_0003 + table * 0x1000);
        (0..512).for_each(|i| set(&host, 0x10_0000 + table * 0x1000 + i * 8, 0x9003));
    }
    let mut devices = Devices::new(&host, 64);
    let domain = devices.open(unit(4), 0x1000);
    let view = host.guest();
    let failed = devices
        .mmu
        .follow(&domain, machine(&host, &view), ALL)
        .unwrap_err();
    let crowded = Cause::Crowded {
        host: host.host(0x9000).unwrap(),
    };
    assert_eq!(failed.cause, crowded);
    devices.settle(failed.owed);
    assert!(devices.dma(&domain, 0x3f_f000).is_some());
    devices.mmu.close(domain);
}

#[test]
fn what_the_unit_reports_is_told_apart() {
    let host = FakeHost::new(0x1000_0000);
    chain(&host);
    set(&host, 0x4000, 0x9001);
    set(&host, 0x4008, 1 << 50 | 0x9003);
    set(&host, 0x4010, 0xa003);
    let mut devices = Devices::new(&host, 64);
    let domain = devices.open(unit(4), 0x1000);
    go(&mut devices, &domain, ALL);
    let logged = host.set_rights(0xa000, HostRights::READ_ONLY).unwrap();
    let owed = devices.mmu.host_protect(logged);
    devices.settle(owed);
    assert_eq!(devices.dma(&domain, 0x2000).unwrap().1, Grants::READ);
    let view = host.guest();
    let machine = machine(&host, &view);
    let mut verdict = |at| {
        let answer = devices
            .mmu
            .fault(&domain, machine, at, Grants::WRITE)
            .unwrap();
        devices.settle(answer.owed);
        answer.verdict
    };
    let granted = Grants::READ;
    assert_eq!(verdict(0x10), Verdict::Guest(Refused::Rights { granted }));
    assert!(matches!(
        verdict(0x1000),
        Verdict::Guest(Refused::Malformed { level: 1, entry, .. }) if entry == 1 << 50 | 0x9003
    ));
    assert_eq!(
        verdict(0x3000),
        Verdict::Guest(Refused::Absent { level: 1, entry: 0 })
    );
    assert_eq!(verdict(1 << 48), Verdict::Guest(Refused::Beyond));
    let reason = HostReason::Rights(HostRights::READ_ONLY);
    assert_eq!(
        verdict(0x2008),
        Verdict::Host {
            physical: 0xa008,
            reason
        }
    );
    devices.mmu.close(domain);
}

#[test]
fn a_device_that_passes_through_reaches_memory_where_it_is_and_another_root_is_another_domain() {
    let host = FakeHost::new(0x80_0000);
    chain(&host);
    set(&host, 0x4000, 0x9003);
    let mut devices = Devices::new(&host, 64);
    let view = host.guest();
    let machine = machine(&host, &view);
    let through = Nested::direct(unit(4), SecondStageAttributes::READ_WRITE);
    let (mut domain, owed) = devices.mmu.open(through, Top::Direct, machine).unwrap();
    devices.settle(owed);
    go(&mut devices, &domain, ALL);
    assert_eq!(
        devices.dma(&domain, 0x7f_fff8).unwrap().0,
        host.host(0x7f_fff8).unwrap()
    );
    assert!(devices.dma(&domain, 0x80_0000).is_none());
    assert!(devices.mmu.usage().tables < 8, "large pages");
    // A valid context entry, and then a changed table behind our back while the device is elsewhere.
    let mapped = Nested::new(unit(4), unit(4)).unwrap();
    let enter = |devices: &mut Devices<'_>, domain: &mut Domain, stage, top| {
        let owed = devices
            .mmu
            .enter(domain, stage, top, Load::Keep, machine)
            .unwrap();
        devices.settle(owed);
    };
    enter(&mut devices, &mut domain, mapped, Top::Table(0x1000));
    go(&mut devices, &domain, ALL);
    assert!(devices.dma(&domain, 0).is_some());
    enter(&mut devices, &mut domain, through, Top::Direct);
    set(&host, 0x4000, 0);
    enter(&mut devices, &mut domain, mapped, Top::Table(0x1000));
    assert!(
        devices.dma(&domain, 0).is_none(),
        "no entry from before, even unfollowed"
    );
    devices.mmu.close(domain);
}

#[test]
fn tables_that_do_not_fit_and_spaces_of_others_are_refused() {
    let levels = |guest, shadow| Nested::new(unit(guest), unit(shadow)).err();
    assert_eq!(levels(3, 4), None);
    assert_eq!(
        levels(3, 5),
        Some(Unsupported::Levels {
            guest: 3,
            shadow: 5
        })
    );
    assert_eq!(
        levels(4, 3),
        Some(Unsupported::Levels {
            guest: 4,
            shadow: 3
        })
    );
    let host = FakeHost::new(0x1000_0000);
    let (mut one, mut other) = (Devices::new(&host, 16), Devices::new(&host, 16));
    let domain = one.open(unit(4), 0x1000);
    let view = host.guest();
    let failed = other
        .mmu
        .follow(&domain, machine(&host, &view), ALL)
        .unwrap_err();
    assert_eq!(failed.cause, Cause::Foreign);
    other.settle(failed.owed);
    one.mmu.close(domain);
}

/// A device's store to a page that holds a table of its own, if that were guarded, would have nobody to wait for.
#[test]
fn an_mmu_that_guards_tables_is_not_followed() {
    let host = FakeHost::new(0x1000_0000);
    for unsync in [Unsync::Never, Unsync::Allowed] {
        let tuning = Tuning {
            unsync,
            ..Tuning::DEVICES
        };
        let mut devices = Devices::tuned(&host, 16, tuning);
        let domain = devices.open(unit(4), 0x1000);
        let view = host.guest();
        let tables = devices.mmu.usage().tables;
        let failed = devices
            .mmu
            .follow(&domain, machine(&host, &view), ALL)
            .unwrap_err();
        assert_eq!(failed.cause, Cause::Guarding);
        assert!(failed.owed.is_empty());
        assert_eq!(devices.mmu.usage().tables, tables);
        devices.settle(failed.owed);
        devices.mmu.close(domain);
    }
}

#[test]
fn whether_tables_are_guarded_is_chosen_once() {
    let host = FakeHost::new(0x1000_0000);
    let mut mmu: Mmu<Nested<SecondStage>, _, _> =
        Mmu::new(&host, &host, 16, Tuning::DEVICES).unwrap();
    mmu.set_tuning(Tuning::default());
    assert_eq!(mmu.tuning().unsync, Unsync::Always);
    let mut mmu: Mmu<Nested<SecondStage>, _, _> =
        Mmu::new(&host, &host, 16, Tuning::default()).unwrap();
    mmu.set_tuning(Tuning::DEVICES);
    assert_eq!(mmu.tuning().unsync, Unsync::Allowed);
}
