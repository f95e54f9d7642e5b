// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which system calls a kind of thread makes, glibc's and musl's ways to the same end alike.
//!
//! A call is here because somebody makes it: `strace -f` of the demo, of the tests of devices and of pass-through; and
//! what an error path, a panic or a larger heap adds. A request of `ioctl` is listed by number.

use super::Kind;
use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP,
};
use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_device_attr, kvm_dirty_log, kvm_ioeventfd, kvm_irq_level,
    kvm_irq_routing, kvm_irqchip, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msrs,
    kvm_regs, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use std::os::raw::c_long;
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// A system call that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// With which arguments.
    pub arguments: Arguments,
}

/// Which arguments a call may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// Any.
    Any,
    /// Argument `index`, masked, must have this value.
    Masked {
        /// 0 for the first.
        index: u8,
        /// Bits that count.
        mask: u32,
        /// What they must be.
        value: u32,
    },
}

impl Arguments {
    /// Argument `index` must be `value`, its low 32 bits.
    const fn exactly(index: u8, value: u32) -> Self {
        Arguments::Masked {
            index,
            mask: u32::MAX,
            value,
        }
    }

    /// No bit of `bits` may be set in argument `index`.
    const fn without(index: u8, bits: u32) -> Self {
        Arguments::Masked {
            index,
            mask: bits,
            value: 0,
        }
    }

    /// All bits of `bits` must be set in argument `index`.
    const fn with(index: u8, bits: u32) -> Self {
        Arguments::Masked {
            index,
            mask: bits,
            value: bits,
        }
    }
}

/// What every thread does: memory, time, locks, files that are open, its own end.
const EVERY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Linux, include/uapi/linux/prctl.h.
const PR_GET_AUXV: u32 = 0x4155_5856;

/// What every thread does with these arguments only. Memory that can be executed cannot be made.
const EVERY_WITH: &[Call] = &[
    call(
        libc::SYS_mmap,
        Arguments::without(2, libc::PROT_EXEC as u32),
    ),
    call(
        libc::SYS_mprotect,
        Arguments::without(2, libc::PROT_EXEC as u32),
    ),
    call(
        libc::SYS_prctl,
        Arguments::exactly(0, libc::PR_GET_NAME as u32),
    ),
    // A static program's libraries ask for what the kernel told it at its start.
    call(libc::SYS_prctl, Arguments::exactly(0, PR_GET_AUXV)),
    // The handler of a signal that ends the VMM runs in any thread, and writes to a pair of sockets: no address.
    call(libc::SYS_sendto, Arguments::exactly(4, 0)),
    // The allocator names its memory on kernels that can.
    call(
        libc::SYS_prctl,
        Arguments::exactly(0, libc::PR_SET_VMA as u32),
    ),
    // The library of a debug build sees that a file is open before it closes it.
    call(libc::SYS_fcntl, Arguments::exactly(1, libc::F_GETFD as u32)),
    // Whether a file is a terminal, and giving it back as it was.
    request(libc::TCGETS),
    request(libc::TCSETS),
    request(libc::TCGETS2),
    request(libc::TCSETS2),
];

/// Asked for by libraries that do without: refused with an error, and no alarm. The C library's allocator looks at a
/// file of the kernel's before it returns memory, and a panic's backtrace looks for the program.
pub(super) const REFUSED: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_getcwd,
    libc::SYS_stat,
    libc::SYS_statx,
];

/// Refused likewise, to all but the main thread: VFIO's library looks for a device's group by a link in sysfs when it
/// gives the device back.
pub(super) const LINKS: &[c_long] = &[libc::SYS_readlink, libc::SYS_readlinkat];

/// Open files of any kind: who uses more than `read` and `write`.
const FILES: &[c_long] = &[
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_msync,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// Waiting for many files.
const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
];

/// A disk's rings, which were made before: what goes by a ring passes no filter, so each was limited when it was made to
/// reading, writing and flushing its own image.
const RINGS: &[c_long] = &[libc::SYS_io_uring_enter];

/// How large the user's terminal is.
const TERMINAL: &[Call] = &[request(libc::TIOCGWINSZ)];

/// A tap interface's offloads, and how many queues it has, follow what the driver can.
const TAP: &[Call] = &[
    request(0x4004_54d0),
    request(0x4004_54d8),
    request(0x4004_54d9),
];

/// Discarding blocks of a block device, and zeroing them.
const BLOCK_DEVICES: &[Call] = &[request(0x1277), request(0x127f)];

