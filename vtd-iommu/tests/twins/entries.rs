// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Root, context and PASID entries.

use std::sync::LazyLock;

use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::context::{ContextEntry, ScalableContextEntry, TranslationType};
use hvkit_vtd_iommu::spec::pasid::{PasidDirectoryEntry, PasidEntry, TranslationKind};
use hvkit_vtd_iommu::spec::root::RootEntry;

use crate::each_word;
use crate::figure::Figure;

const HOST_BITS: u32 = 46;

/// "Root Entry".
static ROOT: LazyLock<Figure> =
    LazyLock::new(|| Figure::new("127:64 0 | 63:12 @CTP | 11:1 0 | 0 P", HOST_BITS));
/// "Scalable-Mode Root Entry".
static SCALABLE_ROOT: LazyLock<Figure> = LazyLock::new(|| {
    Figure::new(
        "127:76 @UCTP | 75:65 0 | 64 UP | 63:12 @LCTP | 11:1 0 | 0 LP",
        HOST_BITS,
    )
});
/// "Context Entry".
static CONTEXT: LazyLock<Figure> = LazyLock::new(|| {
    Figure::new(
        "127:88 0 | 87:72 DID | 71 0 | 70:67 AVAIL | 66:64 AW | 63:12 @SSPTPTR | 11:4 0 | 3:2 TT | 1 FPD | 0 P",
        HOST_BITS,
    )
});
/// "Scalable-Mode Context Entry".
static SCALABLE_CONTEXT: LazyLock<Figure> = LazyLock::new(|| {
    Figure::new(
        "255:85 0 | 84 RID_PRIV | 83:64 RID_PASID | 63:12 @PASIDDIRPTR | 11:9 PDTS | 8:5 0 | 4 PRE | 3 PASIDE | 2 DTE | 1 FPD | 0 P",
        HOST_BITS,
    )
});
/// "Scalable-Mode PASID Directory Entry".
static DIRECTORY: LazyLock<Figure> =
    LazyLock::new(|| Figure::new("63:12 @SMPTBLPTR | 11:2 0 | 1 FPD | 0 P", HOST_BITS));
/// "Scalable-Mode PASID Table Entry", on a unit without memory types (ECAP.MTS).
static PASID: LazyLock<Figure> = LazyLock::new(|| {
    Figure::new(
        "511:192 0 | 191:140 @FSPTPTR | 139:136 0 | 135 EAFE | 134 SMEP | 133 NXE | 132 WPE | 131:130 FSPM | 129 ERE | 128 SRE | 127:89 0 | 88 PGSNP | 87 PWSNP | 86:80 0 | 79:64 DID | 63:12 @SSPTPTR | 11:10 0 | 9 SSADE | 8:6 PGTT | 5 0 | 4:2 AW | 1 FPD | 0 P",
        HOST_BITS,
    )
});

/// A root entry in both modes, seen by a device below 16 and by one above.
fn root(low: u64, high: u64) {
    let words = [low, high];
    let entry = RootEntry(words);
    let get = |name| ROOT.get(&words, name);
    assert_eq!(u64::from(entry.present()), get("P"));
    assert_eq!(entry.context_table(), get("CTP"));
    assert_eq!(entry.reserved(HOST_BITS), ROOT.reserved(words));

    let reserved = SCALABLE_ROOT.reserved(words);
    let get = |name| SCALABLE_ROOT.get(&words, name);
    let (lower, upper) = (
        entry.half(RequesterId(0x007f)),
        entry.half(RequesterId(0x0080)),
    );
    assert_eq!(u64::from(lower.present()), get("LP"));
    assert_eq!(u64::from(upper.present()), get("UP"));
    assert_eq!(lower.context_table(), get("LCTP"));
    assert_eq!(upper.context_table(), get("UCTP"));
    assert_eq!(
        [lower.reserved(HOST_BITS), upper.reserved(HOST_BITS)],
        reserved
    );
}

/// A legacy context entry.
fn context(low: u64, high: u64) {
    let words = [low, high];
    let entry = ContextEntry(words);
    let get = |name| CONTEXT.get(&words, name);
    assert_eq!(u64::from(entry.present()), get("P"));
    assert_eq!(u64::from(entry.fault_processing_disabled()), get("FPD"));
    let kind = match get("TT") {
        0b00 => TranslationType::Untranslated,
        0b01 => TranslationType::DeviceTlb,
        0b10 => TranslationType::PassThrough,
        _ => TranslationType::Reserved,
    };
    assert_eq!(entry.translation_type(), kind);
    assert_eq!(entry.table(), get("SSPTPTR"));
    // "AW: 001b: 39-bit AGAW (3-level), 010b: 48-bit (4-level), 011b: 57-bit (5-level)", others reserved.
    let (bits, levels) = match get("AW") {
        0b001 => (Some(39), Some(3)),
        0b010 => (Some(48), Some(4)),
        0b011 => (Some(57), Some(5)),
        _ => (None, None),
    };
    let width = entry.address_width();
    assert_eq!((width.bits(), width.levels()), (bits, levels));
    assert_eq!(entry.software(), get("AVAIL"));
    assert_eq!(entry.domain(), get("DID"));
    assert_eq!(entry.reserved(HOST_BITS), CONTEXT.reserved(words));
}

