// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switch that a woven crate asks: is this mutant the one to be? Written into the scratch tree by
//! `cargo xtask mutants`; no part of xtask itself.
//!
//! - `HVKIT_MUTANT=N`: mutant N is on, all others are off. Without it the code is as it was written.
//! - `HVKIT_MUTANT_REACHED=FILE`: the number of each mutant whose place was reached is added to the file, a line each.
//! - `HVKIT_MUTANT_EXIT=1`: the first panic ends the process, so that nobody waits for the tests after it.
#![feature(core_intrinsics, const_eval_select)]
#![expect(internal_features, reason = "only the standard library may ask whether this is a constant")]

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// Nobody has looked at the environment yet.
const UNKNOWN: u32 = u32::MAX;
/// No mutant, and nobody wants to know what is reached.
const NONE: u32 = u32::MAX - 1;
/// No mutant; note what is reached.
const NOTE: u32 = u32::MAX - 2;

static ACTIVE: AtomicU32 = AtomicU32::new(UNKNOWN);
static NOTED: [AtomicBool; 1 << 16] = [const { AtomicBool::new(false) }; 1 << 16];

/// Whether mutant `id` is the one. In a constant, none is: a mutant is switched on when the program runs.
pub const fn on(id: u32) -> bool {
    core::intrinsics::const_eval_select((id,), never, chosen)
}

const fn never(_: u32) -> bool {
    false
}

fn chosen(id: u32) -> bool {
    match ACTIVE.load(Relaxed) {
        UNKNOWN => {
            look();
            chosen(id)
        }
        NOTE => {
            note(id);
            false
        }
        active => active == id,
    }
}

#[cold]
fn look() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("HVKIT_MUTANT_EXIT").is_some() {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                before(panic);
                std::process::exit(101);
            }));
        }
        let mutant = std::env::var("HVKIT_MUTANT").ok().and_then(|id| id.parse().ok());
        let otherwise = if std::env::var_os("HVKIT_MUTANT_REACHED").is_some() { NOTE } else { NONE };
        ACTIVE.store(mutant.unwrap_or(otherwise), Relaxed);
    });
}

fn note(id: u32) {
    let new = NOTED.get(id as usize).is_some_and(|noted| !noted.swap(true, Relaxed));
    if new && let Some(path) = std::env::var_os("HVKIT_MUTANT_REACHED") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        // One write of one short line: lines of two processes do not mix.
        let _ = file.map(|mut file| file.write_all(format!("{id}\n").as_bytes()));
    }
}
