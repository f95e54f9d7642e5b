// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect`, of files of any bytes: logs, listings, states, tables, memory images with page tables of any words.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use arbitrary::{Arbitrary, Unstructured};
use hvkit_inspect::{Cli, Found, answer};
use hvkit_vmcs::fields::ALL;
use hvkit_vmcs::store::Vmcs12;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::vtd_dmar::with_header;

/// What is asked about.
#[derive(Arbitrary, Clone, Debug)]
enum What {
    Vmcs(Failure, u8, Fields),
    /// Two of the same file, of which the second lacks its last bytes.
    VmcsDiff(u16, Fields),
    /// The bytes behind a header that makes sense, if that is asked for, and a VMCS12's revision.
    KvmNested(Option<(u16, u8)>, Words),
    /// The EPTP's low bits, the width of addresses, an address to explain.
    Ept(u8, u8, Option<u64>, Words),
    /// The bytes behind a header that makes sense, if that is asked for.
    Dmar(Option<(u8, u8)>),
    /// The mode, the width of addresses, whose device, an address to explain, a PASID, a write.
    Vtd(bool, u8, Option<u8>, Option<u64>, Option<u32>, bool, Words),
    VtdFaults(Vec<Fault>),
}

/// Fields of a VMCS, by their numbers in the list of all, and values: a line each before what else is in the file.
type Fields = Vec<(u8, u64)>;

/// A fault as a log says it: when, by what device, what it asked, where, why.
#[derive(Arbitrary, Clone, Debug)]
struct Fault {
    time: Option<f64>,
    device: Vec<u8>,
    request: Vec<u8>,
    at: u32,
    reason: u8,
}

impl Fault {
    fn line(&self) -> Vec<u8> {
        let time = self.time.map(|time| format!("[{time}] "));
        let some = |bytes: &[u8]| bytes[..bytes.len().min(16)].to_vec();
        let (at, reason) = (self.at, self.reason);
        let parts = [
            time.unwrap_or_default().into_bytes(),
            b"DMAR: [".to_vec(),
            some(&self.request),
            b"] Request device [".to_vec(),
            some(&self.device),
            format!("] fault addr {at:#x} [fault reason {reason:#x}] x\n").into_bytes(),
        ];
        parts.concat()
    }
}

/// A listing of `fields`, of which those that take less take the low bits.
fn listing(fields: &Fields) -> Vec<u8> {
    let lines = fields.iter().take(WORDS * 4).map(|(number, value)| {
        let info = &ALL[usize::from(*number) % ALL.len()];
        let value = value & info.encoding.width().mask();
        format!("{} = {value:#x}\n", info.id)
    });
    lines.collect::<String>().into_bytes()
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Failure {
    None,
    Invalid,
    Error(u8),
    Exit(u8, Option<u8>),
}

/// Words of an image: where, by eights of bytes, and what. Few, so that tables which lead into themselves have few paths.
type Words = Vec<(u16, Word)>;

/// A word of a table.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Word {
    /// An entry that leads somewhere in the image, or near it, and the bits that it has.
    Leads(u8, u16, u8),
    Any(u64),
}

/// The most words of an image.
const WORDS: usize = 16;
/// Bytes of an image: pages that entries lead to.
const IMAGE: u64 = 0x8000;
/// The most lines that are asked for.
const LINES: &str = "50";

impl Word {
    fn value(self) -> u64 {
        match self {
            Self::Leads(page, low, high) => {
                u64::from(page % 10) << 12 | u64::from(low & 0xfff) | u64::from(high) << 56
            }
            Self::Any(word) => word,
        }
    }
}

/// A file without a name, and a name that it has nevertheless.
struct Nameless(File, String);

impl Nameless {
    fn new(content: &[u8]) -> Self {
        let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file"));
        file.write_all(content).expect("a file");
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        Self(file, name)
    }

    fn image(words: &Words) -> Self {
        let file = Self::new(&[]);
        file.0.set_len(IMAGE).expect("a file");
        for (at, word) in words.iter().take(WORDS) {
            let at = u64::from(*at) * 8 % IMAGE;
            let word = word.value().to_le_bytes();
            file.0.write_all_at(&word, at).expect("a file");
        }
        file
    }
}

