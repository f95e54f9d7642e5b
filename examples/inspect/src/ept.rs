// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect ept`: extended page tables in a memory image.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use hvkit_ept::spec::{Accesses, Controls, EptEntry, EptVpidCap, Eptp, PageRights, Pat, Rights};
use hvkit_ept::{Access, Attributes, Ept, GuestSpace};
use hvkit_page_table::{Fault, Format, ReadEntry, Root, Width, walk};

use crate::{Found, input};

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
    #[arg(long, value_parser = input::number)]
    explain: Option<u64>,
    /// Print at most this many lines of the map.
    #[arg(long, default_value_t = 1000)]
    lines: usize,
}

/// Paths looked at: the 4-KiB pages of 64 GiB.
const MOST_WALKS: u64 = 1 << 24;

/// Physical memory from a file.
struct Image {
    bytes: Vec<u8>,
    base: u64,
}

/// The image does not hold this address.
#[derive(Clone, Copy, Debug)]
struct NotInTheImage;

impl ReadEntry for Image {
    type Error = NotInTheImage;

    fn read(&self, at: u64, width: Width) -> Result<u64, NotInTheImage> {
        let start = at.checked_sub(self.base).ok_or(NotInTheImage)?;
        let start = usize::try_from(start).map_err(|_| NotInTheImage)?;
        let count = match width {
            Width::Four => 4,
            Width::Eight => 8,
        };
        let end = start.checked_add(count).ok_or(NotInTheImage)?;
        let bytes = self.bytes.get(start..end).ok_or(NotInTheImage)?;
        let mut word = [0; 8];
        word[..count].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(word))
    }
}

/// Prints what is mapped, or where one address leads.
pub(crate) fn inspect(options: &Options) -> Result<Found> {
    let image = Image {
        bytes: input::read(&options.file)?,
        base: options.base,
    };
    let eptp = Eptp(options.eptp);
    let capability = EptVpidCap::from_msr(options.capability);
    let ept = match Ept::from_eptp(eptp, capability, options.physical_bits, Controls::empty()) {
        Ok(ept) => ept,
        Err(error) => bail!("EPTP {:#x}: {error}", options.eptp),
    };
    let root = eptp.root();
    match options.explain {
        Some(address) => Ok(explain(&ept, &image, root, address)),
        None => Ok(map(&ept, &image, root, options.lines)),
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
            size(ept, found.level)
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

/// A stretch of guest-physical addresses that leads on linearly with the same rights.
struct Stretch {
    start: u64,
    end: u64,
    target: u64,
    level: u8,
    attributes: Attributes,
}

/// What is mapped, from address 0 up, stretch by stretch.
fn map(ept: &Ept, image: &Image, root: u64, lines: usize) -> Found {
    let (mut printed, mut address, mut held) = (0, 0, None::<Stretch>);
    let mut result = Found::Nothing;
    let end = 1 << ept.shape().address_bits();
    // Each turn reads one path. A table that leads back into itself has a path for every page there could be.
    let mut walks = 0;
    while address < end && printed < lines && walks < MOST_WALKS {
        walks += 1;
        let walk = walk(ept, image, Root::Table(root), address);
        let (level, found) = match walk.outcome {
            Ok(found) => (found.level, Some(found)),
            Err(fault @ (Fault::Malformed { .. } | Fault::Unreadable { .. })) => {
                flush(ept, &mut held, &mut printed);
                println!("{address:#014x}              {fault}");
                printed += 1;
                result = Found::Something;
                (fault.level().unwrap_or(1), None)
            }
            Err(fault) => (fault.level().unwrap_or(ept.shape().levels()), None),
        };
        let size = ept.shape().size(level);
        let next = (address & !(size - 1)).saturating_add(size);
        if let Some(found) = found {
            let joins = held.as_ref().is_some_and(|held| {
                held.end == address
                    && held.target.checked_add(address - held.start) == Some(found.target)
                    && (held.level, held.attributes) == (level, found.attributes)
            });
            match &mut held {
                Some(held) if joins => held.end = next,
                _ => {
                    flush(ept, &mut held, &mut printed);
                    let (target, attributes) = (found.target, found.attributes);
                    held = Some(Stretch {
                        start: address,
                        end: next,
                        target,
                        level,
                        attributes,
                    });
                }
            }
        }
        address = next;
    }
    flush(ept, &mut held, &mut printed);
    if address < end {
        println!("... and on from {address:#x}, after {walks} paths and {printed} lines");
    }
    result
}

fn flush(ept: &Ept, held: &mut Option<Stretch>, printed: &mut usize) {
    if let Some(stretch) = held.take() {
        let Stretch {
            start,
            end,
            target,
            level,
            attributes,
        } = stretch;
        let pages = (end - start) / ept.shape().size(level);
        println!(
            "{start:#014x}-{end:#014x} -> {target:#014x}  {pages} of {}  {}",
            size(ept, level),
            describe(attributes)
        );
        *printed += 1;
    }
}

fn size(ept: &Ept, level: u8) -> &'static str {
    match ept.shape().size(level) {
        0x1000 => "4 KiB",
        0x20_0000 => "2 MiB",
        0x4000_0000 => "1 GiB",
        _ => "a larger size",
    }
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
