// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Known classes of bugs in this field, and the tests of ours that would have caught them.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::check::lint::{Source, Sources};
use crate::mutants::guards::{self, Since};

/// A class of bugs.
struct Class {
    /// What went wrong, where.
    what: &'static str,
    /// Names of test functions; of tests of documents that must not compile, as rustdoc names them: `FILE - ITEM`.
    tests: &'static [&'static str],
}

/// How a class ends that no code keeps out, so that there is nothing to take out.
#[cfg(test)]
const BY_TYPE: &str = "devices are given memory and nothing else";

const CLASSES: &[Class] = &[
    Class {
        what: "paging structures freed while hardware may still hold them (XSA-480, CVE-2026-23554; XSA-346)",
        tests: &[
            "frames_return_only_after_the_invalidation",
            "freed_frames_are_never_walked",
        ],
    },
    Class {
        what: "a live entry changed by more than one store (XSA-328)",
        tests: &[
            "map_into_holes",
            "unmap_any_range",
            "split_any_range_to_each_level",
            "a_reader_sees_no_half_built_table",
        ],
    },
    Class {
        what: "large executable pages (XSA-304, CVE-2018-12207)",
        tests: &["sizes_forbid_large_pages_and_large_executable_ones"],
    },
    Class {
        what: "IOVA and length wrap (vm-memory's Iotlb)",
        tests: &[
            "the_fault_is_at_the_first_byte_that_is_refused",
            "buffers_that_wrap_are_refused",
        ],
    },
    Class {
        what: "queue registers writable after activation (CVE-2026-5747)",
        tests: &["every_register_in_every_status"],
    },
    Class {
        what: "descriptor chains that loop or never end (CVE-2016-5403)",
        tests: &["loops_end", "chains_that_no_driver_may_make"],
    },
    Class {
        what: "MSI-X table accesses outside the table, and across fields (XSA-164, CVE-2020-13754)",
        tests: &[
            "reads_of_any_shape_agree_and_stop_at_the_end",
            "table_writes_split_over_fields_and_end_at_the_table",
        ],
    },
    Class {
        what: "configuration writes that reach read-only fields (XSA-337)",
        tests: &["a_write_reaches_the_writable_bits_it_covers_and_no_others"],
    },
    Class {
        what: "a shadow with rights of another path or mode (CVE-2021-38198); errors that leave the wrong root (CVE-2026-42488)",
        tests: &[
            "tables_under_other_rights_have_shadows_of_their_own",
            "a_root_that_cannot_be_loaded_leaves_the_old_one",
            "whatever_fails",
            "every_allocation_of_a_frame",
            "every_allocation_from_the_heap",
        ],
    },
    Class {
        what: "VM-entry checks that are missing (CVE-2023-30456)",
        tests: &[
            "each_rule_breaks_alone_and_holds_at_its_boundary",
            "every_instruction_does_and_fails_as_the_manual_says",
        ],
    },
    Class {
        what: "DMA to a page that was given away before the IOMMU forgot it (XSA-346)",
        tests: &[
            "after_unmap_and_wait",
            "after_unmap_and_wait_it_is_over",
            "nothing_is_touched_after_unmap_and_wait",
            "without_the_wait_it_is_touched",
            "the_shadow_is_right_before_the_wait_says_so",
        ],
    },
    Class {
        what: "reserved memory of a device taken from it (XSA-378, XSA-386, XSA-400)",
        tests: &[
            "reserved_memory_is_never_out_of_reach",
            "moving_a_device_with_reserved_memory_leaves_no_gap",
            "a_pasid_that_goes_leaves_reserved_memory_reserved",
        ],
    },
    Class {
        what: "the wrong layout, which a round trip does not see (an emulator's invalidation wait, another's granularity)",
        tests: &[
            "descriptors_are_spelled_as_in_the_figures",
            "every_high_half_and_requesters_near_it",
            "fields_lie_where_the_figure_says",
            "context_entries",
            "pasid_entries",
            "second_stage_entries",
            "first_stage_entries",
        ],
    },
    Class {
        what: "the MSI-X table of a passed-through device within the guest's reach (XSA-164)",
        tests: &["pages_with_msix_structures_are_not_mapped"],
    },
    Class {
        what: "a table that is linked again as it was, not as it is (KVM 65855ed8)",
        tests: &[
            "a_stale_table_is_compared_before_it_is_linked_again",
            "a_table_that_was_unlinked_comes_back_as_it_is_then",
        ],
    },
    Class {
        what: "lengths that a guest says, believed (CVE-2019-14835, CVE-2019-18960)",
        tests: &[
            "at_most_four_gib_in_total",
            "no_more_is_in_flight_than_there_are_places",
            "a_guest_that_never_ends_its_line_fills_no_memory",
        ],
    },
    Class {
        what: "DMA of a device into registers of devices (CVE-2021-20255, CVE-2021-3750): devices are given memory and nothing else",
        tests: &[
            "virtio-devices/src/device.rs - device::Device",
            "a_buffer_outside_memory_is_an_error_of_the_request_only",
        ],
    },
    Class {
        what: "counts of interrupts that wrap (CVE-2016-9083, CVE-2016-9084)",
        tests: &[
            "the_number_of_vectors_has_limits",
            "more_vectors_than_there_are_is_all_of_them",
            "too_many_vectors_leave_nothing_taken",
        ],
    },
    Class {
        what: "a device that is removed while something of it is under way (CVE-2024-35843)",
        tests: &[
            "an_unplugged_device_leaves_nothing_behind",
            "a_device_that_cannot_be_forgotten_stays_known",
        ],
    },
    Class {
        what: "a request that completes into memory that is no longer its own (CVE-2026-45782)",
        tests: &[
            "a_reset_is_not_complete_before_the_worker_has_stopped",
            "a_disk_comes_back_after_a_reset_in_the_middle_of_its_work",
        ],
    },
    Class {
        what: "an image that names another file (CVE-2026-27211)",
        tests: &[
            "another_file_is_opened_only_if_that_is_allowed",
            "a_format_is_never_guessed",
        ],
    },
];

