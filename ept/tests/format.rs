// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The format: the words a mapper writes with it, the laws it promises the mapper, and what it refuses.

use hvkit_ept::spec::{
    Controls, EptEntry, EptVpidCap, Eptp, EptpError, MemoryType, Misconfiguration, Pat, Rights,
    Unsupported, WalkLength,
};
use hvkit_ept::{Attributes, Ept, Rule};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{Encode, Entry, Format, MapError, Mapper, Marks, OwnEntries, Sizes, Width};
use proptest::prelude::*;

const CAP: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);

fn ept(controls: Controls) -> Ept {
    Ept::new(CAP, 46, WalkLength::Four, controls).unwrap()
}

fn mapper(ept: Ept, memory: &FakeTables) -> Mapper<Ept, &FakeTables, &FakeTables> {
    Mapper::new(ept, memory, memory).unwrap()
}

/// Entry `index` of the table at `table`.
fn word(memory: &FakeTables, table: u64, index: u64) -> u64 {
    memory.load(table + index * 8, Width::Eight)
}

#[test]
fn the_words_that_mapping_writes() {
    let memory = FakeTables::new();
    let mut mapper = mapper(ept(Controls::empty()), &memory);
    // 1 GiB, 2 MiB and 4 KiB pages in one range.
    mapper
        .map(0x4000_0000..0x8020_1000, 0x1_4000_0000, Attributes::RAM)
        .unwrap();
    let root = mapper.root();
    let pdpt = word(&memory, root, 0);
    assert_eq!(pdpt & 0xfff, 0x007);
    let pdpt = pdpt & !0xfff;
    assert_eq!(word(&memory, pdpt, 0), 0);
    assert_eq!(word(&memory, pdpt, 1), 0x1_4000_00b7);
    let pd = word(&memory, pdpt, 2);
    assert_eq!(pd & 0xfff, 0x007);
    assert_eq!(word(&memory, pd & !0xfff, 0), 0x1_8000_00b7);
    let pt = word(&memory, pd & !0xfff, 1);
    assert_eq!(pt & 0xfff, 0x007);
    assert_eq!(word(&memory, pt & !0xfff, 0), 0x1_8020_0037);
    assert_eq!(word(&memory, pt & !0xfff, 1), 0);
    assert_eq!(mapper.translate(0x8020_0abc).unwrap().target, 0x1_8020_0abc);
}

#[test]
fn attributes_are_the_words_they_become() {
    let ept = ept(Controls::all());
    let leaf = |attributes, level| ept.leaf(0x4000_0000, attributes, level);
    let rx = Attributes::new(Rights::READ | Rights::EXECUTE, MemoryType::Uncacheable);
    assert_eq!(leaf(rx, 1), 0x4000_0005);
    assert_eq!(leaf(rx, 2), 0x4000_0085);
    assert_eq!(leaf(rx.with_pat(Pat::Ignored), 1), 0x4000_0045);
    assert_eq!(
        leaf(rx.with_memory_type(MemoryType::WriteProtected), 1),
        0x4000_002d
    );
    assert_eq!(leaf(rx.with_rights(Rights::USER_EXECUTE), 1), 0x4000_0400);
    assert_eq!(leaf(rx.with_software(0x1f), 1), 0x01f0_0000_4000_0005);
    assert_eq!(leaf(rx.with_software(0xff), 1), 0x01f0_0000_4000_0005);
    let options = rx.with_options(EptEntry::SUPPRESS_VE | EptEntry::PAGING_WRITE);
    assert_eq!(leaf(options, 1), 0x8400_0000_4000_0005);
    assert_eq!(options.options(u64::MAX), 0x8400_0000_0000_0000);
    assert_eq!(options.without_options(u64::MAX), rx);
    let twice = options.with_options(EptEntry::SUPPRESS_VE);
    assert_eq!(twice, options, "what is set stays set");
    assert_eq!(rx.with_options(!0).options(!0), 0xb600_0000_0000_0000);
    assert_eq!((rx.software(), rx.with_software(9).software()), (0, 9));
    // Tables forbid nothing, of either mode where there are two.
    assert_eq!(ept.table(0x5000, 2), 0x5407);
    assert_eq!(self::ept(Controls::empty()).table(0x5000, 4), 0x5007);
    assert_eq!(ept.empty(), 0);
    assert_eq!(ept.suppressing_ve().empty(), 1 << 63);
    let text = format!("{:?}", Attributes::RAM.with_software(1));
    assert!(
        text.contains("WriteBack") && text.contains("0x10000000000000"),
        "{text}"
    );
}

