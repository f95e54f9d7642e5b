// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts. Each returns a sum of what it saw, so that nobody can leave the work out.
#![expect(
    unsafe_code,
    reason = "fork, pipes and mappings as the kernel has them"
)]

use std::io::{Error, Read, Result, Write};
use std::process::Command;
use std::ptr::null_mut;
use std::{fs, ptr};

const PAGE: usize = 4096;

/// A program started and waited for, over and over.
pub(crate) fn processes(rounds: u32) -> Result<u64> {
    let mut sum = 0;
    for _ in 0..10 * rounds {
        // The name as a path: a process of its own, whatever runs it.
        let status = Command::new("/bin/sh").args(["-c", "/bin/true"]).status()?;
        sum += u64::from(status.success());
    }
    Ok(sum)
}

/// Children that write some pages of memory that they share until then.
pub(crate) fn copies_on_write(rounds: u32) -> Result<u64> {
    const PAGES: usize = 64;
    let mut memory = vec![1_u8; PAGES * PAGE];
    let mut sum = 0;
    for round in 0..10 * rounds {
        let status = child(|| {
            for page in (0..PAGES).step_by(4) {
                memory[page * PAGE] = round as u8;
            }
            memory.iter().step_by(PAGE).fold(0, |all, byte| all ^ byte)
        })?;
        memory[(round as usize * 7) % PAGES * PAGE] ^= 1;
        sum += u64::from(status);
    }
    Ok(sum)
}

/// Files in memory, copied and read.
pub(crate) fn files(rounds: u32) -> Result<u64> {
    let content: Vec<u8> = (0..256 * 1024_u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    fs::write("/tmp/a", &content)?;
    let mut sum = 0;
    for round in 0..rounds {
        let name = format!("/tmp/b{}", round % 4);
        fs::copy("/tmp/a", &name)?;
        let read = fs::read(&name)?;
        sum += read.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    }
    for round in 0..rounds.min(4) {
        fs::remove_file(format!("/tmp/b{round}"))?;
    }
    Ok(sum)
}

/// Mappings made, touched, protected, cut and unmade.
pub(crate) fn mappings(rounds: u32) -> Result<u64> {
    const PAGES: usize = 64;
    let mut sum = 0;
    let mut at = 1_u64;
    for _ in 0..10 * rounds {
        let length = PAGES * PAGE;
        let (rights, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, which nothing else uses; all accesses below are inside.
        unsafe {
            let base = libc::mmap(null_mut(), length, rights, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(Error::last_os_error());
            }
            let page = |number: usize| base.cast::<u8>().add(number * PAGE);
            for number in 0..PAGES {
                ptr::write_volatile(page(number), number as u8);
            }
            let half = page(PAGES / 2).cast();
            if libc::mprotect(half, length / 2, libc::PROT_READ) != 0 {
                return Err(Error::last_os_error());
            }
            for _ in 0..PAGES {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let number = (at >> 33) as usize % PAGES;
                sum += u64::from(ptr::read_volatile(page(number)));
            }
            libc::mprotect(half, length / 2, rights);
            ptr::write_volatile(page(PAGES - 1), 9);
            libc::munmap(page(8).cast(), 8 * PAGE);
            libc::munmap(base, length);
        }
    }
    Ok(sum)
}

/// Two processes that wait for each other: an address space after the other.
pub(crate) fn switches(rounds: u32) -> Result<u64> {
    let turns = 50 * rounds;
    let (mut from_child, mut to_parent) = std::io::pipe()?;
    let (mut from_parent, mut to_child) = std::io::pipe()?;
    let mut byte = [0];
    // SAFETY: one thread; the child uses the pipes and leaves.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(Error::last_os_error()),
        0 => {
            for _ in 0..turns {
                let ok = from_parent.read_exact(&mut byte).is_ok()
                    && to_parent.write_all(&[byte[0].wrapping_add(1)]).is_ok();
                if !ok {
                    leave(1);
                }
            }
            leave(0)
        }
        _ => {}
    }
    let mut sum = 0;
    for _ in 0..turns {
        to_child.write_all(&byte)?;
        from_child.read_exact(&mut byte)?;
        sum += u64::from(byte[0]);
    }
    wait(pid).map(|status| sum + u64::from(status))
}

/// Runs `work` in a child, and returns what it came to.
fn child(work: impl FnOnce() -> u8) -> Result<u8> {
    // SAFETY: one thread, so the child may do what it likes; it ends at once after the work.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => leave(work().into()),
        pid => wait(pid),
    }
}

fn leave(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

fn wait(pid: libc::pid_t) -> Result<u8> {
    let mut status = 0;
    // SAFETY: a child of ours, and a place for its status.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid || !libc::WIFEXITED(status) {
        return Err(Error::other("a child did not end as it should"));
    }
    Ok(libc::WEXITSTATUS(status) as u8)
}
