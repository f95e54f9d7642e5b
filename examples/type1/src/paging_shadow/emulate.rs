// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The instruction that writes a guarded table, done for the guest.
//!
//! Only what kernels write page tables with: moves, exchanges, read-modify-write of one word, string stores and moves. Where
//! it writes the fault says, if that is where the operand begins: of one that crosses pages it is the page that faulted.

use core::fmt;
use hvkit_shadow_paging::guest::{Access, Kind, Privilege, translate};
use hvkit_vmcs::exit::Gpr;
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmx::exit::Guest;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::map::{GuestMemory, mask};
use hvkit_shadow_paging::guest::PagingMode;

/// The longest instruction. SDM Vol. 2A, "Instruction Format".
const LONGEST: usize = 15;
const CS_LONG: u32 = 1 << 13;
const CS_DEFAULT_32: u32 = 1 << 14;
const PAGE: u64 = 4096;

/// CF, PF, AF, ZF, SF and OF.
const FLAGS: u64 = CF | PF | AF | ZF | SF | OF;
const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const DF: u64 = 1 << 10;

/// What was not done.
#[derive(Clone, Copy)]
pub enum NotDone {
    /// No instruction writes: an event is delivered, and pushes its frame.
    Delivery,
    /// The instruction's bytes, or what it reads, cannot be reached, or are not in the guest's RAM.
    Unreachable,
    /// An instruction that is not known here.
    Unknown(Code),
    /// One that crosses words or pages.
    Crosses,
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivery => f.write_str("the delivery of an event writes"),
            Self::Unreachable => f.write_str("instruction or operand cannot be reached"),
            Self::Unknown(code) => write!(f, "no emulation for instruction form {code:?}"),
            Self::Crosses => f.write_str("an access that crosses words"),
        }
    }
}

/// What was written, in bytes. Nothing, if a comparison failed.
pub struct Written(pub u64);

/// A guest about to write at a known place.
pub struct Write<'g, 'r, 'm, V: FieldsMut> {
    pub guest: &'g mut Guest<'r, V>,
    pub memory: &'m GuestMemory<'m>,
    pub mode: &'m PagingMode,
    /// The privilege of its data accesses.
    pub privilege: Privilege,
    /// Where it faulted.
    pub linear: u64,
    /// Where that is.
    pub physical: u64,
}

