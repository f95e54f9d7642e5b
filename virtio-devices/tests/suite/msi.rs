// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI: the capability's words, and what reaches the VMM of what software writes there.

use std::sync::Arc;

use hvkit_virtio_devices::fake::{Event, Refuse, Vectors};
use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_virtio_devices::pci::msi::{AddressWidth, CountError, Msi};
use proptest::prelude::*;

use Event::{Masked, Routed};

fn msi(count: u16, width: AddressWidth) -> (Msi, Arc<Vectors>) {
    let vectors = Arc::new(Vectors::default());
    (Msi::new(count, width, vectors.clone()).unwrap(), vectors)
}

fn routed(vector: u16, address: u64, data: u32) -> Event {
    Routed(vector, MsiMessage { address, data })
}

#[test]
fn the_number_of_vectors_is_a_power_of_two_up_to_32() {
    let vectors = Arc::new(Vectors::default());
    for count in [0, 3, 31, 33, 64, u16::MAX] {
        let error = Msi::new(count, AddressWidth::Bits64, vectors.clone()).unwrap_err();
        assert_eq!(error, CountError { count });
    }
    for count in [1, 2, 4, 8, 16, 32] {
        assert_eq!(msi(count, AddressWidth::Bits32).0.count(), count);
    }
}

#[test]
fn the_capability_is_laid_out_as_in_the_figures() {
    // Eight vectors: multiple message capable is 3.
    let (narrow, _) = msi(8, AddressWidth::Bits32);
    let (body, writable) = narrow.capability();
    assert_eq!(body, [0x06, 0x00, 0, 0, 0, 0, 0, 0]);
    assert_eq!(writable, [0x71, 0x00, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let (wide, _) = msi(1, AddressWidth::Bits64);
    let (body, writable) = wide.capability();
    assert_eq!(body, [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        writable,
        [
            0x71, 0x00, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
        ]
    );
}

#[test]
fn vectors_share_an_address_and_differ_in_the_low_bits_of_the_data() {
    let (mut msi, vectors) = msi(8, AddressWidth::Bits64);
    // Enabled, four of the eight in use; address 0x1_fee0_1000, data 0x4d.
    let body = [0xa7, 0, 0x03, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x4d, 0];
    msi.set(&body);
    let messages = [0x4c, 0x4d, 0x4e, 0x4f];
    let expected: Vec<_> = (0..4)
        .map(|v| routed(v, 0x1_fee0_1000, messages[usize::from(v)]))
        .collect();
    assert_eq!(vectors.take(), expected);
    assert_eq!(msi.in_use(), 4);
    // The same again is no news.
    msi.set(&body);
    assert_eq!(vectors.take(), []);
    // Two in use: the other two are masked, and the data keeps its second bit.
    msi.set(&[0x97, 0, 0x00, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x4e, 0]);
    assert_eq!(
        vectors.take(),
        [
            routed(0, 0x1_fee0_1000, 0x4e),
            routed(1, 0x1_fee0_1000, 0x4f),
            Masked(2),
            Masked(3)
        ]
    );
    msi.set(&[0x96, 0, 0x00, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x4e, 0]);
    assert_eq!(vectors.take(), [Masked(0), Masked(1)]);
    assert_eq!(msi.in_use(), 0);
}

#[test]
fn a_narrow_address_has_the_data_behind_it() {
    let (mut msi, vectors) = msi(1, AddressWidth::Bits32);
    msi.set(&[0x01, 0, 0x00, 0x20, 0xe0, 0xfe, 0x31, 0x40]);
    assert_eq!(vectors.take(), [routed(0, 0xfee0_2000, 0x4031)]);
}

#[test]
fn more_vectors_than_there_are_is_all_of_them() {
    for in_use in [0x50, 0x60, 0x70] {
        let (mut msi, _) = msi(2, AddressWidth::Bits32);
        msi.set(&[0x03 | in_use, 0, 0, 0x20, 0xe0, 0xfe, 0, 0]);
        assert_eq!(msi.in_use(), 2, "{in_use:#x}");
    }
}

#[test]
fn a_message_that_is_refused_leaves_the_vector_masked_not_with_its_old_one() {
    let (mut msi, vectors) = msi(1, AddressWidth::Bits32);
    msi.set(&[0x01, 0, 0, 0x20, 0xe0, 0xfe, 0x31, 0]);
    vectors.refuse(Refuse::Everything);
    msi.set(&[0x01, 0, 0, 0x20, 0xe0, 0xfe, 0x32, 0]);
    assert_eq!(msi.in_use(), 0);
    vectors.refuse(Refuse::Nothing);
    vectors.take();
    // The next write tries again.
    msi.set(&[0x01, 0, 0, 0x20, 0xe0, 0xfe, 0x32, 0]);
    assert_eq!(vectors.take(), [routed(0, 0xfee0_2000, 0x32)]);
}

proptest! {
    /// Whatever is written: as many vectors as were asked for, none beyond, all with one address.
    #[test]
    fn any_words(
        log in 0u32..6,
        writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..16), 1..8),
    ) {
        let count = 1u16 << log;
        let (mut msi, vectors) = msi(count, AddressWidth::Bits64);
        for body in writes {
            msi.set(&body);
            let control = body.first().copied().unwrap_or(0);
            let asked = if control & 1 == 0 { 0 } else { 1u16 << (control >> 4 & 7) };
            prop_assert_eq!(msi.in_use(), asked.min(count));
            for event in vectors.take() {
                let vector = match event {
                    Routed(vector, message) => {
                        prop_assert_eq!(message.address & 3, 0);
                        prop_assert_eq!(message.data & u32::from(asked.min(count) - 1), u32::from(vector));
                        vector
                    }
                    Masked(vector) => vector,
                    other => return Err(TestCaseError::fail(format!("{other:?}"))),
                };
                prop_assert!(vector < count);
            }
        }
    }
}
