// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The instructions that manage VMX operation, and their failures.

use hvkit_vmcs::store::{Fields, FieldsMut};
use hvkit_vmcs::{Encoding, fields as f};
use hvkit_vmx::{
    Enabled, InvEpt, InvVpid, Linear, Once, Physical, Root, VmcsKind, VmcsRegion, VmxonRegion,
};
use payload_rt::println;

pub(crate) static VMXON: Once<VmxonRegion> = Once::new(VmxonRegion::new());
static SECOND_VMXON: Once<VmxonRegion> = Once::new(VmxonRegion::new());
static FIRST: Once<VmcsRegion> = Once::new(VmcsRegion::new());
static SECOND: Once<VmcsRegion> = Once::new(VmcsRegion::new());
static SHADOW: Once<VmcsRegion> = Once::new(VmcsRegion::new());
static WRONG: [Once<VmcsRegion>; 3] = [const { Once::new(VmcsRegion::new()) }; 3];

/// Says that everything lies at one address.
struct Lie(u64);

// SAFETY: it is a lie, told to instructions that refuse it before they touch memory.
unsafe impl Physical for Lie {
    fn address(&self, _: usize) -> u64 {
        self.0
    }
}

pub(crate) fn run(root: &mut Root, enabled: &Enabled, memory: &Linear) {
    println!("nothing current: {:?}", root.current_pointer());
    let Some(second_vmxon) = SECOND_VMXON.take() else {
        return;
    };
    let vmxon = memory.of(&VMXON) & !0xfff;
    // SAFETY: it fails: the processor is in VMX operation already.
    let again = unsafe { Root::enter(enabled, second_vmxon, memory) };
    println!(
        "VMXON in root, nothing current: {:?}",
        again.map(core::mem::forget)
    );

    let (Some(first), Some(second)) = (FIRST.take(), SECOND.take()) else {
        return;
    };
    let (Ok(mut first), Ok(mut second)) = (
        root.activate(first, VmcsKind::Ordinary, memory),
        root.activate(second, VmcsKind::Ordinary, memory),
    ) else {
        return println!("activate: failed");
    };
    let (at_first, at_second) = (first.physical(), second.physical());
    {
        let Ok(mut current) = root.load(&mut first) else {
            return;
        };
        println!(
            "current is the first: {}",
            current.root().current_pointer() == Some(at_first)
        );
        println!(
            "write: {:?}",
            current.vmwrite(f::GUEST_RIP.encoding(), 0x1234_5678_9abc)
        );
        println!("read: {:x?}", current.read(f::GUEST_RIP));
        println!("a 16-bit field: {:x?}", {
            let _ = current.set(f::GUEST_CS_SELECTOR.encoding(), 0x1_2345);
            current.get(f::GUEST_CS_SELECTOR.encoding())
        });
        println!("a high half: {:x?}", {
            let _ = current.set(f::GUEST_PAT.encoding(), 0x0102_0304_0506_0708);
            current.get(Encoding(0x2805))
        });
        println!(
            "no such field, read: {:?}",
            current.vmread(Encoding(0x7ffe))
        );
        println!("its error: {:?}", current.read(f::INSTRUCTION_ERROR));
        println!(
            "no such field, write: {:?}",
            current.vmwrite(Encoding(0x7ffe), 0)
        );
        println!(
            "as a store: {:?} {:?}",
            current.get(Encoding(0x7ffe)),
            current.set(Encoding(0x7ffe), 0)
        );
        println!("launch state: {:?}", current.launch_state());
    }
    {
        let Ok(current) = root.load(&mut second) else {
            return;
        };
        println!(
            "current is the second: {}",
            current.root().current_pointer() == Some(at_second)
        );
        println!(
            "another value: {}",
            current.read(f::GUEST_RIP) != Some(0x1234_5678_9abc)
        );
    }
    if let Ok(current) = root.load(&mut first) {
        println!("kept: {:x?}", current.read(f::GUEST_RIP));
    }
    wrong_addresses(root, vmxon);
    // SAFETY: as above.
    if let Some(third) = operation_region() {
        // SAFETY: it fails as before, and a VMCS is current to say why.
        let again = unsafe { Root::enter(enabled, third, memory) };
        println!("VMXON in root: {:?}", again.map(core::mem::forget));
    }
    println!("clear: {:?}", first.clear(root));
    println!("nothing current again: {:?}", root.current_pointer());
    let _ = second.clear(root);
    let Some(shadow) = SHADOW.take() else { return };
    let shadow = root.activate(shadow, VmcsKind::Shadow, memory);
    println!(
        "a shadow VMCS is loaded: {:?}",
        shadow.and_then(|mut vmcs| root.load(&mut vmcs).map(|_| ()))
    );
    invalidations(root);
}

fn operation_region() -> Option<&'static mut VmxonRegion> {
    static THIRD: Once<VmxonRegion> = Once::new(VmxonRegion::new());
    THIRD.take()
}

/// VMCLEAR and VMPTRLD of what is no region; a VMCS is current, to say why.
fn wrong_addresses(root: &mut Root, vmxon: u64) {
    let [unaligned, outside, own] = &WRONG;
    for (name, region, lie) in [
        ("VMCLEAR, unaligned", unaligned, vmxon + 8),
        ("VMCLEAR, beyond the address width", outside, 1 << 51),
        ("VMCLEAR of the VMXON region", own, vmxon),
    ] {
        let Some(region) = region.take() else { return };
        let result = root.activate(region, VmcsKind::Ordinary, &Lie(lie));
        println!("{name}: {:?}", result.map(|_| ()));
    }
}

fn invalidations(root: &Root) {
    println!("INVEPT, all: {:?}", root.invept(InvEpt::AllContexts));
    println!(
        "INVEPT, one: {:?}",
        root.invept(InvEpt::SingleContext { eptp: 0x20_001e })
    );
    println!("INVVPID, all: {:?}", root.invvpid(InvVpid::AllContexts));
    for (name, what) in [
        ("one", InvVpid::SingleContext { vpid: 1 }),
        (
            "address",
            InvVpid::Address {
                vpid: 1,
                linear: 0x1000,
            },
        ),
        ("not global", InvVpid::SingleContextNotGlobal { vpid: 1 }),
    ] {
        println!("INVVPID, {name}: {:?}", root.invvpid(what));
    }
}

/// Failures of the invalidating instructions; a VMCS is current, to say why.
pub(crate) fn bad_operands(root: &Root) {
    let bad = InvEpt::SingleContext { eptp: 0x20_0fff };
    println!("INVEPT of no EPTP: {:?}", root.invept(bad));
    println!(
        "INVVPID of 0: {:?}",
        root.invvpid(InvVpid::SingleContext { vpid: 0 })
    );
    let far = InvVpid::Address {
        vpid: 1,
        linear: 1 << 63,
    };
    println!("INVVPID, not canonical: {:?}", root.invvpid(far));
}

/// Into VMX operation a second time, and out by dropping.
pub(crate) fn again(enabled: &Enabled, memory: &Linear) {
    static LAST: [Once<VmxonRegion>; 2] = [const { Once::new(VmxonRegion::new()) }; 2];
    for region in &LAST {
        let Some(region) = region.take() else { return };
        // SAFETY: as at the start; the value is dropped here.
        let root = unsafe { Root::enter(enabled, region, memory) };
        println!("again: {:?}", root.map(|_| ()));
    }
}
