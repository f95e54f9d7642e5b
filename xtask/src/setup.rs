// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Installs what the laboratory and the demo need and the machine lacks.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::step;

/// A Debian package, and a file that shows it is there.
struct Need<'a> {
    package: &'a str,
    shows: &'a str,
}

/// Everything the commands use beyond Rust and Debian's base.
const NEEDS: &[Need<'_>] = &[
    Need {
        package: "gcc",
        shows: "/usr/bin/gcc",
    },
    Need {
        package: "g++",
        shows: "/usr/bin/g++",
    },
    Need {
        package: "gcc-12",
        shows: "/usr/bin/x86_64-linux-gnu-gcc-12",
    },
    Need {
        package: "make",
        shows: "/usr/bin/make",
    },
    Need {
        package: "libelf1",
        shows: "/usr/lib/x86_64-linux-gnu/libelf.so.1",
    },
    Need {
        package: "xz-utils",
        shows: "/usr/bin/xz",
    },
    Need {
        package: "zstd",
        shows: "/usr/bin/zstd",
    },
    Need {
        package: "libc6-dev",
        shows: "/usr/lib/x86_64-linux-gnu/libc.a",
    },
    Need {
        package: "binutils",
        shows: "/usr/bin/objcopy",
    },
    Need {
        package: "bochs",
        shows: "/usr/bin/bochs",
    },
    Need {
        package: "bochs-term",
        shows: "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
    },
    Need {
        package: "bochsbios",
        shows: "/usr/share/bochs/BIOS-bochs-latest",
    },
    Need {
        package: "vgabios",
        shows: "/usr/share/bochs/VGABIOS-lgpl-latest",
    },
    Need {
        package: "bsdutils",
        shows: "/usr/bin/script",
    },
    Need {
        package: "qemu-system-x86",
        shows: "/usr/bin/qemu-system-x86_64",
    },
    Need {
        package: "seabios",
        shows: "/usr/share/seabios/bios-256k.bin",
    },
    Need {
        package: "busybox-static",
        shows: "/usr/bin/busybox",
    },
    Need {
        package: "cpio",
        shows: "/usr/bin/cpio",
    },
    Need {
        package: "xz-utils",
        shows: "/usr/bin/xz",
    },
    Need {
        package: "e2fsprogs",
        shows: "/usr/sbin/mke2fs",
    },
    Need {
        package: "fio",
        shows: "/usr/bin/fio",
    },
    Need {
        package: "iperf3",
        shows: "/usr/bin/iperf3",
    },
    Need {
        package: "qemu-utils",
        shows: "/usr/bin/qemu-img",
    },
    Need {
        package: "socat",
        shows: "/usr/bin/socat",
    },
    Need {
        package: "iproute2",
        shows: "/usr/bin/ip",
    },
    Need {
        package: "passt",
        shows: "/usr/bin/passt",
    },
    Need {
        package: "acpica-tools",
        shows: "/usr/bin/iasl",
    },
    Need {
        package: "strace",
        shows: "/usr/bin/strace",
    },
];

/// What `cargo xtask type1 iso` uses besides.
const IMAGE_NEEDS: &[Need<'_>] = &[
    Need {
        package: "grub-common",
        shows: "/usr/bin/grub-mkrescue",
    },
    Need {
        package: "grub-pc-bin",
        shows: "/usr/lib/grub/i386-pc/multiboot.mod",
    },
    Need {
        package: "xorriso",
        shows: "/usr/bin/xorriso",
    },
    Need {
        package: "mtools",
        shows: "/usr/bin/mformat",
    },
];

/// LLVM's tools for coverage, of Debian's newest LLVM: it reads what the compiler's own writes, and `rustup` may not be there to
/// fetch that one's. By the variables in which cargo-llvm-cov looks for them.
pub(crate) const COVERAGE_TOOLS: [(&str, &str); 2] = [
    ("LLVM_COV", "/usr/bin/llvm-cov-19"),
    ("LLVM_PROFDATA", "/usr/bin/llvm-profdata-19"),
];

/// Installs what `cargo xtask coverage` uses besides.
pub(crate) fn for_coverage() -> Result<()> {
    let [(_, shows), _] = COVERAGE_TOOLS;
    setup()?;
    install(&[Need {
        package: "llvm-19",
        shows,
    }])
}

/// Installs what is missing. Safe to repeat: with nothing missing it does nothing.
pub fn setup() -> Result<()> {
    install(NEEDS)
}

/// Installs what a bootable image takes, and is missing.
pub(crate) fn for_images() -> Result<()> {
    install(IMAGE_NEEDS)
}

/// Installs what modules for the kernel `release` are built with: its headers, in the folder that is returned.
pub(crate) fn for_modules(release: &str) -> Result<PathBuf> {
    let package = format!("linux-headers-{release}");
    let folder = format!("/usr/src/{package}");
    let shows = format!("{folder}/Makefile");
    install(&[
        Need {
            package: "make",
            shows: "/usr/bin/make",
        },
        Need {
            package: &package,
            shows: &shows,
        },
    ])?;
    Ok(PathBuf::from(folder))
}

fn install(needs: &[Need<'_>]) -> Result<()> {
    let missing: Vec<&str> = needs
        .iter()
        .filter(|n| !Path::new(n.shows).exists())
        .map(|n| n.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!(
        "apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    // The owner of a process's folder in /proc is its effective user.
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !root || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "missing on this machine: {}; as root on Debian: {line}",
            missing.join(", ")
        );
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments);
        command
    };
    step::run("apt-get update", &mut apt(&["update", "-q"]))?;
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(&missing);
    step::run(
        &format!("install {}", missing.join(" ")),
        &mut apt(&arguments),
    )?;
    if let Some(need) = needs
        .iter()
        .find(|n| missing.contains(&n.package) && !Path::new(n.shows).exists())
    {
        bail!(
            "{} was installed, yet {} is not there",
            need.package,
            need.shows
        );
    }
    Ok(())
}
