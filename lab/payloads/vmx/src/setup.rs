// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMCS of guests that run in this program's own memory, with its page tables.

use core::arch::asm;

use hvkit_vmcs::controls::{PinBased, Primary, Secondary};
use hvkit_vmcs::encoding::Class;
use hvkit_vmcs::seed::Seed;
use hvkit_vmcs::store::{Fields, FieldsMut, NoSuchField};
use hvkit_vmcs::{Processor, fields as f};
use hvkit_vmx::Current;

/// The guest's stack: 4 KiB.
static mut STACK: [u128; 256] = [0; 256];

/// 64-bit mode at `code`, this program's segments and page tables.
pub(crate) fn guest(
    vmcs: &mut Current<'_>,
    processor: &Processor,
    code: extern "C" fn() -> !,
) -> Result<(), NoSuchField> {
    let seed = Seed::LongMode.vmcs(processor);
    for info in &f::ALL {
        let is_ours = matches!(info.encoding.class(), Class::Control | Class::Guest);
        if let (true, true, Some(value)) = (
            is_ours,
            info.exists.on(&processor.vmx),
            seed.get(info.encoding),
        ) {
            vmcs.set(info.encoding, value)?;
        }
    }
    let (cr3, gdt): (u64, [u8; 10]);
    // SAFETY: reads a register; stores into a local.
    unsafe {
        asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack));
        let mut register = [0; 10];
        asm!("sgdt [{}]", in(reg) &mut register, options(nostack));
        gdt = register;
    }
    let [_, _, base @ ..] = gdt;
    vmcs.write(f::GUEST_CR3, cr3)?;
    vmcs.write(f::GUEST_GDTR_BASE, u64::from_le_bytes(base))?;
    vmcs.write(f::GUEST_RIP, code as usize as u64)?;
    vmcs.write(f::GUEST_RSP, &raw const STACK as u64 + 4096 - 8)
}

/// Sets control bits that the processor has.
pub(crate) fn controls(
    vmcs: &mut Current<'_>,
    pin: PinBased,
    primary: Primary,
    secondary: Secondary,
) -> Result<(), NoSuchField> {
    let or = |old: Option<u32>, new: u32| old.unwrap_or(0) | new;
    let value = or(vmcs.read(f::PIN_BASED_CONTROLS), pin.bits());
    vmcs.write(f::PIN_BASED_CONTROLS, value)?;
    let value = or(vmcs.read(f::PRIMARY_CONTROLS), primary.bits());
    vmcs.write(f::PRIMARY_CONTROLS, value)?;
    let value = or(vmcs.read(f::SECONDARY_CONTROLS), secondary.bits());
    vmcs.write(f::SECONDARY_CONTROLS, value)
}
