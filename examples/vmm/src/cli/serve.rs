// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm serve`.

use super::key_value::OptionError;
use super::options::{confinement, disk_to_serve};
use super::{log, reported};
use crate::exit_status::ExitStatus;
use crate::served::serve::{Protocol, ServingError, serve, serve_by_device};
use clap::{ArgAction, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// The word by which it is asked for.
pub(super) const WORD: &str = "serve";

/// Serves a disk to another VMM (vhost-user, vfio-user), until that hangs up.
#[derive(Debug, Parser)]
#[command(name = "vmm serve", max_term_width = 100)]
struct Arguments {
    /// Disk image. Keys: as for the disk of a machine, but for iommu, packed, pci_segment and control, which
    /// are the other VMM's
    #[arg(long, value_name = "path=FILE[,readonly=on]")]
    disk: String,

    /// Where to listen, for one VMM: a socket that nobody listens at yet
    #[arg(long, value_name = "PATH", required_unless_present = "device")]
    socket: Option<PathBuf>,

    /// In a guest: serve another machine by this device (--vhost-user-backend), bound to vfio-pci
    #[arg(long, value_name = "FOLDER", conflicts_with = "socket")]
    device: Option<PathBuf>,

    /// What the VMM speaks: vhost-user, and the device's registers are the VMM's; or vfio-user, and all of
    /// it is here, as a PCI function
    #[arg(
        long,
        value_name = "vhost-user|vfio-user",
        default_value = "vhost-user"
    )]
    protocol: Protocol,

    /// Give up, while the VMM is served, all files and system calls that are not needed
    #[arg(long, value_name = "on|off", default_value = "on")]
    confine: String,

    /// Say more on standard error: -v what is done, -vv details
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(transparent)]
    Serving(#[from] ServingError),
}

/// The command, without the program's name: its exit status.
pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return reported(&error),
    };
    log::start(arguments.verbose);
    match run(&arguments) {
        Ok(()) => ExitStatus::PoweredOff.code(),
        Err(error) => {
            crate::stderr::line(format_args!("vmm: {error}"));
            let status = match error {
                Error::Option(_) => ExitStatus::Usage,
                Error::Serving(ServingError::Disk(error)) => (&error).into(),
                Error::Serving(ServingError::Function(_)) => ExitStatus::Host,
                Error::Serving(ServingError::Confine(_)) => ExitStatus::Unconfined,
                Error::Serving(ServingError::Carrying(_)) => ExitStatus::BackEndUnusable,
                Error::Serving(
                    ServingError::Socket { .. } | ServingError::Vmm(_) | ServingError::Client(_),
                ) => ExitStatus::ServedUnusable,
            };
            status.code()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let asked = disk_to_serve(&arguments.disk)?;
    let confinement = confinement(&arguments.confine)?;
    match (&arguments.socket, &arguments.device) {
        (_, Some(device)) => serve_by_device(&asked, device, confinement)?,
        (Some(socket), None) => serve(&asked, socket, arguments.protocol, confinement)?,
        // One of them must be given.
        (None, None) => {}
    }
    Ok(())
}
