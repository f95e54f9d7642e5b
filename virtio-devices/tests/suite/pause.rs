// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A live device that is not to run: because it masters no bus, or because the VMM has paused it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::fake::{Driver, Ring, Vectors};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::transport::pci::VirtioPci;
use hvkit_virtio_devices::transport::state::SaveError;
use hvkit_virtio_devices::worker::{Runner, Running, StartError, Stopped, Threads, Worker};
use vm_memory::{Bytes, GuestAddress};

use crate::support::guest::{Bus, Guest, Memory, TRANSPORTS, Transport};

fn guest(transport: Transport) -> Guest {
    Guest::new(Box::new(Entropy::new(std::io::repeat(7))), transport)
}

fn set_command(guest: &mut Guest, command: u16) {
    let Bus::Pci(driver) = &mut guest.bus else {
        panic!("a command register is PCI's");
    };
    driver.function.config_write(4, &command.to_le_bytes());
}

#[test]
fn without_bus_master_nothing_is_read_or_written() {
    let mut guest = guest(Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    assert_eq!(guest.workers.running(), 1);
    set_command(&mut guest, 2);
    assert_eq!(guest.workers.running(), 0);
    rings[0].submit(&[Writable(0x8000, 4)]);
    guest.run(0);
    assert_eq!(rings[0].take(), None);
    assert_eq!(guest.read(0x8000, 4), [0; 4]);
    set_command(&mut guest, 6);
    // Without another notification: the one that came is still there.
    guest.step();
    assert_eq!(rings[0].take().unwrap().length, 4);
    assert_eq!(guest.read(0x8000, 4), [7; 4]);
}

#[test]
fn a_device_that_goes_live_without_bus_master_waits() {
    let mut guest = guest(Transport::Pci);
    set_command(&mut guest, 2);
    let mut rings = guest.start(u64::MAX, &[0]);
    assert_eq!(guest.workers.running(), 0);
    rings[0].submit(&[Writable(0x8000, 4)]);
    guest.run(0);
    assert_eq!(rings[0].take(), None);
    // A reset forgets the workers that never ran.
    assert_eq!(guest.set_status(0), 0);
    set_command(&mut guest, 6);
    assert_eq!(guest.workers.running(), 0);
    let mut rings = guest.start(u64::MAX, &[0]);
    rings[0].submit(&[Writable(0x8000, 4)]);
    guest.run(0);
    assert_eq!(rings[0].take().unwrap().length, 4);
}

#[test]
fn without_bus_master_no_message_is_sent_and_none_is_lost() {
    let mut guest = guest(Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    guest.vectors.take();
    // The device finds that the driver broke the rules just when it may not say so.
    rings[0].offer(999);
    guest.kick(0);
    set_command(&mut guest, 2);
    guest.step();
    assert!(guest.vectors.delivered().is_empty());
    set_command(&mut guest, 6);
    guest.step();
    assert_eq!(guest.vectors.delivered(), [0], "the configuration's vector");
    assert_ne!(guest.status() & 0x40, 0);
}

#[test]
fn a_pause_holds_and_a_resume_goes_on() {
    for transport in TRANSPORTS {
        let mut guest = guest(transport);
        let mut rings = guest.start(u64::MAX, &[0]);
        guest.pause();
        guest.pause();
        rings[0].submit(&[Writable(0x8000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take(), None);
        guest.resume();
        guest.step();
        assert_eq!(rings[0].take().unwrap().length, 4);
        // A reset while paused is complete, and the pause goes on.
        guest.pause();
        assert_eq!(guest.set_status(0), 0);
        let mut rings = guest.start(u64::MAX, &[0]);
        rings[0].submit(&[Writable(0x8000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take(), None);
        guest.resume();
        guest.step();
        assert_eq!(rings[0].take().unwrap().length, 4);
    }
}

#[test]
fn both_reasons_must_end() {
    let mut guest = guest(Transport::Pci);
    guest.start(u64::MAX, &[0]);
    set_command(&mut guest, 2);
    let Bus::Pci(driver) = &mut guest.bus else {
        panic!("on PCI");
    };
    driver.function.pause();
    driver.function.resume();
    assert_eq!(guest.workers.running(), 0);
    set_command(&mut guest, 6);
    assert_eq!(guest.workers.running(), 1);
}

/// A worker that is in a call when it is to stop goes on afterwards, as if nobody had asked: Linux's driver of a disk does
/// not come back from DEVICE_NEEDS_RESET.
#[test]
fn a_worker_that_does_not_stop_in_time_goes_on() {
    for transport in TRANSPORTS {
        let mut guest = guest(transport);
        let mut rings = guest.start(u64::MAX, &[0]);
        for again in 0..3 {
            guest.workers.set_stuck(true);
            guest.pause();
            guest.resume();
            guest.workers.set_stuck(false);
            assert_eq!(guest.status(), 0xf);
            rings[0].submit(&[Writable(0x8000, 4)]);
            guest.run(0);
            assert_eq!(rings[0].take().unwrap().length, 4, "{again}");
            // One that has stopped meanwhile is started.
            guest.workers.set_stuck(true);
            guest.pause();
            guest.workers.set_stuck(false);
            guest.resume();
            rings[0].submit(&[Writable(0x8000, 4)]);
            guest.run(0);
            assert_eq!(rings[0].take().unwrap().length, 4, "{again}");
        }
        assert!(guest.told.lock().unwrap().is_empty());
        assert_eq!(guest.set_status(0), 0);
    }
}

/// The same by threads: a machine that cannot be saved now, because the host's storage hangs, goes on when it answers.
#[test]
fn a_pause_that_came_to_nothing_costs_the_guest_nothing() {
    let (mut feed, source) = UnixStream::pair().unwrap();
    let threads =
        Threads::new(|name, body| std::thread::Builder::new().name(name).spawn(body).map(drop));
    let memory = crate::support::memory();
    let device = Box::new(Entropy::new(source));
    let vectors = Arc::new(Vectors::default());
    let function = VirtioPci::new(device, memory.clone(), vectors, Box::new(threads)).unwrap();
    let mut driver = Driver::probe(function);
    driver.negotiate(u64::MAX);
    let mut ring = driver.queue(0, &memory, 0x1000, 16);
    driver.set_status(0xf);
    for round in 1..=3u8 {
        // Its worker is in a call that returns when there are 4 bytes to read.
        ring.submit(&[Writable(0x8000, 4)]);
        driver.kick(0);
        std::thread::sleep(Duration::from_millis(100));
        driver.function.pause();
        assert!(matches!(driver.function.save(), Err(SaveError::Running)));
        driver.function.resume();
        assert_eq!(driver.status(), 0xf);
        feed.write_all(&[round; 8]).unwrap();
        // That request, and one that comes after it.
        ring.submit(&[Writable(0x8004, 4)]);
        driver.kick(0);
        let before = Instant::now();
        let mut taken = 0;
        while taken < 2 {
            assert!(before.elapsed() < Duration::from_secs(60), "no answer");
            taken += usize::from(ring.take().is_some());
            std::thread::yield_now();
        }
        let mut data = [0; 8];
        memory.read_slice(&mut data, GuestAddress(0x8000)).unwrap();
        assert_eq!(data, [round; 8]);
    }
    // And now it can be saved.
    driver.function.pause();
    driver.function.save().unwrap();
}

fn is_saved(guest: &Guest) -> bool {
    let saved = match &guest.bus {
        Bus::Pci(driver) => driver.function.save().map(drop),
        Bus::Mmio(driver) => driver.device.save().map(drop),
    };
    assert!(matches!(saved, Ok(()) | Err(SaveError::Running)));
    saved.is_ok()
}

/// A worker that was too late for one pause is there for the next, also if nothing was resumed between them.
#[test]
fn a_second_pause_takes_the_late_worker_back() {
    for transport in TRANSPORTS {
        let mut guest = guest(transport);
        let mut rings = guest.start(u64::MAX, &[0]);
        guest.workers.set_stuck(true);
        guest.pause();
        assert!(!is_saved(&guest));
        guest.workers.set_stuck(false);
        guest.pause();
        assert!(is_saved(&guest));
        guest.resume();
        rings[0].submit(&[Writable(0x8000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take().unwrap().length, 4);
    }
}

/// So is one that was too late for a driver that let go of the function, as one does before a reboot.
#[test]
fn a_pause_without_bus_master_takes_the_late_worker_back() {
    let mut guest = guest(Transport::Pci);
    guest.start(u64::MAX, &[0]);
    guest.workers.set_stuck(true);
    set_command(&mut guest, 2);
    guest.pause();
    assert!(!is_saved(&guest));
    guest.resume();
    guest.workers.set_stuck(false);
    guest.pause();
    assert!(is_saved(&guest));
}

/// Random bytes whose owner has something to do at the end, which takes a while.
struct Ending(Arc<AtomicBool>);

impl Read for Ending {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        bytes.fill(7);
        Ok(bytes.len())
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(200));
        self.0.store(true, Ordering::Release);
    }
}

/// An image has tables to write when it is closed: a process that ends after its devices must find that done.
#[test]
fn who_drops_a_device_waits_for_the_end_of_its_workers() {
    let ended = Arc::<AtomicBool>::default();
    let threads =
        Threads::new(|name, body| std::thread::Builder::new().name(name).spawn(body).map(drop));
    let memory = crate::support::memory();
    let device = Box::new(Entropy::new(Ending(Arc::clone(&ended))));
    let vectors = Arc::new(Vectors::default());
    let function = VirtioPci::new(device, memory.clone(), vectors, Box::new(threads)).unwrap();
    let mut driver = Driver::probe(function);
    driver.negotiate(u64::MAX);
    driver.queue(0, &memory, 0x1000, 16);
    driver.set_status(0xf);
    drop(driver);
    assert!(ended.load(Ordering::Acquire));
}

/// Who runs a worker, neither has it go on nor gives it back.
struct Lost;

impl Runner for Lost {
    fn start(&mut self, _worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        Ok(Box::new(Lost))
    }
}

impl Running for Lost {
    fn request_stop(&mut self) {}

    fn stopped(&mut self, _patience: Duration) -> Stopped {
        Stopped::NotYet
    }

    fn go_on(&mut self) -> bool {
        false
    }
}

#[test]
fn a_worker_that_neither_goes_on_nor_comes_back_is_told() {
    let memory = crate::support::memory();
    let device = Box::new(Entropy::new(std::io::repeat(7)));
    let told = Arc::<Mutex<Vec<String>>>::default();
    let report = Arc::clone(&told);
    let function = VirtioPci::new(
        device,
        memory.clone(),
        Arc::new(Vectors::default()),
        Box::new(Lost),
    );
    let function = function
        .unwrap()
        .with_report(move |why| report.lock().unwrap().push(why.to_string()));
    let mut driver = Driver::probe(function);
    driver.negotiate(u64::MAX);
    driver.queue(0, &memory, 0x1000, 16);
    driver.set_status(0xf);
    driver.function.pause();
    driver.function.resume();
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(
        *told.lock().unwrap(),
        ["1 workers neither go on nor come back"]
    );
}

/// Who runs a worker, finds it gone when it has been asked for it so often in vain.
struct Vanishing(u32);

impl Runner for Vanishing {
    fn start(&mut self, _worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        Ok(Box::new(Vanishing(self.0)))
    }
}

impl Running for Vanishing {
    fn request_stop(&mut self) {}

    fn stopped(&mut self, _patience: Duration) -> Stopped {
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                Stopped::NotYet
            }
            None => Stopped::Gone,
        }
    }

    fn go_on(&mut self) -> bool {
        false
    }
}

/// What the VMM was told.
type Told = Arc<Mutex<Vec<String>>>;

/// A function with a source of random bytes that is run by `runner`, and what the VMM was told.
fn entropy(
    source: impl Read + Send + 'static,
    runner: Box<dyn Runner>,
) -> (Driver<VirtioPci<Memory>>, Ring, Told) {
    let memory = crate::support::memory();
    let told = Told::default();
    let report = Arc::clone(&told);
    let vectors = Arc::new(Vectors::default());
    let device = Box::new(Entropy::new(source));
    let function = VirtioPci::new(device, memory.clone(), vectors, runner).unwrap();
    let function = function.with_report(move |why| report.lock().unwrap().push(why.to_string()));
    let mut driver = Driver::probe(function);
    driver.negotiate(u64::MAX);
    let ring = driver.queue(0, &memory, 0x1000, 16);
    driver.set_status(0xf);
    (driver, ring, told)
}

/// Nobody knows where its queue is: whoever began at the start would serve a disk's old writes again.
#[test]
fn a_worker_that_is_gone_is_told_and_saved_as_a_failure() {
    // Found when it is paused; when it is to go on; and when it does not.
    for in_vain in 0..3 {
        let (mut driver, _ring, told) = entropy(std::io::empty(), Box::new(Vanishing(in_vain)));
        driver.function.pause();
        if in_vain > 0 {
            assert!(matches!(driver.function.save(), Err(SaveError::Running)));
            driver.function.resume();
            driver.function.pause();
        }
        assert_eq!(driver.status(), 0x4f);
        assert_eq!(driver.function.save().unwrap().session.status, 0x4f);
        assert_eq!(*told.lock().unwrap(), ["1 workers are gone"]);
        // A reset is the way out, and nothing is told twice.
        driver.function.resume();
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
        assert_eq!(told.lock().unwrap().len(), 1);
    }
}

/// Random bytes that are none; says so first.
struct Panicking(Sender<()>);

impl Read for Panicking {
    fn read(&mut self, _bytes: &mut [u8]) -> std::io::Result<usize> {
        self.0.send(()).unwrap();
        panic!("on purpose");
    }
}

#[test]
fn a_worker_that_panicked_is_told_when_the_driver_lets_go_of_the_function() {
    let threads =
        Threads::new(|name, body| std::thread::Builder::new().name(name).spawn(body).map(drop));
    let (tell, asked) = channel();
    let (mut driver, mut ring, told) = entropy(Panicking(tell), Box::new(threads));
    ring.submit(&[Writable(0x8000, 4)]);
    driver.kick(0);
    asked.recv_timeout(Duration::from_secs(60)).unwrap();
    driver.function.config_write(4, &2u16.to_le_bytes());
    assert_eq!(*told.lock().unwrap(), ["1 workers are gone"]);
    driver.function.pause();
    assert_eq!(driver.function.save().unwrap().session.status, 0x4f);
    // One that is gone keeps no reset waiting, and is nothing to a driver that begins anew.
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert_eq!(told.lock().unwrap().len(), 1);
}
