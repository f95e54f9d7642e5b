// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMCSs in logs as KVM and Xen print them.

use hvkit_vmcs::capability::presets;
use hvkit_vmcs::check::{Checker, Violation};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::{Fields, LogError, logged};
use proptest::prelude::*;

/// As KVM prints one, with lines of others between, of a guest whose entry fails.
const KVM: &[u8] = b"\
Nov 22 12:00:00 host kernel: [  673.850] kvm_intel: VMCS 00000000f971be22, last attempted VM-entry on CPU 3
Nov 22 12:00:00 host kernel: [  673.851] kvm_intel: *** Guest State ***
Nov 22 12:00:00 host kernel: [  673.852] kvm_intel: CR0: actual=0x0000000080010033, shadow=0x0000000080010031, gh_mask=fffffffffffefff7
Nov 22 12:00:00 host kernel: [  673.853] kvm_intel: CR4: actual=0x0000000000342af0, shadow=0x0000000000340af0, gh_mask=fffffffffffef871
Nov 22 12:00:00 host kernel: [  673.854] kvm_intel: CR3 = 0x0000008000f76000
Nov 22 12:00:00 host kernel: [  673.855] kvm_intel: PDPTR0 = 0x000000005e0e5001  PDPTR1 = 0x000000005e0e4001
Nov 22 12:00:00 host kernel: [  673.855] e1000: CS: reason=wrong RIP = none CR3 target0=
Nov 22 12:00:00 host kernel: [  673.856] kvm_intel: RSP = 0xfffffe006000be50  RIP = 0xffffff8000042837
Nov 22 12:00:00 host kernel: [  673.857] kvm_intel: RFLAGS=0x00000002         DR7 = 0x0000000000000400
Nov 22 12:00:00 host kernel: [  673.858] kvm_intel: Sysenter RSP=0000000000001230 CS:RIP=0008:0000000000004560
Nov 22 12:00:00 host kernel: [  673.859] kvm_intel: CS:   sel=0x0008, attr=0x0a09b, limit=0xffffffff, base=0x0000000000000000
Nov 22 12:00:00 host kernel: [  673.860] kvm_intel: SS:   sel=0x0010, attr=0x0c093, limit=0xffffffff, base=0x0000000000000000
Nov 22 12:00:00 host kernel: [  673.861] kvm_intel: GDTR:                           limit=0x0000ffff, base=0xfffffe0000001000
Nov 22 12:00:00 host kernel: [  673.862] kvm_intel: LDTR: sel=0x0000, attr=0x10000, limit=0x00000000, base=0x0000000000000000
Nov 22 12:00:00 host kernel: [  673.863] kvm_intel: TR:   sel=0x0018, attr=0x0008b, limit=0x00000067, base=0xfffffe0000003000
Nov 22 12:00:00 host kernel: [  673.864] kvm_intel: EFER= 0x0000000000000d01 (autoload)
Nov 22 12:00:00 host kernel: [  673.865] kvm_intel: PAT = 0x0007040600070406
Nov 22 12:00:00 host kernel: [  673.866] kvm_intel: DebugCtl = 0x0000000000000001  DebugExceptions = 0x0000000000004000
Nov 22 12:00:00 host kernel: [  673.867] kvm_intel: Interruptibility = 00000001  ActivityState = 00000000
Nov 22 12:00:00 host kernel: [  673.868] kvm_intel: *** Host State ***
Nov 22 12:00:00 host kernel: [  673.869] kvm_intel: RIP = 0xffffffffc1234567  RSP = 0xffffc90001abfe30
Nov 22 12:00:00 host kernel: [  673.870] kvm_intel: CS=0010 SS=0018 DS=0000 ES=0000 FS=0000 GS=0000 TR=0040
Nov 22 12:00:00 host kernel: [  673.871] kvm_intel: FSBase=00007f0000000000 GSBase=ffff888000000000 TRBase=fffffe0000048000
Nov 22 12:00:00 host kernel: [  673.872] kvm_intel: GDTBase=fffffe0000046000 IDTBase=fffffe0000000000
Nov 22 12:00:00 host kernel: [  673.873] kvm_intel: CR0=0000000080050033 CR3=0000000104a2e006 CR4=0000000000772ef0
Nov 22 12:00:00 host kernel: [  673.874] kvm_intel: Sysenter RSP=fffffe0000048000 CS:RIP=0010:ffffffff81a01580
Nov 22 12:00:00 host kernel: [  673.875] kvm_intel: EFER= 0x0000000000000d01
Nov 22 12:00:00 host kernel: [  673.876] kvm_intel: *** Control State ***
Nov 22 12:00:00 host kernel: [  673.877] kvm_intel: CPUBased=0xb5a06dfa SecondaryExec=0x021237eb TertiaryExec=0x0000000000000010
Nov 22 12:00:00 host kernel: [  673.878] kvm_intel: PinBased=0x000000ff EntryControls=0000d3ff ExitControls=002befff
Nov 22 12:00:00 host kernel: [  673.879] kvm_intel: ExceptionBitmap=00060042 PFECmask=00000000 PFECmatch=00000007
Nov 22 12:00:00 host kernel: [  673.880] kvm_intel: VMEntry: intr_info=800000ec errcode=00000006 ilen=00000003
Nov 22 12:00:00 host kernel: [  673.881] kvm_intel: VMExit: intr_info=80000b0d errcode=00000008 ilen=00000002
Nov 22 12:00:00 host kernel: [  673.882] kvm_intel:         reason=80000021 qualification=0000000000000003
Nov 22 12:00:00 host kernel: [  673.883] kvm_intel: IDTVectoring: info=80000306 errcode=00000005
Nov 22 12:00:00 host kernel: [  673.884] kvm_intel: TSC Offset = 0xfffffe8c0fa87c36
Nov 22 12:00:00 host kernel: [  673.885] kvm_intel: SVI|RVI = ec|31 TPR Threshold = 0x04
Nov 22 12:00:00 host kernel: [  673.886] kvm_intel: APIC-access addr = 0x0000000102c3b000 virt-APIC addr = 0x0000000109a0f000
Nov 22 12:00:00 host kernel: [  673.887] kvm_intel: PostedIntrVec = 0xf2
Nov 22 12:00:00 host kernel: [  673.888] kvm_intel: EPT pointer = 0x0000000119fd305e
Nov 22 12:00:00 host kernel: [  673.889] kvm_intel: PLE Gap=00000080 Window=00001000
Nov 22 12:00:00 host kernel: [  673.890] kvm_intel: Virtual processor ID = 0x0002
";

