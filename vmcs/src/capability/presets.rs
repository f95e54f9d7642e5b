// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processors for tests, examples, and looking at dumps of other machines.

use super::{Capabilities, Features, Processor, Writable};

/// Bochs 2.7, CPU model `corei7_skylake_x`, as its RDMSR and CPUID answered in the laboratory.
pub fn bochs_skylake_x() -> Processor {
    let vmx = Capabilities::from_list(&[
        (0x480, 0x00d8_1000_0000_002b),
        (0x481, 0x0000_007f_0000_0016),
        (0x482, 0xf7f9_fffe_0401_e172),
        (0x483, 0x007f_ffff_0003_6dff),
        (0x484, 0x0000_ffff_0000_11ff),
        (0x485, 0x0000_0000_6004_01e0),
        (0x486, 0x0000_0000_8000_0021),
        (0x487, 0x0000_0000_ffff_ffff),
        (0x488, 0x0000_0000_0000_2000),
        (0x489, 0x0000_0000_0037_27ff),
        (0x48a, 0x0000_0000_0000_0034),
        (0x48b, 0x0217_7fff_0000_0000),
        (0x48c, 0x0000_0f01_0633_4141),
        (0x48d, 0x0000_007f_0000_0016),
        (0x48e, 0xf7f9_fffe_0400_6172),
        (0x48f, 0x007f_ffff_0003_6dfb),
        (0x490, 0x0000_ffff_0000_11fb),
        (0x491, 0x0000_0000_0000_0001),
    ]);
    Processor {
        physical_address_bits: 40,
        ..Processor::new(vmx)
    }
}

/// Intel Core i7-5600U (Broadwell): EPT with accessed and dirty flags, VMCS shadowing, #VE.
pub fn core_i7_5600u() -> Processor {
    let vmx = Capabilities::from_list(&[
        (0x480, 0x00da_0400_0000_0012),
        (0x481, 0x0000_007f_0000_0016),
        (0x482, 0xfff9_fffe_0401_e172),
        (0x483, 0x007f_ffff_0003_6dff),
        (0x484, 0x0000_ffff_0000_11ff),
        (0x485, 0x0000_0000_3004_81e5),
        (0x486, 0x0000_0000_8000_0021),
        (0x487, 0x0000_0000_ffff_ffff),
        (0x488, 0x0000_0000_0000_2000),
        (0x489, 0x0000_0000_0037_67ff),
        (0x48a, 0x0000_0000_0000_002a),
        (0x48b, 0x0005_7cff_0000_0000),
        (0x48c, 0x0000_0f01_0633_4141),
        (0x48d, 0x0000_007f_0000_0016),
        (0x48e, 0xfff9_fffe_0400_6172),
        (0x48f, 0x007f_ffff_0003_6dfb),
        (0x490, 0x0000_ffff_0000_11fb),
        (0x491, 0x0000_0000_0000_0001),
    ]);
    let writable = Writable {
        perf_global_ctrl: 0x7_0000_000f,
        ..Writable::default()
    };
    Processor {
        writable,
        ..Processor::new(vmx)
    }
}

/// Intel Core i7-3960X (Sandy Bridge-E): EPT without accessed and dirty flags, unrestricted guest, no VM functions.
pub fn core_i7_3960x() -> Processor {
    let vmx = Capabilities::from_list(&[
        (0x480, 0x00da_0400_0000_0010),
        (0x481, 0x0000_007f_0000_0016),
        (0x482, 0xfff9_fffe_0401_e172),
        (0x483, 0x007f_ffff_0003_6dff),
        (0x484, 0x0000_ffff_0000_11ff),
        (0x485, 0x0000_0000_1004_01e5),
        (0x486, 0x0000_0000_8000_0021),
        (0x487, 0x0000_0000_ffff_ffff),
        (0x488, 0x0000_0000_0000_2000),
        (0x489, 0x0000_0000_0006_27ff),
        (0x48a, 0x0000_0000_0000_002a),
        (0x48b, 0x0000_04ff_0000_0000),
        (0x48c, 0x0000_0f01_0613_4141),
        (0x48d, 0x0000_007f_0000_0016),
        (0x48e, 0xfff9_fffe_0400_6172),
        (0x48f, 0x007f_ffff_0003_6dfb),
        (0x490, 0x0000_ffff_0000_11fb),
    ]);
    let writable = Writable {
        perf_global_ctrl: 0x7_0000_000f,
        ..Writable::default()
    };
    Processor {
        physical_address_bits: 46,
        writable,
        ..Processor::new(vmx)
    }
}

/// No processor: one that supports everything this crate has a name for, so that no rule is out of reach.
pub fn everything() -> Processor {
    let vmx = Capabilities::from_list(&[
        // Revision 0x1234, 4096 bytes, dual-monitor, WB, INS/OUTS, TRUE controls; error codes are not
        // free (bit 56), exceptions may be nested (bit 58).
        (0x480, 0x04da_1000_0000_1234),
        (0x48d, 0x0000_00ff_0000_0016),
        (0x48e, 0xffff_fffe_0400_6172),
        (0x48f, 0xffff_ffff_0003_6dfb),
        (0x490, 0x03ff_ffff_0000_11fb),
        (0x485, 0x0000_0000_6004_c1e5),
        (0x486, 0x0000_0000_8000_0021),
        (0x487, 0x0000_0000_ffff_ffff),
        (0x488, 0x0000_0000_0000_2000),
        // All CR4 bits the manual defines: 12:0, 14:13, 18:16, 25:20, 28 (LAM_SUP), 32 (FRED).
        (0x489, 0x0000_0001_13f7_7fff),
        (0x48a, 0x0000_0000_0000_0054),
        (0x48b, 0xffff_ffff_0000_0000),
        (0x48c, 0x0000_0f01_06f3_41c1),
        (0x491, 0x0000_0000_0000_0001),
        (0x492, 0x0000_0000_0000_13ff),
        (0x493, 0x0000_0000_0000_000f),
    ]);
    Processor {
        vmx,
        physical_address_bits: 46,
        linear_address_bits: 57,
        features: Features::SGX | Features::RTM | Features::LAM,
        writable: Writable {
            rtit_ctl: 0x0000_ffff_ff3f_ffff & !0x40_0000,
            lbr_ctl: 0x0000_0000_007f_000f,
            spec_ctrl: 0x5f7,
            ..Writable::default()
        },
    }
}
