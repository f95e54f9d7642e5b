// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What both sides do: stores, register writes, DMA, looks at registers; and what was seen.

use std::fmt;

use hvkit_vtd_iommu::emulation::Interrupt;

/// One thing that software or a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Software stores a word to memory.
    Store { at: u64, word: u64 },
    /// Software writes 4 bytes to a register.
    Write32 { offset: u32, value: u32 },
    /// Software writes 8 bytes to registers.
    Write64 { offset: u32, value: u64 },
    /// The device reads 8 bytes at `address` into its buffer at `slot` * 8.
    Read { address: u64, slot: u64 },
    /// The device writes 8 bytes to `address` from its buffer at `slot` * 8.
    Write { address: u64, slot: u64 },
    /// The device sends a message-signalled interrupt.
    Message { address: u32, data: u32 },
    /// Software reads the fault registers.
    Faults,
    /// Software reads registers: `count` of 4 bytes from `offset`.
    Look { offset: u32, count: u32 },
    /// Software reads a word of memory.
    Load { at: u64 },
}

/// What both sides begin with: the queue is turned on and off, everything is forgotten by register, the table pointers are
/// taken. What this leaves in the registers cannot be undone but by power.
pub(super) fn start() -> Vec<Step> {
    let write = |offset, value| Step::Write64 { offset, value };
    let command = |value| Step::Write32 {
        offset: 0x18,
        value,
    };
    // A page of 1 GiB begins at address 0, and a spoilt one is a table there.
    let zeroes = (0..0x40).step_by(8).map(|at| Step::Store { at, word: 0 });
    let commands = [
        write(0x88, 0),
        write(0x90, layout::QUEUE),
        Step::Store {
            at: layout::QUEUE,
            word: 0x25,
        },
        Step::Store {
            at: layout::QUEUE + 8,
            word: layout::STATUS,
        },
        command(1 << 26),
        write(0x88, 0x10),
        command(0),
        write(0x88, 0),
        write(0x90, 0),
        Step::Store {
            at: layout::QUEUE,
            word: 0,
        },
        Step::Store {
            at: layout::QUEUE + 8,
            word: 0,
        },
        write(0x20, 0),
        command(1 << 30),
        write(0xb8, 0),
        command(1 << 24),
        write(0x28, 1 << 63 | 1 << 61),
        write(0xf8, 1 << 63 | 1 << 60),
        write(0x28, 0),
        write(0xf8, 0),
        write(0xf0, 0),
    ];
    zeroes.chain(commands).collect()
}

/// What a step brought to light.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Of [`Step::Faults`].
    Faults {
        status: u32,
        control: u32,
        low: u64,
        high: u64,
    },
    /// Of [`Step::Look`], one for each register; of [`Step::Load`].
    Word { at: u64, value: u64 },
    /// Of [`Step::Message`]: what a local APIC is asked for, if it is.
    Interrupt(Option<Interrupt>),
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Faults {
                status,
                control,
                low,
                high,
            } => write!(
                f,
                "FSTS {status:#x} FECTL {control:#x} FRCD {high:#018x}:{low:016x} (reason {:#x})",
                high >> 32 & 0xff
            ),
            Self::Word { at, value } => write!(f, "{at:#x}: {value:#x}"),
            Self::Interrupt(None) => f.write_str("no interrupt"),
            Self::Interrupt(Some(interrupt)) => write!(f, "{interrupt:x?}"),
        }
    }
}

/// A case: what is done, after the device's buffer was filled from [`layout::PATTERN`].
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// What it is about, for the count.
    pub(super) kind: String,
    /// Whether tables change without the invalidation that the specification wants, so that a unit may answer from
    /// what it kept or from the tables.
    pub(super) may_be_stale: bool,
    pub(super) steps: Vec<Step>,
}

/// Where things are in memory. Everything a case stores lies in [`layout::START`]..[`layout::END`].
pub(super) mod layout {
    pub(in super::super) const START: u64 = 0x10_0000;
    /// What the processor does at an NMI and at a system-management interrupt: nothing that memory shows.
    pub(in super::super) const HANDLERS: [(u64, u64); 2] = [
        // Real mode: vector 2 leads to the BIOS's `hlt`.
        (0x8, 0xf000_fff1),
        // The handler's place at reset: `rsm`.
        (0x3_8000, 0xaa0f),
    ];
    pub(in super::super) const ROOT: u64 = 0x10_0000;
    pub(in super::super) const CONTEXT: u64 = 0x10_1000;
    /// Page tables: this many frames.
    pub(in super::super) const TABLES: u64 = 0x10_2000;
    pub(in super::super) const TABLE_FRAMES: u64 = 12;
    pub(in super::super) const QUEUE: u64 = 0x10_e000;
    pub(in super::super) const STATUS: u64 = 0x10_f000;
    pub(in super::super) const END: u64 = 0x11_0000;
    /// What the device's buffer is filled with, [`BUFFER_WORDS`] words.
    pub(in super::super) const PATTERN: u64 = 0x1f_f000;
    pub(in super::super) const BUFFER_WORDS: u64 = 16;
    /// Where the data of a message is fetched from.
    pub(in super::super) const MESSAGE: u64 = 0x1f_e000;
    /// Where DMA is meant to go: this many frames, of which the first [`DATA_BYTES`] count.
    pub(in super::super) const DATA: u64 = 0x20_0000;
    pub(in super::super) const DATA_FRAMES: u64 = 8;
    pub(in super::super) const DATA_BYTES: u64 = 64;
    /// Bytes of memory.
    pub(in super::super) const MEMORY: u64 = 64 << 20;
}
