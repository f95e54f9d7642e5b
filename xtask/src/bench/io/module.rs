// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Modules of ours for the guest's kernel, built as the kernel's own headers say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{setup, step};
use lab_kit::kernel::Kernel;
use lab_kit::paths;

/// Builds the module whose source is in `folder` of the tree, which has its name. It stands in the folder for built things,
/// and the tree stays clean.
pub(super) fn build(kernel: &Kernel, folder: &str) -> Result<PathBuf> {
    let headers = setup::for_modules(kernel.release())?;
    let source = paths::root().join(folder);
    let name = source.file_name().context("a module without a name")?;
    let target = paths::target().join("modules").join(name);
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let entries =
        fs::read_dir(&source).with_context(|| format!("cannot read {}", source.display()))?;
    for entry in entries {
        let entry = entry?;
        copy_if_changed(&entry.path(), &target.join(entry.file_name()))?;
    }
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&headers)
        .arg(format!("M={}", target.display()))
        .arg("modules");
    step::run(&format!("build {}", name.to_string_lossy()), &mut make)?;
    let file = name.to_string_lossy().replace('-', "_");
    Ok(target.join(format!("{file}.ko")))
}

/// A file that is the same keeps its time, by which `make` goes.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let text = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).ok().as_ref() != Some(&text) {
        fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}
