// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMCS as text: [`Dump`] to read, [`Listing`] to keep.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use core::fmt;

use crate::{
    controls::names_of,
    encoding::Encoding,
    event::{ActivityState, Event},
    exit::{ExitInformation, ExitReason, Qualification},
    fields as f,
    store::{Fields, known},
};

/// Guest state, host state, controls and the last exit, in groups; fields the store does not have are left out.
///
/// ```
/// use hvkit_vmcs::{capability::presets, dump::Dump, seed::Seed};
///
/// let text = Dump(&Seed::LongMode.vmcs(&presets::core_i7_5600u())).to_string();
/// assert!(text.contains("CR0 = 0000000080010033"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Dump<'a, S>(pub &'a S);

/// Every field the store has, as `name = value`, one a line, and with its encoding for a name where only the high half of one is known: what [`crate::store::parse_listing`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a, S>(pub &'a S);

impl<S: Fields> fmt::Display for Listing<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for info in &f::ALL {
            match known(self.0, info.encoding) {
                Some((half, value)) if half.is_high() => {
                    writeln!(f, "{:#06x} = {value:#x}", half.0)?;
                }
                Some((_, value)) => writeln!(f, "{} = {value:#x}", info.id)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// Names with the fields they stand for, for one line.
type Line = &'static [(&'static str, Encoding)];

macro_rules! lines {
    ($([$($label:literal $field:ident),*])*) => {
        &[$(&[$(($label, f::$field.encoding())),*]),*]
    };
}

const GUEST: &[Line] = lines! {
    ["CR0" GUEST_CR0, "mask" CR0_GUEST_HOST_MASK, "shadow" CR0_READ_SHADOW]
    ["CR4" GUEST_CR4, "mask" CR4_GUEST_HOST_MASK, "shadow" CR4_READ_SHADOW]
    ["CR3" GUEST_CR3, "DR7" GUEST_DR7]
    ["PDPTE0" GUEST_PDPTE0, "PDPTE1" GUEST_PDPTE1]
    ["PDPTE2" GUEST_PDPTE2, "PDPTE3" GUEST_PDPTE3]
    ["RIP" GUEST_RIP, "RSP" GUEST_RSP, "RFLAGS" GUEST_RFLAGS]
    ["SYSENTER CS" GUEST_SYSENTER_CS, "ESP" GUEST_SYSENTER_ESP, "EIP" GUEST_SYSENTER_EIP]
    ["EFER" GUEST_EFER, "PAT" GUEST_PAT, "DEBUGCTL" GUEST_DEBUGCTL]
    ["PERF_GLOBAL_CTRL" GUEST_PERF_GLOBAL_CTRL, "BNDCFGS" GUEST_BNDCFGS]
    ["RTIT_CTL" GUEST_RTIT_CTL, "LBR_CTL" GUEST_LBR_CTL, "PKRS" GUEST_PKRS]
    ["S_CET" GUEST_S_CET, "SSP" GUEST_SSP, "SSP table" GUEST_INTERRUPT_SSP_TABLE]
    ["FRED config" GUEST_FRED_CONFIG, "levels" GUEST_FRED_STKLVLS]
    ["FRED RSP1" GUEST_FRED_RSP1, "RSP2" GUEST_FRED_RSP2, "RSP3" GUEST_FRED_RSP3]
    ["FRED SSP1" GUEST_FRED_SSP1, "SSP2" GUEST_FRED_SSP2, "SSP3" GUEST_FRED_SSP3]
    ["SPEC_CTRL" GUEST_SPEC_CTRL, "deadline" GUEST_DEADLINE, "UINV" GUEST_UINV]
    ["interruptibility" GUEST_INTERRUPTIBILITY, "pending debug" GUEST_PENDING_DEBUG]
    ["interrupt status" GUEST_INTERRUPT_STATUS, "PML index" PML_INDEX, "SMBASE" GUEST_SMBASE]
    ["VMCS link" VMCS_LINK_POINTER, "preemption timer" PREEMPTION_TIMER_VALUE]
};

