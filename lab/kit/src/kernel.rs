// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's cloud kernel: fetched as a package into the cache, unpacked, never installed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::elf;
use crate::paths;

/// The package that depends on the current kernel of this Debian.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// The kernel's module folder inside the package, above the release.
const MODULES: &str = "lib/modules";
/// A block of the LZ4 format that Linux uses decompresses to no more than this.
const LZ4_BLOCK: usize = 8 << 20;
/// No kernel image is larger; what says so is not one.
const LARGEST_IMAGE: usize = 1 << 30;

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
}

/// A module, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Name, with underscores.
    pub name: String,
    /// The file in the cache: `.ko` or `.ko.xz`.
    pub path: PathBuf,
}

impl Kernel {
    /// The kernel of this Debian, fetched with apt if it is not in the cache yet.
    ///
    /// Several processes may call this at once: one fetches, the others wait for it.
    pub fn fetch() -> Result<Self> {
        let home = paths::cache().join("kernel");
        fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let lock = File::create(home.join("lock"))?;
        lock.lock().context("cannot lock the kernel cache")?;
        let folder = home.join("current");
        if !folder.exists() {
            let made = tempfile::Builder::new().prefix("fetch").tempdir_in(&home)?;
            download(made.path())?;
            fs::rename(made.keep(), &folder)?;
        }
        Self::open(&folder)
    }

