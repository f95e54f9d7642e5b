// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end that is gone, and another that goes on with its device: in raw words, by "Vhost-user Protocol".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::vhost_user::{Link, Options, Reconnection};
use tempfile::TempDir;

use super::liar::{Liar, Lie, Message};
use super::{DATA, PATIENCE, STATUS, device, guest, shared_memory, submit, taken, until};
use crate::support::guest::{Bus, Guest};

const ALL: u64 = u64::MAX;
const IN_ORDER: u64 = 1 << 35;
const NEEDS_RESET: u8 = 0x40;
const IO_ERROR: u8 = 1;
/// All that a liar has of the protocol but the notes of what is in flight.
const WITHOUT_NOTES: u64 = 0x229;
/// Between two attempts.
const INTERVAL: Duration = Duration::from_millis(20);

/// A back end that answers as it should, and does with queues what a test does for it.
pub(super) struct Peer {
    heard: Arc<Mutex<Vec<Message>>>,
    files: Arc<Mutex<BTreeMap<u32, File>>>,
    socket: UnixStream,
}

impl Peer {
    pub(super) fn new(liar: Liar, socket: UnixStream) -> Self {
        let (heard, files) = (liar.heard.clone(), liar.files.clone());
        let theirs = socket.try_clone().unwrap();
        thread::spawn(move || liar.run(theirs));
        Self {
            heard,
            files,
            socket,
        }
    }

    /// As the end of its process.
    pub(super) fn die(&self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// What it was told by a request, all of it.
    pub(super) fn told(&self, request: u32) -> Vec<u8> {
        let heard = self.heard.lock().unwrap();
        let told = heard.iter().filter(|(number, _)| *number == request);
        told.flat_map(|(_, payload)| payload.clone()).collect()
    }

    /// Queue and index, as it was told where queues go on.
    pub(super) fn bases(&self) -> Vec<[u32; 2]> {
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        let told = self.told(10);
        told.chunks(8)
            .map(|state| [word(&state[..4]), word(&state[4..])])
            .collect()
    }

    pub(super) fn has_begun(&self) -> bool {
        !self.told(18).is_empty()
    }

    /// The inode of the file that came last with a request.
    pub(super) fn file(&self, request: u32) -> u64 {
        let files = self.files.lock().unwrap();
        files[&request].metadata().unwrap().ino()
    }
}

/// Where back ends are found, and what is said of them.
pub(super) struct Place {
    folder: TempDir,
    said: Arc<Mutex<Vec<String>>>,
}

impl Place {
    pub(super) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            said: Arc::default(),
        }
    }

    pub(super) fn reconnection(&self) -> Reconnection {
        let said = self.said.clone();
        let report = move |link: &Link<'_>| {
            let line = match link {
                Link::Lost(why) => format!("lost: {why}"),
                Link::Refused(why) => format!("refused: {why}"),
                _ => "back".to_owned(),
            };
            said.lock().unwrap().push(line);
        };
        let socket = self.folder.path().join("socket");
        Reconnection::new(socket, INTERVAL).with_report(report)
    }

    pub(super) fn listen(&self) -> UnixListener {
        let path = self.folder.path().join("socket");
        // Of a process that is gone.
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// Waits for a connection, and has `liar` answer it.
    pub(super) fn accept(&self, guest: &mut Guest, liar: Liar) -> Peer {
        let listener = self.listen();
        let socket = accept(&listener, guest, liar);
        drop(listener);
        socket
    }

    pub(super) fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }
}

/// Whoever connects to `listener` while the guest goes on is answered by `liar`.
pub(super) fn accept(listener: &UnixListener, guest: &mut Guest, liar: Liar) -> Peer {
    let listener = listener.try_clone().unwrap();
    let (tell, told) = channel();
    // By a thread of its own: a worker that connects waits to be answered.
    thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        // Nobody may want it any more.
        let _ = tell.send(Peer::new(liar, socket));
    });
    until(guest, "connection", |_| told.try_recv().ok())
}