/// Xen's form where it differs.
const XEN: &[u8] = b"\
(XEN) ************* VMCS Area **************
(XEN) *** Guest State ***
(XEN) PDPTE0 = 0x0000000000000000  PDPTE1 = 0x0000000000001001
(XEN) RSP = 0xffff880018cf7f50 (0xffff880018cf7f58)  RIP = 0xffffffff8184f058 (0xffffffff8184f059)
(XEN) RFLAGS=0x00000082 (0x00000086)  DR7 = 0x0000000000000400
(XEN)        sel  attr  limit   base
(XEN)   CS: 0010 0a09b ffffffff 0000000000000000
(XEN)   GS: 0000 1c000 ffffffff ffff88001f400000
(XEN) GDTR:            0000007f ffff88001f40c000
(XEN) LDTR: 0000 1c000 ffffffff 0000000000000000
(XEN)   TR: 0040 0008b 00002087 ffff88001f404900
(XEN) EFER(VMCS) = 0x0000000000000d01  PAT = 0x0407010600070106
(XEN) PreemptionTimer = 0x00000000  SM Base = 0x00000001
(XEN) *** Control State ***
(XEN) PinBased=0000003f CPUBased=b6a065fa SecondaryExec=000054eb
(XEN) *** Guest State ***
(XEN) RIP = 0x0000000000000002
";

fn values(text: &'static [u8]) -> Vec<Vec<u64>> {
    let fields = [
        f::GUEST_RIP.encoding(),
        f::GUEST_RSP.encoding(),
        f::GUEST_RFLAGS.encoding(),
        f::GUEST_GDTR_LIMIT.encoding(),
        f::GUEST_TR_LIMIT.encoding(),
        f::GUEST_TR_BASE.encoding(),
        f::PRIMARY_CONTROLS.encoding(),
    ];
    let dumps = logged(text).map(Result::unwrap);
    dumps
        .map(|dump| {
            fields
                .iter()
                .filter_map(|field| dump.vmcs.get(*field))
                .collect()
        })
        .collect()
}

