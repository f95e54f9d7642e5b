// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a socket's name to a function.

use super::connection::{Connection, PATIENCE};
use super::dma::Dma;
use super::function::{FunctionError, UserFunction};
use super::message::{Command, Wanted, command, receive};
use super::version::{Limits, VersionError, offer, theirs};
use super::{Given, UserDevice};
use crate::confine::Starter;
use crate::connect;
use crate::machine::memory::GuestRam;
use hvkit_virtio_devices::patience::end_of;
use hvkit_virtio_devices::vhost_user::channel::Channel;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

/// Why a device cannot be had: one line each.
#[derive(Debug, thiserror::Error)]
pub enum UserDeviceError {
    /// The same one twice.
    #[error("--user-device: {0} is given twice")]
    Twice(String),
    /// Nobody is at the socket.
    #[error("--user-device: cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever is there does not begin as vfio-user does.
    #[error("--user-device: {name}: this is no vfio-user server: {source}")]
    NoServer {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Another version.
    #[error("--user-device: {name}: {source}")]
    Version {
        /// The device.
        name: String,
        /// Why.
        source: VersionError,
    },
    /// The device.
    #[error("--user-device: {name}: {source}")]
    Function {
        /// The device.
        name: String,
        /// Why.
        source: FunctionError,
    },
    /// It does not take the guest's memory.
    #[error("--user-device: {name}: the server does not take the guest's memory: {source}")]
    Memory {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The thread that listens.
    #[error("--user-device: {name}: cannot listen to it: {source}")]
    Thread {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Whether no device is named twice.
///
/// # Errors
///
/// [`UserDeviceError::Twice`].
pub fn check(devices: &[UserDevice]) -> Result<(), UserDeviceError> {
    for (index, device) in devices.iter().enumerate() {
        let same =
            |other: &UserDevice| other.socket == device.socket || other.name() == device.name();
        if devices.iter().take(index).any(same) {
            return Err(UserDeviceError::Twice(device.name()));
        }
    }
    Ok(())
}

/// Connects to who serves `device`; none of `ram` is mapped yet. `starter` starts the thread that listens.
///
/// # Errors
///
/// [`UserDeviceError`].
pub fn open(
    device: &UserDevice,
    ram: &GuestRam,
    starter: &Starter,
) -> Result<UserFunction, UserDeviceError> {
    let name = || device.name();
    let stream = connect::connect(&device.socket, connect::PATIENCE).map_err(|source| {
        UserDeviceError::Connect {
            socket: device.socket.clone(),
            source,
        }
    })?;
    let no_server = |source| UserDeviceError::NoServer {
        name: name(),
        source,
    };
    let channel = Channel::new(stream).map_err(no_server)?;
    let said = greet(&channel).map_err(no_server)?;
    let (_, limits) = theirs(&said).map_err(|source| UserDeviceError::Version {
        name: name(),
        source,
    })?;
    let connection = listen(name(), channel, limits, ram, starter)?;
    let function = UserFunction::new(Arc::clone(&connection)).map_err(|source| {
        // Whoever listens on it would do so until the server goes.
        connection.close();
        UserDeviceError::Function {
            name: name(),
            source,
        }
    })?;
    match device.given {
        Given::Files => log::info!("the guest's memory is shared with {}", name()),
        Given::Nothing => log::info!("{} asks for each transfer", name()),
    }
    Ok(function)
}

fn listen(
    name: String,
    channel: Channel,
    limits: Limits,
    ram: &GuestRam,
    starter: &Starter,
) -> Result<Arc<Connection>, UserDeviceError> {
    let dma = Dma::new(ram);
    let connection = Arc::new(Connection::new(name.clone(), channel, limits, dma));
    let (listener, speaker) = (Arc::clone(&connection), Arc::clone(&connection));
    let started = starter
        .start("vfio-user".to_owned(), Box::new(move || listener.listen()))
        .and_then(|()| {
            starter.start(
                "vfio-user-out".to_owned(),
                Box::new(move || speaker.speak()),
            )
        });
    started.map_err(|source| {
        // One of them may be there.
        connection.close();
        UserDeviceError::Thread { name, source }
    })?;
    Ok(connection)
}

/// Tells our version, and hears theirs.
pub(super) fn greet(channel: &Channel) -> io::Result<Vec<u8>> {
    let end = end_of(PATIENCE);
    let message = command(0, Command::VERSION, &offer(), Wanted::Reply);
    channel.send(&message, &[], end)?;
    let (header, payload, _) = receive(channel, end).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => io::Error::new(ErrorKind::TimedOut, "it does not answer"),
        ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::UnexpectedEof, "it hung up"),
        _ => error,
    })?;
    let answers = header.is_reply() && header.command == Command::VERSION;
    match header.refusal() {
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None if answers && header.id == 0 => Ok(payload),
        None => Err(io::Error::new(
            ErrorKind::InvalidData,
            "it answers something else",
        )),
    }
}
