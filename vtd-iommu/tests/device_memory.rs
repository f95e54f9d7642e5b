// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory as a device sees it, against vm-memory's way of seeing the same, and what ends what is kept.

use std::sync::Arc;

use hvkit_vtd_iommu::emulation::{
    Caching, DeviceIommu, DeviceMemory, Nobody, Options, SharedUnit, Unit,
};
use hvkit_vtd_iommu::spec::RequesterId;
use vm_memory::iommu::IommuMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const DEVICE: RequesterId = RequesterId(0x18);
const LEAVES: u64 = 0x5000;

type Memory = GuestMemoryMmap<()>;
type Shared = Arc<SharedUnit<Memory, Nobody>>;

fn set(memory: &Memory, at: u64, word: u64) {
    memory.write_obj(word, GuestAddress(at)).unwrap();
}

/// Pages 1 to 4 lead to two neighbours, a place apart, and one over the border of two regions; 5 can be read, 6 be
/// written, 7 leads beyond memory; 2 MiB at 0x20_0000 lead to 0.
fn machine(caching: Caching) -> (Memory, Shared) {
    let ranges = [
        (GuestAddress(0), 0x8_0000),
        (GuestAddress(0x8_0000), 0x8_0000),
    ];
    let memory = Memory::from_ranges(&ranges).unwrap();
    set(&memory, 0x1000, 0x2001);
    set(&memory, 0x2180, 0x3001);
    set(&memory, 0x2188, 0x0701);
    set(&memory, 0x3000, 0x4003);
    set(&memory, 0x4000, LEAVES | 3);
    set(&memory, 0x4008, 0x83);
    let leaves = [
        0x9003,
        0xa003,
        0x7_f003,
        0x8_0003,
        0xd001,
        0xe002,
        0x1000_0003,
    ];
    for (page, leaf) in (1..).zip(leaves) {
        set(&memory, LEAVES + 8 * page, leaf);
    }
    let unit = Unit::new(Options::new(39).with_caching(caching)).unwrap();
    let shared = SharedUnit::new(unit, memory.clone(), Nobody);
    shared.write(0x20, &0x1000u64.to_le_bytes());
    command(&shared, 1 << 30);
    command(&shared, 1 << 31);
    (memory, shared)
}

fn command(shared: &Shared, command: u32) {
    shared.write(0x18, &command.to_le_bytes());
}

fn seen_by(shared: &Shared) -> DeviceMemory<Memory, Nobody> {
    DeviceMemory::new(DeviceIommu::new(Arc::clone(shared), DEVICE))
}

/// Host addresses and lengths, or how many of them came before an error.
fn places(
    memory: &impl GuestMemory,
    address: u64,
    length: usize,
    access: Permissions,
) -> Result<Vec<(usize, usize)>, Option<usize>> {
    let slices = memory
        .get_slices(GuestAddress(address), length, access)
        .map_err(|_| None)?;
    let mut found = Vec::new();
    for slice in slices {
        let Ok(slice) = slice else {
            return Err(Some(found.len()));
        };
        found.push((slice.ptr_guard().as_ptr() as usize, slice.len()));
    }
    Ok(found)
}

/// Every byte of slices, as where it is.
fn bytes(places: &[(usize, usize)]) -> Vec<usize> {
    places
        .iter()
        .flat_map(|(at, length)| *at..at + length)
        .collect()
}

#[test]
fn it_is_what_vm_memory_makes_of_the_same_unit() {
    for caching in [Caching::UntilInvalidated, Caching::Never] {
        let (memory, shared) = machine(caching);
        let ours = seen_by(&shared);
        let device = DeviceIommu::new(Arc::clone(&shared), DEVICE);
        let theirs = IommuMemory::new(memory, device, true, ());
        let mut allowed = 0;
        for access in [
            Permissions::Read,
            Permissions::Write,
            Permissions::ReadWrite,
        ] {
            for start in (0..0x9000).step_by(0x7f0).chain([0x20_0000, 0x27_fff0]) {
                for length in [0, 1, 8, 0xff0, 0x1000, 0x1800, 0x3001] {
                    let (mine, other) = (
                        places(&ours, start, length, access),
                        places(&theirs, start, length, access),
                    );
                    let case = format!("{start:#x} {length:#x} {access:?}");
                    assert_eq!(
                        mine.as_ref().map(|p| bytes(p)).map_err(|_| ()),
                        other.as_ref().map(|p| bytes(p)).map_err(|_| ()),
                        "{case}"
                    );
                    let whole = ours.check_range(GuestAddress(start), length, access);
                    assert_eq!(whole, mine.is_ok(), "{case}");
                    allowed += usize::from(mine.is_ok());
                }
            }
        }
        assert!(allowed > 100, "{allowed}");
    }
}

