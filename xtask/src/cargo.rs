// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calling cargo, and asking it what the workspace holds.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use lab_kit::paths;

use crate::step;

/// A cargo command at the root of the checkout.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root()).args(arguments);
    // `cargo run` sets these for us; they would make the crates below think they are us.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Installs a subcommand of cargo's from the registry, where it is missing.
pub fn install(subcommand: &str, version: &str) -> Result<()> {
    let there = cargo(&[subcommand, "--version"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let package = format!("cargo-{subcommand}@{version}");
    step::run(
        &format!("install cargo-{subcommand}"),
        &mut cargo(&["install", "--locked", &package]),
    )?;
    Ok(())
}

/// A library crate's folder, by that or by the crate's name: `ept` for `ept` and for `hvkit-ept`.
pub fn folder_of(name: &str) -> &str {
    name.strip_prefix("hvkit-").unwrap_or(name)
}

/// A member of the workspace.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name, such as `hvkit-page-table`.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Whether it may be published: the library crates.
    pub published: bool,
    /// The workspace members it needs at build time.
    pub needs: Vec<String>,
    /// Its features, those apart that are on unless said otherwise.
    pub features: Vec<String>,
    /// The oldest compiler that it says it takes, such as `1.95`.
    pub rust_version: Option<String>,
}

/// The members of the workspace, those that others need first.
pub fn packages() -> Result<Vec<Package>> {
    let out = cargo(&["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cannot start cargo")?;
    if !out.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    let all: Value = serde_json::from_slice(&out.stdout).context("cargo metadata is not JSON")?;
    let mut left: Vec<Package> = all["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
        .iter()
        .map(package)
        .collect::<Result<_>>()?;
    left.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sorted: Vec<Package> = Vec::new();
    while !left.is_empty() {
        let ready = left
            .iter()
            .position(|p| p.needs.iter().all(|n| sorted.iter().any(|s| s.name == *n)))
            .context("the workspace's packages need each other in a circle")?;
        sorted.push(left.remove(ready));
    }
    Ok(sorted)
}

fn package(value: &Value) -> Result<Package> {
    let text = |key: &str| {
        value[key]
            .as_str()
            .with_context(|| format!("a package without {key}"))
    };
    let manifest = PathBuf::from(text("manifest_path")?);
    let needs = value["dependencies"]
        .as_array()
        .context("a package without dependencies")?
        .iter()
        .filter(|d| d["path"].is_string() && d["kind"].as_str() != Some("dev"))
        .filter_map(|d| d["name"].as_str().map(str::to_owned))
        .collect();
    let features = value["features"]
        .as_object()
        .context("a package without a list of features")?
        .keys()
        .filter(|feature| *feature != "default")
        .cloned()
        .collect();
    Ok(Package {
        features,
        rust_version: value["rust_version"].as_str().map(str::to_owned),
        name: text("name")?.to_owned(),
        folder: manifest
            .parent()
            .context("a manifest without a folder")?
            .to_owned(),
        published: value["publish"]
            .as_array()
            .is_none_or(|registries| !registries.is_empty()),
        needs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_called_by_its_name_or_its_folder() {
        for package in packages().unwrap().iter().filter(|p| p.published) {
            let folder = package.folder.file_name().unwrap().to_str().unwrap();
            assert_eq!(folder_of(&package.name), folder);
            assert_eq!(folder_of(folder), folder);
        }
    }
}
