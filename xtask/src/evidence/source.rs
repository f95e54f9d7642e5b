// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be counted in the checkout: unsafe blocks, tests, fuzz seeds, rules.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use crate::check::lint::{Source, Sources, from_root};
use crate::fuzz::record::{self, Total};
use lab_kit::paths;

/// Blocks, functions and implementations that are unsafe, outside tests. An implementation may have its parameters next.
fn unsafe_places(file: &Source) -> usize {
    const PLACES: [&str; 5] = [
        "unsafe {",
        "unsafe fn ",
        "unsafe impl ",
        "unsafe impl<",
        "unsafe extern ",
    ];
    let code = file.code_lines().map(|(_, line)| without_texts(line));
    code.map(|line| {
        let places = PLACES.iter().map(|place| line.matches(place).count());
        places.sum::<usize>()
    })
    .sum()
}

/// A line without its comment and without what is between quotation marks.
fn without_texts(line: &str) -> String {
    let code = line.split("//").next().unwrap_or_default();
    code.split('"').step_by(2).collect()
}

/// Test functions, of the library's kind and of proptest's alike: both carry the attribute.
fn tests(file: &Source) -> usize {
    file.text
        .lines()
        .filter(|line| line.trim() == "#[test]")
        .count()
}

pub(super) fn write(page: &mut String, sources: &Sources) -> Result<()> {
    writeln!(
        page,
        "\n## Packages\n\n| package | lines | unsafe blocks, functions and implementations | test functions |\n|---|---|---|---|"
    )?;
    let members = sources.packages.iter();
    let members = members.map(|p| (format!("{}`", p.name), from_root(&p.folder)));
    let outside = sources.outside.iter();
    let outside = outside.map(|folder| {
        (
            format!("{}` (outside the workspace)", folder.display()),
            folder.as_path(),
        )
    });
    for (name, folder) in members.chain(outside) {
        let (mut lines, mut places, mut count) = (0, 0, 0);
        for file in sources.below(folder) {
            count += tests(file);
            if !file.is_test() {
                lines += file.code_lines().count();
                places += unsafe_places(file);
            }
        }
        // Benchmarks and the like are no code that anybody runs for its own sake.
        if lines > 0 {
            writeln!(page, "| `{name} | {lines} | {places} | {count} |")?;
        }
    }
    let rules = hvkit_vmcs::check::rules().count();
    let fields = hvkit_vmcs::fields::ALL.len();
    writeln!(
        page,
        "\nThe VM-entry checker has {rules} rules over a VMCS of {fields} fields.\n"
    )?;
    fuzzing(page)
}

/// How many committed inputs each fuzz target has, which plain tests replay, and what its recorded runs did.
fn fuzzing(page: &mut String) -> Result<()> {
    writeln!(
        page,
        "## Fuzz targets\n\nSanitizers: `address`, with which a bad access of unsafe code is a finding; `none`, several times as fast, where a finding is a panic or a hang. Of runs that were noted before it was, it is {}.\n\n| target | committed inputs, replayed by `cargo test` | recorded executions without a finding, by sanitizer | seconds | edges reached |\n|---|---|---|---|---|",
        record::UNKNOWN
    )?;
    let folder = paths::root().join("fuzz/seeds");
    let entries = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    let mut targets: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    targets.sort();
    for target in targets {
        let count = fs::read_dir(&target)
            .with_context(|| format!("no {}", target.display()))?
            .count();
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let Total {
            executions,
            seconds,
            edges,
        } = record::total(&name)?;
        let executions: Vec<_> = executions
            .iter()
            .map(|(sanitizer, count)| format!("{sanitizer} {count}"))
            .collect();
        let executions = executions.join(", ");
        writeln!(
            page,
            "| `{name}` | {count} | {executions} | {seconds} | {edges} |"
        )?;
    }
    writeln!(page)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_words_are_not() {
        let text = "// unsafe { }\nunsafe { a() }\npub unsafe fn f() {}\nlet x = \"safe\";\n#[cfg(test)]\nmod tests {\n    unsafe { b() }\n}\n";
        let file = Source {
            path: "a.rs".into(),
            text: text.to_owned(),
        };
        assert_eq!(unsafe_places(&file), 2);
        let file = Source {
            path: "a.rs".into(),
            text: "unsafe impl<T> A for B<T> {}\nunsafe impl A for C {}\nlet a = [\"unsafe {\", \"\"];\n"
                .to_owned(),
        };
        assert_eq!(unsafe_places(&file), 2);
        let file = Source {
            path: "a.rs".into(),
            text: "    #[test]\n// #[test]\n".to_owned(),
        };
        assert_eq!(tests(&file), 1);
    }
}
