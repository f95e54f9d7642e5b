// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel with iommufd and VFIO's character devices, which Debian's own kernels leave out.
//!
//! Debian's cloud kernel of the backports suite for this Debian, as it is, but for its VFIO modules: these are built from
//! Debian's own source of the same series with two more options, and iommufd with them. Nothing is installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::kernel::Kernel;
use crate::paths;

/// Its kernels are built with this Debian's compiler.
const SUITE: &str = "bookworm-backports";
/// The series whose sources `KBUILD` was written for.
const SERIES: &str = "6.12";
/// The flavour that the laboratory's hosts have.
const FLAVOUR: &str = "-cloud-amd64";
/// To be raised with every change of what is made here.
const REVISION: u32 = 1;
/// What is taken of the kernel's source.
const SOURCES: [&str; 4] = [
    "drivers/vfio",
    "drivers/iommu/*.h",
    "drivers/iommu/iommufd",
    "lib/interval_tree.c",
];
/// The folders to build.
const KBUILD: &str = "obj-m += drivers/iommu/iommufd/ drivers/vfio/\n";
/// A part of the kernel's library that is only there for iommufd. The rest of its file is in the kernel already.
const LIBRARY: &str = "
iommufd-y += ../../../lib/interval_tree.o
CFLAGS_../../../lib/interval_tree.o := -DCONFIG_INTERVAL_TREE_SPAN_ITER=1 -D__DISABLE_EXPORTS
";
/// The options, for make and for the compiler; and what else lies in the folders, or needs tools of its own.
const OPTIONS: [&str; 7] = [
    "CONFIG_IOMMUFD=m",
    "CONFIG_VFIO_DEVICE_CDEV=y",
    "KCFLAGS=-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1",
    "CONFIG_VFIO_MDEV=",
    "CONFIG_VFIO_PLATFORM_BASE=",
    "CONFIG_DEBUG_INFO_BTF=",
    "CONFIG_DEBUG_INFO_BTF_MODULES=",
];

/// That kernel: from the cache, or fetched (200 MB) and built, which takes a minute.
///
/// For a [`Host`](crate::host::Host) whose devices are passed through by iommufd.
pub fn with_iommufd() -> Result<Kernel> {
    let home = paths::cache().join("kernel");
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let lock = File::create(home.join("iommufd.lock"))?;
    lock.lock().context("cannot lock the kernel cache")?;
    let folder = home.join(format!("iommufd-{REVISION}"));
    if !folder.exists() {
        let made = tempfile::Builder::new().prefix("fetch").tempdir_in(&home)?;
        make(made.path())?;
        fs::rename(made.keep(), &folder)?;
    }
    Kernel::open(&folder)
}

/// Leaves kernel and modules in `folder`.
fn make(folder: &Path) -> Result<()> {
    // The kernel's makefiles change their folder.
    let folder = &fs::canonicalize(folder)?;
    let (work, root) = (folder.join("work"), folder.join("work/root"));
    apt::prepare(SUITE, &work)?;
    let start = format!("linux-headers-{SERIES}.");
    let version = newest(&start, &apt::names(&start, &work)?)
        .with_context(|| format!("{SUITE} has no kernel {SERIES}"))?;
    let release = format!("{version}{FLAVOUR}");
    let packages = [
        format!("linux-image-{release}"),
        format!("linux-headers-{release}"),
        format!("linux-headers-{version}-common"),
        format!("linux-kbuild-{version}"),
        format!("linux-source-{SERIES}"),
    ];
    apt::unpack_alone(&packages, &work, &root)?;
    let built = build(&work, &root, &version)?;
    fs::rename(root.join("boot"), folder.join("boot"))?;
    fs::rename(root.join("lib"), folder.join("lib"))?;
    let modules = folder.join("lib/modules").join(&release);
    fs::remove_dir_all(modules.join("kernel/drivers/vfio"))?;
    let ours = modules.join("updates");
    fs::create_dir(&ours)?;
    for module in built {
        let name = module.file_name().context("a module without a name")?;
        apt::run(
            Command::new("strip")
                .args(["--strip-debug", "-o"])
                .args([&ours.join(name), &module]),
        )?;
    }
    fs::remove_dir_all(work)?;
    Ok(())
}

/// Builds the modules for kernel `version`, whose packages are in `root`.
fn build(work: &Path, root: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let sources = root.join("usr/src");
    let headers = sources.join(format!("linux-headers-{version}{FLAVOUR}"));
    let shared = sources.join(format!("linux-headers-{version}-common/Makefile"));
    // As the package has it, but for the folder.
    let makefile = format!("include {}\n", shared.display());
    fs::write(headers.join("Makefile"), makefile)?;
    let tree = work.join("build");
    fs::create_dir(&tree)?;
    let top = format!("linux-source-{SERIES}");
    apt::run(
        Command::new("tar")
            .arg("-xf")
            .arg(sources.join(format!("{top}.tar.xz")))
            .arg("-C")
            .arg(&tree)
            .args(["--strip-components=1", "--wildcards"])
            .args(SOURCES.map(|name| format!("{top}/{name}"))),
    )?;
    fs::write(tree.join("Kbuild"), KBUILD)?;
    let makefile = tree.join("drivers/iommu/iommufd/Makefile");
    let text = fs::read_to_string(&makefile)?;
    fs::write(&makefile, format!("{text}{LIBRARY}"))?;
    apt::run(
        Command::new("make")
            .arg("-C")
            .arg(&headers)
            .arg(format!("M={}", tree.display()))
            .args(OPTIONS)
            .args(["-j2", "-s", "modules"]),
    )?;
    let names = [
        "iommu/iommufd/iommufd",
        "vfio/vfio",
        "vfio/vfio_iommu_type1",
        "vfio/pci/vfio-pci-core",
        "vfio/pci/vfio-pci",
    ];
    Ok(names
        .map(|name| tree.join(format!("drivers/{name}.ko")))
        .to_vec())
}

/// The newest version of `names`, each of which is `start`, the rest of a version, and a flavour.
fn newest(start: &str, names: &[String]) -> Option<String> {
    let versions = names.iter().filter_map(|name| {
        let rest = name.strip_prefix(start)?.strip_suffix(FLAVOUR)?;
        // 95+deb12, 90+deb12.1
        let numbers: Vec<u32> = rest
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect();
        Some((numbers, rest))
    });
    let (_, rest) = versions.max()?;
    Some(format!("{SERIES}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let names = |all: &[&str]| -> Vec<String> {
            let all = all.iter();
            all.map(|rest| format!("linux-headers-6.12.{rest}"))
                .collect()
        };
        let newest = |all: &[&str]| newest("linux-headers-6.12.", &names(all));
        let found = newest(&[
            "9+deb12-cloud-amd64",
            "90+deb12-cloud-amd64",
            "90+deb12.1-cloud-amd64",
            "95+deb12-common",
            "95+deb12-amd64",
        ]);
        assert_eq!(found.as_deref(), Some("6.12.90+deb12.1"));
        assert_eq!(newest(&["95+deb12-rt-amd64"]), None);
    }
}
