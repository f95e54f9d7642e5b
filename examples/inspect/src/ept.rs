// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect ept`: extended page tables in a memory image.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use hvkit_ept::spec::{Accesses, Controls, EptEntry, EptVpidCap, Eptp, PageRights, Pat, Rights};
use hvkit_ept::{Access, Attributes, Ept, GuestSpace};
use hvkit_page_table::{Format, Root, walk};
use serde::Serialize;

use crate::image::Image;
use crate::page::Page;
use crate::stretches::{Map, size};
use crate::{Found, Picture, input};

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// An image of physical memory. `-` is the standard input.
    file: PathBuf,
    /// The EPTP, as in the VMCS.
    #[arg(long, value_parser = input::number)]
    eptp: u64,
    /// The physical address of the image's first byte.
    #[arg(long, value_parser = input::number, default_value = "0")]
    base: u64,
    /// The processor's physical-address width in bits (MAXPHYADDR).
    #[arg(long, default_value_t = 46, value_parser = clap::value_parser!(u32).range(32..=52))]
    physical_bits: u32,
    /// IA32_VMX_EPT_VPID_CAP. Without: a processor that can do everything.
    #[arg(long, value_parser = input::number, default_value = "0xffffffffffffffff")]
    capability: u64,
    /// Explain this guest-physical address: every entry, and what each kind of access does.
    #[arg(long, value_parser = input::number, conflicts_with = "svg")]
    explain: Option<u64>,
    /// Print at most this many lines of the map.
    #[arg(long, default_value_t = 1000)]
    lines: usize,
    /// The map as JSON or as a picture.
    #[command(flatten)]
    picture: Picture,
}

/// Prints what is mapped, or where one address leads.
pub(crate) fn inspect(options: &Options, page: &mut Page<'_>) -> Result<Found> {
    let image = Image::read(&options.file, options.base)?;
    let eptp = Eptp(options.eptp);
    let capability = EptVpidCap::from_msr(options.capability);
    let ept = match Ept::from_eptp(eptp, capability, options.physical_bits, Controls::empty()) {
        Ok(ept) => ept,
        Err(error) => bail!("EPTP {:#x}: {error}", options.eptp),
    };
    let root = eptp.root();
    match options.explain {
        Some(address) => {
            let why = Why::of(&ept, &image, root, address);
            if options.picture.json {
                page.json(&why)?;
            } else {
                page.text(&why.text())?;
            }
            Ok(why.found())
        }
        None => map(&ept, &image, root, options, page),
    }
}

/// Every entry on the way of one address, and what the accesses do.
#[derive(Debug, Serialize)]
struct Why {
    guest_physical: u64,
    entries: Vec<OnTheWay>,
    /// Where it leads, and the bytes of the page; none, if something is wrong or absent.
    to: Option<Leads>,
    fault: Option<String>,
    accesses: Vec<Tried>,
}

/// An entry.
#[derive(Debug, Serialize)]
struct OnTheWay {
    level: u8,
    at: u64,
    /// In hexadecimal, as no number of JSON's holds 64 bits everywhere.
    entry: String,
    meaning: String,
}

/// Where an address leads.
#[derive(Debug, Serialize)]
struct Leads {
    address: u64,
    page: u64,
}

/// An access, and why it is refused unless it is granted.
#[derive(Debug, Serialize)]
struct Tried {
    access: &'static str,
    refused: Option<String>,
}

impl Why {
    fn of(ept: &Ept, image: &Image, root: u64, address: u64) -> Self {
        let walk = walk(ept, image, Root::Table(root), address);
        // All but the last lead to a table, which has rights and no memory type.
        let tables = walk.steps().len().saturating_sub(1);
        let entries = walk.steps().iter().zip(0..).map(|(step, number)| OnTheWay {
            level: step.level,
            at: step.at.unwrap_or_default(),
            entry: format!("{:#018x}", step.entry),
            meaning: match step.attributes {
                Some(attributes) if number < tables => rights(attributes),
                Some(attributes) => describe(attributes),
                None => String::from("absent or malformed"),
            },
        });
        let entries = entries.collect();
        let to = walk.outcome.as_ref().ok().map(|found| Leads {
            address: found.target,
            page: ept.shape().size(found.level),
        });
        let space = GuestSpace::new(ept, image, root);
        let kinds = [
            ("read", Accesses::READ),
            ("write", Accesses::WRITE),
            ("execute", Accesses::FETCH),
        ];
        let accesses = kinds.map(|(access, kind)| {
            let tried = Access::translation(kind, PageRights::PAGING_OFF);
            let refused = space.access(address, tried).err();
            Tried {
                access,
                refused: refused.map(|fault| fault.to_string()),
            }
        });
        Why {
            guest_physical: address,
            entries,
            to,
            fault: walk.outcome.err().map(|fault| fault.to_string()),
            accesses: accesses.into(),
        }
    }

    fn found(&self) -> Found {
        if self.accesses.iter().any(|tried| tried.refused.is_some()) {
            Found::Something
        } else {
            Found::Nothing
        }
    }

    fn text(&self) -> String {
        let mut text = format!("guest-physical {:#x}\n", self.guest_physical);
        for step in &self.entries {
            text += &format!(
                "  level {} entry at {:#x}: {}  {}\n",
                step.level, step.at, step.entry, step.meaning
            );
        }
        if let Some(to) = &self.to {
            let page = size(to.page);
            text += &format!("  leads to {:#x}, a page of {page}\n", to.address);
        }
        if let Some(fault) = &self.fault {
            text += &format!("  {fault}\n");
        }
        for Tried { access, refused } in &self.accesses {
            let verdict = refused.as_deref().unwrap_or("granted");
            text += &format!("{access}: {verdict}\n");
        }
        text
    }
}

/// What is mapped, from address 0 up, stretch by stretch.
fn map(
    ept: &Ept,
    image: &Image,
    root: u64,
    options: &Options,
    page: &mut Page<'_>,
) -> Result<Found> {
    let map = Map::read(ept, image, root, options.lines, describe);
    if options.picture.json {
        page.json(&map)?;
    } else if options.picture.svg {
        let title = format!(
            "EPT {:#x}: guest-physical, and where it leads",
            options.eptp
        );
        page.svg(&map.svg(&title))?;
    } else {
        page.text(&map.text())?;
    }
    Ok(if map.is_wrong() {
        Found::Something
    } else {
        Found::Nothing
    })
}

/// The rights as letters.
fn rights(attributes: Attributes) -> String {
    let rights = attributes.rights();
    let letter = |right, letter| if rights.contains(right) { letter } else { '-' };
    let letters = [
        letter(Rights::READ, 'r'),
        letter(Rights::WRITE, 'w'),
        letter(Rights::EXECUTE, 'x'),
    ];
    letters.iter().collect()
}

/// The rights, then what else there is.
fn describe(attributes: Attributes) -> String {
    let mut text = rights(attributes);
    text += &format!(" {:?}", attributes.memory_type());
    if attributes.pat() == Pat::Ignored {
        text += ", PAT ignored";
    }
    for (bit, name) in [
        (EptEntry::SUPPRESS_VE, "#VE suppressed"),
        (EptEntry::SUB_PAGE_WRITE, "sub-page write"),
        (EptEntry::SUPERVISOR_SHADOW_STACK, "supervisor shadow stack"),
        (EptEntry::PAGING_WRITE, "paging-write"),
        (EptEntry::VERIFY_GUEST_PAGING, "verify guest paging"),
    ] {
        if attributes.options(bit) != 0 {
            text += &format!(", {name}");
        }
    }
    text
}
