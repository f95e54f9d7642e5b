// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function's MSI-X vectors, each with an event and a source of its own in KVM.
//!
//! A masked vector's event is not listened to, but keeps what is written to it: KVM looks at it
//! again when the vector is unmasked, so nothing is delivered early and nothing is lost.

use super::remapper::Source;
use super::router::{InterruptError, Router};
use super::routing::Gsi;
use hvkit_virtio_devices::pci::{MsiError, MsiMessage, MsiVectors};
use std::fmt;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The vectors of one function, given back when dropped.
pub struct KvmMsiVectors {
    router: Arc<Router>,
    source: Source,
    vectors: Vec<Vector>,
}

struct Vector {
    gsi: Gsi,
    event: EventFd,
}

impl fmt::Debug for KvmMsiVectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.vectors.iter().map(|v| v.gsi))
            .finish()
    }
}

impl KvmMsiVectors {
    /// `count` vectors, all masked.
    pub fn new(router: Arc<Router>, count: u16) -> Result<Self, InterruptError> {
        let mut vectors = KvmMsiVectors {
            router,
            source: Source::default(),
            vectors: Vec::with_capacity(count.into()),
        };
        for _ in 0..count {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(InterruptError::Event)?;
            let gsi = vectors.router.allocate()?;
            vectors.vectors.push(Vector { gsi, event });
        }
        Ok(vectors)
    }

    /// The same, requested by `source`; a remapping unit asks who it is.
    #[must_use]
    pub fn requested_by(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// Runs `action` on a vector, and says on failure which one and what.
    fn with(
        &self,
        vector: u16,
        action: &'static str,
        run: impl FnOnce(&Vector) -> io::Result<()>,
    ) -> Result<(), MsiError> {
        let found = self.vectors.get(usize::from(vector));
        found
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .and_then(run)
            .map_err(|source| MsiError {
                vector,
                action,
                source,
            })
    }
}

impl MsiVectors for KvmMsiVectors {
    fn route(&self, vector: u16, message: MsiMessage) -> Result<(), MsiError> {
        self.with(vector, "routed", |vector| {
            self.router
                .connect(vector.gsi, self.source, message, &vector.event)
        })
    }

    fn mask(&self, vector: u16) -> Result<(), MsiError> {
        self.with(vector, "masked", |vector| {
            self.router.disconnect(vector.gsi)
        })
    }

    fn deliver(&self, vector: u16) -> Result<(), MsiError> {
        self.with(vector, "delivered", |vector| vector.event.write(1))
    }

    fn event(&self, vector: u16) -> Option<EventFd> {
        let vector = self.vectors.get(usize::from(vector))?;
        vector.event.try_clone().ok()
    }
}

impl Drop for KvmMsiVectors {
    fn drop(&mut self) {
        for vector in &self.vectors {
            if let Err(error) = self.router.disconnect(vector.gsi) {
                log::error!("{} stays with the kernel: {error}", vector.gsi);
            }
        }
        self.router.release(self.vectors.iter().map(|v| v.gsi));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeKernel;
    use super::super::routing::{Target, pins};
    use super::*;

    fn message(data: u32) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_1000,
            data,
        }
    }

    fn vectors(count: u16) -> (Arc<FakeKernel>, KvmMsiVectors) {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        (kernel, KvmMsiVectors::new(router, count).unwrap())
    }

    #[test]
    fn a_routed_vector_delivers_its_message() {
        let (kernel, vectors) = vectors(2);
        vectors.route(0, message(0x31)).unwrap();
        vectors.route(1, message(0x32)).unwrap();
        vectors.deliver(1).unwrap();
        assert_eq!(kernel.delivered(), [Target::Message(message(0x32))]);
        vectors.event(0).unwrap().write(1).unwrap();
        assert_eq!(kernel.delivered(), [Target::Message(message(0x31))]);
    }

    #[test]
    fn a_changed_message_takes_the_place_of_the_old() {
        let (kernel, vectors) = vectors(1);
        vectors.route(0, message(0x31)).unwrap();
        vectors.route(0, message(0x45)).unwrap();
        vectors.deliver(0).unwrap();
        assert_eq!(kernel.delivered(), [Target::Message(message(0x45))]);
    }

    #[test]
    fn nothing_passes_a_mask_and_nothing_is_lost() {
        let (kernel, vectors) = vectors(1);
        // Masked from the start.
        let event = vectors.event(0).unwrap();
        event.write(1).unwrap();
        assert!(kernel.delivered().is_empty());
        vectors.route(0, message(0x31)).unwrap();
        assert_eq!(kernel.delivered(), [Target::Message(message(0x31))]);
        vectors.mask(0).unwrap();
        vectors.mask(0).unwrap();
        event.write(1).unwrap();
        event.write(1).unwrap();
        assert!(kernel.delivered().is_empty());
        vectors.route(0, message(0x32)).unwrap();
        assert_eq!(kernel.delivered(), [Target::Message(message(0x32))]);
        assert!(kernel.delivered().is_empty());
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let (kernel, vectors) = vectors(3);
        vectors.route(0, message(0x31)).unwrap();
        vectors.route(2, message(0x32)).unwrap();
        let router = Arc::clone(&vectors.router);
        drop(vectors);
        assert_eq!(kernel.listening(), 0);
        assert_eq!(*kernel.routes.lock().unwrap(), pins().collect::<Vec<_>>());
        let again = KvmMsiVectors::new(router, 1).unwrap();
        assert_eq!(again.vectors[0].gsi, Gsi(24));
    }

    #[test]
    fn too_many_vectors_leave_nothing_taken() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel, 40).unwrap());
        let error = KvmMsiVectors::new(Arc::clone(&router), 3).unwrap_err();
        assert!(matches!(error, InterruptError::NoGsi { limit: 40 }));
        KvmMsiVectors::new(router, 2).unwrap();
    }

    #[test]
    fn a_failure_names_the_vector_and_the_action() {
        let (kernel, vectors) = vectors(1);
        let failed = |result: Result<(), MsiError>| {
            let MsiError { vector, action, .. } = result.unwrap_err();
            (vector, action)
        };
        assert_eq!(failed(vectors.route(1, message(0))), (1, "routed"));
        assert_eq!(failed(vectors.mask(7)), (7, "masked"));
        assert_eq!(failed(vectors.deliver(1)), (1, "delivered"));
        assert!(vectors.event(1).is_none());
        kernel.refuse(true);
        assert_eq!(failed(vectors.route(0, message(0x31))), (0, "routed"));
        kernel.refuse(false);
        vectors.route(0, message(0x31)).unwrap();
        kernel.refuse(true);
        assert_eq!(failed(vectors.mask(0)), (0, "masked"));
        kernel.refuse(false);
    }
}
