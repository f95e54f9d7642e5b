// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio over PCI, without the transitional parts.
//!
//! ```text
//!   configuration space   capabilities: where each structure is, MSI-X, access by configuration space
//!   window 0              common configuration, ISR, device configuration, notify, MSI-X table, pending bits
//!   doorbells             one a queue, in the notify structure
//!   window 2              what a device has beside queues, if it has anything: doorbells, notifications, memory
//! ```
//!
//! "Virtio Over PCI Bus" (4.1).

mod access;
mod common;
mod error;
mod interrupts;
mod layout;
mod resources;

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use self::common::{Common, Selectors};
pub use self::error::PciError;
pub use self::interrupts::InterruptState;
use self::interrupts::PciInterrupts;
use self::layout::{BAR, Declared, Layout, MAX_QUEUES, NOTIFY_STRIDE, Structure};
use self::resources::ResourceWindow;
use super::session::{Holds, Session};
use super::state::{RestoreError, SaveError, SessionState};
use crate::device::{Device, Failure, Interrupts, Trouble};
use crate::features::{DeviceType, Features};
use crate::pci::bar::BarKind;
use crate::pci::config::{Command, ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};
use crate::pci::{Doorbell, InterruptLine, MsiVectors, PciFunction, Window};
use crate::worker::Runner;

/// Vendor of every virtio device.
pub const VENDOR: u16 = 0x1af4;
/// Device identifier of type 0; the others follow.
pub const DEVICE_BASE: u16 = 0x1040;

/// Bytes of configuration space that are saved: what is behind them, no virtio function has.
const CONFIG_SAVED: usize = 256;

/// A function that was saved, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PciState {
    /// The device and its queues.
    pub session: SessionState,
    /// The first 256 bytes of configuration space.
    pub config: Vec<u8>,
    /// Vectors and what is pending.
    pub interrupts: InterruptState,
    /// `device_feature_select`, `driver_feature_select`, `queue_select`.
    pub selectors: [u32; 3],
}

/// A virtio device as a PCI function.
///
/// It has one MSI-X vector for each queue, one for changes of configuration, and one for each notification of the device's
/// [`Resources`](crate::resources::Resources): [`vectors`](Self::vectors).
pub struct VirtioPci<A> {
    config: ConfigSpace,
    declared: Declared,
    layout: Layout,
    selectors: Selectors,
    session: Session<A>,
    resources: Option<ResourceWindow>,
    interrupts: Arc<PciInterrupts>,
    /// The command register's Bus Master.
    master: bool,
}

