// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines as users type them, and what is refused.

mod help;

use super::options::disk_to_serve;
use super::*;
use crate::config::{
    Access, Balloon, Disk, Dma, Format, HostDevice, Iommufd, Net, NetWire, Place, Pmem, Rings, Rng,
    Scope, Serial, VirtioConsole, Vsock, Vtd, Writes,
};
use clap::CommandFactory;
use hvkit_virtio_devices::limit::{Limits, Rate};
use std::time::Duration;

fn parse(line: &str) -> Config {
    let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
    let kernel = arguments.kernel.clone().unwrap();
    config(arguments, kernel).unwrap()
}

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn cloud_hypervisors_spelling_is_understood() {
    let config = parse(
        "vmm --kernel vmlinux --initramfs i.cpio --cmdline quiet --cpus boot=4 \
         --memory size=2G --disk path=a.img path=b.img,readonly=on --disk c.img \
         --device path=/sys/bus/pci/devices/0000:01:00.0,id=nvme /dev2 --serial file=log \
         --console off -v",
    );
    assert_eq!(config.kernel, PathBuf::from("vmlinux"));
    assert_eq!(config.initramfs, Some("i.cpio".into()));
    assert_eq!((config.cpus, config.memory), (4, 2 << 30));
    let disks = [
        ("a.img", Access::ReadWrite),
        ("b.img", Access::ReadOnly),
        ("c.img", Access::ReadWrite),
    ];
    let disks = disks.map(|(path, access)| Disk {
        access,
        ..Disk::new(path.into())
    });
    assert_eq!(config.disks, disks);
    let devices = [
        ("/sys/bus/pci/devices/0000:01:00.0", Some("nvme")),
        ("/dev2", None),
    ];
    let devices = devices.map(|(path, id)| HostDevice {
        path: path.into(),
        id: id.map(str::to_owned),
        iommufd: Iommufd::Auto,
        dma: Dma::Direct,
        place: Place::default(),
    });
    assert_eq!(config.devices, devices);
    assert_eq!(config.serial, Serial::File("log".into()));
}

#[test]
fn without_options_it_is_the_library_s_default() {
    let config = parse("vmm --kernel k");
    assert_eq!(config, Config::new("k".into()));
}

#[test]
fn a_device_has_a_path() {
    for wrong in ["id=a", "path=", "/a,id=", "/a,iommu=", "/a,iommufd=yes"] {
        assert!(device(wrong).is_err(), "{wrong}");
    }
    for (text, iommufd) in [
        ("/a", Iommufd::Auto),
        ("/a,iommufd=auto", Iommufd::Auto),
        ("/a,iommufd=on", Iommufd::On),
        ("/a,iommufd=off", Iommufd::Off),
    ] {
        assert_eq!(device(text).unwrap().iommufd, iommufd, "{text}");
    }
}

#[test]
fn serial_modes_are_listed_when_one_is_wrong() {
    let serial = |text| terminal(Some(text), &VirtioConsole::Off);
    assert_eq!(serial("null"), Ok(Serial::Null));
    assert!(
        serial("pty")
            .unwrap_err()
            .to_string()
            .contains("tty, null, off")
    );
    assert!(serial("file=").is_err());
}

#[test]
fn a_console_has_one_end() {
    let serial = |text| terminal(Some(text), &VirtioConsole::Off);
    for (mode, is) in [
        ("mode=tty", Serial::Tty),
        ("mode=null", Serial::Null),
        ("mode=off", Serial::Off),
    ] {
        assert_eq!(serial(mode), Ok(is));
    }
    let text = |error: OptionError| error.to_string();
    assert_eq!(
        text(serial("mode=pty").unwrap_err()),
        "--serial: mode=pty is not tty, null, off or file=PATH"
    );
    for both in ["tty,file=x", "file=x,mode=tty", "garbage,file=x"] {
        let why = "one of 'mode' and 'file' must be given, not both";
        assert_eq!(text(serial(both).unwrap_err()), format!("--serial: {why}"));
        assert_eq!(
            text(console(both).unwrap_err()),
            format!("--console: {why}")
        );
    }
}

#[test]
fn limits_that_limit_nothing_or_everything_are_refused() {
    for (keys, why) in [
        ("bw_size=0", "bw_size=0 is not a number of bytes above 0"),
        ("bw_size=0K", "bw_size=0K is not a number of bytes above 0"),
        (
            "ops_size=0",
            "ops_size=0 is not a number of requests above 0",
        ),
        (
            "bw_refill_time=10",
            "bw_refill_time does nothing without bw_size",
        ),
        (
            "bw_size=1,ops_refill_time=10",
            "ops_refill_time does nothing without ops_size",
        ),
    ] {
        let error = disk(&format!("d,{keys}")).unwrap_err().to_string();
        assert_eq!(error, format!("--disk: {why}"));
        let error = net(&format!("tap=t,{keys}")).unwrap_err().to_string();
        assert_eq!(error, format!("--net: {why}"));
    }
}

