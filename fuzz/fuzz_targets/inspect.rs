// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! [`hvkit_fuzz_bodies::inspect`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hvkit_fuzz_bodies::inspect::run(data));
