// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! [`hvkit_fuzz_bodies::mapper_formats`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hvkit_fuzz_bodies::mapper_formats::run(data));
