// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk whose driver does anything at all, in any order: it neither panics nor runs on, and once it is reset
//! it is as good as new.

use std::time::{Duration, Instant};

use hvkit_virtio_devices::block::Options;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::pci::PciFunction;
use proptest::prelude::*;

use crate::support::{END, Machine, header, image, pattern};

/// Something a driver can do.
#[derive(Clone, Debug)]
enum Action {
    Config(u16, Vec<u8>),
    ReadConfig(u16),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    /// A word anywhere in the queue, or in what it points at.
    Memory(u64, Vec<u8>),
    /// The honest path, so that the dishonest ones get far.
    Start(u64),
    Submit(Vec<(u64, u32, bool)>),
    Offer(u16),
    Kick,
    Step,
}

const RING: u64 = 0x1000;

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(0u8), 2 => Just(1), 2 => Just(0xff), 3 => any::<u8>()];
    prop::collection::vec(byte, 1..=most)
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 1..16usize]
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let place = prop_oneof![
        6 => 0..0x40u64,
        1 => 0x1000..0x1008u64,
        1 => 0x2000..0x2048u64,
        2 => 0x3000..0x3010u64,
        3 => 0x4000..0x4040u64,
        1 => 0x5000..0x5010u64,
        1 => any::<u64>(),
    ];
    let address = prop_oneof![
        4 => (0u64..8).prop_map(|i| 0x8000 + 512 * i),
        2 => (0u64..16).prop_map(|i| RING + 16 * i),
        1 => (0u64..16).prop_map(|i| END - 8 + i),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        2 => Just(16u32), 3 => Just(512), 3 => Just(1), 1 => Just(0), 1 => Just(20), 1 => Just(u32::MAX),
        2 => 0..5000u32,
    ];
    let chain = prop::collection::vec((address, length, any::<bool>()), 0..6);
    let features = prop_oneof![3 => Just(u64::MAX), 1 => Just(1 << 32), 1 => any::<u64>().prop_map(|f| f | 1 << 32)];
    prop_oneof![
        2 => (0..256u16, bytes(8)).prop_map(|(at, data)| Config(at, data)),
        1 => (0..256u16).prop_map(ReadConfig),
        6 => (place.clone(), bytes(8)).prop_map(|(at, data)| Write(at, data)),
        3 => (place, width()).prop_map(|(at, width)| Read(at, width)),
        4 => (RING..RING + 0x3000, bytes(16)).prop_map(|(at, data)| Memory(at, data)),
        3 => features.prop_map(Start),
        5 => chain.prop_map(Submit),
        1 => any::<u16>().prop_map(Offer),
        5 => Just(Kick),
        5 => Just(Step),
    ]
}

fn well_formed(machine: &mut Machine) {
    let mut ring = machine.start(u64::MAX);
    machine.write(0x8000, &header(0, 5));
    ring.submit(&[
        Readable(0x8000, 16),
        Writable(0x1_0000, 512),
        Writable(0x9000, 1),
    ]);
    machine.run();
    assert_eq!(ring.take().map(|used| used.length), Some(513));
    assert_eq!(machine.read(0x1_0000, 512), pattern(5 * 512, 512));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn nothing_a_driver_does_wedges_the_disk(actions in prop::collection::vec(action(), 1..80)) {
        let file = image(16);
        let options = Options::new(file.path());
        let mut machine = Machine::with_disk(options.with_access(hvkit_virtio_devices::block::Access::ReadOnly));
        let mut ring = machine.start(u64::MAX);
        for action in actions {
            let function = &mut machine.driver.function;
            match action {
                Action::Config(at, data) => function.config_write(at, &data),
                Action::ReadConfig(at) => function.config_read(at, &mut [0; 4]),
                Action::Write(at, data) => function.bar_write(0, at, &data),
                Action::Read(at, width) => function.bar_read(0, at, &mut vec![0; width]),
                Action::Memory(at, data) => machine.write(at, &data),
                Action::Start(features) => {
                    machine.driver.set_status(0);
                    ring = machine.start(features);
                }
                Action::Submit(chain) => {
                    machine.write(0x8000, &header(0, 0));
                    let chain: Vec<_> = chain
                        .into_iter()
                        .map(|(address, length, write)| match write {
                            true => Writable(address, length),
                            false => Readable(address, length),
                        })
                        .collect();
                    ring.submit(&chain);
                }
                Action::Offer(head) => ring.offer(head),
                Action::Kick => machine.driver.kick(0),
                Action::Step => {
                    let before = Instant::now();
                    let rounds = machine.workers.step(3000);
                    prop_assert!(rounds < 3000, "the worker does not come to rest");
                    prop_assert!(before.elapsed() < Duration::from_secs(10), "hangs");
                }
            }
        }
        // Wedged would be: a reset that does not complete, or a disk that does not work after it.
        prop_assert_eq!(machine.driver.set_status(0), 0);
        machine.driver.function.config_write(4, &6u16.to_le_bytes());
        well_formed(&mut machine);
    }
}
