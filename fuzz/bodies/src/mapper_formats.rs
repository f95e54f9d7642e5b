// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `mapper` does, on tables of other formats: x86's of 4 and 5 levels, as shadow paging and VT-d's first stage have them, and
//! VT-d's second stage of 3 to 5, with any capabilities, at either end of their addresses.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_page_table::{Encode, Upper};
use hvkit_shadow_paging::guest::{Features, PagingMode, Registers, cr0, cr4, efer};
use hvkit_shadow_paging::mmu::Stage;
use hvkit_shadow_paging::x86::{Linear, Processor, ShadowAttributes, ShadowFormat};
use hvkit_vtd_iommu::tables::{
    FirstStage, FirstStageAttributes, LargePages, SecondStage, SecondStageAttributes,
};

use crate::arena::Arena;
use crate::mapper::{Kind, Op, SPACE, check};

/// Which format, and what a machine has of it.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Subject {
    which: Which,
    five: bool,
    /// The width of physical addresses: 30 bits and more.
    width: u8,
    can: u8,
    /// In the upper half of all addresses.
    upper: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Which {
    FirstStage,
    SecondStage,
    /// Of a guest in 4- or 5-level paging.
    Shadow,
}

impl Subject {
    fn width(self) -> u32 {
        30 + u32::from(self.width) % 23
    }

    fn can(self, bit: u8) -> bool {
        self.can >> bit & 1 != 0
    }

    fn first_stage(self) -> FirstStage {
        let levels = if self.five { 5 } else { 4 };
        let mut format = FirstStage::new(levels, self.width()).expect("a unit's");
        if self.can(0) {
            format = format.with_one_gib();
        }
        if self.can(1) {
            format = format.with_no_execute();
        }
        if self.can(2) {
            format = format.with_extended_accessed();
        }
        format
    }

    fn second_stage(self) -> SecondStage {
        let levels = match (self.five, self.can(7)) {
            (true, _) => 5,
            (false, true) => 4,
            (false, false) => 3,
        };
        let mut format = SecondStage::new(levels, self.width()).expect("a unit's");
        format = format.with_large_pages(LargePages::from_bits_truncate(self.can & 3));
        if self.can(2) {
            format = format.with_snoop_control();
        }
        if self.can(3) {
            format = format.with_transient();
        }
        if self.can(4) {
            format = format.with_accessed_dirty();
        }
        format
    }

    fn shadow(self) -> ShadowFormat {
        let levels = if self.five { cr4::LA57 } else { 0 };
        let registers = Registers {
            cr0: cr0::PG | cr0::PE | cr0::WP,
            cr4: cr4::PAE | levels,
            efer: efer::LME | efer::NXE,
            ..Registers::default()
        };
        let bits = self.width().clamp(32, 52) as u8;
        // Of such tables none is read to know the mode.
        let mode = PagingMode::load(&registers, &Features::all(bits), &Arena::new(0));
        let processor = Processor {
            physical_address_bits: bits,
            gib_pages: self.can(0),
            five_level_paging: true,
        };
        let linear = Linear::new(&mode.expect("a mode"), processor);
        *linear.expect("no keys").shadow()
    }

    /// Where the space begins that operations choose from.
    fn base(self, format: &impl Encode, upper: Upper) -> u64 {
        let bits = format.shape().address_bits();
        match (self.upper, upper) {
            (false, _) => 0,
            (true, Upper::Zero) => (1 << bits) - SPACE,
            (true, Upper::SignExtended) => u64::MAX << (bits - 1),
        }
    }
}

fn first(kind: Kind) -> FirstStageAttributes {
    let mut attributes = match kind.0 & 1 {
        0 => FirstStageAttributes::READ,
        _ => FirstStageAttributes::READ_WRITE,
    };
    if kind.0 & 2 != 0 {
        attributes = attributes.privileged();
    }
    // Rarely: not every unit has it.
    if kind.0 & 0x1c == 0x1c {
        attributes = attributes.no_execute();
    }
    if kind.0 & 0x60 == 0x60 {
        attributes = attributes.global();
    }
    attributes
}

fn second(kind: Kind) -> SecondStageAttributes {
    let mut attributes = match kind.0 & 3 {
        0 => SecondStageAttributes::READ,
        1 => SecondStageAttributes::WRITE,
        _ => SecondStageAttributes::READ_WRITE,
    };
    // Rarely: not every unit has them.
    if kind.0 & 0x1c == 0x1c {
        attributes = attributes.snooping();
    }
    if kind.0 & 0x60 == 0x60 {
        attributes = attributes.transient();
    }
    attributes.with_software(u16::from(kind.0 >> 7))
}

fn shadow(kind: Kind) -> ShadowAttributes {
    let mut attributes = ShadowAttributes::read_only(kind.0 >> 5);
    if kind.0 & 1 != 0 {
        attributes = attributes.writable();
    }
    if kind.0 & 2 != 0 {
        attributes = attributes.of_user();
    }
    if kind.0 & 4 != 0 {
        attributes = attributes.executable();
    }
    attributes
}

/// Reads `data` as a format and a list of operations.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(subject) = Subject::arbitrary(&mut input) else {
        return;
    };
    let Ok(ops) = Vec::<Op>::arbitrary_take_rest(input) else {
        return;
    };
    match subject.which {
        Which::FirstStage => {
            let format = subject.first_stage();
            let base = subject.base(&format, Upper::SignExtended);
            check(format, base, first, &ops);
        }
        Which::SecondStage => {
            let format = subject.second_stage();
            let base = subject.base(&format, Upper::Zero);
            check(format, base, second, &ops);
        }
        Which::Shadow => {
            let format = subject.shadow();
            let base = subject.base(&format, Upper::SignExtended);
            check(format, base, shadow, &ops);
        }
    }
}