const HOST: &[Line] = lines! {
    ["RIP" HOST_RIP, "RSP" HOST_RSP]
    ["CS" HOST_CS_SELECTOR, "SS" HOST_SS_SELECTOR, "DS" HOST_DS_SELECTOR, "ES" HOST_ES_SELECTOR]
    ["FS" HOST_FS_SELECTOR, "GS" HOST_GS_SELECTOR, "TR" HOST_TR_SELECTOR]
    ["FS base" HOST_FS_BASE, "GS base" HOST_GS_BASE, "TR base" HOST_TR_BASE]
    ["GDT base" HOST_GDTR_BASE, "IDT base" HOST_IDTR_BASE]
    ["CR0" HOST_CR0, "CR3" HOST_CR3, "CR4" HOST_CR4]
    ["SYSENTER CS" HOST_SYSENTER_CS, "ESP" HOST_SYSENTER_ESP, "EIP" HOST_SYSENTER_EIP]
    ["EFER" HOST_EFER, "PAT" HOST_PAT, "PERF_GLOBAL_CTRL" HOST_PERF_GLOBAL_CTRL]
    ["S_CET" HOST_S_CET, "SSP" HOST_SSP, "SSP table" HOST_INTERRUPT_SSP_TABLE]
    ["PKRS" HOST_PKRS, "SPEC_CTRL" HOST_SPEC_CTRL]
    ["FRED config" HOST_FRED_CONFIG, "levels" HOST_FRED_STKLVLS]
    ["FRED RSP1" HOST_FRED_RSP1, "RSP2" HOST_FRED_RSP2, "RSP3" HOST_FRED_RSP3]
    ["FRED SSP1" HOST_FRED_SSP1, "SSP2" HOST_FRED_SSP2, "SSP3" HOST_FRED_SSP3]
};

const CONTROLS: &[Line] = lines! {
    ["exceptions" EXCEPTION_BITMAP, "#PF mask" PAGE_FAULT_ERROR_MASK, "match" PAGE_FAULT_ERROR_MATCH]
    ["I/O bitmap A" IO_BITMAP_A, "B" IO_BITMAP_B, "MSR bitmap" MSR_BITMAP]
    ["EPTP" EPT_POINTER, "VPID" VPID, "PML" PML_ADDRESS]
    ["EPTP list" EPTP_LIST_ADDRESS, "EPTP index" EPTP_INDEX, "#VE" VE_INFORMATION_ADDRESS]
    ["SPPT" SPP_TABLE_POINTER, "HLAT" HLAT_POINTER, "HLAT prefix" HLAT_PREFIX_SIZE]
    ["virtual APIC" VIRTUAL_APIC_ADDRESS, "APIC access" APIC_ACCESS_ADDRESS, "TPR threshold" TPR_THRESHOLD]
    ["EOI exits 0" EOI_EXIT_BITMAP_0, "1" EOI_EXIT_BITMAP_1]
    ["EOI exits 2" EOI_EXIT_BITMAP_2, "3" EOI_EXIT_BITMAP_3]
    ["posted vector" POSTED_INTERRUPT_VECTOR, "descriptor" POSTED_INTERRUPT_DESCRIPTOR]
    ["PID table" PID_POINTER_TABLE, "last" LAST_PID_POINTER_INDEX]
    ["TSC offset" TSC_OFFSET, "multiplier" TSC_MULTIPLIER]
    ["timer vector" VIRTUAL_TIMER_VECTOR, "deadline shadow" GUEST_DEADLINE_SHADOW]
    ["VMREAD bitmap" VMREAD_BITMAP, "VMWRITE" VMWRITE_BITMAP]
    ["XSS exits" XSS_EXITING_BITMAP, "ENCLS" ENCLS_EXITING_BITMAP, "ENCLV" ENCLV_EXITING_BITMAP]
    ["PCONFIG exits" PCONFIG_EXITING_BITMAP, "PASID low" LOW_PASID_DIRECTORY, "high" HIGH_PASID_DIRECTORY]
    ["SPEC_CTRL mask" SPEC_CTRL_MASK, "shadow" SPEC_CTRL_SHADOW]
    ["PLE gap" PLE_GAP, "window" PLE_WINDOW, "instruction timeout" INSTRUCTION_TIMEOUT]
    ["CR3 targets" CR3_TARGET_COUNT, "0" CR3_TARGET_0, "1" CR3_TARGET_1, "2" CR3_TARGET_2, "3" CR3_TARGET_3]
    ["exit MSR store" EXIT_MSR_STORE_ADDRESS, "count" EXIT_MSR_STORE_COUNT]
    ["exit MSR load" EXIT_MSR_LOAD_ADDRESS, "count" EXIT_MSR_LOAD_COUNT]
    ["entry MSR load" ENTRY_MSR_LOAD_ADDRESS, "count" ENTRY_MSR_LOAD_COUNT]
    ["executive VMCS" EXECUTIVE_VMCS_POINTER, "SEAM EPTP" SEAM_SHARED_EPT_POINTER, "KeyID" SEAM_GUEST_KEYID]
    ["event error code" INJECTED_EVENT_ERROR_CODE, "length" ENTRY_INSTRUCTION_LENGTH, "data" INJECTED_EVENT_DATA]
};

