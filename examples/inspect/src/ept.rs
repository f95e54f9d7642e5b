// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect ept`: extended page tables in a memory image.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use hvkit_ept::spec::{Accesses, Controls, EptEntry, EptVpidCap, Eptp, PageRights, Pat, Rights};
use hvkit_ept::{Access, Attributes, Ept, GuestSpace};
use hvkit_page_table::{Format, Root, walk};

use crate::image::Image;
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
    #[arg(long, value_parser = input::number, conflicts_with_all = ["json", "svg"])]
    explain: Option<u64>,
    /// Print at most this many lines of the map.
    #[arg(long, default_value_t = 1000)]
    lines: usize,
    /// The map as JSON or as a picture.
    #[command(flatten)]
    picture: Picture,
}

/// Prints what is mapped, or where one address leads.
pub(crate) fn inspect(options: &Options) -> Result<Found> {
    let image = Image::read(&options.file, options.base)?;
    let eptp = Eptp(options.eptp);
    let capability = EptVpidCap::from_msr(options.capability);
    let ept = match Ept::from_eptp(eptp, capability, options.physical_bits, Controls::empty()) {
        Ok(ept) => ept,
        Err(error) => bail!("EPTP {:#x}: {error}", options.eptp),
    };
    let root = eptp.root();
    match options.explain {
        Some(address) => Ok(explain(&ept, &image, root, address)),
        None => map(&ept, &image, root, options),
    }
}

/// Every entry on the way of one address, and what the accesses do.
fn explain(ept: &Ept, image: &Image, root: u64, address: u64) -> Found {
    let walk = walk(ept, image, Root::Table(root), address);
    println!("guest-physical {address:#x}");
    for step in walk.steps() {
        let meaning = step
            .attributes
            .map_or_else(|| String::from("absent or malformed"), describe);
        let at = step.at.unwrap_or_default();
        println!(
            "  level {} entry at {at:#x}: {:#018x}  {meaning}",
            step.level, step.entry
        );
    }
    match &walk.outcome {
        Ok(found) => println!(
            "  leads to {:#x}, a page of {}",
            found.target,
            size(ept.shape().size(found.level))
        ),
        Err(fault) => println!("  {fault}"),
    }
    let space = GuestSpace::new(ept, image, root);
    let mut result = Found::Nothing;
    for (name, accesses) in [
        ("read", Accesses::READ),
        ("write", Accesses::WRITE),
        ("execute", Accesses::FETCH),
    ] {
        match space.access(
            address,
            Access::translation(accesses, PageRights::PAGING_OFF),
        ) {
            Ok(_) => println!("{name}: granted"),
            Err(fault) => {
                println!("{name}: {fault}");
                result = Found::Something;
            }
        }
    }
    result
}

/// What is mapped, from address 0 up, stretch by stretch.
fn map(ept: &Ept, image: &Image, root: u64, options: &Options) -> Result<Found> {
    let map = Map::read(ept, image, root, options.lines, describe);
    if options.picture.json {
        println!("{}", serde_json::to_string_pretty(&map)?);
    } else if options.picture.svg {
        let title = format!(
            "EPT {:#x}: guest-physical, and where it leads",
            options.eptp
        );
        print!("{}", map.svg(&title));
    } else {
        print!("{}", map.text());
    }
    Ok(if map.is_wrong() {
        Found::Something
    } else {
        Found::Nothing
    })
}

/// The rights as letters, then what else there is.
fn describe(attributes: Attributes) -> String {
    let rights = attributes.rights();
    let letter = |right, letter| if rights.contains(right) { letter } else { '-' };
    let mut text: String = [
        letter(Rights::READ, 'r'),
        letter(Rights::WRITE, 'w'),
        letter(Rights::EXECUTE, 'x'),
    ]
    .iter()
    .collect();
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
