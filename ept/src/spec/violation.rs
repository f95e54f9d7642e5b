// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The exit qualification of an EPT violation: read one that a processor wrote, or write the one that a
//! processor would have written. No other place in this crate spells these bits.
//!
//! ```text
//!  16  15  14  13  12 | 11  10   9 |  8    7  |   6      5    4    3  |  2     1     0
//! |async|GPV|SSS|sstk|NMI | XD| R/W|user|xlate|valid|userX| X  | W  | R  |fetch|write|read|
//!                          page, advanced  linear       granted by EPT       the access
//! ```
//!
//! An EPT misconfiguration has no qualification: the exit reason and the guest-physical address are all.

use bitflags::bitflags;

use super::capability::EptVpidCap;
use super::entry::{Controls, Rights};

bitflags! {
    /// What an access does. Read and write together are a read-modify-write, or any access to a guest
    /// paging-structure entry that counts as a write.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Accesses: u8 {
        /// A data read.
        const READ = 1 << 0;
        /// A data write.
        const WRITE = 1 << 1;
        /// An instruction fetch.
        const FETCH = 1 << 2;
    }

    /// The exit qualification of an EPT violation. SDM 3C, "Exit Qualification for EPT Violations".
    ///
    /// Bits without a name here are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Qualification: u64 {
        /// Bit 0: a data read.
        const READ = 1 << 0;
        /// Bit 1: a data write.
        const WRITE = 1 << 1;
        /// Bit 2: an instruction fetch.
        const FETCH = 1 << 2;
        /// Bit 3: bit 0 of every entry used.
        const READABLE = 1 << 3;
        /// Bit 4: bit 1 of every entry used.
        const WRITABLE = 1 << 4;
        /// Bit 5: bit 2 of every entry used.
        const EXECUTABLE = 1 << 5;
        /// Bit 6: bit 10 of every entry used; undefined without mode-based execute control.
        const USER_EXECUTABLE = 1 << 6;
        /// Bit 7: the guest linear-address field is valid.
        const LINEAR_ADDRESS_VALID = 1 << 7;
        /// Bit 8: the access was to the translation of that address, not to a paging-structure entry.
        const TRANSLATION = 1 << 8;
        /// Bit 9: a user-mode linear address.
        const USER_MODE = 1 << 9;
        /// Bit 10: paging maps it to a read/write page.
        const PAGE_WRITABLE = 1 << 10;
        /// Bit 11: paging maps it to an execute-disable page.
        const PAGE_EXECUTE_DISABLE = 1 << 11;
        /// Bit 12: NMI unblocking due to IRET.
        const NMI_UNBLOCKING = 1 << 12;
        /// Bit 13: a shadow-stack access.
        const SHADOW_STACK = 1 << 13;
        /// Bit 14: bit 60 of the entry that maps the page, under supervisor shadow-stack control.
        const SUPERVISOR_SHADOW_STACK_PAGE = 1 << 14;
        /// Bit 15: guest-paging verification refused.
        const GUEST_PAGING_VERIFICATION = 1 << 15;
        /// Bit 16: not caused by an instruction or an event delivery (trace output, PEBS, user interrupts).
        const ASYNCHRONOUS = 1 << 16;
        /// What has no name yet.
        const _ = !0;
    }

    /// Bits 16:12 of a qualification, at their own positions: each is a fact by itself.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct ViolationFlags: u64 {
        /// NMI unblocking due to IRET.
        const NMI_UNBLOCKING = Qualification::NMI_UNBLOCKING.bits();
        /// A shadow-stack access.
        const SHADOW_STACK = Qualification::SHADOW_STACK.bits();
        /// The page may hold a supervisor shadow stack.
        const SUPERVISOR_SHADOW_STACK_PAGE = Qualification::SUPERVISOR_SHADOW_STACK_PAGE.bits();
        /// Guest-paging verification refused.
        const GUEST_PAGING_VERIFICATION = Qualification::GUEST_PAGING_VERIFICATION.bits();
        /// Asynchronous to instruction execution.
        const ASYNCHRONOUS = Qualification::ASYNCHRONOUS.bits();
    }
}

/// Whose linear address it is: user-mode if the U/S flag is 1 in every guest entry that maps it, or if
/// paging is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Mode {
    /// A supervisor-mode linear address.
    Supervisor,
    /// A user-mode linear address.
    User,
}

/// What guest paging says of the page that a linear address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct PageRights {
    /// Whose linear address it is.
    pub mode: Mode,
    /// R/W is 1 in every guest entry that maps it.
    pub writable: bool,
    /// XD is 1 in some guest entry that maps it, and means something.
    pub execute_disable: bool,
}

