// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packing the published crates, each unpacked and built from its own archive.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab_kit::paths;

use crate::cargo::cargo;
use crate::step;

/// Packs the packages of these names together, so that one may need another that is not on the registry yet.
pub(super) fn pack(names: &[String]) -> Result<()> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    if let Some(home) = home {
        forget_unpacked(&home.join("registry/src"), names)?;
    }
    // For the same reason cargo does not build them again where they were built before.
    let folder = paths::target().join("hvkit-package");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => {}
    }
    let mut pack = cargo(&["package", "--allow-dirty", "--target-dir"]);
    pack.arg(&folder);
    for name in names {
        pack.args(["-p", name]);
    }
    step::run("package", &mut pack)?;
    Ok(())
}

/// Removes what cargo unpacked of these packages when it packed them before. It takes the registry that it packs
/// into, which has a folder without a name before its hash, for one whose versions never change: a package would be
/// built against the others as they were then.
fn forget_unpacked(unpacked: &Path, names: &[String]) -> Result<()> {
    let registries = match fs::read_dir(unpacked) {
        Ok(registries) => registries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", unpacked.display()));
        }
    };
    for registry in registries {
        let registry = registry?;
        if !registry.file_name().to_string_lossy().starts_with('-') {
            continue;
        }
        for package in fs::read_dir(registry.path())? {
            let package = package?;
            let folder = package.file_name().to_string_lossy().into_owned();
            let ours = |name: &String| {
                folder
                    .strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.starts_with('-'))
            };
            if names.iter().any(ours) {
                let path = package.path();
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_and_only_of_nameless_registries_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.join("src")).unwrap();
            path
        };
        let ours = make("-9b06/hvkit-ept-0.1.0");
        let kept = [
            make("-9b06/thiserror-2.0.21"),
            make("-9b06/hvkit-eptx-0.1.0"),
            make("index.crates.io-1949/hvkit-ept-0.1.0"),
        ];
        forget_unpacked(folder.path(), &["hvkit-ept".to_owned()]).unwrap();
        assert!(!ours.exists());
        assert!(kept.iter().all(|path| path.exists()), "{kept:?}");
        forget_unpacked(&folder.path().join("none"), &[]).unwrap();
    }
}
