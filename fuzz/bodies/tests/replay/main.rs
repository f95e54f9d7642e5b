// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each target's body on each of its seeds and on some inputs near them, and that the lists of targets are one list.

mod vary;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What the seeds of one target may take: they are in every clone.
const MOST_BYTES: u64 = 1 << 20;

fn fuzz() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The paths in a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = read.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The names of what is in a folder, without their endings.
fn names(folder: &str) -> BTreeSet<String> {
    let stem = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries(&fuzz().join(folder)).iter().map(stem).collect()
}

/// How many inputs near the seeds each body is given: ten seconds' work for all of them.
const VARIED: u64 = 4000;

/// Says which input it was if the body panics.
struct Blame<F: Fn() -> String>(F);

impl<F: Fn() -> String> Drop for Blame<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is {}", (self.0)());
        }
    }
}

fn replay(name: &str, run: fn(&[u8])) {
    let seeds = entries(&fuzz().join("seeds").join(name));
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let bytes: u64 = seeds
        .iter()
        .map(|seed| seed.metadata().unwrap().len())
        .sum();
    assert!(
        bytes <= MOST_BYTES,
        "the seeds of {name} take {bytes} bytes"
    );
    let mut read = Vec::new();
    for seed in &seeds {
        let _blame = Blame(|| seed.display().to_string());
        read.push(fs::read(seed).unwrap());
        run(&read[read.len() - 1]);
    }
    for number in 0..VARIED {
        let input = vary::near(&read, number);
        let _blame = Blame(|| format!("number {number} near the seeds: {input:02x?}"));
        run(&input);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name), hvkit_fuzz_bodies::$name::run);
            }
        )*

        #[test]
        fn each_list_of_targets_is_this_one() {
            let all = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            assert_eq!(names("fuzz_targets"), all);
            assert_eq!(names("seeds"), all);
            let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
            for name in &all {
                let path = format!("path = \"fuzz_targets/{name}.rs\"");
                assert!(manifest.contains(&path), "fuzz/Cargo.toml has no [[bin]] with {path}");
            }
        }
    };
}

hvkit_fuzz_bodies::for_each_target!(replays);
