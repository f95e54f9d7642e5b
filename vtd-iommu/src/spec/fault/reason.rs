// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a request was refused: every fault reason by its name and code.

use core::fmt;

/// A fault reason (FR). Open: a unit newer than this crate yields a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct FaultReason(pub u8);

/// What kind of request a fault reason is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// DMA remapping in legacy mode (or mode-independent conditions found there): 01h to 1Fh.
    Legacy,
    /// Interrupt remapping: 20h to 2Fh.
    Interrupt,
    /// DMA remapping in scalable mode: 30h and above.
    Scalable,
}

macro_rules! reasons {
    ($($name:ident = $code:literal, $qualified:ident, $text:literal;)*) => {
        impl FaultReason {
            $(
                #[doc = concat!("`", stringify!($code), "`: ", $text, ".")]
                pub const $name: Self = Self($code);
            )*

            /// Every reason the specification defines.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// In words, if the specification defines it.
            #[must_use]
            pub const fn text(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($text),)*
                    _ => None,
                }
            }

            /// The constant's name, if the specification defines the reason.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// Whether FPD of the entry that the request reached (context, PASID table or interrupt-remapping
            /// entry) keeps the fault from being recorded. A condition found before such an entry was read, or
            /// in reading it, is recorded always.
            #[must_use]
            pub const fn is_qualified(self) -> bool {
                match self.0 {
                    $($code => reasons!(@ $qualified),)*
                    _ => false,
                }
            }
        }
    };
    (@ qualified) => { true };
    (@ always) => { false };
}

