// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control fields.

use super::{Exists::*, fields};
use crate::controls::{Primary as P, Secondary as S, Tertiary as T, VmFunctions};

fields! { Control, CONTROL:
    W16 {
        VPID = 0, "Virtual-processor identifier (VPID)", Secondary(S::ENABLE_VPID), @960;
        POSTED_INTERRUPT_VECTOR = 1, "Posted-interrupt notification vector", Pin(crate::controls::PinBased::POSTED_INTERRUPTS), @962;
        EPTP_INDEX = 2, "EPTP index", Secondary(S::EPT_VIOLATION_VE);
        HLAT_PREFIX_SIZE = 3, "HLAT prefix size", Tertiary(T::ENABLE_HLAT);
        LAST_PID_POINTER_INDEX = 4, "Last PID-pointer index", Tertiary(T::IPI_VIRTUALIZATION);
        VIRTUAL_TIMER_VECTOR = 5, "Virtual timer vector", Tertiary(T::APIC_TIMER_VIRTUALIZATION);
    }
    W64 {
        IO_BITMAP_A = 0, "Address of I/O bitmap A", Always, @40;
        IO_BITMAP_B = 1, "Address of I/O bitmap B", Always, @48;
        MSR_BITMAP = 2, "Address of MSR bitmaps", Primary(P::MSR_BITMAPS), @56;
        EXIT_MSR_STORE_ADDRESS = 3, "VM-exit MSR-store address", Always, @64;
        EXIT_MSR_LOAD_ADDRESS = 4, "VM-exit MSR-load address", Always, @72;
        ENTRY_MSR_LOAD_ADDRESS = 5, "VM-entry MSR-load address", Always, @80;
        EXECUTIVE_VMCS_POINTER = 6, "Executive-VMCS pointer", Always;
        PML_ADDRESS = 7, "PML address", Secondary(S::ENABLE_PML), @312;
        TSC_OFFSET = 8, "TSC offset", Always, @88;
        VIRTUAL_APIC_ADDRESS = 9, "Virtual-APIC address", Primary(P::TPR_SHADOW), @96;
        APIC_ACCESS_ADDRESS = 10, "APIC-access address", Secondary(S::VIRTUALIZE_APIC_ACCESSES), @104;
        POSTED_INTERRUPT_DESCRIPTOR = 11, "Posted-interrupt descriptor address", Pin(crate::controls::PinBased::POSTED_INTERRUPTS), @112;
        VM_FUNCTION_CONTROLS = 12, "VM-function controls", Secondary(S::ENABLE_VM_FUNCTIONS), @296;
        EPT_POINTER = 13, "EPT pointer (EPTP)", Secondary(S::ENABLE_EPT), @120;
        EOI_EXIT_BITMAP_0 = 14, "EOI-exit bitmap 0", Secondary(S::VIRTUAL_INTERRUPT_DELIVERY), @128;
        EOI_EXIT_BITMAP_1 = 15, "EOI-exit bitmap 1", Secondary(S::VIRTUAL_INTERRUPT_DELIVERY), @136;
        EOI_EXIT_BITMAP_2 = 16, "EOI-exit bitmap 2", Secondary(S::VIRTUAL_INTERRUPT_DELIVERY), @144;
        EOI_EXIT_BITMAP_3 = 17, "EOI-exit bitmap 3", Secondary(S::VIRTUAL_INTERRUPT_DELIVERY), @152;
        EPTP_LIST_ADDRESS = 18, "EPTP-list address", VmFunction(VmFunctions::EPTP_SWITCHING), @304;
        VMREAD_BITMAP = 19, "VMREAD-bitmap address", Secondary(S::VMCS_SHADOWING), @280;
        VMWRITE_BITMAP = 20, "VMWRITE-bitmap address", Secondary(S::VMCS_SHADOWING), @288;
        VE_INFORMATION_ADDRESS = 21, "Virtualization-exception information address", Secondary(S::EPT_VIOLATION_VE);
        XSS_EXITING_BITMAP = 22, "XSS-exiting bitmap", Secondary(S::ENABLE_XSAVES), @160;
        ENCLS_EXITING_BITMAP = 23, "ENCLS-exiting bitmap", Secondary(S::ENCLS_EXITING), @320;
        SPP_TABLE_POINTER = 24, "Sub-page-permission-table pointer (SPPTP)", Secondary(S::SUB_PAGE_WRITE_EPT);
        TSC_MULTIPLIER = 25, "TSC multiplier", Secondary(S::TSC_SCALING), @328;
        TERTIARY_CONTROLS = 26, "Tertiary processor-based VM-execution controls", Primary(P::ACTIVATE_TERTIARY);
        ENCLV_EXITING_BITMAP = 27, "ENCLV-exiting bitmap", Secondary(S::ENCLV_EXITING);
        LOW_PASID_DIRECTORY = 28, "Low PASID directory address", Secondary(S::PASID_TRANSLATION);
        HIGH_PASID_DIRECTORY = 29, "High PASID directory address", Secondary(S::PASID_TRANSLATION);
        SEAM_SHARED_EPT_POINTER = 30, "SEAM shared EPT pointer", Tertiary(T::SEAM_GPA_WIDTH);
        PCONFIG_EXITING_BITMAP = 31, "PCONFIG-exiting bitmap", Secondary(S::ENABLE_PCONFIG);
        HLAT_POINTER = 32, "Hypervisor-managed linear-address translation pointer (HLATP)", Tertiary(T::ENABLE_HLAT);
        PID_POINTER_TABLE = 33, "PID-pointer table address", Tertiary(T::IPI_VIRTUALIZATION);
        SECONDARY_EXIT_CONTROLS = 34, "Secondary VM-exit controls", Exit(crate::controls::ExitPrimary::ACTIVATE_SECONDARY), @336;
        SPEC_CTRL_MASK = 37, "IA32_SPEC_CTRL mask", Tertiary(T::VIRTUALIZE_SPEC_CTRL);
        SPEC_CTRL_SHADOW = 38, "IA32_SPEC_CTRL shadow", Tertiary(T::VIRTUALIZE_SPEC_CTRL);
        GUEST_DEADLINE_SHADOW = 39, "Guest deadline shadow", Tertiary(T::APIC_TIMER_VIRTUALIZATION);
        INJECTED_EVENT_DATA = 41, "Injected-event data", Fred;
    }
    W32 {
        PIN_BASED_CONTROLS = 0, "Pin-based VM-execution controls", Always, @744;
        PRIMARY_CONTROLS = 1, "Primary processor-based VM-execution controls", Always, @748;
        EXCEPTION_BITMAP = 2, "Exception bitmap", Always, @752;
        PAGE_FAULT_ERROR_MASK = 3, "Page-fault error-code mask", Always, @756;
        PAGE_FAULT_ERROR_MATCH = 4, "Page-fault error-code match", Always, @760;
        CR3_TARGET_COUNT = 5, "CR3-target count", Always, @764;
        PRIMARY_EXIT_CONTROLS = 6, "Primary VM-exit controls", Always, @768;
        EXIT_MSR_STORE_COUNT = 7, "VM-exit MSR-store count", Always, @772;
        EXIT_MSR_LOAD_COUNT = 8, "VM-exit MSR-load count", Always, @776;
        ENTRY_CONTROLS = 9, "VM-entry controls", Always, @780;
        ENTRY_MSR_LOAD_COUNT = 10, "VM-entry MSR-load count", Always, @784;
        INJECTED_EVENT = 11, "Injected-event identification (VM-entry interruption-information field)", Always, @788;
        INJECTED_EVENT_ERROR_CODE = 12, "Injected-event error code (VM-entry exception error code)", Always, @792;
        ENTRY_INSTRUCTION_LENGTH = 13, "VM-entry instruction length", Always, @796;
        TPR_THRESHOLD = 14, "TPR threshold", Primary(P::TPR_SHADOW), @800;
        SECONDARY_CONTROLS = 15, "Secondary processor-based VM-execution controls", Primary(P::ACTIVATE_SECONDARY), @804;
        PLE_GAP = 16, "PLE_Gap", Secondary(S::PAUSE_LOOP_EXITING);
        PLE_WINDOW = 17, "PLE_Window", Secondary(S::PAUSE_LOOP_EXITING);
        INSTRUCTION_TIMEOUT = 18, "Instruction-timeout control (notify window)", Secondary(S::INSTRUCTION_TIMEOUT);
        SEAM_GUEST_KEYID = 19, "SEAM-guest KeyID", Tertiary(T::SEAM_GPA_WIDTH);
    }
    Natural {
        CR0_GUEST_HOST_MASK = 0, "CR0 guest/host mask", Always, @344;
        CR4_GUEST_HOST_MASK = 1, "CR4 guest/host mask", Always, @352;
        CR0_READ_SHADOW = 2, "CR0 read shadow", Always, @360;
        CR4_READ_SHADOW = 3, "CR4 read shadow", Always, @368;
        CR3_TARGET_0 = 4, "CR3-target value 0", Cr3Targets(0);
        CR3_TARGET_1 = 5, "CR3-target value 1", Cr3Targets(1);
        CR3_TARGET_2 = 6, "CR3-target value 2", Cr3Targets(2);
        CR3_TARGET_3 = 7, "CR3-target value 3", Cr3Targets(3);
    }
}