/// KVM's requests once the machine is made.
const KVM: u32 = 0xae;
const KVM_MACHINE: &[Call] = &[
    request(ioctl_expr(_IOC_NONE, KVM, 0x03, 0)), // KVM_CHECK_EXTENSION
    kvm::<kvm_userspace_memory_region>(0x46),     // KVM_SET_USER_MEMORY_REGION
    kvm::<kvm_irq_level>(0x61),                   // KVM_IRQ_LINE
    kvm::<kvm_irq_routing>(0x6a),                 // KVM_SET_GSI_ROUTING
    kvm::<kvm_irqfd>(0x76),                       // KVM_IRQFD
    kvm::<kvm_ioeventfd>(0x79),                   // KVM_IOEVENTFD
    kvm::<kvm_msi>(0xa5),                         // KVM_SIGNAL_MSI
    kvm::<kvm_device_attr>(0xe1),                 // KVM_SET_DEVICE_ATTR
];
const KVM_VCPU: &[Call] = &[
    request(ioctl_expr(_IOC_NONE, KVM, 0x80, 0)), // KVM_RUN
    request(ioctl_expr(
        _IOC_READ,
        KVM,
        0x81,
        size_of::<kvm_regs>() as u32,
    )), // KVM_GET_REGS
    request(ioctl_expr(
        _IOC_READ,
        KVM,
        0x83,
        size_of::<kvm_sregs>() as u32,
    )), // KVM_GET_SREGS
];

/// What a vCPU's thread asks KVM when the machine is saved. Nothing is set.
const KVM_VCPU_STATE: &[Call] = &[
    request(ioctl_expr(
        _IOC_READ | _IOC_WRITE,
        KVM,
        0x88,
        size_of::<kvm_msrs>() as u32,
    )), // KVM_GET_MSRS
    told::<kvm_lapic_state>(0x8e),                // KVM_GET_LAPIC
    told::<kvm_mp_state>(0x98),                   // KVM_GET_MP_STATE
    told::<kvm_vcpu_events>(0x9f),                // KVM_GET_VCPU_EVENTS
    told::<kvm_debugregs>(0xa1),                  // KVM_GET_DEBUGREGS
    request(ioctl_expr(_IOC_NONE, KVM, 0xa3, 0)), // KVM_GET_TSC_KHZ
    told::<kvm_xsave>(0xa4),                      // KVM_GET_XSAVE
    told::<kvm_xcrs>(0xa6),                       // KVM_GET_XCRS
];

/// What the main thread asks KVM when the machine is saved.
const KVM_MACHINE_STATE: &[Call] = &[
    request(ioctl_expr(
        _IOC_READ | _IOC_WRITE,
        KVM,
        0x62,
        size_of::<kvm_irqchip>() as u32,
    )), // KVM_GET_IRQCHIP
    told::<kvm_clock_data>(0x7c), // KVM_GET_CLOCK
];

/// VFIO's and iommufd's requests, which share a letter: interrupts, resets and DMA mappings of devices that are the guest's.
/// Opening a device, and joining it to another's tables, is not among them.
const VFIO: &[Call] = &[
    vfio(VFIO_BASE + 10),         // VFIO_DEVICE_SET_IRQS
    vfio(VFIO_BASE + 11),         // VFIO_DEVICE_RESET
    vfio(VFIO_BASE + 13),         // VFIO_IOMMU_MAP_DMA
    vfio(VFIO_BASE + 14),         // VFIO_IOMMU_UNMAP_DMA
    vfio(IOMMUFD_CMD_IOAS_MAP),   // IOMMU_IOAS_MAP
    vfio(IOMMUFD_CMD_IOAS_UNMAP), // IOMMU_IOAS_UNMAP
];

/// What was written to the guest's memory.
const DIRTY_LOG: &[Call] = &[
    kvm::<kvm_dirty_log>(0x42), // KVM_GET_DIRTY_LOG
    vfio(VFIO_BASE + 12),       // VFIO_IOMMU_GET_INFO
    vfio(VFIO_BASE + 17),       // VFIO_IOMMU_DIRTY_PAGES
];

/// Giving a device back, and its tables.
const VFIO_END: &[Call] = &[
    vfio(VFIO_BASE + 5),       // VFIO_GROUP_UNSET_CONTAINER
    vfio(VFIO_BASE + 20),      // VFIO_DEVICE_DETACH_IOMMUFD_PT
    vfio(IOMMUFD_CMD_DESTROY), // IOMMU_DESTROY
];

/// Local sockets, of the kind that has a path: for Landlock and the protocol family see to it that there is no other.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];
const SOCKETS_WITH: &[Call] = &[
    call(
        libc::SYS_socket,
        Arguments::exactly(0, libc::AF_UNIX as u32),
    ),
    // The channel by which a process that serves a device asks.
    call(
        libc::SYS_socketpair,
        Arguments::exactly(0, libc::AF_UNIX as u32),
    ),
    request(libc::FIONBIO),
];

