// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages a guest wrote, three ways.
//!
//! | | needs | cost | says |
//! |---|---|---|---|
//! | [`harvest`] | accessed and dirty flags | a scan of the leaves, one flush a round | pages written since the last round |
//! | [`pml`] | the same, and page-modification logging | an exit every 512 pages | each page as it becomes dirty |
//! | [`write_protect`] | no pages that are written without the right to write | an exit for each page | each page before it is written |
//!
//! In each, a flush decides what the answer is worth: a flag cleared or a right taken away in memory
//! still stands in some processor's TLB until the token is settled. So: collect, settle, *then* copy.

pub mod harvest;
pub mod pml;
pub mod write_protect;
