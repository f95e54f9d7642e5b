// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A local socket at which a line asks and a line answers, one client after another.

use crate::confine::{Confiner, Kind};
use crate::wake::Wake;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a client has for its line.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of the longest line.
const LINE: u64 = 64;

/// The thread that answers at the socket; both end with the value.
#[derive(Debug)]
pub struct LineSocket {
    path: PathBuf,
    end: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl LineSocket {
    /// Listens at `path`; `obey` makes an answer of a line. The thread is called `name`, and confined by `confiner`.
    ///
    /// # Errors
    ///
    /// The host's: the path is in use, say.
    pub fn listen(
        path: &Path,
        name: &'static str,
        confiner: Confiner,
        mut obey: impl FnMut(&str) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let end = Arc::new(Wake::new()?);
        let mut socket = LineSocket {
            path: path.to_path_buf(),
            end: Arc::clone(&end),
            thread: None,
        };
        let serve = move || match confiner.enter(Kind::Control) {
            Ok(()) => serve(&listener, &end, &mut obey),
            Err(error) => log::error!("nobody answers at the socket of {name}: {error}"),
        };
        socket.thread = Some(thread::Builder::new().name(name.to_owned()).spawn(serve)?);
        Ok(socket)
    }
}

impl Drop for LineSocket {
    fn drop(&mut self) {
        self.end.signal();
        if let Some(thread) = self.thread.take() {
            // It has no way to panic; if it did, the machine is at its end here anyway.
            let _ = thread.join();
        }
        // If it is gone already, that is as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers one client after another until the end.
fn serve(listener: &UnixListener, end: &Wake, obey: &mut impl FnMut(&str) -> String) {
    loop {
        let mut sources = [
            PollFd::new(end, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !sources[0].revents().is_empty() {
            return;
        }
        if !sources[1].revents().is_empty()
            && let Ok((client, _)) = listener.accept()
        {
            // A client that is gone, or says nothing for too long, is no trouble.
            let _ = answer(&client, obey);
        }
    }
}

fn answer(client: &UnixStream, obey: &mut impl FnMut(&str) -> String) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    io::Read::take(BufReader::new(client), LINE).read_line(&mut line)?;
    let answer = obey(line.trim_end());
    (&*client).write_all(format!("{answer}\n").as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Read;

    /// What is answered at `path`.
    pub(crate) fn ask(path: &Path, line: &str) -> String {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_client_that_says_nothing_holds_nobody_up_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut lines = Vec::new();
        let obey = move |line: &str| {
            lines.push(line.to_owned());
            lines.join("+")
        };
        let socket = LineSocket::listen(&path, "test", Confiner::off(), obey).unwrap();
        assert_eq!(ask(&path, "one\n"), "one\n");
        let silent = UnixStream::connect(&path).unwrap();
        assert_eq!(ask(&path, "another\n"), "one+another\n");
        // Longer than any line: what fits is answered, or nothing is.
        let mut long = UnixStream::connect(&path).unwrap();
        let _ = long.write_all(&[b'x'; 4096]);
        let mut answer = Vec::new();
        let _ = long.read_to_end(&mut answer);
        assert!(answer.len() < 128, "{}", answer.len());
        let error = LineSocket::listen(&path, "test", Confiner::off(), |_: &str| String::new());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop((silent, socket));
        assert!(!path.exists());
    }
}