/// The arguments after the file's name, and the file.
fn command(what: &What, bytes: &[u8]) -> (Vec<String>, Vec<Nameless>) {
    let mut arguments = Vec::new();
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    match what {
        What::Vmcs(failure, number, fields) => {
            option(
                "--failure",
                match failure {
                    Failure::None => None,
                    Failure::Invalid => Some("invalid".to_owned()),
                    Failure::Error(number) => Some(format!("error {number}")),
                    Failure::Exit(reason, None) => Some(format!("exit {reason}")),
                    Failure::Exit(reason, Some(word)) => Some(format!("exit {reason} {word:#x}")),
                },
            );
            option(
                "--number",
                (number % 4 > 0).then(|| (number % 4).to_string()),
            );
            let file = [&listing(fields)[..], bytes].concat();
            (arguments, vec![Nameless::new(&file)])
        }
        What::VmcsDiff(cut, fields) => {
            let file = [&listing(fields)[..], bytes].concat();
            let rest = file.len().saturating_sub((*cut).into());
            let files = [&file[..], &file[..rest]].map(Nameless::new);
            (arguments, files.into())
        }
        What::KvmNested(header, words) => {
            let mut state = Vec::new();
            if let Some((flags, pointers)) = header {
                state.extend(flags.to_le_bytes());
                state.extend([0; 2]);
                let length = if words.is_empty() {
                    bytes.len()
                } else {
                    Vmcs12::<()>::SIZE
                };
                state.extend((128 + length as u32).to_le_bytes());
                for bit in 0..2 {
                    let there = pointers >> bit & 1 == 0;
                    state.extend((if there { 0x1000 } else { u64::MAX }).to_le_bytes());
                }
                state.resize(128, 0);
            }
            if !words.is_empty() {
                let mut vmcs12 = [0; Vmcs12::<()>::SIZE];
                vmcs12[..4].copy_from_slice(&Vmcs12::<()>::REVISION.to_le_bytes());
                for (at, word) in words.iter().take(WORDS) {
                    let at = 8 + usize::from(*at) * 8 % (vmcs12.len() - 8);
                    vmcs12[at..at + 8].copy_from_slice(&word.value().to_le_bytes());
                }
                state.extend(vmcs12);
            }
            state.extend(bytes);
            (arguments, vec![Nameless::new(&state)])
        }
        What::Ept(low, bits, explain, words) => {
            option("--eptp", Some((0x1000 | u64::from(*low)).to_string()));
            option("--physical-bits", Some((32 + bits % 21).to_string()));
            option("--explain", explain.map(|at| format!("{at:#x}")));
            option("--lines", Some(LINES.to_owned()));
            (arguments, vec![Nameless::image(words)])
        }
        What::Dmar(None) => (arguments, vec![Nameless::new(bytes)]),
        What::Dmar(Some((width, flags))) => {
            let table = with_header(*width, *flags, bytes);
            (arguments, vec![Nameless::new(&table)])
        }
        What::VtdFaults(faults) => {
            let mut log: Vec<u8> = faults.iter().flat_map(Fault::line).collect();
            log.extend(bytes);
            (arguments, vec![Nameless::new(&log)])
        }
        What::Vtd(scalable, bits, whose, explain, pasid, write, words) => {
            let rtaddr = 0x1000 | u64::from(*scalable) << 10;
            option("--rtaddr", Some(rtaddr.to_string()));
            option("--host-bits", Some((30 + bits % 23).to_string()));
            let whose = whose.map(|whose| format!("00:{:02x}.{}", whose >> 3, whose & 7));
            let whose = whose.or(explain.map(|_| "00:01.0".to_owned()));
            option("--requester", whose);
            option("--explain", explain.map(|at| format!("{at:#x}")));
            let pasid = pasid.filter(|_| explain.is_some());
            option(
                "--pasid",
                pasid.map(|pasid| (pasid % (1 << 21)).to_string()),
            );
            option("--lines", Some(LINES.to_owned()));
            if *write && explain.is_some() {
                arguments.push("--write".to_owned());
            }
            (arguments, vec![Nameless::image(words)])
        }
    }
}

