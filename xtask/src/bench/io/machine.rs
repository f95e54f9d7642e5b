// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machines that are compared: a VMM, its devices, and what the guest does with them.

/// Guest memory, in MiB.
const MEMORY_MIB: u64 = 256;

/// What the guest does, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// The disk as its kernel names it.
    pub(super) disk: &'static str,
    /// Jobs as the guest's init knows them, with commas between.
    pub(super) jobs: &'static str,
}

/// One machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) name: &'static str,
    pub(super) work: Work,
    /// Commands of the host before the VMM starts.
    pub(super) before: &'static str,
    /// More words for the meter: the process that works for the VMM.
    pub(super) meter: &'static str,
    vmm: Vmm,
    /// The VMM's options for the devices.
    options: &'static str,
    /// More words for the guest's kernel.
    kernel: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Vmm {
    Ours,
    Qemu {
        machine: &'static str,
    },
    Newer {
        machine: &'static str,
    },
    /// No VMM and no guest: the host does the jobs itself.
    Missing,
}

/// Work for a disk and a network card.
const DEVICES: Work = Work {
    disk: "vda",
    jobs: "write,mixed,read,send,take",
};
/// Work for a disk behind a unit: each page taken back before its request is over, then pages taken back in batches.
const BEHIND: Work = Work {
    disk: "vda",
    jobs: "write,read,lazy,read-lazy",
};
/// Work for a disk that is not emulated by the VMM.
const ELSEWHERE: Work = Work {
    disk: "vda",
    jobs: "write",
};
/// The guest's kernel uses the unit.
const STRICT: &str = "intel_iommu=on iommu.strict=1";

pub(super) const OURS: Machine = Machine {
    name: "ours",
    work: DEVICES,
    before: "disk; sink",
    meter: "",
    vmm: Vmm::Ours,
    options: "--disk path=/dev/shm/disk --net tap=t0",
    kernel: "",
};
pub(super) const SERVED: Machine = Machine {
    name: "ours, served by another process",
    work: ELSEWHERE,
    before: "served",
    meter: "--also $server",
    vmm: Vmm::Ours,
    options: "--disk vhost_user=on,socket=/tmp/disk",
    kernel: "",
};
pub(super) const SERVED_BEHIND: Machine = Machine {
    name: "ours, served by another process, behind the unit",
    options: "--vtd caching=on --disk vhost_user=on,socket=/tmp/disk,iommu=on",
    kernel: STRICT,
    ..SERVED
};
pub(super) const QEMU: Machine = Machine {
    name: "QEMU",
    work: DEVICES,
    before: "disk; sink",
    meter: "",
    vmm: Vmm::Qemu { machine: "q35" },
    options: "-drive if=none,id=disk,format=raw,file=/dev/shm/disk \
              -device virtio-blk-pci,drive=disk,num-queues=1 \
              -netdev tap,id=net,ifname=t0,script=no,downscript=no \
              -device virtio-net-pci,netdev=net,romfile=",
    kernel: "",
};
/// The network's jobs within the host: what two ends of a stream cost on this processor where no guest, no interface and no VMM is
/// between them. No machine can be quicker.
pub(super) const ALONE: Machine = Machine {
    name: "the host alone",
    work: Work {
        disk: "",
        jobs: "send,take",
    },
    before: "ends",
    meter: "",
    vmm: Vmm::Missing,
    options: "",
    kernel: "",
};
pub(super) const OURS_BEHIND: Machine = Machine {
    name: "ours, behind the unit",
    work: BEHIND,
    before: "disk",
    meter: "",
    vmm: Vmm::Ours,
    options: "--vtd --disk path=/dev/shm/disk,iommu=on",
    kernel: STRICT,
};
pub(super) const QEMU_BEHIND: Machine = Machine {
    name: "QEMU, behind its unit",
    work: BEHIND,
    before: "disk",
    meter: "",
    vmm: Vmm::Qemu {
        machine: "q35,kernel-irqchip=split",
    },
    options: "-device intel-iommu,intremap=on \
              -drive if=none,id=disk,format=raw,file=/dev/shm/disk \
              -device virtio-blk-pci,drive=disk,num-queues=1,iommu_platform=on,disable-legacy=on",
    kernel: STRICT,
};
pub(super) const PASSED: Machine = Machine {
    name: "NVMe passed through",
    work: Work {
        disk: "nvme0n1",
        ..ELSEWHERE
    },
    before: "give 0000:00:05.0 vfio-pci",
    meter: "",
    vmm: Vmm::Ours,
    options: "--device path=/sys/bus/pci/devices/0000:00:05.0",
    kernel: "",
};
pub(super) const PASSED_BEHIND: Machine = Machine {
    name: "NVMe passed through, behind the unit",
    options: "--vtd caching=on --device path=/sys/bus/pci/devices/0000:00:05.0,iommu=on",
    kernel: STRICT,
    ..PASSED
};

