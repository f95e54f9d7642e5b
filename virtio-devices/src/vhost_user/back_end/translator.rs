// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOMMU of the guest's that a served device is behind, as far as its VMM has told: "IOMMU support".
//!
//! ```text
//!   worker --- address ---> Translator: known?  --- MISS ---> VMM
//!                               ^                             |
//!                               '------- UPDATE (by the connection) and then the answer to MISS
//! ```

use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Iommu, Iotlb, Permissions};

use crate::patience::end_of;
use crate::vhost_user::channel::Channel;
use crate::vhost_user::message::{HEADER, Header, NEED_REPLY, REPLY, VERSION, VERSION_MASK};
use crate::vhost_user::translation::{BACKEND_IOTLB, Kind, Mapped, Message, Ranges};

/// Ranges that are kept. One more, and all are forgotten: the VMM knows them.
const MOST: usize = 65_536;
/// How long the VMM has to say where an address leads, if nobody says otherwise: less than a worker has to stop.
const PATIENCE: Duration = Duration::from_millis(700);
/// Questions that may be open before nobody is asked any more: each costs a worker its patience.
const OPEN: u32 = 4;
/// Ranges that one access may consist of.
const FRAGMENTS: usize = 1024;

/// Where the device's addresses lead in the guest's memory.
#[derive(Clone)]
pub struct Translator(Arc<Known>);

struct Known {
    patience: Duration,
    ranges: RwLock<Ranges>,
    own: Mutex<Option<Own>>,
}

/// The channel for requests of our own.
struct Own {
    channel: Channel,
    /// Questions whose answers have not come.
    open: u32,
}

impl fmt::Debug for Translator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translator").finish_non_exhaustive()
    }
}

/// Why an address was not translated.
enum Unknown {
    /// Nobody could be asked.
    Unasked,
    /// The VMM says that it leads nowhere.
    Nowhere,
    /// It leads where such an access may not go.
    Forbidden,
    /// Into too many pieces.
    Torn,
}

impl Unknown {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unasked => "the VMM does not say where it leads",
            Self::Nowhere => "it leads nowhere",
            Self::Forbidden => "it leads where such an access may not go",
            Self::Torn => "it leads into too many pieces",
        }
    }
}

impl Default for Translator {
    fn default() -> Self {
        Self::with_patience(PATIENCE)
    }
}

impl Translator {
    /// One that waits so long for each answer.
    pub(super) fn with_patience(patience: Duration) -> Self {
        Self(Arc::new(Known {
            patience,
            ranges: RwLock::default(),
            own: Mutex::default(),
        }))
    }

    /// Asks by `own` from now on.
    pub(super) fn ask_by(&self, channel: Channel) {
        let own = Own { channel, open: 0 };
        *self.0.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
    }

    /// From now on `mapped`.
    pub(super) fn update(&self, mapped: Mapped) {
        let mut ranges = self.0.ranges.write();
        let ranges = ranges
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut());
        if ranges.len() >= MOST {
            ranges.clear();
        }
        ranges.map(mapped.range, mapped.target, mapped.access);
    }

    /// From now on `addresses` have to be asked for. What was translated before and is under way, in a call of a worker or an
    /// io_uring, goes on with what it has: this does not wait for it.
    pub(super) fn invalidate(&self, addresses: Range<u64>) {
        let mut ranges = self.0.ranges.write();
        let ranges = ranges
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut());
        // One of them may become two.
        if ranges.len() >= MOST {
            ranges.clear();
        }
        ranges.unmap(addresses);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let mut ranges = self.0.ranges.write();
        let ranges = ranges
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut());
        ranges.clear();
    }

    /// Whether all of `addresses` are known for `access`; if not, the VMM is asked for what is missing, and not waited for.
    pub(super) fn foresee(&self, addresses: Range<u64>, access: Permissions) -> bool {
        let mut at = addresses.start;
        while at < addresses.end {
            match self.known(at, access) {
                Ok(found) => at = found.range.end,
                Err(_) => {
                    // It answers with an update, or the queue is not served.
                    let _ = self.say(at, access, 0);
                    return false;
                }
            }
        }
        true
    }

    fn known(&self, address: u64, access: Permissions) -> Result<Mapped, Unknown> {
        let ranges = self.0.ranges.read();
        let ranges = ranges.unwrap_or_else(PoisonError::into_inner);
        let found = ranges.at(address).ok_or(Unknown::Nowhere)?;
        if !found.access.allow(access) {
            return Err(Unknown::Forbidden);
        }
        Ok(found)
    }

    /// What `address` leads to, from the VMM if need be.
    fn find(&self, address: u64, access: Permissions) -> Result<Mapped, Unknown> {
        if let Ok(found) = self.known(address, access) {
            return Ok(found);
        }
        self.ask(address, access).ok_or(Unknown::Unasked)?;
        self.known(address, access)
    }

    /// Asks the VMM, and waits for its answer, before which it has told what it knows. Nothing if there is none in time.
    fn ask(&self, address: u64, access: Permissions) -> Option<()> {
        let end = end_of(self.0.patience);
        // One at a time, so that the last answer is to this question.
        let mut own = self.0.own.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = own.as_mut()?;
        let answered = asked.ask(address, access, end);
        let over = match &answered {
            Err(error) => error.kind() != ErrorKind::TimedOut || asked.open >= OPEN,
            Ok(()) => false,
        };
        if over {
            *own = None;
        }
        answered.ok()
    }

    fn say(&self, address: u64, access: Permissions, flags: u32) -> Option<()> {
        let own = self.0.own.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = &own.as_ref()?.channel;
        miss(channel, address, access, flags, end_of(self.0.patience))
    }
}