#[test]
fn the_built_in_guest_has_no_options() {
    for option in [
        "--cpus 2",
        "--memory 1G",
        "--serial null",
        "--console pty",
        "--cmdline quiet",
        "--platform 2",
        "--transport mmio",
        "--confine off",
        "--report r",
        "--rng",
    ] {
        let line = format!("vmm --guest hello {option}");
        let error = Arguments::try_parse_from(line.split(' ')).unwrap_err();
        let name = option.split(' ').next().unwrap();
        let error = error.to_string();
        assert!(
            error.contains("cannot be used with") && error.contains(name),
            "{error}"
        );
    }
    Arguments::try_parse_from(["vmm", "--guest", "hello", "--kvm", "/k", "-v"]).unwrap();
}

#[test]
fn a_machine_that_was_saved_goes_on_in_its_files() {
    let of = |line: &str| super::parse(line.split(' ').map(OsString::from)).unwrap();
    assert_eq!(of("vmm --kernel k").output, Output::Anew);
    assert_eq!(of("vmm --restore f").output, Output::GoesOn);
}

#[test]
fn one_console_has_the_terminal() {
    let config = parse("vmm --kernel k --console tty");
    assert_eq!(
        (config.console, config.serial),
        (VirtioConsole::Tty, Serial::Null)
    );
    let config = parse("vmm --kernel k --console tty --serial file=log");
    assert_eq!(config.serial, Serial::File("log".into()));
    assert_eq!(parse("vmm --kernel k --console pty").serial, Serial::Tty);
    assert_eq!(
        terminal(Some("tty"), &VirtioConsole::Tty),
        Err(OptionError::Terminal)
    );
}

#[test]
fn virtio_devices_are_on_pci_unless_said_otherwise() {
    assert_eq!(parse("vmm --kernel k").transport, Transport::Pci);
    let config = parse("vmm --kernel k --transport mmio");
    assert_eq!(config.transport, Transport::Mmio);
}

#[test]
fn devices_have_their_keys() {
    let config = parse("vmm --kernel k --net tap=t0,mac=52:54:00:aB:00:01 --rng --console pty");
    assert_eq!(
        config.nets,
        [Net {
            wire: NetWire::Tap {
                name: "t0".into(),
                pairs: 1
            },
            mac: Some([0x52, 0x54, 0, 0xab, 0, 1]),
            mtu: None,
            speed: None,
            limits: Limits::default(),
            dma: Dma::Direct,
            place: Place::default(),
        }]
    );
    let random = |source: &str, dma| Rng {
        source: source.into(),
        dma,
        place: Place::default(),
    };
    assert_eq!(config.rng, Some(random("/dev/urandom", Dma::Direct)));
    assert_eq!(config.console, VirtioConsole::Pty);

    let config = parse("vmm --kernel k --rng src=/dev/hwrng --console file=log");
    assert_eq!(config.rng, Some(random("/dev/hwrng", Dma::Direct)));
    assert_eq!(config.console, VirtioConsole::File("log".into()));
    assert_eq!(config.vtds, []);
    assert_eq!(config.segments, 1);

    assert_eq!(config.virtio_iommu, VirtioIommu::Absent);
    let config = parse("vmm --kernel k --virtio-iommu --disk d,iommu=on");
    assert_eq!(config.virtio_iommu, VirtioIommu::Present);
    assert_eq!(config.disks[0].dma, Dma::Translated);

    let config = parse(
        "vmm --kernel k --vtd --disk d,iommu=on e --rng iommu=on --console null,iommu=on \
         --net tap=t,iommu=on --device /dev,iommu=on",
    );
    assert_eq!(config.vtds, [Vtd::default()]);
    let dma = [
        config.disks[0].dma,
        config.disks[1].dma,
        config.console_dma,
        config.nets[0].dma,
        config.devices[0].dma,
    ];
    let translated = Dma::Translated;
    assert_eq!(
        dma,
        [translated, Dma::Direct, translated, translated, translated]
    );
    assert_eq!(config.rng, Some(random("/dev/urandom", translated)));
    assert_eq!(config.console, VirtioConsole::Null);

    let limited = disk(
        "d,serial=s1,num_queues=4,queue_size=128,image_type=qcow2,backing=on,direct=on,bw_size=1M,bw_refill_time=100,ops_size=50,control=c",
    );
    let expected = Disk {
        serial: "s1".into(),
        queues: Some(4),
        queue_size: Some(128),
        format: Format::Qcow2,
        backing: true,
        direct: true,
        control: Some("c".into()),
        limits: Limits {
            bytes: Some(Rate {
                tokens: 1 << 20,
                per: Duration::from_millis(100),
                burst: 1 << 20,
            }),
            requests: Some(Rate::per_second(50)),
        },
        ..Disk::new("d".into())
    };
    assert_eq!(limited, Ok(expected));
}

