// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds a bare-metal payload from a Rust crate, for the host target: no other is installed.
//!
//! The crate depends on `lab/payload-rt`, has a `[workspace]` of its own, and sets
//! `panic = "abort"` and `overflow-checks = true` in its release profile. `lab/payloads/hello` is an example.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::paths;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the crate in `folder` and returns the path of the flat binary that
/// [`bochs`](crate::bochs) runs. Quick if nothing changed.
pub fn build_payload(folder: &Path) -> Result<PathBuf> {
    let script = paths::root().join("lab/payload-rt/link.ld");
    // Fixed addresses and no start files; no red zone, since an exception handler of the payload
    // may run on the same stack.
    let link = format!("link-arg=-Wl,-T{},--build-id=none", script.display());
    let flags = [
        "relocation-model=static",
        "code-model=small",
        "no-redzone=yes",
        // As in the workspace's release profile, which does not reach a package outside it.
        "overflow-checks=yes",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        &link,
    ]
    .map(|flag| format!("-C{flag}"))
    .join("\x1f");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(paths::target().join("hvkit-payloads"))
        // The encoded form wins over what the caller's environment or a configuration file sets.
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "the payload in {} does not build:\n{}",
        folder.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let elf = executable(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{} has no program", folder.display()))?;
    let flat = elf.with_extension("bin");
    // Two tests may build the same payload at once: neither must see half a file.
    let part = tempfile::NamedTempFile::new_in(elf.parent().unwrap_or(Path::new(".")))?;
    let output = Command::new("objcopy")
        .args(["-O", "binary"])
        .args([elf.as_path(), part.path()])
        .output()
        .context("cannot start objcopy (Debian package binutils)")?;
    if !output.status.success() {
        bail!("objcopy: {}", String::from_utf8_lossy(&output.stderr));
    }
    part.persist(&flat)?;
    Ok(flat)
}

/// The program among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
}
