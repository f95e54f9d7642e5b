// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EPT as a table format: what the one walker and the one mapper need to know of it.

use hvkit_page_table::{Encode, Entry, Format, Marks, Shape, Upper};

use crate::attributes::Attributes;
use crate::spec::{
    Controls, EntryRules, EptEntry, EptVpidCap, Eptp, EptpError, Kind, MemoryType,
    Misconfiguration, Rights, Unsupported, Use, WalkLength,
};

/// The rule that an entry breaks, or that refuses attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// The entry would be, or is, misconfigured.
    #[error("EPT misconfiguration: {0}")]
    Misconfigured(#[from] Misconfiguration),
    /// An entry without rights is not present. Unmap instead.
    #[error("no rights: the entry would not be present")]
    NoRights,
    /// A bit that hardware would ignore: these controls are off.
    #[error("ignored unless these controls are on: {0:?}")]
    Ignored(Controls),
    /// Sub-page write permissions are for 4-KByte pages.
    #[error("sub-page write permissions for a page at level {0}")]
    SubPagesOfLargePage(u8),
    /// Write-protection would not stop all writes: the page is to be [logged](crate::dirty::write_protect), and these bits let
    /// some through without the right to write.
    #[error("not to be write-protected for a log: {0:#x} lets some writes through")]
    NotTrackable(u64),
}

/// EPT on one processor: levels, capabilities, physical-address width and controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    shape: Shape,
    rules: EntryRules,
    capability: EptVpidCap,
    length: WalkLength,
    empty: u64,
}

impl Ept {
    /// EPT of `length` levels on a processor with `capability` (IA32_VMX_EPT_VPID_CAP) and a MAXPHYADDR of
    /// `physical_bits`, under `controls`.
    ///
    /// # Errors
    ///
    /// What the processor refuses. That the controls which live in the VMCS are supported is for the
    /// capability registers of the VMCS to say.
    pub fn new(
        capability: EptVpidCap,
        physical_bits: u32,
        length: WalkLength,
        controls: Controls,
    ) -> Result<Self, Unsupported> {
        capability.walk_length(length)?;
        let asked = |control, needed| controls.contains(control) && !capability.contains(needed);
        if asked(Controls::ACCESSED_DIRTY, EptVpidCap::ACCESSED_DIRTY) {
            return Err(Unsupported::AccessedDirty);
        }
        if asked(
            Controls::SUPERVISOR_SHADOW_STACK,
            EptVpidCap::SUPERVISOR_SHADOW_STACK,
        ) {
            return Err(Unsupported::SupervisorShadowStack);
        }
        if !(32..=52).contains(&physical_bits) {
            return Err(Unsupported::PhysicalBits(physical_bits));
        }
        let rules = EntryRules::new(capability, physical_bits, controls);
        let shape = match length {
            WalkLength::Four => Shape::nines(4, rules.leaf_levels(), Upper::Zero),
            WalkLength::Five => Shape::nines(5, rules.leaf_levels(), Upper::Zero),
        };
        let shape = shape.map_err(|_| Unsupported::WalkLength(length.levels()))?;
        Ok(Self {
            shape,
            rules,
            capability,
            length,
            empty: 0,
        })
    }

    /// EPT as `eptp` sets it up: levels, accessed and dirty flags and supervisor shadow stacks come from
    /// there, the other `controls` from the VMCS.
    ///
    /// # Errors
    ///
    /// Why VM entry would refuse `eptp`, or an impossible `physical_bits`.
    pub fn from_eptp(
        eptp: Eptp,
        capability: EptVpidCap,
        physical_bits: u32,
        controls: Controls,
    ) -> Result<Self, EptpError> {
        eptp.check(capability, physical_bits)?;
        let here = Controls::ACCESSED_DIRTY | Controls::SUPERVISOR_SHADOW_STACK;
        let controls = controls.difference(here) | eptp.controls();
        Ok(Self::new(
            capability,
            physical_bits,
            eptp.walk_length()?,
            controls,
        )?)
    }

    /// The same, with absent entries that suppress #VE: no violation there becomes a virtualization
    /// exception.
    #[must_use]
    pub const fn suppressing_ve(mut self) -> Self {
        self.empty = EptEntry::SUPPRESS_VE;
        self
    }

    /// The EPTP for a table of this format at `root`, its structures accessed as `structures`.
    ///
    /// # Errors
    ///
    /// What the processor refuses.
    pub fn eptp(&self, root: u64, structures: MemoryType) -> Result<Eptp, EptpError> {
        let (bits, controls) = (self.rules.physical_bits(), self.controls());
        Eptp::new(
            root,
            self.length,
            structures,
            controls,
            self.capability,
            bits,
        )
    }

    /// The rules for its entries.
    #[inline]
    #[must_use]
    pub const fn rules(&self) -> &EntryRules {
        &self.rules
    }

    /// The controls.
    #[inline]
    #[must_use]
    pub const fn controls(&self) -> Controls {
        self.rules.controls()
    }

    /// The capability register.
    #[inline]
    #[must_use]
    pub const fn capability(&self) -> EptVpidCap {
        self.capability
    }
}

impl Format for Ept {
    type Attributes = Attributes;
    type Rule = Rule;

    #[inline]
    fn shape(&self) -> &Shape {
        &self.shape
    }

