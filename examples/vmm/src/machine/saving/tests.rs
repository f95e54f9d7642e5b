// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine on this host's own KVM, saved at a moment that a test chooses.

#[path = "../../../tests/support/elf.rs"]
mod elf;
#[path = "../../../tests/support/kvm.rs"]
mod kvm;

use super::super::stop::StopReason;
use super::super::threads::VcpuThreads;
use super::super::{Machine, Stop};
use crate::bus::BusDevice;
use crate::config::{Config, Confinement, Serial};
use crate::snapshot::SnapshotError;
use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PORT: u16 = 0x9000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Says that the guest is here, waits for the signal by which vCPUs are made to stand still, and only then switches off.
struct SlowSwitch {
    here: Sender<()>,
    stop: Stop,
}

impl BusDevice for SlowSwitch {
    fn read(&mut self, _: u64, _: &mut [u8]) {}

    fn write(&mut self, _: u64, _: &[u8]) {
        self.here.send(()).unwrap();
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut [], Some(&patience)), Err(Errno::INTR));
        self.stop.ask(StopReason::PowerOff);
    }
}

#[test]
fn a_machine_that_switched_itself_off_meanwhile_is_not_saved() {
    if !kvm::has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    let [low, high] = PORT.to_le_bytes();
    // MOV DX, port; OUT DX, AL; JMP to itself.
    let code = [0x66, 0xba, low, high, 0xee, 0xeb, 0xfe];
    std::fs::write(&kernel, elf::kernel(&code)).unwrap();
    let to = folder.path().join("saved");
    let config = Config {
        memory: 4 << 20,
        serial: Serial::Off,
        confinement: Confinement::Off,
        snapshot: Some(to.clone()),
        ..Config::new(kernel)
    };
    let Machine {
        vcpus,
        platform,
        vm,
        mut saving,
        stop,
        confiner,
        ..
    } = Machine::new(&config).unwrap();
    let (here, is_here) = channel();
    let switch = SlowSwitch {
        here,
        stop: stop.clone(),
    };
    let switch = Arc::new(Mutex::new(switch));
    let ports = &platform.buses().ports;
    ports.insert(PORT.into(), 1, switch).unwrap();
    let threads = VcpuThreads::start(vcpus, &confiner, &stop).unwrap();
    platform.chipset().resume();
    is_here.recv_timeout(PATIENCE).unwrap();
    let saved = saving.save(&vm, &threads, &platform, None);
    // If it was, it stands still.
    threads.go_on();
    stop.ask(StopReason::Quit);
    threads.join().unwrap();
    let over = SnapshotError::Over {
        reason: StopReason::PowerOff,
    };
    assert_eq!(saved.unwrap_err().to_string(), over.to_string());
    assert_eq!(
        over.to_string(),
        "it has come to its end: the guest powered off"
    );
    let manifest = std::fs::metadata(to.join("manifest.json")).unwrap();
    assert_eq!(manifest.len(), 0);
}
