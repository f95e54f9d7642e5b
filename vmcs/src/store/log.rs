// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMCSs from the logs of other hypervisors: what Linux's KVM and Xen print when a VM entry fails.
//!
//! KVM prints its VMCS with `kvm_intel.dump_invalid_vmcs=1`, Xen always, and with the debug key `v`. Both name
//! most fields alike. Time stamps and prefixes before the fields do not matter, nor do lines of others between
//! them. A log names no capabilities and not every field: the result is a [`Snapshot`].
//!
//! ```
//! use hvkit_vmcs::{fields, store::{Fields, logged}};
//!
//! let log = b"\
//! [  12.50] kvm_intel: *** Guest State ***
//! [  12.50] kvm_intel: RSP = 0x0000000000001000  RIP = 0x000000000000fff0
//! [  12.50] kvm_intel: *** Host State ***
//! [  12.50] kvm_intel: RIP = 0xffffffffc0a01234  RSP = 0xffffc90000a0fe00
//! ";
//! let found = logged(log).next().expect("one dump")?;
//! assert_eq!(found.line, 1);
//! assert_eq!(found.vmcs.read(fields::GUEST_RIP), Some(0xfff0));
//! assert_eq!(found.vmcs.read(fields::HOST_RIP), Some(0xffff_ffff_c0a0_1234));
//! # Ok::<(), hvkit_vmcs::store::LogError>(())
//! ```

use super::{Fields, FieldsMut, Snapshot};
use crate::{encoding::Encoding, fields as f};

/// A VMCS found in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The line, from 1, on which it begins.
    pub line: usize,
    /// What was printed of it.
    pub vmcs: Snapshot,
}

/// A value in a log has more bits than its field: the log is damaged, or not what it looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, byte {offset}: the value is too wide for {field}")]
pub struct LogError {
    /// The line, from 1.
    pub line: usize,
    /// The byte of the whole text, from 0, where the value begins.
    pub offset: usize,
    /// The field that it should be of.
    pub field: Encoding,
}

/// The VMCSs in a log, in order. Text without any gives none.
pub fn logged(text: &[u8]) -> impl Iterator<Item = Result<Logged, LogError>> {
    let mut lines = Lines {
        text,
        at: 0,
        number: 0,
    };
    let mut begun = None;
    core::iter::from_fn(move || {
        let first = match begun.take() {
            Some(first) => first,
            None => lines.by_ref().find(Line::begins)?,
        };
        let mut vmcs = Snapshot::new();
        let mut section = GUEST;
        for line in lines.by_ref() {
            if line.begins() {
                begun = Some(line);
                break;
            }
            if line.has(b"*** Host State ***") {
                section = HOST;
            } else if line.has(b"*** Control State ***") {
                section = CONTROL;
            } else if let Err(error) = line.read(section, &mut vmcs) {
                return Some(Err(error));
            }
        }
        Some(Ok(Logged {
            line: first.number,
            vmcs,
        }))
    })
}

/// One line with where it lies.
#[derive(Clone, Copy)]
struct Line<'a> {
    bytes: &'a [u8],
    start: usize,
    number: usize,
}

struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let bytes = rest.split(|byte| *byte == b'\n').next()?;
        let start = self.at;
        self.at = self.at.saturating_add(bytes.len()).saturating_add(1);
        self.number = self.number.saturating_add(1);
        Some(Line {
            bytes,
            start,
            number: self.number,
        })
    }
}

impl Line<'_> {
    fn begins(&self) -> bool {
        self.has(b"*** Guest State ***")
    }

    fn has(&self, needle: &[u8]) -> bool {
        self.bytes
            .windows(needle.len())
            .any(|window| window == needle)
    }

    /// Stores what the line says, by the patterns of its section.
    fn read(&self, section: &[Pattern], vmcs: &mut Snapshot) -> Result<(), LogError> {
        let mut at = 0;
        while at < self.bytes.len() {
            let before = at.checked_sub(1).and_then(|before| self.bytes.get(before));
            let inside_a_word = before.is_some_and(u8::is_ascii_alphanumeric);
            let found = section
                .iter()
                .chain([&INTERRUPT_STATUS])
                .filter(|_| !inside_a_word)
                .find_map(|pattern| Some((pattern, pattern.find(self.bytes, at)?)));
            let Some((pattern, found)) = found else {
                at = at.saturating_add(1);
                continue;
            };
            at = found.end;
            // KVM prints EFER from elsewhere, and says so, where the VMCS does not hold it.
            if pattern.text == EFER && !self.is_of_the_vmcs(at) {
                continue;
            }
            for (part, (value, offset)) in pattern.parts.iter().zip(found.values) {
                let wide = |field| LogError {
                    line: self.number,
                    offset: self.start.saturating_add(offset),
                    field,
                };
                part.store(value, vmcs).map_err(wide)?;
            }
        }
        Ok(())
    }

    fn is_of_the_vmcs(&self, after: usize) -> bool {
        let rest = self
            .bytes
            .get(after..)
            .unwrap_or_default()
            .trim_ascii_start();
        !rest.starts_with(b"(autoload)") && !rest.starts_with(b"(effective)")
    }
}

