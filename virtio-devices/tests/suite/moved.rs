// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that is saved in the middle of its work, and goes on in another that its driver cannot tell from it.

use std::io::Read;
use std::sync::Arc;

use hvkit_virtio_devices::balloon::{Balloon, Options as BalloonOptions};
use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::console::{Console, Port};
use hvkit_virtio_devices::device::{ActivateError, Activation, Device, StateError};
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::ByHand;
use hvkit_virtio_devices::features::{DeviceType, Features};
use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits};
use hvkit_virtio_devices::net::{self, LinkState, Net, Wire};
use hvkit_virtio_devices::pci::{InterruptLine, Level};
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::transport::mmio::MmioState;
use hvkit_virtio_devices::transport::pci::{PciState, VirtioPci};
use hvkit_virtio_devices::transport::state::{RestoreError, SaveError, SessionState};
use hvkit_virtio_devices::vsock::Vsock;
use hvkit_virtio_devices::worker::Worker;
use vm_memory::{GuestAddress, Iommu as _, Permissions};

use crate::support::guest::{Bus, Guest, Memory, TRANSPORTS, Transport, on_bus, ring_at};
use crate::support::{END, header, image, pattern};

/// As it is saved on either transport.
#[derive(Clone, Debug)]
enum State {
    Pci(PciState),
    Mmio(MmioState),
}

impl State {
    fn session(&mut self) -> &mut SessionState {
        match self {
            State::Pci(state) => &mut state.session,
            State::Mmio(state) => &mut state.session,
        }
    }
}

fn save(guest: &Guest) -> Result<State, SaveError> {
    Ok(match &guest.bus {
        Bus::Pci(driver) => State::Pci(driver.function.save()?),
        Bus::Mmio(driver) => State::Mmio(driver.device.save()?),
    })
}

fn restore(guest: &mut Guest, state: &State) -> Result<(), RestoreError> {
    match (&mut guest.bus, state) {
        (Bus::Pci(driver), State::Pci(state)) => driver.function.restore(state),
        (Bus::Mmio(driver), State::Mmio(state)) => driver.device.restore(state),
        _ => panic!("another transport's"),
    }
}

/// A new device over the memory of `guest`, which was paused and saved, with all that it had.
pub(crate) fn moved(guest: &mut Guest, device: Box<dyn Device<Memory>>) -> Guest {
    guest.pause();
    let state = save(guest).unwrap();
    let transport = match guest.bus {
        Bus::Pci(_) => Transport::Pci,
        Bus::Mmio(_) => Transport::Mmio,
    };
    let mut new = Guest::in_memory(device, transport, guest.memory.clone());
    new.pause();
    restore(&mut new, &state).unwrap();
    // Registers answer as the old ones did; nothing runs before it is told to.
    assert_eq!(new.status(), guest.status());
    assert_eq!(new.workers.running(), 0);
    new.resume();
    new
}

/// Bytes that count up from `next`.
fn counting(next: u8) -> Box<dyn Device<Memory>> {
    struct Counting(u8);
    impl Read for Counting {
        fn read(&mut self, data: &mut [u8]) -> std::io::Result<usize> {
            for byte in &mut *data {
                (*byte, self.0) = (self.0, self.0.wrapping_add(1));
            }
            Ok(data.len())
        }
    }
    Box::new(Entropy::new(Counting(next)))
}

#[test]
fn chains_are_served_once_before_or_after() {
    for transport in TRANSPORTS {
        for features in [u64::MAX, 1 << 32, 1 << 32 | 1 << 35] {
            let mut guest = Guest::new(counting(0), transport);
            let mut rings = guest.start(features, &[0]);
            for round in 0..70u64 {
                rings[0].submit(&[Writable(0x8000 + 4 * round, 4)]);
                if round % 3 == 0 {
                    guest.run(0);
                }
                if round % 10 == 9 {
                    // What is available and was not served is, by the next one. It was not notified of it.
                    let served = round / 3 * 3 + 1;
                    guest = moved(&mut guest, counting((served * 4) as u8));
                    guest.step();
                }
                while rings[0].take().is_some() {}
            }
            guest.run(0);
            let expected: Vec<u8> = (0..280u32).map(|i| i as u8).collect();
            assert_eq!(guest.read(0x8000, 280), expected, "{transport:?}");
        }
    }
}

