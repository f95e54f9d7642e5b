// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Instructions that exit: CPUID, RDMSR, WRMSR, XSETBV, VMCALL, and those that are skipped or refused.

use hvkit_vmcs::exit::{ExitInformation, Gpr};
use hvkit_vmcs::store::FieldsMut;

use super::{Guest, index};

macro_rules! exit {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<'r, V: FieldsMut> {
            /// The guest.
            pub guest: Guest<'r, V>,
            $($(#[$field_doc])* pub $field: $type,)*
        }
    };
}

exit! {
    /// CPUID.
    Cpuid {
        /// EAX: the leaf.
        leaf: u32,
        /// ECX: the subleaf.
        subleaf: u32,
    }
}

impl<'r, V: FieldsMut> Cpuid<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        Self {
            leaf: guest.get(Gpr::RAX) as u32,
            subleaf: guest.get(Gpr::RCX) as u32,
            guest,
        }
    }

    /// Completes the instruction with EAX, EBX, ECX and EDX.
    pub fn answer(mut self, [eax, ebx, ecx, edx]: [u32; 4]) {
        for (register, value) in [
            (Gpr::RAX, eax),
            (Gpr::RBX, ebx),
            (Gpr::RCX, ecx),
            (Gpr::RDX, edx),
        ] {
            self.guest.set(register, value.into());
        }
        self.guest.skip();
    }
}

exit! {
    /// RDMSR.
    ReadMsr {
        /// ECX: which.
        index: u32,
    }
}

impl<'r, V: FieldsMut> ReadMsr<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        Self {
            index: index(&guest),
            guest,
        }
    }

    /// Completes the instruction with a value.
    pub fn answer(mut self, value: u64) {
        self.guest.registers().set_edx_eax(value);
        self.guest.skip();
    }

    /// #GP(0), as for an MSR that does not exist.
    pub fn fault(mut self) {
        self.guest.fault();
    }
}

exit! {
    /// WRMSR.
    WriteMsr {
        /// ECX: which.
        index: u32,
        /// EDX:EAX: the value.
        value: u64,
    }
}

impl<'r, V: FieldsMut> WriteMsr<'r, V> {
    pub(super) fn new(mut guest: Guest<'r, V>) -> Self {
        Self {
            index: index(&guest),
            value: guest.registers().edx_eax(),
            guest,
        }
    }

    /// Completes the instruction; the effect is the caller's.
    pub fn done(mut self) {
        self.guest.skip();
    }

    /// #GP(0), as for an MSR that does not exist, or a value it does not take.
    pub fn fault(mut self) {
        self.guest.fault();
    }
}

exit! {
    /// XSETBV.
    Xsetbv {
        /// ECX: which.
        index: u32,
        /// EDX:EAX: the value.
        value: u64,
    }
}

const fn xcr0_takes(value: u64, supported: u64) -> bool {
    const X87: u64 = 1 << 0;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const MPX: u64 = 3 << 3;
    const AVX_512: u64 = 7 << 5;
    const PKRU: u64 = 1 << 9;
    const AMX: u64 = 3 << 17;
    const APX: u64 = 1 << 19;
    const KNOWN: u64 = X87 | SSE | AVX | MPX | AVX_512 | PKRU | AMX | APX;
    value & !(supported & KNOWN) == 0
        && value & X87 == X87
        && (value & AVX == 0 || value & SSE == SSE)
        && (value & MPX == 0 || value & MPX == MPX)
        && (value & AVX_512 == 0 || value & (AVX | AVX_512) == (AVX | AVX_512))
        && (value & AMX == 0 || value & AMX == AMX)
        && (value & APX == 0 || value & MPX == 0)
}

impl<'r, V: FieldsMut> Xsetbv<'r, V> {
    pub(super) fn new(mut guest: Guest<'r, V>) -> Self {
        Self {
            index: index(&guest),
            value: guest.registers().edx_eax(),
            guest,
        }
    }

    /// Whether this is a write to XCR0 that a processor with the state components `supported` (CPUID.(0DH, 0):EDX:EAX) takes. Components
    /// that are not known here are refused: nobody knows which others they need or exclude.
    ///
    /// SDM Vol. 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features".
    pub const fn is_taken(&self, supported: u64) -> bool {
        self.index == 0 && xcr0_takes(self.value, supported)
    }

    /// Completes the instruction; the effect is the caller's.
    pub fn done(mut self) {
        self.guest.skip();
    }

    /// #GP(0), as for a value that XCR0 does not take.
    pub fn fault(mut self) {
        self.guest.fault();
    }
}

exit! {
    /// VMCALL, with the registers that [`guest::vmcall`](crate::guest::vmcall) uses.
    Hypercall {
        /// RAX: which call.
        number: u64,
        /// RBX, RCX, RDX.
        arguments: [u64; 3],
    }
}

impl<'r, V: FieldsMut> Hypercall<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        Self {
            number: guest.get(Gpr::RAX),
            arguments: [Gpr::RBX, Gpr::RCX, Gpr::RDX].map(|register| guest.get(register)),
            guest,
        }
    }

    /// Completes the instruction with a value in RAX.
    pub fn answer(mut self, value: u64) {
        self.guest.set(Gpr::RAX, value);
        self.guest.skip();
    }

    /// #UD, as without a hypervisor.
    pub fn undefined(mut self) {
        self.guest.undefined();
    }
}

exit! {
    /// An instruction that can be skipped or refused; or an exit of another kind, that is neither.
    Skip {}
}

impl<'r, V: FieldsMut> Skip<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        Self { guest }
    }

    /// All that the processor recorded. `None` if the store lacks a field that every processor has.
    pub fn information(&self) -> Option<ExitInformation> {
        self.guest.information()
    }

    /// Completes the instruction; the effect is the caller's.
    pub fn skip(mut self) {
        self.guest.skip();
    }

    /// #GP(0).
    pub fn fault(mut self) {
        self.guest.fault();
    }

    /// #UD.
    pub fn undefined(mut self) {
        self.guest.undefined();
    }

    /// Lets the guest do again what exited, after the cause was removed: a full page-modification log, a sub-page permission, a
    /// task switch that a fault of the host's stopped.
    pub fn retry(mut self) {
        self.guest.retry();
    }
}
