// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real `vmm` while it runs, as the kernel sees it: every thread filtered, the process bounded.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/kvm.rs"]
mod kvm;
#[path = "support/limits.rs"]
mod limits;

use elf::kernel;
use folder::Folder;
use hvkit_vmm::confine::Kind;
use hvkit_vmm::machine::address_map::VIRTIO_MMIO;
use kvm::has_kvm;
use limits::{CORE, FILES, Limit, limit};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No thread takes as long to confine itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// Open files at most: what `bound` of confine/limits.rs lowers the limit to.
const MOST_FILES: u64 = 4096;
/// Devices on windows of registers: a disk and sockets.
const DEVICES: u32 = 2;

/// What proc(5) says of a thread: `Seccomp` is 2 where a filter is in force, `Seccomp_filters` how many are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Confinement {
    seccomp: u32,
    no_new_privileges: u32,
    filters: u32,
}

const NONE: Confinement = Confinement {
    seccomp: 0,
    no_new_privileges: 0,
    filters: 0,
};

/// Filters of a thread of each kind: what is refused by an error and what is listed; the nursery also believes a call
/// absent, and whom it starts inherits its three.
fn filters(kind: Kind) -> u32 {
    match kind {
        Kind::Main | Kind::Vcpu | Kind::Watch | Kind::Control | Kind::Interrupts => 2,
        Kind::Nursery => 3,
        Kind::Device | Kind::Sockets => 5,
    }
}

fn confined(kind: Kind) -> Confinement {
    Confinement {
        seccomp: 2,
        no_new_privileges: 1,
        filters: filters(kind),
    }
}

/// A child that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Running(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for the guest's first byte.
    fn said(&mut self) {
        let mut byte = [0];
        let stdout = self.0.stdout.as_mut().unwrap();
        stdout.read_exact(&mut byte).unwrap();
    }

    /// Every thread, by its name and number, but for KVM's own (Linux, virt/kvm: "kvm-nx-lpage-recovery"), which run
    /// nothing of the process.
    fn threads(&self) -> BTreeMap<(String, u32), Confinement> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        tasks
            .map(|task| {
                let path = task.unwrap().path();
                let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                let status = fs::read_to_string(path.join("status")).unwrap();
                let of = |name: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_else(|| panic!("no {name} in {status}"))
                        .trim()
                };
                let number = |name: &str| of(name).parse().unwrap();
                let confinement = Confinement {
                    seccomp: number("Seccomp:"),
                    no_new_privileges: number("NoNewPrivs:"),
                    filters: number("Seccomp_filters:"),
                };
                ((of("Name:").to_owned(), id), confinement)
            })
            .filter(|((name, _), _)| !name.starts_with("kvm-"))
            .collect()
    }

    /// Waits until its threads are those of `expected`, by name, each confined as is said there.
    fn comes_to(&self, expected: &[(&str, Confinement)]) {
        let deadline = Instant::now() + PATIENCE;
        let mut expected: Vec<_> = expected
            .iter()
            .map(|(name, confinement)| ((*name).to_owned(), confinement.clone()))
            .collect();
        expected.sort_by(|one, other| one.0.cmp(&other.0));
        loop {
            let threads = self.threads().into_iter();
            let found: Vec<_> = threads.map(|((name, _), c)| (name, c)).collect();
            if found == expected {
                return;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "found {found:?}\nexpected {expected:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.stdin(Stdio::null());
    command
}

/// MOV DWORD [address], value.
fn store(address: u32, value: u32) -> Vec<u8> {
    let [address, value] = [address, value].map(u32::to_le_bytes);
    [&[0xc7, 0x05], address.as_slice(), &value].concat()
}

/// Switches the device at `base` on, with three queues of eight: "Virtio Over MMIO" (4.2), "Device Initialization".
fn switch_on(base: u32) -> Vec<u8> {
    // Acknowledged, a driver; version 1 (feature 32); the features are settled.
    let mut words = vec![(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xb)];
    for queue in 0..3 {
        // Tables in memory of their own, all zeros: nothing to do yet.
        let memory = 0x20_0000 + 0x1000 * queue;
        words.extend([(0x30, queue), (0x38, 8), (0x80, memory)]);
        words.extend([(0x90, memory + 0x400), (0xa0, memory + 0x800), (0x44, 1)]);
    }
    words.push((0x70, 0xf));
    let stores = words.into_iter().map(|(at, value)| store(base + at, value));
    stores.flatten().collect()
}

/// A kernel that switches every device on, says so by one byte on the serial line, and spins.
fn spinning() -> Vec<u8> {
    let base = u32::try_from(VIRTIO_MMIO.start).unwrap();
    let mut code = vec![0xfa]; // CLI
    for device in 0..DEVICES {
        code.extend(switch_on(base + 0x1000 * device));
    }
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee]); // OUT 0x3f8
    code.extend([0xeb, 0xfe]);
    kernel(&code)
}