impl Own {
    /// Asks, and waits for this answer and those that are still to come before it.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and the question is open; any other, and nothing that comes can be understood any more.
    fn ask(&mut self, address: u64, access: Permissions, end: Instant) -> io::Result<()> {
        // Half a question may be under way.
        miss(&self.channel, address, access, NEED_REPLY, end).ok_or(ErrorKind::BrokenPipe)?;
        self.open = self.open.saturating_add(1);
        while self.open > 0 {
            answer(&self.channel, end)?;
            self.open = self.open.saturating_sub(1);
        }
        Ok(())
    }
}

fn miss(
    channel: &Channel,
    address: u64,
    access: Permissions,
    flags: u32,
    end: Instant,
) -> Option<()> {
    let message = Message {
        address,
        size: 0,
        theirs: 0,
        access,
        kind: Kind::Miss,
    };
    let payload = message.payload();
    let header = Header {
        request: BACKEND_IOTLB,
        flags: VERSION | flags,
        // Three words and two bytes, filled up.
        size: payload.as_slice().len() as u32,
    };
    let message = [&header.bytes()[..], payload.as_slice()].concat();
    channel.send(&message, &[], end).ok()
}

/// Waits for an answer; whether it is yes or no, what is known is known then.
fn answer(channel: &Channel, end: Instant) -> io::Result<()> {
    let (mut head, mut code, mut files) = ([0; HEADER], [0; 8], Vec::new());
    channel.receive(&mut head, &mut files, end)?;
    let header = Header::of(head);
    let right = header.request == BACKEND_IOTLB
        && header.flags & (VERSION_MASK | REPLY) == VERSION | REPLY
        && header.size as usize == code.len();
    if !right {
        return Err(ErrorKind::InvalidData.into());
    }
    channel.receive(&mut code, &mut files, end)
}

impl Iommu for Translator {
    /// The ranges of one access: no lock is held while a device uses them, for the VMM may have to be asked meanwhile.
    type IotlbGuard<'a> = Box<Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Box<Iotlb>>, Error> {
        let refused = |why: &Unknown| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: why.reason().to_owned(),
        };
        // vm-memory's own adds without a look.
        let end = u64::try_from(length).ok();
        let end = end.and_then(|length| iova.0.checked_add(length));
        let end = end.ok_or_else(|| refused(&Unknown::Nowhere))?;
        let mut found = Iotlb::new();
        let mut at = iova.0;
        for _ in 0..FRAGMENTS {
            if at >= end {
                break;
            }
            let mapped = self.find(at, access).map_err(|why| refused(&why))?;
            let upto = mapped.range.end.min(end);
            // From `at` on, and no longer than `length`.
            let offset = at.wrapping_sub(mapped.range.start);
            let target = GuestAddress(mapped.target.wrapping_add(offset));
            let part = upto.saturating_sub(at) as usize;
            found.set_mapping(GuestAddress(at), target, part, mapped.access)?;
            at = upto;
        }
        if at < end {
            return Err(refused(&Unknown::Torn));
        }
        Iotlb::lookup(Box::new(found), iova, length, access)
            .map_err(|_| refused(&Unknown::Forbidden))
    }
}
