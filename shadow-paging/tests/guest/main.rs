// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest half against the manual's text.

mod every_entry;
mod flags;
mod hostile;
mod manual;
mod modes;
mod raw_words;
mod reserved_bits;
mod small_worlds;
mod support;
