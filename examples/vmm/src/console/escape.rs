// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The escape key: what the user types to the VMM and not to the guest.

/// Ctrl-A, after which one key speaks to the VMM.
const ESCAPE: u8 = 0x01;

/// Separates the guest's input from the VMM's.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

/// What the typed bytes ask of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing: they are the guest's.
    Input,
    /// Ctrl-A x: end the machine.
    Quit,
}

impl Escape {
    /// Appends to `input` what of `typed` the guest shall see. Ctrl-A Ctrl-A sends one Ctrl-A;
    /// Ctrl-A and any other key but x sends both.
    pub fn feed(&mut self, typed: &[u8], input: &mut Vec<u8>) -> Typed {
        for &byte in typed {
            match (std::mem::take(&mut self.pending), byte) {
                (false, ESCAPE) => self.pending = true,
                (true, b'x' | b'X') => return Typed::Quit,
                (true, ESCAPE) | (false, _) => input.push(byte),
                (true, _) => input.extend([ESCAPE, byte]),
            }
        }
        Typed::Input
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parts: &[&[u8]]) -> (Vec<u8>, Typed) {
        let (mut escape, mut input) = (Escape::default(), Vec::new());
        for part in parts {
            if escape.feed(part, &mut input) == Typed::Quit {
                return (input, Typed::Quit);
            }
        }
        (input, Typed::Input)
    }

    #[test]
    fn only_ctrl_a_x_quits() {
        assert_eq!(
            feed(&[b"lax\x18\x03"]),
            (b"lax\x18\x03".into(), Typed::Input)
        );
        assert_eq!(feed(&[b"ab\x01xcd"]), (b"ab".into(), Typed::Quit));
        // The two keys may come in two reads.
        assert_eq!(feed(&[b"\x01", b"x"]), (vec![], Typed::Quit));
    }

    #[test]
    fn the_guest_can_be_sent_a_ctrl_a() {
        assert_eq!(feed(&[b"\x01\x01x"]), (b"\x01x".into(), Typed::Input));
        assert_eq!(feed(&[b"\x01c"]), (b"\x01c".into(), Typed::Input));
    }
}
