// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! This machine as a service: its guest serves a device to another machine (`--vhost-user-backend`).
//!
//! ```text
//!   the other machine                                this machine
//!   its guest's RAM --- files over the socket --->   Pages --- KVM memory slot ---> the guest's window
//!   its call event  --- file over the socket --->    KVM ioeventfd <--- the guest's doorbell
//! ```
//!
//! What the other machine's VMM sends is checked by the device ([`hvkit_virtio_devices::vhost_user::to_guest`]); here is
//! what KVM does for it. A region is mapped into this process too, as KVM wants it, and nothing here reads or writes it.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod program;

use crate::config::{Dma, Transport};
use crate::passthrough::pages::Pages;
use crate::passthrough::{KvmSlots, Slots};
use crate::pci::{Doorbells, KvmDoorbells};
use hvkit_virtio_devices::vhost_user::GuestBackEnd;
use hvkit_virtio_devices::vhost_user::to_guest::{
    GuestBackEndError, Held, Host, Mapping, Options, PeerError,
};
use kvm_ioctls::VmFd;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// A device by which the guest serves another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackEnd {
    /// Where the other machine's VMM connects.
    pub socket: PathBuf,
    /// Bytes of the other machine's memory for which there is room; none: 4 GiB.
    pub memory: Option<u64>,
    /// How the device reaches this guest's memory.
    pub dma: Dma,
}

/// Why it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PeerBackEndError {
    /// The socket.
    #[error("--vhost-user-backend: {0}")]
    Device(#[from] GuestBackEndError),
    /// Not on PCI.
    #[error(
        "--vhost-user-backend: another machine's memory is shown by PCI only, not with --transport mmio"
    )]
    Transport,
    /// KVM.
    #[error("--vhost-user-backend: KVM has no memory slot left for another machine's memory")]
    Slots,
}

/// Listens for the other machine; `slots` are where its memory is shown.
pub fn open(
    asked: &BackEnd,
    transport: Transport,
    slots: Option<&KvmSlots>,
    vm: &Arc<VmFd>,
) -> Result<GuestBackEnd, PeerBackEndError> {
    if transport != Transport::Pci {
        return Err(PeerBackEndError::Transport);
    }
    let host = KvmHost {
        slots: slots.ok_or(PeerBackEndError::Slots)?.clone(),
        doorbells: Arc::new(KvmDoorbells::new(Arc::clone(vm))),
    };
    let mut options = Options::new();
    if let Some(memory) = asked.memory {
        options = options.with_memory(memory);
    }
    let name = asked.socket.display().to_string();
    let report = move |end: Option<&PeerError>| match end {
        None => log::info!("{name}: another machine has connected"),
        Some(why @ (PeerError::Gone | PeerError::Driver)) => {
            log::info!("{name}: the other machine is disconnected: {why}");
        }
        Some(why) => log::warn!("{name}: the other machine is given up: {why}"),
    };
    Ok(GuestBackEnd::new(
        &asked.socket,
        options,
        Arc::new(host),
        report,
    )?)
}

/// What KVM does.
struct KvmHost {
    slots: KvmSlots,
    doorbells: Arc<KvmDoorbells>,
}

impl Host for KvmHost {
    fn map(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<Box<dyn Mapping>> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Box::new(Shown {
            pages: Arc::new(Pages::map(file, offset, length)?),
            slots: self.slots.clone(),
        }))
    }

    fn ring(&self, address: u64, event: &EventFd) -> io::Result<Held> {
        self.doorbells.attach(address, event)?;
        let (doorbells, event) = (Arc::clone(&self.doorbells), event.try_clone()?);
        Ok(Held::new(move || {
            if let Err(error) = doorbells.detach(address, &event) {
                log::error!("the kernel keeps the doorbell at {address:#x}: {error}");
            }
        }))
    }
}

/// Memory of the other machine's.
struct Shown {
    pages: Arc<Pages>,
    slots: KvmSlots,
}

impl Mapping for Shown {
    fn show(&self, address: u64) -> io::Result<Held> {
        let slot = self.slots.map(address, Arc::clone(&self.pages))?;
        Ok(Held::new(move || drop(slot)))
    }
}