/// SDM 3C, "EPT Translation Mechanism": rights are the AND of those of all entries; everything else is the leaf's.
#[test]
fn what_is_above_a_leaf_takes_rights_away_and_nothing_else() {
    let ept = ept(Controls::all());
    let read = Attributes::new(Rights::READ, MemoryType::WriteBack);
    let options = Attributes::RAM
        .with_pat(Pat::Ignored)
        .with_options(!0)
        .with_software(0x1f);
    for (above, rights) in [
        (options, Attributes::RAM.rights()),
        (read.with_options(!0).with_software(0x1f), Rights::READ),
    ] {
        let folded = ept.fold(above, options);
        let word = ept.leaf(0x4000_0000, options, 1);
        let kept = word & !0x407 | rights.bits();
        assert_eq!(ept.leaf(0x4000_0000, folded, 1), kept, "{above:?}");
    }
}

#[test]
fn each_refused_attribute_is_named() {
    let plain = ept(Controls::empty());
    let ram = Attributes::RAM;
    let ignored = |attributes, control| {
        assert_eq!(plain.check(attributes, 1), Err(Rule::Ignored(control)));
        assert_eq!(ept(control).check(attributes, 1), Ok(()), "{control:?}");
    };
    let user = ram.with_rights(ram.rights() | Rights::USER_EXECUTE);
    ignored(user, Controls::MODE_BASED_EXECUTE);
    ignored(
        ram.with_options(EptEntry::SUPPRESS_VE),
        Controls::VIOLATION_EXCEPTION,
    );
    ignored(
        ram.with_options(EptEntry::SUB_PAGE_WRITE),
        Controls::SUB_PAGE_WRITE,
    );
    let shadow_stack = ram.with_options(EptEntry::SUPERVISOR_SHADOW_STACK);
    ignored(shadow_stack, Controls::SUPERVISOR_SHADOW_STACK);
    ignored(
        ram.with_options(EptEntry::PAGING_WRITE),
        Controls::PAGING_WRITE,
    );
    let verify = ram.with_options(EptEntry::VERIFY_GUEST_PAGING);
    ignored(verify, Controls::GUEST_PAGING_VERIFICATION);

    let spp = ram.with_options(EptEntry::SUB_PAGE_WRITE);
    let large = ept(Controls::SUB_PAGE_WRITE).check(spp, 2);
    assert_eq!(large, Err(Rule::SubPagesOfLargePage(2)));
    assert_eq!(
        plain.check(ram.with_rights(Rights::empty()), 1),
        Err(Rule::NoRights)
    );
    let misconfigured = |rule| Err(Rule::Misconfigured(rule));
    let write = ram.with_rights(Rights::WRITE);
    assert_eq!(
        plain.check(write, 1),
        misconfigured(Misconfiguration::WriteWithoutRead)
    );
    let execute = ram.with_rights(Rights::EXECUTE);
    assert_eq!(plain.check(execute, 1), Ok(()));
    let old = EptVpidCap::from_msr(CAP.bits() & !1);
    let old = Ept::new(old, 46, WalkLength::Four, Controls::empty()).unwrap();
    assert_eq!(
        old.check(execute, 1),
        misconfigured(Misconfiguration::ExecuteOnly)
    );
    // The mapper passes it on, and changes nothing.
    let memory = FakeTables::new();
    let mut mapper = mapper(old, &memory);
    memory.checkpoint();
    let refused = mapper.map(0..0x1000, 0, execute);
    assert!(
        matches!(refused, Err(MapError::Unsupported { level: 1, .. })),
        "{refused:?}"
    );
    let root = mapper.root();
    assert!(
        memory
            .journal()
            .iter()
            .all(|store| store.at & !0xfff != root)
    );
    assert_eq!(memory.in_use(), 1);
}