impl<A> std::fmt::Debug for VirtioPci<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci")
            .field("config", &self.config)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl<A: GuestAddressSpace> VirtioPci<A> {
    /// Puts `device` on PCI: its DMA goes through `memory`, its interrupts to `vectors`, and its workers are
    /// run by `runner`.
    pub fn new(
        device: Box<dyn Device<A>>,
        memory: A,
        vectors: Arc<dyn MsiVectors>,
        runner: Box<dyn Runner>,
    ) -> Result<Self, PciError> {
        Self::with_vectors(device, memory, runner, |_| Ok(vectors))
    }

    /// As [`new`](Self::new), with vectors that `make` makes, as many as it is given.
    pub fn with_vectors<E: From<PciError>>(
        mut device: Box<dyn Device<A>>,
        memory: A,
        runner: Box<dyn Runner>,
        make: impl FnOnce(u16) -> Result<Arc<dyn MsiVectors>, E>,
    ) -> Result<Self, E> {
        let resources = device.resources().map(ResourceWindow::new);
        let notifications = resources.as_ref().map_or(0, ResourceWindow::notifications);
        let queues = queues_of(&*device)?;
        // Of both there are 1024 at most.
        let vectors = make(queues.saturating_add(1).saturating_add(notifications))?;
        Ok(Self::on_pci(device, memory, vectors, runner, resources)?)
    }

    fn on_pci(
        device: Box<dyn Device<A>>,
        memory: A,
        vectors: Arc<dyn MsiVectors>,
        runner: Box<dyn Runner>,
        resources: Option<ResourceWindow>,
    ) -> Result<Self, PciError> {
        let queues = queues_of(&*device)?;
        let notifications = resources.as_ref().map_or(0, ResourceWindow::notifications);
        let msix = Msix::new(
            queues.saturating_add(1).saturating_add(notifications),
            vectors,
        )?;
        let mut session = Session::new(device, memory, runner, Features::NOTIFICATION_DATA)
            .map_err(PciError::Event)?;
        let mut config = ConfigSpace::new(identity(session.device_type()));
        let layout = Layout::new(queues, &msix);
        config.add_bar(BAR, BarKind::Memory64, layout.length())?;
        let declared = layout.declare(&mut config, &msix)?;
        if let Some(resources) = &resources {
            resources.declare(&mut config)?;
        }
        let status = session.shared_status();
        let interrupts = PciInterrupts::new(msix, queues, notifications, status);
        let interrupts = Arc::new(interrupts);
        // As after power-on: the function masters no bus.
        let told: Arc<dyn Interrupts> = interrupts.clone();
        session.hold(Holds::BUS, &told);
        Ok(Self {
            config,
            declared,
            layout,
            selectors: Selectors::default(),
            session,
            resources,
            interrupts,
            master: false,
        })
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.interrupts.lock().msix.count()
    }

    /// Connects the pin INTA, for guests that do not use MSI-X. Before the guest runs.
    #[must_use]
    pub fn with_interrupt_line(mut self, line: Arc<dyn InterruptLine>) -> Self {
        self.config.set_interrupt_pin();
        self.interrupts.lock().set_line(line);
        self
    }

    /// Says that `memory` translates or limits what the device may access, so that only drivers that know of
    /// it can use the device ([`Features::ACCESS_PLATFORM`]). Before the guest runs.
    #[must_use]
    pub fn with_access_platform(mut self) -> Self {
        self.session.offer(Features::ACCESS_PLATFORM);
        self
    }

    /// Does not offer VIRTIO_F_RING_PACKED: its queues are split. Before the guest runs.
    #[must_use]
    pub fn without_packed_rings(mut self) -> Self {
        self.session.withdraw(Features::RING_PACKED);
        self
    }

    /// Does not offer VIRTIO_F_INDIRECT_DESC: where a driver maps what it tells the device of, each table of descriptors is one more
    /// piece to map and to take back for a request. A request then has no more pieces than a queue has descriptors. Before the guest runs.
    #[must_use]
    pub fn without_indirect_tables(mut self) -> Self {
        self.session.withdraw(Features::INDIRECT_DESC);
        self
    }

    /// Calls `report` with what made the device stop until it is reset; the guest sees only that it did.
    /// It must not call back into the function. A guest can cause it as often as it resets the device.
    #[must_use]
    pub fn with_report(self, report: impl Fn(&Failure) + Send + Sync + 'static) -> Self {
        self.interrupts.lock().set_report(Arc::new(report));
        self
    }

    /// Calls `report` with what the host refused while the device goes on: at the first time, and then ever more
    /// seldom. It must not call back into the function.
    #[must_use]
    pub fn with_trouble_report(self, report: impl Fn(&Trouble) + Send + Sync + 'static) -> Self {
        self.interrupts.lock().set_trouble_report(Arc::new(report));
        self
    }

    /// Stops the workers and keeps them. What they have begun is finished; from then on neither memory nor the
    /// outside is accessed, and registers still answer.
    pub fn pause(&mut self) {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        self.session.hold(Holds::PAUSED, &interrupts);
    }

    /// Lets the workers go on.
    pub fn resume(&mut self) {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        self.session.release(Holds::PAUSED, &interrupts);
    }

    /// What the function is in the middle of. It must be paused.
    ///
    /// # Errors
    ///
    /// [`SaveError`]: it is not paused, or its device cannot be saved.
    pub fn save(&self) -> Result<PciState, SaveError> {
        let mut config = vec![0; CONFIG_SAVED];
        self.config.read(0, &mut config);
        Ok(PciState {
            session: self.session.save()?,
            config,
            interrupts: self.interrupts.lock().save(),
            selectors: self.selectors.save(),
        })
    }

    /// Makes this function what was saved: a new one, of the same options, that was paused and that no guest
    /// has touched. It stays paused.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; the function is as it was.
    pub fn restore(&mut self, state: &PciState) -> Result<(), RestoreError>
    where
        A: Send,
    {
        let queues = usize::from(self.session.queue_count());
        for (what, saved, ours) in [
            (
                "bytes of configuration space",
                state.config.len(),
                CONFIG_SAVED,
            ),
            ("vectors", state.interrupts.vectors.len(), queues + 1),
            (
                "vectors of queues",
                state.interrupts.queue_vectors.len(),
                queues,
            ),
        ] {
            if saved != ours {
                return Err(RestoreError::Count { what, saved, ours });
            }
        }
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        // A device that finds its configuration changed by the move says so; it is told by the registers that follow.
        self.interrupts.lock().keep_news();
        let restored = self.session.restore(&state.session, &interrupts);
        if restored.is_err() {
            self.interrupts.lock().tell();
        }
        restored?;
        self.selectors.restore(state.selectors);
        self.interrupts.lock().restore(&state.interrupts);
        // As if the guest wrote all of it, but for the word that acts on the window.
        let data = usize::from(self.declared.access_data());
        let (before, rest) = state.config.split_at(data.min(CONFIG_SAVED));
        self.config_write(0, before);
        if let Some(after) = rest.get(4..) {
            self.config_write(self.declared.access_data().saturating_add(4), after);
        }
        // Only now: MSI-X is enabled, if it was.
        self.interrupts.lock().tell();
        Ok(())
    }

    fn common(&mut self) -> Common<'_, A> {
        Common {
            selectors: &mut self.selectors,
            session: &mut self.session,
            interrupts: &self.interrupts,
        }
    }

    fn window_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((structure, offset, left)) = self.layout.find(offset) else {
            return;
        };
        let length = data.len().min(left);
        let data = data.get_mut(..length).unwrap_or_default();
        match structure {
            Structure::Common => self.common().read(offset, data),
            Structure::Device => self.session.config_read(offset, data),
            Structure::Isr => data.fill(self.interrupts.lock().take_isr()),
            Structure::Notify => {}
            Structure::Table => self.interrupts.lock().msix.table_read(offset, data),
            Structure::Pending => self.interrupts.lock().msix.pending_read(offset, data),
        }
    }

    fn window_write(&mut self, offset: u64, data: &[u8]) {
        let Some((structure, offset, left)) = self.layout.find(offset) else {
            return;
        };
        let data = data.get(..left).unwrap_or(data);
        match structure {
            Structure::Common => self.common().write(offset, data),
            Structure::Device => self.session.config_write(offset, data),
            Structure::Notify => {
                let queue = usize::try_from(offset / NOTIFY_STRIDE).ok();
                if let Some(kick) = queue.and_then(|queue| self.session.kicks().get(queue)) {
                    // Fails only if the counter is full, and then the worker has been told.
                    let _ = kick.write(1);
                }
            }
            Structure::Table => self.interrupts.lock().msix.table_write(offset, data),
            Structure::Isr | Structure::Pending => {}
        }
    }

    fn show_interrupt_status(&mut self) {
        let level = self.interrupts.lock().level();
        self.config.set_interrupt_status(level);
    }
}