#[test]
fn neighbours_are_one_place_and_regions_are_not() {
    let (_, shared) = machine(Caching::UntilInvalidated);
    let memory = seen_by(&shared);
    let lengths = |address, length| -> Vec<usize> {
        let found = places(&memory, address, length, Permissions::ReadWrite).unwrap();
        found.iter().map(|(_, length)| *length).collect()
    };
    assert_eq!(lengths(0x1800, 0x1000), [0x1000]);
    assert_eq!(lengths(0x2800, 0x1000), [0x800, 0x800]);
    // One place of the unit's in two regions.
    assert_eq!(lengths(0x3000, 0x2000), [0x1000, 0x1000]);
}

#[test]
fn what_is_refused_is_an_error_and_a_fault() {
    let (_, shared) = machine(Caching::UntilInvalidated);
    let memory = seen_by(&shared);
    for (address, length, access) in [
        (0x8000, 8, Permissions::Read),
        (0x5000, 8, Permissions::Write),
        (0x6000, 8, Permissions::Read),
        (0x6000, 8, Permissions::ReadWrite),
        (0x4ff8, 16, Permissions::Write),
        (0x6000, 0x1_0000, Permissions::Write),
        (1 << 39, 8, Permissions::Read),
        (u64::MAX - 3, 8, Permissions::Read),
        (u64::MAX, usize::MAX, Permissions::Read),
        (0xfee0_0000, 4, Permissions::Write),
    ] {
        // Twice: a refusal is not kept, and nothing of the first is.
        for _ in 0..2 {
            let found = places(&memory, address, length, access);
            assert_eq!(found, Err(None), "{address:#x} {length:#x}");
        }
    }
    let pending = |shared: &Shared| {
        let mut status = [0; 4];
        shared.read(0x34, &mut status);
        status[0] & 2 != 0
    };
    assert!(pending(&shared));
    // A page that leads beyond memory: the unit allows it, memory does not.
    assert_eq!(places(&memory, 0x7000, 8, Permissions::Read), Err(Some(0)));
}

#[test]
fn a_scattered_range_is_bounded() {
    let (memory, shared) = machine(Caching::UntilInvalidated);
    for index in 0..512 {
        set(&memory, 0x1_0000 + 8 * index, 0x1_1003);
        let leaf = if index % 2 == 0 { 0x9003 } else { 0xb003 };
        set(&memory, 0x1_1000 + 8 * index, leaf);
    }
    set(&memory, 0x3008, 0x1_0003);
    let memory = seen_by(&shared);
    let most = places(&memory, 1 << 30, 4096 << 12, Permissions::Read);
    assert_eq!(most.unwrap().len(), 4096);
    let more = places(&memory, 1 << 30, 4097 << 12, Permissions::Read);
    assert_eq!(more, Err(None));
}

/// What invalidations, by register, end.
#[test]
fn what_is_kept_ends_with_any_invalidation() {
    const CONTEXT: (u32, u64) = (0x28, 1 << 63 | 1 << 61);
    const GLOBAL: (u32, u64) = (0x508, 1 << 63 | 1 << 60);
    const DOMAIN: (u32, u64) = (0x508, 1 << 63 | 2 << 60 | 7 << 32);
    const PAGE: (u32, u64) = (0x508, 1 << 63 | 3 << 60 | 7 << 32);
    let reads = |memory: &DeviceMemory<_, _>| places(memory, 0x1000, 8, Permissions::Read);
    for invalidations in [&[GLOBAL][..], &[DOMAIN], &[PAGE], &[CONTEXT, GLOBAL]] {
        let (memory, shared) = machine(Caching::UntilInvalidated);
        let (device, other) = (seen_by(&shared), seen_by(&shared));
        let before = reads(&device).unwrap();
        assert_eq!(reads(&other).as_ref(), Ok(&before));
        set(&memory, LEAVES + 8, 0);
        assert_eq!(reads(&device).as_ref(), Ok(&before));
        // IVA: page 1.
        shared.write(0x500, &0x1000u64.to_le_bytes());
        assert_eq!(reads(&device).as_ref(), Ok(&before));
        for (register, value) in invalidations {
            shared.write(*register, &value.to_le_bytes());
        }
        assert_eq!(reads(&device), Err(None));
        assert_eq!(reads(&other), Err(None));
        assert_eq!(reads(&device.clone()), Err(None));
        // No translation any more: the address itself.
        command(&shared, 0);
        assert_ne!(reads(&device).unwrap(), before);
    }
}

#[test]
fn a_unit_that_keeps_nothing_is_asked_each_time() {
    let (memory, shared) = machine(Caching::Never);
    let device = seen_by(&shared);
    assert!(places(&device, 0x1000, 8, Permissions::Read).is_ok());
    set(&memory, LEAVES + 8, 0);
    assert_eq!(places(&device, 0x1000, 8, Permissions::Read), Err(None));
}

#[test]
fn another_unit_in_its_place_is_asked_anew() {
    let (_, shared) = machine(Caching::UntilInvalidated);
    let device = seen_by(&shared);
    let translated = places(&device, 0x1000, 8, Permissions::Read).unwrap();
    let fresh = Unit::new(Options::new(39)).unwrap();
    shared.with(|unit, _, _| *unit = fresh);
    let plain = places(&device, 0x1000, 8, Permissions::Read).unwrap();
    assert_ne!(plain, translated);
}
