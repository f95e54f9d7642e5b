// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines that a user sees.

use super::*;
use crate::config::{Disk, HostDevice, Iommufd, Rings};
use crate::served::{Served, What};

fn line(config: &Config) -> String {
    check(config).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
}

fn device(dma: Dma) -> Config {
    let device = HostDevice {
        path: "/sys/x".into(),
        id: None,
        iommufd: Iommufd::Auto,
        dma,
        place: Place::default(),
    };
    Config {
        devices: vec![device],
        ..Config::new("k".into())
    }
}

fn with(config: Config, vtds: &[Vtd]) -> Config {
    Config {
        vtds: vtds.to_vec(),
        ..config
    }
}

fn disk(segment: u16, unit: Option<&str>, dma: Dma) -> Disk {
    Disk {
        dma,
        place: Place {
            segment,
            unit: unit.map(str::to_owned),
            ..Place::default()
        },
        ..Disk::new("a.img".into())
    }
}

/// A machine of two segments.
fn two(disks: Vec<Disk>) -> Config {
    Config {
        segments: 2,
        disks,
        ..Config::new("k".into())
    }
}

#[test]
fn a_virtio_iommu_is_for_devices_of_our_own_on_segment_0() {
    let paravirtual = |config: Config| Config {
        virtio_iommu: VirtioIommu::Present,
        ..config
    };
    let behind = |segment, unit| paravirtual(two(vec![disk(segment, unit, Dma::Translated)]));
    assert_eq!(line(&behind(0, None)), "fine");
    assert_eq!(
        line(&behind(1, None)),
        "--disk: a.img has iommu=on, and there is no remapping unit: add --vtd pci_segment=1"
    );
    assert_eq!(
        line(&behind(0, Some("b"))),
        "--disk: a.img has iommu=b, which is neither on nor off nor the id of a --vtd"
    );
    assert_eq!(
        line(&paravirtual(device(Dma::Translated))),
        "--device: /sys/x has iommu=on, which needs --vtd caching=on, not --virtio-iommu"
    );
    let served = Config {
        served: vec![Served {
            what: What::Disk,
            socket: "/s".into(),
            queues: None,
            queue_size: None,
            reconnect: None,
            dma: Dma::Translated,
            rings: Rings::Split,
        }],
        ..Config::new("k".into())
    };
    assert_eq!(
        line(&paravirtual(served)),
        "--disk: /s has iommu=on, which needs --vtd caching=on, not --virtio-iommu"
    );
}

fn unit(id: Option<&str>, segment: u16, scope: Scope) -> Vtd {
    Vtd {
        id: id.map(str::to_owned),
        segment,
        scope,
        ..Vtd::default()
    }
}

#[test]
fn devices_behind_nothing_are_named() {
    let config = Config {
        disks: vec![Disk::new("b.img".into()), disk(0, None, Dma::Translated)],
        ..Config::new("k".into())
    };
    assert_eq!(
        line(&config),
        "--disk: a.img has iommu=on, and there is no remapping unit: add --vtd"
    );
    assert_eq!(line(&with(config, &[Vtd::default()])), "fine");
    assert_eq!(line(&device(Dma::Direct)), "fine");
    // One that has another segment does not help.
    let config = two(vec![disk(1, None, Dma::Translated)]);
    assert_eq!(
        line(&with(config.clone(), &[Vtd::default()])),
        "--disk: a.img has iommu=on, and there is no remapping unit: add --vtd pci_segment=1"
    );
    let both = [Vtd::default(), unit(None, 1, Scope::Segment)];
    assert_eq!(line(&with(config, &both)), "fine");
}

#[test]
fn a_device_of_the_host_is_behind_a_unit_in_caching_mode_or_there_is_no_unit() {
    let caching = Vtd {
        caching: true,
        ..Vtd::default()
    };
    let line = |dma, vtd: &Vtd| line(&with(device(dma), std::slice::from_ref(vtd)));
    assert_eq!(line(Dma::Translated, &caching), "fine");
    assert!(line(Dma::Direct, &caching).ends_with("add iommu=on"));
    assert_eq!(
        line(Dma::Translated, &Vtd::default()),
        "--device: /sys/x has iommu=on, which needs --vtd caching=on"
    );
    // No unit has its segment: then it is as without one.
    let elsewhere = Config {
        segments: 2,
        ..with(device(Dma::Direct), &[unit(None, 1, Scope::Segment)])
    };
    assert!(check(&elsewhere).is_ok());
}