pub(super) fn honest() -> Liar {
    Liar::new(99, Lie::HangUp)
}

/// One that says that queue 0 would go on at `index`.
fn stops_at(index: u64) -> Liar {
    Liar::new(11, Lie::Value(index << 32))
}

pub(super) fn without_notes() -> Liar {
    let mut liar = honest();
    liar.features &= !IN_ORDER;
    liar.protocol = WITHOUT_NOTES;
    liar
}

/// A guest whose device's first back end is `liar`.
pub(super) fn begin(place: &Place, liar: Liar, options: Options) -> (Guest, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer::new(liar, theirs);
    let options = options
        .with_patience(PATIENCE)
        .with_reconnection(place.reconnection());
    (guest(ours, options), peer)
}

/// As a device does it: puts `heads` in the used ring, and then shows its index.
pub(super) fn use_up(guest: &Guest, ring: &Ring, index: &mut u16, heads: &[u16]) {
    for head in heads {
        let place = ring.used + 4 + 8 * u64::from(*index % 64);
        guest.write(place, &u64::from(*head).to_le_bytes());
        *index = index.wrapping_add(1);
    }
    guest.write(ring.used + 2, &index.to_le_bytes());
}

/// Waits until a back end has been told to begin.
pub(super) fn begun(guest: &mut Guest, peer: &Peer) {
    until(guest, "back end that begins", |_| {
        peer.has_begun().then_some(())
    });
    guest.step();
}

