// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI-X: table and pending bits at every offset and width, masks, and what reaches the VMM.

use std::sync::Arc;

use hvkit_virtio_devices::fake::{Event, Refuse, Vectors};
use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_virtio_devices::pci::msix::{CountError, Msix, Place};
use proptest::prelude::*;

use Event::{Delivered, Masked, Routed};

const ENABLE: u16 = 0x8000;
const FUNCTION_MASK: u16 = 0x4000;

fn msix(count: u16) -> (Msix, Arc<Vectors>) {
    let vectors = Arc::new(Vectors::default());
    (Msix::new(count, vectors.clone()).unwrap(), vectors)
}

/// One vector, unmasked, enabled, with a message.
fn live() -> (Msix, Arc<Vectors>) {
    let (mut msix, vectors) = msix(1);
    msix.table_write(
        0,
        &[
            0x00, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0,
        ],
    );
    msix.set_control(ENABLE);
    vectors.take();
    (msix, vectors)
}

const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_1000,
    data: 0x41,
};

fn pending(msix: &Msix) -> u64 {
    let mut raw = [0; 8];
    msix.pending_read(0, &mut raw);
    u64::from_le_bytes(raw)
}

fn mask(msix: &mut Msix, vector: u64, masked: u32) {
    msix.table_write(16 * vector + 12, &masked.to_le_bytes());
}

#[test]
fn the_number_of_vectors_has_limits() {
    let vectors = Arc::new(Vectors::default());
    for count in [0, 2049, u16::MAX] {
        assert_eq!(
            Msix::new(count, vectors.clone()).unwrap_err(),
            CountError { count }
        );
    }
    for (count, table, bits) in [
        (1, 16, 8),
        (64, 1024, 8),
        (65, 1040, 16),
        (2048, 32768, 256),
    ] {
        let (msix, _) = msix(count);
        assert_eq!(
            (msix.count(), msix.table_length(), msix.pending_length()),
            (count, table, bits)
        );
    }
}

