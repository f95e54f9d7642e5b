// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! I/O instructions.

use hvkit_vmcs::exit::{Gpr, IoInstruction};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;

use super::Guest;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// IN: answer with the value.
    In,
    /// OUT: the value.
    Out(u32),
    /// INS or OUTS: bytes go to or come from memory, at the linear address. Reading guest memory is the caller's.
    String {
        /// INS rather than OUTS.
        is_in: bool,
        /// The linear address of the memory operand.
        linear: u64,
    },
}

/// IN, OUT, INS or OUTS.
#[derive(Debug)]
pub struct Io<'r, V: FieldsMut> {
    /// The guest.
    pub guest: Guest<'r, V>,
    /// The port.
    pub port: u16,
    /// Bytes of one access: 1, 2 or 4.
    pub bytes: u8,
    /// Which way.
    pub direction: Direction,
    /// The qualification.
    pub access: IoInstruction,
}

impl<'r, V: FieldsMut> Io<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>, access: IoInstruction) -> Self {
        // The manual uses no other codes.
        let bytes = access.size().unwrap_or(1);
        let direction = if access.is_string() {
            Direction::String {
                is_in: access.is_in(),
                linear: guest.read(f::GUEST_LINEAR_ADDRESS),
            }
        } else if access.is_in() {
            Direction::In
        } else {
            Direction::Out(guest.get(Gpr::RAX) as u32 & mask(bytes))
        };
        Self {
            port: access.port(),
            bytes,
            direction,
            access,
            guest,
        }
    }

    /// Completes an IN with a value, an OUT without looking at it. Of RAX, IN changes as much as a processor does: AL, AX,
    /// or all of it.
    pub fn answer(mut self, value: u32) {
        if self.direction == Direction::In {
            let mask = mask(self.bytes);
            let value = u64::from(value & mask);
            let kept = if self.bytes == 4 {
                0
            } else {
                self.guest.get(Gpr::RAX) & !u64::from(mask)
            };
            self.guest.set(Gpr::RAX, kept | value);
        }
        self.guest.skip();
    }

    /// Completes an OUT; an IN gets ones, as from a port where nothing is.
    pub fn done(self) {
        self.answer(u32::MAX);
    }

    /// #GP(0), as for a port that is not allowed.
    pub fn fault(mut self) {
        self.guest.fault();
    }
}

const fn mask(bytes: u8) -> u32 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
