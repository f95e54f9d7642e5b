// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What machine to build. Plain data: the machine's parts check it, wherever it comes from.

use crate::peer::BackEnd;
use crate::served::Served;
use crate::vfio_user::UserDevice;
use hvkit_virtio_devices::limit::Limits;
use std::path::PathBuf;

mod net;

pub use net::{Net, NetWire, Reach, UserNetwork};

/// The device that is KVM on every Linux host.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The KVM device.
    pub kvm: PathBuf,
    /// A bzImage, or an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// An initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Disks, in the order the guest finds them.
    pub disks: Vec<Disk>,
    /// Devices that other processes serve: the guest finds them after disks and network cards of the VMM's own.
    pub served: Vec<Served>,
    /// By which the guest serves devices to other machines.
    pub back_ends: Vec<BackEnd>,
    /// Devices of the host that become the guest's.
    pub devices: Vec<HostDevice>,
    /// PCI devices that other processes serve.
    pub user_devices: Vec<UserDevice>,
    /// Network cards, in the order the guest finds them.
    pub nets: Vec<Net>,
    /// A source of random bytes for the guest.
    pub rng: Option<Rng>,
    /// The paravirtual console.
    pub console: VirtioConsole,
    /// A balloon.
    pub balloon: Option<Balloon>,
    /// Sockets between host and guest.
    pub vsock: Option<Vsock>,
    /// Files that the guest has as memory.
    pub pmems: Vec<Pmem>,
    /// A watchdog.
    pub watchdog: Watchdog,
    /// How the console reaches the guest's memory.
    pub console_dma: Dma,
    /// Where the console is.
    pub console_place: Place,
    /// Remapping units that the guest finds.
    pub vtds: Vec<Vtd>,
    /// A paravirtual IOMMU, in place of those.
    pub virtio_iommu: VirtioIommu,
    /// Segments of PCI.
    pub segments: u16,
    /// The serial line.
    pub serial: Serial,
    /// What becomes of the files that the guest's consoles write to.
    pub output: Output,
    /// What virtio devices are on.
    pub transport: Transport,
    /// A file for the figures of the start.
    pub report: Option<PathBuf>,
    /// A log of what is written to the guest's memory.
    pub dirty_log: Option<DirtyLog>,
    /// A socket at which the numbers of the devices' queues are told.
    pub counters: Option<PathBuf>,
    /// A folder to which the machine is saved when SIGUSR1 comes.
    pub snapshot: Option<PathBuf>,
    /// A folder that the machine comes from: no kernel is booted.
    pub restore: Option<PathBuf>,
    /// Whether the process gives up, for ever, what it does not need while the guest runs.
    pub confinement: Confinement,
}

/// A log of what is written to the guest's memory; see [`dirty_log`](crate::dirty_log).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyLog {
    /// Where it can be asked.
    pub socket: PathBuf,
    /// A file for the pages, bit by bit.
    pub bitmap: Option<PathBuf>,
}

/// Whether the VMM confines itself; see [`confine`](crate::confine).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confinement {
    /// Not at all.
    Off,
    /// The whole process: no files, no new privileges; each thread: a list of system calls.
    #[default]
    On,
}

impl Config {
    /// A machine with one vCPU, 512 MiB, a serial line on the terminal and nothing else.
    #[must_use]
    pub fn new(kernel: PathBuf) -> Self {
        Config {
            kvm: KVM_DEVICE.into(),
            kernel,
            initramfs: None,
            command_line: "console=ttyS0".into(),
            cpus: 1,
            memory: 512 << 20,
            disks: Vec::new(),
            served: Vec::new(),
            back_ends: Vec::new(),
            devices: Vec::new(),
            user_devices: Vec::new(),
            nets: Vec::new(),
            rng: None,
            console: VirtioConsole::Off,
            balloon: None,
            vsock: None,
            pmems: Vec::new(),
            watchdog: Watchdog::Absent,
            console_dma: Dma::Direct,
            console_place: Place::default(),
            vtds: Vec::new(),
            virtio_iommu: VirtioIommu::Absent,
            segments: 1,
            serial: Serial::Tty,
            output: Output::Anew,
            transport: Transport::Pci,
            report: None,
            dirty_log: None,
            counters: None,
            snapshot: None,
            restore: None,
            confinement: Confinement::On,
        }
    }
}

/// What becomes of a file that a console of the guest's writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// It is emptied.
    #[default]
    Anew,
    /// What comes is added: a machine before this one wrote it, or this one before it was saved.
    GoesOn,
}

/// What virtio devices are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// PCI.
    #[default]
    Pci,
    /// Windows of registers in memory.
    Mmio,
}

/// A disk, and the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// What the guest may do to it.
    pub access: Access,
    /// Serial number.
    pub serial: String,
    /// Queues; none: one.
    pub queues: Option<u16>,
    /// Descriptors of a queue; none: what is usual.
    pub queue_size: Option<u16>,
    /// What its queues may do together in a time.
    pub limits: Limits,
    /// What the file is taken for.
    pub format: Format,
    /// Whether the image may name another that it is built on.
    pub backing: bool,
    /// Whether the host's page cache is bypassed.
    pub direct: bool,
    /// Where it can be spoken to while the machine runs.
    pub control: Option<PathBuf>,
    /// How it reaches the guest's memory.
    pub dma: Dma,
    /// Where it is.
    pub place: Place,
}