#[test]
fn packed_rings_go_on_where_they_were() {
    for transport in TRANSPORTS {
        let mut guest = Guest::new(counting(0), transport);
        let memory = guest.memory.clone();
        let mut ring = on_bus!(guest, driver => {
            driver.negotiate_packed(u64::MAX);
            driver.queue_packed(0, &memory, ring_at(0), 7)
        });
        assert_eq!(guest.set_status(0xf), 0xf);
        for round in 0..40u64 {
            ring.submit(&[Writable(0x8000 + round, 1)]);
            guest.run(0);
            assert_eq!(ring.take().unwrap().length, 1);
            guest = moved(&mut guest, counting(round as u8 + 1));
        }
        let expected: Vec<u8> = (0..40).collect();
        assert_eq!(guest.read(0x8000, 40), expected);
    }
}

#[test]
fn a_disk_s_interrupts_go_to_the_same_vectors_and_none_is_lost() {
    let file = image(64);
    let open = || Box::new(Block::open(Options::new(file.path())).unwrap());
    let mut guest = Guest::new(open(), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    // Served while its vector is masked: the interrupt is pending.
    on_bus_pci(&mut guest, |driver| {
        driver.put(driver.table, 16 + 12, 4, 1);
    });
    guest.write(0x8000, &header(0, 5));
    rings[0].submit(&[
        Readable(0x8000, 16),
        Writable(0xa000, 512),
        Writable(0x9000, 1),
    ]);
    guest.run(0);
    assert_eq!(guest.read(0xa000, 512), pattern(5 * 512, 512));
    guest.pause();
    let state = save(&guest).unwrap();
    let State::Pci(saved) = &state else {
        panic!("on PCI");
    };
    let vector = saved.interrupts.vectors[1];
    assert_eq!(
        (vector.message.address, vector.message.data),
        (0xfee0_0000, 1)
    );
    assert!(vector.masked && vector.pending);
    assert_eq!(saved.session.status, 0xf);
    let position = Position {
        available: 1,
        used: 1,
    };
    assert_eq!(saved.session.queues[0].position, Some(position));
    let memory = guest.memory.clone();
    // The image is locked for as long as the old device has it.
    drop(guest);
    let mut guest = Guest::in_memory(open(), Transport::Pci, memory);
    guest.pause();
    restore(&mut guest, &state).unwrap();
    guest.resume();
    assert!(guest.vectors.delivered().is_empty());
    on_bus_pci(&mut guest, |driver| {
        driver.put(driver.table, 16 + 12, 4, 0);
    });
    assert_eq!(guest.vectors.delivered(), [1]);
    guest.write(0x8000, &header(1, 6));
    guest.write(0xa000, &[0x77; 512]);
    rings[0].take();
    rings[0].submit(&[
        Readable(0x8000, 16),
        Readable(0xa000, 512),
        Writable(0x9000, 1),
    ]);
    guest.run(0);
    assert_eq!(
        std::fs::read(file.path()).unwrap()[6 * 512..7 * 512],
        [0x77; 512]
    );
    assert_eq!(guest.vectors.delivered(), [1]);
}

type OnPci = hvkit_virtio_devices::fake::Driver<VirtioPci<Memory>>;

fn on_bus_pci(guest: &mut Guest, act: impl FnOnce(&mut OnPci)) {
    let Bus::Pci(driver) = &mut guest.bus else {
        panic!("on PCI");
    };
    act(driver);
}

#[test]
fn devices_keep_what_is_their_own() {
    for transport in TRANSPORTS {
        let memory = crate::support::memory();
        let balloon = || {
            let pages = Arc::new(HostPages::new(memory.clone()));
            Balloon::new(BalloonOptions::new(), pages).unwrap()
        };
        let old = balloon();
        let control = old.control();
        let mut guest = Guest::in_memory(Box::new(old), transport, memory.clone());
        guest.start(u64::MAX, &[0, 1, 2]);
        control.set_target(100);
        guest.set_config(4, &50u32.to_le_bytes());
        let new = balloon();
        let control = new.control();
        let mut guest = moved(&mut guest, Box::new(new));
        assert_eq!((control.target(), control.actual()), (100, 50));
        assert_eq!(guest.config(0, 8), 50 << 32 | 100);

        let net = || {
            let (wire, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
            wire.set_nonblocking(true).unwrap();
            (
                Net::new(net::Options::new(), Wire::Frames(wire.into())),
                other,
            )
        };
        let (old, _end) = net();
        old.link().set(LinkState::Down);
        let mut guest = Guest::new(Box::new(old), transport);
        guest.start(u64::MAX, &[0, 1]);
        let (new, _end) = net();
        let link = new.link();
        let mut guest = moved(&mut guest, Box::new(new));
        assert_eq!(link.state(), LinkState::Down);
        assert_eq!(guest.config(6, 2), 0);

        // A message that the driver had no buffer for: the addition of the port.
        let console = || {
            let ports = ["p", "q"].map(|name| Port::new(name, std::io::sink()));
            Box::new(Console::new(ports.into()).unwrap())
        };
        let mut guest = Guest::new(console(), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1, 2, 3]);
        guest.write(0x8000, &[0, 0, 0, 0, 0, 0, 1, 0]);
        rings[3].submit(&[Readable(0x8000, 8)]);
        guest.run(3);
        let mut guest = moved(&mut guest, console());
        rings[2].submit(&[Writable(0x9000, 64)]);
        guest.run(2);
        assert_eq!(rings[2].take().unwrap().length, 8);
        assert_eq!(guest.read(0x9000, 8), [0, 0, 0, 0, 1, 0, 0, 0]);
    }
}

#[test]
fn sockets_are_told_that_their_connections_are_gone() {
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let vsock = |name: &str| Box::new(Vsock::new(3, &folder.path().join(name)).unwrap());
        let mut guest = Guest::new(vsock("a"), transport);
        let mut rings = guest.start(u64::MAX, &[0, 1, 2]);
        rings[2].submit(&[Writable(0x8000, 4)]);
        guest.write(0x8000, &[0xee; 4]);
        guest.run(2);
        assert_eq!(rings[2].take(), None);
        let guest = moved(&mut guest, vsock("b"));
        guest.step();
        // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
        assert_eq!(rings[2].take().unwrap().length, 4);
        assert_eq!(guest.read(0x8000, 4), [0; 4]);
    }
}

