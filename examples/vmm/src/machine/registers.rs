// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU's registers as text, for the reader of a crash.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use std::fmt;

/// The registers of one vCPU at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Registers {
    /// General registers.
    pub general: kvm_regs,
    /// Segments, control registers and tables.
    pub system: kvm_sregs,
}

impl Registers {
    /// Reads them; nothing if KVM refuses.
    #[must_use]
    pub fn of(vcpu: &VcpuFd) -> Option<Box<Self>> {
        Some(Box::new(Registers {
            general: vcpu.get_regs().ok()?,
            system: vcpu.get_sregs().ok()?,
        }))
    }

    /// Whether these are the values of a processor just reset (SDM 3A, "Processor State After
    /// Reset"): AMD's KVM resets a vCPU before it reports a triple fault.
    #[must_use]
    pub fn are_reset_values(&self) -> bool {
        self.general.rip == 0xfff0 && self.system.cs.base == 0xffff_0000
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.general;
        let s = &self.system;
        writeln!(
            f,
            "rip {:016x} rsp {:016x} rflags {:08x}",
            g.rip, g.rsp, g.rflags
        )?;
        for row in [
            [
                ("rax", g.rax),
                ("rbx", g.rbx),
                ("rcx", g.rcx),
                ("rdx", g.rdx),
            ],
            [
                ("rsi", g.rsi),
                ("rdi", g.rdi),
                ("rbp", g.rbp),
                ("r8 ", g.r8),
            ],
            [
                ("r9 ", g.r9),
                ("r10", g.r10),
                ("r11", g.r11),
                ("r12", g.r12),
            ],
            [
                ("r13", g.r13),
                ("r14", g.r14),
                ("r15", g.r15),
                ("cr2", s.cr2),
            ],
            [
                ("cr0", s.cr0),
                ("cr3", s.cr3),
                ("cr4", s.cr4),
                ("efer", s.efer),
            ],
        ] {
            let row = row.map(|(name, value)| format!("{name} {value:016x}"));
            writeln!(f, "{}", row.join(" "))?;
        }
        for (name, segment) in [
            ("cs", &s.cs),
            ("ds", &s.ds),
            ("es", &s.es),
            ("ss", &s.ss),
            ("fs", &s.fs),
            ("gs", &s.gs),
            ("tr", &s.tr),
        ] {
            writeln!(f, "{name} {}", Segment(segment))?;
        }
        write!(
            f,
            "gdt base {:016x} limit {:04x}  idt base {:016x} limit {:04x}",
            s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit
        )?;
        if self.are_reset_values() {
            write!(
                f,
                "\n(the host reset the vCPU before it reported the fault)"
            )?;
        }
        Ok(())
    }
}

struct Segment<'a>(&'a kvm_segment);

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        write!(
            f,
            "{:04x} base {:016x} limit {:08x} type {:x} dpl {}{}{}{}",
            s.selector,
            s.base,
            s.limit,
            s.type_,
            s.dpl,
            if s.l != 0 { " 64-bit" } else { "" },
            if s.db != 0 { " 32-bit" } else { "" },
            if s.present == 0 { " absent" } else { "" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_names_what_a_reader_looks_for() {
        let mut registers = Registers {
            general: kvm_regs::default(),
            system: kvm_sregs::default(),
        };
        registers.general.rip = 0x1234;
        registers.general.r13 = 0xdead;
        registers.system.cr2 = 0xffff_8000_0000_0000;
        registers.system.cs.selector = 0x10;
        let text = registers.to_string();
        for part in [
            "rip 0000000000001234",
            "r13 000000000000dead",
            "cr2 ffff800000000000",
            "cs 0010 base 0000000000000000",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("reset"));
        registers.general.rip = 0xfff0;
        registers.system.cs.base = 0xffff_0000;
        assert!(registers.to_string().contains("reset the vCPU"));
    }
}
