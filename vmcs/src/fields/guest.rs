// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest-state fields.

use super::{Exists::*, fields};
use crate::controls::{Entry as N, ExitPrimary as X, PinBased as B, Secondary as S, Tertiary as T};

fields! { Guest, GUEST:
    W16 {
        GUEST_ES_SELECTOR = 0, "Guest ES selector", Always, @964;
        GUEST_CS_SELECTOR = 1, "Guest CS selector", Always, @966;
        GUEST_SS_SELECTOR = 2, "Guest SS selector", Always, @968;
        GUEST_DS_SELECTOR = 3, "Guest DS selector", Always, @970;
        GUEST_FS_SELECTOR = 4, "Guest FS selector", Always, @972;
        GUEST_GS_SELECTOR = 5, "Guest GS selector", Always, @974;
        GUEST_LDTR_SELECTOR = 6, "Guest LDTR selector", Always, @976;
        GUEST_TR_SELECTOR = 7, "Guest TR selector", Always, @978;
        GUEST_INTERRUPT_STATUS = 8, "Guest interrupt status", Secondary(S::VIRTUAL_INTERRUPT_DELIVERY), @980;
        PML_INDEX = 9, "PML index", Secondary(S::ENABLE_PML), @996;
        GUEST_UINV = 10, "Guest UINV", EntryOrExit(N::LOAD_UINV, X::CLEAR_UINV);
    }
    W64 {
        VMCS_LINK_POINTER = 0, "VMCS link pointer", Always, @176;
        GUEST_DEBUGCTL = 1, "Guest IA32_DEBUGCTL", Always, @184;
        GUEST_PAT = 2, "Guest IA32_PAT", EntryOrExit(N::LOAD_PAT, X::SAVE_PAT), @192;
        GUEST_EFER = 3, "Guest IA32_EFER", EntryOrExit(N::LOAD_EFER, X::SAVE_EFER), @200;
        GUEST_PERF_GLOBAL_CTRL = 4, "Guest IA32_PERF_GLOBAL_CTRL", EntryOrExit(N::LOAD_PERF_GLOBAL_CTRL, X::SAVE_PERF_GLOBAL_CTL), @208;
        GUEST_PDPTE0 = 5, "Guest PDPTE0", Secondary(S::ENABLE_EPT), @216;
        GUEST_PDPTE1 = 6, "Guest PDPTE1", Secondary(S::ENABLE_EPT), @224;
        GUEST_PDPTE2 = 7, "Guest PDPTE2", Secondary(S::ENABLE_EPT), @232;
        GUEST_PDPTE3 = 8, "Guest PDPTE3", Secondary(S::ENABLE_EPT), @240;
        GUEST_BNDCFGS = 9, "Guest IA32_BNDCFGS", EntryOrExit(N::LOAD_BNDCFGS, X::CLEAR_BNDCFGS), @248;
        GUEST_RTIT_CTL = 10, "Guest IA32_RTIT_CTL", EntryOrExit(N::LOAD_RTIT_CTL, X::CLEAR_RTIT_CTL);
        GUEST_LBR_CTL = 11, "Guest IA32_LBR_CTL", EntryOrExit(N::LOAD_LBR_CTL, X::CLEAR_LBR_CTL);
        GUEST_PKRS = 12, "Guest IA32_PKRS", Entry(N::LOAD_PKRS);
        GUEST_FRED_CONFIG = 13, "Guest IA32_FRED_CONFIG", Entry(N::LOAD_FRED);
        GUEST_FRED_RSP1 = 14, "Guest IA32_FRED_RSP1", Entry(N::LOAD_FRED);
        GUEST_FRED_RSP2 = 15, "Guest IA32_FRED_RSP2", Entry(N::LOAD_FRED);
        GUEST_FRED_RSP3 = 16, "Guest IA32_FRED_RSP3", Entry(N::LOAD_FRED);
        GUEST_FRED_STKLVLS = 17, "Guest IA32_FRED_STKLVLS", Entry(N::LOAD_FRED);
        GUEST_FRED_SSP1 = 18, "Guest IA32_FRED_SSP1", Entry(N::LOAD_FRED);
        GUEST_FRED_SSP2 = 19, "Guest IA32_FRED_SSP2", Entry(N::LOAD_FRED);
        GUEST_FRED_SSP3 = 20, "Guest IA32_FRED_SSP3", Entry(N::LOAD_FRED);
        GUEST_SPEC_CTRL = 23, "Guest IA32_SPEC_CTRL", Entry(N::LOAD_SPEC_CTRL);
        GUEST_DEADLINE = 24, "Guest deadline", Tertiary(T::APIC_TIMER_VIRTUALIZATION);
    }
    W32 {
        GUEST_ES_LIMIT = 0, "Guest ES limit", Always, @840;
        GUEST_CS_LIMIT = 1, "Guest CS limit", Always, @844;
        GUEST_SS_LIMIT = 2, "Guest SS limit", Always, @848;
        GUEST_DS_LIMIT = 3, "Guest DS limit", Always, @852;
        GUEST_FS_LIMIT = 4, "Guest FS limit", Always, @856;
        GUEST_GS_LIMIT = 5, "Guest GS limit", Always, @860;
        GUEST_LDTR_LIMIT = 6, "Guest LDTR limit", Always, @864;
        GUEST_TR_LIMIT = 7, "Guest TR limit", Always, @868;
        GUEST_GDTR_LIMIT = 8, "Guest GDTR limit", Always, @872;
        GUEST_IDTR_LIMIT = 9, "Guest IDTR limit", Always, @876;
        GUEST_ES_ACCESS_RIGHTS = 10, "Guest ES access rights", Always, @880;
        GUEST_CS_ACCESS_RIGHTS = 11, "Guest CS access rights", Always, @884;
        GUEST_SS_ACCESS_RIGHTS = 12, "Guest SS access rights", Always, @888;
        GUEST_DS_ACCESS_RIGHTS = 13, "Guest DS access rights", Always, @892;
        GUEST_FS_ACCESS_RIGHTS = 14, "Guest FS access rights", Always, @896;
        GUEST_GS_ACCESS_RIGHTS = 15, "Guest GS access rights", Always, @900;
        GUEST_LDTR_ACCESS_RIGHTS = 16, "Guest LDTR access rights", Always, @904;
        GUEST_TR_ACCESS_RIGHTS = 17, "Guest TR access rights", Always, @908;
        GUEST_INTERRUPTIBILITY = 18, "Guest interruptibility state", Always, @912;
        GUEST_ACTIVITY = 19, "Guest activity state", Always, @916;
        GUEST_SMBASE = 20, "Guest SMBASE", Always;
        GUEST_SYSENTER_CS = 21, "Guest IA32_SYSENTER_CS", Always, @920;
        PREEMPTION_TIMER_VALUE = 23, "VMX-preemption timer value", Pin(B::PREEMPTION_TIMER), @928;
    }
    Natural {
        GUEST_CR0 = 0, "Guest CR0", Always, @424;
        GUEST_CR3 = 1, "Guest CR3", Always, @432;
        GUEST_CR4 = 2, "Guest CR4", Always, @440;
        GUEST_ES_BASE = 3, "Guest ES base", Always, @448;
        GUEST_CS_BASE = 4, "Guest CS base", Always, @456;
        GUEST_SS_BASE = 5, "Guest SS base", Always, @464;
        GUEST_DS_BASE = 6, "Guest DS base", Always, @472;
        GUEST_FS_BASE = 7, "Guest FS base", Always, @480;
        GUEST_GS_BASE = 8, "Guest GS base", Always, @488;
        GUEST_LDTR_BASE = 9, "Guest LDTR base", Always, @496;
        GUEST_TR_BASE = 10, "Guest TR base", Always, @504;
        GUEST_GDTR_BASE = 11, "Guest GDTR base", Always, @512;
        GUEST_IDTR_BASE = 12, "Guest IDTR base", Always, @520;
        GUEST_DR7 = 13, "Guest DR7", Always, @528;
        GUEST_RSP = 14, "Guest RSP", Always, @536;
        GUEST_RIP = 15, "Guest RIP", Always, @544;
        GUEST_RFLAGS = 16, "Guest RFLAGS", Always, @552;
        GUEST_PENDING_DEBUG = 17, "Guest pending debug exceptions", Always, @560;
        GUEST_SYSENTER_ESP = 18, "Guest IA32_SYSENTER_ESP", Always, @568;
        GUEST_SYSENTER_EIP = 19, "Guest IA32_SYSENTER_EIP", Always, @576;
        GUEST_S_CET = 20, "Guest IA32_S_CET", Entry(N::LOAD_CET), @704;
        GUEST_SSP = 21, "Guest SSP", Entry(N::LOAD_CET), @712;
        GUEST_INTERRUPT_SSP_TABLE = 22, "Guest IA32_INTERRUPT_SSP_TABLE_ADDR", Entry(N::LOAD_CET), @720;
    }
}