const EXIT: &[Line] = lines! {
    ["qualification" EXIT_QUALIFICATION, "linear" GUEST_LINEAR_ADDRESS, "physical" GUEST_PHYSICAL_ADDRESS]
    ["event error code" EXITING_EVENT_ERROR_CODE, "original" ORIGINAL_EVENT_ERROR_CODE, "data" ORIGINAL_EVENT_DATA]
    ["instruction length" EXIT_INSTRUCTION_LENGTH, "information" EXIT_INSTRUCTION_INFORMATION, "extended" EXTENDED_INSTRUCTION_INFORMATION]
    ["I/O RCX" IO_RCX, "RSI" IO_RSI, "RDI" IO_RDI, "RIP" IO_RIP]
    ["MSR data" MSR_DATA, "instruction error" INSTRUCTION_ERROR]
};

const VECTORS: [(&str, Encoding); 8] = [
    ("pin-based", f::PIN_BASED_CONTROLS.encoding()),
    ("primary", f::PRIMARY_CONTROLS.encoding()),
    ("secondary", f::SECONDARY_CONTROLS.encoding()),
    ("tertiary", f::TERTIARY_CONTROLS.encoding()),
    ("exit", f::PRIMARY_EXIT_CONTROLS.encoding()),
    ("exit, secondary", f::SECONDARY_EXIT_CONTROLS.encoding()),
    ("entry", f::ENTRY_CONTROLS.encoding()),
    ("VM functions", f::VM_FUNCTION_CONTROLS.encoding()),
];

const SEGMENTS: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];

/// A value in hexadecimal, in a column of so many digits; a dash if there is none.
struct Digits(Option<u64>, usize);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, digits) = *self;
        match value {
            Some(value) => write!(f, "{value:0digits$x}"),
            None => write!(f, "{:>digits$}", "-"),
        }
    }
}

impl<S: Fields> fmt::Display for Dump<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guest state\n")?;
        self.lines(GUEST, f)?;
        self.segments(f)?;
        if let Some(state) = self.0.read(f::GUEST_ACTIVITY) {
            writeln!(f, "  activity: {}", ActivityState(state))?;
        }
        f.write_str("Host state\n")?;
        self.lines(HOST, f)?;
        f.write_str("Controls\n")?;
        self.vectors(f)?;
        if let Some(event) = self.0.read(f::INJECTED_EVENT) {
            writeln!(f, "  injected event: {:?}", Event(event))?;
        }
        self.lines(CONTROLS, f)?;
        f.write_str("Last exit\n")?;
        match ExitInformation::read(self.0) {
            Some(exit) => writeln!(f, "  {exit}")?,
            None => self.exit_in_part(f)?,
        }
        self.lines(EXIT, f)
    }
}

