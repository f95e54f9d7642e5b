// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `/proc` says of a process: processor time, and memory by mapping.

use std::fs;

/// Resident memory of a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it, in KiB.
    pub(crate) all_kib: u64,
    /// Without the mapping that is the guest's memory, in KiB.
    pub(crate) own_kib: u64,
}

/// A thread, and what it has used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    /// As it calls itself.
    pub(crate) name: String,
    /// Processor time, in nanoseconds.
    pub(crate) cpu_ns: u64,
}

/// The threads of `pid`.
pub(crate) fn threads(pid: u32) -> Result<Vec<Thread>, String> {
    let folder = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut threads = Vec::new();
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name));
        // A thread may end between the two reads; what it used is then not counted.
        let (Ok(text), Ok(name)) = (read("schedstat"), read("comm")) else {
            continue;
        };
        let first = text
            .split_whitespace()
            .next()
            .and_then(|v| v.parse::<u64>().ok());
        threads.push(Thread {
            name: name.trim_end().to_owned(),
            cpu_ns: first.ok_or_else(|| format!("{folder}: schedstat is `{text}`"))?,
        });
    }
    if threads.iter().all(|thread| thread.cpu_ns == 0) {
        return Err(format!("{folder}: this kernel keeps no schedstat"));
    }
    Ok(threads)
}

/// Processor time of all threads of `pid`, in microseconds.
pub(crate) fn cpu_micros(pid: u32) -> Result<u64, String> {
    let all: u64 = threads(pid)?.iter().map(|thread| thread.cpu_ns).sum();
    Ok(all / 1000)
}

/// Resident memory of `pid`, with and without its guest's memory.
pub(crate) fn memory(pid: u32, guest_kib: u64) -> Result<Memory, String> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    memory_of(&text, guest_kib).map_err(|e| format!("{path}: {e}"))
}

/// The guest's memory is the one mapping of its size, or those that add up to it: a VMM may leave a
/// hole in it, or guard pages around it.
fn memory_of(smaps: &str, guest_kib: u64) -> Result<Memory, String> {
    let mut all_kib = 0;
    let mut guest = None;
    let mut size = 0;
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let number = || value.trim().trim_end_matches(" kB").trim().parse::<u64>();
        match key {
            "Size" => size = number().map_err(|e| format!("{line}: {e}"))?,
            "Rss" => {
                let rss = number().map_err(|e| format!("{line}: {e}"))?;
                all_kib += rss;
                // Neighbours of one kind are one mapping to the kernel, so it may be a little larger.
                if guest_kib > 0 && size >= guest_kib && size < guest_kib + guest_kib / 8 {
                    if guest.is_some() {
                        return Err(format!("two mappings look like {guest_kib} KiB of guest"));
                    }
                    guest = Some(rss);
                }
            }
            _ => {}
        }
    }
    match guest {
        Some(rss) => Ok(Memory {
            all_kib,
            own_kib: all_kib - rss,
        }),
        None if guest_kib == 0 => Ok(Memory {
            all_kib,
            own_kib: all_kib,
        }),
        None => Err(format!("no mapping looks like {guest_kib} KiB of guest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "55d0-55e0 r-xp 00000000 fe:00 12 /bin/vmm\nSize:   1000 kB\nRss:   600 kB\n\
        7f00-7f10 rw-p 00000000 00:00 0 \nSize:   262144 kB\nKernelPageSize: 4 kB\nRss:   80000 kB\n\
        7f20-7f30 rw-p 00000000 00:00 0 [heap]\nSize:   132 kB\nRss:   40 kB\n";

    #[test]
    fn the_guests_mapping_is_told_from_the_rest() {
        let memory = memory_of(SMAPS, 262_144).unwrap();
        assert_eq!(
            memory,
            Memory {
                all_kib: 80_640,
                own_kib: 640
            }
        );
        assert_eq!(memory_of(SMAPS, 0).unwrap().own_kib, 80_640);
        assert!(memory_of(SMAPS, 131_072).is_err());
        assert!(memory_of("Size: x kB\n", 0).is_err());
    }

    #[test]
    fn our_own_figures_are_there() {
        let pid = std::process::id();
        assert!(memory(pid, 0).unwrap().all_kib > 100);
        assert!(cpu_micros(pid).is_ok_and(|us| us > 0));
    }
}