#[test]
fn page_sizes_are_those_the_processor_has() {
    for (bits, largest) in [
        (0x0f01_06f0_41c1u64, 1),
        (0x0f01_06f1_41c1, 2),
        (0x0f01_06f3_41c1, 3),
    ] {
        let cap = EptVpidCap::from_msr(bits);
        let ept = Ept::new(cap, 46, WalkLength::Five, Controls::empty()).unwrap();
        assert_eq!(
            (1..=5).filter(|&level| ept.shape().leaf_at(level)).max(),
            Some(largest)
        );
        let memory = FakeTables::new();
        let mut mapper = mapper(ept, &memory);
        mapper
            .map(0x4000_0000..0x8000_0000, 0x4000_0000, Attributes::RAM)
            .unwrap();
        assert_eq!(mapper.translate(0x4123_4567).unwrap().level, largest);
        assert_eq!(mapper.translate(0x4123_4567).unwrap().target, 0x4123_4567);
    }
    // An executable large page can be forbidden where a data page stays large.
    let memory = FakeTables::new();
    let mut mapper = mapper(ept(Controls::MODE_BASED_EXECUTE), &memory);
    mapper.set_sizes(Sizes {
        largest: 3,
        largest_executable: 1,
    });
    let user = Attributes::new(Rights::READ | Rights::USER_EXECUTE, MemoryType::WriteBack);
    mapper.map(0..0x20_0000, 0, user).unwrap();
    let data = Attributes::new(Rights::READ_WRITE, MemoryType::WriteBack);
    mapper.map(0x20_0000..0x40_0000, 0, data).unwrap();
    assert_eq!(mapper.translate(0x1000).unwrap().level, 1);
    assert_eq!(mapper.translate(0x20_1000).unwrap().level, 2);
}

#[test]
fn what_a_processor_lacks_is_refused_at_once() {
    let new = |bits, width, length, controls| {
        Ept::new(EptVpidCap::from_msr(bits), width, length, controls).map(|_| ())
    };
    let (none, four) = (Controls::empty(), WalkLength::Four);
    assert_eq!(new(0, 46, four, none), Err(Unsupported::WalkLength(4)));
    assert_eq!(
        new(1 << 6, 46, WalkLength::Five, none),
        Err(Unsupported::WalkLength(5))
    );
    let ad = new(1 << 6, 46, four, Controls::ACCESSED_DIRTY);
    assert_eq!(ad, Err(Unsupported::AccessedDirty));
    let sss = new(1 << 6, 46, four, Controls::SUPERVISOR_SHADOW_STACK);
    assert_eq!(sss, Err(Unsupported::SupervisorShadowStack));
    for width in [0, 31, 53, 64] {
        assert_eq!(
            new(1 << 6, width, four, none),
            Err(Unsupported::PhysicalBits(width))
        );
    }
    assert_eq!(new(1 << 6, 32, four, none), Ok(()));
    assert_eq!(new(1 << 6, 52, four, none), Ok(()));
}

