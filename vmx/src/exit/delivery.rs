// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two events at once. SDM Vol. 3A, "Interrupt 8: Double Fault Exception (#DF)", "Conditions for Generating a Double
//! Fault".

use hvkit_vmcs::event::{Event, EventKind};

/// What becomes of an exception that came while another event was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The second is delivered; an exception that came first comes again by itself, an interrupt must be kept.
    Second,
    /// A double fault, with error code 0, instead of both.
    DoubleFault,
    /// A triple fault: the processor shuts down.
    TripleFault,
}

impl Delivery {
    /// The double fault, to inject with error code 0: [`Guest::inject`](super::Guest::inject) drops that in real mode.
    pub const DOUBLE_FAULT: Event = Event::new(EventKind::HARDWARE_EXCEPTION, 8).with_error_code();
}

/// The classes of the table "Interrupt and Exception Classes".
#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(event: Event) -> Class {
    match (event.kind(), event.vector()) {
        (EventKind::HARDWARE_EXCEPTION, 8) => Class::DoubleFault,
        // #DE, #TS, #NP, #SS, #GP, #CP
        (EventKind::HARDWARE_EXCEPTION, 0 | 10..=13 | 21) => Class::Contributory,
        // #PF, #VE
        (EventKind::HARDWARE_EXCEPTION, 14 | 20) => Class::PageFault,
        _ => Class::Benign,
    }
}

/// What a processor does with exception `second` during delivery of `first`.
pub const fn combine(first: Event, second: Event) -> Delivery {
    match (class(first), class(second)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
            Delivery::TripleFault
        }
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => Delivery::DoubleFault,
        _ => Delivery::Second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manuals_table() {
        let fault = |vector| Event::new(EventKind::HARDWARE_EXCEPTION, vector);
        let benign = [
            Event::new(EventKind::EXTERNAL_INTERRUPT, 14),
            Event::new(EventKind::NMI, 2),
            Event::new(EventKind::SOFTWARE_EXCEPTION, 3),
            Event::new(EventKind::SOFTWARE_INTERRUPT, 13),
            fault(1),
            fault(6),
            fault(7),
            fault(16),
            fault(17),
            fault(18),
            fault(19),
        ];
        let contributory = [0, 10, 11, 12, 13, 21].map(fault);
        let page = [14, 20].map(fault);
        let all = || benign.into_iter().chain(contributory).chain(page);
        for first in benign {
            assert!(all().all(|second| combine(first, second) == Delivery::Second));
        }
        for first in contributory {
            for second in contributory {
                assert_eq!(combine(first, second), Delivery::DoubleFault);
            }
            assert!(
                page.iter()
                    .all(|&second| combine(first, second) == Delivery::Second)
            );
        }
        for first in page {
            for second in contributory.into_iter().chain(page) {
                assert_eq!(combine(first, second), Delivery::DoubleFault);
            }
        }
        for second in contributory.into_iter().chain(page) {
            assert_eq!(combine(fault(8), second), Delivery::TripleFault);
        }
        for second in benign {
            assert_eq!(combine(fault(8), second), Delivery::Second);
        }
        assert_eq!(Delivery::DOUBLE_FAULT.0, 0x8000_0b08);
    }
}