#[test]
fn the_capability_is_laid_out_as_in_the_figure() {
    let (msix, _) = msix(5);
    let (body, writable) = msix.capability(
        Place {
            bar: 0,
            offset: 0x4000,
        },
        Place {
            bar: 4,
            offset: 0x12_3450,
        },
    );
    // Table size less one; offsets with the register in the low three bits.
    assert_eq!(body, [0x04, 0, 0x00, 0x40, 0, 0, 0x54, 0x34, 0x12, 0]);
    assert_eq!(writable, [0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn after_reset_every_vector_is_masked() {
    let (msix, vectors) = msix(3);
    let mut table = [0xee; 64];
    msix.table_read(0, &mut table);
    let entry = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(table[..48], entry.repeat(3));
    assert_eq!(table[48..], [0; 16], "beyond the table");
    assert_eq!(pending(&msix), 0);
    assert_eq!(vectors.take(), []);
}

/// Every offset around a table of 3, every width: the table is 48 bytes of which the two low address bits
/// and 31 bits of vector control are 0, and nothing else is touched or reached.
#[test]
fn table_writes_split_over_fields_and_end_at_the_table() {
    let settable = [
        0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
    ];
    for control in [0, ENABLE, ENABLE | FUNCTION_MASK] {
        for offset in (0..4096u64).chain([u64::MAX - 8, u64::MAX - 1, u64::MAX]) {
            for width in [1usize, 2, 4, 8] {
                let (mut msix, _) = msix(3);
                msix.set_control(control);
                let mut expected = [0u8; 48];
                msix.table_read(0, &mut expected);
                msix.table_write(offset, &[0x5f; 8][..width]);
                for i in 0..width as u64 {
                    if let Some(at) = offset.checked_add(i).filter(|at| *at < 48) {
                        expected[at as usize] = 0x5f & settable[at as usize % 16];
                    }
                }
                let mut table = [0; 48];
                msix.table_read(0, &mut table);
                assert_eq!(table, expected, "{width} bytes at {offset:#x}");
            }
        }
    }
}

#[test]
fn reads_of_any_shape_agree_and_stop_at_the_end() {
    let (mut msix, _) = msix(70);
    for vector in 0..70u64 {
        let image: Vec<u8> = (0..16).map(|i| (vector * 16 + i) as u8).collect();
        msix.table_write(16 * vector, &image);
    }
    mask(&mut msix, 5, 1);
    mask(&mut msix, 69, 1);
    msix.set_control(ENABLE | FUNCTION_MASK);
    msix.trigger(5);
    msix.trigger(69);
    let mut table = vec![0; 70 * 16];
    msix.table_read(0, &mut table);
    let mut bits = vec![0; 16];
    msix.pending_read(0, &mut bits);
    assert_eq!(bits, [0x20, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0]);
    for offset in (0..4096u64).chain([u64::MAX - 4, u64::MAX / 8, u64::MAX]) {
        for width in [1, 2, 4, 8] {
            let mut data = [0xee; 8];
            for (whole, pending) in [(&table, false), (&bits, true)] {
                let data = &mut data[..width];
                if pending {
                    msix.pending_read(offset, data);
                } else {
                    msix.table_read(offset, data);
                }
                for (i, byte) in data.iter().enumerate() {
                    let at = usize::try_from(offset).unwrap().checked_add(i);
                    let expected = at.and_then(|at| whole.get(at)).copied().unwrap_or(0);
                    assert_eq!(
                        *byte, expected,
                        "{width} bytes at {offset:#x}, pending {pending}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_vector_is_routed_when_it_goes_live_and_masked_when_it_ceases() {
    let (mut msix, vectors) = msix(2);
    msix.table_write(0, &0xfee0_1000u64.to_le_bytes());
    msix.table_write(8, &0x41u32.to_le_bytes());
    mask(&mut msix, 0, 0);
    assert_eq!(vectors.take(), [], "MSI-X is not enabled");
    msix.set_control(ENABLE | FUNCTION_MASK);
    assert_eq!(vectors.take(), [], "the function is masked");
    msix.set_control(ENABLE);
    assert_eq!(vectors.take(), [Routed(0, MESSAGE)]);
    msix.set_control(ENABLE);
    assert_eq!(vectors.take(), [], "nothing changed");
    mask(&mut msix, 0, 1);
    mask(&mut msix, 0, 1);
    assert_eq!(vectors.take(), [Masked(0)]);
    mask(&mut msix, 0, 0xffff_fffe);
    assert_eq!(
        vectors.take(),
        [Routed(0, MESSAGE)],
        "only bit 0 is the mask"
    );
    msix.set_control(ENABLE | FUNCTION_MASK);
    assert_eq!(vectors.take(), [Masked(0)]);
    msix.set_control(ENABLE);
    msix.set_control(0);
    assert_eq!(vectors.take(), [Routed(0, MESSAGE), Masked(0)]);
}

#[test]
fn a_message_that_changes_is_routed_again_once_a_write() {
    let (mut msix, vectors) = live();
    msix.table_write(0, &0xfee0_2000_0000_0000u64.to_le_bytes());
    let moved = MsiMessage {
        address: 0xfee0_2000_0000_0000,
        data: 0x41,
    };
    assert_eq!(vectors.take(), [Routed(0, moved)]);
    msix.table_write(0, &0xfee0_2000_0000_0000u64.to_le_bytes());
    assert_eq!(vectors.take(), [], "the same message");
    // Data and control in one write.
    msix.table_write(8, &[0x42, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        vectors.take(),
        [Routed(
            0,
            MsiMessage {
                data: 0x42,
                ..moved
            }
        )]
    );
    msix.table_write(8, &[0x43, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(vectors.take(), [Masked(0)]);
}

#[test]
fn one_write_may_cover_several_entries() {
    let (mut msix, vectors) = msix(3);
    msix.set_control(ENABLE);
    msix.table_write(0, &[0; 64]);
    let routed = [0, 1, 2].map(|vector| Routed(vector, MsiMessage::default()));
    assert_eq!(vectors.take(), routed);
}

#[test]
fn what_cannot_be_delivered_is_pending_until_it_can() {
    let (mut msix, vectors) = live();
    msix.trigger(0);
    assert_eq!(vectors.take(), [Delivered(0)]);
    mask(&mut msix, 0, 1);
    vectors.take();
    msix.trigger(0);
    msix.trigger(0);
    assert_eq!((vectors.take(), pending(&msix)), (vec![], 1));
    // Any write that leaves it masked leaves it pending.
    msix.table_write(8, &[9]);
    msix.table_write(0, &0u64.to_le_bytes());
    assert_eq!((vectors.take(), pending(&msix)), (vec![], 1));
    mask(&mut msix, 0, 0);
    let message = MsiMessage {
        address: 0,
        data: 9,
    };
    assert_eq!(
        vectors.take(),
        [Routed(0, message), Delivered(0)],
        "once, however often"
    );
    assert_eq!(pending(&msix), 0);

    msix.set_control(ENABLE | FUNCTION_MASK);
    vectors.take();
    msix.trigger(0);
    assert_eq!((vectors.take(), pending(&msix)), (vec![], 1));
    msix.set_control(ENABLE);
    assert_eq!(vectors.take(), [Routed(0, message), Delivered(0)]);
}

#[test]
fn pending_bits_cannot_be_written_and_end_with_msix() {
    let (mut msix, vectors) = live();
    mask(&mut msix, 0, 1);
    msix.trigger(0);
    assert_eq!(pending(&msix), 1);
    msix.set_control(0);
    assert_eq!(pending(&msix), 0);
    msix.trigger(0);
    assert_eq!(pending(&msix), 0, "the pin is in use");
    msix.set_control(ENABLE);
    vectors.take();
    mask(&mut msix, 0, 0);
    assert_eq!(vectors.take(), [Routed(0, MESSAGE)]);
}

#[test]
fn vectors_that_do_not_exist_do_nothing() {
    let (mut msix, vectors) = live();
    for vector in [1, 2, 2047, 2048, 0xfffe, 0xffff] {
        msix.trigger(vector);
    }
    assert_eq!((vectors.take(), pending(&msix)), (vec![], 0));
}

#[test]
fn what_the_host_refuses_is_tried_again_when_the_driver_touches_the_vector() {
    let (mut msix, vectors) = live();
    vectors.refuse(Refuse::Deliveries);
    msix.trigger(0);
    assert_eq!(pending(&msix), 1);
    vectors.refuse(Refuse::Nothing);
    mask(&mut msix, 0, 0);
    assert_eq!((vectors.take(), pending(&msix)), (vec![Delivered(0)], 0));

    vectors.refuse(Refuse::Everything);
    msix.table_write(8, &[7]);
    msix.trigger(0);
    // Not routed, so not delivered: the fake would panic.
    assert_eq!((vectors.take(), pending(&msix)), (vec![], 1));
    vectors.refuse(Refuse::Nothing);
    mask(&mut msix, 0, 0);
    let message = MsiMessage { data: 7, ..MESSAGE };
    assert_eq!(
        (vectors.take(), pending(&msix)),
        (vec![Routed(0, message), Delivered(0)], 0)
    );
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, Vec<u8>),
    Control(u16),
    Trigger(u16),
}

fn action() -> impl Strategy<Value = Action> {
    let bytes = prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 1..24);
    prop_oneof![
        (0..72u64, bytes).prop_map(|(offset, data)| Action::Write(offset, data)),
        prop_oneof![Just(ENABLE), Just(ENABLE | FUNCTION_MASK), any::<u16>()]
            .prop_map(Action::Control),
        (0..5u16).prop_map(Action::Trigger),
    ]
}

proptest! {
    /// Whatever a driver does: the VMM's view is the table's, and no interrupt is lost or made up.
    #[test]
    fn the_other_side_sees_what_the_registers_say(actions in prop::collection::vec(action(), 1..60)) {
        let (mut msix, vectors) = msix(4);
        let mut routed = [None; 4];
        let mut owed = [false; 4];
        for action in actions {
            let triggered = match action {
                Action::Write(offset, data) => { msix.table_write(offset, &data); None }
                Action::Control(control) => { msix.set_control(control); None }
                Action::Trigger(vector) => { msix.trigger(vector); Some(vector) }
            };
            if let Some(vector) = triggered.filter(|v| *v < 4 && msix.is_enabled()) {
                owed[usize::from(vector)] = true;
            }
            for event in vectors.take() {
                match event {
                    Routed(vector, message) => routed[usize::from(vector)] = Some(message),
                    Masked(vector) => routed[usize::from(vector)] = None,
                    Delivered(vector) => {
                        prop_assert!(owed[usize::from(vector)], "made up");
                        owed[usize::from(vector)] = false;
                    }
                }
            }
            if !msix.is_enabled() {
                owed = [false; 4];
            }
            let mut control = [0; 10];
            control.copy_from_slice(&msix.capability(Place { bar: 0, offset: 0 }, Place { bar: 0, offset: 0 }).0);
            let control = u16::from_le_bytes([control[0], control[1]]);
            for vector in 0..4usize {
                let mut entry = [0; 16];
                msix.table_read(16 * vector as u64, &mut entry);
                let address = u64::from_le_bytes(entry[..8].try_into().unwrap());
                let data = u32::from_le_bytes(entry[8..12].try_into().unwrap());
                let live = control & 0xc000 == 0x8000 && entry[12] & 1 == 0;
                prop_assert_eq!(routed[vector], live.then_some(MsiMessage { address, data }));
                prop_assert_eq!(pending(&msix) >> vector & 1 == 1, owed[vector]);
                prop_assert!(!(live && owed[vector]), "live and not delivered");
            }
        }
    }
}

#[test]
fn reset_leaves_nothing_of_what_was_written() {
    let (mut msix, vectors) = live();
    msix.reset();
    assert_eq!(vectors.take(), [Masked(0)]);
    assert!(!msix.is_enabled());
    let mut entry = [0xff; 16];
    msix.table_read(0, &mut entry);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    msix.set_control(ENABLE);
    assert_eq!(vectors.take(), []);
}
