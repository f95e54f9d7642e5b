// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of `--vtd` mean.

use super::key_value::{Keys, OptionError, number, switch};
use super::options::SEGMENT;
use crate::config::{DmaWidth, Scope, Vtd};

/// The value that stands for none.
pub(super) const PLAIN: &str = "aw=48";

pub(super) fn vtd(text: &str) -> Result<Vtd, OptionError> {
    const KEYS: &[&str] = &[
        "aw",
        "intremap",
        "caching",
        "scalable",
        "id",
        "pci_segment",
        "scope",
    ];
    let keys = Keys::parse("vtd", KEYS, text)?;
    let width = keys.optional("aw", "39, 48 or 57", |text| match text {
        "39" => Some(DmaWidth::Bits39),
        "48" => Some(DmaWidth::Bits48),
        "57" => Some(DmaWidth::Bits57),
        _ => None,
    })?;
    let on = |key, usual| -> Result<bool, OptionError> {
        Ok(keys.optional(key, "on or off", switch)?.unwrap_or(usual))
    };
    // The words that iommu= has beside the units' names.
    let id = keys.optional("id", "a name other than on and off", |id| {
        (!id.is_empty() && switch(id).is_none()).then(|| id.to_owned())
    })?;
    let scope = keys.optional("scope", "segment or named", |text| match text {
        "segment" => Some(Scope::Segment),
        "named" => Some(Scope::Named),
        _ => None,
    })?;
    let usual = Vtd::default();
    Ok(Vtd {
        id,
        segment: keys
            .optional("pci_segment", SEGMENT, number)?
            .unwrap_or(usual.segment),
        scope: scope.unwrap_or(usual.scope),
        width: width.unwrap_or(usual.width),
        interrupts: on("intremap", usual.interrupts)?,
        caching: on("caching", usual.caching)?,
        scalable: on("scalable", usual.scalable)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_keys_are_understood_and_others_named() {
        assert_eq!(vtd(PLAIN), Ok(Vtd::default()));
        assert_eq!(
            vtd("57,scalable=on,caching=on,intremap=off"),
            Ok(Vtd {
                width: DmaWidth::Bits57,
                interrupts: false,
                caching: true,
                scalable: true,
                ..Vtd::default()
            })
        );
        assert_eq!(
            vtd("id=b,pci_segment=1,scope=named"),
            Ok(Vtd {
                id: Some("b".to_owned()),
                segment: 1,
                scope: Scope::Named,
                ..Vtd::default()
            })
        );
        let error = |text| vtd(text).unwrap_err().to_string();
        assert_eq!(error("aw=40"), "--vtd: aw=40 is not 39, 48 or 57");
        assert_eq!(
            error("id=off"),
            "--vtd: id=off is not a name other than on and off"
        );
        assert_eq!(
            error("scope=all"),
            "--vtd: scope=all is not segment or named"
        );
        assert_eq!(error("caching=yes"), "--vtd: caching=yes is not on or off");
        assert!(error("width=48").contains("known: aw, "));
    }
}