#[test]
fn a_queue_in_order_goes_on_at_the_used_index() {
    let place = Place::new();
    let (mut guest, first) = begin(&place, honest(), Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    let heads = [0; 3].map(|_| submit(&mut guest, ring, 0, 0, 512));
    guest.kick(0);
    let mut used = 0;
    use_up(&guest, ring, &mut used, &heads[..1]);
    guest.vectors.take();
    first.die();
    // What was used is told, as it may not have been.
    assert_eq!(taken(&mut guest, ring).head, u32::from(heads[0]));
    assert!(guest.vectors.delivered().contains(&1));
    until(&mut guest, "word of it", |_| {
        (place.said().len() == 2).then_some(())
    });
    assert_eq!(ring.take(), None);
    let second = place.accept(&mut guest, honest());
    begun(&mut guest, &second);
    assert_eq!(second.bases(), [[0, 1]]);
    // It is told all that the first was: features, memory, places.
    for request in [2, 5, 8, 9] {
        assert_eq!(second.told(request), first.told(request), "{request}");
    }
    assert!(!second.told(5).is_empty());
    use_up(&guest, ring, &mut used, &heads[1..]);
    for head in &heads[1..] {
        assert_eq!(taken(&mut guest, ring).head, u32::from(*head));
    }
    // No request has failed, and nobody was told of any that had.
    assert_eq!(guest.read(STATUS, 1), [0xee]);
    assert!(guest.told.lock().unwrap().is_empty());
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    let said = place.said();
    assert_eq!(said[0], "lost: the back end is gone");
    assert!(
        said[1].starts_with("refused: nobody serves the device at its socket: "),
        "{said:?}"
    );
    assert_eq!(said[2..], ["back"]);
    // And once more.
    second.die();
    let third = place.accept(&mut guest, stops_at(3));
    begun(&mut guest, &third);
    assert_eq!(third.bases(), [[0, 3]]);
    // A pause is one of that one's: it was never told of.
    guest.pause();
    assert_eq!(third.told(11), [0; 8]);
}

/// One that is given up need not be dead: what it uses until it sees that is not done once more.
#[test]
fn a_queue_goes_on_where_it_is_when_another_has_come() {
    let place = Place::new();
    for liar in [honest, without_notes] {
        let (mut guest, first) = begin(&place, liar(), Options::block());
        let mut rings = guest.start(ALL, &[0]);
        let ring = &mut rings[0];
        let heads = [0; 3].map(|_| submit(&mut guest, ring, 0, 0, 512));
        let mut used = 0;
        use_up(&guest, ring, &mut used, &heads[..1]);
        first.die();
        assert_eq!(taken(&mut guest, ring).head, u32::from(heads[0]));
        use_up(&guest, ring, &mut used, &heads[1..2]);
        let second = place.accept(&mut guest, liar());
        begun(&mut guest, &second);
        assert_eq!(second.bases(), [[0, 2]]);
        assert!(guest.told.lock().unwrap().is_empty());
    }
}

/// "Inflight I/O tracking": the area that the first was given is the next one's, which finds there what it is to finish.
#[test]
fn notes_of_what_is_in_flight_are_handed_on() {
    let place = Place::new();
    let mut liar = honest();
    liar.features &= !IN_ORDER;
    let in_flight = liar.in_flight.try_clone().unwrap();
    let (mut guest, first) = begin(&place, liar, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    let heads = [0; 3].map(|_| submit(&mut guest, ring, 0, 0, 512));
    guest.kick(0);
    // The last one first: the others are in flight.
    let mut area = vec![0; 16 + 16 * 64];
    (area[8], area[10], area[14]) = (1, 64, 1);
    for (head, counter) in [(heads[0], 1), (heads[1], 2)] {
        area[16 + 16 * usize::from(head)] = 1;
        area[24 + 16 * usize::from(head)] = counter;
    }
    in_flight.write_all_at(&area, 0).unwrap();
    let mut used = 0;
    use_up(&guest, ring, &mut used, &heads[2..]);
    first.die();
    assert_eq!(taken(&mut guest, ring).head, u32::from(heads[2]));
    // It cannot be saved meanwhile: what is in flight is in those notes alone.
    guest.pause();
    let Bus::Pci(driver) = &mut guest.bus else {
        unreachable!()
    };
    let saved = driver.function.save().unwrap_err().to_string();
    assert!(
        saved.contains("has left requests that another is to finish"),
        "{saved}"
    );
    guest.resume();
    let mut liar = honest();
    liar.features &= !IN_ORDER;
    let second = place.accept(&mut guest, liar);
    begun(&mut guest, &second);
    // The same memory in the same words, and no other is asked for.
    assert!(second.told(31).is_empty());
    assert_eq!(second.told(32), first.told(32));
    assert_eq!(second.file(32), first.file(32));
    assert_eq!(second.bases(), [[0, 1]]);
    use_up(&guest, ring, &mut used, &heads[..2]);
    for head in &heads[..2] {
        assert_eq!(taken(&mut guest, ring).head, u32::from(*head));
    }
    assert!(guest.told.lock().unwrap().is_empty());
}

#[test]
fn without_notes_our_ledger_says_whether_it_is_safe() {
    // In turn: the next one does what is left.
    let place = Place::new();
    let (mut guest, first) = begin(&place, without_notes(), Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    let heads = [0; 3].map(|_| submit(&mut guest, ring, 0, 0, 512));
    let mut used = 0;
    use_up(&guest, ring, &mut used, &heads[..1]);
    first.die();
    let second = place.accept(&mut guest, without_notes());
    begun(&mut guest, &second);
    assert_eq!(second.bases(), [[0, 1]]);
    assert_eq!(taken(&mut guest, ring).head, u32::from(heads[0]));
    assert_eq!(ring.take(), None);
    // Out of turn: it would do one of them twice, and another never. Those are answered with errors, and nothing later is.
    use_up(&guest, ring, &mut used, &heads[2..]);
    second.die();
    for head in [heads[2], heads[1]] {
        assert_eq!(taken(&mut guest, ring).head, u32::from(head));
    }
    assert_eq!(guest.read(STATUS, 1), [IO_ERROR]);
    let told = guest.told.lock().unwrap().clone();
    assert_eq!(
        told,
        [
            "queue 0: 1 requests failed on the host, the last one so: the process that had begun them is gone"
        ]
    );
    let later = submit(&mut guest, ring, 0, 0, 512);
    let third = place.accept(&mut guest, without_notes());
    begun(&mut guest, &third);
    assert_eq!(third.bases(), [[0, 3]]);
    used = 3;
    use_up(&guest, ring, &mut used, &[later]);
    assert_eq!(taken(&mut guest, ring).head, u32::from(later));
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

/// More answers than the ring has places, of which we saw none: nobody knows what flies, and another must not guess.
#[test]
fn where_nobody_knows_a_disk_is_to_be_reset_and_then_goes_on() {
    let place = Place::new();
    let (mut guest, first) = begin(&place, without_notes(), Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    let stays = submit(&mut guest, ring, 0, 0, 512);
    let mut used = 0;
    for _ in 0..64 {
        let head = submit(&mut guest, ring, 0, 0, 512);
        use_up(&guest, ring, &mut used, &[head]);
        assert_eq!(ring.take().unwrap().head, u32::from(head));
    }
    first.die();
    until(&mut guest, "DEVICE_NEEDS_RESET", |guest| {
        (guest.status() & NEEDS_RESET != 0).then_some(())
    });
    assert_eq!(ring.take(), None, "{stays} was answered");
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL, &[0]);
    let second = place.accept(&mut guest, without_notes());
    begun(&mut guest, &second);
    assert_eq!(second.bases(), [[0, 0]]);
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    use_up(&guest, &rings[0], &mut 0, &[head]);
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
}

#[test]
fn a_card_is_told_of_its_link_and_goes_on_in_turn() {
    let place = Place::new();
    let (mut guest, first) = begin(&place, without_notes(), Options::net(None, None));
    let mut rings = guest.start(ALL, &[0, 1]);
    for _ in 0..4 {
        rings[0].submit(&[Writable(DATA, 2048)]);
    }
    // More frames than the ring has places, in turn, while buffers are always there; nobody looked.
    let mut used = 0;
    for _ in 0..100 {
        rings[0].submit(&[Writable(DATA, 2048)]);
        let next = guest.read(rings[0].available + 4 + 2 * u64::from(used % 64), 2);
        use_up(
            &guest,
            &rings[0],
            &mut used,
            &[u16::from_le_bytes([next[0], next[1]])],
        );
        rings[0].take().unwrap();
    }
    guest.vectors.take();
    first.die();
    until(&mut guest, "link down", |guest| {
        (guest.config(6, 2) == 0).then_some(())
    });
    assert!(guest.vectors.delivered().contains(&0));
    guest.vectors.take();
    let second = place.accept(&mut guest, without_notes());
    begun(&mut guest, &second);
    assert_eq!(second.bases(), [[0, 100], [1, 0]]);
    assert_eq!(guest.config(6, 2), 1);
    assert!(guest.vectors.delivered().contains(&0));
    // Out of turn, and nobody looked: another would write to buffers that are the driver's again.
    for _ in 0..70 {
        rings[0].submit(&[Writable(DATA, 2048)]);
        let last = guest.read(rings[0].available + 4 + 2 * u64::from((used + 4) % 64), 2);
        use_up(
            &guest,
            &rings[0],
            &mut used,
            &[u16::from_le_bytes([last[0], last[1]])],
        );
        rings[0].take().unwrap();
    }
    second.die();
    until(&mut guest, "link down", |guest| {
        (guest.config(6, 2) == 0).then_some(())
    });
    let listener = place.listen();
    listener.set_nonblocking(true).unwrap();
    for _ in 0..10 {
        thread::sleep(INTERVAL);
        guest.step();
    }
    assert!(listener.accept().is_err(), "somebody connected");
}

#[test]
fn another_that_is_less_than_the_first_is_refused_in_one_line() {
    let place = Place::new();
    let mut liar = honest();
    liar.features |= 1 << 9;
    let features = liar.features;
    let (mut guest, first) = begin(&place, liar, Options::block().with_queues(2));
    let mut rings = guest.start(ALL, &[0, 1]);
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    guest.kick(0);
    first.die();
    let like_the_first = |at, lie| {
        let mut liar = Liar::new(at, lie);
        liar.features = features;
        liar
    };
    let mut less_of_the_protocol = like_the_first(99, Lie::HangUp);
    less_of_the_protocol.protocol = WITHOUT_NOTES;
    let listener = place.listen();
    let came = "the back end that came in place of the first";
    for (liar, why) in [
        (
            honest(),
            format!("{came} lacks the features 0x200, which the driver was offered"),
        ),
        (
            less_of_the_protocol,
            format!("{came} lacks the protocol's features 0x1000, which the first had"),
        ),
        (
            like_the_first(17, Lie::Value(1)),
            "2 queues, and the back end has 1".to_owned(),
        ),
        (
            like_the_first(1, Lie::Value(1 << 30)),
            "the back end has no virtio 1 (VIRTIO_F_VERSION_1)".to_owned(),
        ),
    ] {
        let peer = accept(&listener, &mut guest, liar);
        until(&mut guest, &why, |_| {
            let said = place.said();
            (said.last() == Some(&format!("refused: {why}"))).then_some(())
        });
        // Nothing of the guest's was given to it.
        assert!(peer.told(5).is_empty());
    }
    // Another disk: of two sectors.
    let liar = like_the_first(99, Lie::HangUp);
    liar.heard.lock().unwrap().push((24, Vec::new()));
    accept(&listener, &mut guest, liar);
    until(&mut guest, "refusal", |_| {
        let why = format!(
            "refused: {came} has another configuration than the driver was told, from byte 0x0 on"
        );
        (place.said().last() == Some(&why)).then_some(())
    });
    let second = accept(&listener, &mut guest, like_the_first(99, Lie::HangUp));
    begun(&mut guest, &second);
    use_up(&guest, &rings[0], &mut 0, &[head]);
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
    assert_eq!(place.said().last().unwrap(), "back");
    assert!(guest.told.lock().unwrap().is_empty());
}

/// At every request on the way.
#[test]
fn another_that_is_gone_before_it_goes_on() {
    let place = Place::new();
    let (mut guest, first) = begin(&place, honest(), Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let heads = [0; 2].map(|_| submit(&mut guest, &mut rings[0], 0, 0, 512));
    use_up(&guest, &rings[0], &mut 0, &heads[..1]);
    taken(&mut guest, &mut rings[0]);
    first.die();
    let listener = place.listen();
    // The notes (31) were asked for once, of the first.
    for at in [1, 15, 3, 21, 17, 24, 2, 5, 32, 8, 10, 9, 14, 13, 12, 18] {
        let peer = accept(&listener, &mut guest, Liar::new(at, Lie::HangUp));
        until(
            &mut guest,
            &format!("end at {at}: {:?}", place.said()),
            |_| {
                let heard = peer.heard.lock().unwrap();
                heard
                    .last()
                    .is_some_and(|(request, _)| *request == at)
                    .then_some(())
            },
        );
    }
    let last = accept(&listener, &mut guest, honest());
    begun(&mut guest, &last);
    assert_eq!(last.bases(), [[0, 1]]);
    use_up(&guest, &rings[0], &mut 1, &heads[1..]);
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(heads[1]));
    assert!(guest.told.lock().unwrap().is_empty());
}

#[test]
fn attempts_are_bounded_in_time_and_number() {
    let place = Place::new();
    let (mut guest, first) = begin(&place, honest(), Options::block());
    let _rings = guest.start(ALL, &[0]);
    first.die();
    // Nobody accepts, and the queue of those who wait is full: nothing is waited for.
    let listener = place.listen();
    let mut waiting = Vec::new();
    listener.set_nonblocking(true).unwrap();
    // One that accepts and is silent holds the worker for half a second, the next time for one: not for its whole patience.
    for limit in [500, 1000] {
        let begin = Instant::now();
        until(&mut guest, "attempt", |_| {
            listener
                .accept()
                .ok()
                .map(|(socket, _)| waiting.push(socket))
        });
        let took = begin.elapsed();
        assert!(took < Duration::from_millis(limit + 2000), "{took:?}");
        assert!(took >= Duration::from_millis(limit), "{took:?}");
    }
    assert!(
        place
            .said()
            .last()
            .unwrap()
            .ends_with("has not answered GET_FEATURES within 1s"),
        "{:?}",
        place.said()
    );
    // One that hangs up at once is asked once in an interval.
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < 10 * INTERVAL {
        guest.step();
        while listener.accept().is_ok() {
            count += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let most = begin.elapsed().as_millis() / INTERVAL.as_millis() + 2;
    assert!((1..=most).contains(&count), "{count} of {most}");
}

#[test]
fn a_driver_and_a_machine_do_as_they_like_meanwhile() {
    let place = Place::new();
    let (mut guest, first) = begin(&place, honest(), Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    first.die();
    guest.step();
    // The configuration is as it was.
    assert_eq!(guest.config(0, 8), 1);
    // A pause, and a state that says where the queue goes on: nothing is noted that another is to finish.
    guest.pause();
    let Bus::Pci(driver) = &mut guest.bus else {
        unreachable!()
    };
    driver.function.save().unwrap();
    guest.resume();
    assert_eq!(rings[0].take(), None, "{head} was answered");
    // A reset, and a driver that comes again: nobody is there for it, and it waits.
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(ALL, &[0]);
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    guest.kick(0);
    guest.step();
    assert_eq!(rings[0].take(), None);
    let second = place.accept(&mut guest, stops_at(1));
    begun(&mut guest, &second);
    assert_eq!(second.bases(), [[0, 0]]);
    // The kick that nobody heard is there for it.
    let mut kicks = [0; 8];
    std::io::Read::read_exact(&mut &second.files.lock().unwrap()[&12], &mut kicks).unwrap();
    assert_ne!(u64::from_ne_bytes(kicks), 0);
    use_up(&guest, &rings[0], &mut 0, &[head]);
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
    // One that dies while the machine is paused, and one while no driver is there.
    guest.pause();
    second.die();
    guest.resume();
    let third = place.accept(&mut guest, stops_at(1));
    begun(&mut guest, &third);
    assert_eq!(third.bases(), [[0, 1]]);
    assert_eq!(guest.set_status(0), 0);
    third.die();
    guest.start(ALL, &[0]);
    let fourth = place.accept(&mut guest, honest());
    begun(&mut guest, &fourth);
    assert_eq!(fourth.bases(), [[0, 0]]);
    // What nobody asked for is the end of it, as ever; and then of the next.
    (&fourth.socket).write_all(&[1]).unwrap();
    let fifth = place.accept(&mut guest, honest());
    begun(&mut guest, &fifth);
    assert!(guest.told.lock().unwrap().is_empty());
}

#[test]
fn what_cannot_be_found_again() {
    let connect = |options: Options, reconnection: Reconnection| {
        let socket = honest().serve();
        let made = device(
            socket,
            options.with_reconnection(reconnection),
            &shared_memory(),
        );
        made.map_or_else(|error| error.to_string(), |_| "made".to_owned())
    };
    let place = Place::new();
    assert_eq!(connect(Options::block(), place.reconnection()), "made");
    assert_eq!(
        connect(Options::file_system("a").unwrap(), place.reconnection()),
        "a file system cannot go on with another back end than its first"
    );
    assert_eq!(
        connect(Options::block(), Reconnection::new("/s", Duration::ZERO)),
        "a back end that is looked for 0ns after the last attempt; it must be 1 ms or more"
    );
    let long = Reconnection::new("/s".repeat(100), INTERVAL);
    assert!(connect(Options::block(), long).starts_with("the host refused a resource: "));
}
