// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices that a user names, looked at before anything of the machine is made.

use super::error::PassthroughError;
use super::host::HostFunction;
use crate::config::HostDevice;

/// A device that may be passed through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// What the user calls it.
    pub name: String,
    /// Where it is.
    pub host: HostFunction,
}

/// Looks at each device; none may be named twice.
pub fn select(devices: &[HostDevice]) -> Result<Vec<Selected>, PassthroughError> {
    let mut selected: Vec<Selected> = Vec::with_capacity(devices.len());
    for device in devices {
        let host = HostFunction::find(&device.path)?;
        if selected.iter().any(|other| other.host.path == host.path) {
            return Err(PassthroughError::Twice(host.address));
        }
        let name = device.id.clone().unwrap_or_else(|| host.address.clone());
        if selected.iter().any(|other| other.name == name) {
            return Err(PassthroughError::SameName(name));
        }
        selected.push(Selected { name, host });
    }
    Ok(selected)
}
