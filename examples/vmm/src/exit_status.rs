// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The exit status of `vmm`: one for each way that a machine ends, or never starts.

use crate::boot::BootError;
use crate::chipset::ChipsetError;
use crate::machine::address_map::DoesNotFit;
use crate::machine::kvm::KvmError;
use crate::machine::memory::MemoryError;
use crate::machine::processors::CountError;
use crate::machine::stop::StopReason;
use crate::machine::{DeviceError, MachineError};
use crate::passthrough::assigned::AssignedError;
use crate::passthrough::{HostError, PassthroughError, ViewError};
use crate::pci::AssignError;
use crate::peer::PeerBackEndError;
use crate::snapshot::SnapshotError;
use hvkit_virtio_devices::block::OpenError;
use hvkit_virtio_devices::net::TapError;

macro_rules! exit_statuses {
    ($($name:ident = $code:literal $meaning:literal,)*) => {
        /// How a run of `vmm` ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ExitStatus {
            $(#[doc = $meaning] $name = $code,)*
        }

        impl ExitStatus {
            /// Every status, in ascending order.
            pub const ALL: &[ExitStatus] = &[$(ExitStatus::$name,)*];

            /// What it means.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(ExitStatus::$name => $meaning,)*
                }
            }
        }
    };
}

exit_statuses! {
    PoweredOff = 0 "the guest powered off; the built-in guest did all it should",
    Host = 1 "the host refused something, or the VMM has a defect",
    Usage = 2 "an option is wrong",
    Reset = 3 "the guest asked for a reset",
    GuestPanic = 4 "the guest panicked",
    TripleFault = 5 "the guest met a triple fault",
    Quit = 6 "the user quit from the console",
    Internal = 7 "KVM could not go on running the guest",
    WrongAnswer = 8 "the built-in guest did something wrong",
    KvmMissing = 10 "there is no KVM device",
    KvmDenied = 11 "no permission to use KVM",
    KvmUnusable = 12 "KVM lacks something, or refused it",
    Forbidden = 13 "a thread of the VMM tried a system call that it may not make",
    Unconfined = 14 "the VMM cannot be confined on this host, and --confine off was not asked",
    Watchdog = 15 "the guest did not reset its watchdog in time",
    Saved = 16 "the machine was saved, as SIGUSR1 asked",
    KernelUnreadable = 20 "the kernel cannot be read",
    KernelEmpty = 21 "the kernel's file is empty",
    KernelTruncated = 22 "the kernel's file is truncated",
    NotAKernel = 23 "the kernel's file is not a kernel",
    NoEntry = 24 "the kernel has no PVH note, or no 64-bit entry",
    KernelTooLarge = 25 "the kernel does not fit in memory",
    CommandLine = 26 "the kernel's command line is too long",
    InitramfsUnreadable = 30 "the initramfs cannot be read",
    InitramfsTooLarge = 31 "the initramfs does not fit in memory",
    MemoryZero = 40 "the memory size is 0",
    MemoryNotPages = 41 "the memory size is no number of pages",
    MemoryTooLarge = 42 "the memory size is larger than the host's, or than its processor can address",
    CpusZero = 43 "there are no processors",
    CpusTooMany = 44 "there are more processors than KVM can run",
    MemoryTooSmall = 45 "the memory ends below where a PC's tables go",
    DiskMissing = 50 "a disk's file is missing",
    DiskNotAFile = 51 "a disk is a directory",
    DiskReadOnly = 52 "a disk cannot be written, and readonly=on was not asked",
    DiskLocked = 53 "a disk is in use by another VMM",
    DiskUnusable = 54 "a disk cannot be used for another reason",
    SerialUnusable = 55 "the serial line's file or terminal cannot be used",
    NetUnusable = 56 "a network card's tap interface, socket or passt cannot be used",
    NetDenied = 57 "no permission to use a tap interface",
    RngUnusable = 58 "the source of random bytes cannot be read",
    ConsoleUnusable = 59 "the console's file or pseudo-terminal cannot be used",
    DeviceNotPci = 60 "a device to pass through is missing, or no PCI endpoint",
    DeviceNotBound = 61 "a device to pass through is not bound to vfio-pci",
    DeviceGroup = 62 "a device to pass through shares its IOMMU group with one that the host uses",
    DeviceNoIommu = 63 "a device to pass through is behind no IOMMU, or behind one that does not remap interrupts",
    DeviceNoReset = 64 "a device to pass through cannot be reset",
    DeviceTooLarge = 65 "the registers of a device to pass through do not fit in the guest",
    DeviceInUse = 66 "a device to pass through is in use, or named twice",
    DeviceUnusable = 67 "a device to pass through cannot be used for another reason",
    BalloonUnusable = 70 "the balloon's socket cannot be used, or its memory is a passed-through device's",
    VsockUnusable = 71 "the socket of vsock cannot be used",
    PmemUnusable = 72 "a file cannot be persistent memory",
    SnapshotUnusable = 73 "the machine cannot be saved there, or what was saved is not the machine of these options",
    ServedUnusable = 74 "the process that is to serve a device is not there, or does not serve it",
    BackEndUnusable = 75 "the socket at which the guest is to serve another machine cannot be used",
    DirtyLogUnusable = 76 "the socket or the file of the log of what is written cannot be used",
    CountersUnusable = 77 "the socket of the devices' numbers cannot be used",
}

