// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controller by its registers and its messages, as raw words.

use super::super::fake::FakeKernel;
use super::super::routing::{Pins, Target};
use super::*;
use hvkit_vtd_iommu::spec::RequesterId;

const SOURCE: Source = Source {
    id: RequesterId(0xff00),
    unit: None,
};

struct Bench {
    kernel: Arc<FakeKernel>,
    router: Arc<Router>,
    apic: Arc<IoApic>,
    window: Window,
}

impl Bench {
    fn new() -> Self {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::with_pins(kernel.clone(), 4096, Pins::Ours).unwrap());
        let apic = Arc::new(IoApic::new(SOURCE));
        apic.connect(&router);
        Bench {
            kernel,
            router,
            window: Window(Arc::clone(&apic)),
            apic,
        }
    }

    fn write(&mut self, register: u8, value: u32) {
        self.window.write(0, &u32::from(register).to_le_bytes());
        self.window.write(0x10, &value.to_le_bytes());
    }

    fn read(&mut self, register: u8) -> u32 {
        self.window.write(0, &[register]);
        let mut data = [0; 4];
        self.window.read(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn entry(&mut self, pin: u8, entry: u64) {
        self.write(0x11 + 2 * pin, (entry >> 32) as u32);
        self.write(0x10 + 2 * pin, entry as u32);
    }

    fn sent(&self) -> Vec<(u64, u32)> {
        let sent = std::mem::take(&mut *self.kernel.sent.lock().unwrap());
        sent.into_iter().map(|m| (m.address, m.data)).collect()
    }
}

#[test]
fn registers_are_the_datasheet_s() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(1), 0x0017_0020);
    bench.write(0, 0xffff_ffff);
    assert_eq!((bench.read(0), bench.read(2)), (0x0f00_0000, 0x0f00_0000));
    // Masked after a reset.
    assert_eq!((bench.read(0x10), bench.read(0x3f)), (0x0001_0000, 0));
    // Delivery status and remote IRR are not written; the last entry's high half is.
    bench.entry(23, u64::MAX);
    assert_eq!(
        (bench.read(0x3e), bench.read(0x3f)),
        (0x0001_afff, 0xffff_0000)
    );
    assert_eq!((bench.read(0x40), bench.read(0x0f)), (0, 0));
    bench.write(0x40, 1);
    // Other offsets, and accesses of other sizes.
    let mut data = [7; 8];
    bench.window.read(0x20, &mut data);
    assert_eq!(data, [0; 8]);
    bench.window.write(0x10, &[]);
}

#[test]
fn an_edge_sends_its_message_once_unless_it_is_masked() {
    let mut bench = Bench::new();
    bench.apic.pulse(Gsi(4));
    // To APIC 3, vector 0x31; then logically, lowest priority.
    bench.entry(4, 0x0300_0000_0000_0031);
    assert!(bench.sent().is_empty());
    bench.apic.pulse(Gsi(4));
    assert_eq!(bench.sent(), [(0xfee0_3000, 0x31)]);
    bench.entry(4, 0x0100_0000_0000_0931);
    bench.apic.pulse(Gsi(4));
    assert_eq!(bench.sent(), [(0xfee0_1004, 0x131)]);
    bench.entry(4, 0x0100_0000_0001_0931);
    bench.apic.pulse(Gsi(4));
    // The timer's interrupt is wired to input 2; there is no input 24.
    bench.entry(2, 0x22);
    bench.apic.pulse(Gsi(0));
    bench.apic.pulse(Gsi(24));
    assert_eq!(bench.sent(), [(0xfee0_0000, 0x22)]);
}

#[test]
fn a_level_is_sent_again_at_its_end_while_it_lasts() {
    let mut bench = Bench::new();
    bench.apic.set_level(Gsi(17), Level::Asserted);
    bench.entry(17, 0x8041);
    let message = (0xfee0_0000, 0xc041);
    assert_eq!(bench.sent(), [message]);
    assert_eq!(bench.read(0x32), 0xc041, "remote IRR");
    // KVM knows that the end of 0x41 matters.
    let routes = bench.kernel.routes.lock().unwrap().clone();
    let [route] = routes[..] else {
        panic!("{routes:?}");
    };
    let Target::Message(MsiMessage { address, data }) = route.target else {
        panic!("{route:?}");
    };
    assert_eq!((route.gsi, address, data), (Gsi(17), message.0, message.1));
    bench.apic.end_of_interrupt(0x42);
    assert!(bench.sent().is_empty());
    bench.apic.end_of_interrupt(0x41);
    assert_eq!(bench.sent(), [message]);
    bench.apic.set_level(Gsi(17), Level::Deasserted);
    // By the register this time.
    bench.window.write(0x40, &0x41u32.to_le_bytes());
    assert!(bench.sent().is_empty());
    assert_eq!(bench.read(0x32), 0x8041);
    // Masked while it is asserted, and unmasked.
    bench.entry(17, 0x1_8041);
    assert!(bench.kernel.routes.lock().unwrap().is_empty());
    bench.apic.set_level(Gsi(17), Level::Asserted);
    assert!(bench.sent().is_empty());
    bench.entry(17, 0x8041);
    assert_eq!(bench.sent(), [message]);
    // An entry that is made edge-triggered forgets: what drivers without an EOI register do.
    bench.entry(17, 0x1_0041);
    bench.entry(17, 0x8041);
    assert_eq!(bench.sent(), [message]);
}