    /// An unpacked kernel package.
    pub fn open(folder: &Path) -> Result<Self> {
        let modules = folder.join(MODULES);
        let release = fs::read_dir(&modules)
            .with_context(|| format!("no kernel modules in {}", modules.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .max()
            .with_context(|| format!("no kernel in {}", modules.display()))?;
        let kernel = Kernel {
            folder: folder.to_path_buf(),
            release,
        };
        ensure!(
            kernel.bzimage().is_file(),
            "{} is not there; remove {} to fetch the kernel again",
            kernel.bzimage().display(),
            folder.display()
        );
        Ok(kernel)
    }

    /// The kernel's release, as `uname -r` says.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The compressed kernel, in Linux's boot protocol.
    pub fn bzimage(&self) -> PathBuf {
        self.folder.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The kernel as an ELF file, with its PVH note: decompressed on first use.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let path = self.folder.join("boot/vmlinux");
        if !path.exists() {
            let image = fs::read(self.bzimage())?;
            let elf = decompress(&image)
                .with_context(|| format!("cannot decompress {}", self.bzimage().display()))?;
            let mut file = tempfile::NamedTempFile::new_in(self.folder.join("boot"))?;
            file.write_all(&elf)?;
            file.persist(&path)?;
        }
        Ok(path)
    }

    /// The modules `names` and all that they need, each after what it needs.
    ///
    /// A name may be spelled with dashes or underscores. One that is built into the kernel adds
    /// nothing.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let root = self.folder.join(MODULES).join(&self.release);
        let mut files = Vec::new();
        collect(&root, &mut files)?;
        let built_in = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        let find = |name: &str| {
            let path = files
                .iter()
                .find(|path| module_name(path).is_some_and(|n| n == name));
            if path.is_none()
                && !built_in
                    .lines()
                    .any(|line| module_name(Path::new(line)).is_some_and(|n| n == name))
            {
                bail!("kernel {} has no module {name}", self.release);
            }
            Ok(path.cloned())
        };
        let mut order = Vec::new();
        for name in names {
            add_module(&underscored(name), &find, &mut order, &mut Vec::new())?;
        }
        Ok(order)
    }
}

/// Downloads the kernel package and unpacks it in `folder`.
fn download(folder: &Path) -> Result<()> {
    let package = match newest_image() {
        Ok(package) => package,
        // A fresh machine has no package lists yet.
        Err(_) => {
            let status = Command::new("apt-get")
                .args(["update", "-qq"])
                .stdout(Stdio::null())
                .status()
                .context("cannot start apt-get")?;
            ensure!(status.success(), "`apt-get update` ended with {status}");
            newest_image()?
        }
    };
    let output = Command::new("apt-get")
        .args(["download", "-q", &package])
        .current_dir(folder)
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        bail!(
            "`apt-get download {package}` ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let file = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("`apt-get download {package}` left no package"))?;
    let status = Command::new("dpkg")
        .arg("-x")
        .args([&file, folder])
        .status()
        .context("cannot start dpkg")?;
    ensure!(status.success(), "`dpkg -x` ended with {status}");
    fs::remove_file(file)?;
    Ok(())
}

/// The kernel package that the meta package depends on.
fn newest_image() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", META_PACKAGE])
        .output()
        .context("cannot start apt-cache: the laboratory takes its kernel from Debian")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("apt knows no kernel package for {META_PACKAGE}"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in file `path`, if it is one.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file
        .strip_suffix(".ko")
        .or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(underscored(stem))
}

/// Adds `name` to `order` after what it depends on. `above` holds the chain of dependents.
fn add_module(
    name: &str,
    find: &impl Fn(&str) -> Result<Option<PathBuf>>,
    order: &mut Vec<Module>,
    above: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    ensure!(
        above.iter().all(|n| n != name),
        "modules depend on each other in a circle: {} -> {name}",
        above.join(" -> ")
    );
    let Some(path) = find(name)? else {
        return Ok(());
    };
    above.push(name.to_owned());
    for needed in dependencies(&module_bytes(&path)?) {
        add_module(&needed, find, order, above)?;
    }
    above.pop();
    order.push(Module {
        name: name.to_owned(),
        path,
    });
    Ok(())
}

/// The content of a module's file, decompressed.
pub fn module_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_some_and(|e| e == "xz") {
        return pipe("xz", &["-dc"], &bytes);
    }
    Ok(bytes)
}

/// What a module says it depends on, in its `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    elf::section(module, ".modinfo")
        .unwrap_or_default()
        .split(|&b| b == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(underscored)
        .collect()
}

/// The ELF file inside a bzImage.
///
/// Linux, "The Linux/x86 Boot Protocol": `setup_sects` at 0x1f1 gives the length of the real-mode
/// part, `payload_offset` at 0x248 and `payload_length` at 0x24c where in the rest the compressed
/// kernel lies. Its last four bytes are the length it decompresses to.
pub fn decompress(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        image.get(0x202..0x206) == Some(b"HdrS"),
        "no Linux boot header"
    );
    let sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let offset = word(image, 0x248)?;
    let length = word(image, 0x24c)?;
    let start = (sectors + 1) * 512 + offset;
    let payload = image.get(start..start.saturating_add(length));
    let payload = payload.with_context(|| {
        format!(
            "the payload of {length} bytes at byte {start} passes the image's end at {}",
            image.len()
        )
    })?;
    ensure!(payload.len() > 8, "the payload is {length} bytes long");
    let (packed, size) = payload.split_at(payload.len() - 4);
    let size = word(size, 0)?;
    ensure!(size <= LARGEST_IMAGE, "the payload claims {size} bytes");
    let elf = match packed {
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4(&packed[4..], size)?,
        [0x1f, 0x8b, ..] => pipe("gzip", &["-dc"], packed)?,
        [0xfd, b'7', b'z', ..] => pipe("xz", &["-dc"], packed)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => pipe("zstd", &["-dcq"], packed)?,
        _ => bail!("unknown compression {:02x?}", &packed[..4]),
    };
    ensure!(
        elf.len() == size,
        "decompressed to {} bytes where the image says {size}",
        elf.len()
    );
    Ok(elf)
}

fn word(bytes: &[u8], at: usize) -> Result<usize> {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    let word: [u8; 4] = word.with_context(|| format!("cut short at byte {at}"))?;
    Ok(u32::from_le_bytes(word) as usize)
}

/// The old LZ4 container, which Linux's build uses: blocks, each after its length.
fn lz4(mut blocks: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while !blocks.is_empty() && out.len() <= size {
        let length = word(blocks, 0)?;
        let block = blocks[4..]
            .get(..length)
            .with_context(|| format!("an LZ4 block of {length} bytes passes the end"))?;
        out.extend(lz4_flex::block::decompress(block, LZ4_BLOCK)?);
        blocks = &blocks[4 + length..];
    }
    Ok(out)
}

/// Runs `tool` over `input` and returns its output.
fn pipe(tool: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    std::io::Seek::rewind(&mut file)?;
    let output = Command::new(tool)
        .args(arguments)
        .stdin(file)
        .output()
        .with_context(|| format!("cannot start {tool}"))?;
    // A trailing word after the compressed data makes some tools complain, after all is out.
    ensure!(
        !output.stdout.is_empty(),
        "{tool} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