#[test]
fn what_does_not_stand_still_or_cannot_be_kept_is_not_saved() {
    for transport in TRANSPORTS {
        let mut guest = Guest::new(counting(0), transport);
        guest.start(u64::MAX, &[0]);
        assert!(matches!(save(&guest), Err(SaveError::Running)));
        guest.workers.set_stuck(true);
        guest.pause();
        assert!(matches!(save(&guest), Err(SaveError::Running)));
        let mut guest = Guest::new(Box::new(NoState), transport);
        guest.pause();
        let error = save(&guest).unwrap_err();
        assert!(matches!(error, SaveError::Device(StateError::Unsaveable)));
    }
}

/// A device whose state is elsewhere.
struct NoState;

impl Device<Memory> for NoState {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn config_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(
        &mut self,
        _activation: Activation<Memory>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        Ok(Vec::new())
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Vec<u8>, StateError> {
        Err(StateError::Unsaveable)
    }
}

#[test]
fn an_iommu_maps_what_it_mapped() {
    let at = GuestAddress(0x1234);
    for transport in TRANSPORTS {
        let iommu = || {
            let iommu = Iommu::new(Limits::default(), AtBoot::Block).unwrap();
            let endpoint = iommu.add_endpoint(0x18, Vec::new()).unwrap();
            (Box::new(iommu), endpoint)
        };
        let (device, _) = iommu();
        let mut guest = Guest::new(device, transport);
        let mut rings = guest.start(u64::MAX, &[0, 1]);
        // ATTACH endpoint 0x18 to domain 1; MAP there 0x1000 to 0x1fff to 0x87000, to be read.
        guest.write(0x8000, &[1, 0, 0, 0, 1, 0, 0, 0, 0x18, 0, 0, 0]);
        let words = [0x1_0000_0003, 0x1000, 0x1fff, 0x8_7000];
        let map = words.into_iter().flat_map(u64::to_le_bytes);
        let map: Vec<u8> = map.chain([1, 0, 0, 0]).collect();
        guest.write(0x8100, &map);
        for (request, length) in [(0x8000, 20), (0x8100, 36)] {
            guest.write(0x9000, &[0xee; 4]);
            rings[0].submit(&[Readable(request, length), Writable(0x9000, 4)]);
            guest.run(0);
            assert!(rings[0].take().is_some());
            assert_eq!(guest.read(0x9000, 4), [0; 4]);
        }
        let (device, endpoint) = iommu();
        assert!(endpoint.translate(at, 4, Permissions::Read).is_err());
        let guest = moved(&mut guest, device);
        let found: Vec<_> = endpoint
            .translate(at, 4, Permissions::Read)
            .unwrap()
            .collect();
        assert_eq!(found[0].base, GuestAddress(0x8_7234));
        assert!(endpoint.translate(at, 4, Permissions::Write).is_err());
        drop(guest);
    }
}

/// A state that somebody has changed is refused, each time for what it is, and the device is as it was.
#[test]
fn a_state_is_not_believed() {
    type Change = fn(&mut SessionState);
    let changes: [(&str, Change); 11] = [
        ("a device of type 5", |s| s.device_type = 5),
        ("0 queues", |s| s.queues.clear()),
        ("features 0x1", |s| s.accepted = 1),
        ("features 0xffff", |s| s.accepted = u64::MAX),
        ("status 0x1f", |s| s.status |= 0x10),
        ("status 0x7", |s| s.status = 7),
        ("queue 0 of 3 descriptors", |s| s.queues[0].config.size = 3),
        ("queue 0 of 512 descriptors", |s| {
            s.queues[0].config.size = 512;
        }),
        ("queue 0", |s| s.queues[0].config.descriptor_area = END),
        ("queue 0", |s| {
            s.queues[0].position = Some(Position {
                available: 5,
                used: 4,
            });
        }),
        ("1 bytes of a device's own state", |s| s.device = vec![1]),
    ];
    for transport in TRANSPORTS {
        let mut guest = Guest::new(counting(0), transport);
        let mut rings = guest.start(!(1 << 34), &[0]);
        guest.pause();
        let good = save(&guest).unwrap();
        let mut new = Guest::in_memory(counting(0), transport, guest.memory.clone());
        // Not paused; then wrong; then, all the same, right.
        assert!(matches!(restore(&mut new, &good), Err(RestoreError::InUse)));
        new.pause();
        for (expected, change) in changes {
            let mut wrong = good.clone();
            change(wrong.session());
            let error = restore(&mut new, &wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}, expected {expected}");
            assert_eq!(new.status(), 0);
        }
        if let State::Pci(state) = &good {
            let mut wrong = state.clone();
            wrong.interrupts.vectors.pop();
            let error = restore(&mut new, &State::Pci(wrong)).unwrap_err();
            assert!(
                error.to_string().contains("1 vectors in the state"),
                "{error}"
            );
            let mut wrong = state.clone();
            wrong.config.truncate(64);
            let error = restore(&mut new, &State::Pci(wrong)).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("64 bytes of configuration space")
            );
        }
        restore(&mut new, &good).unwrap();
        assert!(matches!(restore(&mut new, &good), Err(RestoreError::InUse)));
        new.resume();
        rings[0].submit(&[Writable(0x8000, 4)]);
        new.run(0);
        assert_eq!(rings[0].take().unwrap().length, 4);
        // A device that has failed stays so until its driver resets it.
        let mut failed = good.clone();
        failed.session().status |= 0x40;
        let mut new = Guest::in_memory(counting(0), transport, guest.memory.clone());
        new.pause();
        restore(&mut new, &failed).unwrap();
        new.resume();
        assert_eq!((new.status(), new.workers.running()), (0x4f, 0));
        assert_eq!(new.set_status(0), 0);
    }
}

