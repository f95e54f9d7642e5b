// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as its transport sees it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::GuestAddressSpace;

use super::address_space::AddressSpace;
use super::error::{BackEndError, VhostUserError};
use super::front_end::FrontEnd;
use super::kind::{Config, Kind, TAG};
use super::memory::SharedMemory;
use super::reconnection::{Agreed, Reconnection, Search};
use super::relay::Relay;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::net::control::Control;
use crate::net::{CONTROL_OF_ONE, MacAddress, feature};
use crate::queue::MAX_SIZE;
use crate::serve::QueueServer;
use crate::worker::Worker;

const QUEUE_SIZE: u16 = 256;
const MIN_QUEUE_SIZE: u16 = 4;
/// How long a back end has for an answer, if nobody says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// Saved of a card whose driver was told that its link is down.
const LOST: u8 = 1;

/// What a device served by another process should be.
#[derive(Clone, Debug)]
pub struct Options {
    kind: Kind,
    queues: u16,
    queue_size: u16,
    patience: Duration,
    addresses: Addresses,
    rings: Rings,
    reconnection: Option<Reconnection>,
}

/// What the queues can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rings {
    Split,
    /// Split or packed, as the driver chooses.
    Both,
}

/// What the device's addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    /// The guest's.
    Guest,
    /// Those of an IOMMU of the guest's.
    Translated,
}

impl Options {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            queues: 1,
            queue_size: QUEUE_SIZE,
            patience: PATIENCE,
            addresses: Addresses::Guest,
            rings: Rings::Split,
            reconnection: None,
        }
    }

    /// A disk of one queue of 256 descriptors. What it is otherwise, the back end says.
    pub fn block() -> Self {
        Self::new(Kind::Block)
    }

    /// A file system that the guest mounts by the name `tag`, of 1 to 36 bytes, with one queue of requests.
    pub fn file_system(tag: &str) -> Result<Self, VhostUserError> {
        let mut padded = [0; TAG];
        let length = tag.len();
        let (Some(place), 1.., false) = (padded.get_mut(..length), length, tag.contains('\0'))
        else {
            return Err(VhostUserError::Tag { length });
        };
        place.copy_from_slice(tag.as_bytes());
        Ok(Self::new(Kind::FileSystem { tag: padded }))
    }

    /// A network card with one pair of queues, if no more are asked for. Address and MTU are the driver's to choose if they are not given.
    pub fn net(mac: Option<MacAddress>, mtu: Option<u16>) -> Self {
        Self::new(Kind::Net { mac, mtu })
    }

    /// Chooses the number of queues: a disk's, a file system's of requests, or a network card's pairs. 1 to 64. Of the pairs the
    /// driver says how many it uses.
    #[must_use]
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Chooses how many descriptors a queue has at most: a power of two from 4 to 32768.
    #[must_use]
    pub fn with_queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// Chooses how long the back end has for each answer, 10 s if this is not called. One that takes longer is given
    /// up.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The device is behind an IOMMU of the guest's: whoever knows it tells [`VhostUser::address_space`] where its addresses
    /// lead.
    #[must_use]
    pub fn with_translations(mut self) -> Self {
        self.addresses = Addresses::Translated;
        self
    }

    /// The driver can have packed queues. The back end has to offer them; where another back end is waited for
    /// ([`with_reconnection`](Self::with_reconnection)), it has to note what is in flight, too.
    #[must_use]
    pub fn with_packed_rings(mut self) -> Self {
        self.rings = Rings::Both;
        self
    }

    /// When the back end is gone, the device waits for another and goes on with that: its driver's requests take longer, and do
    /// not fail. Not for a file system.
    #[must_use]
    pub fn with_reconnection(mut self, reconnection: Reconnection) -> Self {
        self.reconnection = Some(reconnection);
        self
    }

    fn check(&self) -> Result<(), VhostUserError> {
        let (queues, most) = (self.queues, self.kind.most());
        if !(1..=most).contains(&queues) {
            let least = 1;
            return Err(VhostUserError::Queues {
                queues,
                least,
                most,
            });
        }
        let size = self.queue_size;
        if !size.is_power_of_two() || !(MIN_QUEUE_SIZE..=MAX_SIZE).contains(&size) {
            return Err(VhostUserError::QueueSize { size });
        }
        match (&self.reconnection, &self.kind) {
            (Some(_), Kind::FileSystem { .. }) => Err(VhostUserError::Replaced),
            (Some(reconnection), _) => reconnection.check(),
            (None, _) => Ok(()),
        }
    }
}

/// A device that another process serves.
#[derive(Debug)]
pub struct VhostUser {
    shared: Arc<Shared>,
    features: Features,
    queue_features: Features,
    queues: u16,
    queue_size: u16,
    addresses: Addresses,
    /// It was saved while nobody served it, and its driver was told so.
    untold: bool,
}

