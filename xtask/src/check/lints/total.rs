// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `total`: what faces a guest's, a device's or a file's bytes may not panic, and the compiler is told so.

use std::path::{Path, PathBuf};

use crate::check::lint::{Finding, Report, Rule, Source, Sources, from_root};

pub(crate) const RULE: Rule = Rule {
    name: "total",
    why: "a parser that panics is a denial of service; clippy sees every place where one could",
    look,
};

/// The lints that such a module denies.
const LINTS: [&str; 5] = [
    "clippy::indexing_slicing",
    "clippy::arithmetic_side_effects",
    "clippy::unwrap_used",
    "clippy::expect_used",
    "clippy::panic",
];

/// Programs whose modules face a guest, a peer or a file, as every library crate does.
const PROGRAMS: [&str; 2] = ["examples/inspect", "examples/vmm"];

/// Macros that panic and that clippy has no part in, but for the two that the workspace denies everywhere.
const MACROS: [&str; 3] = ["unreachable!(", "todo!(", "unimplemented!("];

/// Files and folders without the rule, and why. A module that comes to hold it is taken away, and none is added that sees bytes of others.
const EXEMPT: &[(&str, &str)] = &[
    (
        "virtio-devices/src/fake",
        "a driver for tests, whose own mistakes are shouted",
    ),
    ("virtio-devices/src/lib.rs", "names modules"),
];

fn look(sources: &Sources, report: &mut Report<'_>) {
    let libraries = sources.packages.iter().filter(|p| p.published);
    let folders = libraries.map(|p| from_root(&p.folder));
    let folders: Vec<PathBuf> = folders
        .chain(PROGRAMS.map(Path::new))
        .map(|folder| folder.join("src"))
        .collect();
    let facing = |file: &&Source| {
        let inside = folders.iter().any(|folder| file.path.starts_with(folder));
        inside && !file.is_test()
    };
    let mut used = [false; EXEMPT.len()];
    for file in sources.files.iter().filter(facing) {
        let mut say = |line: usize, what: String| {
            report(Finding {
                rule: RULE.name,
                path: file.path.clone(),
                line,
                what,
            });
        };
        let missing = missing(sources, file);
        let exempt = EXEMPT
            .iter()
            .position(|(path, _)| file.path.starts_with(path));
        match exempt {
            Some(at) if missing.len() == LINTS.len() => used[at] = true,
            _ => {
                for lint in missing {
                    say(
                        1,
                        format!("neither this file nor a module above it denies {lint}"),
                    );
                }
                for (line, what) in permitted(file) {
                    say(line, what);
                }
            }
        }
    }
    // Not where only a few files are looked at, as tests do.
    let whole = sources
        .files
        .iter()
        .any(|file| file.path == Path::new("xtask/src/main.rs"));
    for ((path, _), used) in EXEMPT.iter().zip(used) {
        if whole && !used {
            report(Finding {
                rule: RULE.name,
                path: (*path).into(),
                line: 0,
                what: "need not be exempt any more: take it off the list in this rule".to_owned(),
            });
        }
    }
}

/// The lints that neither the file denies nor any module above it.
fn missing(sources: &Sources, file: &Source) -> Vec<&'static str> {
    let above = above(&file.path);
    let mut all = denied(&file.text);
    for module in sources.files.iter().filter(|f| above.contains(&f.path)) {
        all.push_str(&denied(&module.text));
    }
    let is_missing = |lint: &&str| !all.contains(lint);
    LINTS.into_iter().filter(is_missing).collect()
}

/// Where the modules above a file's can be, up to its crate's root.
fn above(path: &Path) -> Vec<PathBuf> {
    let mut above = Vec::new();
    let mut folder = path.parent();
    while let Some(here) = folder {
        above.push(here.join("mod.rs"));
        if here.ends_with("src") {
            above.extend([here.join("lib.rs"), here.join("main.rs")]);
            break;
        }
        above.push(here.with_extension("rs"));
        folder = here.parent();
    }
    above
}

