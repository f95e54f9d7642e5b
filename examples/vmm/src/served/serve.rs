// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm serve`: a disk of ours for another VMM, in a process of its own.
//!
//! It serves one VMM, at a socket or by a device of this guest that carries the protocol, and ends when that hangs up.
//! Everything is opened before the VMM is heard; from then on the process has no files, and makes only the system calls
//! that a disk needs.

use crate::config::{Confinement, Disk};
use crate::confine::{ConfineError, Confiner, Kind, Nursery, Starter};
use crate::machine::stop::Stop;
use crate::machine::{DeviceError, disk};
use crate::peer::program::{Bridge, Function, ProgramError};
use crate::vfio_user;
use crate::vfio_user::server::{Events, GivenMemory};
use hvkit_virtio_devices::block::{Block, Metadata};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::listener::{ListenError, Listener};
use hvkit_virtio_devices::transport::pci::{PciError, VirtioPci};
use hvkit_virtio_devices::vhost_user::BackEnd;
use hvkit_virtio_devices::vhost_user::back_end::ServeError;
use hvkit_virtio_devices::worker::{Runner, Threads};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long the device that carries the protocol may take to be given back.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a disk is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DeviceError),
    /// The socket.
    #[error("serve: cannot listen at {}: {source}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device that carries the protocol.
    #[error("serve: {0}")]
    Carrying(#[from] ProgramError),
    /// The process cannot be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The VMM.
    #[error("serve: {0}")]
    Vmm(#[from] ServeError),
    /// The VMM, where it speaks vfio-user.
    #[error("serve: {0}")]
    Client(#[from] vfio_user::ServeError),
    /// The disk cannot be a PCI function.
    #[error("serve: {0}")]
    Function(#[from] PciError),
}

/// What is spoken with the VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Queues in shared memory; the VMM has the registers.
    #[default]
    VhostUser,
    /// A whole PCI function.
    VfioUser,
}

/// Serves `asked` to the first VMM that connects to `socket`, until it hangs up.
pub fn serve(
    asked: &Disk,
    socket: &Path,
    protocol: Protocol,
    confinement: Confinement,
) -> Result<(), ServingError> {
    let failed = |source| ServingError::Socket {
        socket: socket.to_path_buf(),
        source,
    };
    let disk = open(asked)?;
    let confiner = Confiner::new(confinement)?;
    let bound = Listener::bind(socket).map_err(|error| match error {
        ListenError::InUse => io::Error::new(io::ErrorKind::AddrInUse, error),
        ListenError::Host(source) => source,
    });
    let listener = bound.map_err(failed)?;
    // There is nothing else to wait for.
    listener.socket().set_nonblocking(false).map_err(failed)?;
    log::info!("{} is served at {}", asked.path.display(), socket.display());
    let accepted = listener.socket().accept();
    // Nobody else is served.
    drop(listener);
    let (stream, _) = accepted.map_err(failed)?;
    match protocol {
        Protocol::VhostUser => back_end(disk, stream, &confiner, |_| Ok(())),
        Protocol::VfioUser => function_of(disk, stream, &confiner),
    }
}

/// Serves `asked` to the first machine that connects to the device whose folder in sysfs is `device`, until it hangs up.
pub fn serve_by_device(
    asked: &Disk,
    device: &Path,
    confinement: Confinement,
) -> Result<(), ServingError> {
    let disk = open(asked)?;
    let confiner = Confiner::new(confinement)?;
    let function = Function::open(device)?;
    log::info!("{} is served by {}", asked.path.display(), device.display());
    Bridge::wait(&function)?;
    let (ours, theirs) = UnixStream::pair().map_err(ProgramError::Host)?;
    let bridge = Bridge::new(function, ours)?;
    let (done, is_done) = channel::<()>();
    let served = back_end(disk, theirs, &confiner, |starter| {
        let carry = move || {
            if let Err(error) = bridge.run() {
                log::error!("{error}");
            }
            drop(done);
        };
        let started = starter.start("bridge".to_owned(), Box::new(carry));
        Ok(started.map_err(ProgramError::Host)?)
    });
    // The device is reset before the process ends. Nothing is ever sent: this ends when the thread does.
    let _ = is_done.recv_timeout(PATIENCE);
    served
}

/// Opens the disk. The guest outlives this process, and is not told that another goes on with it: what was completed is to
/// be there.
fn open(asked: &Disk) -> Result<Block, DeviceError> {
    Ok(disk(asked, Metadata::WrittenThrough)?)
}

/// Serves `disk` to the VMM at the other end of `stream`; `carry` may start threads first.
fn back_end(
    disk: Block,
    stream: UnixStream,
    confiner: &Confiner,
    carry: impl FnOnce(&Starter) -> Result<(), ServingError>,
) -> Result<(), ServingError> {
    with_threads(confiner, |starter, threads| {
        let back_end = BackEnd::new(stream, Box::new(disk), threads, report);
        let back_end = back_end.map_err(lost)?;
        confiner.give_up_files(&[])?;
        carry(starter)?;
        confiner.enter(Kind::Device)?;
        Ok(back_end.run()?)
    })
}

/// Serves `disk` as a PCI function to the VMM at the other end of `stream`.
fn function_of(disk: Block, stream: UnixStream, confiner: &Confiner) -> Result<(), ServingError> {
    with_threads(confiner, |_, threads| {
        let (function, memory, events) = function(Box::new(disk), threads)?;
        let server = vfio_user::Server::new(stream, Box::new(function), memory, events);
        let server = server.map_err(lost)?;
        confiner.give_up_files(&[])?;
        confiner.enter(Kind::Device)?;
        Ok(server.run()?)
    })
}

/// Runs `serve` with what starts threads, which are confined.
fn with_threads(
    confiner: &Confiner,
    serve: impl FnOnce(&Starter, Box<dyn Runner>) -> Result<(), ServingError>,
) -> Result<(), ServingError> {
    let stop = Stop::new().map_err(lost)?;
    let nursery = Nursery::new(confiner, &stop)?;
    let starter = nursery.starter();
    let threads = starter.clone();
    let threads = Threads::new(move |name, body| threads.start(name, body));
    serve(&starter, Box::new(threads))
}

fn lost(source: io::Error) -> ServingError {
    ServingError::Vmm(ServeError::Connection(source))
}

fn report(why: &dyn std::error::Error) {
    log::error!("{why}");
}

type Served = (VirtioPci<GivenMemory>, GivenMemory, Arc<Events>);

/// `device` as a PCI function over memory that a client gives. Where it stands, addresses may be translated.
fn function(
    device: Box<dyn Device<GivenMemory>>,
    threads: Box<dyn Runner>,
) -> Result<Served, PciError> {
    let memory = GivenMemory::default();
    // A disk's transport asks for its vectors once.
    let mut events = Arc::new(Events::new(0));
    let vectors = |count| {
        events = Arc::new(Events::new(count));
        Ok::<_, PciError>(Arc::clone(&events) as _)
    };
    let function = VirtioPci::with_vectors(device, memory.clone(), threads, vectors)?
        .with_access_platform()
        .with_report(move |why| report(why))
        .with_trouble_report(move |why| report(why));
    Ok((function, memory, events))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Format;
    use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
    use hvkit_virtio_devices::fake::{ByHand, Driver, Vectors};
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::thread;
    use std::time::Instant;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// A request for sector 0 with 512 bytes at 0x9000, which is `data`; its status.
    fn request(block: Block, kind: u32, data: &GuestMemoryMmap<()>) -> u8 {
        let memory = Arc::new(data.clone());
        let (workers, vectors) = (ByHand::default(), Arc::new(Vectors::default()));
        let runner = Box::new(workers.clone());
        let function = VirtioPci::new(Box::new(block), Arc::clone(&memory), vectors, runner);
        let mut driver = Driver::probe(function.unwrap());
        driver.negotiate(u64::MAX);
        let mut ring = driver.queue(0, &memory, 0x1000, 16);
        assert_eq!(driver.set_status(0xf), 0xf);
        memory
            .write_slice(&u128::from(kind).to_le_bytes(), GuestAddress(0x8000))
            .unwrap();
        let moved = match kind {
            0 => Writable(0x9000, 512),
            _ => Readable(0x9000, 512),
        };
        ring.submit(&[Readable(0x8000, 16), moved, Writable(0xa000, 1)]);
        driver.kick(0);
        workers.step(10);
        assert!(ring.take().is_some());
        // As if the process were killed: nothing is written when this ends.
        std::mem::forget(driver);
        memory.read_obj(GuestAddress(0xa000)).unwrap()
    }

    #[test]
    fn the_socket_of_a_process_that_was_killed_is_taken_over_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk");
        std::fs::write(&image, [0; 4096]).unwrap();
        let socket = folder.path().join("socket");
        let asked = Disk::new(image);
        let serve_at = |socket: &Path| serve(&asked, socket, Protocol::VhostUser, Confinement::Off);
        // Somebody listens.
        let other = UnixListener::bind(&socket).unwrap();
        let error = serve_at(&socket).unwrap_err().to_string();
        assert!(error.ends_with("socket: in use, or no socket"), "{error}");
        // And is not disturbed by who only asked: it would take that for the VMM.
        other.set_nonblocking(true).unwrap();
        let kind = other.accept().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        // Dropped without being removed, as after SIGKILL.
        drop(other);
        thread::scope(|scope| {
            let serving = scope.spawn(|| serve_at(&socket));
            let begun = Instant::now();
            let client = loop {
                match UnixStream::connect(&socket) {
                    Ok(client) => break Some(client),
                    Err(_) if serving.is_finished() || begun.elapsed() > PATIENCE => break None,
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            };
            assert!(client.is_some(), "{:?}", serving.join());
            drop(client);
            let served = serving.join().unwrap();
            assert!(!matches!(served, Err(ServingError::Socket { .. })));
        });
        assert!(!socket.exists());
    }

    #[test]
    fn what_was_completed_is_there_for_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut image = Command::new("qemu-img");
        image.args(["create", "-q", "-f", "qcow2"]).arg(&path);
        assert!(image.arg("1M").status().unwrap().success());
        let asked = |path: &Path| Disk {
            format: Format::Qcow2,
            ..Disk::new(path.to_path_buf())
        };
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_slice(&[7; 512], GuestAddress(0x9000)).unwrap();
        assert_eq!(request(open(&asked(&path)).unwrap(), 1, &memory), 0);
        // The lock is the first one's.
        let next = folder.path().join("next");
        std::fs::copy(&path, &next).unwrap();
        memory.write_slice(&[0; 512], GuestAddress(0x9000)).unwrap();
        assert_eq!(request(open(&asked(&next)).unwrap(), 0, &memory), 0);
        let mut found = [0; 512];
        memory.read_slice(&mut found, GuestAddress(0x9000)).unwrap();
        assert_eq!(found, [7; 512]);
    }
}
