// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each rule finds what breaks it, and leaves what does not.

use std::path::PathBuf;

use super::ALL;
use crate::cargo::Package;
use crate::check::lint::{Source, Sources};
use lab_kit::paths;

const SPDX: &str = "// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause\n";

fn found(rule: &str, path: &str, text: &str) -> Vec<usize> {
    let sources = Sources {
        files: vec![Source {
            path: path.into(),
            text: text.to_owned(),
        }],
        packages: vec![Package {
            name: "hvkit-some".to_owned(),
            folder: paths::root().join("some"),
            published: true,
            needs: Vec::new(),
            features: Vec::new(),
            rust_version: None,
        }],
        outside: Vec::new(),
    };
    let mut lines = Vec::new();
    let rule = ALL
        .iter()
        .find(|r| r.name == rule)
        .expect("a rule of that name");
    (rule.look)(&sources, &mut |finding| {
        assert_eq!(finding.rule, rule.name);
        lines.push(finding.line);
    });
    lines
}

#[test]
fn spdx_wants_the_first_line() {
    assert_eq!(found("spdx", "a.rs", SPDX), [0; 0]);
    assert_eq!(found("spdx", "a.rs", &format!("\n{SPDX}")), [1]);
}

#[test]
fn file_size_counts_code_and_leaves_tests_some_room() {
    let lines = |n: usize| "x\n".repeat(n);
    assert_eq!(found("file-size", "a/src/a.rs", &lines(500)), [0; 0]);
    assert_eq!(found("file-size", "a/src/a.rs", &lines(501)), [0]);
    let with_tests = |n: usize, m: usize| lines(n) + "#[cfg(test)]\nmod tests {\n" + &lines(m);
    assert_eq!(
        found("file-size", "a/src/a.rs", &with_tests(400, 200)),
        [0; 0]
    );
    assert_eq!(found("file-size", "a/src/a.rs", &with_tests(400, 400)), [0]);
    assert_eq!(found("file-size", "a/tests/a.rs", &lines(700)), [0; 0]);
    assert_eq!(found("file-size", "a/tests/a.rs", &lines(801)), [0]);
}

#[test]
fn no_silence_wants_a_reason_and_no_dead_code() {
    let rule = |text: &str| found("no-silence", "a.rs", text);
    // Written in two halves, or this file would break the rule.
    let allow = format!("#[{}", "allow(");
    let expect = format!("#[{}", "expect(");
    assert_eq!(rule(&format!("{allow}clippy::all)]\n")), [1]);
    assert_eq!(
        rule(&format!("\n{expect}clippy::all, reason = \"because\")]\n")),
        [0; 0]
    );
    assert_eq!(
        rule(&format!(
            "{expect}\n    clippy::all,\n    reason = \"because\"\n)]\n"
        )),
        [0; 0]
    );
    assert_eq!(
        rule(&format!("{expect}dead_code, reason = \"later\")]\n")),
        [1]
    );
}

#[test]
fn unsafe_at_edge_wants_the_crate_to_forbid_it() {
    let rule = |text: &str| found("unsafe-at-edge", "some/src/lib.rs", text);
    assert_eq!(rule(""), [1]);
    assert_eq!(rule("#![forbid(unsafe_code)]"), [0; 0]);
    // Opened somewhere, with a reason, on one line or on several.
    for attribute in [
        "unsafe_code, reason = \"asm\"",
        "\n    unsafe_code,\n    reason = \"asm\"\n",
    ] {
        assert_eq!(rule(&format!("#[{}{attribute})]", "expect(")), [0; 0]);
    }
    assert_eq!(rule(&format!("#[{}unsafe_code)]", "expect(")), [1]);
}

#[test]
fn crate_shape_names_each_missing_page() {
    // Four files and the program on the front page are missing from a folder that is not there.
    assert_eq!(found("crate-shape", "some/src/lib.rs", "").len(), 5);
    let program = "//! ```\n//! assert!(true);\n//! ```\n";
    assert_eq!(found("crate-shape", "some/src/lib.rs", program).len(), 4);
}

fn code(text: &str) -> Vec<usize> {
    let source = Source {
        path: PathBuf::from("a.rs"),
        text: text.to_owned(),
    };
    source.code_lines().map(|(number, _)| number).collect()
}

#[test]
fn modules_for_tests_are_not_code_and_what_is_below_them_is() {
    assert_eq!(code("a\n#[cfg(test)]\nmod tests {\nb\n}\n"), [1]);
    assert_eq!(
        code("a\n#[cfg(test)]\nmod tests {\n    if b {\n    }\n}\nc\n"),
        [1, 7]
    );
    let inner = "mod a {\n    #[cfg(test)]\n    mod tests {\n        b\n    }\n    c\n}\n";
    assert_eq!(code(inner), [1, 6, 7]);
    // In a file of their own, named among the others.
    assert_eq!(code("a\n#[cfg(test)]\nmod tests;\nmod b;\n"), [1, 4]);
    assert_eq!(code("#[cfg(test)]\nuse a;\nb\n"), [1, 2, 3]);
}

#[test]
fn what_is_a_test_is_told_by_its_place() {
    let is_test = |path: &str| {
        let source = Source {
            path: path.into(),
            text: String::new(),
        };
        source.is_test()
    };
    for test in [
        "a/tests/b.rs",
        "a/src/b/tests.rs",
        "a/benches/b.rs",
        "bench/a/src/main.rs",
        "fuzz/fuzz_targets/a.rs",
    ] {
        assert!(is_test(test), "{test}");
    }
    for code in [
        "fuzz/bodies/src/a.rs",
        "xtask/src/fuzz/record.rs",
        "xtask/src/bench/mod.rs",
    ] {
        assert!(!is_test(code), "{code}");
    }
}

#[test]
fn a_package_in_another_is_not_part_of_it() {
    let source = |path: &str| Source {
        path: path.into(),
        text: String::new(),
    };
    let sources = Sources {
        files: ["a/src/lib.rs", "a/b/src/lib.rs", "c/src/lib.rs"]
            .map(source)
            .into(),
        packages: Vec::new(),
        outside: ["a", "a/b"].map(PathBuf::from).into(),
    };
    let of = |folder: &str| sources.below(folder.as_ref()).count();
    assert_eq!((of("a"), of("a/b"), of("c")), (1, 1, 1));
}
