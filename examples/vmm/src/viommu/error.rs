// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user can ask of the unit and not get: one line each.

use crate::config::{Config, Dma};
use hvkit_vtd_iommu::dmar::BuildError;
use hvkit_vtd_iommu::emulation::OptionsError;

/// A remapping unit, or a device behind it, that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// There is nothing that the device could be behind.
    #[error("--{option}: {name} has iommu=on, and there is no remapping unit: add --vtd")]
    NoUnit {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
    },
    /// The device is not behind the unit, whose table says that it is.
    #[error(
        "--device: {0}: with --vtd, the guest believes that the device's DMA is translated: add iommu=on"
    )]
    Outside(String),
    /// Nothing tells the unit what the guest maps for a device of the host.
    #[error("--device: {0} has iommu=on, which needs --vtd caching=on")]
    NotCaching(String),
    /// No first stage.
    #[error("--vtd: aw={bits} is too narrow for scalable=on, whose tables have 48 bits or more")]
    NarrowScalable {
        /// Bits of address.
        bits: u8,
    },
    /// No such unit.
    #[error("--vtd: {0}")]
    Options(#[from] OptionsError),
    /// No such table.
    #[error("--vtd: {0}")]
    Table(#[from] BuildError),
}

/// Whether the devices of `config` and its remapping unit go together.
///
/// # Errors
///
/// The first device that does not.
pub fn check(config: &Config) -> Result<(), UnitError> {
    let disks = config.disks.iter();
    let nets = config.nets.iter();
    let rng = config.rng.iter();
    let devices = config.devices.iter();
    let vsock = config.vsock.iter();
    let back_ends = config.back_ends.iter();
    let name = |device: &crate::config::HostDevice| {
        let path = || device.path.display().to_string();
        device.id.clone().unwrap_or_else(path)
    };
    let Some(vtd) = &config.vtd else {
        let behind = disks
            .map(|disk| ("disk", disk.dma, disk.path.display().to_string()))
            .chain(nets.map(|net| ("net", net.dma, net.wire.to_string())))
            .chain(vsock.map(|vsock| ("vsock", vsock.dma, vsock.socket.display().to_string())))
            .chain(back_ends.map(|asked| {
                let socket = asked.socket.display().to_string();
                ("vhost-user-backend", asked.dma, socket)
            }))
            .chain(rng.map(|rng| ("rng", rng.dma, rng.source.display().to_string())))
            .chain([("console", config.console_dma, "the console".to_owned())])
            .chain(devices.map(|device| ("device", device.dma, name(device))))
            .find(|(_, dma, _)| *dma == Dma::Translated);
        return match behind {
            Some((option, _, name)) => Err(UnitError::NoUnit { option, name }),
            None => Ok(()),
        };
    };
    match config.devices.first() {
        Some(device) if !vtd.caching => Err(UnitError::NotCaching(name(device))),
        _ => match devices.into_iter().find(|device| device.dma == Dma::Direct) {
            Some(device) => Err(UnitError::Outside(name(device))),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Disk, HostDevice, Vtd};

    fn device(dma: Dma) -> Config {
        let device = HostDevice {
            path: "/sys/x".into(),
            id: None,
            dma,
        };
        Config {
            devices: vec![device],
            ..Config::new("k".into())
        }
    }

    fn with(config: Config, vtd: Vtd) -> Config {
        Config {
            vtd: Some(vtd),
            ..config
        }
    }

    fn line(config: &Config) -> String {
        check(config).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn devices_behind_nothing_are_named() {
        let disk = Disk {
            dma: Dma::Translated,
            ..Disk::new("a.img".into())
        };
        let config = Config {
            disks: vec![Disk::new("b.img".into()), disk],
            ..Config::new("k".into())
        };
        assert_eq!(
            line(&config),
            "--disk: a.img has iommu=on, and there is no remapping unit: add --vtd"
        );
        assert_eq!(line(&with(config, Vtd::default())), "fine");
        assert_eq!(line(&device(Dma::Direct)), "fine");
    }

    #[test]
    fn a_device_of_the_host_is_behind_a_unit_in_caching_mode_or_there_is_no_unit() {
        let caching = Vtd {
            caching: true,
            ..Vtd::default()
        };
        let line = |dma, vtd| line(&with(device(dma), vtd));
        assert_eq!(line(Dma::Translated, caching), "fine");
        assert!(line(Dma::Direct, caching).ends_with("add iommu=on"));
        assert_eq!(
            line(Dma::Translated, Vtd::default()),
            "--device: /sys/x has iommu=on, which needs --vtd caching=on"
        );
    }
}