impl ExitStatus {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit status of a machine that stopped for `reason`; for a signal, a shell's 128 and
    /// more.
    #[must_use]
    pub fn code_of(reason: &StopReason) -> u8 {
        let status = match reason {
            StopReason::PowerOff | StopReason::Halted { .. } => ExitStatus::PoweredOff,
            StopReason::Reset => ExitStatus::Reset,
            StopReason::GuestPanic => ExitStatus::GuestPanic,
            StopReason::Watchdog => ExitStatus::Watchdog,
            StopReason::TripleFault { .. } => ExitStatus::TripleFault,
            StopReason::Saved => ExitStatus::Saved,
            StopReason::Quit => ExitStatus::Quit,
            StopReason::Internal { .. } => ExitStatus::Internal,
            StopReason::Unbounded { .. } | StopReason::Defect { .. } => ExitStatus::Host,
            StopReason::Signal(signal) => {
                return u8::try_from(*signal).map_or(u8::MAX, |signal| 128 | signal);
            }
        };
        status.code()
    }
}

impl From<&KvmError> for ExitStatus {
    fn from(error: &KvmError) -> Self {
        match error {
            KvmError::Missing(_) => ExitStatus::KvmMissing,
            KvmError::Denied(_) => ExitStatus::KvmDenied,
            KvmError::Open { .. }
            | KvmError::NotKvm { .. }
            | KvmError::Lacks(_)
            | KvmError::NoSplit { .. }
            | KvmError::Refused { .. } => ExitStatus::KvmUnusable,
        }
    }
}

impl From<&BootError> for ExitStatus {
    fn from(error: &BootError) -> Self {
        match error {
            BootError::KernelFile { .. } => ExitStatus::KernelUnreadable,
            BootError::KernelEmpty(_) => ExitStatus::KernelEmpty,
            BootError::KernelTruncated(_) => ExitStatus::KernelTruncated,
            BootError::NotAKernel(_) | BootError::Elf { .. } => ExitStatus::NotAKernel,
            BootError::NoPvhNote(_) | BootError::No64BitEntry(_) => ExitStatus::NoEntry,
            BootError::KernelTooLarge { .. } | BootError::Memory(_) => ExitStatus::KernelTooLarge,
            BootError::CommandLineTooLong { .. } | BootError::CommandLineZero => {
                ExitStatus::CommandLine
            }
            BootError::InitramfsFile { .. } => ExitStatus::InitramfsUnreadable,
            BootError::InitramfsTooLarge { .. } => ExitStatus::InitramfsTooLarge,
        }
    }
}

impl From<&OpenError> for ExitStatus {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Missing { .. } => ExitStatus::DiskMissing,
            OpenError::Directory { .. } => ExitStatus::DiskNotAFile,
            OpenError::ReadOnly { .. } => ExitStatus::DiskReadOnly,
            OpenError::Locked { .. } => ExitStatus::DiskLocked,
            _ => ExitStatus::DiskUnusable,
        }
    }
}

impl From<&PassthroughError> for ExitStatus {
    fn from(error: &PassthroughError) -> Self {
        match error {
            PassthroughError::Host(error) => match error {
                HostError::Path { .. } | HostError::NotPci(_) | HostError::Bridge { .. } => {
                    ExitStatus::DeviceNotPci
                }
                HostError::NoIommu { .. } | HostError::NoIommuMode { .. } => {
                    ExitStatus::DeviceNoIommu
                }
                HostError::NotBound { .. } => ExitStatus::DeviceNotBound,
                HostError::NotViable { .. } => ExitStatus::DeviceGroup,
            },
            PassthroughError::NoInterruptRemapping { .. } => ExitStatus::DeviceNoIommu,
            PassthroughError::NoReset { .. } => ExitStatus::DeviceNoReset,
            PassthroughError::Twice(_)
            | PassthroughError::NotBindable { .. }
            | PassthroughError::SameName(_)
            | PassthroughError::Busy { .. } => ExitStatus::DeviceInUse,
            _ => ExitStatus::DeviceUnusable,
        }
    }
}

