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
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Iommu, Iotlb, Permissions};

use super::uses::{self, Gap, Uses};
use super::watched;
use crate::patience::end_of;
use crate::vhost_user::channel::Channel;
use crate::vhost_user::message::{HEADER, Header, NEED_REPLY, REPLY, VERSION, VERSION_MASK};
use crate::vhost_user::translation::{BACKEND_IOTLB, Kind, Mapped, Message, Ranges};
use crate::worker::Worker;

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
    table: RwLock<Table>,
    own: Mutex<Option<Own>>,
    uses: Uses,
}

#[derive(Default)]
struct Table {
    ranges: Ranges,
    /// How often some of it was invalidated.
    invalidations: u64,
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
    /// What the same call has found before leads elsewhere by now.
    Moved,
}

impl Unknown {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unasked => "the VMM does not say where it leads",
            Self::Nowhere => "it leads nowhere",
            Self::Forbidden => "it leads where such an access may not go",
            Self::Torn => "it leads into too many pieces",
            Self::Moved => "what was found before it leads elsewhere now",
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
            table: RwLock::default(),
            own: Mutex::default(),
            uses: Uses::default(),
        }))
    }

    /// Asks by `own` from now on.
    pub(super) fn ask_by(&self, channel: Channel) {
        let own = Own { channel, open: 0 };
        *self.0.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
    }

    /// `worker`, of a device that is behind this: it is known from now on what it uses.
    pub(super) fn watch(&self, worker: Box<dyn Worker>) -> Box<dyn Worker> {
        self.0.uses.watch(worker)
    }

    /// From now on `mapped`.
    pub(super) fn update(&self, mapped: Mapped) {
        let mut table = self.change();
        if table.ranges.len() >= MOST {
            table.ranges.clear();
        }
        let Mapped {
            range,
            target,
            access,
        } = mapped;
        table.ranges.map(range, target, access);
    }

    /// From now on `addresses` have to be asked for. Waits until no worker uses what they led to; `false`: one does at `end`.
    pub(super) fn invalidate(&self, addresses: &Range<u64>, end: Instant) -> bool {
        {
            let mut table = self.change();
            // One of them may become two.
            if table.ranges.len() >= MOST {
                table.ranges.clear();
            }
            table.ranges.unmap(addresses.clone());
            table.invalidations = table.invalidations.wrapping_add(1);
        }
        self.0.uses.wait(addresses, end)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.change().ranges.clear();
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        let table = self.0.table.read();
        table.unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Table> {
        let table = self.0.table.write();
        table.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of `addresses` are known for `access`; if not, the VMM is asked for what is missing, and not waited for.
    pub(super) fn foresee(&self, addresses: Range<u64>, access: Permissions) -> bool {
        let mut at = addresses.start;
        while at < addresses.end {
            let known = uses::look(&self.table().ranges, at, access);
            match known {
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

    /// What `wanted` begins with leads to, from the VMM if need be.
    fn find(&self, wanted: &Range<u64>, access: Permissions) -> Result<Mapped, Unknown> {
        // Without a call it is the connection's own thread, which hears of no change meanwhile.
        let call = watched::call();
        let known = match &call {
            Some(call) => call.find(&self.table().ranges, wanted, access),
            None => uses::look(&self.table().ranges, wanted.start, access),
        };
        if let Ok(found) = known {
            return Ok(found);
        }
        let end = end_of(self.0.patience);
        let asking = call.as_ref().map(|call| call.ask());
        let mut last = None;
        loop {
            let table = self.table();
            let invalidations = table.invalidations;
            let known = match &asking {
                Some(asking) => asking.find(&table.ranges, wanted, access),
                None => uses::look(&table.ranges, wanted.start, access),
            };
            drop(table);
            let (address, access, forbidden) = match known {
                Ok(found) => return Ok(found),
                Err(Gap::Moved) => return Err(Unknown::Moved),
                Err(Gap::Missing {
                    address,
                    access,
                    forbidden,
                }) => (address, access, forbidden),
            };
            // What was invalidated after the answer is asked for once more.
            let asked = last.replace((address, invalidations));
            if asked == last {
                return Err(match forbidden {
                    true => Unknown::Forbidden,
                    false => Unknown::Nowhere,
                });
            }
            if Instant::now() >= end {
                return Err(Unknown::Unasked);
            }
            self.ask(address, access, end).ok_or(Unknown::Unasked)?;
        }
    }

    /// Asks the VMM, and waits for its answer, before which it has told what it knows. Nothing if there is none by `end`.
    fn ask(&self, address: u64, access: Permissions, end: Instant) -> Option<()> {
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
            let mapped = self.find(&(at..end), access).map_err(|why| refused(&why))?;
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
