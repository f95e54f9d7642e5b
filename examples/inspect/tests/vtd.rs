// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect dmar`, `vtd` and `vtd-faults`, and pictures: files in, text, JSON, SVG and exit status out. Tables are
//! written here byte by byte from the specification's figures.

mod support;

use std::process::Output;

use support::hvkit;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A DMAR table around these structures: header, checksum.
fn dmar(structures: &[&[u8]]) -> Vec<u8> {
    let mut table = b"DMAR".to_vec();
    table.resize(48, 0);
    table[8] = 1;
    table[36] = 45; // 46 bits
    table[37] = 1; // interrupt remapping
    for structure in structures {
        table.extend_from_slice(structure);
    }
    let length = u32::try_from(table.len()).expect("short");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

/// A unit at 0xfed90000 for the endpoint 00:02.0.
#[rustfmt::skip]
const GRAPHICS: [u8; 24] = [
    0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0,
    1, 8, 0, 0, 0, 0, 2, 0,
];
/// A unit at 0xfed91000 for all others, with an I/O APIC at f0:1f.0 of id 2.
#[rustfmt::skip]
const OTHERS: [u8; 24] = [
    0, 0, 24, 0, 1, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0,
    3, 8, 0, 0, 2, 0xf0, 0x1f, 0,
];
/// Memory 0x7b800000-0x7fffffff for an endpoint behind the bridge 00:1c.2.
#[rustfmt::skip]
const RESERVED: [u8; 34] = [
    1, 0, 34, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x7b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0,
    1, 10, 0, 0, 0, 0, 0x1c, 2, 0, 0,
];

#[test]
fn a_dmar_table_is_told_in_words() {
    let output = hvkit(&["dmar", "-"], &dmar(&[&GRAPHICS, &OTHERS, &RESERVED]));
    assert_eq!(
        text(&output),
        "DMAR revision 1, 46-bit addresses, interrupt remapping\n\
         remapping unit, segment 0: registers at 0xfed90000, 4 KiB\n    \
             endpoint 00:02.0\n\
         remapping unit, segment 0: registers at 0xfed91000, 4 KiB, all devices of no other unit\n    \
             I/O APIC 2 f0:1f.0\n\
         reserved memory, segment 0: 0x7b800000-0x7fffffff\n    \
             endpoint 00:1c.2/00.0\n"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_wrong_with_a_dmar_table_is_said() {
    // In the wrong order twice, reserved memory that ends in mid-page, a structure that is cut.
    let mut odd = RESERVED;
    odd[16] = 0xfe;
    let cut = [0, 0, 200, 0];
    let output = hvkit(
        &["dmar", "-", "--json"],
        &dmar(&[&odd, &OTHERS, &GRAPHICS, &cut]),
    );
    let table = json(&output);
    let wrong = table["wrong"].as_array().expect("a list");
    assert_eq!(wrong.len(), 5, "{wrong:?}");
    assert_eq!(
        wrong[0],
        "reserved memory 0x7b800000-0x7ffffffe is not whole pages"
    );
    assert_eq!(wrong[1], "a structure of type 0 comes after one of type 1");
    assert_eq!(table["structures"][2]["devices"][0], "endpoint 00:02.0");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_is_no_dmar_table_is_refused() {
    for bytes in [&b""[..], b"FACP", &[0; 64]] {
        let output = hvkit(&["dmar", "-"], bytes);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
}

/// Root table at 0x1000, context table at 0x2000: 00:03.0 in domain 7 with 39-bit tables at 0x3000; 00:04.0 passed
/// through in domain 8; 00:05.0 as 00:03.0, with a reserved bit set.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 0x10_0000];
    let mut set = |at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    set(0x1000, 0x2001);
    set(0x2000 + 0x18 * 16, 0x3001);
    set(0x2000 + 0x18 * 16 + 8, 0x0701);
    set(0x2000 + 0x20 * 16, 0b1001);
    set(0x2000 + 0x20 * 16 + 8, 0x0801);
    set(0x2000 + 0x28 * 16, 0x3011);
    set(0x2000 + 0x28 * 16 + 8, 0x0701);
    set(0x3000, 0x4003);
    // 2 MiB at 0x200000 for reading and writing; 4 KiB at 0x5000 and 0x6000 for reading.
    set(0x4008, 0x0080_0083);
    set(0x4000, 0x5003);
    set(0x5028, 0x9001);
    set(0x5030, 0xa001);
    bytes
}

#[test]
fn devices_and_domains_of_a_unit() {
    let output = hvkit(&["vtd", "-", "--rtaddr", "0x1000"], &image());
    let text = text(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("00:03.0  domain 7 "), "{text}");
    assert!(
        lines[0].ends_with("domain 7 39 bits, second stage 0x3000"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("00:04.0  domain 8 passed through"),
        "{text}"
    );
    assert!(
        lines[2].ends_with("WRONG: reserved bits 0x0:0x10 are set"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_a_device_may_reach_and_one_address_of_it() {
    let arguments = ["vtd", "-", "--rtaddr", "0x1000", "--requester", "00:03.0"];
    let output = hvkit(&arguments, &image());
    assert_eq!(
        text(&output),
        "0x000000005000-0x000000007000 -> 0x000000009000  2 of 4 KiB  r-\n\
         0x000000200000-0x000000400000 -> 0x000000800000  1 of 2 MiB  rw\n"
    );
    assert_eq!(output.status.code(), Some(0));

    let explained = |more: &[&str]| hvkit(&[&arguments, more].concat(), &image());
    let read = explained(&["--explain", "0x6abc"]);
    assert!(
        text(&read).ends_with("  leads to 0xaabc, r-\n"),
        "{}",
        text(&read)
    );
    assert_eq!(read.status.code(), Some(0));
    let write = explained(&["--explain", "0x6abc", "--write"]);
    assert!(text(&write).contains("refused (0x5)"), "{}", text(&write));
    assert_eq!(write.status.code(), Some(1));

    let read = explained(&["--explain", "0x6abc", "--json"]);
    let why = json(&read);
    assert_eq!(
        (&why["device"], &why["address"]),
        (&"00:03.0".into(), &0x6abc.into())
    );
    let kinds = why["entries"].as_array().expect("a list");
    let kinds: Vec<_> = kinds
        .iter()
        .map(|entry| (entry["kind"].as_str(), entry["level"].as_u64()))
        .collect();
    let stage = |level| (Some("second stage"), Some(level));
    assert_eq!(
        kinds,
        [
            (Some("root"), None),
            (Some("context"), None),
            stage(3),
            stage(2),
            stage(1)
        ]
    );
    assert_eq!(why["entries"][1]["at"], 0x2180);
    assert_eq!(why["entries"][1]["words"][1], "0x0000000000000701");
    assert_eq!(
        why["entries"][4]["words"],
        serde_json::json!(["0x000000000000a001"])
    );
    let to = serde_json::json!({ "address": 0xaabc, "reads": true, "writes": false });
    assert_eq!((&why["to"], why["refused"].is_null()), (&to, true));
    assert_eq!(read.status.code(), Some(0));
    let write = explained(&["--explain", "0x6abc", "--write", "--json"]);
    let why = json(&write);
    assert!(why["to"].is_null());
    assert_eq!(why["refused"]["reason"], 5);
    assert!(why["refused"]["meaning"].is_string());
    assert_eq!(write.status.code(), Some(1));
}

#[test]
fn scalable_mode_lists_processes() {
    let mut bytes = vec![0; 0x10000];
    let mut set = |at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    set(0x1000, 0x2001); // devices 0 to 15 of bus 0
    set(0x2000 + 0x18 * 32, 0x3001); // 00:03.0: a directory of 128 PASIDs
    set(0x3008, 0x4001); // PASIDs 64 to 127
    set(0x4000 + 6 * 64, 0x5000 | 2 << 6 | 2 << 2 | 1); // 70: second stage, 48 bits
    set(0x4000 + 6 * 64 + 8, 9);
    let output = hvkit(&["vtd", "-", "--rtaddr", "0x1400", "--json"], &bytes);
    let rows = json(&output);
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    assert_eq!(rows[0]["device"], "00:03.0");
    assert_eq!(
        (&rows[0]["pasid"], &rows[0]["domain"]),
        (&70.into(), &9.into())
    );
    assert_eq!(rows[0]["second_stage"], 0x5000);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// The page that users read shows what these commands print.
#[test]
fn the_readme_shows_what_is_printed() {
    const README: &str = include_str!("../README.md");
    let unit = ["vtd", "-", "--rtaddr", "0x1000"];
    let device = [&unit[..], &["--requester", "00:03.0"]].concat();
    let write = [&device[..], &["--explain", "0x6abc", "--write"]].concat();
    let table = dmar(&[&GRAPHICS, &OTHERS, &RESERVED]);
    let cases: [(&[&str], &[u8]); 5] = [
        (&["dmar", "-"], &table),
        (&unit, &image()),
        (&device, &image()),
        (&write, &image()),
        (&["vtd-faults", "-"], FAULTS.as_bytes()),
    ];
    for (arguments, input) in cases {
        let printed = text(&hvkit(arguments, input));
        assert!(README.contains(&printed), "{arguments:?}:\n{printed}");
    }
}

const FAULTS: &str = "\
[    1.000000] DMAR: DRHD: handling fault status reg 2
[    2.500000] DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x7f000 [fault reason 0x06] PTE Read access is not set
[    3.500000] DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x80000 [fault reason 0x06] PTE Read access is not set
[    4.000000] DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x0 [fault reason 0x02] Present bit in context entry is clear
";

#[test]
fn faults_of_a_log_by_device_and_time() {
    let output = hvkit(&["vtd-faults", "-"], FAULTS.as_bytes());
    let text = text(&output);
    assert!(
        text.starts_with("00:02.0 DMA Read, 2 times, at 0x7f000 to 0x80000: 0x6, "),
        "{text}"
    );
    assert!(
        text.contains("    from 2.500000 s to 3.500000 s\n01:00.0 DMA Write, 1 times"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        hvkit(&["vtd-faults", "-"], b"all is well").status.code(),
        Some(0)
    );
}

/// Where the marks of a picture are.
fn marks(picture: &str) -> Vec<u32> {
    let marks = picture.lines().filter(|line| line.contains("#c00000"));
    let place = |line: &str| line.split('"').nth(1)?.parse().ok();
    marks.filter_map(place).collect()
}

/// The picture of a log is as long as its times say; one without times has its faults in their order.
#[test]
fn the_picture_of_a_log_needs_no_times() {
    let fault = |time: &str| {
        format!(
            "{time}DMAR: [DMA Read] Request device [00:02.0] fault addr 7f000 [fault reason 06] x\n"
        )
    };
    let draw = |times: &[&str]| {
        let log: String = times.iter().map(|time| fault(time)).collect();
        text(&hvkit(&["vtd-faults", "-", "--svg"], log.as_bytes()))
    };
    let timed = draw(&["[ 1.5] ", "[ 2.5] ", "[ 5.5] "]);
    assert!(
        timed.contains(">3 VT-d faults, from 1.500 s to 5.500 s<"),
        "{timed}"
    );
    assert_eq!(marks(&timed), [10, 10 + 225, 10 + 900]);
    let untimed = draw(&["", "[ nan] ", "<6> "]);
    let title = ">3 VT-d faults in the order of the log, which has no times<";
    assert!(untimed.contains(title), "{untimed}");
    assert_eq!(marks(&untimed), [10, 10 + 300, 10 + 600]);
    let some = draw(&["[ 1.5] ", "", "[ 2.5] "]);
    let title = ">3 VT-d faults, from 1.500 s to 2.500 s; 1 without a time have no mark<";
    assert!(some.contains(title), "{some}");
    assert_eq!(marks(&some), [10, 10 + 900]);
    let none = text(&hvkit(&["vtd-faults", "-", "--svg"], b"all is well"));
    assert!(none.contains(">no VT-d faults in this log<"), "{none}");
}

/// Each picture is one element that ends, with what it should show in it.
#[test]
fn pictures() {
    let log =
        b"[ 1.5] DMAR: [DMA Read] Request device [00:02.0] fault addr 7f000 [fault reason 06] x";
    let cases: [(&[&str], Vec<u8>, &str); 4] = [
        (
            &["dmar", "-", "--svg"],
            dmar(&[&GRAPHICS, &RESERVED]),
            "endpoint 00:1c.2/00.0",
        ),
        (
            &["vtd", "-", "--rtaddr", "0x1000", "--svg"],
            image(),
            "00:03.0",
        ),
        (
            &[
                "vtd",
                "-",
                "--rtaddr",
                "0x1000",
                "--requester",
                "00:03.0",
                "--svg",
            ],
            image(),
            "0x200000-0x3fffff rw",
        ),
        (
            &["vtd-faults", "-", "--svg"],
            log.to_vec(),
            "00:02.0 DMA Read, 1 times",
        ),
    ];
    for (arguments, input, shown) in cases {
        let picture = text(&hvkit(arguments, &input));
        assert!(picture.starts_with("<svg xmlns="), "{picture}");
        assert!(picture.ends_with("</svg>\n"), "{picture}");
        assert!(picture.contains(shown), "{arguments:?}: {picture}");
    }
}
