// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The owner of the machine's routing table.

use super::remapper::{Remapper, Source};
use super::routing::{FIRST_MESSAGE, Gsi, Pins, Route, RoutingTable, pins};
use super::senders::Sender;
use super::watcher::Watcher;
use hvkit_virtio_devices::pci::{Level, MsiMessage};
use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vm_allocator::IdAllocator;
use vmm_sys_util::eventfd::EventFd;

/// What a machine's kernel half does for interrupts.
pub trait Kernel: Send + Sync {
    /// Replaces the routing table.
    fn set_routes(&self, routes: &[Route]) -> io::Result<()>;

    /// From now on a write to `event` raises `gsi`, also one that came before.
    fn attach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()>;

    /// From now on a write to `event` asserts the pins of `gsi`, and the end of the interrupt in the
    /// guest takes them back and writes `resample`.
    fn attach_level(&self, event: &EventFd, resample: &EventFd, gsi: Gsi) -> io::Result<()>;

    /// Ends what [`attach`](Self::attach) or [`attach_level`](Self::attach_level) began; a write from now on stays in the event.
    fn detach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()>;

    /// Sets the level of the pins of `gsi`.
    fn set_level(&self, gsi: Gsi, level: Level) -> io::Result<()>;

    /// Delivers `message` to the local APICs, once.
    fn send(&self, message: MsiMessage) -> io::Result<()>;
}

impl Kernel for VmFd {
    fn set_routes(&self, routes: &[Route]) -> io::Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = routes.iter().map(|&r| r.into()).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.set_gsi_routing(&table)?)
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        Ok(self.register_irqfd(event, gsi.0)?)
    }

    fn attach_level(&self, event: &EventFd, resample: &EventFd, gsi: Gsi) -> io::Result<()> {
        Ok(self.register_irqfd_with_resample(event, resample, gsi.0)?)
    }

    fn detach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        Ok(self.unregister_irqfd(event, gsi.0)?)
    }

    fn set_level(&self, gsi: Gsi, level: Level) -> io::Result<()> {
        Ok(self.set_irq_line(gsi.0, level == Level::Asserted)?)
    }

    fn send(&self, message: MsiMessage) -> io::Result<()> {
        let MsiMessage { address, data } = message;
        // 0 says that the guest blocks it; that is the guest's business.
        self.signal_msi(kvm_msi {
            address_lo: (address & 0xffff_ffff) as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        })?;
        Ok(())
    }
}

/// An interrupt that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// More interrupt messages than the kernel has sources for.
    #[error("no interrupt source left of the kernel's {limit}")]
    NoGsi {
        /// Routes that the kernel takes, those of the pins included.
        limit: u32,
    },
    /// The kernel refused the routing table.
    #[error("the interrupt routes were refused")]
    Routes(#[source] io::Error),
    /// The kernel refused to listen to an event.
    #[error("{gsi} cannot be raised by an event")]
    Attach {
        /// The interrupt.
        gsi: Gsi,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No event could be made.
    #[error("no event for an interrupt")]
    Event(#[source] io::Error),
}

/// Hands out sources for messages, and keeps the table that says where they lead.
pub struct Router {
    kernel: Arc<dyn Kernel>,
    limit: u32,
    remapping: OnceLock<(Arc<dyn Remapper>, Arc<Watcher>)>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) table: RoutingTable,
    pub(super) senders: BTreeMap<Gsi, Sender>,
    /// What pins of an I/O APIC of ours send.
    pub(super) pins: BTreeMap<Gsi, (Source, MsiMessage)>,
    free: IdAllocator,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("table", &self.state().table)
            .finish_non_exhaustive()
    }
}

impl Router {
    /// Sets the routes of the pins. `limit` is how many routes the kernel takes
    /// (`KVM_CAP_IRQ_ROUTING`).
    pub fn new(kernel: Arc<dyn Kernel>, limit: u32) -> Result<Self, InterruptError> {
        Router::with_pins(kernel, limit, Pins::Kernel)
    }

    /// The same for a machine with these pins.
    pub fn with_pins(
        kernel: Arc<dyn Kernel>,
        limit: u32,
        whose: Pins,
    ) -> Result<Self, InterruptError> {
        let no_gsi = InterruptError::NoGsi { limit };
        let pins = u32::try_from(pins().count()).unwrap_or(u32::MAX);
        let last = limit
            .checked_sub(pins)
            .and_then(|messages| FIRST_MESSAGE.0.checked_add(messages))
            .and_then(|end| end.checked_sub(1));
        let free = last.and_then(|last| IdAllocator::new(FIRST_MESSAGE.0, last).ok());
        let router = Router {
            kernel,
            limit,
            remapping: OnceLock::new(),
            state: Mutex::new(State {
                table: RoutingTable::new(whose),
                senders: BTreeMap::new(),
                pins: BTreeMap::new(),
                free: free.ok_or(no_gsi)?,
            }),
        };
        let state = router.state();
        router
            .install(&state.table)
            .map_err(InterruptError::Routes)?;
        drop(state);
        Ok(router)
    }