/// What the device and its worker have together.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) kind: Kind,
    pub(super) memory: SharedMemory,
    front: Mutex<FrontEnd>,
    config: Mutex<Config>,
    search: Mutex<Search>,
    /// Whether what is in flight can be said only to a back end, and not by the positions of queues.
    unfinished: AtomicBool,
    /// Of a network card: how many pairs the driver uses.
    pairs: AtomicU16,
}

impl Shared {
    pub(super) fn front(&self) -> MutexGuard<'_, FrontEnd> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn search(&self) -> MutexGuard<'_, Search> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_unfinished(&self, unfinished: bool) {
        self.unfinished.store(unfinished, Ordering::SeqCst);
    }

    /// The queue before which a back end serves all.
    pub(super) fn end(&self) -> u16 {
        match self.kind {
            Kind::Net { .. } => self.pairs.load(Ordering::SeqCst).saturating_mul(2),
            Kind::Block | Kind::FileSystem { .. } => u16::MAX,
        }
    }

    /// Has so many pairs used from now on, by this back end or by the next.
    fn set_pairs(&self, pairs: u16) {
        let mut front = self.front();
        self.pairs.store(pairs, Ordering::SeqCst);
        // Lost, if it fails, and then whoever watches the connection sees that.
        let _ = front.enable_before(self.end());
    }

    pub(super) fn patience(&self) -> Duration {
        self.front().patience()
    }

    /// Asks for the configuration; empty if it is ours alone. Nothing changes before [`set_config`](Self::set_config).
    pub(super) fn ask_config(&self) -> Result<Vec<u8>, BackEndError> {
        let Some(length) = self.kind.config_of_back_end() else {
            return Ok(Vec::new());
        };
        let given = self.front().config(length)?;
        let what = "configuration space (VHOST_USER_PROTOCOL_F_CONFIG)";
        given.ok_or(BackEndError::Lacks { what })
    }

    pub(super) fn set_config(&self, bytes: Vec<u8>) {
        self.config().bytes = bytes;
    }
}

impl VhostUser {
    /// The device of `options` that the process at the other end of `socket` serves. From DRIVER_OK on it reaches
    /// `memory`, whatever the driver puts there.
    ///
    /// Waits for the back end, a bounded time for each answer.
    pub fn new(
        socket: UnixStream,
        options: Options,
        memory: SharedMemory,
    ) -> Result<Self, VhostUserError> {
        options.check()?;
        let mut front = FrontEnd::connect(socket, options.patience.into())?;
        let queues = options.kind.queues(options.queues);
        // A card's are counted in pairs.
        let asked = match options.kind {
            Kind::Net { .. } => options.queues,
            Kind::Block | Kind::FileSystem { .. } => queues,
        };
        let asked = u64::from(asked);
        front.check_queues(asked)?;
        let translated = options.addresses == Addresses::Translated;
        if translated {
            front.check_translations()?;
        }
        let offered = front.features();
        let features = options.kind.features(offered, queues);
        let several = matches!(options.kind, Kind::Net { .. }) && options.queues > 1;
        if several && !features.contains(feature::MQ) {
            let what = "several pairs of queues (VIRTIO_NET_F_MQ)";
            return Err(BackEndError::Lacks { what }.into());
        }
        let queue_features = match options.rings {
            Rings::Both => {
                front.check_packed(options.reconnection.as_ref())?;
                offered & Features::QUEUES
            }
            Rings::Split => offered & Features::QUEUES.difference(Features::RING_PACKED),
        };
        let agreed = Agreed {
            // Of those that the driver is offered, the back end's.
            features: offered & (features | queue_features),
            protocol: front.protocol(),
            queues: asked,
            translated,
        };
        let shared = Shared {
            kind: options.kind,
            memory,
            front: Mutex::new(front),
            config: Mutex::default(),
            search: Mutex::new(Search::new(options.reconnection, agreed, options.patience)),
            unfinished: AtomicBool::new(false),
            pairs: AtomicU16::new(1),
        };
        shared.set_config(shared.ask_config()?);
        Ok(Self {
            shared: Arc::new(shared),
            features,
            queue_features,
            queues,
            queue_size: options.queue_size,
            addresses: options.addresses,
            untold: false,
        })
    }

    /// Where the device's addresses lead, to be told by whoever translates them; nothing if the device is not made
    /// [`with_translations`](Options::with_translations).
    pub fn address_space(&self) -> Option<AddressSpace> {
        let translated = self.addresses == Addresses::Translated;
        translated.then(|| AddressSpace::new(Arc::clone(&self.shared)))
    }