/// What a printed number is.
#[derive(Clone, Copy)]
enum Part {
    /// The whole field.
    Whole(Encoding),
    /// The byte of the field at this bit; the rest of the field is printed beside it.
    Byte(Encoding, u32),
}

impl Part {
    fn store(self, value: u64, vmcs: &mut Snapshot) -> Result<(), Encoding> {
        let (field, room, bit) = match self {
            Self::Whole(field) => (field, field.width().mask(), 0),
            Self::Byte(field, bit) => (field, 0xff, bit),
        };
        if value & !room != 0 {
            return Err(field);
        }
        let rest = vmcs.get(field).unwrap_or(0) & !(room << bit);
        vmcs.set(field, rest | value << bit).map_err(|_| field)
    }
}

/// Text with numbers in it: `%` is a hexadecimal number, with or without `0x`, a space any number of blanks.
struct Pattern {
    text: &'static str,
    parts: &'static [Part],
}

/// As many numbers as one pattern has.
const MOST: usize = 4;

/// Where a pattern was found.
struct Found {
    values: [(u64, usize); MOST],
    end: usize,
}

impl Pattern {
    fn find(&self, line: &[u8], from: usize) -> Option<Found> {
        let (mut at, mut count) = (from, 0);
        let mut values = [(0, 0); MOST];
        for wanted in self.text.bytes() {
            match wanted {
                b' ' => at = at.checked_add(blanks(line.get(at..)?))?,
                b'%' => {
                    let (value, digits) = number(line.get(at..)?)?;
                    *values.get_mut(count)? = (value, at);
                    (at, count) = (at.checked_add(digits)?, count.checked_add(1)?);
                }
                _ if line.get(at) == Some(&wanted) => at = at.checked_add(1)?,
                _ => return None,
            }
        }
        Some(Found { values, end: at })
    }
}

fn blanks(text: &[u8]) -> usize {
    text.iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count()
}

/// A hexadecimal number at the start of `text`, and how many bytes it takes.
fn number(text: &[u8]) -> Option<(u64, usize)> {
    let prefix = if text.starts_with(b"0x") { 2 } else { 0 };
    let digits = text.get(prefix..)?;
    let count = digits
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let value = crate::capability::hex(digits.get(..count)?)?;
    Some((value, count.checked_add(prefix)?))
}

macro_rules! patterns {
    ($($text:literal $($field:ident)*,)*) => {
        &[$(Pattern { text: $text, parts: &[$(Part::Whole(f::$field.encoding())),*] },)*]
    };
}

const EFER: &str = "EFER = %";