impl<S: Fields> Dump<'_, S> {
    fn lines(&self, lines: &[Line], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in lines {
            let mut begun = false;
            for (label, field) in *line {
                let Some(value) = self.0.get(*field) else {
                    continue;
                };
                let digits = field.width().bytes() << 1;
                write!(f, "  {label} = {value:0digits$x}")?;
                begun = true;
            }
            f.write_str(if begun { "\n" } else { "" })?;
        }
        Ok(())
    }

    /// What there is of the reason and the events. Logs have few of the fields that make an [`ExitInformation`].
    fn exit_in_part(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0.read(f::EXITING_EVENT).map(Event);
        if let Some(reason) = self.0.read(f::EXIT_REASON).map(ExitReason) {
            write!(f, "  {reason} ({:#x})", reason.0)?;
            if let (Some(raw), Some(event)) = (self.0.read(f::EXIT_QUALIFICATION), event) {
                match Qualification::decode(reason, raw, event) {
                    Qualification::None => {}
                    qualification => write!(f, ", {qualification:?}")?,
                }
            }
            f.write_str("\n")?;
        }
        if let Some(event) = event {
            writeln!(f, "  exiting event: {event:?}")?;
        }
        if let Some(event) = self.0.read(f::ORIGINAL_EVENT) {
            writeln!(f, "  original event: {:?}", Event(event))?;
        }
        Ok(())
    }

    fn segments(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, name) in (0..).zip(SEGMENTS) {
            let get = |first: Encoding| self.0.get(Encoding(first.0.wrapping_add(number << 1)));
            let selector = get(f::GUEST_ES_SELECTOR.encoding());
            let rights = get(f::GUEST_ES_ACCESS_RIGHTS.encoding());
            let limit = get(f::GUEST_ES_LIMIT.encoding());
            let base = get(f::GUEST_ES_BASE.encoding());
            if selector.or(rights).or(limit).or(base).is_none() {
                continue;
            }
            let unusable = match rights {
                Some(rights) if rights & 1 << 16 != 0 => "  unusable",
                _ => "",
            };
            let (selector, rights) = (Digits(selector, 4), Digits(rights, 5));
            let (limit, base) = (Digits(limit, 8), Digits(base, 16));
            writeln!(
                f,
                "  {name:<4} selector {selector}  rights {rights}  limit {limit}  base {base}{unusable}"
            )?;
        }
        for (name, base, limit) in [
            ("GDTR", f::GUEST_GDTR_BASE, f::GUEST_GDTR_LIMIT),
            ("IDTR", f::GUEST_IDTR_BASE, f::GUEST_IDTR_LIMIT),
        ] {
            let base = self.0.get(base.encoding());
            let limit = self.0.get(limit.encoding());
            if base.or(limit).is_some() {
                let (limit, base) = (Digits(limit, 8), Digits(base, 16));
                writeln!(f, "  {name} {:31}limit {limit}  base {base}", "")?;
            }
        }
        Ok(())
    }

    fn vectors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, field) in VECTORS {
            let Some(value) = self.0.get(field) else {
                continue;
            };
            let digits = field.width().bytes() << 1;
            write!(f, "  {name} = {value:0digits$x}")?;
            for (number, control) in names_of(field, value).enumerate() {
                write!(f, "{}{control}", if number == 0 { ": " } else { ", " })?;
            }
            f.write_str("\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Vmcs,
        capability::presets,
        seed::Seed,
        store::{FieldsMut, Snapshot, parse_listing},
    };

    #[test]
    fn a_listing_reads_back_exactly() {
        let vmcs = Snapshot::of(&Seed::Pae.vmcs(&presets::everything()));
        assert_eq!(
            parse_listing(Listing(&vmcs).to_string().as_bytes()),
            Ok(vmcs)
        );
        assert_eq!(Listing(&Snapshot::new()).to_string(), "");
    }

    #[test]
    fn every_field_is_in_the_dump() {
        // Each field has a value of its own; the dump must show each.
        let mut vmcs = Vmcs::new();
        for (number, info) in (0xa001_u64..).zip(&f::ALL) {
            vmcs.set(info.encoding, number).unwrap();
        }
        vmcs.set(f::GUEST_ACTIVITY.encoding(), 2).unwrap();
        vmcs.set(f::EXIT_REASON.encoding(), 48).unwrap();
        for field in [f::EXITING_EVENT, f::ORIGINAL_EVENT] {
            vmcs.set(field.encoding(), 0x8000_0b0d).unwrap();
        }
        let text = Dump(&vmcs).to_string();
        for (number, info) in (0xa001_u64..).zip(&f::ALL) {
            let shown = [0x4404, 0x4408, 0x4402, 0x4826].contains(&info.encoding.0)
                || text.contains(&format!("{number:04x}"));
            assert!(shown, "{info:?}\n{text}");
        }
        for words in [
            "activity: shutdown",
            "EPT violation (0x30)",
            "hardware exception, vector 13 (#GP)",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }

    #[test]
    fn groups_and_names() {
        let text = Dump(&Seed::LongMode.vmcs(&presets::core_i7_5600u())).to_string();
        let heads: Vec<_> = text.lines().filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(
            heads,
            ["Guest state", "Host state", "Controls", "Last exit"]
        );
        for line in [
            "  CS   selector 0008  rights 0a09b  limit ffffffff  base 0000000000000000",
            "  LDTR selector 0000  rights 10000  limit 00000000  base 0000000000000000  unusable",
            "  pin-based = 0000001e: NMI exiting",
            "  entry = 0000d3ff: load debug controls, IA-32e mode guest, load IA32_PAT, load IA32_EFER",
            "  activity: active",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_field_that_is_alone_is_in_the_dump() {
        let special = [
            (0x4826, 2, "activity: shutdown"),
            (0x4402, 48, "EPT violation (0x30)"),
            (0x4402, 0x8000_0021, "(0x80000021)"),
            (
                0x4404,
                0x8000_0b0d,
                "exiting event: 0x80000b0d hardware exception, vector 13 (#GP)",
            ),
            (
                0x4408,
                0x8000_0202,
                "original event: 0x80000202 non-maskable interrupt",
            ),
        ];
        let plain = f::ALL.iter().map(|info| (info.encoding.0, 0xa5c3, "a5c3"));
        let plain = plain.filter(|(field, ..)| special.iter().all(|(other, ..)| other != field));
        for (field, value, shown) in plain.chain(special) {
            let mut vmcs = Snapshot::new();
            vmcs.set(Encoding(field), value).unwrap();
            let text = Dump(&vmcs).to_string();
            assert!(text.contains(shown), "{field:#x}: {shown}\n{text}");
        }
    }

    #[test]
    fn what_lacks_of_a_segment_is_a_dash() {
        let mut vmcs = Snapshot::new();
        vmcs.write(f::GUEST_CS_ACCESS_RIGHTS, 0x1_0000).unwrap();
        vmcs.write(f::GUEST_GDTR_BASE, 0x1000).unwrap();
        let text = Dump(&vmcs).to_string();
        let lines: Vec<_> = text.lines().collect();
        let expected = [
            "Guest state",
            "  CS   selector    -  rights 10000  limit        -  base                -  unusable",
            "  GDTR                                limit        -  base 0000000000001000",
        ];
        assert_eq!(lines[..3], expected);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let mut vmcs = Snapshot::new();
        vmcs.write(f::GUEST_RIP, 5).unwrap();
        assert_eq!(
            Dump(&vmcs).to_string(),
            "Guest state\n  RIP = 0000000000000005\nHost state\nControls\nLast exit\n"
        );
    }
}