/// Driver and device agree on what has changed: "CONFIG_CHANGED" of whichever transport, and the generation.
#[test]
fn a_round_of_hints_is_over_and_the_driver_is_told() {
    for transport in TRANSPORTS {
        for masked in [0, 1] {
            let memory = crate::support::memory();
            let balloon = || {
                let pages = Arc::new(HostPages::new(memory.clone()));
                Balloon::new(BalloonOptions::new().with_free_page_hints(), pages).unwrap()
            };
            let old = balloon();
            let control = old.control();
            let mut guest = Guest::in_memory(Box::new(old), transport, memory.clone());
            let mut rings = guest.start(u64::MAX, &[0, 1, 2, 3]);
            control.ask_hints();
            let id = guest.config(8, 4) as u32;
            guest.write(0x8000, &id.to_le_bytes());
            rings[3].submit(&[Readable(0x8000, 4)]);
            guest.run(3);
            // The driver has heard of all that was news before, and masks the vector, or not.
            let generation = match &mut guest.bus {
                Bus::Pci(driver) => {
                    driver.put(driver.table, 12, 4, masked);
                    driver.get(driver.isr, 0, 1);
                    driver.get(driver.common, 0x15, 1)
                }
                Bus::Mmio(driver) => {
                    driver.put(0x064, 3);
                    driver.get(0x0fc).into()
                }
            };
            guest.vectors.take();
            let mut guest = moved(&mut guest, Box::new(balloon()));
            assert_eq!(guest.config(8, 4), 1, "VIRTIO_BALLOON_CMD_ID_DONE");
            match &mut guest.bus {
                Bus::Pci(driver) => {
                    assert_ne!(driver.get(driver.common, 0x15, 1), generation);
                    assert_eq!(driver.get(driver.isr, 0, 1) & 2, 2, "ISR status");
                    if masked == 1 {
                        assert_eq!(driver.get(driver.pending, 0, 1), 1);
                        driver.put(driver.table, 12, 4, 0);
                    }
                    assert_eq!(guest.vectors.delivered(), [0]);
                }
                Bus::Mmio(driver) => {
                    assert_ne!(u64::from(driver.get(0x0fc)), generation);
                    assert_eq!(driver.get(0x060), 2, "InterruptStatus");
                }
            }
        }
    }
}

