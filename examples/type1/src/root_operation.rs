// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Into VMX operation, and out of it.

use core::fmt;

use hvkit_vmx::{
    ActiveVmcs, HostState, Once, Root, ThisProcessor, VmcsKind, VmcsRegion, VmxonRegion, detect,
};

use crate::{host_faults, memory};
use payload_rt::println;

static VMXON: Once<VmxonRegion> = Once::new(VmxonRegion::new());
static VMCS: Once<VmcsRegion> = Once::new(VmcsRegion::new());

/// What a step needs of the machine.
pub struct Host {
    /// The proof of VMX root operation.
    pub root: Root,
    /// The one VMCS.
    pub vmcs: ActiveVmcs,
    /// What an exit loads.
    pub state: HostState,
}

/// Why something did not work, in words: this program only prints it.
pub struct Failed {
    what: &'static str,
    print: fn(&Failed, &mut fmt::Formatter<'_>) -> fmt::Result,
    words: [u64; 2],
}

impl Failed {
    /// A step that has no more to say.
    pub const fn at(what: &'static str) -> Self {
        Self {
            what,
            print: |failed, f| f.write_str(failed.what),
            words: [0; 2],
        }
    }

    /// A step with two numbers.
    pub const fn with(what: &'static str, words: [u64; 2]) -> Self {
        Self {
            what,
            print: |failed, f| write!(f, "{}: {:#x?}", failed.what, failed.words),
            words,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.print)(self, f)
    }
}

/// Enters VMX operation, does `work`, leaves.
pub fn within(work: impl FnOnce(&mut Host) -> Result<(), Failed>) -> Result<(), Failed> {
    // SAFETY: bare metal: one processor, CPL 0, nobody else uses VMX.
    let machine = unsafe { ThisProcessor::get() };
    let mut machine = machine.map_err(say("not this architecture"))?;
    let detected = detect(&machine).map_err(say("no VMX"))?;
    // An exit loads the task register, so there must be one.
    payload_rt::task::load();
    // And exits load the interrupt-descriptor table that is captured below.
    host_faults::handle();
    let enabled = detected.enable(&mut machine).map_err(say("VMX is off"))?;
    use_extended_state();
    let region = VMXON
        .take()
        .ok_or(Failed::at("VMX operation was entered before"))?;
    // SAFETY: as above, until `leave` below.
    let root = unsafe { Root::enter(&enabled, region, &memory::map()) };
    let root = root.map_err(say("VMXON"))?;
    let state = HostState::capture(&machine).map_err(say("the host's state"))?;
    let region = VMCS.take().ok_or(Failed::at("the VMCS is in use"))?;
    let vmcs = root.activate(region, VmcsKind::Ordinary, &memory::map());
    let vmcs = vmcs.map_err(say("VMCLEAR"))?;
    let mut host = Host { root, vmcs, state };
    host_faults::in_root_operation(Some(*host.root.processor()));
    let done = work(&mut host);
    host_faults::in_root_operation(None);
    let Host { root, vmcs, .. } = host;
    let cleared = vmcs.deactivate(&root).map_err(|(_, error)| error);
    cleared.map_err(say("VMCLEAR"))?;
    root.leave().map_err(say("VMXOFF"))?;
    println!("type1: left VMX operation");
    done
}

/// Prints an error, and makes it the step that failed.
pub fn say<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> Failed {
    move |error| {
        println!("type1: {what}: {error}");
        Failed::at(what)
    }
}

/// CR4.OSXSAVE, where the processor has XSAVE: XSETBV is done here for a guest.
fn use_extended_state() {
    let has_xsave = core::arch::x86_64::__cpuid(1).ecx >> 26 & 1 != 0;
    if has_xsave {
        // SAFETY: only makes XSETBV and XGETBV work.
        unsafe {
            core::arch::asm!("mov {0}, cr4", "bts {0}, 18", "mov cr4, {0}", out(reg) _, options(nostack));
        }
    }
}