/// Lines that take the rule back, outside tests: an attribute that allows one of the lints, for a module that expects it, and macros that
/// panic whatever clippy says. An `expect` of one item, with its reason, is an argument.
fn permitted(file: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let lines: Vec<(usize, &str)> = file.code_lines().collect();
    for (at, (number, line)) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if let Some(name) = MACROS.iter().find(|name| code.contains(*name)) {
            found.push((*number, format!("{name}..) panics")));
        }
        if !line.trim_start().starts_with("#[") && !line.trim_start().starts_with("#![") {
            continue;
        }
        // The formatter may break an attribute over lines.
        let mut whole = String::new();
        for (_, line) in &lines[at..] {
            whole.extend(line.split_whitespace());
            if whole.ends_with(")]") {
                break;
            }
        }
        let allows = whole.contains("allow(") || whole.contains("warn(");
        let expects = whole.starts_with("#![") && whole.contains("expect(");
        for lint in LINTS.iter().filter(|lint| whole.contains(*lint)) {
            if allows || expects {
                found.push((*number, format!("takes {lint} back")));
            }
        }
    }
    found
}

/// What the file's inner attributes deny, as text.
fn denied(text: &str) -> String {
    let mut all = String::new();
    let text: String = text.split_whitespace().collect();
    for part in text.split("#![").skip(1) {
        let attribute = part.split(")]").next().unwrap_or_default();
        if attribute.starts_with("deny(") || attribute.starts_with("cfg_attr(not(test),deny(") {
            all.push_str(attribute);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inner_attributes_that_deny_count() {
        let text = "#![deny(\n    clippy::panic,\n    clippy::unwrap_used\n)]\n#![warn(clippy::expect_used)]\n#[deny(clippy::indexing_slicing)]\nfn f() {}\n";
        let denied = denied(text);
        assert!(denied.contains("clippy::panic") && denied.contains("clippy::unwrap_used"));
        assert!(!denied.contains("expect_used") && !denied.contains("indexing_slicing"));
    }

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.into(),
            text: text.to_owned(),
        }
    }

    const BLOCK: &str = "#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::expect_used, clippy::panic))]\n";

    fn found(files: Vec<Source>) -> Vec<(String, usize)> {
        let sources = Sources {
            files,
            packages: Vec::new(),
            outside: Vec::new(),
        };
        let mut found = Vec::new();
        look(&sources, &mut |finding| {
            found.push((finding.path.display().to_string(), finding.line));
        });
        found
    }

    #[test]
    fn a_module_stands_below_one_that_denies_or_is_found() {
        let file = "examples/vmm/src/a/b/c.rs";
        let alone = found(vec![source(file, "")]);
        assert_eq!(alone, vec![(file.to_owned(), 1); LINTS.len()]);
        for above in ["a/mod.rs", "a.rs", "a/b/mod.rs", "a/b.rs", "lib.rs"] {
            let above = source(&format!("examples/vmm/src/{above}"), BLOCK);
            assert_eq!(found(vec![source(file, ""), above]), []);
        }
        // Its own, and what is no module of a crate that faces anything.
        assert_eq!(found(vec![source(file, BLOCK)]), []);
        assert_eq!(found(vec![source("xtask/src/a.rs", "")]), []);
        assert_eq!(found(vec![source("examples/vmm/src/a/tests.rs", "")]), []);
        let beside = source("examples/vmm/src/a/d.rs", BLOCK);
        assert_eq!(found(vec![source(file, ""), beside]).len(), LINTS.len());
    }

    #[test]
    fn what_is_denied_is_not_taken_back_outside_tests() {
        let lines = |text: &str| {
            let found = found(vec![source(
                "examples/vmm/src/a.rs",
                &format!("{BLOCK}{text}"),
            )]);
            found.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        // In halves, or `no-silence` would find this file.
        let allow = format!("#[{}", "allow(");
        let inner = format!("#![{}", "expect(");
        let outer = format!("#[{}", "expect(");
        assert_eq!(
            lines(&format!("{allow}clippy::panic, reason = \"r\")]\n")),
            [2]
        );
        assert_eq!(
            lines(&format!(
                "{allow}\n    clippy::panic,\n    reason = \"r\"\n)]\n"
            )),
            [2]
        );
        assert_eq!(
            lines(&format!("{inner}clippy::panic, reason = \"r\")]\n")),
            [2]
        );
        assert_eq!(
            lines(&format!("{outer}clippy::panic, reason = \"r\")]\n")),
            [0; 0]
        );
        assert_eq!(
            lines(&format!("{allow}dead_code, reason = \"r\")]\n")),
            [0; 0]
        );
        assert_eq!(lines("fn f() {\n    unreachable!()\n}\n"), [3]);
        assert_eq!(lines("// unreachable!()\n"), [0; 0]);
        assert_eq!(
            lines("#[cfg(test)]\nmod tests {\n    unreachable!()\n}\n"),
            [0; 0]
        );
    }
}