/// The kernel that a saved machine has has read its command line.
#[test]
fn a_machine_that_goes_on_takes_no_command_line() {
    let refused = |line: &str| {
        let parsed = Arguments::try_parse_from(line.split(' '));
        parsed.unwrap_err().to_string()
    };
    let error = refused("vmm --restore f --cmdline quiet");
    assert!(
        error.contains("'--restore <FOLDER>' cannot be used with"),
        "{error}"
    );
    assert!(error.contains("--cmdline <TEXT>"), "{error}");
    assert!(Arguments::try_parse_from(["vmm", "--restore", "f"]).is_ok());
}

#[test]
fn a_refill_may_take_longer_than_a_second_for_each() {
    let slow = disk("d,ops_size=1,ops_refill_time=60000,bw_size=512,bw_refill_time=3600000");
    let rate = |tokens, seconds| Rate {
        tokens,
        per: Duration::from_secs(seconds),
        burst: tokens,
    };
    let expected = Limits {
        bytes: Some(rate(512, 3600)),
        requests: Some(rate(1, 60)),
    };
    assert_eq!(slow.unwrap().limits, expected);
}

#[test]
fn devices_say_on_which_segment_and_behind_which_unit_they_are() {
    let config = parse(
        "vmm --kernel k --platform num_pci_segments=3 --vtd --vtd id=b,pci_segment=2,scope=named \
         --disk d,iommu=b,pci_segment=2 e,iommu=on --rng pci_segment=1 --console null,pci_segment=1,iommu=off \
         --net tap=t,pci_segment=2 --device /dev,iommu=c --pmem p,pci_segment=1",
    );
    assert_eq!(config.segments, 3);
    let named = Vtd {
        id: Some("b".into()),
        segment: 2,
        scope: Scope::Named,
        ..Vtd::default()
    };
    assert_eq!(config.vtds, [Vtd::default(), named]);
    let place = |segment, unit: Option<&str>| Place {
        segment,
        unit: unit.map(str::to_owned),
        ..Place::default()
    };
    assert_eq!(config.disks[0].place, place(2, Some("b")));
    assert_eq!(config.disks[0].dma, Dma::Translated);
    assert_eq!(config.disks[1].place, place(0, None));
    assert_eq!(config.rng.unwrap().place, place(1, None));
    assert_eq!(config.console_place, place(1, None));
    assert_eq!(config.console_dma, Dma::Direct);
    assert_eq!(config.nets[0].place, place(2, None));
    assert_eq!(config.devices[0].place, place(0, Some("c")));
    assert_eq!(config.pmems[0].place, place(1, None));
    let text = |error: OptionError| error.to_string();
    assert_eq!(
        text(disk("d,iommu=").unwrap_err()),
        "--disk: iommu= is not on, off or the id of a --vtd"
    );
    assert_eq!(
        text(disk("d,pci_segment=-1").unwrap_err()),
        "--disk: pci_segment=-1 is not the number of a PCI segment"
    );
    for wrong in ["num_pci_segments=0", "17", "segments=2", ""] {
        assert!(platform(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn memory_devices_and_sockets_have_their_keys() {
    let config = parse(
        "vmm --kernel k --balloon size=64M,deflate_on_oom=on,free_page_hints=on,socket=b --vsock cid=3,socket=v \
         --pmem a path=b,discard_writes=on --watchdog",
    );
    let balloon = Balloon {
        size: 64 << 20,
        deflate_on_oom: true,
        free_page_reporting: false,
        free_page_hints: true,
        socket: Some("b".into()),
        ..Balloon::default()
    };
    assert_eq!(config.balloon, Some(balloon));
    let vsock_of = Vsock {
        cid: 3,
        socket: "v".into(),
        dma: Dma::Direct,
        place: Place::default(),
    };
    assert_eq!(config.vsock, Some(vsock_of));
    let pmems = [("a", Writes::Kept), ("b", Writes::Discarded)];
    let pmems = pmems.map(|(path, writes)| Pmem {
        path: path.into(),
        writes,
        place: Place::default(),
    });
    assert_eq!(config.pmems, pmems);
    assert_eq!(config.watchdog, Watchdog::Present);
    assert_eq!(
        parse("vmm --kernel k --balloon").balloon,
        Some(Balloon::default())
    );
    for wrong in ["size=16T", "deflate_on_oom=yes", "socket=", "target=1M"] {
        assert!(balloon_of(wrong).is_err(), "{wrong}");
    }
    for wrong in ["3", "cid=-3,socket=a", "socket=a", "cid=3,socket="] {
        assert!(vsock(wrong).is_err(), "{wrong}");
    }
    assert!(pmem("discard_writes=on").is_err());
}

fn balloon_of(text: &str) -> Result<Balloon, OptionError> {
    balloon(text)
}

#[test]
fn devices_that_make_no_sense_are_told_by_key() {
    let text = |error: OptionError| error.to_string();
    let raw = text(disk("d,image_type=vmdk").unwrap_err());
    assert_eq!(raw, "--disk: image_type=vmdk is not raw or qcow2");
    let time = text(disk("d,bw_size=1,bw_refill_time=0").unwrap_err());
    assert!(time.contains("bw_refill_time=0 is not a number of milliseconds above 0"));
    for wrong in [
        "1:2:3:4:5:6",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "+1:00:00:00:00:00",
    ] {
        let error = text(net(&format!("tap=t,mac={wrong}")).unwrap_err());
        assert!(error.contains("such as 52:54:00"), "{error}");
    }
    let one = "--net: one of 'tap' and 'socket' must be given, not ";
    assert_eq!(
        text(net("mac=52:54:00:12:34:56").unwrap_err()),
        format!("{one}neither")
    );
    assert_eq!(
        text(net("tap=t,socket=s").unwrap_err()),
        format!("{one}both")
    );
    let socket = net("socket=/run/passt").unwrap();
    assert_eq!(socket.wire, NetWire::Socket("/run/passt".into()));
    let fast = net("tap=t,speed=2147483647").unwrap();
    assert_eq!(fast.speed, Some(0x7fff_ffff));
    let speed = text(net("tap=t,speed=2147483648").unwrap_err());
    assert!(
        speed.contains("speed=2147483648 is not a number of Mbit/s up to"),
        "{speed}"
    );
    // Of a disk that is served, the other VMM has control, and says where it is.
    for (key, value) in [
        ("control", "c"),
        ("iommu", "on"),
        ("pci_segment", "3"),
        ("packed", "off"),
    ] {
        let error = text(disk_to_serve(&format!("d,{key}={value}")).unwrap_err());
        let unknown = format!("--disk: unknown key '{key}'");
        assert!(error.contains(&unknown), "{error}");
    }
    let others = "d,readonly=on,serial=s,num_queues=2,queue_size=64,image_type=qcow2,backing=on,direct=on,\
        bw_size=1M,bw_refill_time=10,ops_size=50,ops_refill_time=20";
    assert_eq!(disk_to_serve(others), disk(others));
    let several = net("tap=t,num_queue_pairs=64").unwrap();
    let expected = NetWire::Tap {
        name: "t".into(),
        pairs: 64,
    };
    assert_eq!(several.wire, expected);
    for wrong in [
        "tap=t,num_queue_pairs=0",
        "tap=t,num_queue_pairs=65",
        "socket=s,num_queue_pairs=2",
    ] {
        let error = text(net(wrong).unwrap_err());
        assert!(error.contains("is not a number of pairs from 1 to 64; a socket has 1"));
    }
    assert!(text(console("vga").unwrap_err()).contains("off, null, tty, pty"));
}

#[test]
fn queues_are_split_where_it_is_asked() {
    let config = parse(
        "vmm --kernel k --disk a,packed=off b --net tap=t,packed=off --net user,packed=off --rng src=/dev/zero,packed=off \
         --console pty,packed=off --balloon packed=off --vsock cid=3,socket=v,packed=off --pmem p,packed=off q,packed=on",
    );
    let places = [
        &config.disks[0].place,
        &config.nets[0].place,
        &config.nets[1].place,
        &config.rng.unwrap().place,
        &config.console_place,
        &config.vsock.unwrap().place,
        &config.pmems[0].place,
    ];
    assert!(places.iter().all(|place| place.rings == Rings::Split));
    assert_eq!(config.balloon.unwrap().rings, Rings::Split);
    for place in [&config.disks[1].place, &config.pmems[1].place] {
        assert_eq!(place.rings, Rings::Both);
    }
    let error = disk("d,packed=ring").unwrap_err().to_string();
    assert_eq!(error, "--disk: packed=ring is not on or off");
}
