// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VT-d's second stage. Accessed and dirty flags (SSADE) cannot be kept where devices are followed: do not offer
//! them to the guest.

use hvkit_page_table::{Encode, Entry, Format};
use hvkit_vtd_iommu::spec::second_stage::SecondStageEntry as Word;
use hvkit_vtd_iommu::tables::{SecondStage as Tables, SecondStageAttributes};

use super::format::{Grants, SecondStage};

const SNOOP: u16 = 1;
const TRANSIENT: u16 = 1 << 1;

impl SecondStage for Tables {
    fn grants(&self, attributes: SecondStageAttributes) -> Grants {
        Grants::READ.when(attributes.reads()) | Grants::WRITE.when(attributes.writes())
    }

    fn other(&self, attributes: SecondStageAttributes) -> u16 {
        let word = self.leaf(0, attributes, 1);
        let bit = |mask, bit| if word & mask != 0 { bit } else { 0 };
        bit(Word::SNOOP, SNOOP) | bit(Word::TRANSIENT, TRANSIENT)
    }

    fn spelled(&self, grants: Grants, other: u16) -> Option<SecondStageAttributes> {
        let bit = |set, mask| if set { mask } else { 0 };
        let word = bit(grants.contains(Grants::READ), Word::READ)
            | bit(grants.contains(Grants::WRITE), Word::WRITE)
            | bit(other & SNOOP != 0, Word::SNOOP)
            | bit(other & TRANSIENT != 0, Word::TRANSIENT);
        match self.decode(word, 1) {
            Entry::Leaf { attributes, .. } => Some(attributes),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VT-d, "Second-Stage Paging Entries": R and W in 1:0, SNP in 11, TM in 62.
    #[test]
    fn a_page_keeps_its_rights_snooping_and_transience() {
        let plain = Tables::new(4, 46).unwrap();
        let full = plain.with_snoop_control().with_transient();
        for (unit, kept) in [(plain, 3), (full, 3 | 1 << 11 | 1 << 62)] {
            for bits in 0..16u64 {
                let word = 0x9000 | bits & 3 | (bits >> 2 & 1) << 11 | (bits >> 3) << 62;
                match unit.decode(word, 1) {
                    Entry::Leaf { target, attributes } => {
                        let again = unit.spelled(unit.grants(attributes), unit.other(attributes));
                        let again = again.map(|again| unit.leaf(target, again, 1));
                        assert_eq!(again, Some(word & (kept | 0x9000)), "{word:#x}");
                    }
                    Entry::Empty => assert_eq!(word & 3, 0),
                    other => assert_ne!(word & !(kept | 0x9000), 0, "{other:?}"),
                }
            }
        }
        assert_eq!(plain.spelled(Grants::EXECUTE, 0), None, "nothing to say");
        assert_eq!(plain.spelled(Grants::READ, SNOOP), None, "no snoop control");
    }
}