    /// What the other process can read and write.
    pub fn memory(&self) -> &SharedMemory {
        &self.shared.memory
    }
}

impl VhostUser {
    /// Whether it is a card with several pairs, and so with a control queue, which we serve.
    fn has_pairs(&self) -> bool {
        matches!(self.shared.kind, Kind::Net { .. }) && self.queues > CONTROL_OF_ONE
    }

    /// Takes what is no back end's out of the queues of a card with several pairs: who serves the control queue, if the
    /// driver has set that up.
    fn control<A: GuestAddressSpace + Send + 'static>(
        &self,
        activation: &mut Activation<A>,
    ) -> Option<Box<dyn Worker>> {
        if !self.has_pairs() {
            return None;
        }
        // A driver that knows of one pair has it behind that.
        let several = activation.features.contains(feature::MQ);
        let first = if several {
            self.queues.saturating_sub(1)
        } else {
            CONTROL_OF_ONE
        };
        let queues = std::mem::take(&mut activation.queues);
        let (ours, theirs) = queues.into_iter().partition(|queue| queue.index >= first);
        activation.queues = theirs;
        let (mut ours, shared): (Vec<_>, _) = (ours, Arc::clone(&self.shared));
        let queue = ActiveQueue::take(&mut ours, first).ok();
        let queue = queue.filter(|_| activation.features.contains(feature::CTRL_VQ))?;
        let set = move |pairs| {
            shared.set_pairs(pairs);
            Ok(())
        };
        let handler = Control::new(set, first >> 1, Vec::new());
        let (memory, interrupts) = (activation.memory.clone(), &activation.interrupts);
        let server = QueueServer::new(memory, queue, Arc::clone(interrupts), handler);
        Some(Box::new(server))
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for VhostUser {
    fn device_type(&self) -> DeviceType {
        self.shared.kind.device_type()
    }

    fn features(&self) -> Features {
        self.features
    }

    fn queue_features(&self) -> Features {
        self.queue_features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.shared.kind.sizes(self.queues, self.queue_size)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let config = self.shared.config();
        self.shared
            .kind
            .config_read(&config, self.queues, offset, data);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {
        // No field that we offer is writable.
    }

    fn activate(
        &mut self,
        mut activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        let translated = activation.features.contains(Features::ACCESS_PLATFORM);
        if translated != (self.addresses == Addresses::Translated) {
            // The back end would take addresses for what they are not.
            return Err(io::Error::from(io::ErrorKind::Unsupported).into());
        }
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        workers.extend(self.control(&mut activation));
        let interrupts = Arc::clone(&activation.interrupts);
        let relay = Relay::new(Arc::clone(&self.shared), activation)?;
        workers.push(Box::new(relay));
        if std::mem::take(&mut self.untold) {
            interrupts.config();
        }
        Ok(workers)
    }

    fn reset(&mut self) {
        // Its queues were stopped with the worker, and the back end is told everything anew.
        self.shared.set_unfinished(false);
        self.shared.pairs.store(1, Ordering::SeqCst);
        self.untold = false;
    }

    /// Of a card with several pairs, how many are used (16 bits). Then, of a card that nobody serves, a byte of 1.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        match self.shared.kind {
            // Which files are open is known to the back end alone.
            Kind::FileSystem { .. } => Err(StateError::Unsaveable),
            // What another back end is to finish is noted for it, and nowhere else.
            _ if self.shared.unfinished.load(Ordering::SeqCst) => Err(StateError::Unfinished),
            // Its state is the positions of its queues, and files that are the back end's.
            Kind::Block => Ok(Vec::new()),
            Kind::Net { .. } => {
                let mut state = Vec::new();
                if self.has_pairs() {
                    state.extend(self.shared.pairs.load(Ordering::SeqCst).to_le_bytes());
                }
                if self.shared.config().lost {
                    state.push(LOST);
                }
                Ok(state)
            }
        }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let expected = if self.has_pairs() { 2 } else { 0 };
        let length = StateError::Length {
            saved: state.len(),
            expected,
        };
        let (pairs, lost) = state.split_at_checked(expected).ok_or(length)?;
        let untold = match (lost, &self.shared.kind) {
            ([], _) => false,
            ([LOST], Kind::Net { .. }) => true,
            ([_], Kind::Net { .. }) => return Err(StateError::Content { at: expected }),
            _ => return Err(length),
        };
        if let &[low, high] = pairs {
            let pairs = u16::from_le_bytes([low, high]);
            if !(1..=self.queues >> 1).contains(&pairs) {
                return Err(StateError::Content { at: 0 });
            }
            self.shared.pairs.store(pairs, Ordering::SeqCst);
        }
        self.untold = untold;
        Ok(())
    }
}
