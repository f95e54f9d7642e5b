// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's registers that no VMCS field holds.

use core::fmt;
use core::ops::{Index, IndexMut};

use hvkit_vmcs::exit::Gpr;

/// General-purpose registers and CR2, as the guest has them while it does not run.
///
/// RSP is in the VMCS: its place here is not used, [`Guest::get`](crate::exit::Guest::get) knows both.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// By the numbers that instructions use.
    general: [u64; 16],
    /// CR2.
    pub cr2: u64,
}

/// Where the assembly of the switch finds CR2.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) const CR2: usize = core::mem::offset_of!(Registers, cr2);

impl Registers {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            general: [0; 16],
            cr2: 0,
        }
    }

    /// The same with one register set.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "four bits number sixteen registers"
    )]
    pub const fn with(mut self, register: Gpr, value: u64) -> Self {
        self.general[(register.0 & 15) as usize] = value;
        self
    }

    /// The 64 bits of EDX:EAX.
    pub fn edx_eax(&self) -> u64 {
        self[Gpr::RDX] << 32 | self[Gpr::RAX] & 0xffff_ffff
    }

    /// Sets RDX and RAX to the halves of a value, as RDMSR does: bits 63:32 of both are cleared.
    pub fn set_edx_eax(&mut self, value: u64) {
        self[Gpr::RAX] = value & 0xffff_ffff;
        self[Gpr::RDX] = value >> 32;
    }
}

/// Numbers above 15 count as their low four bits: the fields that hold them have no more.
impl Index<Gpr> for Registers {
    type Output = u64;

    #[expect(
        clippy::indexing_slicing,
        reason = "four bits number sixteen registers"
    )]
    fn index(&self, register: Gpr) -> &u64 {
        &self.general[usize::from(register.0 & 15)]
    }
}

impl IndexMut<Gpr> for Registers {
    #[expect(
        clippy::indexing_slicing,
        reason = "four bits number sixteen registers"
    )]
    fn index_mut(&mut self, register: Gpr) -> &mut u64 {
        &mut self.general[usize::from(register.0 & 15)]
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for number in (0..16).map(Gpr).filter(|number| *number != Gpr::RSP) {
            write!(f, "{number} = {:016x} ", self[number])?;
        }
        write!(f, "CR2 = {:016x}", self.cr2)
    }
}

/// The debug registers that VMX does not switch. DR7 is in the VMCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR6.
    pub status: u64,
}

/// x87, MMX and SSE registers, as FXSAVE stores them in 64-bit mode. SDM Vol. 2A, "FXSAVE", table "Layout of the 64-Bit Mode
/// FXSAVE64 Map".
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxState([u8; 512]);

/// FCW, MXCSR and the first of XMM0 to XMM15.
const FCW: usize = 0;
const MXCSR: usize = 24;
const XMM: usize = 160;

impl FxState {
    /// As FNINIT and a reset leave them: exceptions masked, registers zero.
    pub const fn new() -> Self {
        let mut state = [0; 512];
        [state[FCW], state[FCW + 1]] = 0x037f_u16.to_le_bytes();
        [state[MXCSR], state[MXCSR + 1]] = 0x1f80_u16.to_le_bytes();
        Self(state)
    }

    /// A vector register; those past XMM15 read as zero.
    pub fn xmm(&self, number: u8) -> u128 {
        let bytes = self.0.get(first_of(number)..).and_then(<[u8]>::first_chunk);
        match bytes {
            Some(bytes) if number < 16 => u128::from_le_bytes(*bytes),
            _ => 0,
        }
    }

    /// Sets a vector register; nothing happens past XMM15.
    pub fn set_xmm(&mut self, number: u8, value: u128) {
        let bytes = self.0.get_mut(first_of(number)..);
        if let (Some(to), true) = (bytes.and_then(<[u8]>::first_chunk_mut), number < 16) {
            *to = value.to_le_bytes();
        }
    }
}

/// Where a vector register is.
fn first_of(number: u8) -> usize {
    usize::from(number).saturating_mul(16).saturating_add(XMM)
}

impl Default for FxState {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        list.entries((0..16).map(|number| self.xmm(number)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn registers_lie_by_their_numbers() {
        assert_eq!(offset_of!(Registers, general), 0);
        assert_eq!(CR2, 128);
        let registers = Registers::new()
            .with(Gpr::RAX, 1)
            .with(Gpr::R15, 2)
            .with(Gpr(16 + 7), 3);
        assert_eq!(registers.general[0], 1);
        assert_eq!(registers.general[15], 2);
        assert_eq!(registers[Gpr::RDI], 3);
    }

    #[test]
    fn pairs_are_the_low_halves() {
        let mut registers = Registers::new()
            .with(Gpr::RAX, 0xffff_ffff_1111_2222)
            .with(Gpr::RDX, 0xffff_ffff_3333_4444);
        assert_eq!(registers.edx_eax(), 0x3333_4444_1111_2222);
        registers.set_edx_eax(0x5555_6666_7777_8888);
        assert_eq!(
            (registers[Gpr::RDX], registers[Gpr::RAX]),
            (0x5555_6666, 0x7777_8888)
        );
    }

    #[test]
    fn they_print_by_name() {
        let text = format!("{:?}", Registers::new().with(Gpr::R8, 0xabc));
        assert!(text.contains("R8 = 0000000000000abc"), "{text}");
        assert!(!text.contains("RSP"), "{text}");
    }

    #[test]
    fn vector_registers_are_where_fxsave_puts_them() {
        let mut state = FxState::new();
        assert_eq!((state.0[0], state.0[1]), (0x7f, 0x03));
        assert_eq!((state.0[24], state.0[25]), (0x80, 0x1f));
        state.set_xmm(0, 0x11);
        state.set_xmm(15, 0x22 << 120);
        state.set_xmm(16, u128::MAX);
        assert_eq!((state.0[160], state.0[415]), (0x11, 0x22));
        assert!(state.0[416..].iter().all(|&byte| byte == 0));
        assert_eq!(
            (state.xmm(15), state.xmm(16), state.xmm(255)),
            (0x22 << 120, 0, 0)
        );
        assert_eq!((size_of::<FxState>(), align_of::<FxState>()), (512, 16));
    }
}