#[test]
fn who_holds_a_level_is_told_of_its_end() {
    let mut bench = Bench::new();
    let resample = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let key = bench
        .apic
        .hold(Gsi(18), resample.try_clone().unwrap())
        .unwrap();
    bench.entry(18, 0x8051);
    bench.apic.assert(key);
    bench.apic.assert(key);
    assert_eq!(bench.sent().len(), 1);
    bench.apic.set_level(Gsi(18), Level::Asserted);
    assert!(resample.read().is_err());
    bench.apic.end_of_interrupt(0x51);
    assert_eq!(resample.read().unwrap(), 1);
    // The line is still asserted by the other.
    assert_eq!(bench.sent().len(), 1);
    bench.apic.set_level(Gsi(18), Level::Deasserted);
    bench.apic.release(key);
    bench.apic.end_of_interrupt(0x51);
    bench.apic.assert(key);
    assert!(bench.sent().is_empty() && resample.read().is_err());
    assert!(bench.apic.hold(Gsi(24), resample).is_none());
}

/// A unit that turns messages into others, if they ask for what it has.
struct Turning(Mutex<Vec<(Source, MsiMessage)>>);

impl super::super::Remapper for Turning {
    fn resolve(
        &self,
        source: Source,
        message: MsiMessage,
        then: &mut dyn FnMut(Option<MsiMessage>),
    ) {
        then(self.request(source, message));
    }

    fn request(&self, source: Source, message: MsiMessage) -> Option<MsiMessage> {
        self.0.lock().unwrap().push((source, message));
        (message.address & 0x10 != 0).then_some(MsiMessage {
            address: 0xfee0_5000,
            data: 0x99,
        })
    }
}

#[test]
fn remappable_entries_ask_for_theirs() {
    let mut bench = Bench::new();
    let turning = Arc::new(Turning(Mutex::default()));
    let stop = crate::machine::stop::Stop::new().unwrap();
    let watcher =
        Arc::new(super::super::Watcher::start(&stop, &crate::confine::Confiner::off()).unwrap());
    bench.router.remap_by(turning.clone(), watcher);
    // VT-d, "I/OxAPIC Programming": index 0x8005 has bits 14:0 in 63:49 and bit 15 in bit 11; format in bit 48.
    bench.entry(9, 0x000b_0000_0000_0809);
    bench.apic.pulse(Gsi(9));
    let asked = turning.0.lock().unwrap().pop().unwrap();
    assert_eq!(asked.0, SOURCE);
    // Address bits 19:5 and 2 are the handle; bit 4 the format; no subhandle.
    assert_eq!(asked.1.address, 0xfee0_00b4);
    assert_eq!(bench.sent(), [(0xfee0_5000, 0x99)]);
    // The other format is refused here.
    bench.entry(9, 0x0100_0000_0000_0031);
    bench.apic.pulse(Gsi(9));
    assert!(bench.sent().is_empty());
}

#[test]
fn a_controller_that_was_saved_goes_on_and_waits_for_the_ends_it_waited_for() {
    let mut bench = Bench::new();
    bench.write(0, 0x0500_0000);
    bench.entry(4, 0x0300_0000_0000_0031);
    bench.entry(17, 0x0200_0000_0000_8055);
    bench.apic.set_level(Gsi(17), Level::Asserted);
    assert_eq!(bench.sent(), [(0xfee0_2000, 0xc055)]);
    bench.window.write(0, &[0x33]);
    let saved = bench.apic.save();
    assert_eq!((saved.select, saved.id), (0x33, 0x0500_0000));
    assert_eq!(saved.entries[17], 0x0200_0000_0000_c055);

    let mut other = Bench::new();
    other.apic.restore(&saved);
    assert_eq!(other.apic.save(), saved);
    // The device is asserting still, and its interrupt has not ended.
    other.apic.set_level(Gsi(17), Level::Asserted);
    assert!(other.sent().is_empty());
    other.apic.end_of_interrupt(0x55);
    assert_eq!(other.sent(), [(0xfee0_2000, 0xc055)]);
    other.apic.pulse(Gsi(4));
    assert_eq!(other.sent(), [(0xfee0_3000, 0x31)]);
    // KVM is told which ends matter, as when a guest writes the entry.
    assert!(
        other
            .kernel
            .routes
            .lock()
            .unwrap()
            .iter()
            .any(|route| route.gsi == Gsi(17))
    );

    // Bits that an entry does not have are not taken.
    let forged = IoApicState {
        select: 0xff,
        id: u32::MAX,
        entries: [u64::MAX; 24],
    };
    other.apic.restore(&forged);
    let kept = other.apic.save();
    assert_eq!(
        (kept.id, kept.entries[0]),
        (0x0f00_0000, 0xffff_0000_0001_efff)
    );
    assert_eq!(other.read(0), 0x0f00_0000);
}