impl PageRights {
    /// With CR0.PG = 0 every linear address is user-mode, writable and executable.
    pub const PAGING_OFF: Self = Self {
        mode: Mode::User,
        writable: true,
        execute_disable: false,
    };
}

/// What the guest-physical address of an access has to do with a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum LinearAddress {
    /// Nothing, or nothing that is reported: a load of PDPTEs by MOV to CR, trace output.
    None,
    /// It is that of a paging-structure entry, read or updated to translate the linear address.
    PagingStructure,
    /// It is the translation of the linear address; what paging says of its page, where the processor
    /// reports that.
    Translation(Option<PageRights>),
}

/// An EPT violation, as facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// What the access was.
    pub accesses: Accesses,
    /// What every entry used grants together; nothing if one was not present.
    pub granted: Rights,
    /// How a linear address led there.
    pub linear: LinearAddress,
    /// Bits 16:12.
    pub flags: ViolationFlags,
}

impl Violation {
    /// The qualification that a processor with `capability`, under `controls`, would report.
    ///
    /// Bits that are undefined there are clear.
    #[must_use]
    pub fn qualification(self, capability: EptVpidCap, controls: Controls) -> Qualification {
        use Qualification as Q;
        let mut q = Q::from_bits_retain(u64::from(self.accesses.bits()));
        q |= Q::from_bits_retain((self.granted & Rights::READ_WRITE_EXECUTE).bits() << 3);
        if controls.contains(Controls::MODE_BASED_EXECUTE) {
            q.set(
                Q::USER_EXECUTABLE,
                self.granted.contains(Rights::USER_EXECUTE),
            );
        }
        match self.linear {
            LinearAddress::None => {}
            LinearAddress::PagingStructure => q |= Q::LINEAR_ADDRESS_VALID,
            LinearAddress::Translation(page) => {
                q |= Q::LINEAR_ADDRESS_VALID | Q::TRANSLATION;
                let advanced = EptVpidCap::ADVANCED_VIOLATION_INFORMATION;
                if let Some(page) = page.filter(|_| capability.contains(advanced)) {
                    q.set(Q::USER_MODE, page.mode == Mode::User);
                    q.set(Q::PAGE_WRITABLE, page.writable);
                    q.set(Q::PAGE_EXECUTE_DISABLE, page.execute_disable);
                }
            }
        }
        let mut flags = self.flags;
        if !controls.contains(Controls::SUPERVISOR_SHADOW_STACK) {
            flags.remove(ViolationFlags::SUPERVISOR_SHADOW_STACK_PAGE);
        }
        q | Q::from_bits_retain(flags.bits())
    }

