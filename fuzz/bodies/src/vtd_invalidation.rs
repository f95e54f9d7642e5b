// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VT-d invalidation descriptors and page requests, as a driver or a device writes them into a queue.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_vtd_iommu::spec::invalidation::{Descriptor, DescriptorError, RawDescriptor};
use hvkit_vtd_iommu::spec::page_request::PageRequest;

/// What lies in a slot of a queue.
#[derive(Arbitrary, Debug)]
enum Slot {
    /// Any words.
    Words([u64; 4]),
    /// Words that begin with a type, and have little else: most random words are refused at once.
    Typed {
        kind: u8,
        low: u64,
        high: u64,
        keep: u8,
    },
    /// What a driver of this crate writes.
    Descriptor(Descriptor),
    /// What a unit of this crate writes.
    PageRequest(PageRequest),
}

/// What must hold of any words.
fn look(raw: RawDescriptor) {
    match Descriptor::decode(raw) {
        Ok(descriptor) => {
            // What is read and written again is the same, and differs from the words in ignored fields only.
            let again = descriptor.encode();
            assert_eq!(again.kind(), raw.kind());
            assert_eq!(again.high, 0);
            assert_eq!(Descriptor::decode(again), Ok(descriptor));
            assert_eq!(RawDescriptor::from_wide(again.wide()), again);
            assert_eq!(RawDescriptor::from_narrow(again.narrow()), again);
        }
        Err(DescriptorError::Kind { kind }) => {
            assert_eq!(kind, raw.kind());
            assert!(!(1..=9).contains(&kind));
        }
        Err(DescriptorError::Reserved { kind, low, high }) => {
            assert_eq!(kind, raw.kind());
            assert!(low != 0 || high != 0);
            assert_eq!((low & !raw.low, high), (0, raw.high));
        }
        Err(DescriptorError::Granularity { kind, granularity }) => {
            assert_eq!(kind, raw.kind());
            assert!(granularity < 4);
        }
    }
}

/// Reads what `data` puts into a queue.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let Ok(slot) = Slot::arbitrary(&mut input) else {
            break;
        };
        match slot {
            Slot::Words(words) => {
                look(RawDescriptor::from_wide(words));
                if let Ok(request) = PageRequest::decode(words) {
                    assert_eq!(PageRequest::decode(request.encode()), Ok(request));
                }
            }
            Slot::Typed {
                kind,
                low,
                high,
                keep,
            } => {
                let mask = u64::MAX.checked_shl(u32::from(keep)).unwrap_or(0);
                let low = low & mask & !0xe0f | u64::from(kind & 0xf);
                look(RawDescriptor::from_narrow([low, high & mask]));
            }
            Slot::Descriptor(descriptor) => {
                let raw = descriptor.encode();
                let read = Descriptor::decode(raw).expect("what is written can be read");
                assert_eq!(read.encode(), raw);
            }
            Slot::PageRequest(request) => {
                let words = request.encode();
                let read = PageRequest::decode(words).expect("what is written can be read");
                assert_eq!(read.encode(), words);
            }
        }
    }
}
