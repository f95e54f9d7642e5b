// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device behind an IOMMU of the guest's, as its VMM tells it: "IOMMU support".

use super::BackEnd;
use super::rings::Ring;
use crate::features::Features;
use crate::patience::end_of;
use crate::vhost_user::translation::{Kind, Mapped, Message};

impl BackEnd {
    /// Whether the device's addresses are those of an IOMMU of the guest's.
    pub(super) fn translated(&self) -> bool {
        self.accepted.contains(Features::ACCESS_PLATFORM)
    }

    /// What the VMM says of the device's addresses.
    pub(super) fn translate(&mut self, message: Message) -> Option<()> {
        let Message {
            address,
            size,
            theirs,
            access,
            kind,
        } = message;
        let range = address..address.checked_add(size)?;
        match kind {
            Kind::Update => {
                let target = self.given.as_ref()?.guest_range(theirs, size)?;
                self.translator.update(Mapped {
                    range,
                    target,
                    access,
                });
                // A queue may have waited for that.
                if self.running.is_empty() {
                    self.start()?;
                }
                Some(())
            }
            Kind::Invalidate => {
                let end = end_of(self.patience);
                // While a worker uses it, nobody may be told that it does not.
                self.translator.invalidate(&range, end).then_some(())
            }
            // Those are ours to say.
            Kind::Miss | Kind::AccessFail => None,
        }
    }

    /// Whether all that a queue consists of can be reached; if not, the VMM has been asked for it.
    pub(super) fn foresee(&self, ring: &Ring) -> bool {
        let config = &ring.config;
        let places = [
            config.descriptor_area,
            config.driver_area,
            config.device_area,
        ];
        let mut areas = places.into_iter().zip(config.lengths(self.layout()));
        // What wraps is refused where the queue is made.
        areas.all(|(start, (length, access))| {
            let end = start.saturating_add(length);
            self.translator.foresee(start..end, access)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use vm_memory::{GuestAddress, Iommu, Permissions};

    use super::*;
    use crate::entropy::Entropy;
    use crate::queue::Position;
    use crate::vhost_user::message::{Header, Request, VERSION};
    use crate::worker::{Progress, Threads, Worker};

    /// A worker that has found a page and does not return before somebody hangs up.
    struct Stuck {
        translator: super::super::Translator,
        found: Sender<()>,
        end: Receiver<()>,
    }

    impl Worker for Stuck {
        fn name(&self) -> String {
            "stuck".to_owned()
        }
        fn sources(&self) -> Vec<RawFd> {
            Vec::new()
        }
        fn positions(&self) -> Vec<(u16, Position)> {
            Vec::new()
        }
        fn ready(&mut self, _index: usize) -> Progress {
            let at = GuestAddress(0x1000);
            let found = self.translator.translate(at, 1, Permissions::Read);
            assert!(found.is_ok());
            self.found.send(()).unwrap();
            let _ = self.end.recv();
            Progress::Done
        }
    }

    #[test]
    fn a_worker_that_does_not_end_what_it_uses_ends_the_connection() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let runner = Box::new(Threads::new(|_, _| Ok(())));
        let device = Box::new(Entropy::new(std::io::empty()));
        let mut back_end = BackEnd::new(theirs, device, runner, |_| {}).unwrap();
        back_end.patience = Duration::from_millis(50);
        let translator = back_end.translator.clone();
        translator.update(Mapped {
            range: 0x1000..0x2000,
            target: 0,
            access: Permissions::ReadWrite,
        });
        let ((found, has_found), (end, ends)) = (channel(), channel());
        let mut stuck = translator.watch(Box::new(Stuck {
            translator: translator.clone(),
            found,
            end: ends,
        }));
        let call = thread::spawn(move || stuck.ready(0));
        has_found.recv().unwrap();
        let message = Message {
            address: 0x1000,
            size: 1,
            theirs: 0,
            access: Permissions::ReadWrite,
            kind: Kind::Invalidate,
        };
        let header = Header {
            request: Request::IOTLB_MSG.0,
            flags: VERSION,
            size: 32,
        };
        let message = [&header.bytes()[..], message.payload().as_slice()].concat();
        ours.write_all(&message).unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        let ended = back_end.run().unwrap_err();
        assert_eq!(
            ended.to_string(),
            "the VMM's IOTLB_MSG of 32 bytes makes no sense"
        );
        drop(end);
        call.join().unwrap();
    }
}
