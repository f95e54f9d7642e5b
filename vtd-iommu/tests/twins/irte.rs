// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt-remapping entries, remapped and posted.

use std::sync::LazyLock;

use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::Irte;

use crate::figure::Figure;

/// "Interrupt Remapping Table Entry (IRTE) for Remapped Interrupts".
static REMAPPED: LazyLock<Figure> = LazyLock::new(|| {
    Figure::new(
        "127:84 0 | 83:82 SVT | 81:80 SQ | 79:64 SID | 63:32 DST | 31:24 0 | 23:16 V | 15 IM | 14:12 0 | 11:8 AVAIL | 7:5 DLM | 4 TM | 3 RH | 2 DM | 1 FPD | 0 P",
        63,
    )
});
/// "Interrupt Remapping Table Entry (IRTE) for Posted Interrupts".
static POSTED: LazyLock<Figure> = LazyLock::new(|| {
    Figure::new(
        "127:96 PDAH | 95:84 0 | 83:82 SVT | 81:80 SQ | 79:64 SID | 63:38 PDAL | 37:24 0 | 23:16 V | 15 IM | 14 URG | 13:12 0 | 11:8 AVAIL | 7:2 0 | 1 FPD | 0 P",
        63,
    )
});

/// An entry, in the figure that IM selects.
fn entry(low: u64, high: u64) {
    let words = [low, high];
    let entry = Irte(words);
    let posted = low >> 15 & 1 != 0;
    assert_eq!(entry.posted(), posted);
    let figure = if posted { &*POSTED } else { &*REMAPPED };
    let get = |name| figure.get(&words, name);
    assert_eq!(u64::from(entry.present()), get("P"));
    assert_eq!(u64::from(entry.fault_processing_disabled()), get("FPD"));
    assert_eq!(entry.software(), get("AVAIL"));
    assert_eq!(entry.vector(), get("V"));
    assert_eq!(
        (entry.svt(), entry.sq(), entry.sid()),
        (get("SVT"), get("SQ"), get("SID"))
    );
    // No address of an entry is bounded by the host's width: a descriptor that does not exist is a fault of its own.
    assert_eq!(entry.reserved(), figure.reserved(words));
    if posted {
        assert_eq!(u64::from(entry.urgent()), get("URG"));
        assert_eq!(entry.descriptor(), get("PDAH") << 32 | get("PDAL") << 6);
    } else {
        assert_eq!(u64::from(entry.logical()), get("DM"));
        assert_eq!(u64::from(entry.redirection_hint()), get("RH"));
        assert_eq!(u64::from(entry.level_triggered()), get("TM"));
        assert_eq!(u64::from(entry.delivery().0), get("DLM"));
        assert_eq!(entry.destination(), get("DST"));
    }
}

/// Whether a requester may use an entry whose second word is `high`.
///
/// "SVT 00: No requester-id verification is required. 01: Verify requester-id in interrupt request using SID and SQ
/// fields. 10: Verify the most significant 8-bits of the requester-id (Bus#) in the interrupt request is equal to or
/// within the Startbus# and EndBus#. 11: Reserved."
fn source(high: u32, source: u16) {
    let sid = high & 0xffff;
    let compared = match high >> 16 & 3 {
        0b00 => 0b111,
        0b01 => 0b011,
        0b10 => 0b001,
        _ => 0b000,
    } | 0xfff8;
    let bus = u32::from(source >> 8);
    let may = match high >> 18 & 3 {
        0b00 => true,
        0b01 => sid & compared == u32::from(source) & compared,
        0b10 => (sid >> 8..=sid & 0xff).contains(&bus),
        _ => false,
    };
    let check = Irte([1, high.into()]).source_check();
    assert_eq!(
        check.admits(RequesterId(source)),
        may,
        "{high:#x} {source:#x}"
    );
}

#[test]
fn every_low_half() {
    for low in 0..=0xffff {
        entry(low, 0);
    }
    for low in (0..=0xffff).step_by(61) {
        for upper in [
            0x00ff_0000,
            0xff00_0000,
            1 << 32,
            1 << 37,
            1 << 38,
            1 << 63,
            !0xffff,
        ] {
            entry(low | upper, !0);
        }
    }
}

#[test]
fn every_high_half_and_requesters_near_it() {
    for qualifiers in 0..16u32 {
        for sid in 0..=0xffff {
            let high = qualifiers << 16 | sid;
            if sid % 61 == 0 {
                entry(1, high.into());
                entry(0x8001, u64::from(high) | 1 << 40);
            }
            // Itself, each neighbour in the bits that SQ is about, the buses beside it.
            for change in [0, 1, 2, 4, 7, 0x100] {
                source(high, sid as u16 ^ change);
            }
        }
    }
    for (first, last) in [(0u32, 0u32), (3, 5), (5, 3), (0, 0xff), (0xff, 0xff)] {
        for bus in 0..=0xff {
            source(2 << 18 | first << 8 | last, bus << 8 | 0x18);
        }
    }
}

#[cfg(kani)]
mod proofs {
    #[kani::proof]
    fn entry() {
        super::entry(kani::any(), kani::any());
    }
    #[kani::proof]
    fn source() {
        super::source(kani::any(), kani::any());
    }
}