/// What a disk's file is taken for. Never guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk, sector by sector.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl Disk {
    /// A disk of one queue, to be read and written.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Disk {
            path,
            access: Access::ReadWrite,
            serial: String::new(),
            queues: None,
            queue_size: None,
            limits: Limits::default(),
            format: Format::Raw,
            backing: false,
            direct: false,
            control: None,
            dma: Dma::Direct,
            place: Place::default(),
        }
    }
}

/// How a device of the guest reaches its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dma {
    /// By the guest's physical addresses. A virtio device does so even where there is a remapping unit, and says so by
    /// not offering VIRTIO_F_ACCESS_PLATFORM.
    #[default]
    Direct,
    /// By addresses that the guest's remapping unit, or its virtio-iommu, translates.
    Translated,
}

/// Where a device of the guest is, and by what it is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The segment of PCI.
    pub segment: u16,
    /// The remapping unit that it is behind, by its name; none: the one that has the segment, if there is one.
    pub unit: Option<String>,
    /// What its queues can be, if it is a virtio device.
    pub rings: Rings,
}

/// Layouts of a virtio device's queues that its driver can choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rings {
    /// Split and packed.
    #[default]
    Both,
    /// Split only, as devices and drivers before virtio 1.1 have them.
    Split,
}

/// An emulated VT-d remapping unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtd {
    /// By which name devices call it.
    pub id: Option<String>,
    /// The segment of PCI that its devices are on.
    pub segment: u16,
    /// Which of them it has.
    pub scope: Scope,
    /// The widest addresses that it translates.
    pub width: DmaWidth,
    /// Whether it remaps interrupts.
    pub interrupts: bool,
    /// Whether it is in caching mode: the guest tells it of every mapping, which devices of the host need.
    pub caching: bool,
    /// Whether it has scalable mode: PASIDs, and tables of the first stage.
    pub scalable: bool,
}

impl Default for Vtd {
    fn default() -> Self {
        Vtd {
            id: None,
            segment: 0,
            scope: Scope::Segment,
            width: DmaWidth::Bits48,
            interrupts: true,
            caching: false,
            scalable: false,
        }
    }
}

/// Whether there is a virtio-iommu, which devices with `iommu=on` are behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VirtioIommu {
    /// There is none.
    #[default]
    Absent,
    /// One, on PCI segment 0.
    Present,
}

/// Which devices of its segment a remapping unit has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All that no other unit has.
    #[default]
    Segment,
    /// Those that name it.
    Named,
}

/// Widths of addresses that a remapping unit translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DmaWidth {
    /// Tables of three levels.
    Bits39,
    /// Of three and four levels.
    Bits48,
    /// Of three to five levels.
    Bits57,
}

impl DmaWidth {
    /// In bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            DmaWidth::Bits39 => 39,
            DmaWidth::Bits48 => 48,
            DmaWidth::Bits57 => 57,
        }
    }
}

/// A source of random bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    /// The file.
    pub source: PathBuf,
    /// How it reaches the guest's memory.
    pub dma: Dma,
    /// Where it is.
    pub place: Place,
}

/// A balloon, by which the guest gives memory back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balloon {
    /// Bytes that the guest is to do without from the start.
    pub size: u64,
    /// Whether the guest may take it back when it has no other.
    pub deflate_on_oom: bool,
    /// Whether it gives free pages back all the time.
    pub free_page_reporting: bool,
    /// Whether it can be asked which pages it has free.
    pub free_page_hints: bool,
    /// Where the balloon can be spoken to while the machine runs.
    pub socket: Option<PathBuf>,
    /// What its queues can be.
    pub rings: Rings,
}

/// Sockets between host and guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's context identifier.
    pub cid: u64,
    /// The host's socket.
    pub socket: PathBuf,
    /// How the device reaches the guest's memory.
    pub dma: Dma,
    /// Where it is.
    pub place: Place,
}

/// A file that the guest has as persistent memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pmem {
    /// The file.
    pub path: PathBuf,
    /// What becomes of what the guest writes.
    pub writes: Writes,
    /// Where it is.
    pub place: Place,
}

/// What becomes of what the guest writes to persistent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// It is in the file.
    Kept,
    /// It is gone with the machine.
    Discarded,
}

/// Whether there is a watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// There is none.
    Absent,
    /// There is, and it stops the machine.
    Present,
}

/// Where the guest's paravirtual console leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtioConsole {
    /// There is none.
    Off,
    /// Output is dropped, and there is no input.
    Null,
    /// Output goes to a file, created or emptied; there is no input.
    File(PathBuf),
    /// A pseudo-terminal, whose name is printed.
    Pty,
    /// Standard output and input; a terminal becomes the guest's, with an escape key.
    Tty,
}

/// What the guest may do to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Whether a device of the host is had by iommufd and VFIO's character device, or by VFIO's container and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Iommufd {
    /// By iommufd where the host has it.
    #[default]
    Auto,
    /// By iommufd, or not at all.
    On,
    /// By container and group.
    Off,
}

/// A PCI device of the host that becomes the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its folder in sysfs, or a link to it: `/sys/bus/pci/devices/0000:01:00.0`.
    pub path: PathBuf,
    /// By which name messages call it; its address if none is given.
    pub id: Option<String>,
    /// By which interface of the host's it is had.
    pub iommufd: Iommufd,
    /// How it reaches the guest's memory.
    pub dma: Dma,
    /// Where it is.
    pub place: Place,
}

/// Where the guest's serial line leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// There is none.
    Off,
    /// Output is dropped, and there is no input.
    Null,
    /// Standard output and input; a terminal becomes the guest's, with an escape key.
    Tty,
    /// Output goes to a file, created or emptied; there is no input.
    File(PathBuf),
}
