// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The capability MSRs that are not lists of allowed settings.

macro_rules! word {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
        #[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
        pub struct $name(pub u64);

        impl $name {
            #[inline(always)]
            const fn bit(self, bit: u32) -> bool {
                self.0 >> bit & 1 != 0
            }
        }
    };
}

word! {
    /// `IA32_VMX_BASIC` (480H). SDM Vol. 3D, "Basic VMX Information".
    Basic
}

impl Basic {
    /// The VMCS revision identifier (bits 30:0).
    pub const fn revision(self) -> u32 {
        self.0 as u32 & 0x7fff_ffff
    }

    /// Bytes to allocate for a VMCS or VMXON region (bits 44:32).
    pub const fn region_size(self) -> u32 {
        (self.0 >> 32 & 0x1fff) as u32
    }

    /// Whether VMX addresses are limited to 32 bits (bit 48): never so with Intel 64 architecture.
    pub const fn has_32_bit_addresses(self) -> bool {
        self.bit(48)
    }

    /// Whether the dual-monitor treatment of SMIs is supported (bit 49).
    pub const fn has_dual_monitor(self) -> bool {
        self.bit(49)
    }

    /// The memory type for VMCSs and what they refer to (bits 53:50): 0 is UC, 6 is WB.
    pub const fn memory_type(self) -> u8 {
        (self.0 >> 50 & 0xf) as u8
    }

    /// Whether exits due to INS and OUTS report instruction information (bit 54).
    pub const fn has_ins_outs_information(self) -> bool {
        self.bit(54)
    }

    /// Whether the "TRUE" control MSRs exist (bit 55).
    pub const fn has_true_controls(self) -> bool {
        self.bit(55)
    }

    /// Whether hardware exceptions may be injected with or without an error code regardless of
    /// vector (bit 56).
    pub const fn has_free_error_codes(self) -> bool {
        self.bit(56)
    }

    /// Whether an injected exception may be called nested (bit 58).
    pub const fn has_nested_exceptions(self) -> bool {
        self.bit(58)
    }
}

word! {
    /// `IA32_VMX_MISC` (485H). SDM Vol. 3D, "Miscellaneous Data".
    Misc
}

impl Misc {
    /// The VMX-preemption timer counts once in 2 to this many TSC ticks (bits 4:0).
    pub const fn preemption_timer_shift(self) -> u8 {
        self.0 as u8 & 0x1f
    }

    /// Whether VM exits store `IA32_EFER.LMA` into the "IA-32e mode guest" control (bit 5).
    pub const fn saves_lma(self) -> bool {
        self.bit(5)
    }

    /// Whether the activity state with this number is supported: 0 always, 1 (HLT), 2 (shutdown)
    /// and 3 (wait-for-SIPI) by bits 6 to 8, no other.
    pub const fn supports_activity(self, state: u64) -> bool {
        match state {
            0 => true,
            1 => self.bit(6),
            2 => self.bit(7),
            3 => self.bit(8),
            _ => false,
        }
    }

    /// Whether Intel PT can be used in VMX operation (bit 14).
    pub const fn has_processor_trace(self) -> bool {
        self.bit(14)
    }

    /// How many CR3-target values there are (bits 24:16).
    pub const fn cr3_targets(self) -> u32 {
        (self.0 >> 16 & 0x1ff) as u32
    }

    /// The recommended greatest number of entries in an MSR list: 512 times bits 27:25 plus one.
    pub const fn recommended_msr_count(self) -> u32 {
        ((self.0 >> 25 & 7) as u32).wrapping_add(1) << 9
    }

    /// Whether VMWRITE writes VM-exit information fields too (bit 29).
    pub const fn can_write_exit_information(self) -> bool {
        self.bit(29)
    }

    /// Whether software events may be injected with an instruction length of 0 (bit 30).
    pub const fn allows_zero_length(self) -> bool {
        self.bit(30)
    }
}

word! {
    /// `IA32_VMX_EPT_VPID_CAP` (48CH). SDM Vol. 3D, "VPID and EPT Capabilities".
    EptVpid
}

impl EptVpid {
    /// Whether execute-only translations are supported (bit 0).
    pub const fn has_execute_only(self) -> bool {
        self.bit(0)
    }

    /// Whether an EPT page walk of this many levels is supported: 4 by bit 6, 5 by bit 7.
    pub const fn supports_walk_length(self, levels: u64) -> bool {
        match levels {
            4 => self.bit(6),
            5 => self.bit(7),
            _ => false,
        }
    }

    /// Whether this memory type may be used for EPT paging structures: 0 (UC) by bit 8, 6 (WB)
    /// by bit 14.
    pub const fn supports_memory_type(self, memory_type: u64) -> bool {
        match memory_type {
            0 => self.bit(8),
            6 => self.bit(14),
            _ => false,
        }
    }

    /// Whether EPT may map 2-MByte pages (bit 16).
    pub const fn has_2m_pages(self) -> bool {
        self.bit(16)
    }

    /// Whether EPT may map 1-GByte pages (bit 17).
    pub const fn has_1g_pages(self) -> bool {
        self.bit(17)
    }

    /// Whether INVEPT exists (bit 20).
    pub const fn has_invept(self) -> bool {
        self.bit(20)
    }

    /// Whether EPT has accessed and dirty flags (bit 21).
    pub const fn has_accessed_dirty(self) -> bool {
        self.bit(21)
    }

    /// Whether EPT violations report more (bit 22).
    pub const fn has_advanced_exit_information(self) -> bool {
        self.bit(22)
    }

    /// Whether EPT enforces supervisor shadow-stack rights (bit 23).
    pub const fn has_supervisor_shadow_stack(self) -> bool {
        self.bit(23)
    }

    /// Whether INVVPID exists (bit 32).
    pub const fn has_invvpid(self) -> bool {
        self.bit(32)
    }
}