impl<A: GuestAddressSpace + Send> PciFunction for VirtioPci<A> {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.touches_access_data(offset, data)
            && let Some((bar, at, length)) = self.access()
        {
            let mut value = [0; 4];
            // 1, 2 or 4.
            let value = value.get_mut(..length).unwrap_or_default();
            self.bar_read(bar, at, value);
            self.config.set(self.declared.access_data(), value);
        }
        self.show_interrupt_status();
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.config.u16(self.declared.msix_control());
        let command = self.config.command();
        let disabled = command.contains(Command::INTERRUPT_DISABLE);
        let master = command.contains(Command::BUS_MASTER);
        {
            let mut interrupts = self.interrupts.lock();
            // A message that may not be sent waits as a masked one does.
            let silent = if master { 0 } else { msix::FUNCTION_MASK };
            interrupts.msix.set_control(control | silent);
            interrupts.set_pin_disabled(disabled);
        }
        // Neither memory nor messages are written by a function that masters no bus. PCI Local Bus 3.0,
        // "Device Control".
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        match (self.master, master) {
            (false, true) => self.session.release(Holds::BUS, &interrupts),
            (true, false) => self.session.hold(Holds::BUS, &interrupts),
            _ => {}
        }
        self.master = master;
        if self.touches_access_data(offset, data)
            && let Some((bar, at, length)) = self.access()
        {
            let mut value = [0; 4];
            self.config.read(self.declared.access_data(), &mut value);
            // 1, 2 or 4.
            self.bar_write(bar, at, value.get(..length).unwrap_or_default());
        }
    }

    fn windows(&self) -> Vec<Window> {
        self.config.windows()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match bar {
            BAR => self.window_read(offset, data),
            resources::BAR if self.resources.is_some() => {
                let selected = self.selectors.notification;
                ResourceWindow::read(&self.interrupts.lock(), selected, offset, data);
            }
            _ => data.fill(0),
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            BAR => self.window_write(offset, data),
            resources::BAR if self.resources.is_some() => {
                let selected = &mut self.selectors.notification;
                ResourceWindow::write(&mut self.interrupts.lock(), selected, offset, data);
            }
            _ => {}
        }
    }

    fn window_added(&mut self, window: Window) {
        if let Some(resources) = &mut self.resources {
            resources.added(window);
        }
    }

    fn window_removed(&mut self, window: Window) {
        if let Some(resources) = &mut self.resources {
            resources.removed(window);
        }
    }

    fn reset(&mut self) {
        self.selectors = Selectors::default();
        self.common().reset();
        self.interrupts.lock().msix.reset();
    }

    fn doorbells(&self) -> Vec<Doorbell<'_>> {
        let first = self.layout.place(Structure::Notify).start;
        // Inside the window.
        let offset =
            |queue: usize| first.saturating_add((queue as u64).saturating_mul(NOTIFY_STRIDE));
        self.session
            .kicks()
            .iter()
            .enumerate()
            .map(|(queue, event)| (event, offset(queue)))
            .map(|(event, offset)| Doorbell {
                bar: BAR,
                offset,
                event,
            })
            .collect()
    }
}