pub(super) fn write(page: &mut String, sources: &Sources) -> Result<()> {
    let noticed = guards::noticed();
    writeln!(page, "## Known bug classes\n")?;
    writeln!(
        page,
        "In bold: seen to fail with its guard taken out, by `cargo xtask guards`; at this commit, and whether the guard's file is still as it was then.\n"
    )?;
    writeln!(page, "| class | caught by |\n|---|---|")?;
    for class in CLASSES {
        let mut tests = Vec::new();
        for test in class.tests {
            ensure!(
                sources.files.iter().any(|file| has(file, test)),
                "there is no test {test}"
            );
            tests.push(match noticed.get(*test) {
                None => format!("`{test}`"),
                Some(commit) => {
                    let since = match guards::since(test, commit)? {
                        Since::Same => "",
                        Since::Changed => ", its file has changed since",
                        Since::Unknown => ", which is not in this history",
                    };
                    format!("**`{test}`** ({commit}{since})")
                }
            });
        }
        writeln!(page, "| {} | {} |", class.what, tests.join(", "))?;
    }
    writeln!(page)?;
    Ok(())
}

/// Whether the file has a test of this name: a function with the attribute, or a document's program that must not compile.
fn has(file: &Source, test: &str) -> bool {
    if let Some((path, item)) = test.split_once(" - ") {
        let declared = format!("pub trait {}", item.rsplit("::").next().unwrap_or(item));
        let said = file.text.split_once(&declared).map(|(before, _)| before);
        // In the comment right above the item.
        let comment = said.map(|before| before.rsplit("\n\n").next().unwrap_or(before));
        return file.path == Path::new(path)
            && comment.is_some_and(|comment| comment.contains("/// ```compile_fail"));
    }
    let head = format!("fn {test}(");
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        let attributes = lines[..at].iter().rev();
        line.starts_with(&head)
            && attributes
                .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
                .any(|line| *line == "#[test]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guard_is_of_a_class_and_each_class_has_one_or_is_kept_out_by_a_type() {
        let tested: Vec<_> = guards::tests().collect();
        for test in &tested {
            let of = CLASSES.iter().filter(|class| class.tests.contains(test));
            assert!(of.count() > 0, "{test}");
        }
        for class in CLASSES {
            let guarded = class.tests.iter().any(|test| tested.contains(test));
            assert_eq!(guarded, !class.what.ends_with(BY_TYPE), "{}", class.what);
        }
    }

    #[test]
    fn a_function_is_a_test_by_its_attribute() {
        let has = |text: &str| {
            let file = Source {
                path: "a/src/b.rs".into(),
                text: text.to_owned(),
            };
            (has(&file, "it_works"), has(&file, "a/src/b.rs - b::B"))
        };
        assert!(has("#[test]\nfn it_works() {}").0);
        assert!(
            has("mod c {\n    #[test]\n    // Why.\n    #[should_panic]\n    fn it_works() {}\n}")
                .0
        );
        for no in [
            "fn it_works() {}",
            "#[test]\nfn other() {}\n\nfn it_works() {}",
            "// fn it_works()",
            "#[test]\nfn it_works_too() {}",
            "#[cfg(test)]\nfn it_works() {}",
        ] {
            assert!(!has(no).0, "{no}");
        }
        assert!(has("/// B.\n///\n/// ```compile_fail,E0277\n/// ```\npub trait B {}").1);
        assert!(
            !has("/// ```compile_fail,E0277\n/// ```\npub trait A {}\n\n/// B.\npub trait B {}").1
        );
        assert!(!has("/// ```\n/// ```\npub trait B {}").1);
    }
}
