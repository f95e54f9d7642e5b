// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Can this machine's own `/dev/kvm` run Linux?
//!
//! One that opens need not: some hosts' KVM emulates integer instructions one by one, so that Linux
//! seems to hang. A guest of a few bytes tells: it enters long mode, executes SSE instructions, then
//! counts down against the clock.

use std::fmt;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where a guest that boots Linux can run.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// On this machine's own KVM.
    Direct,
    /// In the laboratory's host, and why not here.
    Lab(Reason),
}

/// Why this machine's own KVM will not do.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// There is no `/dev/kvm`.
    Missing,
    /// It may not be opened by this user.
    Forbidden,
    /// A request that every VMM needs fails.
    Refused {
        /// The request.
        request: &'static str,
        /// The error number.
        errno: i32,
    },
    /// It lacks something that a PC needs.
    Lacks(&'static str),
    /// The guest stopped where it should have gone on.
    Stopped {
        /// What it was about to do.
        during: &'static str,
        /// The exit.
        exit: String,
    },
    /// It works, too slowly for Linux.
    Slow {
        /// Guest instructions a second.
        rate: u64,
    },
    /// The guest of a few bytes was not through in this time.
    Silent(Duration),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Direct => f.write_str("direct"),
            Choice::Lab(reason) => write!(f, "lab: {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Missing => f.write_str("no /dev/kvm"),
            Reason::Forbidden => f.write_str("no permission to open /dev/kvm"),
            Reason::Refused { request, errno } => write!(
                f,
                "/dev/kvm refuses {request}: {}",
                io::Error::from_raw_os_error(*errno)
            ),
            Reason::Lacks(what) => write!(f, "/dev/kvm has no {what}"),
            Reason::Stopped { during, exit } => {
                write!(f, "/dev/kvm cannot run {during}: {exit}")
            }
            Reason::Slow { rate } => write!(
                f,
                "/dev/kvm runs only {:.1} million instructions a second",
                *rate as f64 / 1e6
            ),
            Reason::Silent(waited) => write!(
                f,
                "/dev/kvm did not get a guest of a few bytes done in {} s",
                waited.as_secs()
            ),
        }
    }
}

/// Linux boots in some 500 million instructions: below this rate, not in half a minute.
const LEAST_RATE: u64 = 20_000_000;
/// Rounds of the guest's loop, two instructions each. An emulating KVM needs a third of a second.
const ROUNDS: u32 = 200_000;
/// How long the whole guest may take.
const PATIENCE: Duration = Duration::from_secs(10);

const MEMORY_SIZE: usize = 0x20_0000;
const LEVEL4: u64 = 0x1000;
const LEVEL3: u64 = 0x2000;
const LEVEL2: u64 = 0x3000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
/// The port at which the guest says how far it is.
const PORT: u16 = 0xf5;
const STARTED: u8 = 0;
const SSE_DONE: u8 = 1;
const LOOP_DONE: u8 = 2;

/// The guest, in 64-bit mode from its first byte.
fn guest() -> Vec<u8> {
    let [a, b, c, d] = ROUNDS.to_le_bytes();
    let data = DATA.to_le_bytes();
    let mut code = vec![
        0xb0, STARTED, // mov al, STARTED
        0xe6, PORT as u8, // out PORT, al
        0x0f, 0x57, 0xc0, // xorps xmm0, xmm0
        0x66, 0x0f, 0x76, 0xc9, // pcmpeqd xmm1, xmm1
        0x48, 0xbf, // mov rdi, DATA
    ];
    code.extend(data);
    code.extend([
        0x0f, 0x29, 0x07, // movaps [rdi], xmm0
        0x66, 0x0f, 0x7f, 0x4f, 0x10, // movdqa [rdi + 16], xmm1
        0xb0, SSE_DONE, // mov al, SSE_DONE
        0xe6, PORT as u8, // out PORT, al
        0xb9, a, b, c, d, // mov ecx, ROUNDS
        0xff, 0xc9, // dec ecx
        0x75, 0xfc, // jnz to the dec
        0xb0, LOOP_DONE, // mov al, LOOP_DONE
        0xe6, PORT as u8, // out PORT, al
        0xf4,       // hlt
    ]);
    code
}

/// Tries this machine's KVM. Takes milliseconds where it is real, half a second where it emulates.
pub fn probe() -> Choice {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => {}
        Err(error) => return Choice::Lab(cannot_open(&error)),
    }
    let (report, answer) = mpsc::channel();
    // A guest cannot be interrupted without a signal, so a thread waits for it, and is left behind
    // if the guest never stops.
    thread::spawn(move || {
        let _ = report.send(try_guest());
    });
    match answer.recv_timeout(PATIENCE) {
        Ok(Ok(rate)) => judge(rate),
        Ok(Err(reason)) => Choice::Lab(reason),
        Err(_) => Choice::Lab(Reason::Silent(PATIENCE)),
    }
}

fn judge(rate: u64) -> Choice {
    if rate < LEAST_RATE {
        Choice::Lab(Reason::Slow { rate })
    } else {
        Choice::Direct
    }
}

fn cannot_open(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::NotFound => Reason::Missing,
        io::ErrorKind::PermissionDenied => Reason::Forbidden,
        // ENXIO and ENODEV: the file is there, and no KVM behind it.
        _ => Reason::Refused {
            request: "to be opened",
            errno: error.raw_os_error().unwrap_or(0),
        },
    }
}