/// How many queues `device` has, of sizes that a driver can use.
fn queues_of<A: GuestAddressSpace>(device: &dyn Device<A>) -> Result<u16, PciError> {
    let sizes = device.queue_sizes();
    let usable = |size: &u16| size.is_power_of_two() && *size <= crate::queue::MAX_SIZE;
    if let Some((index, &size)) = (0..).zip(&sizes).find(|(_, size)| !usable(size)) {
        return Err(PciError::QueueSize { index, size });
    }
    u16::try_from(sizes.len())
        .ok()
        .filter(|count| *count <= MAX_QUEUES)
        .ok_or(PciError::Queues {
            count: sizes.len(),
            max: MAX_QUEUES,
        })
}

/// "PCI Device Discovery" (4.1.2).
fn identity(device_type: DeviceType) -> Identity {
    let device = DEVICE_BASE + u16::from(device_type.0);
    Identity {
        vendor: VENDOR,
        device,
        // Below 1 would be a transitional device.
        revision: 1,
        class: match device_type {
            DeviceType::NETWORK => 0x02_00_00,
            DeviceType::BLOCK => 0x01_80_00,
            DeviceType::CONSOLE => 0x07_80_00,
            DeviceType::ENTROPY => 0x10_00_00,
            _ => 0xff_00_00,
        },
        subsystem_vendor: VENDOR,
        subsystem: device,
    }
}