impl What {
    fn name(&self) -> &'static str {
        match self {
            Self::Vmcs(..) => "vmcs",
            Self::VmcsDiff(..) => "vmcs-diff",
            Self::KvmNested(..) => "kvm-nested",
            Self::Ept(..) => "ept",
            Self::Dmar(_) => "dmar",
            Self::Vtd(..) => "vtd",
            Self::VtdFaults(_) => "vtd-faults",
        }
    }

    /// Whether there is a picture of it.
    fn is_drawn(&self) -> bool {
        match self {
            Self::Vmcs(..) | Self::VmcsDiff(..) | Self::KvmNested(..) => false,
            Self::Ept(_, _, explain, _) | Self::Vtd(_, _, _, explain, ..) => explain.is_none(),
            Self::Dmar(_) | Self::VtdFaults(_) => true,
        }
    }
}

/// What is said in one form, and whether something is wrong; nothing where the file is refused.
fn ask(what: &What, form: Option<&str>, bytes: &[u8]) -> Option<(String, Found)> {
    let (arguments, files) = command(what, bytes);
    let line = ["hvkit", "inspect", what.name()]
        .map(str::to_owned)
        .into_iter();
    let line = line.chain(files.iter().map(|file| file.1.clone()));
    let line = line.chain(arguments).chain(form.map(str::to_owned));
    let line: Vec<String> = line.collect();
    let cli = Cli::of(line.iter().map(OsString::from));
    let cli = cli.unwrap_or_else(|error| panic!("{line:?}: {error}"));
    let mut said = Vec::new();
    match answer(&cli, &mut said) {
        Ok(found) => Some((String::from_utf8(said).expect("text"), found)),
        Err(error) => {
            assert!(!format!("{error:#}").is_empty());
            None
        }
    }
}

/// Whether `picture` is one element of XML, with all in it closed and nothing that XML has not.
fn check_picture(picture: &str) {
    let is_char =
        |c: char| matches!(c, '\n' | ' '..='\u{7e}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..);
    assert!(picture.chars().all(is_char), "{picture:?}");
    let mut open = Vec::new();
    let mut left = picture;
    while let Some((words, rest)) = left.split_once('<') {
        assert!(!words.contains('>'), "{words:?}");
        for (_, entity) in words.match_indices('&').map(|(at, _)| words.split_at(at)) {
            let known = ["&amp;", "&lt;", "&gt;", "&quot;"];
            assert!(
                known.iter().any(|known| entity.starts_with(known)),
                "{words:?}"
            );
        }
        let (tag, rest) = rest.split_once('>').expect("a tag ends");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{picture}"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap_or(tag)),
        }
        assert!(!open.is_empty() || rest.trim().is_empty(), "{picture}");
        left = rest;
    }
    assert!(open.is_empty() && left.trim().is_empty(), "{picture}");
}

/// No panic; a file is refused in every form or in none, and found wrong in every form or in none; what is said has nothing that
/// speaks to a terminal, is JSON, is a picture.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(what) = What::arbitrary(&mut input) else {
        return;
    };
    let bytes = input.take_rest();
    let text = ask(&what, None, bytes);
    if let Some((text, _)) = &text {
        let speaks = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!text.contains(speaks), "{text:?}");
    }
    let json = ask(&what, Some("--json"), bytes);
    if let Some((json, _)) = &json {
        serde_json::from_str::<serde_json::Value>(json).expect("JSON");
    }
    let found = |asked: &Option<(String, Found)>| asked.as_ref().map(|(_, found)| *found);
    assert_eq!(found(&text), found(&json), "{what:?}");
    if what.is_drawn() {
        let picture = ask(&what, Some("--svg"), bytes);
        if let Some((picture, _)) = &picture {
            check_picture(picture);
        }
        assert_eq!(found(&text), found(&picture), "{what:?}");
    }
}
