// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask oracle`: the same cases on a model that others wrote and on our code, compared.

mod cases;
mod ept;
mod in_bochs;
mod ledger;
mod memory;
mod paging;
mod shadow;
mod summary;
mod tally;
pub mod vm_entry;
pub mod vtd;

pub(crate) use summary::Summary;

use anyhow::Result;
use clap::Subcommand;

/// The oracles.
#[derive(Debug, Subcommand)]
pub enum Oracle {
    /// Guest page tables, modes and accesses: Bochs's own paging against `shadow-paging`'s guest half.
    Paging(in_bochs::BochsRun),
    /// EPT, and guests' tables through it: Bochs's VM exits against `ept`.
    Ept(in_bochs::BochsRun),
    /// Guest programs of table edits, accesses and invalidations: on Bochs's own paging and on shadow tables.
    Shadow(in_bochs::BochsRun),
    /// VM entries: Bochs's VMLAUNCH and VMRESUME against the checker of `vmcs`.
    VmEntry(vm_entry::Options),
    /// DMA, tables, registers and invalidations: QEMU's VT-d unit against `vtd-iommu`'s emulated one.
    Vtd(vtd::Options),
    /// Interrupt remapping: what arrives and what is recorded, QEMU's VT-d unit against `vtd-iommu`'s emulated one.
    VtdInterrupts(vtd::Options),
    /// Scalable mode: PASID tables, first and second stage, QEMU 11's VT-d unit against `vtd-iommu`'s emulated one.
    VtdScalable(vtd::Options),
}

/// Runs one. An error if anything differs that the ledger does not explain.
pub fn oracle(which: &Oracle) -> Result<()> {
    match which {
        Oracle::Paging(options) => in_bochs::run(&paging::Paging, options),
        Oracle::Ept(options) => in_bochs::run(&ept::EptOracle, options),
        Oracle::Shadow(options) => in_bochs::run(&shadow::Shadow, options),
        Oracle::VmEntry(options) => vm_entry::run(options),
        Oracle::Vtd(options) => vtd::run(options),
        Oracle::VtdInterrupts(options) => vtd::run_interrupts(options),
        Oracle::VtdScalable(options) => vtd::run_scalable(options),
    }
}