/// A scalable-mode context entry.
fn scalable_context(words: [u64; 4]) {
    let entry = ScalableContextEntry(words);
    let get = |name| SCALABLE_CONTEXT.get(&words, name);
    for (flag, name) in [
        (entry.present(), "P"),
        (entry.fault_processing_disabled(), "FPD"),
        (entry.device_tlb(), "DTE"),
        (entry.pasid_enabled(), "PASIDE"),
        (entry.page_requests(), "PRE"),
        (entry.request_privileged(), "RID_PRIV"),
    ] {
        assert_eq!(u64::from(flag), get(name), "{name}");
    }
    assert_eq!(entry.directory(), get("PASIDDIRPTR"));
    // "The size of the PASID directory is 2^(PDTS + 7) entries", each of a table of 64.
    assert_eq!(u64::from(entry.pasids()), 64 * (128 << get("PDTS")));
    assert_eq!(entry.request_pasid(), get("RID_PASID"));
    let reserved = SCALABLE_CONTEXT.reserved(words);
    assert_eq!(entry.reserved(HOST_BITS), reserved);
}

/// A PASID directory entry.
fn directory(word: u64) {
    let entry = PasidDirectoryEntry(word);
    let get = |name| DIRECTORY.get(&[word], name);
    assert_eq!(u64::from(entry.present()), get("P"));
    assert_eq!(u64::from(entry.fault_processing_disabled()), get("FPD"));
    assert_eq!(entry.table(), get("SMPTBLPTR"));
    assert_eq!([entry.reserved(HOST_BITS)], DIRECTORY.reserved([word]));
}

/// A PASID table entry.
fn pasid(words: [u64; 8]) {
    let entry = PasidEntry(words);
    let get = |name| PASID.get(&words, name);
    for (flag, name) in [
        (entry.present(), "P"),
        (entry.fault_processing_disabled(), "FPD"),
        (entry.second_stage_marks(), "SSADE"),
        (entry.walk_snoop(), "PWSNP"),
        (entry.page_snoop(), "PGSNP"),
        (entry.supervisor_requests(), "SRE"),
        (entry.execute_requests(), "ERE"),
        (entry.write_protect(), "WPE"),
        (entry.no_execute(), "NXE"),
        (entry.smep(), "SMEP"),
        (entry.extended_accessed(), "EAFE"),
    ] {
        assert_eq!(u64::from(flag), get(name), "{name}");
    }
    let kind = match get("PGTT") {
        0b001 => TranslationKind::FirstStage,
        0b010 => TranslationKind::SecondStage,
        0b011 => TranslationKind::Nested,
        0b100 => TranslationKind::PassThrough,
        other => TranslationKind::Reserved(other as u8),
    };
    assert_eq!(entry.kind(), kind);
    assert_eq!(u64::from(entry.address_width().0), get("AW"));
    assert_eq!(entry.domain(), get("DID"));
    assert_eq!(entry.second_stage_table(), get("SSPTPTR"));
    assert_eq!(entry.first_stage_table(), get("FSPTPTR"));
    let levels = match get("FSPM") {
        0b00 => Some(4),
        0b01 => Some(5),
        _ => None,
    };
    assert_eq!(entry.first_stage_levels(), levels);
    assert_eq!(entry.reserved(HOST_BITS), PASID.reserved(words));
}

/// Every word in each place of an entry, between words of zeroes and between words of ones.
fn each_place<const N: usize>(harness: impl Fn([u64; N])) {
    for place in 0..N {
        for others in [0, !0] {
            each_word(|word| {
                let mut words = [others; N];
                words[place] = word;
                harness(words);
            });
        }
    }
}

#[test]
fn root_entries() {
    each_place(|[low, high]| root(low, high));
}

#[test]
fn context_entries() {
    each_place(|[low, high]| context(low, high));
    // AW, AVAIL, bit 71 and DID together.
    for high in 0..=0xff_ffff {
        if high & 0xff00 == 0 || high & 0xff == 0 {
            context(1, high);
        }
    }
}

#[test]
fn scalable_context_entries() {
    each_place(scalable_context);
}

#[test]
fn pasid_directory_entries() {
    each_word(directory);
}

#[test]
fn pasid_entries() {
    // The last five words are reserved alike.
    for place in [0, 1, 2, 7] {
        each_word(|word| {
            let mut words = [0; 8];
            words[place] = word;
            pasid(words);
        });
    }
    // Bits 79:64 and the seven above them up to PGSNP.
    for high in (0..1u64 << 26).step_by(0xfff) {
        pasid([1, high, 0, 0, 0, 0, 0, 0]);
    }
    pasid([!0; 8]);
}

#[cfg(kani)]
mod proofs {
    #[kani::proof]
    fn root() {
        super::root(kani::any(), kani::any());
    }
    #[kani::proof]
    fn context() {
        super::context(kani::any(), kani::any());
    }
    #[kani::proof]
    fn scalable_context() {
        super::scalable_context(kani::any());
    }
    #[kani::proof]
    fn directory() {
        super::directory(kani::any());
    }
    #[kani::proof]
    fn pasid() {
        super::pasid(kani::any());
    }
}