impl From<&DeviceError> for ExitStatus {
    fn from(error: &DeviceError) -> Self {
        match error {
            DeviceError::Disk(error) => error.into(),
            DeviceError::DiskControl { .. } => ExitStatus::DiskUnusable,
            DeviceError::Tap {
                error: TapError::NotPermitted { .. },
            } => ExitStatus::NetDenied,
            DeviceError::Tap { .. }
            | DeviceError::NetSocket { .. }
            | DeviceError::UserNetwork(_)
            | DeviceError::Net(_) => ExitStatus::NetUnusable,
            DeviceError::Balloon { .. } | DeviceError::BalloonPinned => ExitStatus::BalloonUnusable,
            DeviceError::Vsock(_) => ExitStatus::VsockUnusable,
            DeviceError::Rng { .. } => ExitStatus::RngUnusable,
            DeviceError::ConsoleFile { .. }
            | DeviceError::ConsoleEmpty(_)
            | DeviceError::Pty(_)
            | DeviceError::Tty(_)
            | DeviceError::Console(_) => ExitStatus::ConsoleUnusable,
            DeviceError::Served(_) => ExitStatus::ServedUnusable,
            DeviceError::BackEnd(PeerBackEndError::Transport) => ExitStatus::Usage,
            DeviceError::BackEnd(_) => ExitStatus::BackEndUnusable,
        }
    }
}

impl From<&MachineError> for ExitStatus {
    fn from(error: &MachineError) -> Self {
        match error {
            MachineError::Kvm(error) => error.into(),
            MachineError::Boot(error) => error.into(),
            MachineError::Memory(MemoryError::Zero) => ExitStatus::MemoryZero,
            MachineError::Memory(MemoryError::NotPages(_)) => ExitStatus::MemoryNotPages,
            MachineError::Memory(
                MemoryError::LargerThanHost { .. } | MemoryError::Map(_) | MemoryError::File(_),
            )
            | MachineError::DoesNotFit(DoesNotFit { .. }) => ExitStatus::MemoryTooLarge,
            MachineError::Processors(CountError::Zero) => ExitStatus::CpusZero,
            MachineError::Processors(
                CountError::TooMany { .. } | CountError::NeedsRemapping { .. },
            ) => ExitStatus::CpusTooMany,
            MachineError::NoRoomForTables { .. } => ExitStatus::MemoryTooSmall,
            MachineError::Console(_) => ExitStatus::SerialUnusable,
            MachineError::DirtyLog { .. } => ExitStatus::DirtyLogUnusable,
            MachineError::Counters { .. } => ExitStatus::CountersUnusable,
            MachineError::Passthrough(error) => error.into(),
            MachineError::UserDevice(_)
            | MachineError::Chipset(ChipsetError::UserDevice { .. }) => ExitStatus::ServedUnusable,
            MachineError::Chipset(ChipsetError::Device {
                source: AssignedError::View(ViewError::BarTooLarge { .. }),
                ..
            })
            | MachineError::Chipset(ChipsetError::Assign(AssignError::NoRoom { .. })) => {
                ExitStatus::DeviceTooLarge
            }
            MachineError::Chipset(
                ChipsetError::Device { .. } | ChipsetError::NotFollowed { .. },
            ) => ExitStatus::DeviceUnusable,
            MachineError::Device(error) => error.into(),
            MachineError::Confine(_) => ExitStatus::Unconfined,
            MachineError::Pmem(_) => ExitStatus::PmemUnusable,
            MachineError::Snapshot(SnapshotError::Unsaveable { .. }) => ExitStatus::Usage,
            MachineError::Snapshot(_) => ExitStatus::SnapshotUnusable,
            MachineError::Unit(_)
            | MachineError::Chipset(
                ChipsetError::Unit(_)
                | ChipsetError::NotOnPci { .. }
                | ChipsetError::NoWindow { .. },
            ) => ExitStatus::Usage,
            MachineError::Chipset(_)
            | MachineError::Bus(_)
            | MachineError::Report { .. }
            | MachineError::Threads(_)
            | MachineError::Event(_)
            | MachineError::Wait(_) => ExitStatus::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ends_share_a_status() {
        let codes: Vec<u8> = ExitStatus::ALL.iter().map(|s| s.code()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        // A shell's own statuses, and those of signals, begin here.
        assert!(codes.iter().all(|&code| code < 126));
    }

    #[test]
    fn a_signal_is_told_as_a_shell_tells_it() {
        assert_eq!(ExitStatus::code_of(&StopReason::Signal(15)), 143);
        assert_eq!(ExitStatus::code_of(&StopReason::PowerOff), 0);
        assert_eq!(ExitStatus::code_of(&StopReason::Reset), 3);
    }
}
