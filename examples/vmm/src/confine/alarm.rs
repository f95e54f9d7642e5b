// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread tried a system call that its filter does not list: a defect of the lists, or somebody else's code in the
//! thread. Either way the process ends at once, having said what it was.
//!
//! All of this runs in a signal handler, so nothing here allocates or locks.

use crate::console::terminal;
use crate::exit_status::ExitStatus;
use crate::machine::history::History;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stderr;
use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::OnceLock;
use vmm_sys_util::signal::register_signal_handler;

/// What the guest did last, to be told with the alarm.
static HISTORY: OnceLock<History> = OnceLock::new();

/// Tells `history` with an alarm. The first machine of a process is the one that counts.
pub fn tell_with(history: &History) {
    // A second machine of the process keeps the first one's: the alarm itself names the call.
    let _ = HISTORY.set(history.clone());
}

/// Makes `SIGSYS`, which a filter raises, end the process.
pub(super) fn install() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, ring).map_err(Into::into)
}

extern "C" fn ring(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let call = number(info);
    let [first, second] = arguments(context);
    let mut name = [0; 16];
    let name = thread_name(&mut name);
    let mut out = StandardError;
    // Nobody may be there to read it.
    let _ = writeln!(
        out,
        "vmm: thread {name} tried system call {call} ({first:#x}, {second:#x}), which it may not make; the VMM ends"
    );
    if let Some(history) = HISTORY.get() {
        let _ = write!(out, "{history}");
    }
    terminal::restore();
    end(ExitStatus::Forbidden.code());
}

#[expect(unsafe_code, reason = "libc does not name this member of siginfo_t")]
fn number(info: *mut libc::siginfo_t) -> c_int {
    /// Where the number of the system call is for SIGSYS, in `int`s: signal, errno, code, padding, an address.
    const CALL: usize = 6;
    if info.is_null() {
        return -1;
    }
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole siginfo_t (128 bytes, aligned as an int), all of it
    // initialized.
    unsafe { info.cast::<c_int>().add(CALL).read() }
}

/// The first two arguments: the second is the request of an `ioctl`, the first the option of a `prctl`.
#[expect(unsafe_code, reason = "the kernel gives the registers by a pointer")]
fn arguments(context: *mut c_void) -> [i64; 2] {
    if context.is_null() {
        return [0; 2];
    }
    // SAFETY: the kernel gives a handler with SA_SIGINFO a ucontext_t of the interrupted thread.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    [libc::REG_RDI, libc::REG_RSI].map(|register| {
        let index = usize::try_from(register).unwrap_or(usize::MAX);
        let registers = &context.uc_mcontext.gregs;
        registers.get(index).copied().unwrap_or_default()
    })
}

/// The calling thread's name, in `buffer`.
#[expect(unsafe_code, reason = "asks the kernel, for it needs no memory")]
fn thread_name(buffer: &mut [u8; 16]) -> &str {
    // SAFETY: the kernel writes at most 16 bytes, a terminating zero among them. Every thread may make this call.
    unsafe { libc::prctl(libc::PR_GET_NAME, buffer.as_mut_ptr()) };
    let name = CStr::from_bytes_until_nul(buffer).unwrap_or_default();
    name.to_str().unwrap_or("?")
}

#[expect(
    unsafe_code,
    reason = "no destructor may run in a thread that is not ours any more"
)]
fn end(status: u8) -> ! {
    // SAFETY: ends the process without running anything of it; may be called in a signal handler.
    unsafe { libc::_exit(status.into()) }
}

/// Standard error without a lock.
struct StandardError;

impl Write for StandardError {
    #[expect(unsafe_code, reason = "std's standard error takes a lock")]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let patience = Timespec {
            tv_sec: 3,
            tv_nsec: 0,
        };
        // Somebody may be there who does not read: the process is to end all the same.
        if poll(
            &mut [PollFd::new(&stderr(), PollFlags::OUT)],
            Some(&patience),
        ) != Ok(1)
        {
            return Err(fmt::Error);
        }
        // SAFETY: reads `text.len()` bytes of `text`; may be called in a signal handler.
        let written = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
        if written < 0 { Err(fmt::Error) } else { Ok(()) }
    }
}
