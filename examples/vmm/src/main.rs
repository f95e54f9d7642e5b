// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference VMM's command line.

fn main() {}