    /// Has every message go through `remapper`, and `watcher` wait for those that it refuses. Once, before the first
    /// message.
    pub fn remap_by(&self, remapper: Arc<dyn Remapper>, watcher: Arc<Watcher>) {
        if self.remapping.set((remapper, watcher)).is_err() {
            log::error!("interrupts are remapped already");
        }
    }

    pub(super) fn remapping(&self) -> Option<&(Arc<dyn Remapper>, Arc<Watcher>)> {
        self.remapping.get()
    }

    /// The kernel half.
    pub(super) fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// Delivers `message` once, as it is.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn send(&self, message: MsiMessage) -> io::Result<()> {
        self.kernel.send(message)
    }

    /// A source of messages, routed nowhere yet.
    pub(super) fn allocate(&self) -> Result<Gsi, InterruptError> {
        let limit = self.limit;
        let id = self.state().free.allocate_id();
        id.map(Gsi).map_err(|_| InterruptError::NoGsi { limit })
    }

    /// Leads `gsi` to `message`. If the kernel refuses, it leads where it led before.
    pub(super) fn set_route(
        &self,
        state: &mut State,
        gsi: Gsi,
        message: MsiMessage,
    ) -> io::Result<()> {
        let before = state.table.set(gsi, message);
        if before == Some(message) {
            return Ok(());
        }
        self.install(&state.table).inspect_err(|_| {
            match before {
                Some(before) => state.table.set(gsi, before),
                None => state.table.clear(gsi),
            };
        })
    }

    /// Takes sources back with their routes.
    pub(super) fn release(&self, gsis: impl IntoIterator<Item = Gsi>) {
        let mut state = self.state();
        let mut routed = false;
        for gsi in gsis {
            routed |= state.table.clear(gsi).is_some();
            if let Err(error) = state.free.free_id(gsi.0) {
                log::error!("{gsi} was not ours to release: {error}");
            }
        }
        if routed && let Err(error) = self.install(&state.table) {
            log::error!("the kernel keeps routes that nothing raises: {error}");
        }
    }

    pub(super) fn install(&self, table: &RoutingTable) -> io::Result<()> {
        let routes: Vec<Route> = table.routes().collect();
        self.kernel.set_routes(&routes)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeKernel;
    use super::*;

    fn route(router: &Router, gsi: Gsi, message: MsiMessage) -> io::Result<()> {
        router.set_route(&mut router.state(), gsi, message)
    }

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };

    #[test]
    fn the_pins_are_routed_from_the_start() {
        let kernel = Arc::new(FakeKernel::default());
        let _router = Router::new(kernel.clone(), 4096).unwrap();
        assert_eq!(*kernel.routes.lock().unwrap(), pins().collect::<Vec<_>>());
    }

    #[test]
    fn sources_are_bounded_and_reused() {
        // 38 routes of pins leave two.
        let router = Router::new(Arc::new(FakeKernel::default()), 40).unwrap();
        let first = router.allocate().unwrap();
        let second = router.allocate().unwrap();
        assert_eq!([first, second], [Gsi(24), Gsi(25)]);
        let error = router.allocate().unwrap_err();
        assert!(matches!(error, InterruptError::NoGsi { limit: 40 }));
        router.release([first]);
        assert_eq!(router.allocate().unwrap(), first);
        for limit in [0, 37, 38] {
            let error = Router::new(Arc::new(FakeKernel::default()), limit).unwrap_err();
            assert!(matches!(error, InterruptError::NoGsi { .. }), "{limit}");
        }
    }

    #[test]
    fn a_refused_route_changes_nothing() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Router::new(kernel.clone(), 4096).unwrap();
        let gsi = router.allocate().unwrap();
        route(&router, gsi, MESSAGE).unwrap();
        let before = kernel.routes.lock().unwrap().clone();
        kernel.refuse(true);
        let other = MsiMessage {
            data: 0x42,
            ..MESSAGE
        };
        assert!(route(&router, gsi, other).is_err());
        // The same message needs no kernel.
        route(&router, gsi, MESSAGE).unwrap();
        let fresh = router.allocate().unwrap();
        assert!(route(&router, fresh, MESSAGE).is_err());
        kernel.refuse(false);
        route(&router, gsi, other).unwrap();
        route(&router, gsi, MESSAGE).unwrap();
        assert_eq!(*kernel.routes.lock().unwrap(), before);
    }

    #[test]
    fn a_kernel_that_takes_no_table_is_an_error() {
        let kernel = Arc::new(FakeKernel::default());
        kernel.refuse(true);
        let error = Router::new(kernel, 4096).unwrap_err();
        assert!(matches!(error, InterruptError::Routes(_)));
    }
}
