// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of `--vtd` mean.

use super::key_value::{Keys, OptionError, switch};
use crate::config::{DmaWidth, Vtd};

/// The value that stands for none.
pub(super) const PLAIN: &str = "aw=48";

pub(super) fn vtd(text: &str) -> Result<Vtd, OptionError> {
    const KEYS: &[&str] = &["aw", "intremap", "caching", "scalable"];
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
    let usual = Vtd::default();
    Ok(Vtd {
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
            })
        );
        let error = |text| vtd(text).unwrap_err().to_string();
        assert_eq!(error("aw=40"), "--vtd: aw=40 is not 39, 48 or 57");
        assert_eq!(error("caching=yes"), "--vtd: caching=yes is not on or off");
        assert!(error("width=48").contains("known: aw, "));
    }
}
