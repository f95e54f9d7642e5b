// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VM-exit information fields, which the manual's appendix calls read-only data fields.

use super::{Exists::*, fields};
use crate::controls::{Secondary as S, Tertiary as T};

fields! { ExitInformation, EXIT_INFORMATION:
    W64 {
        GUEST_PHYSICAL_ADDRESS = 0, "Guest-physical address", Secondary(S::ENABLE_EPT), @168;
        MSR_DATA = 1, "MSR data", Tertiary(T::ENABLE_MSR_LIST);
        ORIGINAL_EVENT_DATA = 2, "Original-event data", Fred;
        EXTENDED_INSTRUCTION_INFORMATION = 3, "Extended instruction information", Apx;
    }
    W32 {
        INSTRUCTION_ERROR = 0, "VM-instruction error", Always, @808;
        EXIT_REASON = 1, "Exit reason", Always, @812;
        EXITING_EVENT = 2, "Exiting-event identification (VM-exit interruption information)", Always, @816;
        EXITING_EVENT_ERROR_CODE = 3, "Exiting-event error code (VM-exit interruption error code)", Always, @820;
        ORIGINAL_EVENT = 4, "Original-event identification (IDT-vectoring information field)", Always, @824;
        ORIGINAL_EVENT_ERROR_CODE = 5, "Original-event error code (IDT-vectoring error code)", Always, @828;
        EXIT_INSTRUCTION_LENGTH = 6, "VM-exit instruction length", Always, @832;
        EXIT_INSTRUCTION_INFORMATION = 7, "VM-exit instruction information", Always, @836;
    }
    Natural {
        EXIT_QUALIFICATION = 0, "Exit qualification", Always, @408;
        IO_RCX = 1, "I/O RCX", Always;
        IO_RSI = 2, "I/O RSI", Always;
        IO_RDI = 3, "I/O RDI", Always;
        IO_RIP = 4, "I/O RIP", Always;
        GUEST_LINEAR_ADDRESS = 5, "Guest-linear address", Always, @416;
    }
}
