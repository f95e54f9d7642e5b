// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages in front of a unit that lets them pass, turns them or refuses them; and a kernel that fails.

use super::super::fake::FakeKernel;
use super::super::routing::{Gsi, Target};
use super::super::{Remapper, UnitNumber, Watcher};
use super::*;
use crate::machine::stop::Stop;
use hvkit_vtd_iommu::spec::RequesterId;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender as Told, channel};
use std::time::Duration;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const SOURCE: Source = Source {
    id: RequesterId(0x18),
    unit: Some(UnitNumber(0)),
};
const GSI: Gsi = Gsi(24);

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data,
    }
}

/// Turns every message into one, or refuses it and says so.
struct Unit {
    to: Mutex<Option<MsiMessage>>,
    refused: Mutex<Told<(Source, MsiMessage)>>,
}

impl Remapper for Unit {
    fn resolve(&self, _: Source, _: MsiMessage, then: &mut dyn FnMut(Option<MsiMessage>)) {
        then(*self.to.lock().unwrap());
    }

    fn request(&self, source: Source, message: MsiMessage) -> Option<MsiMessage> {
        let to = *self.to.lock().unwrap();
        if to.is_none() {
            self.refused
                .lock()
                .unwrap()
                .send((source, message))
                .unwrap();
        }
        to
    }
}

struct Bench {
    kernel: Arc<FakeKernel>,
    router: Arc<Router>,
    unit: Arc<Unit>,
    refused: Receiver<(Source, MsiMessage)>,
    event: EventFd,
}

impl Bench {
    fn new(to: Option<MsiMessage>) -> Self {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        let (told, refused) = channel();
        let unit = Arc::new(Unit {
            to: Mutex::new(to),
            refused: Mutex::new(told),
        });
        let watcher =
            Watcher::start(&Stop::new().unwrap(), &crate::confine::Confiner::off()).unwrap();
        router.remap_by(unit.clone(), Arc::new(watcher));
        Bench {
            kernel,
            router,
            unit,
            refused,
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn connect(&self) -> io::Result<()> {
        self.router.connect(GSI, SOURCE, message(0x11), &self.event)
    }

    /// The unit's table is another one, and it says so.
    fn change(&self, to: Option<MsiMessage>) {
        *self.unit.to.lock().unwrap() = to;
        self.router.refresh(&|source, asked| {
            assert_eq!((source, asked), (SOURCE, message(0x11)));
            Leads::To(to)
        });
    }

    /// A write reaches the unit, as the message that was set.
    fn is_refused(&self) {
        self.event.write(1).unwrap();
        let refused = self.refused.recv_timeout(Duration::from_secs(10));
        assert_eq!(refused.unwrap(), (SOURCE, message(0x11)));
        assert!(self.kernel.delivered().is_empty());
    }

    fn delivers(&self, data: u32) {
        self.event.write(1).unwrap();
        assert_eq!(self.kernel.delivered(), [Target::Message(message(data))]);
    }
}

#[test]
fn a_message_is_what_the_unit_makes_of_it_now() {
    let bench = Bench::new(Some(message(0x31)));
    bench.connect().unwrap();
    bench.delivers(0x31);
    bench.change(Some(message(0x32)));
    bench.delivers(0x32);
    bench.change(None);
    assert_eq!(bench.kernel.listening(), 0);
    bench.is_refused();
    bench.is_refused();
    bench.change(Some(message(0x33)));
    bench.delivers(0x33);
    bench.router.disconnect(GSI).unwrap();
    bench.router.disconnect(GSI).unwrap();
    assert_eq!(bench.kernel.listening(), 0);
    // Nobody is asked for a message that is masked.
    bench.router.refresh(&|_, _| panic!("nobody sends"));
}

#[test]
fn what_was_refused_and_is_not_any_more_goes_out() {
    let bench = Bench::new(None);
    bench.connect().unwrap();
    bench.is_refused();
    // The guest makes an entry present without a word: found when the device sends.
    *bench.unit.to.lock().unwrap() = Some(message(0x41));
    bench.event.write(1).unwrap();
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    while bench.kernel.listening() == 0 {
        assert!(std::time::Instant::now() < patience);
        std::thread::yield_now();
    }
    assert_eq!(*bench.kernel.sent.lock().unwrap(), [message(0x41)]);
    bench.delivers(0x41);
}

#[test]
fn a_kernel_that_takes_no_routes_gets_no_events() {
    let bench = Bench::new(Some(message(0x31)));
    bench.kernel.refuse(true);
    bench.connect().unwrap_err();
    bench.kernel.refuse(false);
    bench.connect().unwrap();
    bench.kernel.refuse_routes(true);
    bench.change(Some(message(0x32)));
    // By our thread, each time; and by a route again when there can be one.
    let until = |count: usize, listening: usize| {
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        while bench.kernel.sent.lock().unwrap().len() < count
            || bench.kernel.listening() != listening
        {
            assert!(std::time::Instant::now() < patience);
            std::thread::yield_now();
        }
    };
    assert_eq!(bench.kernel.listening(), 0);
    let before = bench.kernel.routes_refused();
    for count in 1..3 {
        bench.event.write(1).unwrap();
        until(count, 0);
        // It is sent, and then a route is asked for.
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        while bench.kernel.routes_refused() < before + count {
            assert!(std::time::Instant::now() < patience);
            std::thread::yield_now();
        }
    }
    assert!(bench.kernel.delivered().is_empty());
    bench.kernel.refuse_routes(false);
    bench.event.write(1).unwrap();
    until(3, 1);
    assert_eq!(*bench.kernel.sent.lock().unwrap(), [message(0x32); 3]);
    bench.delivers(0x32);
}

#[test]
fn pins_of_ours_are_told_with_what_they_lead_to() {
    let bench = Bench::new(Some(message(0xc031)));
    let routes = || {
        let all = bench.kernel.routes.lock().unwrap().clone();
        let of_pin = all.into_iter().filter(|route| route.gsi == Gsi(17));
        of_pin.map(|route| route.target).collect::<Vec<_>>()
    };
    let before = routes();
    bench.router.announce(Gsi(17), SOURCE, Some(message(0x11)));
    let told = [before.clone(), vec![Target::Message(message(0xc031))]].concat();
    assert_eq!(routes(), told);
    bench.change(None);
    assert_eq!(routes(), before);
    bench.router.announce(Gsi(17), SOURCE, None);
    bench.router.refresh(&|_, _| panic!("nobody sends"));
}

#[test]
fn what_another_unit_turns_leads_where_it_led() {
    let bench = Bench::new(Some(message(0x22)));
    bench.connect().unwrap();
    let routes = bench.kernel.routes.lock().unwrap().clone();
    bench.router.refresh(&|_, _| Leads::AsBefore);
    assert_eq!(*bench.kernel.routes.lock().unwrap(), routes);
    bench.event.write(1).unwrap();
    assert_eq!(bench.kernel.delivered(), [Target::Message(message(0x22))]);
}

/// A route of before a refusal is not gone back to when some other unit changes.
#[test]
fn what_a_unit_refuses_stays_refused_when_another_unit_changes() {
    let bench = Bench::new(Some(message(0x22)));
    bench.connect().unwrap();
    bench.delivers(0x22);
    bench.router.disconnect(GSI).unwrap();
    *bench.unit.to.lock().unwrap() = None;
    bench.connect().unwrap();
    bench.router.refresh(&|_, _| Leads::AsBefore);
    assert_eq!(bench.kernel.listening(), 0);
    bench.is_refused();
}