/// Names the request that failed.
trait Asked<T> {
    fn asked(self, request: &'static str) -> Result<T, Reason>;
}

impl<T> Asked<T> for Result<T, kvm_ioctls::Error> {
    fn asked(self, request: &'static str) -> Result<T, Reason> {
        self.map_err(|error| Reason::Refused {
            request,
            errno: error.errno(),
        })
    }
}

/// Runs the guest; returns its instructions a second.
fn try_guest() -> Result<u64, Reason> {
    let kvm = Kvm::new().asked("KVM_CREATE_VM's device")?;
    for (capability, name) in [
        (Cap::Irqchip, "in-kernel interrupt controllers"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::Irqfd, "irqfd"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(Reason::Lacks(name));
        }
    }
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
        .map_err(|_| Reason::Lacks("memory for a guest of 2 MiB"))?;
    fill(&memory).map_err(|_| Reason::Lacks("memory for a guest of 2 MiB"))?;
    let vm = kvm.create_vm().asked("KVM_CREATE_VM")?;
    give(&vm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).asked("KVM_CREATE_VCPU")?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .asked("KVM_GET_SUPPORTED_CPUID")?;
    vcpu.set_cpuid2(&cpuid).asked("KVM_SET_CPUID2")?;
    let mut sregs = vcpu.get_sregs().asked("KVM_GET_SREGS")?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).asked("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().asked("KVM_GET_REGS")?;
    (regs.rip, regs.rflags) = (CODE, 2);
    vcpu.set_regs(&regs).asked("KVM_SET_REGS")?;

    run_until(&mut vcpu, STARTED, "an instruction in long mode")?;
    run_until(&mut vcpu, SSE_DONE, "an SSE instruction")?;
    let start = Instant::now();
    run_until(&mut vcpu, LOOP_DONE, "a loop of integer instructions")?;
    let took = start.elapsed().as_secs_f64();
    // Two instructions a round; a time of zero is a clock too coarse to see it.
    Ok((2.0 * f64::from(ROUNDS) / took.max(1e-9)) as u64)
}

/// The page tables (2 MiB mapped to themselves) and the code.
fn fill(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    for (address, entry) in [(LEVEL4, LEVEL3 | 3), (LEVEL3, LEVEL2 | 3), (LEVEL2, 0x83)] {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    memory.write_slice(&guest(), GuestAddress(CODE))
}

#[expect(
    unsafe_code,
    reason = "KVM is given an address of ours to use as guest memory"
)]
fn give(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Reason> {
    let address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|_| Reason::Lacks("memory for a guest of 2 MiB"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_SIZE as u64,
        userspace_addr: address as u64,
    };
    // SAFETY: 1. `memory` is one mapping of MEMORY_SIZE bytes from guest address 0 on. 2. The only
    // caller drops `vm` before `memory`, being declared after it, so the guest never sees the
    // addresses put to another use. 3. No Rust reference into the mapping exists while the guest
    // runs: it is only accessed through `memory`, which uses volatile accesses.
    unsafe { vm.set_user_memory_region(region) }.asked("KVM_SET_USER_MEMORY_REGION")
}

/// 64-bit mode with SSE, flat segments. SDM 3A, "Initializing IA-32e Mode".
fn long_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 16,
        type_: 3, // read, write, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: 8,
        type_: 11, // execute, read, accessed
        db: 0,
        l: 1,
        ..data
    };
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.ss,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *segment = data;
    }
    sregs.cr3 = LEVEL4;
    sregs.cr4 |= 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
    sregs.efer |= 1 << 8 | 1 << 10; // LME, LMA
    sregs.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG, NE, ET, MP, PE
}

/// Runs until the guest says `stage` at [`PORT`].
fn run_until(vcpu: &mut VcpuFd, stage: u8, during: &'static str) -> Result<(), Reason> {
    let exit = match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT, [said])) if *said == stage => return Ok(()),
        Ok(exit) => format!("{exit:?}"),
        Err(error) => {
            return Err(Reason::Refused {
                request: "KVM_RUN",
                errno: error.errno(),
            });
        }
    };
    Err(Reason::Stopped { during, exit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_said_in_one_line() {
        let cases = [
            (cannot_open(&io::ErrorKind::NotFound.into()), "no /dev/kvm"),
            (
                cannot_open(&io::ErrorKind::PermissionDenied.into()),
                "no permission to open /dev/kvm",
            ),
            (
                cannot_open(&io::Error::from_raw_os_error(6)),
                "/dev/kvm refuses to be opened: No such device or address (os error 6)",
            ),
            (Reason::Lacks("irqfd"), "/dev/kvm has no irqfd"),
            (
                Reason::Slow { rate: 1_200_000 },
                "/dev/kvm runs only 1.2 million instructions a second",
            ),
            (
                Reason::Silent(PATIENCE),
                "/dev/kvm did not get a guest of a few bytes done in 10 s",
            ),
        ];
        for (reason, line) in cases {
            assert_eq!(reason.to_string(), line);
        }
    }

    #[test]
    fn the_rate_decides() {
        assert_eq!(judge(LEAST_RATE), Choice::Direct);
        let slow = LEAST_RATE - 1;
        assert_eq!(judge(slow), Choice::Lab(Reason::Slow { rate: slow }));
    }

    #[test]
    fn the_loop_jumps_back_to_its_start() {
        let code = guest();
        let jump = code.windows(2).position(|w| w == [0x75, 0xfc]).unwrap();
        // jnz is relative to the instruction after it, 2 bytes on; 0xfc is -4.
        assert_eq!(code[jump + 2 - 4..][..2], [0xff, 0xc9]);
    }
}