impl<V: FieldsMut> Write<'_, '_, '_, V> {
    /// Does the instruction, or one iteration of it, and goes past it.
    pub fn emulate(mut self) -> Result<Written, NotDone> {
        if self.guest.original_event().is_some() {
            return Err(NotDone::Delivery);
        }
        let instruction = self.fetch()?;
        let size = instruction.memory_size().size() as u64;
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(NotDone::Unknown(instruction.code()));
        }
        let begins = self.destination(&instruction, size);
        let begins = begins.ok_or(NotDone::Unknown(instruction.code()))?;
        if begins != self.linear || self.physical & 7 > 8 - size {
            return Err(NotDone::Crosses);
        }
        let old = self.memory.load(self.physical, size);
        let old = old.ok_or(NotDone::Unreachable)?;
        let (new, done) = match instruction.mnemonic() {
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                return self.string(&instruction, size, |write| Ok(write.guest.get(Gpr::RAX)));
            }
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                return self.string(&instruction, size, |write| write.moved(&instruction, size));
            }
            _ => self.new_value(&instruction, old, size)?,
        };
        if done {
            self.memory.store(self.physical, size, new);
        }
        self.finish(instruction.len());
        Ok(Written(if done { size } else { 0 }))
    }

    /// What memory shall hold, and whether it is stored; the other operand and the flags are set.
    fn new_value(
        &mut self,
        instruction: &Instruction,
        old: u64,
        size: u64,
    ) -> Result<(u64, bool), NotDone> {
        let unknown = NotDone::Unknown(instruction.code());
        // A register as the destination would mean that memory is only read.
        if instruction.op0_kind() != OpKind::Memory {
            return Err(unknown);
        }
        let source = match instruction.op_count() {
            1 => 1,
            _ => self.operand(instruction).ok_or(unknown)? & mask(size),
        };
        let bit = 1 << (source & (8 * size - 1));
        let carry_is_bit = if old & bit != 0 { CF } else { 0 };
        Ok(match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti => (source, true),
            Mnemonic::Xchg => {
                self.set(instruction.op1_register(), old).ok_or(unknown)?;
                (source, true)
            }
            Mnemonic::Cmpxchg => {
                let expected = self.guest.get(Gpr::RAX) & mask(size);
                self.flags(subtracted(expected, old, size), FLAGS);
                if expected != old {
                    self.set(accumulator(size), old).ok_or(unknown)?;
                }
                (source, expected == old)
            }
            Mnemonic::Xadd => {
                let sum = old.wrapping_add(source) & mask(size);
                self.set(instruction.op1_register(), old).ok_or(unknown)?;
                self.flags(added(old, source, size), FLAGS);
                (sum, true)
            }
            Mnemonic::And => self.logic(old & source, size),
            Mnemonic::Or => self.logic(old | source, size),
            Mnemonic::Xor => self.logic(old ^ source, size),
            Mnemonic::Add => {
                self.flags(added(old, source, size), FLAGS);
                (old.wrapping_add(source), true)
            }
            Mnemonic::Sub => {
                self.flags(subtracted(old, source, size), FLAGS);
                (old.wrapping_sub(source), true)
            }
            Mnemonic::Inc => {
                self.flags(added(old, 1, size), FLAGS & !CF);
                (old.wrapping_add(1), true)
            }
            Mnemonic::Dec => {
                self.flags(subtracted(old, 1, size), FLAGS & !CF);
                (old.wrapping_sub(1), true)
            }
            Mnemonic::Bts => {
                self.flags(carry_is_bit, CF);
                (old | bit, true)
            }
            Mnemonic::Btr => {
                self.flags(carry_is_bit, CF);
                (old & !bit, true)
            }
            Mnemonic::Btc => {
                self.flags(carry_is_bit, CF);
                (old ^ bit, true)
            }
            _ => return Err(unknown),
        })
    }

    fn logic(&mut self, value: u64, size: u64) -> (u64, bool) {
        self.flags(result_flags(value, size), FLAGS);
        (value, true)
    }

    /// STOS and MOVS: one iteration.
    fn string(
        mut self,
        instruction: &Instruction,
        size: u64,
        value: impl FnOnce(&mut Self) -> Result<u64, NotDone>,
    ) -> Result<Written, NotDone> {
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        // Other address sizes keep part of the registers.
        if instruction.op0_kind() != OpKind::MemoryESRDI {
            return Err(NotDone::Unknown(instruction.code()));
        }
        let value = value(&mut self)?;
        self.memory.store(self.physical, size, value & mask(size));
        let step = if self.guest.read(f::GUEST_RFLAGS) & DF != 0 {
            size.wrapping_neg()
        } else {
            size
        };
        let mut advance = |register| {
            let moved = self.guest.get(register).wrapping_add(step);
            self.guest.set(register, moved);
        };
        advance(Gpr::RDI);
        if instruction.op_count() == 2 && instruction.op1_kind() == OpKind::MemorySegRSI {
            advance(Gpr::RSI);
        }
        let left = self.guest.get(Gpr::RCX).wrapping_sub(1);
        if repeated {
            self.guest.set(Gpr::RCX, left);
        }
        if !repeated || left == 0 {
            self.finish(instruction.len());
        }
        Ok(Written(size))
    }

    /// What MOVS reads.
    fn moved(&mut self, instruction: &Instruction, size: u64) -> Result<u64, NotDone> {
        let base = match instruction.segment_prefix() {
            Register::FS => self.guest.read(f::GUEST_FS_BASE),
            Register::GS => self.guest.read(f::GUEST_GS_BASE),
            _ => 0,
        };
        let from = self.guest.get(Gpr::RSI).wrapping_add(base);
        if from % PAGE + size > PAGE {
            return Err(NotDone::Crosses);
        }
        let access = Access::new(Kind::Read, self.privilege);
        let found = translate(self.mode, self.memory, from, access);
        let found = found.map_err(|_| NotDone::Unreachable)?;
        let loaded = self.memory.load(found.physical, size);
        loaded.ok_or(NotDone::Unreachable)
    }

    /// The instruction at RIP.
    fn fetch(&mut self) -> Result<Instruction, NotDone> {
        let rip = self.guest.read(f::GUEST_RIP);
        let rights = self.guest.read(f::GUEST_CS_ACCESS_RIGHTS);
        let bits = if self.guest.is_64_bit() && rights & CS_LONG != 0 {
            64
        } else if rights & CS_DEFAULT_32 != 0 {
            32
        } else {
            16
        };
        let base = if bits == 64 {
            0
        } else {
            self.guest.read(f::GUEST_CS_BASE)
        };
        let mut bytes = [0; LONGEST];
        let mut length = 0;
        let mut page = None;
        for byte in &mut bytes {
            let at = base.wrapping_add(rip).wrapping_add(length as u64);
            if page.is_none() || at % PAGE == 0 {
                let access = Access::new(Kind::Fetch, self.privilege);
                let found = translate(self.mode, self.memory, at, access);
                match found {
                    Ok(found) => page = Some(found.physical.wrapping_sub(at)),
                    // What follows may not be part of it.
                    Err(_) => break,
                }
            }
            let Some(distance) = page else { break };
            let Some(loaded) = self.memory.load(at.wrapping_add(distance), 1) else {
                break;
            };
            *byte = loaded as u8;
            length += 1;
        }
        let bytes = bytes.get(..length).unwrap_or_default();
        let instruction = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return Err(NotDone::Unreachable);
        }
        Ok(instruction)
    }

    /// The linear address at which the first operand begins, if it is in memory.
    fn destination(&self, instruction: &Instruction, size: u64) -> Option<u64> {
        if !matches!(instruction.op0_kind(), OpKind::Memory | OpKind::MemoryESRDI) {
            return None;
        }
        let is_64_bit = self.guest.is_64_bit();
        let base = instruction.virtual_address(0, 0, |register, _, _| match register {
            Register::FS => Some(self.guest.read(f::GUEST_FS_BASE)),
            Register::GS => Some(self.guest.read(f::GUEST_GS_BASE)),
            Register::CS | Register::DS | Register::ES | Register::SS if is_64_bit => Some(0),
            Register::CS => Some(self.guest.read(f::GUEST_CS_BASE)),
            Register::DS => Some(self.guest.read(f::GUEST_DS_BASE)),
            Register::ES => Some(self.guest.read(f::GUEST_ES_BASE)),
            Register::SS => Some(self.guest.read(f::GUEST_SS_BASE)),
            register => {
                let value = self.guest.get(general(register)?);
                Some(value & mask(register.size() as u64))
            }
        })?;
        // A bit's number in a register is signed and may lie outside of the operand.
        let words = match instruction.mnemonic() {
            Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op1_kind() == OpKind::Register =>
            {
                let unused = 64 - 8 * size;
                let bit = (self.operand(instruction)? << unused) as i64 >> unused;
                bit.div_euclid(8 * size as i64)
            }
            _ => 0,
        };
        let linear = base.wrapping_add((words as u64).wrapping_mul(size));
        Some(if is_64_bit {
            linear
        } else {
            linear & 0xffff_ffff
        })
    }

    /// The second operand.
    fn operand(&self, instruction: &Instruction) -> Option<u64> {
        match instruction.op1_kind() {
            OpKind::Register => {
                let register = instruction.op1_register();
                let value = self.guest.get(general(register)?);
                Some(if is_high_byte(register) {
                    value >> 8
                } else {
                    value
                })
            }
            kind if kind != OpKind::Memory => instruction.try_immediate(1).ok(),
            _ => None,
        }
    }

    /// Writes a general-purpose register as an instruction does: 32 bits clear what is above, fewer keep it.
    fn set(&mut self, register: Register, value: u64) -> Option<()> {
        let number = general(register)?;
        let old = self.guest.get(number);
        let new = match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => old & !0xffff | value & 0xffff,
            _ if is_high_byte(register) => old & !0xff00 | (value & 0xff) << 8,
            _ => old & !0xff | value & 0xff,
        };
        self.guest.set(number, new);
        Some(())
    }

    /// Sets those flags of `which`.
    fn flags(&mut self, flags: u64, which: u64) {
        let old = self.guest.read(f::GUEST_RFLAGS);
        let _ = self
            .guest
            .vmcs()
            .write(f::GUEST_RFLAGS, old & !which | flags & which);
    }

    /// Goes past the instruction: as [`Guest::skip`], whose length this exit does not record.
    fn finish(&mut self, length: usize) {
        let before = self.guest.read(f::GUEST_RIP);
        self.guest.skip();
        let wide = if self.guest.is_64_bit() {
            u64::MAX
        } else {
            0xffff_ffff
        };
        let next = before.wrapping_add(length as u64) & wide;
        let _ = self.guest.vmcs().write(f::GUEST_RIP, next);
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    )
}

