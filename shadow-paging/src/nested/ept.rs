// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EPT as a second stage. Memory types are L1's; #VE, sub-page writes and the controls of paging-write and
//! shadow stacks are not carried over: do not offer them to L1.

use hvkit_ept::spec::{Controls, MemoryType, Pat, Rights};
use hvkit_ept::{Attributes, Ept};
use hvkit_page_table::Encode;

use super::format::{Grants, SecondStage};

/// Memory type in bits 2:0, then whether the PAT is ignored.
const IGNORE_PAT: u16 = 1 << 3;

impl SecondStage for Ept {
    fn grants(&self, attributes: Attributes) -> Grants {
        let rights = attributes.rights();
        let execute = rights.contains(Rights::EXECUTE);
        let user = if self.tells_user_execute() {
            rights.contains(Rights::USER_EXECUTE)
        } else {
            execute
        };
        Grants::READ.when(rights.contains(Rights::READ))
            | Grants::WRITE.when(rights.contains(Rights::WRITE))
            | Grants::EXECUTE.when(execute)
            | Grants::USER_EXECUTE.when(user)
    }

    fn other(&self, attributes: Attributes) -> u16 {
        let pat = match attributes.pat() {
            Pat::Ignored => IGNORE_PAT,
            Pat::Combined => 0,
        };
        u16::from(attributes.memory_type().bits()) | pat
    }

    fn spelled(&self, grants: Grants, other: u16) -> Option<Attributes> {
        let mut rights = Rights::empty();
        rights.set(Rights::READ, grants.contains(Grants::READ));
        rights.set(Rights::WRITE, grants.contains(Grants::WRITE));
        let user = grants.contains(Grants::USER_EXECUTE);
        let supervisor = grants.contains(Grants::EXECUTE);
        if self.tells_user_execute() {
            rights.set(Rights::EXECUTE, supervisor);
            rights.set(Rights::USER_EXECUTE, user);
        } else {
            rights.set(Rights::EXECUTE, supervisor && user);
        }
        let memory_type = MemoryType::from_bits(other as u8 & 0b111);
        let attributes = Attributes::new(rights, memory_type.unwrap_or(MemoryType::Uncacheable));
        let attributes = if other & IGNORE_PAT != 0 {
            attributes.with_pat(Pat::Ignored)
        } else {
            attributes
        };
        self.check(attributes, 1).is_ok().then_some(attributes)
    }

    fn tells_user_execute(&self) -> bool {
        self.controls().contains(Controls::MODE_BASED_EXECUTE)
    }

    fn walks_write(&self) -> bool {
        self.controls().contains(Controls::ACCESSED_DIRTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvkit_ept::spec::{EptVpidCap, WalkLength};
    use hvkit_page_table::{Entry, Format};

    /// Each word that maps a page is spelled again from what is kept of it. SDM 3C, "EPT Translation Mechanism",
    /// format of an entry that maps a 4-KByte page: R, W, X in 2:0, type in 5:3, IPAT in 6, XU in 10.
    #[test]
    fn a_page_keeps_its_rights_and_its_memory_type() {
        for mode_based in [false, true] {
            let mut controls = Controls::empty();
            controls.set(Controls::MODE_BASED_EXECUTE, mode_based);
            let capability = EptVpidCap::from_msr(0x0f01_0673_4141);
            let ept = Ept::new(capability, 46, WalkLength::Four, controls).unwrap();
            let mut pages = 0;
            for bits in 0..0x800u64 {
                let word = 0x9000 | bits & 0x47f;
                let Entry::Leaf { target, attributes } = ept.decode(word, 1) else {
                    continue;
                };
                pages += 1;
                let again = ept.spelled(ept.grants(attributes), ept.other(attributes));
                let hardware = if mode_based { 0x47f } else { 0x7f };
                let spelled = ept.leaf(target, again.unwrap(), 1);
                assert_eq!(spelled & !0xb80, word & (!0xfff | hardware), "{word:#x}");
            }
            assert!(pages > 100);
        }
    }
}
