// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program without `std`, of every library crate that says it needs none.
//!
//! No target without `std` need be installed: payload-rt has a panic handler, `std` has one, and a program with two does not compile. So
//! where a crate, or what it depends on, asks for `std`, this stops at "duplicate lang item". What is linked has no C library either.
#![no_std]
#![no_main]

use core::convert::Infallible;

use hvkit_ept::Ept;
use hvkit_ept::spec::{Controls, EptVpidCap, WalkLength};
use hvkit_page_table::{ReadEntry, Root, Width, translate};
use hvkit_shadow_paging::guest::{Access, Features, Kind, PagingMode, Privilege, Registers, probe};
use hvkit_vmcs::capability::presets;
use hvkit_vmcs::check::{Checker, Violation};
use hvkit_vmcs::seed::Seed;
use hvkit_vmcs::{fields, store::FieldsMut};
use hvkit_vmx::{ThisProcessor, detect};
use hvkit_vtd_iommu::dmar::{Builder, Dmar, Drhd, DrhdFlags, Oem, TableFlags};
use payload_rt::println;
use talc::{TalcLock, source::Manual};

payload_rt::entry!(main);

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);
/// Nothing of ours lies here, and it is mapped.
const HEAP_AT: usize = 32 << 20;
const HEAP_BYTES: usize = 1 << 20;

/// IA32_VMX_EPT_VPID_CAP of a processor with 4-level EPT, write-back tables, large pages.
const EPT_VPID_CAP: u64 = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 17;

/// Memory of zeroes: every walk ends at its root.
struct Zeroes;

impl ReadEntry for Zeroes {
    type Error = Infallible;

    fn read(&self, _: u64, _: Width) -> Result<u64, Infallible> {
        Ok(0)
    }
}

fn main() {
    // SAFETY: once, before anything is allocated; nothing else is between the payload's end and its 4 GiB of memory.
    let _ = unsafe { HEAP.lock().claim(HEAP_AT as *mut u8, HEAP_BYTES) };
    tables();
    guest();
    vmcs();
    dmar();
    // SAFETY: one processor, at CPL 0 in 64-bit mode, as payload-rt has it.
    let machine = unsafe { ThisProcessor::get() };
    println!(
        "vmx: {}",
        machine.is_ok_and(|machine| detect(&machine).is_ok())
    );
}

/// `hvkit-ept` and `hvkit-page-table`.
fn tables() {
    let capability = EptVpidCap::from_msr(EPT_VPID_CAP);
    match Ept::new(capability, 46, WalkLength::Four, Controls::empty()) {
        Ok(ept) => println!(
            "ept: {}",
            translate(&ept, &Zeroes, Root::Table(0x1000), 0x1234).is_err()
        ),
        Err(error) => println!("ept: {error}"),
    }
}

/// `hvkit-shadow-paging`.
fn guest() {
    let registers = Registers {
        cr0: 0x8001_0011,
        cr3: 0x1000,
        cr4: 0x20,
        efer: 0xd01,
        ..Registers::default()
    };
    match PagingMode::load(&registers, &Features::all(46), &Zeroes) {
        Ok(mode) => {
            let read = Access::new(Kind::Read, Privilege::User);
            println!("guest: {}", probe(&mode, &Zeroes, 0x1234, read).is_err());
        }
        Err(error) => println!("guest: {error}"),
    }
}

/// `hvkit-vmcs`.
fn vmcs() {
    let processor = presets::core_i7_5600u();
    let mut vmcs = Seed::LongMode.vmcs(&processor);
    let written = vmcs.write(fields::GUEST_RIP, 0x8000_0000_0000_0000);
    let mut told = 0u32;
    let mut tell = |_: &Violation| told = told.saturating_add(1);
    let verdict = Checker::new(&processor).check(&vmcs, &mut tell);
    println!("vmcs: {} {told} {}", written.is_ok(), verdict.outcome());
}

/// `hvkit-vtd-iommu`, which allocates.
fn dmar() {
    let drhd = Drhd {
        flags: DrhdFlags::INCLUDE_PCI_ALL,
        size: 0,
        segment: 0,
        base: 0xfed9_0000,
    };
    let built = Builder::new(39, TableFlags::empty())
        .drhd(drhd, &[])
        .build(Oem::default());
    match built {
        Ok(table) => println!(
            "dmar: {:?}",
            Dmar::parse(&table).map(|dmar| dmar.structures().count())
        ),
        Err(error) => println!("dmar: {error}"),
    }
}