reasons! {
    ROOT_NOT_PRESENT = 0x01, always, "the root entry is not present";
    CONTEXT_NOT_PRESENT = 0x02, qualified, "the context entry is not present";
    CONTEXT_INVALID = 0x03, qualified, "the context entry's programming is invalid";
    ADDRESS_BEYOND_WIDTH = 0x04, qualified, "the address is beyond the guest address width";
    NO_WRITE = 0x05, qualified, "no write permission";
    NO_READ = 0x06, qualified, "no read permission";
    TABLE_ACCESS = 0x07, qualified, "a second-stage table could not be accessed";
    ROOT_ACCESS = 0x08, always, "the root table could not be accessed";
    CONTEXT_ACCESS = 0x09, always, "the context table could not be accessed";
    ROOT_RESERVED = 0x0a, always, "a reserved field of the root entry is not zero";
    CONTEXT_RESERVED = 0x0b, qualified, "a reserved field of the context entry is not zero";
    TABLE_RESERVED = 0x0c, qualified, "a reserved field of a second-stage entry is not zero";
    BLOCKED = 0x0d, qualified, "the context entry blocks translated and translation requests";
    INTERRUPT_RANGE = 0x0e, qualified, "the output address lies in the interrupt address range";

    INTERRUPT_REQUEST_RESERVED = 0x20, always, "a reserved field of the interrupt request is not zero";
    INTERRUPT_INDEX = 0x21, always, "the interrupt index is beyond the interrupt-remapping table";
    INTERRUPT_NOT_PRESENT = 0x22, qualified, "the interrupt-remapping entry is not present";
    INTERRUPT_TABLE_ACCESS = 0x23, always, "the interrupt-remapping table could not be accessed";
    INTERRUPT_ENTRY_RESERVED = 0x24, qualified, "a reserved field of the interrupt-remapping entry is not zero";
    COMPATIBILITY_BLOCKED = 0x25, always, "a compatibility-format interrupt request was blocked";
    INTERRUPT_SOURCE = 0x26, qualified, "the interrupt request's source-id failed verification";
    POSTED_DESCRIPTOR_ACCESS = 0x27, qualified, "the posted-interrupt descriptor could not be accessed";
    POSTED_DESCRIPTOR_RESERVED = 0x28, qualified, "a reserved field of the posted-interrupt descriptor is not zero";

    SM_ROOT_TABLE_INVALID = 0x30, always, "the root table address register is invalid";
    SM_MODE_REQUEST_WITH_PASID = 0x31, always, "a request with PASID, a translation or translated request in legacy mode";
    SM_MODE_PAGE_REQUEST = 0x32, always, "a page request in legacy mode";
    SM_ROOT_ACCESS = 0x38, always, "the root entry could not be accessed (scalable mode)";
    SM_ROOT_NOT_PRESENT = 0x39, always, "the root entry's half is not present (scalable mode)";
    SM_ROOT_RESERVED = 0x3a, always, "a reserved field of the root entry is not zero (scalable mode)";
    SM_CONTEXT_ACCESS = 0x40, always, "the context entry could not be accessed (scalable mode)";
    SM_CONTEXT_NOT_PRESENT = 0x41, qualified, "the context entry is not present (scalable mode)";
    SM_CONTEXT_RESERVED = 0x42, qualified, "a reserved field of the context entry is not zero (scalable mode)";
    SM_CONTEXT_INVALID = 0x43, qualified, "the context entry's programming is invalid (scalable mode)";
    SM_DEVICE_TLB_DISABLED = 0x44, qualified, "the context entry does not enable the device-TLB";
    SM_PASID_DISABLED = 0x45, qualified, "the context entry does not enable PASIDs";
    SM_PASID_TOO_LARGE = 0x46, qualified, "the PASID is beyond the PASID directory";
    SM_PAGE_REQUESTS_DISABLED = 0x47, qualified, "the context entry does not enable page requests";
    SM_RID_PASID = 0x48, qualified, "RID_PASID of the context entry is beyond the PASID directory";
    SM_TRANSLATED_WITH_PASID = 0x49, qualified, "the context entry does not enable PASIDs in translated requests";
    SM_PASID_DIRECTORY_ACCESS = 0x50, always, "the PASID directory entry could not be accessed";
    SM_PASID_DIRECTORY_NOT_PRESENT = 0x51, qualified, "the PASID directory entry is not present";
    SM_PASID_DIRECTORY_RESERVED = 0x52, qualified, "a reserved field of the PASID directory entry is not zero";
    SM_PASID_TABLE_ACCESS = 0x58, always, "the PASID table entry could not be accessed";
    SM_PASID_NOT_PRESENT = 0x59, qualified, "the PASID table entry is not present";
    SM_PASID_RESERVED = 0x5a, qualified, "a reserved field of the PASID table entry is not zero";
    SM_PASID_INVALID = 0x5b, qualified, "the PASID table entry's programming is invalid";
    SM_EXECUTE_DISABLED = 0x5c, qualified, "the PASID table entry does not enable execute requests";
    SM_SUPERVISOR_DISABLED = 0x5d, qualified, "the PASID table entry does not enable supervisor requests";
    SM_FIRST_STAGE_ACCESS = 0x70, qualified, "a first-stage entry could not be accessed";
    SM_FIRST_STAGE_NOT_PRESENT = 0x71, qualified, "a first-stage entry is not present";
    SM_FIRST_STAGE_RESERVED = 0x72, qualified, "a reserved field of a first-stage entry is not zero";
    SM_FIRST_STAGE_TOP_ACCESS = 0x73, qualified, "the first-stage top-level entry could not be accessed";
    SM_FIRST_STAGE_BEYOND_WIDTH = 0x74, qualified, "a first-stage table's address is beyond the guest address width (nested)";
    SM_FIRST_STAGE_TOP_NO_READ = 0x75, qualified, "the second stage refuses reading the first-stage top-level entry (nested)";
    SM_FIRST_STAGE_NO_READ = 0x76, qualified, "the second stage refuses reading a first-stage entry (nested)";
    SM_FIRST_STAGE_NO_WRITE = 0x77, qualified, "the second stage refuses updating a first-stage entry (nested)";
    SM_SECOND_STAGE_ACCESS = 0x78, qualified, "a second-stage entry could not be accessed (scalable mode)";
    SM_SECOND_STAGE_NO_PERMISSION = 0x79, qualified, "a second-stage entry grants neither read nor write (scalable mode)";
    SM_SECOND_STAGE_RESERVED = 0x7a, qualified, "a reserved field of a second-stage entry is not zero (scalable mode)";
    SM_SECOND_STAGE_TOP_ACCESS = 0x7b, qualified, "the second-stage top-level table could not be accessed (scalable mode)";
    SM_SECOND_STAGE_NO_SNOOP_UPDATE = 0x7c, qualified, "a second-stage accessed or dirty bit needs an update that does not snoop";
    SM_NOT_CANONICAL = 0x80, qualified, "the address is not canonical (first-stage)";
    SM_NO_USER = 0x81, qualified, "no user permission (first-stage)";
    SM_NO_EXECUTE = 0x82, qualified, "no execute permission";
    SM_ADDRESS_BEYOND_WIDTH = 0x83, qualified, "the address is beyond the guest address width (scalable mode)";
    SM_OUTPUT_BEYOND_WIDTH = 0x84, qualified, "the first stage's output is beyond the second stage's width (nested)";
    SM_NO_WRITE = 0x85, qualified, "no write permission (scalable mode)";
    SM_NO_READ = 0x86, qualified, "no read permission (scalable mode)";
    SM_INTERRUPT_RANGE = 0x87, qualified, "the output address lies in the interrupt address range (scalable mode)";
    SM_FIRST_STAGE_NO_SNOOP_UPDATE = 0x90, qualified, "a first-stage accessed or dirty bit needs an update that does not snoop";
    SM_FIRST_STAGE_UPDATE_FAILED = 0x91, qualified, "a first-stage accessed or dirty bit could not be updated";
}

impl FaultReason {
    /// What kind of request it is about; `None` for 0 and codes above 2Fh that are not defined are
    /// [`Class::Scalable`].
    #[must_use]
    pub const fn class(self) -> Option<Class> {
        match self.0 {
            0 => None,
            1..=0x1f => Some(Class::Legacy),
            0x20..=0x2f => Some(Class::Interrupt),
            _ => Some(Class::Scalable),
        }
    }
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "fault reason {:#04x}", self.0),
        }
    }
}

impl fmt::Debug for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}({:#04x})", self.0),
            None => write!(f, "FaultReason({:#04x})", self.0),
        }
    }
}
