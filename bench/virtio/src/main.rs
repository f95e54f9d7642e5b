// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench virtio`: our virtqueues, virtio-queue, and a loop of raw pointers with the same
//! checks.
//!
//! All cases of a group run in turn, so that they are comparable with each other and with nothing
//! else. A chain's first buffer is for the device to read, its last for it to write (a chain of one: to read);
//! each is found in host memory. Figures are nanoseconds a chain; ratios are to the group's limit.

mod driver;
#[path = "../../page-table/src/harness.rs"]
mod harness;
mod ours;
mod peer;
mod raw;
mod view;

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use self::driver::{Layout, Shape};
use self::harness::{Aim, Case, Report, Role, compare};

/// Measures virtqueues, side by side.
#[derive(Parser)]
struct Cli {
    /// Rounds that count.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Chains a round.
    #[arg(long, default_value_t = 400_000)]
    chains: usize,
    /// Only cases whose name contains this, and the limit.
    #[arg(long, default_value = "")]
    only: String,
    /// Only chains of this length.
    #[arg(long)]
    length: Option<u16>,
    /// Only batches of this size.
    #[arg(long)]
    batch: Option<usize>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

const LIMIT: &str = "raw pointers, all checks";
const SPLIT: &str = "ours, split";
const BEHIND: &str = "ours, split, behind our IOMMU";
const PACKED: &str = "ours, packed";

fn group(memory: &GuestMemoryMmap, shape: Shape, cli: &Cli) -> Report {
    let rounds = cli.chains / shape.batch;
    let operations = (rounds * shape.batch) as f64;
    let behind = view::behind(memory);
    let behind_unit = view::behind_unit(memory);
    let mut cases = vec![];
    let mut case = |name: &str, role, run: Box<dyn FnMut() -> f64>| {
        if role != Role::Limit && !(name.contains(&cli.only) || format!("={name}") == cli.only) {
            return;
        }
        let name = name.to_owned();
        cases.push(Case { name, role, run });
    };
    let own = || memory.clone();
    case(
        LIMIT,
        Role::Limit,
        raw::case(own(), shape, Layout::Split, rounds),
    );
    case(
        "the same, packed",
        Role::Peer,
        raw::case(own(), shape, Layout::Packed, rounds),
    );
    case(
        "the driver alone, packed",
        Role::Peer,
        raw::driver_alone(own(), shape, Layout::Packed, rounds),
    );
    case(
        SPLIT,
        Role::Ours,
        ours::case(own(), own(), shape, Layout::Split, rounds),
    );
    case(
        PACKED,
        Role::Ours,
        ours::case(own(), own(), shape, Layout::Packed, rounds),
    );
    let indirect = Shape {
        indirect: true,
        ..shape
    };
    case(
        "ours, split, indirect",
        Role::Ours,
        ours::case(own(), own(), indirect, Layout::Split, rounds),
    );
    case(
        "ours, packed, indirect",
        Role::Ours,
        ours::case(own(), own(), indirect, Layout::Packed, rounds),
    );
    case(
        BEHIND,
        Role::Ours,
        ours::case(own(), behind_unit, shape, Layout::Split, rounds),
    );
    case(
        "the same, vm-memory's Iotlb",
        Role::Peer,
        ours::case(own(), behind, shape, Layout::Split, rounds),
    );
    case("virtio-queue", Role::Peer, peer::case(own(), shape, rounds));
    case(
        "virtio-queue, indirect",
        Role::Peer,
        peer::case(own(), indirect, rounds),
    );
    let aims = match (shape.length, shape.batch) {
        (3, 64) if cli.only.is_empty() => vec![
            Aim {
                case: SPLIT,
                limit: None,
                at_most: 10.0,
            },
            Aim {
                case: PACKED,
                limit: None,
                at_most: 10.0,
            },
            Aim {
                case: BEHIND,
                limit: Some(SPLIT),
                at_most: 1.3,
            },
        ],
        _ => vec![],
    };
    let title = format!(
        "chain of {}, batches of {}, two regions, event index",
        shape.length, shape.batch
    );
    compare(&title, "chain", operations, cli.rounds, cases, &aims)
}

fn main() -> std::io::Result<()> {
    let cli = Cli::parse();
    println!(
        "lto, one codegen unit, overflow checks in ours; compare within a group of this run only"
    );
    let ranges = [
        (GuestAddress(0), 64 << 20),
        (GuestAddress(1 << 32), 64 << 20),
    ];
    let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(std::io::Error::other)?;
    let shapes = [(1, 64), (3, 64), (3, 1), (16, 16)];
    let shapes = shapes.map(|(length, batch)| Shape {
        length,
        batch,
        indirect: false,
    });
    let mut reports = Vec::new();
    let start = Instant::now();
    let wanted = |shape: &Shape| {
        cli.length.is_none_or(|length| shape.length == length)
            && cli.batch.is_none_or(|batch| shape.batch == batch)
    };
    let shapes = shapes.into_iter().filter(wanted);
    reports.extend(shapes.map(|shape| group(&memory, shape, &cli)));
    println!("\nall in {:.0} s", start.elapsed().as_secs_f64());
    if let Some(path) = cli.json {
        std::fs::write(path, serde_json::to_vec_pretty(&reports)?)?;
    }
    Ok(())
}