/// A machine with a thread of every kind.
fn machine(folder: &Folder) -> Command {
    let mut command = vmm();
    let disk = folder.file("disk", &[0; 4096]);
    command.args(["--memory", "size=4M", "--cpus", "boot=2", "--watchdog"]);
    command.args(["--transport", "mmio", "--vtd", "--kernel"]);
    command.arg(folder.file("kernel", &spinning()));
    command.arg("--disk").arg(disk);
    let socket = |name: &str| folder.path(name).display().to_string();
    command.args(["--vsock", &format!("cid=3,socket={}", socket("vsock"))]);
    let log = format!("socket={},bitmap={}", socket("log"), socket("bitmap"));
    command.args(["--dirty-log", &log]);
    command
}

const THREADS: [(&str, Kind); 9] = [
    ("vmm", Kind::Main),
    ("vcpu0", Kind::Vcpu),
    ("vcpu1", Kind::Vcpu),
    ("blk-q0", Kind::Device),
    ("vsock", Kind::Sockets),
    ("watchdog", Kind::Watch),
    ("dirty-log", Kind::Control),
    ("interrupts", Kind::Interrupts),
    ("nursery", Kind::Nursery),
];

#[test]
fn every_thread_of_a_running_machine_is_filtered_and_the_process_bounded() {
    if !has_kvm() {
        return;
    }
    for kind in Kind::ALL {
        assert!(THREADS.iter().any(|(_, of)| *of == kind), "{kind:?}");
    }
    let folder = Folder::new();
    let mut running = Running::start(&mut machine(&folder));
    running.said();
    running.comes_to(&THREADS.map(|(name, kind)| (name, confined(kind))));

    let id = running.0.id();
    assert_eq!(limit(id, CORE), Limit { soft: 0, hard: 0 });
    let own = limit(std::process::id(), FILES);
    let expected = Limit {
        soft: own.soft.min(MOST_FILES),
        hard: own.hard.min(MOST_FILES),
    };
    assert_eq!(limit(id, FILES), expected);
    // Else this test could not tell.
    assert!(own.hard > MOST_FILES, "{own:?}");
}

#[test]
fn nothing_is_confined_where_that_was_asked() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut command = machine(&folder);
    let command = command.args(["--confine", "off"]).stderr(Stdio::null());
    let mut running = Running::start(command);
    running.said();
    running.comes_to(&THREADS.map(|(name, _)| (name, NONE)));
    let (id, own) = (running.0.id(), std::process::id());
    for what in [CORE, FILES] {
        assert_eq!(limit(id, what), limit(own, what), "{what}");
    }
}

#[test]
fn a_process_that_serves_a_disk_is_confined_before_it_answers() {
    for protocol in ["vhost-user", "vfio-user"] {
        for (chosen, main, nursery) in [
            ("on", confined(Kind::Device), confined(Kind::Nursery)),
            ("off", NONE, NONE),
        ] {
            let folder = Folder::new();
            let disk = folder.file("disk", &[0; 4096]);
            let socket = folder.path("socket");
            let mut command = vmm();
            command.args(["serve", "--protocol", protocol, "--confine", chosen]);
            command.arg("--disk").arg(disk).arg("--socket").arg(&socket);
            let running = Running::start(command.stderr(Stdio::null()));
            let deadline = Instant::now() + PATIENCE;
            let client = loop {
                match UnixStream::connect(&socket) {
                    Ok(client) => break client,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                thread::sleep(Duration::from_millis(20));
            };
            // The main thread is what serves: filters of its own, and none that a nursery left it.
            let main = Confinement {
                filters: main.filters.min(filters(Kind::Main)),
                ..main
            };
            running.comes_to(&[("vmm", main), ("nursery", nursery)]);
            let cores = limit(running.0.id(), CORE);
            let expected = match chosen {
                "on" => Limit { soft: 0, hard: 0 },
                _ => limit(std::process::id(), CORE),
            };
            assert_eq!(cores, expected, "{protocol} {chosen}");
            drop(client);
        }
    }
}
