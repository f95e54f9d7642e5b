// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a kernel cannot be booted.

use std::io;
use std::path::PathBuf;

/// A kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel's file cannot be read.
    #[error("cannot read kernel {}: {source}", path.display())]
    KernelFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's file has no bytes.
    #[error("kernel {} is empty", .0.display())]
    KernelEmpty(PathBuf),
    /// The kernel's file ends before its own headers say.
    #[error("kernel {} is truncated", .0.display())]
    KernelTruncated(PathBuf),
    /// Neither ELF nor bzImage.
    #[error("{} is not a kernel: neither a bzImage nor an ELF file", .0.display())]
    NotAKernel(PathBuf),
    /// A bzImage from before the 64-bit boot protocol (2.12), or a 32-bit one.
    #[error("kernel {} has no 64-bit entry point", .0.display())]
    No64BitEntry(PathBuf),
    /// An ELF file whose headers contradict themselves or that is for another machine.
    #[error("kernel {}: {source}", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: linux_loader::loader::Error,
    },
    /// An ELF file that does not say where to enter it.
    #[error("kernel {} has no PVH note: boot its bzImage, or build it with CONFIG_PVH", .0.display())]
    NoPvhNote(PathBuf),
    /// The kernel needs memory that the machine does not have.
    #[error("kernel {} needs memory up to {end:#x}, the machine's ends at {memory:#x}", path.display())]
    KernelTooLarge {
        /// The file.
        path: PathBuf,
        /// First address behind what it needs.
        end: u64,
        /// First address behind low memory.
        memory: u64,
    },
    /// The initramfs's file cannot be read.
    #[error("cannot read initramfs {}: {source}", path.display())]
    InitramfsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The initramfs does not fit between the kernel and the end of low memory.
    #[error("initramfs {} of {length} bytes does not fit: {room} bytes of memory are left beside the kernel", path.display())]
    InitramfsTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// Bytes there are for it.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel's command line has {length} bytes, and {limit} are possible")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// The command line holds a byte that ends it.
    #[error("the kernel's command line holds a zero byte")]
    CommandLineZero,
    /// Boot data do not fit in conventional memory: the machine has less than 1 MiB.
    #[error("no room for boot data: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}
