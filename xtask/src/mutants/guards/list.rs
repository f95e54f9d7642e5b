// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guards: at least one for each known class of bugs that code, and not a type, keeps out.

/// A guard, and what notices that it is gone.
pub(super) struct Guard {
    /// The package's folder.
    pub(super) package: &'static str,
    /// The file, from that folder.
    pub(super) file: &'static str,
    /// The guard, as it is written; once in the file.
    pub(super) with: &'static str,
    /// The code without it.
    pub(super) without: &'static str,
    /// The test target: `lib`, or a file or folder of `tests`.
    pub(super) target: &'static str,
    /// The test function.
    pub(super) test: &'static str,
}

pub(super) const GUARDS: &[Guard] = &[
    // XSA-480: freed while hardware may still read it.
    Guard {
        package: "page-table",
        file: "src/stale.rs",
        with: "if let Err(error) = by.invalidate(&stale) {",
        without: "self.free_chain(core::mem::replace(&mut stale.chain, Chain::EMPTY));
        if let Err(error) = by.invalidate(&stale) {",
        target: "stale",
        test: "frames_return_only_after_the_invalidation",
    },
    // XSA-328: a live entry is changed by one store.
    Guard {
        package: "page-table",
        file: "src/passes.rs",
        with: "let mut marked = passes.marked;",
        without: "memory.write(slot.at, width, format.empty());
        let mut marked = passes.marked;",
        target: "moments",
        test: "split_any_range_to_each_level",
    },
    // XSA-304: no large executable pages.
    Guard {
        package: "page-table",
        file: "src/build.rs",
        with: "largest = sizes.largest_executable;",
        without: "",
        target: "raw",
        test: "sizes_forbid_large_pages_and_large_executable_ones",
    },
    // CVE-2021-38198: rights are part of a shadow's key.
    Guard {
        package: "shadow-paging",
        file: "src/mmu/key.rs",
        with: "rights: table.above,",
        without: "rights: stage.all(),",
        target: "mmu",
        test: "tables_under_other_rights_have_shadows_of_their_own",
    },
    // CVE-2026-42488: what fails changes nothing.
    Guard {
        package: "shadow-paging",
        file: "src/mmu/space.rs",
        with: "let same = space.top == top;",
        without: "let same = space.top == top;
        space.top = top;",
        target: "mmu",
        test: "a_root_that_cannot_be_loaded_leaves_the_old_one",
    },
    // KVM 65855ed8: compared before it is linked again.
    Guard {
        package: "shadow-paging",
        file: "src/mmu/build.rs",
        with: "self.refresh(machine, id, pass)?;",
        without: "let _ = pass;",
        target: "mmu",
        test: "a_stale_table_is_compared_before_it_is_linked_again",
    },
    // CVE-2023-30456.
    Guard {
        package: "vmcs",
        file: "src/check/guest/registers.rs",
        with: "run.require(guest.cr4 & PAE != 0, &IA32E_PAE, cr4, says);",
        without: "",
        target: "lib",
        test: "each_rule_breaks_alone_and_holds_at_its_boundary",
    },
    // XSA-378: reserved memory of a device.
    Guard {
        package: "vtd-iommu",
        file: "src/driver/place.rs",
        with: "self.devices.get(&source).filter(|_| pasid.is_none());",
        without: "self.devices.get(&source).filter(|_| false);",
        target: "driver",
        test: "a_pasid_that_goes_leaves_reserved_memory_reserved",
    },
    // XSA-346: a page is given away before the unit forgot it.
    Guard {
        package: "vtd-iommu",
        file: "src/emulation/caches/mod.rs",
        with: "self.small.remove(Tag::new(space, first));",
        without: "",
        target: "emulation",
        test: "after_unmap_and_wait_it_is_over",
    },
    // CVE-2024-35843: a device that is removed.
    Guard {
        package: "vtd-iommu",
        file: "src/driver/release.rs",
        with: "self.memory.write(at, Width::Eight, 0);",
        without: "",
        target: "driver",
        test: "an_unplugged_device_leaves_nothing_behind",
    },
    // Wrong layouts.
    Guard {
        package: "vtd-iommu",
        file: "src/spec/interrupt/irte.rs",
        with: "u64 [1; 17:16] sq, with_sq;",
        without: "u64 [1; 21:20] sq, with_sq;",
        target: "twins",
        test: "every_high_half_and_requesters_near_it",
    },
    // An address and a length that wrap.
    Guard {
        package: "virtio-devices",
        file: "src/iommu/endpoint.rs",
        with: "is_ok_and(|length| iova.0.checked_add(length).is_some());",
        without: "is_ok();",
        target: "lib",
        test: "the_fault_is_at_the_first_byte_that_is_refused",
    },
    Guard {
        package: "virtio-devices",
        file: "src/queue/chain.rs",
        with: "return Err(wraps(address, length));
        }
        // At most",
        without: "let _ = wraps;
        }
        // At most",
        target: "suite",
        test: "buffers_that_wrap_are_refused",
    },
    // CVE-2026-5747: nothing of a queue is writable once it is live.
    Guard {
        package: "virtio-devices",
        file: "src/transport/session.rs",
        with: "if self.resetting || self.status.get().contains(Status::DRIVER_OK) {",
        without: "if self.resetting {",
        target: "suite",
        test: "every_register_in_every_status",
    },
    // CVE-2016-5403: a chain that loops, beyond what the queue's size allows.
    Guard {
        package: "virtio-devices",
        file: "src/queue/chain.rs",
        with: "self.room.get_mut(..size).unwrap_or_default()
    }",
        without: "grow(&mut self.room, 1 << 16);
        &mut self.room[..]
    }",
        target: "suite",
        test: "loops_end",
    },
    // CVE-2019-14835: a length of the guest's, believed.
    Guard {
        package: "virtio-devices",
        file: "src/queue/chain.rs",
        with: "if numbers.bytes > MOST_BYTES {",
        without: "if false {",
        target: "suite",
        test: "at_most_four_gib_in_total",
    },
    // XSA-164, CVE-2020-13754: beyond the MSI-X table.
    Guard {
        package: "virtio-devices",
        file: "src/pci/msix.rs",
        with: "data: (image >> 64) as u32,",
        without: "data: (image >> 64) as u32 | (image >> 97) as u32,",
        target: "suite",
        test: "table_writes_split_over_fields_and_end_at_the_table",
    },
    // XSA-337: read-only fields.
    Guard {
        package: "virtio-devices",
        file: "src/pci/config.rs",
        with: "*byte = (*byte & !writable) | (new & writable);",
        without: "*byte = *new | *writable & 0;",
        target: "suite",
        test: "a_write_reaches_the_writable_bits_it_covers_and_no_others",
    },
    // CVE-2016-9083: counts that wrap.
    Guard {
        package: "virtio-devices",
        file: "src/pci/msix.rs",
        with: "if !(1..=MAX_VECTORS).contains(&count) {",
        without: "if false {",
        target: "suite",
        test: "the_number_of_vectors_has_limits",
    },
    // CVE-2026-45782: a request that is under way when its memory is taken away.
    Guard {
        package: "virtio-devices",
        file: "src/transport/session.rs",
        with: "if !self.workers.is_empty() {
            return Outcome::Taken;",
        without: "if false {
            return Outcome::Taken;",
        target: "suite",
        test: "a_reset_is_not_complete_before_the_worker_has_stopped",
    },
    // CVE-2026-27211: an image that names another file.
    Guard {
        package: "virtio-devices",
        file: "src/block/qcow2.rs",
        with: "Backing::Refused => None,",
        without: "Backing::Refused => left.checked_sub(1),",
        target: "suite",
        test: "another_file_is_opened_only_if_that_is_allowed",
    },
    // XSA-164: the MSI-X table of a device that is passed through.
    Guard {
        package: "examples/vmm",
        file: "src/passthrough/bars.rs",
        with: "page(hole.start)..behind.unwrap_or(u64::MAX)",
        without: "behind.unwrap_or(u64::MAX)..behind.unwrap_or(u64::MAX)",
        target: "lib",
        test: "pages_with_msix_structures_are_not_mapped",
    },
    // CVE-2019-18960's kind: memory that a guest fills.
    Guard {
        package: "examples/vmm",
        file: "src/console/output.rs",
        with: " || self.waiting.len() >= CAPACITY",
        without: "",
        target: "lib",
        test: "a_guest_that_never_ends_its_line_fills_no_memory",
    },
    // CVE-2016-9084: what was taken before a count turned out to be too large.
    Guard {
        package: "examples/vmm",
        file: "src/interrupts/msi.rs",
        with: "self.router.release(self.vectors.iter().map(|v| v.gsi));",
        without: "",
        target: "lib",
        test: "too_many_vectors_leave_nothing_taken",
    },
];
