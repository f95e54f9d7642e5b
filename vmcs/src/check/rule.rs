// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules, as data.

use crate::encoding::Encoding;

/// Which step of a VM entry a rule belongs to, and so how breaking it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Area {
    /// No current VMCS to enter: VMfailInvalid.
    NoVmcs,
    /// The processor or the VMCS is not ready: VMfailValid with this error number.
    Basic(u8),
    /// VMX controls: VMfailValid with error 7.
    Controls,
    /// Host state: VMfailValid with error 8.
    Host,
    /// Guest state: an exit with reason 33 and this qualification.
    Guest(u8),
    /// The VM-entry MSR-load area: an exit with reason 34.
    MsrLoad,
}

/// One rule of the chapter "VM Entries".
#[derive(Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Rule {
    /// A name that stays: subject, then what is asked of it.
    pub id: &'static str,
    /// How breaking it shows.
    pub area: Area,
    /// The title of the manual's section.
    pub section: &'static str,
    /// The fields on which it depends, those that make it apply among them; the first is the one it constrains. Where one is absent, and
    /// so taken as zero, the rule is not decided. Empty for rules about the processor.
    pub fields: &'static [Encoding],
    /// What it asks, in a sentence.
    pub sentence: &'static str,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl Eq for Rule {}

/// Declares the rules of one section: a static for each, and their list.
macro_rules! declare {
    (
        $list:ident: $area:expr, $section:literal;
        $($name:ident = $id:literal $(($own:expr))?, [$($field:ident),*], $sentence:literal;)*
    ) => {
        $(
            pub(crate) static $name: $crate::check::rule::Rule = $crate::check::rule::Rule {
                id: $id,
                area: $crate::check::rule::declare!(@area $area $(, $own)?),
                section: $section,
                fields: &[$($crate::fields::$field.encoding()),*],
                sentence: $sentence,
            };
        )*
        pub(crate) static $list: &[&$crate::check::rule::Rule] = &[$(&$name),*];
    };
    (@area $area:expr) => { $area };
    (@area $area:expr, $own:expr) => { $own };
}
pub(crate) use declare;

/// Every rule, in the order of the chapter.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    use super::{entry, execution, guest, host, msr_area, second_stage, transition};
    [
        entry::RULES,
        execution::RULES,
        second_stage::RULES,
        transition::EXIT_RULES,
        transition::ENTRY_RULES,
        host::REGISTER_RULES,
        host::SEGMENT_RULES,
        host::SIZE_RULES,
        guest::registers::RULES,
        guest::segments::RULES,
        guest::system_segments::RULES,
        guest::tables::TABLE_RULES,
        guest::tables::POINTER_RULES,
        guest::state::RULES,
        guest::link::RULES,
        guest::pdpte::RULES,
        msr_area::RULES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// The rule with this id.
pub fn find_rule(id: &str) -> Option<&'static Rule> {
    rules().find(|rule| rule.id == id)
}
