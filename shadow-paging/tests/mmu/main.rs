// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shadow MMU, one ability at a time.

mod audits;
mod beyond;
mod budget;
mod crowded;
mod failures;
mod hardware;
mod host;
mod invalidations;
mod modes;
mod small_world;
mod support;
mod sync;
mod tables;
mod tokens;
