// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Landlock takes from a thread, by trying it: no filter is in force, so a refusal is Landlock's.
//!
//! Linux, Documentation/userspace-api/landlock.rst: which version of the interface refuses what.

use hvkit_vmm::confine::refuse_all_but_removal;
use rustix::process::{getpid, getppid, test_kill_process};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::raw::c_long;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What is there to be tried on: nothing of it is the attempts' own.
pub(crate) struct Scene {
    /// Two folders, each with a `file`, a `folder` and nothing else: of `removal` files may be removed.
    folder: TempDir,
    /// Somebody listens at each.
    tcp: TcpListener,
    local: UnixListener,
}

/// The same, as a process knows it that was told by [`Scene::told`].
struct Known {
    removal: PathBuf,
    other: PathBuf,
    port: u16,
    local: String,
}

impl Scene {
    pub(crate) fn new() -> io::Result<Self> {
        let folder = TempDir::new()?;
        for name in ["removal", "other"] {
            fs::create_dir_all(folder.path().join(name).join("folder"))?;
            fs::write(folder.path().join(name).join("file"), "content")?;
        }
        let name = SocketAddr::from_abstract_name(folder.path().as_os_str().as_encoded_bytes())?;
        Ok(Scene {
            folder,
            tcp: TcpListener::bind("127.0.0.1:0")?,
            local: UnixListener::bind_addr(&name)?,
        })
    }

    /// For [`attempts`] in a process of its own.
    pub(crate) fn told(&self) -> io::Result<String> {
        let port = self.tcp.local_addr()?.port();
        Ok(format!("{port}/{}", self.folder.path().display()))
    }

