// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a processor's TLB may hold under each PCID.

/// How many PCIDs are remembered. Linux gives six address spaces one each, or two.
const TAGS: usize = 16;

/// The root that was loaded last with each of a few PCIDs.
///
/// MOV to CR3 with bit 63 set makes what was cached under the new PCID usable again. That came from the root that was
/// loaded with that PCID last, and from none that was there before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tags {
    /// The newest first.
    held: [Option<(u64, u64)>; TAGS],
}

impl Tags {
    /// Whether `root` was loaded last with `pcid`. No, if that is not known.
    pub(crate) fn holds(&self, pcid: u64, root: u64) -> bool {
        self.held.contains(&Some((pcid, root)))
    }

    /// `root` is loaded with `pcid`.
    pub(crate) fn load(&mut self, pcid: u64, root: u64) {
        let same = |held: &&mut Option<(u64, u64)>| held.is_some_and(|(tag, _)| tag == pcid);
        if let Some(held) = self.held.iter_mut().find(same) {
            *held = Some((pcid, root));
            return;
        }
        self.held.rotate_right(1);
        self.held[0] = Some((pcid, root));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_holds_the_root_that_was_loaded_last_and_the_oldest_are_forgotten() {
        let mut tags = Tags::default();
        assert!(!tags.holds(1, 0x1000));
        tags.load(1, 0x1000);
        tags.load(2, 0x2000);
        assert!(tags.holds(1, 0x1000) && tags.holds(2, 0x2000));
        assert!(!tags.holds(2, 0x1000));
        tags.load(2, 0x1000);
        assert!(tags.holds(2, 0x1000) && !tags.holds(2, 0x2000));
        (3..=TAGS as u64 + 1).for_each(|pcid| tags.load(pcid, 0x3000));
        assert!(!tags.holds(1, 0x1000), "out of room");
        assert!(tags.holds(2, 0x1000) && tags.holds(TAGS as u64 + 1, 0x3000));
    }
}
