// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tests `cargo test` asks a program for that has no harness of Rust's: it tells every program the same.

/// Options of the harness that another word follows.
const WITH_VALUES: [&str; 6] = [
    "--color",
    "--format",
    "--logfile",
    "--shuffle-seed",
    "--test-threads",
    "-Z",
];

/// Which of `names` these arguments choose, as in `rustc --test`'s own words: each name that has one of them in it, or is one (`--exact`), and
/// none that is skipped; all if none is asked for.
pub(crate) fn chosen<'a>(
    arguments: impl Iterator<Item = String>,
    names: &[&'a str],
) -> Vec<&'a str> {
    let (mut wanted, mut skipped, mut exact) = (Vec::new(), Vec::new(), false);
    let mut arguments = arguments;
    while let Some(word) = arguments.next() {
        match word.strip_prefix("--skip=") {
            Some(name) => skipped.push(name.to_owned()),
            None if word == "--skip" => skipped.extend(arguments.next()),
            None if word == "--exact" => exact = true,
            None if WITH_VALUES.contains(&word.as_str()) => drop(arguments.next()),
            None if word.starts_with('-') => {}
            None => wanted.push(word),
        }
    }
    let is = |name: &str, word: &String| match exact {
        true => name == word,
        false => name.contains(word.as_str()),
    };
    let mut chosen = names.to_vec();
    chosen.retain(|name| {
        let asked = wanted.is_empty() || wanted.iter().any(|word| is(name, word));
        asked && !skipped.iter().any(|word| is(name, word))
    });
    chosen
}