/// Where QEMU of a later Debian is in the host.
pub(super) const NEWER: &str = "/newer";

/// Work for the guest's kernel alone: a page is mapped for the disk and taken back at once, then in batches.
const PAIRS: Work = Work {
    disk: "vda",
    jobs: "map,lazy,map-lazy",
};
pub(super) const OURS_MAPS: Machine = Machine {
    name: "ours",
    work: PAIRS,
    ..OURS_BEHIND
};
pub(super) const QEMU_MAPS: Machine = Machine {
    name: "QEMU 7.2",
    work: PAIRS,
    ..QEMU_BEHIND
};
pub(super) const NEWER_MAPS: Machine = Machine {
    name: "QEMU 11",
    vmm: Vmm::Newer {
        machine: "q35,kernel-irqchip=split",
    },
    ..QEMU_MAPS
};
pub(super) const OURS_TELLS: Machine = Machine {
    name: "ours, caching mode",
    options: "--vtd caching=on --disk path=/dev/shm/disk,iommu=on",
    ..OURS_MAPS
};
pub(super) const QEMU_TELLS: Machine = Machine {
    name: "QEMU 7.2, caching mode",
    options: "-device intel-iommu,intremap=on,caching-mode=on \
              -drive if=none,id=disk,format=raw,file=/dev/shm/disk \
              -device virtio-blk-pci,drive=disk,num-queues=1,iommu_platform=on,disable-legacy=on",
    ..QEMU_MAPS
};
pub(super) const NEWER_TELLS: Machine = Machine {
    name: "QEMU 11, caching mode",
    options: QEMU_TELLS.options,
    ..NEWER_MAPS
};

/// All that are compared by requests.
pub(super) const MACHINES: &[Machine] = &[
    OURS,
    SERVED,
    QEMU,
    ALONE,
    OURS_BEHIND,
    SERVED_BEHIND,
    QEMU_BEHIND,
    PASSED,
    PASSED_BEHIND,
];

impl Machine {
    /// The jobs that give figures.
    pub(super) fn jobs(&self) -> Vec<&'static str> {
        let jobs = self.work.jobs.split(',');
        jobs.filter(|&job| job != "lazy").collect()
    }

    /// The VMM's command line; `more` are words for the guest's kernel.
    pub(super) fn command(&self, more: &str) -> String {
        let Work { disk, jobs } = self.work;
        let cmdline = format!(
            "console=ttyS0 quiet panic=-1 reboot=t {} disk={disk} jobs={jobs} {more}",
            self.kernel
        );
        let options = self.options;
        let (program, machine) = match self.vmm {
            Vmm::Ours => ("vmm".to_owned(), ""),
            Vmm::Qemu { machine } => ("qemu-system-x86_64".to_owned(), machine),
            Vmm::Newer { machine } => (format!("{NEWER}/run"), machine),
            Vmm::Missing => (String::new(), ""),
        };
        match self.vmm {
            Vmm::Missing => format!("sh -c '{more}; . /host.sh; alone'"),
            Vmm::Ours => format!(
                "{program} --kernel /guest/vmlinux --initramfs /guest/initramfs --cmdline '{cmdline}' \
                 --cpus boot=1 --memory size={MEMORY_MIB}M --serial tty {options}"
            ),
            Vmm::Qemu { .. } | Vmm::Newer { .. } => format!(
                "{program} -M {machine} -enable-kvm -cpu host -m {MEMORY_MIB} -smp 1 \
                 -name guest,debug-threads=on -nodefaults -no-user-config -no-reboot -display none -serial stdio \
                 -kernel /guest/vmlinux -initrd /guest/initramfs -append '{cmdline}' {options}"
            ),
        }
    }
}
