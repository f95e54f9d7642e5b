// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network that needs no privilege: `--net user`.
//!
//! ```text
//!   guest -- card -- a pair of sockets -- passt -- sockets of the host's
//!   10.0.2.15                                10.0.2.2
//! ```
//!
//! passt is started before the VMM gives up its files, inherits one of the two sockets, and goes into the background once it
//! serves. It ends when the other socket closes, however the VMM ends; when it ends first, the guest's link is down.

use crate::config::{Reach, UserNetwork};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What serves the network: Debian's package of that name.
const PROGRAM: &str = "passt";
/// The guest's address by DHCP, its network and its gateway: those of other VMMs' user networks.
const ADDRESSES: [&str; 6] = [
    "--address",
    "10.0.2.15",
    "--netmask",
    "24",
    "--gateway",
    "10.0.2.2",
];
/// How long it may take until it serves.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of what it says that are looked at.
const WORDS: u64 = 4096;

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum UserNetworkError {
    /// There is no passt.
    #[error(
        "--net user: there is no {PROGRAM} in PATH; install it (Debian, Ubuntu: apt install passt; Fedora: dnf install passt)"
    )]
    Missing,
    /// The host.
    #[error("--net user: cannot start {PROGRAM}: {0}")]
    Host(#[from] io::Error),
    /// It ended, having said this.
    #[error("--net user: {PROGRAM} refused ({status}): {said}")]
    Refused {
        /// How it ended.
        status: ExitStatus,
        /// Its last line.
        said: String,
    },
    /// It did not begin to serve in time.
    #[error("--net user: {PROGRAM} was not ready after {PATIENCE:?}")]
    NotReady,
}

/// Starts passt as `asked`; the socket at whose other end it is. It serves when this returns.
///
/// # Errors
///
/// It is not installed, or does not want to. None of it is left.
pub fn start(asked: &UserNetwork) -> Result<UnixStream, UserNetworkError> {
    start_program(PROGRAM, asked)
}

fn start_program(program: &str, asked: &UserNetwork) -> Result<UnixStream, UserNetworkError> {
    let (ours, theirs) = UnixStream::pair()?;
    // Should another thread start a program meanwhile, that has it too, and is none the wiser.
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(io::Error::from)?;
    let mut command = Command::new(program);
    command
        .arg("--quiet")
        .args(ADDRESSES)
        .args(["--fd", &theirs.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    for (option, ports) in [("--tcp-ports", &asked.tcp), ("--udp-ports", &asked.udp)] {
        if !ports.is_empty() {
            command.args([option, &ports.join(",")]);
        }
    }
    if asked.host == Reach::Outside {
        command.arg("--no-map-gw");
    }
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => UserNetworkError::Missing,
        _ => UserNetworkError::Host(error),
    })?;
    drop(theirs);
    let status = match ended(&mut child) {
        Ok(Some(status)) => status,
        other => {
            // If it has ended meanwhile, that is as well.
            let _ = child.kill();
            let _ = child.wait();
            other?;
            return Err(UserNetworkError::NotReady);
        }
    };
    let said = words(&mut child)?;
    if !status.success() {
        let said = said.lines().last().unwrap_or("it did not say why");
        return Err(UserNetworkError::Refused {
            status,
            said: said.to_owned(),
        });
    }
    for line in said.lines() {
        log::debug!("{PROGRAM}: {line}");
    }
    Ok(ours)
}

/// The end of the process that was started: it leaves another behind, which serves.
fn ended(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        match child.try_wait()? {
            None if began.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(2)),
            status => return Ok(status),
        }
    }
}

/// What it said until it ended; one that it left behind may say more, which is not waited for.
fn words(child: &mut Child) -> io::Result<String> {
    let Some(pipe) = child.stderr.take() else {
        return Ok(String::new());
    };
    fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
    let mut said = Vec::new();
    match pipe.take(WORDS).read_to_end(&mut said) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(String::from_utf8_lossy(&said).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    /// A program in place of passt, which is this script. Not by Debian's sh, which knows ten files.
    fn instead(script: &str) -> (TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path.to_str().unwrap().to_owned())
    }

    fn plain() -> UserNetwork {
        UserNetwork::default()
    }

    #[test]
    fn one_that_is_not_there_is_said_how_to_have() {
        let error = start_program("/nowhere/passt", &plain()).unwrap_err();
        assert!(error.to_string().contains("apt install passt"), "{error}");
        // There, and no program.
        let folder = tempfile::tempdir().unwrap();
        let error = start_program(folder.path().to_str().unwrap(), &plain()).unwrap_err();
        assert!(error.to_string().contains("cannot start"), "{error}");
    }

    #[test]
    fn what_it_says_last_is_the_reason() {
        let (_folder, path) = instead("echo root >&2; echo no such port >&2; exit 3");
        let error = start_program(&path, &plain()).unwrap_err().to_string();
        assert!(error.ends_with("(exit status: 3): no such port"), "{error}");
        let (_folder, path) = instead("exit 1");
        let error = start_program(&path, &plain()).unwrap_err().to_string();
        assert!(error.ends_with("it did not say why"), "{error}");
    }

    #[test]
    fn it_has_the_other_end_and_what_was_asked() {
        // The one left behind keeps the pipe of its errors open, and is not waited for.
        let (_folder, path) = instead(
            "while [ $# -gt 0 ]; do [ $1 = --fd ] && fd=$2; all=\"$all $1\"; shift; done\n\
             (eval \"read -r line <&$fd; echo $all >&$fd; cat <&$fd\") & exit 0",
        );
        let asked = UserNetwork {
            tcp: vec!["2222:22".into(), "127.0.0.1/80".into()],
            udp: vec!["53".into()],
            host: Reach::Outside,
        };
        let mut socket = start_program(&path, &asked).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket.write_all(b"go\n").unwrap();
        let mut said = [0; 256];
        let count = socket.read(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said[..count]);
        for part in [
            " --gateway 10.0.2.2 ",
            " --tcp-ports 2222:22,127.0.0.1/80 ",
            " --udp-ports 53 --no-map-gw",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