/// A link that is down because the wire ended is up where the wire is whole; one that the VMM took down stays down.
#[test]
fn a_link_is_down_no_longer_than_its_cause() {
    let net = || {
        let (wire, end) = std::os::unix::net::UnixStream::pair().unwrap();
        let wire = Wire::Stream(net::FrameStream::new(wire).unwrap());
        (Net::new(net::Options::new(), wire), end)
    };
    for transport in TRANSPORTS {
        for taken_down in [false, true] {
            let (old, end) = net();
            let old_link = old.link();
            let mut guest = Guest::new(Box::new(old), transport);
            // Without VIRTIO_NET_F_GUEST_ANNOUNCE, of which there would be news in any case.
            let mut rings = guest.start(!(1 << 21), &[0, 1]);
            if taken_down {
                old_link.set(LinkState::Down);
            }
            drop(end);
            rings[0].submit(&[Writable(0x8000, 2000)]);
            guest.run(0);
            assert_eq!(old_link.state(), LinkState::Down);
            assert_eq!(guest.config(6, 2), 0);
            if let Bus::Mmio(driver) = &mut guest.bus {
                driver.put(0x064, 3);
            }
            let (new, _end) = net();
            let link = new.link();
            let mut guest = moved(&mut guest, Box::new(new));
            let (state, status) = match taken_down {
                true => (LinkState::Down, 0),
                false => (LinkState::Up, 1),
            };
            assert_eq!((link.state(), guest.config(6, 2)), (state, status));
            match &mut guest.bus {
                Bus::Pci(_) => assert_eq!(guest.vectors.delivered().contains(&0), !taken_down),
                Bus::Mmio(driver) => assert_eq!(driver.get(0x060) & 2 != 0, !taken_down),
            }
            // A cause that there is not.
            let error = Device::<Memory>::restore(&mut net().0, &[4]).unwrap_err();
            assert_eq!(error, StateError::Content { at: 0 });
            // What the wire's end took down, nobody can set up; what the VMM did, it can.
            old_link.set(LinkState::Up);
            assert_eq!(old_link.state(), LinkState::Down);
            link.set(LinkState::Up);
            assert_eq!(guest.config(6, 2), 1);
        }
    }
}

