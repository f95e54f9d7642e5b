// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Newer models than this machine's packages: unpacked from later Debian suites into the cache on
//! request, never installed, and believed only after a self-test.
//!
//! ```no_run
//! use lab_kit::bochs::Bochs;
//! use lab_kit::models::Model;
//!
//! let model = Model::Bochs30.fetch()?;
//! let newer = Bochs::new().program(model.program(), model.bochs_share());
//! println!("compared with {}", model.version());
//! # Ok::<(), anyhow::Error>(())
//! ```

mod apt;
mod kernel;
pub mod self_test;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bochs::Bochs;
use crate::paths;

pub use kernel::with_iommufd;

/// A model that can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// QEMU 11 (sid): first-stage translation and PASID in its VT-d unit.
    #[value(name = "qemu-11")]
    Qemu11,
    /// Bochs 3.0 (trixie): newer processors.
    #[value(name = "bochs-3.0")]
    Bochs30,
}

/// How a model is had.
struct Recipe {
    name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
    /// What the version must start with: a suite moves on.
    version: &'static str,
    /// The end of the script that starts it; `$root` is where it was unpacked, `$run` the loader.
    start: &'static str,
}

const QEMU_11: Recipe = Recipe {
    name: "qemu-11",
    suite: "sid",
    packages: &["qemu-system-x86"],
    version: "QEMU emulator version 11.",
    start: "export QEMU_MODULE_DIR=\"$libraries/qemu\"
run usr/bin/qemu-system-x86_64 -L \"$root/usr/share/qemu\" -L \"$root/usr/share/seabios\" \"$@\"
",
};

const BOCHS_30: Recipe = Recipe {
    name: "bochs-3.0",
    suite: "trixie",
    packages: &["bochs", "bochs-term", "bochsbios", "vgabios"],
    version: "Bochs x86 Emulator 3.0",
    start: "export LTDL_LIBRARY_PATH=\"$libraries/bochs/plugins\" BXSHARE=\"$root/usr/share/bochs\"
run usr/bin/bochs-bin \"$@\"
",
};

/// The start of every model's script: the folder's own dynamic loader and libraries.
const SCRIPT: &str = "#!/bin/sh
root=$(dirname \"$(readlink -f \"$0\")\")/root
libraries=$root/usr/lib/x86_64-linux-gnu
run() {
    program=$1
    shift
    exec \"$libraries/ld-linux-x86-64.so.2\" --library-path \"$libraries\" \"$root/$program\" \"$@\"
}
";

/// The file that holds the version of a model that passed the self-test of today.
fn believed(folder: &Path) -> PathBuf {
    folder.join(format!("believed-{}", self_test::REVISION))
}

/// A model in the cache that passed its self-test.
#[derive(Clone, Debug)]
pub struct Fetched {
    folder: PathBuf,
    version: String,
}

impl Fetched {
    /// The program to start in place of the machine's own.
    pub fn program(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// All of it, the program included.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// For a Bochs: the folder of its BIOS images.
    pub fn bochs_share(&self) -> PathBuf {
        self.folder.join("root/usr/share/bochs")
    }

    /// The version, as the model says it. It belongs into every result.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl Model {
    fn recipe(self) -> &'static Recipe {
        match self {
            Model::Qemu11 => &QEMU_11,
            Model::Bochs30 => &BOCHS_30,
        }
    }

    /// The model, if it is in the cache already.
    pub fn cached(self) -> Option<Fetched> {
        let folder = home().join(self.recipe().name);
        let version = fs::read_to_string(believed(&folder)).ok()?;
        Some(Fetched { folder, version })
    }

    /// The model: from the cache, or downloaded (50 MB or so), unpacked and tested.
    ///
    /// Fails with [`self_test::Wrong`] if it is there but cannot be believed.
    pub fn fetch(self) -> Result<Fetched> {
        let recipe = self.recipe();
        fs::create_dir_all(home()).with_context(|| format!("cannot make {}", home().display()))?;
        let lock = File::create(home().join(format!("{}.lock", recipe.name)))?;
        lock.lock().context("cannot lock the model's folder")?;
        if let Some(fetched) = self.cached() {
            return Ok(fetched);
        }
        let folder = home().join(recipe.name);
        if folder.join("run").exists() {
            // It passed an older test.
            fs::write(believed(&folder), self.test(&folder)?)?;
            return self.cached().context("a file just written is gone");
        }
        let made = tempfile::Builder::new()
            .prefix(recipe.name)
            .tempdir_in(home())?;
        let work = made.path().join("work");
        let root = made.path().join("root");
        apt::unpack(recipe.suite, recipe.packages, &work, &root)?;
        fs::remove_dir_all(work)?;
        let script = made.path().join("run");
        fs::write(&script, format!("{SCRIPT}{}", recipe.start))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;

        let version = self.test(made.path())?;
        ensure!(
            version.starts_with(recipe.version),
            "{} has moved on: it has {version}, not {}",
            recipe.suite,
            recipe.version
        );
        fs::write(believed(made.path()), &version)?;
        fs::rename(made.keep(), &folder)?;
        Ok(Fetched { folder, version })
    }

    fn test(self, folder: &Path) -> Result<String> {
        let tried = Fetched {
            folder: folder.to_path_buf(),
            version: String::new(),
        };
        match self {
            Model::Qemu11 => self_test::qemu(&tried.program()),
            Model::Bochs30 => {
                self_test::bochs(Bochs::new().program(tried.program(), tried.bochs_share()))
            }
        }
        .with_context(|| format!("{} is not to be believed", self.recipe().name))
    }
}

fn home() -> PathBuf {
    paths::cache().join("models")
}
