// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of vm-memory's kind behind the emulated unit.

use hvkit_vtd_iommu::emulation::{DeviceIommu, Nobody, Options, SharedUnit, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use vm_memory::iommu::{Iommu, IommuMemory};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const DEVICE: RequesterId = RequesterId(0x18);

type Memory = GuestMemoryMmap<()>;

/// Pages 1 and 2 lead to 0x9000 and 0xb000, page 3 can be read only, 2 MiB at 0x20_0000 lead to 0.
fn device() -> (Memory, DeviceIommu<Memory, Nobody>) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let set = |at, word: u64| memory.write_obj(word, GuestAddress(at)).unwrap();
    set(0x1000, 0x2001);
    set(0x2180, 0x3001);
    set(0x2188, 0x0701);
    set(0x3000, 0x4003);
    set(0x4000, 0x5003);
    set(0x4008, 0x83);
    set(0x5008, 0x9003);
    set(0x5010, 0xb003);
    set(0x5018, 0xd001);
    let unit = Unit::new(Options::new(39)).unwrap();
    let shared = SharedUnit::new(unit, memory.clone(), Nobody);
    shared.write(0x20, &0x1000u64.to_le_bytes());
    shared.write(0x18, &(1u32 << 30).to_le_bytes());
    shared.write(0x18, &(1u32 << 31).to_le_bytes());
    let mut status = [0; 4];
    shared.read(0x1c, &mut status);
    assert_eq!(u32::from_le_bytes(status), 3 << 30);
    (memory, DeviceIommu::new(shared, DEVICE))
}

#[test]
fn a_range_is_the_places_it_leads_to() {
    let (_, device) = device();
    let places: Vec<_> = device
        .translate(GuestAddress(0x1ff0), 0x20, Permissions::ReadWrite)
        .unwrap()
        .map(|range| (range.base.0, range.length))
        .collect();
    assert_eq!(places, [(0x9ff0, 0x10), (0xb000, 0x10)]);
    // One page of 2 MiB is one place.
    let places = device.translate(GuestAddress(0x20_1000), 0xf_0000, Permissions::Read);
    let places: Vec<_> = places.unwrap().map(|r| (r.base.0, r.length)).collect();
    assert_eq!(places, [(0x1000, 0xf_0000)]);
}

#[test]
fn memory_behind_it_is_read_and_written() {
    let (memory, device) = device();
    let behind = IommuMemory::new(memory.clone(), device, true, ());
    let slices = behind.get_slices(GuestAddress(0x1ffc), 8, Permissions::Write);
    for (slice, value) in slices.unwrap().zip([1u32, 2]) {
        slice.unwrap().write_obj(value, 0).unwrap();
    }
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x9ffc)).unwrap(), 1);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0xb000)).unwrap(), 2);
}

#[test]
fn others_use_the_unit_between_invalidations_and_may_end_them() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let unit = Unit::new(Options::new(39).with_caching_mode()).unwrap();
    let shared = SharedUnit::new(unit, memory.clone(), Nobody);
    // A full queue of global invalidations of the IOTLB, 255 of them, for a requester that is watched.
    for at in 0..256 {
        let place = GuestAddress(0x8000 + 16 * at);
        memory.write_obj(0x12u64, place).unwrap();
    }
    shared.with(|unit, memory, host| unit.watch(memory, host, DEVICE, 64));
    shared.write(0x90, &0x8000u64.to_le_bytes());
    shared.write(0x18, &(1u32 << 26).to_le_bytes());
    let head = || {
        let mut head = [0; 8];
        shared.read(0x80, &mut head);
        u64::from_le_bytes(head)
    };
    // This would stand still if the unit were held.
    let heads = std::cell::RefCell::new(Vec::new());
    shared.write_while(0x88, &0xff0u64.to_le_bytes(), || {
        heads.borrow_mut().push(head());
        heads.borrow().len() < 10
    });
    let expected: Vec<u64> = (1..=10).map(|done| done << 4).collect();
    assert_eq!((heads.into_inner(), head()), (expected, 0xa0));
    shared.write(0x88, &0xff0u64.to_le_bytes());
    assert_eq!(head(), 0xff0);
}

#[test]
fn what_is_not_allowed_is_an_error_and_a_fault() {
    let (_, device) = device();
    for (address, length, access) in [
        (0x5000, 8, Permissions::Read),
        (0x3000, 8, Permissions::Write),
        (0x3000, 8, Permissions::ReadWrite),
        // Into a hole, beyond the width, over the end of the address space.
        (0x3ff8, 16, Permissions::Read),
        (1 << 39, 8, Permissions::Read),
        (u64::MAX - 3, 8, Permissions::Read),
        (u64::MAX, usize::MAX, Permissions::Read),
        (0xfee0_0000, 4, Permissions::Write),
    ] {
        let done = device.translate(GuestAddress(address), length, access);
        assert!(done.is_err(), "{address:#x} {length:#x}");
    }
    assert!(
        device
            .translate(GuestAddress(0x3000), 8, Permissions::Read)
            .is_ok()
    );
    assert_eq!(
        device
            .translate(GuestAddress(0x1000), 0, Permissions::Read)
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_scattered_range_is_bounded() {
    let (memory, device) = device();
    let set = |at, word: u64| memory.write_obj(word, GuestAddress(at)).unwrap();
    // 2^18 pages, each of two frames in turn.
    for index in 0..512 {
        set(0x6000 + 8 * index, 0x7003);
        set(
            0x7000 + 8 * index,
            if index % 2 == 0 { 0x9003 } else { 0xb003 },
        );
    }
    set(0x3008, 0x6003);
    let most = device.translate(GuestAddress(1 << 30), 4096 << 12, Permissions::Read);
    assert_eq!(most.unwrap().count(), 4096);
    let more = device.translate(GuestAddress(1 << 30), 4097 << 12, Permissions::Read);
    assert!(more.is_err());
}
