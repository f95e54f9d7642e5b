// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each fuzz target does with its input.
//!
//! A body is a function of bytes that panics where something that must hold does not. libFuzzer calls it
//! (`fuzz/fuzz_targets`), and so does `tests/replay` with the seeds and 4,000 inputs near them: what fuzzing once reached, plain
//! `cargo test` reaches again, on a stable compiler and without cargo-fuzz.
#![forbid(unsafe_code)]

mod arena;
pub mod boot_image;
pub mod ept_walk;
pub mod guest_walk;
pub mod inspect;
pub mod mapper;
pub mod mapper_formats;
pub mod passed_through;
pub mod pci_config;
pub mod pci_msix;
mod peer;
pub mod shadow;
pub mod shadow_processors;
pub mod vfio_user_served;
pub mod vfio_user_told;
pub mod vhost_user_carried;
pub mod vhost_user_served;
pub mod vhost_user_told;
pub mod virtio_device;
pub mod virtio_queue;
pub mod vmcs_bytes;
pub mod vmcs_check;
pub mod vmcs_exit;
pub mod vmm_options;
pub mod vmm_snapshot;
pub mod vtd_dmar;
pub mod vtd_invalidation;
pub mod vtd_irte;
pub mod vtd_programs;
pub mod vtd_registers;
pub mod vtd_tables;

/// Hands the names of all targets to a macro: the one list of them.
#[macro_export]
macro_rules! for_each_target {
    ($use:ident) => {
        $use! {
            boot_image
            ept_walk
            guest_walk
            inspect
            mapper
            mapper_formats
            passed_through
            pci_config
            pci_msix
            shadow
            shadow_processors
            vfio_user_served
            vfio_user_told
            vhost_user_carried
            vhost_user_served
            vhost_user_told
            virtio_device
            virtio_queue
            vmcs_bytes
            vmcs_check
            vmcs_exit
            vmm_options
            vmm_snapshot
            vtd_dmar
            vtd_invalidation
            vtd_irte
            vtd_programs
            vtd_registers
            vtd_tables
        }
    };
}
