// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who sends which message by which event, and where a remapping unit lets it go.
//!
//! ```text
//!   event --irqfd--> GSI --route--> what the unit turns the message into     while the unit lets it pass
//!   event --------> Watcher ------> Remapper::request: the guest is told     while it does not
//! ```
//!
//! KVM's routes go past the unit, so they are written anew whenever the unit says that interrupts may lead elsewhere:
//! before the guest can know that its change is done.

use super::remapper::Source;
use super::router::{Router, State};
use super::routing::Gsi;
use super::watcher::Watched;
use hvkit_virtio_devices::pci::MsiMessage;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Where a message leads now, or [`Leads::AsBefore`].
pub type Now<'a> = &'a dyn Fn(Source, MsiMessage) -> Leads;

/// What became of a message's way when a unit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// Nothing: another unit's.
    AsBefore,
    /// It leads there; to nowhere if it is refused.
    To(Option<MsiMessage>),
}

/// An event that stands for a message.
#[derive(Debug)]
pub(super) struct Sender {
    source: Source,
    message: MsiMessage,
    event: EventFd,
    end: End,
}

/// Who takes the event.
#[derive(Debug)]
enum End {
    /// KVM, by the route.
    Kernel,
    /// The unit refuses the message: our thread, for as long as the value lives.
    Blocked { _watched: Watched },
    /// Nobody: the host failed.
    Nowhere,
}

impl Router {
    /// From now on a write to `event` sends `message` for `source`, also one that came before.
    pub(super) fn connect(
        self: &Arc<Self>,
        gsi: Gsi,
        source: Source,
        message: MsiMessage,
        event: &EventFd,
    ) -> io::Result<()> {
        let mut done = Ok(());
        let lead = |target| {
            let sender = Sender {
                source,
                message,
                event: event.try_clone()?,
                end: End::Nowhere,
            };
            self.lead(gsi, sender, target)
        };
        match self.remapping() {
            None => done = lead(Some(message)),
            Some((remapper, _)) => {
                remapper.resolve(source, message, &mut |target| done = lead(target));
            }
        }
        done
    }

    /// Ends what [`connect`](Self::connect) began; a write from now on stays in the event.
    pub(super) fn disconnect(&self, gsi: Gsi) -> io::Result<()> {
        let mut state = self.state();
        if let Some(sender) = state.senders.get(&gsi) {
            if let End::Kernel = sender.end {
                self.kernel().detach(&sender.event, gsi)?;
            }
            state.senders.remove(&gsi);
        }
        Ok(())
    }

    /// Says what the pin `gsi` sends as `source` when it is asserted, to be looked at by KVM only: it tells which
    /// interrupts end there. None if it sends nothing of the kind.
    pub(super) fn announce(&self, gsi: Gsi, source: Source, message: Option<MsiMessage>) {
        let write = |target: Option<MsiMessage>| {
            let mut state = self.state();
            match message {
                Some(message) => state.pins.insert(gsi, (source, message)),
                None => state.pins.remove(&gsi),
            };
            if state.table.change(gsi, target)
                && let Err(error) = self.install(&state.table)
            {
                log::error!("the kernel does not know where {gsi} leads: {error}");
            }
        };
        match (message, self.remapping()) {
            (Some(message), Some((remapper, _))) => {
                remapper.resolve(source, message, &mut |target| write(target));
            }
            (message, _) => write(message),
        }
    }

    /// `source` sends `message` itself. Whether it went out.
    pub(super) fn request(&self, source: Source, message: MsiMessage) -> bool {
        let target = match self.remapping() {
            Some((remapper, _)) => remapper.request(source, message),
            None => Some(message),
        };
        let sent = target.map(|target| self.send(target));
        if let Some(Err(error)) = &sent {
            // A guest can ask for what there is no such thing as.
            log::debug!("{target:x?} was not delivered: {error}");
        }
        matches!(sent, Some(Ok(())))
    }

