// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints what a model makes of arithmetic, paging and VM entries. Input: a seed (8 bytes), rounds (4 bytes).
#![no_std]
#![no_main]

mod arithmetic;
mod entry;
mod paging;

use payload_rt::{input, println};

payload_rt::entry!(main);

fn main() {
    let input = input(12);
    let seed = u64::from_le_bytes(core::array::from_fn(|n| input[n]));
    let rounds = u32::from_le_bytes(core::array::from_fn(|n| input[8 + n]));
    let digest = arithmetic::digest(seed, rounds);
    println!("integer={:#x}", digest.integer);
    println!("flags={:#x}", digest.flags);
    println!("sse={:#x}", digest.sse);
    println!("x87={:#x}", digest.x87);
    let mut report = |wrong: paging::Wrong| {
        println!(
            "wrong: {}: {:#x} where {:#x} should be",
            wrong.check, wrong.seen, wrong.expected
        );
    };
    paging::check(&mut report);
    if entry::possible() {
        entry::check(&mut report);
        println!("entered");
    }
    println!("done");
}