/// "Gratuitous Packet Sending" (5.1.6.5.4): switches learn where the guest is now from what it sends.
#[test]
fn a_card_that_was_moved_asks_its_driver_to_announce_itself() {
    let net = |pairs: usize| {
        let wires = (0..pairs).map(|_| {
            let (wire, end) = std::os::unix::net::UnixDatagram::pair().unwrap();
            wire.set_nonblocking(true).unwrap();
            (Wire::Frames(wire.into()), end)
        });
        let (wires, ends): (Vec<_>, Vec<_>) = wires.unzip();
        let net = Net::with_pairs(net::Options::new(), wires).unwrap();
        (Box::new(net), ends)
    };
    for transport in TRANSPORTS {
        for pairs in [1, 2] {
            let control = 2 * pairs as u16;
            // VIRTIO_NET_F_GUEST_ANNOUNCE, and a driver without it.
            for (features, announces) in [(u64::MAX, true), (!(1 << 21), false)] {
                let (old, _ends) = net(pairs);
                let mut guest = Guest::new(old, transport);
                let mut rings = guest.start(features, &[0, 1, control]);
                assert_eq!(guest.config(6, 2), 1, "VIRTIO_NET_S_LINK_UP alone");
                if let Bus::Mmio(driver) = &mut guest.bus {
                    driver.put(0x064, 3);
                }
                let (new, _ends) = net(pairs);
                let mut guest = moved(&mut guest, new);
                let told = match &mut guest.bus {
                    Bus::Pci(_) => guest.vectors.delivered().contains(&0),
                    Bus::Mmio(driver) => driver.get(0x060) & 2 != 0,
                };
                // VIRTIO_NET_S_ANNOUNCE is 2.
                let status = if announces { 3 } else { 1 };
                assert_eq!((told, guest.config(6, 2)), (announces, status));
                // VIRTIO_NET_CTRL_ANNOUNCE_ACK, which has no data.
                guest.write(0x8000, &[3, 0]);
                guest.write(0x9000, &[0xee]);
                rings[2].submit(&[Readable(0x8000, 2), Writable(0x9000, 1)]);
                guest.run(control);
                assert_eq!(rings[2].take().unwrap().length, 1);
                let ack = if announces { 0 } else { 1 };
                assert_eq!(guest.read(0x9000, 1), [ack]);
                assert_eq!(guest.config(6, 2), 1);
            }
            // The next driver has not been moved, and who is down has nobody to tell.
            let (old, _ends) = net(pairs);
            old.link().set(LinkState::Down);
            let mut guest = Guest::new(old, transport);
            guest.start(u64::MAX, &[0, 1]);
            let (new, _ends) = net(pairs);
            let link = new.link();
            let mut guest = moved(&mut guest, new);
            assert_eq!(guest.config(6, 2), 0);
            link.set(LinkState::Up);
            assert_eq!(guest.config(6, 2), 1);
            let (again, _ends) = net(pairs);
            let mut guest = moved(&mut guest, again);
            assert_eq!(guest.config(6, 2), 3);
            guest.start(u64::MAX, &[0, 1]);
            assert_eq!(guest.config(6, 2), 1);
        }
    }
}

/// What an interrupt line was set to.
#[derive(Default)]
struct Levels(std::sync::Mutex<Vec<Level>>);

impl InterruptLine for Levels {
    fn set(&self, level: Level) {
        self.0.lock().unwrap().push(level);
    }
}

/// "ISR status" (4.1.4.5) has bit 1 with MSI-X too, and the pin is not used then.
#[test]
fn the_pin_of_a_function_that_sends_messages_stays_down() {
    for (msix, isr, disabled, last) in [
        (true, 2, false, Level::Deasserted),
        (true, 3, true, Level::Deasserted),
        (false, 1, true, Level::Deasserted),
        (false, 1, false, Level::Asserted),
    ] {
        let mut guest = Guest::new(counting(0), Transport::Pci);
        guest.start(u64::MAX, &[0]);
        guest.pause();
        let State::Pci(mut state) = save(&guest).unwrap() else {
            unreachable!()
        };
        state.interrupts.isr = isr;
        // Interrupt Disable, bit 10 of the command.
        state.config[5] |= if disabled { 4 } else { 0 };
        if !msix {
            // MSI-X Enable, bit 15 of Message Control, in the capability of identity 0x11.
            let mut at = usize::from(state.config[0x34]);
            while state.config[at] != 0x11 {
                at = state.config[at + 1].into();
            }
            state.config[at + 3] &= 0x7f;
        }
        let levels = Arc::new(Levels::default());
        let mut new = VirtioPci::new(
            counting(0),
            guest.memory.clone(),
            guest.vectors.clone(),
            Box::<ByHand>::default(),
        )
        .unwrap()
        .with_interrupt_line(levels.clone());
        new.pause();
        levels.0.lock().unwrap().clear();
        new.restore(&state).unwrap();
        let set = levels.0.lock().unwrap().clone();
        assert!(
            set.iter().all(|level| *level == last),
            "{msix} {isr}: {set:?}"
        );
        assert_eq!(set.last(), Some(&last));
    }
}