const GUEST: &[Pattern] = patterns! {
    "CR0: actual=%, shadow=%, gh_mask=%" GUEST_CR0 CR0_READ_SHADOW CR0_GUEST_HOST_MASK,
    "CR4: actual=%, shadow=%, gh_mask=%" GUEST_CR4 CR4_READ_SHADOW CR4_GUEST_HOST_MASK,
    "CR3 = %" GUEST_CR3,
    "PDPTR0 = %" GUEST_PDPTE0,
    "PDPTR1 = %" GUEST_PDPTE1,
    "PDPTR2 = %" GUEST_PDPTE2,
    "PDPTR3 = %" GUEST_PDPTE3,
    "PDPTE0 = %" GUEST_PDPTE0,
    "PDPTE1 = %" GUEST_PDPTE1,
    "PDPTE2 = %" GUEST_PDPTE2,
    "PDPTE3 = %" GUEST_PDPTE3,
    "Sysenter RSP=% CS:RIP=%:%" GUEST_SYSENTER_ESP GUEST_SYSENTER_CS GUEST_SYSENTER_EIP,
    "RSP = %" GUEST_RSP,
    "RIP = %" GUEST_RIP,
    "RFLAGS=%" GUEST_RFLAGS,
    "DR7 = %" GUEST_DR7,
    "CS: sel=%, attr=%, limit=%, base=%" GUEST_CS_SELECTOR GUEST_CS_ACCESS_RIGHTS GUEST_CS_LIMIT GUEST_CS_BASE,
    "DS: sel=%, attr=%, limit=%, base=%" GUEST_DS_SELECTOR GUEST_DS_ACCESS_RIGHTS GUEST_DS_LIMIT GUEST_DS_BASE,
    "SS: sel=%, attr=%, limit=%, base=%" GUEST_SS_SELECTOR GUEST_SS_ACCESS_RIGHTS GUEST_SS_LIMIT GUEST_SS_BASE,
    "ES: sel=%, attr=%, limit=%, base=%" GUEST_ES_SELECTOR GUEST_ES_ACCESS_RIGHTS GUEST_ES_LIMIT GUEST_ES_BASE,
    "FS: sel=%, attr=%, limit=%, base=%" GUEST_FS_SELECTOR GUEST_FS_ACCESS_RIGHTS GUEST_FS_LIMIT GUEST_FS_BASE,
    "GS: sel=%, attr=%, limit=%, base=%" GUEST_GS_SELECTOR GUEST_GS_ACCESS_RIGHTS GUEST_GS_LIMIT GUEST_GS_BASE,
    "LDTR: sel=%, attr=%, limit=%, base=%" GUEST_LDTR_SELECTOR GUEST_LDTR_ACCESS_RIGHTS GUEST_LDTR_LIMIT GUEST_LDTR_BASE,
    "TR: sel=%, attr=%, limit=%, base=%" GUEST_TR_SELECTOR GUEST_TR_ACCESS_RIGHTS GUEST_TR_LIMIT GUEST_TR_BASE,
    "GDTR: limit=%, base=%" GUEST_GDTR_LIMIT GUEST_GDTR_BASE,
    "IDTR: limit=%, base=%" GUEST_IDTR_LIMIT GUEST_IDTR_BASE,
    "CS: % % % %" GUEST_CS_SELECTOR GUEST_CS_ACCESS_RIGHTS GUEST_CS_LIMIT GUEST_CS_BASE,
    "DS: % % % %" GUEST_DS_SELECTOR GUEST_DS_ACCESS_RIGHTS GUEST_DS_LIMIT GUEST_DS_BASE,
    "SS: % % % %" GUEST_SS_SELECTOR GUEST_SS_ACCESS_RIGHTS GUEST_SS_LIMIT GUEST_SS_BASE,
    "ES: % % % %" GUEST_ES_SELECTOR GUEST_ES_ACCESS_RIGHTS GUEST_ES_LIMIT GUEST_ES_BASE,
    "FS: % % % %" GUEST_FS_SELECTOR GUEST_FS_ACCESS_RIGHTS GUEST_FS_LIMIT GUEST_FS_BASE,
    "GS: % % % %" GUEST_GS_SELECTOR GUEST_GS_ACCESS_RIGHTS GUEST_GS_LIMIT GUEST_GS_BASE,
    "LDTR: % % % %" GUEST_LDTR_SELECTOR GUEST_LDTR_ACCESS_RIGHTS GUEST_LDTR_LIMIT GUEST_LDTR_BASE,
    "TR: % % % %" GUEST_TR_SELECTOR GUEST_TR_ACCESS_RIGHTS GUEST_TR_LIMIT GUEST_TR_BASE,
    "GDTR: % %" GUEST_GDTR_LIMIT GUEST_GDTR_BASE,
    "IDTR: % %" GUEST_IDTR_LIMIT GUEST_IDTR_BASE,
    "EFER = %" GUEST_EFER,
    "EFER(VMCS) = %" GUEST_EFER,
    "PAT = %" GUEST_PAT,
    "DebugCtl = %" GUEST_DEBUGCTL,
    "DebugExceptions = %" GUEST_PENDING_DEBUG,
    "PerfGlobCtl = %" GUEST_PERF_GLOBAL_CTRL,
    "BndCfgS = %" GUEST_BNDCFGS,
    "PreemptionTimer = %" PREEMPTION_TIMER_VALUE,
    "SM Base = %" GUEST_SMBASE,
    "Interruptibility = %" GUEST_INTERRUPTIBILITY,
    "ActivityState = %" GUEST_ACTIVITY,
    "InterruptStatus = %" GUEST_INTERRUPT_STATUS,
    "S_CET = %" GUEST_S_CET,
    "SSP TABLE = %" GUEST_INTERRUPT_SSP_TABLE,
    "SSP = %" GUEST_SSP,
};

