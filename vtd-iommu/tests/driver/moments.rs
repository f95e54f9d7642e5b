// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every moment between two stores: a device with reserved memory always has a table, and another domain's id
//! never stands over a table that is not that domain's. Whatever a unit caches in between is forgotten.

use hvkit_page_table::{ReadEntry, Span, Width};
use hvkit_vtd_iommu::driver::{Attachment, Registers, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::invalidation::DeviceTlb;
use hvkit_vtd_iommu::spec::registers::RTADDR;

use crate::caches::{Caches, Place, Tagged};
use crate::puppet::{DEVICE, Puppet, PuppetUnit, cap, ecap, scalable_ecap};

const REGION: Span = Span::new(0x7b80_0000, 0x4000);

/// What decides over the device: where the words with its table and its id are.
struct Words {
    table: u64,
    id: u64,
    id_shift: u32,
}

fn follow(puppet: &Puppet, unit: &PuppetUnit<'_>) -> Words {
    let read = |at: u64| {
        let Ok(word) = puppet.memory.words().read(at, Width::Eight);
        word & !0xfff
    };
    let root = unit.registers().get(RTADDR);
    let contexts = read(root.table() + 3 * 16);
    if root.0 & 0xfff == 0 {
        let entry = contexts + 0x18 * 16;
        return Words {
            table: entry,
            id: entry + 8,
            id_shift: 8,
        };
    }
    let entry = read(read(contexts + 0x18 * 32));
    Words {
        table: entry,
        id: entry + 8,
        id_shift: 0,
    }
}

/// Runs `change` and returns each different pair of table and id that a unit could have seen.
fn seen<'a>(
    puppet: &'a Puppet,
    unit: &mut PuppetUnit<'a>,
    change: impl FnOnce(&mut PuppetUnit<'a>),
) -> Vec<(u64, u64)> {
    let words = follow(puppet, unit);
    puppet.memory.checkpoint();
    change(unit);
    let mut pairs = Vec::new();
    puppet.memory.each_moment(|_, memory| {
        let Ok(table) = memory.read(words.table, Width::Eight);
        let Ok(id) = memory.read(words.id, Width::Eight);
        assert_eq!(table & 1, 1, "a moment without a translation");
        let pair = (table & !0xfff, id >> words.id_shift & 0xffff);
        if pairs.last() != Some(&pair) {
            pairs.push(pair);
        }
    });
    pairs
}

fn moves<'a>(puppet: &'a Puppet, unit: &mut PuppetUnit<'a>) {
    unit.reserve(DEVICE, &[REGION]).unwrap();
    let mut domain = unit.new_domain().unwrap();
    let (table, id) = (domain.table().root(), u64::from(domain.id()));
    let into = seen(puppet, unit, |unit| {
        unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    });
    let held = into[0];
    // The new table under the device's own id, before the new id.
    assert_eq!(into, [held, (table, held.1), (table, id)]);
    let out = seen(puppet, unit, |unit| {
        unit.detach(&mut domain, DEVICE, None).unwrap();
    });
    assert_eq!(out, [(table, id), (table, held.1), held]);
}

#[test]
fn moving_a_device_with_reserved_memory_leaves_no_gap() {
    let puppet = Puppet::new(cap(), ecap());
    moves(&puppet, &mut puppet.legacy());
    let puppet = Puppet::new(cap(), scalable_ecap());
    moves(&puppet, &mut puppet.scalable());
}

#[test]
fn an_absent_entry_is_whole_before_it_is_present() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit: Unit<_, _, _> = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    // Once, so that the tables are there.
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    unit.detach(&mut domain, DEVICE, None).unwrap();
    let words = follow(&puppet, &unit);
    let mut other = unit.new_domain().unwrap();
    puppet.memory.checkpoint();
    unit.attach(&mut other, Attachment::new(DEVICE)).unwrap();
    let mut present = 0;
    puppet.memory.each_moment(|_, memory| {
        let Ok(low) = memory.read(words.table, Width::Eight);
        let Ok(high) = memory.read(words.id, Width::Eight);
        if low & 1 != 0 {
            present += 1;
            assert_eq!(low & !0xfff, other.table().root());
            assert_eq!(high >> 8 & 0xffff, u64::from(other.id()));
        }
    });
    assert!(present > 0);
}

const TLB: DeviceTlb = DeviceTlb {
    source: DEVICE,
    physical_source: RequesterId(0),
    max_pending: 0,
};

/// Lets `change` happen under a unit that caches the device's entry at every moment, and asserts that nothing is left
/// then but what the entry says now.
fn nothing_stays<'a, T>(
    puppet: &'a Puppet,
    unit: &mut PuppetUnit<'a>,
    device_tlb: Option<DeviceTlb>,
    change: impl FnOnce(&mut PuppetUnit<'a>) -> T,
) -> (Tagged, T) {
    let Words {
        table, id_shift, ..
    } = follow(puppet, unit);
    let place = match id_shift {
        8 => Place::Context(table),
        _ => Place::Pasid(table),
    };
    let caches = Caches::new(place, &puppet.memory);
    *puppet.caches.borrow_mut() = Some(caches);
    let done = change(unit);
    let mut caches = puppet.caches.take().unwrap();
    caches.fill(&puppet.memory);
    let now = place.read(&puppet.memory.words()).unwrap();
    let only = [now].into();
    assert_eq!(caches.entries, only, "entries");
    assert_eq!(caches.iotlb, only, "translations");
    if device_tlb.is_some() {
        assert_eq!(caches.device_tlb, only, "the device's");
    }
    (now, done)
}

fn in_and_out<'a>(puppet: &'a Puppet, unit: &mut PuppetUnit<'a>) {
    unit.reserve(DEVICE, &[REGION]).unwrap();
    let mut domain = unit.new_domain().unwrap();
    for tlb in [None, Some(TLB)] {
        let device = Attachment {
            tlb,
            ..Attachment::new(DEVICE)
        };
        let (inside, ()) = nothing_stays(puppet, unit, tlb, |unit| {
            unit.attach(&mut domain, device).unwrap();
        });
        assert_eq!(inside.table, domain.table().root());
        let (held, ()) = nothing_stays(puppet, unit, tlb, |unit| {
            unit.detach(&mut domain, DEVICE, None).unwrap();
        });
        assert_ne!(held.id, inside.id);
        assert_ne!(held.table, inside.table);
    }
    nothing_stays(puppet, unit, None, |unit| {
        unit.attach_pass_through(DEVICE).unwrap();
    });
    nothing_stays(puppet, unit, None, |unit| {
        unit.detach_pass_through(DEVICE).unwrap();
    });
}

/// A device that comes out of a domain, or of pass-through, is for a moment there under the id of its holding domain: a
/// unit that looks just then keeps it under that id.
#[test]
fn what_a_unit_caches_in_between_is_forgotten() {
    let puppet = Puppet::new(cap(), ecap());
    in_and_out(&puppet, &mut puppet.legacy());

    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    in_and_out(&puppet, &mut unit);
    let mut first = unit.new_first_stage_domain(4).unwrap();
    nothing_stays(&puppet, &mut unit, None, |unit| {
        unit.attach(&mut first, Attachment::new(DEVICE)).unwrap();
    });
    nothing_stays(&puppet, &mut unit, None, |unit| {
        unit.detach(&mut first, DEVICE, None).unwrap();
    });
}