#[test]
fn every_number_of_kvms_form() {
    let dumps: Vec<_> = logged(KVM).map(Result::unwrap).collect();
    let [dump] = &dumps[..] else {
        panic!("{dumps:?}")
    };
    assert_eq!(dump.line, 2);
    let vmcs = &dump.vmcs;
    assert_eq!(vmcs.read(f::GUEST_CR0), Some(0x8001_0033));
    assert_eq!(vmcs.read(f::CR0_READ_SHADOW), Some(0x8001_0031));
    assert_eq!(
        vmcs.read(f::CR4_GUEST_HOST_MASK),
        Some(0xffff_ffff_fffe_f871)
    );
    assert_eq!(vmcs.read(f::GUEST_CR3), Some(0x80_00f7_6000));
    assert_eq!(vmcs.read(f::GUEST_PDPTE1), Some(0x5e0e_4001));
    assert_eq!(vmcs.read(f::GUEST_RIP), Some(0xffff_ff80_0004_2837));
    assert_eq!(vmcs.read(f::GUEST_SYSENTER_ESP), Some(0x1230));
    assert_eq!(vmcs.read(f::GUEST_SYSENTER_EIP), Some(0x4560));
    assert_eq!(vmcs.read(f::GUEST_CS_ACCESS_RIGHTS), Some(0xa09b));
    assert_eq!(vmcs.read(f::GUEST_LDTR_ACCESS_RIGHTS), Some(0x1_0000));
    assert_eq!(vmcs.read(f::GUEST_EFER), None, "printed from elsewhere");
    assert_eq!(vmcs.read(f::HOST_EFER), Some(0xd01));
    assert_eq!(vmcs.read(f::GUEST_PENDING_DEBUG), Some(0x4000));
    assert_eq!(vmcs.read(f::HOST_RIP), Some(0xffff_ffff_c123_4567));
    assert_eq!(vmcs.read(f::HOST_TR_SELECTOR), Some(0x40));
    assert_eq!(vmcs.read(f::HOST_CR3), Some(0x1_04a2_e006));
    assert_eq!(vmcs.read(f::HOST_SYSENTER_CS), Some(0x10));
    assert_eq!(vmcs.read(f::TERTIARY_CONTROLS), Some(0x10));
    assert_eq!(vmcs.read(f::ENTRY_CONTROLS), Some(0xd3ff));
    assert_eq!(vmcs.read(f::PAGE_FAULT_ERROR_MATCH), Some(7));
    assert_eq!(vmcs.read(f::INJECTED_EVENT), Some(0x8000_00ec));
    assert_eq!(vmcs.read(f::EXITING_EVENT_ERROR_CODE), Some(8));
    assert_eq!(vmcs.read(f::EXIT_REASON), Some(0x8000_0021));
    assert_eq!(vmcs.read(f::ORIGINAL_EVENT), Some(0x8000_0306));
    assert_eq!(vmcs.read(f::GUEST_INTERRUPT_STATUS), Some(0xec31));
    assert_eq!(vmcs.read(f::TPR_THRESHOLD), Some(4));
    assert_eq!(vmcs.read(f::VIRTUAL_APIC_ADDRESS), Some(0x1_09a0_f000));
    assert_eq!(vmcs.read(f::PLE_WINDOW), Some(0x1000));
    assert_eq!(vmcs.read(f::VPID), Some(2));
    assert_eq!(vmcs.read(f::CR3_TARGET_0), None);
    // Counted by hand: the numbers of the guest's lines, the host's and the controls'. EFER is not one.
    assert_eq!(vmcs.len(), 39 + 21 + 29);
}

#[test]
fn why_it_failed() {
    let dump = logged(KVM).next().unwrap().unwrap();
    let mut broken = Vec::new();
    let processor = presets::everything();
    Checker::new(&processor).check(&dump.vmcs, &mut |violation: &Violation| {
        broken.push(violation.rule.id);
    });
    // An interrupt with IF clear, and during blocking by STI: both are in the log above.
    for rule in ["guest.rflags.if", "guest.interruptibility.sti-if"] {
        assert!(broken.contains(&rule), "{broken:?}");
    }
}

#[test]
fn xens_form_and_two_in_one_log() {
    let [first, second] = &values(XEN)[..] else {
        panic!()
    };
    let expected: [u64; 7] = [
        0xffff_ffff_8184_f058,
        0xffff_8800_18cf_7f50,
        0x82,
        0x7f,
        0x2087,
        0xffff_8800_1f40_4900,
        0xb6a0_65fa,
    ];
    assert_eq!(first[..], expected);
    assert_eq!(second[..], [2]);
    let dump = logged(XEN).next().unwrap().unwrap().vmcs;
    assert_eq!(dump.read(f::GUEST_EFER), Some(0xd01));
    assert_eq!(dump.read(f::GUEST_SMBASE), Some(1));
    assert_eq!(dump.read(f::GUEST_PDPTE1), Some(0x1001));
    assert_eq!(dump.read(f::GUEST_GS_BASE), Some(0xffff_8800_1f40_0000));
}

#[test]
fn a_number_that_cannot_be() {
    let log = b"x\n*** Guest State ***\nCS: sel=0x10008, attr=0, limit=0, base=0\n";
    let error = logged(log).next().unwrap().unwrap_err();
    let expected = LogError {
        line: 3,
        offset: 30,
        field: f::GUEST_CS_SELECTOR.encoding(),
    };
    assert_eq!(error, expected);
    assert_eq!(&log[30..37], b"0x10008");
    assert_eq!(
        error.to_string(),
        "line 3, byte 30: the value is too wide for Guest CS selector"
    );
    let half = b"*** Guest State ***\n*** Control State ***\nSVI|RVI = 100|0";
    assert!(logged(half).next().unwrap().is_err());
}

#[test]
fn what_is_no_dump() {
    assert_eq!(logged(b"").count(), 0);
    assert_eq!(
        logged(b"RIP = 0x1000\n*** Host State ***\nRIP = 0x1\n").count(),
        0
    );
    // Cut short in the middle of a number, of a name.
    for length in 0..KVM.len() {
        assert!(logged(&KVM[..length]).all(|dump| dump.is_ok()));
    }
}

proptest! {
    #[test]
    fn any_bytes(noise in proptest::collection::vec(any::<u8>(), 0..64), at in 0..KVM.len()) {
        let mut log = KVM.to_vec();
        log.splice(at..at, noise);
        prop_assert!(logged(&log).count() <= 2);
    }
}
