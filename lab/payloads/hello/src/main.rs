// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Says what processor it is on, and ends as the first byte of its input says.
#![no_std]
#![no_main]

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use payload_rt::{halt, input, println};

payload_rt::entry!(main);

/// SDM 3D, A.1 "Basic VMX Information".
const IA32_VMX_BASIC: u32 = 0x480;
/// What is in .bss must be zero, and is not in the flat image.
static mut ZEROED: [u64; 1000] = [0; 1000];

fn main() {
    let vmx = __cpuid(1).ecx >> 5 & 1;
    println!("vmx={vmx}");
    if vmx == 1 {
        let (low, high): (u32, u32);
        // SAFETY: a processor with VMX has this register.
        unsafe { asm!("rdmsr", in("ecx") IA32_VMX_BASIC, out("eax") low, out("edx") high) };
        println!("vmx-basic={:#x}", u64::from(high) << 32 | u64::from(low));
    }
    // SAFETY: nothing else runs here.
    let zeroed = unsafe { (&raw const ZEROED).read_volatile() };
    println!("bss={}", zeroed.iter().all(|&word| word == 0));
    // The floating-point unit and the formatting of `core` work.
    println!("pi={:.3}", core::f64::consts::PI);
    let request = input(16);
    println!("input={request:02x?}");
    match request[0] {
        b'p' => panic!("as asked"),
        // SAFETY: an undefined instruction, and no IDT: a triple fault, as asked.
        b'f' => unsafe { asm!("ud2") },
        b'h' => halt(),
        b'o' => println!("wrapped to {}", u64::MAX + u64::from(request[0])),
        _ => {}
    }
}