    /// What `qualification` says, read from a processor with `capability` under `controls`.
    ///
    /// Total: bits that are undefined there or have no name are not looked at.
    #[must_use]
    pub fn decode(
        qualification: Qualification,
        capability: EptVpidCap,
        controls: Controls,
    ) -> Self {
        use Qualification as Q;
        let q = qualification;
        let mut granted = Rights::from_bits_truncate(q.bits() >> 3 & 7);
        if controls.contains(Controls::MODE_BASED_EXECUTE) {
            granted.set(Rights::USER_EXECUTE, q.contains(Q::USER_EXECUTABLE));
        }
        let linear = match (
            q.contains(Q::LINEAR_ADDRESS_VALID),
            q.contains(Q::TRANSLATION),
        ) {
            (false, _) => LinearAddress::None,
            (true, false) => LinearAddress::PagingStructure,
            (true, true) => {
                let advanced = capability.contains(EptVpidCap::ADVANCED_VIOLATION_INFORMATION);
                LinearAddress::Translation(advanced.then(|| PageRights {
                    mode: if q.contains(Q::USER_MODE) {
                        Mode::User
                    } else {
                        Mode::Supervisor
                    },
                    writable: q.contains(Q::PAGE_WRITABLE),
                    execute_disable: q.contains(Q::PAGE_EXECUTE_DISABLE),
                }))
            }
        };
        Self {
            accesses: Accesses::from_bits_truncate((q.bits() & 7) as u8),
            granted,
            linear,
            flags: ViolationFlags::from_bits_truncate(q.bits()),
        }
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Qualification {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        u64::arbitrary(u).map(Self::from_bits_retain)
    }
}

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Violation {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            accesses: Accesses::from_bits_truncate(u.arbitrary()?),
            granted: Rights::from_bits_truncate(u.arbitrary()?),
            linear: u.arbitrary()?,
            flags: ViolationFlags::from_bits_truncate(u.arbitrary()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVANCED: EptVpidCap = EptVpidCap::from_msr(1 << 22);
    const PLAIN: EptVpidCap = EptVpidCap::from_msr(0);

    const USER_PAGE: PageRights = PageRights {
        mode: Mode::User,
        writable: true,
        execute_disable: true,
    };

    fn violation(accesses: Accesses, granted: Rights, linear: LinearAddress) -> Violation {
        Violation {
            accesses,
            granted,
            linear,
            flags: ViolationFlags::empty(),
        }
    }

    /// Raw qualifications, each with the facts that the manual's table reads in it.
    #[test]
    fn raw_qualifications() {
        let none = Controls::empty();
        let mbe = Controls::MODE_BASED_EXECUTE;
        let sss = Controls::SUPERVISOR_SHADOW_STACK;
        let translation = LinearAddress::Translation;
        let rwx = Rights::READ_WRITE_EXECUTE;
        let (r, w, x) = (Accesses::READ, Accesses::WRITE, Accesses::FETCH);
        let cases = [
            // A read of a page that is not there.
            (
                0x181,
                PLAIN,
                none,
                violation(r, Rights::empty(), translation(None)),
            ),
            // A write to a read-only page.
            (
                0x18a,
                PLAIN,
                none,
                violation(w, Rights::READ, translation(None)),
            ),
            // A fetch from one that is not executable.
            (
                0x19c,
                PLAIN,
                none,
                violation(x, Rights::READ_WRITE, translation(None)),
            ),
            // A read of a paging-structure entry that counts as a write, to a read/execute page.
            (
                0x0ab,
                ADVANCED,
                none,
                violation(
                    r | w,
                    Rights::READ | Rights::EXECUTE,
                    LinearAddress::PagingStructure,
                ),
            ),
            // A load of PDPTEs.
            (
                0x001,
                ADVANCED,
                none,
                violation(r, Rights::empty(), LinearAddress::None),
            ),
            // Advanced information: user-mode, writable, execute-disable.
            (
                0xf8a,
                ADVANCED,
                none,
                violation(w, Rights::READ, translation(Some(USER_PAGE))),
            ),
            // A supervisor fetch from a page that only user mode may fetch from.
            (
                0x1cc,
                ADVANCED,
                mbe,
                violation(
                    x,
                    Rights::READ | Rights::USER_EXECUTE,
                    translation(Some(PageRights {
                        mode: Mode::Supervisor,
                        writable: false,
                        execute_disable: false,
                    })),
                ),
            ),
        ];
        for (raw, capability, controls, facts) in cases {
            let q = Qualification::from_bits_retain(raw);
            assert_eq!(facts.qualification(capability, controls), q, "{raw:#x}");
            assert_eq!(
                Violation::decode(q, capability, controls),
                facts,
                "{raw:#x}"
            );
        }
        let flags = [
            (0x1000, ViolationFlags::NMI_UNBLOCKING),
            (0x2000, ViolationFlags::SHADOW_STACK),
            (0x4000, ViolationFlags::SUPERVISOR_SHADOW_STACK_PAGE),
            (0x8000, ViolationFlags::GUEST_PAGING_VERIFICATION),
            (0x1_0000, ViolationFlags::ASYNCHRONOUS),
        ];
        for (raw, flag) in flags {
            let facts = Violation {
                flags: flag,
                ..violation(r, rwx, LinearAddress::None)
            };
            let q = Qualification::from_bits_retain(raw | 0x39);
            assert_eq!(facts.qualification(PLAIN, sss), q);
            assert_eq!(Violation::decode(q, PLAIN, sss), facts);
        }
    }

    #[test]
    fn what_is_undefined_is_not_reported() {
        let page = LinearAddress::Translation(Some(USER_PAGE));
        let facts = Violation {
            flags: ViolationFlags::SUPERVISOR_SHADOW_STACK_PAGE,
            ..violation(Accesses::WRITE, Rights::READ | Rights::USER_EXECUTE, page)
        };
        let plain = facts.qualification(PLAIN, Controls::empty());
        assert_eq!(plain.bits(), 0x18a, "no bit 6, 9, 10, 11 or 14");
        let all = facts.qualification(ADVANCED, Controls::all());
        assert_eq!(all.bits(), 0x4fca);
    }

    /// Every 17-bit qualification, decoded and spelled again: the same but for undefined bits.
    #[test]
    fn every_qualification_is_read_in_full() {
        for raw in 0..1u64 << 17 {
            let q = Qualification::from_bits_retain(raw);
            let controls = Controls::all();
            let again = Violation::decode(q, ADVANCED, controls).qualification(ADVANCED, controls);
            let undefined = match raw >> 7 & 3 {
                0b11 => 0,
                0b01 => 0xe00,
                _ => 0xf00,
            };
            assert_eq!(again.bits(), raw & !undefined, "{raw:#x}");
        }
        let future = Qualification::from_bits_retain(1 << 63 | 0x181);
        let facts = Violation::decode(future, PLAIN, Controls::empty());
        assert_eq!(facts.qualification(PLAIN, Controls::empty()).bits(), 0x181);
    }
}
