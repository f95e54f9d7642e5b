// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare-metal hypervisor, as its command runs it.

use std::fs;

use lab_kit::paths;
use xtask::type1::{self, Options, Paging};

#[test]
fn the_tour_is_as_the_manual_says_and_as_recorded() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("exits");
    type1::run(&Options {
        record: Some(record.clone()),
        ..Options::default()
    })
    .unwrap();
    let kept = paths::root().join("vmcs/tests/data/bochs-2.7-exits.txt");
    assert_eq!(
        fs::read_to_string(&record).unwrap(),
        fs::read_to_string(&kept).unwrap(),
        "{} is not what the model says: `cargo xtask type1 --record {0}` writes it anew",
        kept.display()
    );
}

#[test]
fn debian_boots_under_ept_works_and_powers_off() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    type1::run(&Options {
        paging: Some(Paging::Ept),
        ..Options::default()
    })
    .unwrap();
}

#[test]
fn debian_boots_on_shadow_page_tables_works_and_powers_off() {
    lab_kit::skip_if!(lab_kit::bochs::missing());
    type1::run(&Options {
        paging: Some(Paging::Shadow),
        ..Options::default()
    })
    .unwrap();
}