#[test]
fn an_eptp_and_its_format_say_the_same() {
    let controls = Controls::ACCESSED_DIRTY | Controls::MODE_BASED_EXECUTE;
    let four = ept(controls);
    let eptp = four.eptp(0x1000, MemoryType::WriteBack).unwrap();
    assert_eq!(eptp, Eptp(0x105e));
    assert_eq!(
        Ept::from_eptp(eptp, CAP, 46, Controls::MODE_BASED_EXECUTE),
        Ok(four)
    );
    // The EPTP, not the caller, says whether flags are on.
    let off = Ept::from_eptp(Eptp(0x101e), CAP, 46, controls).unwrap();
    assert_eq!(
        (off.controls(), off.marks()),
        (Controls::MODE_BASED_EXECUTE, Marks::NONE)
    );
    assert_eq!(
        four.marks(),
        Marks {
            accessed: 0x100,
            dirty: 0x200
        }
    );
    let bad = Ept::from_eptp(Eptp(0x1f1e), CAP, 46, controls);
    assert_eq!(bad, Err(EptpError::Reserved(0xf00)));
    let type_5 = four.eptp(0x1000, MemoryType::WriteProtected);
    assert_eq!(type_5, Err(Unsupported::StructureType(5).into()));
}

#[test]
fn only_what_takes_away_leaves_something_stale() {
    let ept = ept(Controls::all());
    let stale = |old: Attributes, new: Attributes| ept.leaves_stale(old, new);
    let read = Attributes::new(Rights::READ, MemoryType::WriteBack);
    assert!(!stale(read, read));
    assert!(
        !stale(read, Attributes::RAM),
        "more rights cost one violation at most"
    );
    assert!(!stale(
        read,
        read.with_rights(Rights::READ | Rights::USER_EXECUTE)
    ));
    assert!(stale(Attributes::RAM, read));
    assert!(stale(
        read,
        Attributes::RAM.with_memory_type(MemoryType::Uncacheable)
    ));
    assert!(stale(read, read.with_pat(Pat::Ignored)));
    assert!(stale(read, read.with_options(EptEntry::SUPPRESS_VE)));
    assert!(
        !stale(read, read.with_software(3)),
        "hardware does not see it"
    );
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let rights = prop::sample::select(vec![0x1u64, 0x3, 0x4, 0x5, 0x7, 0x400, 0x401, 0x407]);
    let memory_type = prop::sample::select(&MemoryType::ALL[..]);
    (
        rights,
        memory_type,
        any::<bool>(),
        any::<u64>(),
        any::<u8>(),
    )
        .prop_map(|(rights, memory_type, ignore, options, software)| {
            let pat = if ignore { Pat::Ignored } else { Pat::Combined };
            Attributes::new(Rights::from_bits_truncate(rights), memory_type)
                .with_pat(pat)
                .with_options(options)
                .with_software(software)
        })
}

proptest! {
    /// The laws of `Encode`, as the trait states them.
    #[test]
    fn the_mapper_can_rely_on_the_format(
        attributes in attributes(),
        controls in 0u32..128,
        page in any::<u64>(),
        level in 1u8..=5,
        link in any::<u64>(),
        suppress in any::<bool>(),
    ) {
        let controls = Controls::from_bits_truncate(controls);
        let mut ept = Ept::new(CAP, 46, WalkLength::Five, controls).unwrap();
        if suppress {
            ept = ept.suppressing_ve();
        }
        let frame = page & 0x3fff_ffff_f000;
        if ept.shape().leaf_at(level) && ept.check(attributes, level).is_ok() {
            let target = frame & !(ept.shape().size(level) - 1);
            let entry = ept.leaf(target, attributes, level);
            prop_assert_eq!(ept.decode(entry, level), Entry::Leaf { target, attributes });
            prop_assert_eq!(entry & ept.marks().all(), 0);
        }
        if level > 1 {
            let entry = ept.table(frame, level);
            let Entry::Table { frame: found, attributes: open } = ept.decode(entry, level) else {
                panic!("not a table");
            };
            prop_assert_eq!(found, frame);
            prop_assert_eq!(ept.fold(open, attributes).rights() & attributes.rights(),
                ept.rules().rights(EptEntry(attributes.rights().bits())) & attributes.rights());
        }
        let link = link & 0x3fff_ffff_f018;
        prop_assert_eq!(ept.decode(ept.empty() | link, level), Entry::Empty);
    }
}