const HOST: &[Pattern] = patterns! {
    "Sysenter RSP=% CS:RIP=%:%" HOST_SYSENTER_ESP HOST_SYSENTER_CS HOST_SYSENTER_EIP,
    "RIP = %" HOST_RIP,
    "RSP = %" HOST_RSP,
    "CS=%" HOST_CS_SELECTOR,
    "SS=%" HOST_SS_SELECTOR,
    "DS=%" HOST_DS_SELECTOR,
    "ES=%" HOST_ES_SELECTOR,
    "FS=%" HOST_FS_SELECTOR,
    "GS=%" HOST_GS_SELECTOR,
    "TR=%" HOST_TR_SELECTOR,
    "FSBase=%" HOST_FS_BASE,
    "GSBase=%" HOST_GS_BASE,
    "TRBase=%" HOST_TR_BASE,
    "GDTBase=%" HOST_GDTR_BASE,
    "IDTBase=%" HOST_IDTR_BASE,
    "CR0=%" HOST_CR0,
    "CR3=%" HOST_CR3,
    "CR4=%" HOST_CR4,
    "EFER = %" HOST_EFER,
    "EFER(VMCS) = %" HOST_EFER,
    "PAT = %" HOST_PAT,
    "PerfGlobCtl = %" HOST_PERF_GLOBAL_CTRL,
    "S_CET = %" HOST_S_CET,
    "SSP TABLE = %" HOST_INTERRUPT_SSP_TABLE,
    "SSP = %" HOST_SSP,
};

const CONTROL: &[Pattern] = patterns! {
    "PinBased=%" PIN_BASED_CONTROLS,
    "CPUBased=%" PRIMARY_CONTROLS,
    "SecondaryExec=%" SECONDARY_CONTROLS,
    "TertiaryExec=%" TERTIARY_CONTROLS,
    "EntryControls=%" ENTRY_CONTROLS,
    "ExitControls=%" PRIMARY_EXIT_CONTROLS,
    "ExceptionBitmap=%" EXCEPTION_BITMAP,
    "PFECmask=%" PAGE_FAULT_ERROR_MASK,
    "PFECmatch=%" PAGE_FAULT_ERROR_MATCH,
    "VMEntry: intr_info=% errcode=% ilen=%" INJECTED_EVENT INJECTED_EVENT_ERROR_CODE ENTRY_INSTRUCTION_LENGTH,
    "VMExit: intr_info=% errcode=% ilen=%" EXITING_EVENT EXITING_EVENT_ERROR_CODE EXIT_INSTRUCTION_LENGTH,
    "reason=% qualification=%" EXIT_REASON EXIT_QUALIFICATION,
    "IDTVectoring: info=% errcode=%" ORIGINAL_EVENT ORIGINAL_EVENT_ERROR_CODE,
    "TSC Offset = %" TSC_OFFSET,
    "TSC Multiplier = %" TSC_MULTIPLIER,
    "TPR Threshold = %" TPR_THRESHOLD,
    "APIC-access addr = %" APIC_ACCESS_ADDRESS,
    "virt-APIC addr = %" VIRTUAL_APIC_ADDRESS,
    "PostedIntrVec = %" POSTED_INTERRUPT_VECTOR,
    "EPT pointer = %" EPT_POINTER,
    "EPTP index = %" EPTP_INDEX,
    "PLE Gap=% Window=%" PLE_GAP PLE_WINDOW,
    "Virtual processor ID = %" VPID,
    "VMfunc controls = %" VM_FUNCTION_CONTROLS,
    "CR3 target0=%" CR3_TARGET_0,
    "CR3 target1=%" CR3_TARGET_1,
    "CR3 target2=%" CR3_TARGET_2,
    "CR3 target3=%" CR3_TARGET_3,
};

/// KVM prints the guest interrupt status in its halves, SVI first.
const INTERRUPT_STATUS: Pattern = Pattern {
    text: "SVI|RVI = %|%",
    parts: &[
        Part::Byte(f::GUEST_INTERRUPT_STATUS.encoding(), 8),
        Part::Byte(f::GUEST_INTERRUPT_STATUS.encoding(), 0),
    ],
};