    /// Interrupts of one unit may lead elsewhere: each is looked up by `now`. When this returns, none leads where it led
    /// before. To be called with that unit's lock held.
    pub fn refresh(self: &Arc<Self>, now: Now<'_>) {
        let mut state = self.state();
        let state = &mut *state;
        let mut changed = false;
        let senders = state.senders.iter();
        let senders = senders.map(|(&gsi, sender)| (gsi, sender.source, sender.message));
        let pins = state
            .pins
            .iter()
            .map(|(&gsi, &(source, message))| (gsi, source, message));
        for (gsi, source, message) in senders.chain(pins) {
            if let Leads::To(target) = now(source, message) {
                changed |= state.table.change(gsi, target);
            }
        }
        let installed = if changed {
            self.install(&state.table)
        } else {
            Ok(())
        };
        if let Err(error) = &installed {
            log::error!("interrupts go by the VMM, for the kernel keeps old routes: {error}");
            // Nothing is known of where the kernel would lead them.
            for gsi in state.senders.keys().chain(state.pins.keys()) {
                state.table.clear(*gsi);
            }
        }
        let State { senders, table, .. } = state;
        for (&gsi, sender) in senders {
            let passes = installed.is_ok() && table.contains(gsi);
            if let Err(error) = self.settle(gsi, sender, passes.into()) {
                log::error!("{gsi} leads nowhere: {error}");
            }
        }
    }

    /// Puts `sender` in the place of the one that there was, to lead to `target`.
    fn lead(
        self: &Arc<Self>,
        gsi: Gsi,
        mut sender: Sender,
        target: Option<MsiMessage>,
    ) -> io::Result<()> {
        let mut state = self.state();
        match target {
            Some(target) => self.set_route(&mut state, gsi, target)?,
            // Where an earlier message of this source led is nothing to come back to, though the kernel may keep the
            // route: nobody asserts it once the event is ours.
            None => {
                state.table.clear(gsi);
            }
        }
        if let Some(before) = state.senders.remove(&gsi) {
            sender.end = before.end;
            // The same event; by this descriptor the kernel knows it.
            sender.event = before.event;
        }
        let settled = self.settle(gsi, &mut sender, target.is_some().into());
        if settled.is_ok() || matches!(sender.end, End::Kernel) {
            state.senders.insert(gsi, sender);
        }
        settled
    }

    /// Gives `sender`'s event to whom it belongs.
    fn settle(self: &Arc<Self>, gsi: Gsi, sender: &mut Sender, way: Way) -> io::Result<()> {
        match (way, &sender.end) {
            (Way::Passes, End::Kernel) | (Way::Blocked, End::Blocked { .. }) => {}
            (Way::Passes, _) => {
                self.kernel().attach(&sender.event, gsi)?;
                sender.end = End::Kernel;
            }
            (Way::Blocked, before) => {
                if let End::Kernel = before {
                    self.kernel().detach(&sender.event, gsi)?;
                }
                sender.end = End::Nowhere;
                let Some((_, watcher)) = self.remapping() else {
                    return Ok(());
                };
                let (router, event) = (Arc::downgrade(self), sender.event.try_clone()?);
                let _watched = watcher.watch(&sender.event, move || {
                    if let Some(router) = router.upgrade() {
                        router.blocked(gsi, &event);
                    }
                })?;
                sender.end = End::Blocked { _watched };
            }
        }
        Ok(())
    }

    /// The event of a message that was refused was written, and the write taken.
    fn blocked(self: &Arc<Self>, gsi: Gsi, event: &EventFd) {
        let state = self.state();
        let found = state.senders.get(&gsi).map(|s| (s.source, s.message));
        drop(state);
        let Some((source, message)) = found else {
            // Masked meanwhile: it waits in the event. Fails only if that is full, and then it waits already.
            let _ = event.write(1);
            return;
        };
        if self.request(source, message)
            && let Err(error) = self.connect(gsi, source, message, event)
        {
            // The guest let it pass without a word; KVM may have it from now on.
            log::error!("{gsi} stays with the VMM: {error}");
        }
    }
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug)]
enum Way {
    Passes,
    Blocked,
}

impl From<bool> for Way {
    fn from(passes: bool) -> Self {
        if passes { Way::Passes } else { Way::Blocked }
    }
}

#[cfg(test)]
mod tests;
