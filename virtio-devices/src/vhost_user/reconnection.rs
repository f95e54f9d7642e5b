// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another back end in place of one that is gone: where it is looked for, and what it has to be.
//!
//! ```text
//!   gone --- interval ---> connect, what it offers, its configuration --- as the driver was told? ---> goes on
//!              ^                     |  nobody, no answer in time, less than that                         |
//!              '---------------------'                                gone  <------------------------------'
//! ```
//!
//! The driver knows nothing of it but that its requests take longer.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::device::Shared;
use super::error::{BackEndError, VhostUserError};
use super::front_end::{FrontEnd, Patience};
use super::message::Protocol;
use crate::features::Features;
use crate::patience::end_of;

/// How long all of the first attempt may take: a worker that is in it answers nobody. A back end that is slower has twice as long
/// each time, and in the end as long as any other.
const HASTE: Duration = Duration::from_millis(500);
/// The shortest interval.
const LEAST: Duration = Duration::from_millis(1);

/// Where a device finds another back end when its own is gone, and how often it looks.
#[derive(Clone)]
pub struct Reconnection {
    socket: PathBuf,
    interval: Duration,
    report: Arc<dyn Fn(&Link<'_>) + Send + Sync>,
}

/// What became of the connection.
#[non_exhaustive]
#[derive(Debug)]
pub enum Link<'a> {
    /// The back end is gone; another is looked for.
    Lost(&'a BackEndError),
    /// Nobody is there yet, or somebody who cannot take its place. Told when it changes, and not at each attempt.
    Refused(&'a BackEndError),
    /// Another has gone on with the device.
    Back,
}

impl fmt::Debug for Reconnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconnection")
            .field("socket", &self.socket)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl Reconnection {
    /// Connects to `socket` again, at most once in `interval`, which is 1 ms or more.
    pub fn new(socket: impl Into<PathBuf>, interval: Duration) -> Self {
        Self {
            socket: socket.into(),
            interval,
            report: Arc::new(|_| ()),
        }
    }

    /// Tells `report` what becomes of the connection, from the device's worker.
    #[must_use]
    pub fn with_report(mut self, report: impl Fn(&Link<'_>) + Send + Sync + 'static) -> Self {
        self.report = Arc::new(report);
        self
    }

    pub(super) fn check(&self) -> Result<(), VhostUserError> {
        if self.interval < LEAST {
            let interval = self.interval;
            return Err(VhostUserError::Interval { interval });
        }
        SocketAddrUnix::new(self.socket.as_os_str().as_bytes()).map_err(io::Error::from)?;
        Ok(())
    }
}

/// What was agreed with the first back end, and what every other has to keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// What the driver was offered.
    pub(super) features: Features,
    pub(super) protocol: Protocol,
    /// Queues, as the protocol counts them for such a device.
    pub(super) queues: u64,
    pub(super) translated: bool,
}

/// How the search goes.
#[derive(Debug)]
pub(super) struct Search {
    how: Option<Reconnection>,
    agreed: Agreed,
    patience: Duration,
    /// How long the next attempt may take.
    haste: Duration,
    /// When it may begin.
    next: Instant,
    /// Whether somebody has been told that the back end is gone.
    told: bool,
    /// What was said of the last attempt.
    said: Option<String>,
}

impl Search {
    pub(super) fn new(how: Option<Reconnection>, agreed: Agreed, patience: Duration) -> Self {
        Self {
            how,
            agreed,
            patience,
            haste: HASTE,
            next: Instant::now(),
            told: false,
            said: None,
        }
    }

    /// Whether there is one.
    pub(super) fn is_on(&self) -> bool {
        self.how.is_some()
    }

    fn report(&self, link: &Link<'_>) {
        if let Some(how) = &self.how {
            (how.report)(link);
        }
    }

    /// The next attempt is an interval away.
    pub(super) fn wait(&mut self) {
        if let Some(how) = &self.how {
            self.next = end_of(how.interval);
        }
    }

    /// It begins, because of `why`; or goes on, if the one that was found was lost at once.
    pub(super) fn lost(&mut self, why: &BackEndError) {
        if self.told {
            return self.refused(why);
        }
        self.told = true;
        self.report(&Link::Lost(why));
        self.wait();
    }

    /// How long a back end has for an answer, once it serves.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// How long it is to the next attempt.
    pub(super) fn left(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// An attempt has failed.
    pub(super) fn refused(&mut self, why: &BackEndError) {
        if let BackEndError::Silent { .. } = why {
            self.haste = self.haste.saturating_mul(2);
        }
        let said = why.to_string();
        if self.said.as_ref() != Some(&said) {
            self.report(&Link::Refused(why));
            self.said = Some(said);
        }
        self.wait();
    }

    /// It has ended.
    pub(super) fn found(&mut self) {
        self.haste = HASTE;
        self.told = false;
        self.said = None;
        self.report(&Link::Back);
    }
}

impl Shared {
    /// Looks for another back end, once: one that is as the driver was told. Nothing is told to it yet that concerns queues.
    pub(super) fn find(&self) -> Result<FrontEnd, BackEndError> {
        let (socket, agreed, patience) = {
            let search = self.search();
            let each = search.haste.min(search.patience);
            let all = Some(end_of(each));
            let socket = search.how.as_ref().map(|how| how.socket.clone());
            (socket, search.agreed, Patience { each, all })
        };
        let absent = |source| BackEndError::Absent { source };
        let socket = socket.ok_or_else(|| absent(io::ErrorKind::NotFound.into()))?;
        let socket = connect(&socket).map_err(absent)?;
        let mut front = FrontEnd::connect(socket, patience)?;
        front.check_agreed(&agreed)?;
        let length = self.kind.config_of_back_end();
        if let Some(config) = length.map(|length| front.config(length)).transpose()? {
            let (config, told) = (config.unwrap_or_default(), self.config());
            let ours = &told.bytes;
            let differs = config.iter().zip(ours).position(|(new, old)| new != old);
            let ends = || (config.len() != ours.len()).then_some(config.len().min(ours.len()));
            if let Some(at) = differs.or_else(ends) {
                return Err(BackEndError::Configuration { at });
            }
        }
        Ok(front)
    }
}

impl FrontEnd {
    /// Whether the back end can do what was agreed with another.
    fn check_agreed(&mut self, agreed: &Agreed) -> Result<(), BackEndError> {
        let missing = agreed.protocol.difference(self.protocol()).bits();
        if missing != 0 {
            return Err(BackEndError::Protocol { missing });
        }
        let missing = agreed.features.difference(self.features()).bits();
        if missing != 0 {
            return Err(BackEndError::Fewer { missing });
        }
        if agreed.translated {
            self.check_translations()?;
        }
        self.check_queues(agreed.queues)
    }

    /// Whether the back end has packed queues; and, where `reconnection` is on, whether another could go on with them.
    pub(super) fn check_packed(
        &self,
        reconnection: Option<&Reconnection>,
    ) -> Result<(), BackEndError> {
        let lacks = |what| Err(BackEndError::Lacks { what });
        if !self.features().contains(Features::RING_PACKED) {
            return lacks("packed queues (VIRTIO_F_RING_PACKED)");
        }
        if reconnection.is_some() && !self.protocol().contains(Protocol::INFLIGHT_SHMFD) {
            return lacks(
                "memory for what is in flight (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD), without which no other back end \
                 goes on with packed queues",
            );
        }
        Ok(())
    }

    /// Whether the back end has so many queues, as far as it says.
    pub(super) fn check_queues(&mut self, asked: u64) -> Result<(), BackEndError> {
        match self.queues()? {
            Some(has) if has < asked => Err(BackEndError::Queues { asked, has }),
            _ => Ok(()),
        }
    }
}

/// Connects, and does not wait for somebody who accepts no more.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}
