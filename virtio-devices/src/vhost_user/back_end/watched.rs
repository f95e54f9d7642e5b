// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which worker's call a thread is in: so what is found in it is known to be found by that worker.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::uses::Use;
use crate::queue::Position;
use crate::worker::{Progress, Worker};

thread_local! {
    /// The call that this thread is in. It is that of one device: a worker finds nothing in another's memory.
    static CALL: RefCell<Option<Arc<Use>>> = const { RefCell::new(None) };
}

/// The call of a worker that the thread is in.
pub(super) fn call() -> Option<Arc<Use>> {
    CALL.try_with(|call| call.borrow().clone()).ok().flatten()
}

/// A worker whose calls are known.
pub(super) struct Watched {
    worker: Box<dyn Worker>,
    its: Arc<Use>,
}

impl Watched {
    pub(super) fn new(worker: Box<dyn Worker>, its: Arc<Use>) -> Self {
        Self { worker, its }
    }

    /// Calls it.
    fn within<T>(&mut self, call: impl FnOnce(&mut dyn Worker) -> T) -> T {
        let _call = Call::begin(&self.its);
        call(self.worker.as_mut())
    }
}

/// A call that this thread is in, until it is dropped.
struct Call {
    its: Arc<Use>,
    /// What the thread was in before.
    outer: Option<Arc<Use>>,
}

impl Call {
    fn begin(its: &Arc<Use>) -> Self {
        let outer = CALL.try_with(|call| call.replace(Some(Arc::clone(its))));
        Self {
            its: Arc::clone(its),
            outer: outer.ok().flatten(),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let outer = self.outer.take();
        // A thread without that has ended.
        let _ = CALL.try_with(|call| call.replace(outer));
        self.its.end();
    }
}

impl Worker for Watched {
    fn name(&self) -> String {
        self.worker.name()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.worker.sources()
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        self.worker.positions()
    }

    fn started(&mut self) {
        self.within(|worker| worker.started());
    }

    fn stopping(&mut self) {
        self.within(|worker| worker.stopping());
    }

    fn ready(&mut self, index: usize) -> Progress {
        self.within(|worker| worker.ready(index))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::{Duration, Instant};

    use vm_memory::Permissions;

    use super::super::uses::Uses;
    use super::*;
    use crate::vhost_user::translation::Ranges;

    /// A worker that finds a page, and says so; and that goes on when it is told, or panics.
    struct Slow {
        found: Sender<()>,
        go: Receiver<()>,
    }

    impl Worker for Slow {
        fn name(&self) -> String {
            "slow".to_owned()
        }
        fn sources(&self) -> Vec<RawFd> {
            vec![-1]
        }
        fn positions(&self) -> Vec<(u16, Position)> {
            vec![(7, Position::default())]
        }
        fn started(&mut self) {
            self.ready(0);
        }
        fn stopping(&mut self) {
            self.ready(0);
        }
        fn ready(&mut self, _index: usize) -> Progress {
            let mut ranges = Ranges::default();
            ranges.map(0x1000..0x2000, 0x1000, Permissions::Read);
            let its = call().expect("in no call");
            let found = its.find(&ranges, &(0x1000..0x2000), Permissions::Read);
            assert!(found.is_ok());
            let _ = self.found.send(());
            self.go.recv().unwrap();
            Progress::Done
        }
    }

    fn slow() -> (Slow, Receiver<()>, Sender<()>) {
        let ((found, has_found), (go, goes)) = (channel(), channel());
        (Slow { found, go: goes }, has_found, go)
    }

    #[test]
    fn each_call_is_known_and_ends_however_it_ends() {
        let long = Duration::from_secs(60);
        let page = 0x1fff..0x2000;
        type Made = fn(&mut dyn Worker);
        let calls: [Made; 3] = [
            |worker| worker.started(),
            |worker| assert_eq!(worker.ready(0), Progress::Done),
            |worker| worker.stopping(),
        ];
        for made in calls {
            for panics in [false, true] {
                let uses = Uses::default();
                let (slow, has_found, go) = slow();
                let mut worker = uses.watch(Box::new(slow));
                assert_eq!(worker.name(), "slow");
                assert_eq!(worker.sources(), [-1]);
                assert_eq!(worker.positions(), [(7, Position::default())]);
                let thread = std::thread::spawn(move || {
                    assert!(call().is_none());
                    made(worker.as_mut());
                    assert!(call().is_none());
                    worker
                });
                has_found.recv_timeout(long).unwrap();
                assert!(!uses.wait(&page, Instant::now()));
                assert!(uses.wait(&(0x2000..0x3000), Instant::now()));
                std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| uses.wait(&page, Instant::now() + long));
                    match panics {
                        true => drop(go),
                        false => go.send(()).unwrap(),
                    }
                    assert!(waiting.join().unwrap());
                });
                assert_eq!(thread.join().is_err(), panics);
                assert!(call().is_none());
                // It is gone, and not kept.
                let _other = uses.watch(Box::new(self::slow().0));
                assert_eq!(uses.0.lock().unwrap().len(), 1);
            }
        }
    }
}