/// Starting a thread, which confines itself: never a process.
const THREADS: &[c_long] = &[
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
];
const THREADS_WITH: &[Call] = &[
    call(
        libc::SYS_clone,
        Arguments::with(
            0,
            (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32,
        ),
    ),
    call(
        libc::SYS_prctl,
        Arguments::exactly(0, libc::PR_SET_NAME as u32),
    ),
    call(
        libc::SYS_prctl,
        Arguments::exactly(0, libc::PR_SET_NO_NEW_PRIVS as u32),
    ),
];

/// Does not exist for the nursery, so that the C library takes the call whose flags can be seen.
pub(super) const ABSENT: &[c_long] = &[libc::SYS_clone3];

/// What a thread of this kind may do.
#[must_use]
pub fn of(kind: Kind) -> Vec<Call> {
    let (any, with): (&[&[c_long]], &[&[Call]]) = match kind {
        Kind::Main => (
            &[
                FILES,
                WAITING,
                // Ends vCPUs, and joins everything; sockets that were listened on are removed.
                &[
                    libc::SYS_rt_sigaction,
                    // A process that serves a device is told of the end.
                    libc::SYS_sendmsg,
                    libc::SYS_shutdown,
                    libc::SYS_tgkill,
                    libc::SYS_unlink,
                ],
            ],
            &[
                KVM_MACHINE,
                KVM_MACHINE_STATE,
                VFIO,
                VFIO_END,
                TAP,
                TERMINAL,
            ],
        ),
        Kind::Vcpu => (
            // Registers of devices that other processes serve, what the guest maps for them, which they acknowledge, and the
            // end of one that is given up.
            &[
                FILES,
                WAITING,
                &[libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_shutdown],
            ],
            // The kernel tries one after another: what every entry into the guest asks is first.
            &[KVM_VCPU, KVM_MACHINE, KVM_VCPU_STATE, VFIO, TAP],
        ),
        // Frames may come and go by a socket that is connected.
        Kind::Device => (
            &[
                FILES,
                WAITING,
                RINGS,
                &[
                    libc::SYS_recvfrom,
                    libc::SYS_recvmsg,
                    libc::SYS_sendmsg,
                    // The other end sees that it is given up.
                    libc::SYS_shutdown,
                ],
            ],
            &[TAP, BLOCK_DEVICES, KVM_MACHINE, VFIO],
        ),
        // A pin is a line of KVM's.
        Kind::Sockets => (&[FILES, WAITING, SOCKETS], &[SOCKETS_WITH, KVM_MACHINE]),
        Kind::Watch => (&[], &[]),
        // A client has so long and no longer. What it asks for the guest is told, by a pin it may be: a line of KVM's.
        // It may ask what was written, which goes to a file, and how long a disk's image is.
        Kind::Control => (
            &[
                SOCKETS,
                &[libc::SYS_lseek, libc::SYS_pwrite64, libc::SYS_setsockopt],
            ],
            &[KVM_MACHINE, DIRTY_LOG],
        ),
        Kind::Interrupts => (&[FILES, WAITING], &[KVM_MACHINE, VFIO]),
        // The threads it starts inherit its filter, so it may do what they may.
        Kind::Nursery => (
            &[FILES, WAITING, RINGS, SOCKETS, THREADS, ABSENT],
            &[
                TAP,
                BLOCK_DEVICES,
                KVM_MACHINE,
                VFIO,
                SOCKETS_WITH,
                THREADS_WITH,
            ],
        ),
    };
    let plain = |number: &c_long| call(*number, Arguments::Any);
    let any = any.iter().copied().chain([EVERY, REFUSED, LINKS]).flatten();
    let with = with.iter().copied().chain([EVERY_WITH]).flatten();
    any.map(plain).chain(with.copied()).collect()
}

const fn call(number: c_long, arguments: Arguments) -> Call {
    Call { number, arguments }
}

/// An `ioctl` with this request.
const fn request(number: u64) -> Call {
    // The kernel takes a request as 32 bits.
    call(libc::SYS_ioctl, Arguments::exactly(1, number as u32))
}

/// A request of VFIO's or iommufd's, by its number.
const fn vfio(number: u32) -> Call {
    request(ioctl_expr(_IOC_NONE, VFIO_TYPE as u32, number, 0))
}

/// A request of KVM's that tells a `T`.
const fn told<T>(number: u32) -> Call {
    request(ioctl_expr(_IOC_READ, KVM, number, size_of::<T>() as u32))
}

/// A request of KVM's that is given a `T`.
const fn kvm<T>(number: u32) -> Call {
    request(ioctl_expr(_IOC_WRITE, KVM, number, size_of::<T>() as u32))
}

#[cfg(test)]
mod tests;
