// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VM-exit and VM-entry controls. SDM Vol. 3C, "VM-Exit Control Fields" and "VM-Entry Control Fields".

use super::controls;

controls! {
    /// Primary VM-exit controls. SDM Vol. 3C, "VM-Exit Controls".
    pub ExitPrimary: u32, default1 0x0003_6dff {
        SAVE_DEBUG_CONTROLS = 2, "save debug controls";
        HOST_ADDRESS_SPACE_SIZE = 9, "host address-space size";
        LOAD_PERF_GLOBAL_CTRL = 12, "load IA32_PERF_GLOBAL_CTRL";
        ACKNOWLEDGE_INTERRUPT = 15, "acknowledge interrupt on exit";
        SAVE_PAT = 18, "save IA32_PAT";
        LOAD_PAT = 19, "load IA32_PAT";
        SAVE_EFER = 20, "save IA32_EFER";
        LOAD_EFER = 21, "load IA32_EFER";
        SAVE_PREEMPTION_TIMER = 22, "save VMX-preemption timer value";
        CLEAR_BNDCFGS = 23, "clear IA32_BNDCFGS";
        CONCEAL_VMX_FROM_PT = 24, "conceal VMX from PT";
        CLEAR_RTIT_CTL = 25, "clear IA32_RTIT_CTL";
        CLEAR_LBR_CTL = 26, "clear IA32_LBR_CTL";
        CLEAR_UINV = 27, "clear UINV";
        LOAD_CET = 28, "load CET state";
        LOAD_PKRS = 29, "load PKRS";
        SAVE_PERF_GLOBAL_CTL = 30, "save IA32_PERF_GLOBAL_CTL";
        ACTIVATE_SECONDARY = 31, "activate secondary controls";
    }
}

controls! {
    /// Secondary VM-exit controls. SDM Vol. 3C, "VM-Exit Controls". They count only where
    /// [`ExitPrimary::ACTIVATE_SECONDARY`] is 1.
    pub ExitSecondary: u64, default1 0 {
        SAVE_FRED = 0, "save FRED";
        LOAD_FRED = 1, "load FRED";
        LOAD_SPEC_CTRL = 2, "load IA32_SPEC_CTRL";
        PREMATURELY_BUSY_SHADOW_STACK = 3, "prematurely busy shadow stack";
    }
}

controls! {
    /// VM-entry controls. SDM Vol. 3C, "VM-Entry Controls".
    pub Entry: u32, default1 0x0000_11ff {
        LOAD_DEBUG_CONTROLS = 2, "load debug controls";
        IA32E_MODE_GUEST = 9, "IA-32e mode guest";
        ENTRY_TO_SMM = 10, "entry to SMM";
        DEACTIVATE_DUAL_MONITOR = 11, "deactivate dual-monitor treatment";
        LOAD_PERF_GLOBAL_CTRL = 13, "load IA32_PERF_GLOBAL_CTRL";
        LOAD_PAT = 14, "load IA32_PAT";
        LOAD_EFER = 15, "load IA32_EFER";
        LOAD_BNDCFGS = 16, "load IA32_BNDCFGS";
        CONCEAL_VMX_FROM_PT = 17, "conceal VMX from PT";
        LOAD_RTIT_CTL = 18, "load IA32_RTIT_CTL";
        LOAD_UINV = 19, "load UINV";
        LOAD_CET = 20, "load CET state";
        LOAD_LBR_CTL = 21, "load guest IA32_LBR_CTL";
        LOAD_PKRS = 22, "load PKRS";
        LOAD_FRED = 23, "load FRED";
        LOAD_SPEC_CTRL = 24, "load IA32_SPEC_CTRL";
        ALLOW_SEAM_TELEMETRY = 25, "allow SEAM-guest telemetry";
    }
}
