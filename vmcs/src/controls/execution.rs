// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VM-execution controls. SDM Vol. 3C, "VM-Execution Control Fields".

use super::controls;

controls! {
    /// Pin-based VM-execution controls. SDM Vol. 3C, "Pin-Based VM-Execution Controls".
    pub PinBased: u32, default1 0x0000_0016 {
        EXTERNAL_INTERRUPT_EXITING = 0, "external-interrupt exiting";
        NMI_EXITING = 3, "NMI exiting";
        VIRTUAL_NMIS = 5, "virtual NMIs";
        PREEMPTION_TIMER = 6, "activate VMX-preemption timer";
        POSTED_INTERRUPTS = 7, "process posted interrupts";
    }
}

controls! {
    /// Primary processor-based VM-execution controls. SDM Vol. 3C, "Processor-Based VM-Execution
    /// Controls".
    pub Primary: u32, default1 0x0401_e172 {
        INTERRUPT_WINDOW_EXITING = 2, "interrupt-window exiting";
        TSC_OFFSETTING = 3, "use TSC offsetting";
        HLT_EXITING = 7, "HLT exiting";
        INVLPG_EXITING = 9, "INVLPG exiting";
        MWAIT_EXITING = 10, "MWAIT exiting";
        RDPMC_EXITING = 11, "RDPMC exiting";
        RDTSC_EXITING = 12, "RDTSC exiting";
        CR3_LOAD_EXITING = 15, "CR3-load exiting";
        CR3_STORE_EXITING = 16, "CR3-store exiting";
        ACTIVATE_TERTIARY = 17, "activate tertiary controls";
        CR8_LOAD_EXITING = 19, "CR8-load exiting";
        CR8_STORE_EXITING = 20, "CR8-store exiting";
        TPR_SHADOW = 21, "use TPR shadow";
        NMI_WINDOW_EXITING = 22, "NMI-window exiting";
        MOV_DR_EXITING = 23, "MOV-DR exiting";
        UNCONDITIONAL_IO_EXITING = 24, "unconditional I/O exiting";
        IO_BITMAPS = 25, "use I/O bitmaps";
        MONITOR_TRAP_FLAG = 27, "monitor trap flag";
        MSR_BITMAPS = 28, "use MSR bitmaps";
        MONITOR_EXITING = 29, "MONITOR exiting";
        PAUSE_EXITING = 30, "PAUSE exiting";
        ACTIVATE_SECONDARY = 31, "activate secondary controls";
    }
}

controls! {
    /// Secondary processor-based VM-execution controls. SDM Vol. 3C, "Processor-Based VM-Execution
    /// Controls". They count only where [`Primary::ACTIVATE_SECONDARY`] is 1.
    pub Secondary: u32, default1 0 {
        VIRTUALIZE_APIC_ACCESSES = 0, "virtualize APIC accesses";
        ENABLE_EPT = 1, "enable EPT";
        DESCRIPTOR_TABLE_EXITING = 2, "descriptor-table exiting";
        ENABLE_RDTSCP = 3, "enable RDTSCP";
        VIRTUALIZE_X2APIC_MODE = 4, "virtualize x2APIC mode";
        ENABLE_VPID = 5, "enable VPID";
        WBINVD_EXITING = 6, "WBINVD exiting";
        UNRESTRICTED_GUEST = 7, "unrestricted guest";
        APIC_REGISTER_VIRTUALIZATION = 8, "APIC-register virtualization";
        VIRTUAL_INTERRUPT_DELIVERY = 9, "virtual-interrupt delivery";
        PAUSE_LOOP_EXITING = 10, "PAUSE-loop exiting";
        RDRAND_EXITING = 11, "RDRAND exiting";
        ENABLE_INVPCID = 12, "enable INVPCID";
        ENABLE_VM_FUNCTIONS = 13, "enable VM functions";
        VMCS_SHADOWING = 14, "VMCS shadowing";
        ENCLS_EXITING = 15, "enable ENCLS exiting";
        RDSEED_EXITING = 16, "RDSEED exiting";
        ENABLE_PML = 17, "enable PML";
        EPT_VIOLATION_VE = 18, "EPT-violation #VE";
        CONCEAL_VMX_FROM_PT = 19, "conceal VMX from PT";
        ENABLE_XSAVES = 20, "enable XSAVES/XRSTORS";
        PASID_TRANSLATION = 21, "PASID translation";
        MODE_BASED_EXECUTE_EPT = 22, "mode-based execute control for EPT";
        SUB_PAGE_WRITE_EPT = 23, "sub-page write permissions for EPT";
        PT_GUEST_PHYSICAL = 24, "Intel PT uses guest physical addresses";
        TSC_SCALING = 25, "use TSC scaling";
        USER_WAIT_PAUSE = 26, "enable user wait and pause";
        ENABLE_PCONFIG = 27, "enable PCONFIG";
        ENCLV_EXITING = 28, "enable ENCLV exiting";
        EPC_VIRTUALIZATION = 29, "enable EPC virtualization extensions";
        BUS_LOCK_DETECTION = 30, "VMM bus-lock detection";
        INSTRUCTION_TIMEOUT = 31, "instruction timeout";
    }
}

controls! {
    /// Tertiary processor-based VM-execution controls. SDM Vol. 3C, "Processor-Based VM-Execution
    /// Controls". They count only where [`Primary::ACTIVATE_TERTIARY`] is 1.
    pub Tertiary: u64, default1 0 {
        LOADIWKEY_EXITING = 0, "LOADIWKEY exiting";
        ENABLE_HLAT = 1, "enable HLAT";
        EPT_PAGING_WRITE = 2, "EPT paging-write control";
        GUEST_PAGING_VERIFICATION = 3, "guest-paging verification";
        IPI_VIRTUALIZATION = 4, "IPI virtualization";
        SEAM_GPA_WIDTH = 5, "SEAM guest-physical address width";
        ENABLE_MSR_LIST = 6, "enable MSR-list instructions";
        VIRTUALIZE_SPEC_CTRL = 7, "virtualize IA32_SPEC_CTRL";
        APIC_TIMER_VIRTUALIZATION = 8, "APIC-timer virtualization";
        ENABLE_PBNDKB = 9, "enable PBNDKB";
        PEBS_GUEST_PHYSICAL = 12, "PEBS uses guest physical addresses";
    }
}

controls! {
    /// VM-function controls. SDM Vol. 3C, "VM-Function Controls". They count only where
    /// [`Secondary::ENABLE_VM_FUNCTIONS`] is 1.
    pub VmFunctions: u64, default1 0 {
        EPTP_SWITCHING = 0, "EPTP switching";
    }
}