    /// What is wrong with it afterwards, if anything is: the one file that may be removed is gone.
    pub(crate) fn changed(&self) -> Option<String> {
        let names = |of: &str| {
            let entries = fs::read_dir(self.folder.path().join(of)).expect("the folder");
            let names = entries.map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        let content = fs::read(self.folder.path().join("other/file"));
        let right = names("removal") == ["folder"]
            && names("other") == ["file", "folder"]
            && content.is_ok_and(|content| content == b"content");
        for listener in [
            self.local.set_nonblocking(true),
            self.tcp.set_nonblocking(true),
        ] {
            listener.expect("a socket");
        }
        let alone = self.local.accept().is_err() && self.tcp.accept().is_err();
        (!right || !alone).then(|| {
            let names = [names("removal"), names("other")];
            format!("landlock: afterwards {names:?}, nobody connected: {alone}")
        })
    }
}

struct Attempt {
    name: &'static str,
    /// The first version of the interface that refuses it, and by which error; none: it must work.
    refused: Option<(c_long, i32)>,
    attempt: fn(&Known) -> io::Result<()>,
}

const fn refused(
    name: &'static str,
    since: c_long,
    error: i32,
    attempt: fn(&Known) -> io::Result<()>,
) -> Attempt {
    Attempt {
        name,
        refused: Some((since, error)),
        attempt,
    }
}

const fn works(name: &'static str, attempt: fn(&Known) -> io::Result<()>) -> Attempt {
    Attempt {
        name,
        refused: None,
        attempt,
    }
}

const ATTEMPTS: &[Attempt] = &[
    refused("read a file", 1, libc::EACCES, |_| {
        File::open("/etc/shadow").map(drop)
    }),
    refused("read its program", 1, libc::EACCES, |_| {
        File::open("/proc/self/exe").map(drop)
    }),
    refused("list a folder", 1, libc::EACCES, |known| {
        fs::read_dir(&known.removal).map(drop)
    }),
    refused("make a file", 1, libc::EACCES, |known| {
        File::create_new(known.removal.join("new")).map(drop)
    }),
    refused("write a file", 1, libc::EACCES, |known| {
        File::options()
            .write(true)
            .open(known.other.join("file"))
            .map(drop)
    }),
    refused("shorten a file", 3, libc::EACCES, |known| {
        let path = known.other.join("file");
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
        // SAFETY: the path ends with a zero, and lives across the call.
        match unsafe { libc::truncate(path.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    refused("make a folder", 1, libc::EACCES, |known| {
        fs::create_dir(known.removal.join("new"))
    }),
    refused("make a link", 1, libc::EACCES, |known| {
        symlink("/", known.removal.join("new"))
    }),
    refused("make a socket with a path", 1, libc::EACCES, |known| {
        UnixListener::bind(known.removal.join("new")).map(drop)
    }),
    refused("move a file", 1, libc::EACCES, |known| {
        fs::rename(known.removal.join("file"), known.removal.join("new"))
    }),
    refused("remove a file elsewhere", 1, libc::EACCES, |known| {
        fs::remove_file(known.other.join("file"))
    }),
    refused("remove a folder", 1, libc::EACCES, |known| {
        fs::remove_dir(known.removal.join("folder"))
    }),
    refused("listen on TCP", 4, libc::EACCES, |_| {
        TcpListener::bind("127.0.0.1:0").map(drop)
    }),
    refused("connect by TCP", 4, libc::EACCES, |known| {
        TcpStream::connect(("127.0.0.1", known.port)).map(drop)
    }),
    refused("connect to an abstract socket", 6, libc::EPERM, |known| {
        let name = SocketAddr::from_abstract_name(&known.local)?;
        UnixStream::connect_addr(&name).map(drop)
    }),
    refused("signal another process", 6, libc::EPERM, |_| {
        let parent = getppid().ok_or(io::ErrorKind::NotFound)?;
        Ok(test_kill_process(parent)?)
    }),
    works("signal itself", |_| Ok(test_kill_process(getpid())?)),
    works("remove a file where that is granted", |known| {
        fs::remove_file(known.removal.join("file"))
    }),
];

/// The version of the kernel's interface; an error where it has none, or it is off.
pub(crate) fn version() -> io::Result<c_long> {
    /// Linux, include/uapi/linux/landlock.h.
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: no attributes are given, and their length is 0: the call tells the version.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            none,
            0,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(version)
}

/// One line for each attempt, as [`judge`] reads them, in a process that was told of a [`Scene`].
pub(crate) fn attempts(told: &str) {
    let (port, folder) = told.split_once('/').expect("PORT/FOLDER");
    let folder = Path::new(folder);
    let known = Known {
        removal: folder.join("removal"),
        other: folder.join("other"),
        port: port.parse().expect("a port"),
        local: folder.display().to_string(),
    };
    let mut open = File::open("/proc/self/exe").expect("this program's file");
    refuse_all_but_removal(std::slice::from_ref(&known.removal)).expect("rules that make sense");
    for attempt in ATTEMPTS {
        let result = (attempt.attempt)(&known);
        let error = result.err().map(|error| error.raw_os_error().unwrap_or(-1));
        println!("{}: {error:?}", attempt.name);
    }
    open.read_exact(&mut [0; 4]).expect("it is open");
    // SAFETY: takes no pointer.
    let no_new_privileges = unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) };
    println!("no new privileges: {no_new_privileges}");
}

/// What is wrong with what was said, with this version of the interface, and how much was judged.
pub(crate) fn judge(said: &str, version: c_long) -> (usize, Vec<String>) {
    let mut expected: Vec<String> = ATTEMPTS
        .iter()
        .filter(|attempt| attempt.refused.is_none_or(|(since, _)| since <= version))
        .map(|attempt| format!("{}: {:?}", attempt.name, attempt.refused.map(|(_, e)| e)))
        .collect();
    expected.push("no new privileges: 1".to_owned());
    let missing = |line: &&String| !said.lines().any(|said| said == line.as_str());
    let wrong = expected.iter().filter(missing);
    let wrong = wrong.map(|line| format!("landlock {version}: not {line:?} but {said}"));
    (expected.len(), wrong.collect())
}
