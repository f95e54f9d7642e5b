// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt controllers beside the local APICs: KVM's three, or our I/O APIC.

use super::error::SnapshotError;
use crate::interrupts::io_apic::IoApicState;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::fmt;

/// KVM's controllers. KVM API, "KVM_GET_IRQCHIP".
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Interrupt controllers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Controllers {
    /// KVM's: both PICs and the I/O APIC.
    Kvm(Box<[kvm_irqchip; 3]>),
    /// The VMM's I/O APIC.
    Ours(IoApicState),
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Unions of C's.
            Controllers::Kvm(_) => f.write_str("Kvm(..)"),
            Controllers::Ours(state) => f.debug_tuple("Ours").field(state).finish(),
        }
    }
}

impl Controllers {
    /// KVM's, as they are.
    pub(crate) fn of_kvm(vm: &VmFd) -> Result<Self, SnapshotError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for chip in &mut chips {
            vm.get_irqchip(chip)
                .map_err(refused("tell of an interrupt controller"))?;
        }
        Ok(Controllers::Kvm(Box::new(chips)))
    }

    /// Gives KVM's controllers the state that `chips` have.
    pub(crate) fn restore_kvm(vm: &VmFd, chips: [kvm_irqchip; 3]) -> Result<(), SnapshotError> {
        for (chip, chip_id) in chips.into_iter().zip(CHIPS) {
            // Whatever the snapshot calls it.
            let chip = kvm_irqchip { chip_id, ..chip };
            vm.set_irqchip(&chip)
                .map_err(refused("restore an interrupt controller"))?;
        }
        Ok(())
    }
}

/// What KVM refused.
pub(crate) fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SnapshotError {
    move |error| SnapshotError::Machine {
        action,
        source: error.into(),
    }
}