#[test]
fn a_device_of_another_process_is_told_by_a_unit_in_caching_mode() {
    let served = |dma, vtds: &[Vtd]| {
        let served = Served {
            what: What::Disk,
            socket: "/s".into(),
            queues: None,
            queue_size: None,
            reconnect: None,
            dma,
            rings: Rings::Split,
        };
        let config = Config {
            served: vec![served],
            ..Config::new("k".into())
        };
        line(&with(config, vtds))
    };
    let caching = Vtd {
        caching: true,
        ..Vtd::default()
    };
    assert_eq!(served(Dma::Translated, &[caching]), "fine");
    assert_eq!(
        served(Dma::Translated, &[Vtd::default()]),
        "--disk: /s has iommu=on, which needs --vtd caching=on"
    );
    assert_eq!(
        served(Dma::Translated, &[]),
        "--disk: /s has iommu=on, and there is no remapping unit: add --vtd"
    );
    // Outside, it is as any virtio device without iommu=on.
    assert_eq!(served(Dma::Direct, &[Vtd::default()]), "fine");
}

#[test]
fn units_that_contradict_each_other_are_told_in_a_line() {
    let said = |vtds: &[Vtd]| line(&with(two(vec![disk(0, Some("b"), Dma::Translated)]), vtds));
    let named = unit(Some("b"), 0, Scope::Named);
    assert_eq!(said(&[Vtd::default(), named.clone()]), "fine");
    assert_eq!(
        said(&[named.clone(), unit(Some("b"), 1, Scope::Segment)]),
        "--vtd: id=b is given twice"
    );
    assert!(
        said(&[unit(Some("b"), 0, Scope::Segment), Vtd::default()])
            .starts_with("--vtd: two units have PCI segment 0: ")
    );
    assert_eq!(
        said(&[unit(None, 0, Scope::Named)]),
        "--vtd: scope=named needs an id for devices to name"
    );
    assert_eq!(
        said(&[named.clone(), unit(Some("c"), 0, Scope::Named)]),
        "--vtd: id=c has scope=named, and no device has iommu=c"
    );
    let quiet = Vtd {
        interrupts: false,
        ..Vtd::default()
    };
    assert!(said(&[named.clone(), quiet]).starts_with("--vtd: intremap=on and intremap=off"));
    assert_eq!(
        said(&[named.clone(), unit(Some("c"), 2, Scope::Segment)]),
        "--vtd: c has pci_segment=2, and --platform num_pci_segments=2"
    );
    assert!(said(&vec![named; 17]).starts_with("--vtd: 17 units are too many"));
}

#[test]
fn places_that_are_not_are_told_in_a_line() {
    let vtds = [Vtd::default(), unit(Some("b"), 1, Scope::Named)];
    let said = |segment, id| {
        let beside = disk(1, Some("b"), Dma::Translated);
        let disks = vec![disk(segment, id, Dma::Translated), beside];
        line(&with(two(disks), &vtds))
    };
    assert_eq!(said(1, Some("b")), "fine");
    assert_eq!(said(0, None), "fine");
    assert_eq!(
        said(0, Some("b")),
        "--disk: a.img is on PCI segment 0, and --vtd id=b on segment 1"
    );
    assert_eq!(
        said(0, Some("yes")),
        "--disk: a.img has iommu=yes, which is neither on nor off nor the id of a --vtd"
    );
    assert_eq!(
        said(2, None),
        "--disk: a.img has pci_segment=2, and --platform num_pci_segments=2"
    );
    let config = Config {
        transport: Transport::Mmio,
        ..two(vec![disk(1, None, Dma::Direct)])
    };
    assert_eq!(
        line(&config),
        "--disk: a.img has pci_segment=1, which --transport mmio has none of"
    );
}

#[test]
fn scopes_lead_to_units() {
    let vtds = [
        unit(Some("b"), 0, Scope::Named),
        unit(None, 1, Scope::Segment),
        unit(None, 0, Scope::Segment),
    ];
    let of = |segment, id: Option<&str>| {
        let unit = id.map(str::to_owned);
        let place = Place {
            segment,
            unit,
            ..Place::default()
        };
        unit_of(&vtds, &place).map(|number| number.0)
    };
    assert_eq!(
        [of(0, None), of(1, None), of(2, None)],
        [Some(2), Some(1), None]
    );
    assert_eq!([of(0, Some("b")), of(0, Some("c"))], [Some(0), None]);
    assert_eq!(unit_of_io_apic(&vtds), Some(UnitNumber(2)));
    // Where no unit has all of segment 0, another has it.
    assert_eq!(unit_of_io_apic(&vtds[..2]), Some(UnitNumber(0)));
    assert_eq!(unit_of_io_apic(&[]), None);
}