    #[inline(always)]
    fn decode(&self, entry: u64, level: u8) -> Entry<Attributes, Rule> {
        match self.rules.kind(EptEntry(entry), level) {
            Kind::Absent => Entry::Empty,
            Kind::Table => {
                let frame = entry & EptEntry::ADDRESS;
                let attributes = Attributes(self.rules.rights(EptEntry(entry)).bits());
                Entry::Table { frame, attributes }
            }
            Kind::Page => {
                let kept =
                    self.rules.meaningful(level) | Attributes::SOFTWARE | Attributes::TRACKED;
                Entry::Leaf {
                    target: entry & EptEntry::ADDRESS,
                    attributes: Attributes(entry & kept),
                }
            }
            Kind::Misconfigured => Entry::Malformed(self.broken(entry, level)),
        }
    }

    #[inline]
    fn fold(&self, above: Attributes, here: Attributes) -> Attributes {
        let mut bits = here.0 & (above.0 | !Attributes::RIGHTS);
        if above.0 & Rights::WRITE.bits() == 0 {
            bits |= Attributes::UPPER_READ_ONLY;
        }
        Attributes(bits)
    }

    #[inline]
    fn marks(&self) -> Marks {
        if self.controls().contains(Controls::ACCESSED_DIRTY) {
            Marks {
                accessed: EptEntry::ACCESSED,
                dirty: EptEntry::DIRTY,
            }
        } else {
            Marks::NONE
        }
    }
}

impl Encode for Ept {
    #[inline]
    fn empty(&self) -> u64 {
        self.empty
    }

    #[inline]
    fn table(&self, frame: u64, _level: u8) -> u64 {
        let user = self.controls().contains(Controls::MODE_BASED_EXECUTE);
        let user = if user {
            Rights::USER_EXECUTE
        } else {
            Rights::empty()
        };
        frame | (Rights::READ_WRITE_EXECUTE | user).bits()
    }

    #[inline]
    fn leaf(&self, target: u64, attributes: Attributes, level: u8) -> u64 {
        let large = if level > 1 { EptEntry::LARGE } else { 0 };
        target | attributes.0 & !Attributes::UPPER_READ_ONLY | large
    }

    fn check(&self, attributes: Attributes, level: u8) -> Result<(), Rule> {
        let bits = attributes.0 & !Attributes::UPPER_READ_ONLY;
        // Few pages are tracked: one question for most.
        let unknown = bits & !(self.rules.meaningful(1) | Attributes::SOFTWARE);
        if unknown != 0 {
            let unknown = unknown & !Attributes::TRACKED;
            if unknown != 0 {
                return Err(Rule::Ignored(needed_for(unknown)));
            }
            if attributes.tracked_in_vain() {
                return Err(Rule::NotTrackable(
                    attributes.options(Attributes::WRITES_OTHERWISE),
                ));
            }
        }
        if level > 1 && bits & EptEntry::SUB_PAGE_WRITE != 0 {
            return Err(Rule::SubPagesOfLargePage(level));
        }
        match self
            .rules
            .classify(EptEntry(self.leaf(0, attributes, level)), level)?
        {
            Use::Absent => Err(Rule::NoRights),
            Use::Table(_) | Use::Page(_) => Ok(()),
        }
    }

    #[inline]
    fn target_bits(&self, _level: u8) -> u32 {
        self.rules.physical_bits()
    }

    #[inline]
    fn frame_bits(&self) -> u32 {
        self.rules.physical_bits()
    }

    #[inline]
    fn executable(&self, attributes: Attributes) -> bool {
        attributes
            .rights()
            .intersects(Rights::EXECUTE | Rights::USER_EXECUTE)
    }

    /// Rights that are only added need no INVEPT: a stale entry costs one violation, which removes it.
    /// SDM 3C, "Guidelines for Use of the INVEPT Instruction".
    #[inline]
    fn leaves_stale(&self, old: Attributes, new: Attributes) -> bool {
        let hardware = self.rules.meaningful(1);
        let (old, new) = (old.0 & hardware, new.0 & hardware);
        old & !Attributes::RIGHTS != new & !Attributes::RIGHTS
            || old & Attributes::RIGHTS & !new != 0
    }
}

impl Ept {
    /// The rule that a misconfigured entry breaks.
    #[cold]
    #[inline(never)]
    fn broken(&self, entry: u64, level: u8) -> Rule {
        match self.rules.classify(EptEntry(entry), level) {
            Err(rule) => Rule::Misconfigured(rule),
            // Only asked of misconfigured ones.
            Ok(_) => Rule::NoRights,
        }
    }
}

/// The controls that would give the bits of `ignored` a meaning.
fn needed_for(ignored: u64) -> Controls {
    let mut controls = Controls::empty();
    controls.set(
        Controls::MODE_BASED_EXECUTE,
        ignored & Rights::USER_EXECUTE.bits() != 0,
    );
    controls.set(
        Controls::VIOLATION_EXCEPTION,
        ignored & EptEntry::SUPPRESS_VE != 0,
    );
    controls.set(
        Controls::SUB_PAGE_WRITE,
        ignored & EptEntry::SUB_PAGE_WRITE != 0,
    );
    let shadow_stack = ignored & EptEntry::SUPERVISOR_SHADOW_STACK != 0;
    controls.set(Controls::SUPERVISOR_SHADOW_STACK, shadow_stack);
    controls.set(
        Controls::PAGING_WRITE,
        ignored & EptEntry::PAGING_WRITE != 0,
    );
    let verify = ignored & EptEntry::VERIFY_GUEST_PAGING != 0;
    controls.set(Controls::GUEST_PAGING_VERIFICATION, verify);
    controls
}
