// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host-state fields.

use super::{Exists::*, fields};
use crate::controls::{ExitPrimary as X, ExitSecondary as X2};

fields! { Host, HOST:
    W16 {
        HOST_ES_SELECTOR = 0, "Host ES selector", Always, @982;
        HOST_CS_SELECTOR = 1, "Host CS selector", Always, @984;
        HOST_SS_SELECTOR = 2, "Host SS selector", Always, @986;
        HOST_DS_SELECTOR = 3, "Host DS selector", Always, @988;
        HOST_FS_SELECTOR = 4, "Host FS selector", Always, @990;
        HOST_GS_SELECTOR = 5, "Host GS selector", Always, @992;
        HOST_TR_SELECTOR = 6, "Host TR selector", Always, @994;
    }
    W64 {
        HOST_PAT = 0, "Host IA32_PAT", Exit(X::LOAD_PAT), @256;
        HOST_EFER = 1, "Host IA32_EFER", Exit(X::LOAD_EFER), @264;
        HOST_PERF_GLOBAL_CTRL = 2, "Host IA32_PERF_GLOBAL_CTRL", Exit(X::LOAD_PERF_GLOBAL_CTRL), @272;
        HOST_PKRS = 3, "Host IA32_PKRS", Exit(X::LOAD_PKRS);
        HOST_FRED_CONFIG = 4, "Host IA32_FRED_CONFIG", Exit2(X2::LOAD_FRED);
        HOST_FRED_RSP1 = 5, "Host IA32_FRED_RSP1", Exit2(X2::LOAD_FRED);
        HOST_FRED_RSP2 = 6, "Host IA32_FRED_RSP2", Exit2(X2::LOAD_FRED);
        HOST_FRED_RSP3 = 7, "Host IA32_FRED_RSP3", Exit2(X2::LOAD_FRED);
        HOST_FRED_STKLVLS = 8, "Host IA32_FRED_STKLVLS", Exit2(X2::LOAD_FRED);
        HOST_FRED_SSP1 = 9, "Host IA32_FRED_SSP1", Exit2(X2::LOAD_FRED);
        HOST_FRED_SSP2 = 10, "Host IA32_FRED_SSP2", Exit2(X2::LOAD_FRED);
        HOST_FRED_SSP3 = 11, "Host IA32_FRED_SSP3", Exit2(X2::LOAD_FRED);
        HOST_SPEC_CTRL = 13, "Host IA32_SPEC_CTRL", Exit2(X2::LOAD_SPEC_CTRL);
    }
    W32 {
        HOST_SYSENTER_CS = 0, "Host IA32_SYSENTER_CS", Always, @924;
    }
    Natural {
        HOST_CR0 = 0, "Host CR0", Always, @584;
        HOST_CR3 = 1, "Host CR3", Always, @592;
        HOST_CR4 = 2, "Host CR4", Always, @600;
        HOST_FS_BASE = 3, "Host FS base", Always, @608;
        HOST_GS_BASE = 4, "Host GS base", Always, @616;
        HOST_TR_BASE = 5, "Host TR base", Always, @624;
        HOST_GDTR_BASE = 6, "Host GDTR base", Always, @632;
        HOST_IDTR_BASE = 7, "Host IDTR base", Always, @640;
        HOST_SYSENTER_ESP = 8, "Host IA32_SYSENTER_ESP", Always, @648;
        HOST_SYSENTER_EIP = 9, "Host IA32_SYSENTER_EIP", Always, @656;
        HOST_RSP = 10, "Host RSP", Always, @664;
        HOST_RIP = 11, "Host RIP", Always, @672;
        HOST_S_CET = 12, "Host IA32_S_CET", Exit(X::LOAD_CET), @680;
        HOST_SSP = 13, "Host SSP", Exit(X::LOAD_CET), @688;
        HOST_INTERRUPT_SSP_TABLE = 14, "Host IA32_INTERRUPT_SSP_TABLE_ADDR", Exit(X::LOAD_CET), @696;
    }
}