/// The whole register; `None` if it is not a general-purpose one.
fn general(register: Register) -> Option<Gpr> {
    let whole = register.full_register();
    (Register::RAX..=Register::R15)
        .contains(&whole)
        .then(|| Gpr(whole.number() as u8))
}

const fn accumulator(size: u64) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// PF, ZF and SF of a result.
fn result_flags(value: u64, size: u64) -> u64 {
    let value = value & mask(size);
    let mut flags = 0;
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    if value == 0 {
        flags |= ZF;
    }
    if value >> (8 * size - 1) & 1 != 0 {
        flags |= SF;
    }
    flags
}

fn added(a: u64, b: u64, size: u64) -> u64 {
    let sum = a.wrapping_add(b) & mask(size);
    let carries = a & b | (a | b) & !sum;
    arithmetic(sum, carries, !(a ^ b) & (a ^ sum), size)
}

fn subtracted(a: u64, b: u64, size: u64) -> u64 {
    let difference = a.wrapping_sub(b) & mask(size);
    let borrows = !a & b | (!a | b) & difference;
    arithmetic(difference, borrows, (a ^ b) & (a ^ difference), size)
}

/// Flags by the carries out of each bit, and the bit that says overflow on top.
fn arithmetic(result: u64, carries: u64, overflow: u64, size: u64) -> u64 {
    let top = 8 * size - 1;
    let mut flags = result_flags(result, size);
    if carries >> top & 1 != 0 {
        flags |= CF;
    }
    if carries >> 3 & 1 != 0 {
        flags |= AF;
    }
    if overflow >> top & 1 != 0 {
        flags |= OF;
    }
    flags
}
