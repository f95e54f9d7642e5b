// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm serve`: a disk of ours for another VMM, in a process of its own.
//!
//! It serves one VMM, and ends when that hangs up. Everything is opened before the VMM is heard; from then on the
//! process has no files, and makes only the system calls that a disk needs.

use crate::config::{Confinement, Disk};
use crate::confine::{ConfineError, Confiner, Kind, Nursery};
use crate::machine::stop::Stop;
use crate::machine::{DeviceError, disk};
use crate::vfio_user;
use crate::vfio_user::server::{Events, GivenMemory};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::transport::pci::{PciError, VirtioPci};
use hvkit_virtio_devices::vhost_user::BackEnd;
use hvkit_virtio_devices::vhost_user::back_end::ServeError;
use hvkit_virtio_devices::worker::{Runner, Threads};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a disk is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DeviceError),
    /// The socket.
    #[error("serve: cannot listen at {}: {source}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process cannot be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The VMM.
    #[error("serve: {0}")]
    Vmm(#[from] ServeError),
    /// The VMM, where it speaks vfio-user.
    #[error("serve: {0}")]
    Client(#[from] vfio_user::ServeError),
    /// The disk cannot be a PCI function.
    #[error("serve: {0}")]
    Function(#[from] PciError),
}

/// What is spoken with the VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Queues in shared memory; the VMM has the registers.
    #[default]
    VhostUser,
    /// A whole PCI function.
    VfioUser,
}

/// Serves `asked` to the first VMM that connects to `socket`, until it hangs up.
pub fn serve(
    asked: &Disk,
    socket: &Path,
    protocol: Protocol,
    confinement: Confinement,
) -> Result<(), ServingError> {
    let failed = |source| ServingError::Socket {
        socket: socket.to_path_buf(),
        source,
    };
    let disk = disk(asked).map_err(DeviceError::Disk)?;
    let confiner = Confiner::new(confinement)?;
    let listener = UnixListener::bind(socket).map_err(failed)?;
    log::info!("{} is served at {}", asked.path.display(), socket.display());
    let accepted = listener.accept();
    // Nobody else is served. It may have been removed already.
    let _ = std::fs::remove_file(socket);
    let (stream, _) = accepted.map_err(failed)?;
    let stop = Stop::new().map_err(failed)?;
    let nursery = Nursery::new(&confiner, &stop)?;
    let starter = nursery.starter();
    let threads = Threads::new(move |name, body| starter.start(name, body));
    let report = |why: &dyn std::error::Error| log::error!("{why}");
    match protocol {
        Protocol::VhostUser => {
            let back_end = BackEnd::new(stream, Box::new(disk), Box::new(threads), report);
            let back_end = back_end.map_err(failed)?;
            confiner.give_up_files(&[])?;
            confiner.enter(Kind::Device)?;
            back_end.run()?;
        }
        Protocol::VfioUser => {
            let function = function(Box::new(disk), Box::new(threads), report)?;
            let (function, memory, events) = function;
            let server = vfio_user::Server::new(stream, Box::new(function), memory, events);
            let server = server.map_err(failed)?;
            confiner.give_up_files(&[])?;
            confiner.enter(Kind::Device)?;
            server.run()?;
        }
    }
    Ok(())
}

type Function = (VirtioPci<GivenMemory>, GivenMemory, Arc<Events>);

/// `device` as a PCI function over memory that a client gives. Where it stands, addresses may be translated.
fn function(
    device: Box<dyn Device<GivenMemory>>,
    threads: Box<dyn Runner>,
    report: impl Fn(&dyn std::error::Error) + Copy + Send + Sync + 'static,
) -> Result<Function, PciError> {
    let queues = u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX);
    let vectors = VirtioPci::<GivenMemory>::vectors_for(queues);
    let (memory, events) = (GivenMemory::default(), Arc::new(Events::new(vectors)));
    let function = VirtioPci::new(device, memory.clone(), Arc::clone(&events) as _, threads)?
        .with_access_platform()
        .with_report(move |why| report(why))
        .with_trouble_report(move |why| report(why));
    Ok((function, memory, events))
}
