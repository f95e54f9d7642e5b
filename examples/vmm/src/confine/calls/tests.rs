// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lists, against the kernel's headers and against each other.

use super::*;

#[test]
fn requests_are_spelled_as_the_kernel_api_has_them() {
    // linux/kvm.h, computed by the macros of asm-generic/ioctl.h.
    let expected = [
        0xae03,
        0x4020_ae46,
        0x4008_ae61,
        0x4008_ae6a,
        0x4020_ae76,
        0x4040_ae79,
        0x4020_aea5,
        0x4018_aee1,
    ];
    let requests: Vec<_> = KVM_MACHINE.iter().map(|call| call.arguments).collect();
    assert_eq!(requests, expected.map(|r| Arguments::exactly(1, r)));
    let expected = [0xae80, 0x8090_ae81, 0x8138_ae83];
    let requests: Vec<_> = KVM_VCPU.iter().map(|call| call.arguments).collect();
    assert_eq!(requests, expected.map(|r| Arguments::exactly(1, r)));
    let expected = [
        0xc008_ae88,
        0x8400_ae8e,
        0x8004_ae98,
        0x8040_ae9f,
        0x8080_aea1,
        0xaea3,
        0x9000_aea4,
        0x8188_aea6,
        0xc208_ae62,
        0x8030_ae7c,
    ];
    let requests = KVM_VCPU_STATE.iter().chain(KVM_MACHINE_STATE);
    let requests: Vec<_> = requests.map(|call| call.arguments).collect();
    assert_eq!(requests, expected.map(|r| Arguments::exactly(1, r)));
    let expected = [0x4010_ae42, 0x3b70, 0x3b75];
    let requests: Vec<_> = DIRTY_LOG.iter().map(|call| call.arguments).collect();
    assert_eq!(requests, expected.map(|r| Arguments::exactly(1, r)));
    // linux/vfio.h and linux/iommufd.h.
    let expected = [
        0x3b6e, 0x3b6f, 0x3b71, 0x3b72, 0x3b85, 0x3b86, 0x3b69, 0x3b78, 0x3b80,
    ];
    let requests: Vec<_> = VFIO.iter().chain(VFIO_END).map(|c| c.arguments).collect();
    assert_eq!(requests, expected.map(|r| Arguments::exactly(1, r)));
}

#[test]
fn nobody_may_do_what_nobody_does() {
    let never = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_setuid,
        libc::SYS_capset,
        libc::SYS_bpf,
        libc::SYS_kill,
        libc::SYS_init_module,
        libc::SYS_pidfd_getfd,
        libc::SYS_open_by_handle_at,
        libc::SYS_io_uring_setup,
        libc::SYS_prlimit64,
        libc::SYS_userfaultfd,
    ];
    for kind in Kind::ALL {
        let calls = of(kind);
        for number in never {
            let found = calls.iter().find(|call| call.number == number);
            assert_eq!(found, None, "{kind:?}");
        }
    }
}

#[test]
fn a_vcpu_starts_no_thread_and_has_no_socket() {
    let calls = of(Kind::Vcpu);
    for number in [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket] {
        assert!(calls.iter().all(|call| call.number != number));
    }
}

#[test]
fn the_nursery_may_do_what_those_it_starts_may() {
    let nursery = of(Kind::Nursery);
    for kind in [Kind::Device, Kind::Sockets] {
        for call in of(kind) {
            assert!(nursery.contains(&call), "{kind:?} {call:?}");
        }
    }
}

#[test]
fn only_who_finds_a_process_again_connects() {
    for (name, kind) in [
        ("vhost-blk", Kind::Device),
        ("vhost-blk-again", Kind::Sockets),
        ("vhost-net-again", Kind::Sockets),
        ("blk-again", Kind::Device),
        ("net-ctrl", Kind::Device),
        ("vsock", Kind::Sockets),
    ] {
        assert_eq!(Kind::of_device(name), kind, "{name}");
    }
    let pair = |kind| {
        let mut calls = of(kind).into_iter();
        calls.find(|call| call.number == libc::SYS_socketpair)
    };
    // Of the family that has paths, as any socket.
    let unix = Arguments::exactly(0, libc::AF_UNIX as u32);
    assert_eq!(pair(Kind::Sockets).map(|call| call.arguments), Some(unix));
    assert_eq!(pair(Kind::Device), None);
}
