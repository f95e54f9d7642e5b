// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An option's value of the form `key=value,key=value`. The first key may be left out.

/// An option's value that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A key that the option does not have.
    #[error("--{option}: unknown key '{key}' (known: {})", known.join(", "))]
    UnknownKey {
        /// The option.
        option: &'static str,
        /// The key given.
        key: String,
        /// The keys it has.
        known: &'static [&'static str],
    },
    /// A key given twice.
    #[error("--{option}: key '{key}' is given twice")]
    Twice {
        /// The option.
        option: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A key that must be given and is not.
    #[error("--{option}: key '{key}' is missing")]
    Missing {
        /// The option.
        option: &'static str,
        /// The key.
        key: &'static str,
    },
    /// Two keys of which one must be given, and not the other.
    #[error("--{option}: one of '{}' and '{}' must be given, not {given}", keys[0], keys[1])]
    OneOf {
        /// The option.
        option: &'static str,
        /// The keys.
        keys: [&'static str; 2],
        /// Which of them were.
        given: &'static str,
    },
    /// A key that does nothing without another.
    #[error("--{option}: {key} does nothing without {needs}")]
    Needs {
        /// The option.
        option: &'static str,
        /// The key given.
        key: &'static str,
        /// The one that is not.
        needs: &'static str,
    },
    /// Two options of which only one can have the terminal.
    #[error("--serial tty and --console tty: one of them can have the terminal")]
    Terminal,
    /// A value that is not what the key wants.
    #[error("--{option}: {key}={value} is not {wanted}")]
    Value {
        /// The option.
        option: &'static str,
        /// The key.
        key: &'static str,
        /// The value given.
        value: String,
        /// What would be understood.
        wanted: &'static str,
    },
}

/// The values of one option, by key.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    option: &'static str,
    values: Vec<(&'static str, &'a str)>,
}

impl<'a> Keys<'a> {
    /// Splits `text`, the value of `option`, which has the keys `known`; a value without a key at
    /// the first place belongs to the first of them.
    pub(super) fn parse(
        option: &'static str,
        known: &'static [&'static str],
        text: &'a str,
    ) -> Result<Self, OptionError> {
        let mut values: Vec<(&'static str, &'a str)> = Vec::new();
        for (place, part) in text.split(',').enumerate() {
            let (key, value) = match (part.split_once('='), place, known) {
                (Some((key, value)), ..) => (key, value),
                (None, 0, [first, ..]) => (*first, part),
                (None, ..) => (part, ""),
            };
            let Some(&key) = known.iter().find(|&&k| k == key) else {
                return Err(OptionError::UnknownKey {
                    option,
                    key: key.to_owned(),
                    known,
                });
            };
            if values.iter().any(|&(other, _)| other == key) {
                return Err(OptionError::Twice { option, key });
            }
            values.push((key, value));
        }
        Ok(Keys { option, values })
    }

    /// The value of `key`, read by `read`; nothing if it is not given.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, OptionError> {
        let Some(&(_, value)) = self.values.iter().find(|&&(k, _)| k == key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(OptionError::Value {
                option: self.option,
                key,
                value: value.to_owned(),
                wanted,
            }),
        }
    }

    /// Refuses `key` where `needs` is not given.
    pub(super) fn needs(&self, key: &'static str, needs: &'static str) -> Result<(), OptionError> {
        let option = self.option;
        match self.has(key) && !self.has(needs) {
            true => Err(OptionError::Needs { option, key, needs }),
            false => Ok(()),
        }
    }

    /// Refuses both of `keys` together.
    pub(super) fn not_both(&self, keys: [&'static str; 2]) -> Result<(), OptionError> {
        match keys.iter().all(|key| self.has(key)) {
            true => Err(OptionError::OneOf {
                option: self.option,
                keys,
                given: "both",
            }),
            false => Ok(()),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.values.iter().any(|&(given, _)| given == key)
    }

    /// The value of `key`, which must be given.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, OptionError> {
        let option = self.option;
        self.optional(key, wanted, read)?
            .ok_or(OptionError::Missing { option, key })
    }
}

/// `on` or `off`.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// A number of bytes, with K, M, G or T for powers of 1024.
pub(crate) fn size(text: &str) -> Option<u64> {
    let last = text.chars().next_back()?;
    let shift = match last.to_ascii_uppercase() {
        'K' => Some(10),
        'M' => Some(20),
        'G' => Some(30),
        'T' => Some(40),
        _ => None,
    };
    let (digits, shift) = match shift {
        Some(shift) => (text.strip_suffix(last)?, shift),
        None => (text, 0),
    };
    number::<u64>(digits)?.checked_mul(1 << shift)
}

/// A decimal number; nothing but digits.
pub(super) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    // `parse` alone would take a sign.
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["path", "readonly"];

    fn parse(text: &str) -> Result<Keys<'_>, OptionError> {
        Keys::parse("disk", KEYS, text)
    }
    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn the_first_key_may_be_left_out() {
        for value in [
            "path=a.img,readonly=on",
            "a.img,readonly=on",
            "readonly=on,path=a.img",
        ] {
            let keys = parse(value).unwrap();
            assert_eq!(keys.required("path", "a file", text).unwrap(), "a.img");
            assert_eq!(
                keys.optional("readonly", "on or off", switch),
                Ok(Some(true))
            );
        }
        assert_eq!(
            parse("a.img")
                .unwrap()
                .optional("readonly", "on or off", switch),
            Ok(None)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |value| parse(value).unwrap_err().to_string();
        assert_eq!(
            error("path=a,readolny=on"),
            "--disk: unknown key 'readolny' (known: path, readonly)"
        );
        assert_eq!(
            error("path=a,rw"),
            "--disk: unknown key 'rw' (known: path, readonly)"
        );
        assert_eq!(error("a,path=b"), "--disk: key 'path' is given twice");
        let keys = parse("readonly=yes").unwrap();
        assert_eq!(
            keys.required("path", "a file", text)
                .unwrap_err()
                .to_string(),
            "--disk: key 'path' is missing"
        );
        assert_eq!(
            keys.optional("readonly", "on or off", switch)
                .unwrap_err()
                .to_string(),
            "--disk: readonly=yes is not on or off"
        );
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("4096"), Some(4096));
        assert_eq!(size("512M"), Some(536_870_912));
        assert_eq!(size("2g"), Some(2_147_483_648));
        for wrong in [
            "",
            "M",
            "-1",
            "+1",
            "1.5G",
            "12X",
            "0x10",
            "99999999999T",
            "1é",
        ] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}
