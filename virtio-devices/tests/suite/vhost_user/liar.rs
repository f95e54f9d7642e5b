// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end in raw words, which answers as it should but for one request, and remembers what it was told.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{PATIENCE, STATUS, device, guest, shared_memory, submit, taken, until};
use crate::support::guest::ring_at;
use hvkit_virtio_devices::vhost_user::Options;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const ALL: u64 = u64::MAX;
const IN_ORDER: u64 = 1 << 35;
const IO_ERROR: u8 = 1;
const NEEDS_RESET: u8 = 0x40;

/// What it does when it is asked for a certain request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    Silence,
    HalfAnAnswer,
    HangUp,
    OtherRequest,
    NoReply,
    OtherVersion,
    Longer,
    Shorter,
    Huge,
    File,
    Files,
    Value(u64),
}

/// A number and a payload.
pub(super) type Message = (u32, Vec<u8>);

pub(super) struct Liar {
    pub(super) features: u64,
    pub(super) protocol: u64,
    at: u32,
    lie: Lie,
    /// How often it is asked for that and answers as it should, before it lies.
    pub(super) spared: usize,
    /// Numbers and payloads of what it was told.
    pub(super) heard: Arc<Mutex<Vec<Message>>>,
    pub(super) in_flight: File,
    /// The channel for requests of its own.
    pub(super) own: Arc<Mutex<Option<UnixStream>>>,
    /// The last file that came with each request.
    pub(super) files: Arc<Mutex<BTreeMap<u32, File>>>,
}

impl Liar {
    pub(super) fn new(at: u32, lie: Lie) -> Self {
        let in_flight = tempfile::tempfile().unwrap();
        in_flight.set_len(0x4000).unwrap();
        Self {
            features: 1 << 32 | 1 << 30 | IN_ORDER,
            // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD and what nobody knows.
            protocol: 0x1229 | 1 << 60,
            at,
            lie,
            spared: 0,
            heard: Arc::default(),
            in_flight,
            own: Arc::default(),
            files: Arc::default(),
        }
    }

    pub(super) fn serve(self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || self.run(theirs));
        ours
    }

    /// Until the other end is gone.
    pub(super) fn run(self, mut socket: UnixStream) {
        let mut head = [0; 12];
        while let Some(files) = first(&socket, &mut head[..1]) {
            // The rest of it comes with no file.
            if socket.read_exact(&mut head[1..]).is_err() {
                return;
            }
            let [request, flags, size] = words(head);
            let mut payload = vec![0; size as usize];
            socket.read_exact(&mut payload).unwrap();
            self.heard.lock().unwrap().push((request, payload.clone()));
            match files.into_iter().next() {
                Some(own) if request == 21 => *self.own.lock().unwrap() = Some(own.into()),
                Some(file) => drop(self.files.lock().unwrap().insert(request, file.into())),
                None => {}
            }
            let mut answer = match request {
                1 => self.features.to_ne_bytes().to_vec(),
                15 => self.protocol.to_ne_bytes().to_vec(),
                17 => 4u64.to_ne_bytes().to_vec(),
                24 => {
                    // As many sectors as it was asked for them.
                    let heard = self.heard.lock().unwrap();
                    let times = heard.iter().filter(|(request, _)| *request == 24).count();
                    let mut answer = payload.clone();
                    answer[12..20].copy_from_slice(&(times as u64).to_le_bytes());
                    answer
                }
                11 => payload.clone(),
                31 => {
                    let mut answer = payload.clone();
                    answer[..8].copy_from_slice(&0x4000u64.to_ne_bytes());
                    answer
                }
                _ if flags & 8 != 0 => vec![0; 8],
                _ => continue,
            };
            let (mut request, mut flags, mut size) = (request, 5u32, answer.len() as u32);
            let mut files = if request == 31 {
                vec![self.in_flight.as_raw_fd()]
            } else {
                vec![]
            };
            let times = || {
                let heard = self.heard.lock().unwrap();
                let same = heard.iter().filter(|(other, _)| *other == request);
                same.count()
            };
            if request == self.at && times() > self.spared {
                match self.lie {
                    Lie::Silence => continue,
                    Lie::HalfAnAnswer => answer.truncate(3),
                    Lie::HangUp => {
                        // For whoever else has it too.
                        let _ = socket.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                    Lie::OtherRequest => request = 99,
                    Lie::NoReply => flags = 1,
                    Lie::OtherVersion => flags = 6,
                    Lie::Longer => size += 4,
                    Lie::Shorter => size -= 4,
                    Lie::Huge => size = u32::MAX,
                    Lie::File => files.push(self.in_flight.as_raw_fd()),
                    Lie::Files => files = vec![self.in_flight.as_raw_fd(); 12],
                    Lie::Value(value) => answer[..8].copy_from_slice(&value.to_ne_bytes()),
                }
            }
            let message = [
                &request.to_ne_bytes()[..],
                &flags.to_ne_bytes(),
                &size.to_ne_bytes(),
                &answer,
            ]
            .concat();
            // The other end may have gone meanwhile.
            let _ = socket.send_with_fds(&[&message[..1]], &files);
            let _ = socket.write_all(&message[1..]);
        }
    }
}

/// Fills `bytes`, at most what one message begins with, and the files beside it.
fn first(socket: &UnixStream, bytes: &mut [u8]) -> Option<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut beside, flags);
    let files = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let files = files.flatten().collect();
    (got.ok()?.bytes > 0).then_some(files)
}

fn words(bytes: [u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()))
}

/// What connecting to a back end that lies so comes to.
fn connect(at: u32, lie: Lie, patience: Duration) -> String {
    let options = Options::block().with_patience(patience);
    let socket = Liar::new(at, lie).serve();
    match device(socket, options, &shared_memory()) {
        Ok(_) => "connected".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Requests that are answered while connecting, and their names.
const CONNECTING: [(u32, &str); 6] = [
    (1, "GET_FEATURES"),
    (15, "GET_PROTOCOL_FEATURES"),
    (3, "SET_OWNER"),
    (21, "SET_BACKEND_REQ_FD"),
    (17, "GET_QUEUE_NUM"),
    (24, "GET_CONFIG"),
];

#[test]
fn each_wrong_answer_is_told_with_what_was_asked() {
    for (at, name) in CONNECTING {
        let said = |lie| connect(at, lie, PATIENCE);
        assert_eq!(
            said(Lie::HangUp),
            format!("the back end is gone: it was asked for {name}")
        );
        assert_eq!(
            said(Lie::OtherRequest),
            format!("the back end answered {name} with message 99 and flags 0x5")
        );
        for (lie, flags) in [(Lie::NoReply, 1), (Lie::OtherVersion, 6)] {
            assert_eq!(
                said(lie),
                format!("the back end answered {name} with message {at} and flags {flags:#x}")
            );
        }
        let length: u32 = if at == 24 { 12 + 0x3c } else { 8 };
        for (lie, given) in [
            (Lie::Longer, length + 4),
            (Lie::Shorter, length - 4),
            (Lie::Huge, u32::MAX),
        ] {
            assert_eq!(
                said(lie),
                format!("the back end answered {name} with {given} bytes instead of {length}")
            );
        }
        assert_eq!(
            said(Lie::File),
            format!("the back end answered {name} with 1 files instead of 0")
        );
        let many = said(Lie::Files);
        assert!(
            many.starts_with(&format!("the back end answered {name} with ")),
            "{many}"
        );
        assert!(many.ends_with(" files instead of 0"), "{many}");
    }
    for (at, name) in [(3, "SET_OWNER"), (21, "SET_BACKEND_REQ_FD")] {
        assert_eq!(
            connect(at, Lie::Value(22), PATIENCE),
            format!("the back end refused {name} with code 22")
        );
    }
    assert_eq!(
        connect(1, Lie::Value(1 << 30), PATIENCE),
        "the back end has no virtio 1 (VIRTIO_F_VERSION_1)"
    );
    assert_eq!(
        connect(15, Lie::Value(0), PATIENCE),
        "the back end has no configuration space (VHOST_USER_PROTOCOL_F_CONFIG)"
    );
    assert_eq!(
        connect(17, Lie::Value(0), PATIENCE),
        "1 queues, and the back end has 0"
    );
    assert!(
        connect(24, Lie::Value(5), PATIENCE).starts_with("the back end answered GET_CONFIG with ")
    );
    assert_eq!(connect(99, Lie::HangUp, PATIENCE), "connected");
}

#[test]
fn nothing_is_waited_for_without_end() {
    // All at once: each waits its time.
    let patience = Duration::from_secs(5);
    let asking: Vec<_> = CONNECTING
        .into_iter()
        .flat_map(|(at, name)| [(at, name, Lie::Silence), (at, name, Lie::HalfAnAnswer)])
        .map(|(at, name, lie)| thread::spawn(move || (name, connect(at, lie, patience))))
        .collect();
    for thread in asking {
        let (name, said) = thread.join().unwrap();
        assert_eq!(
            said,
            format!("the back end has not answered {name} within 5s")
        );
    }
}

#[test]
fn a_back_end_that_fails_at_the_start_is_lost_and_the_driver_is_not() {
    for (at, name) in [
        (2, "SET_FEATURES"),
        (5, "SET_MEM_TABLE"),
        (31, "GET_INFLIGHT_FD"),
        (32, "SET_INFLIGHT_FD"),
        (8, "SET_VRING_NUM"),
        (10, "SET_VRING_BASE"),
        (9, "SET_VRING_ADDR"),
        (14, "SET_VRING_ERR"),
        (13, "SET_VRING_CALL"),
        (12, "SET_VRING_KICK"),
        (18, "SET_VRING_ENABLE"),
    ] {
        for lie in [Lie::HangUp, Lie::Shorter, Lie::File, Lie::Value(1)] {
            let socket = Liar::new(at, lie).serve();
            let mut guest = guest(socket, Options::block().with_patience(PATIENCE));
            let mut rings = guest.start(ALL, &[0]);
            let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
            guest.kick(0);
            assert_eq!(
                taken(&mut guest, &mut rings[0]).head,
                u32::from(head),
                "{name} {lie:?}"
            );
            assert_eq!(guest.read(STATUS, 1)[0], IO_ERROR);
            let told = guest.told.lock().unwrap().clone();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(name), "{name} {lie:?}: {told:?}");
        }
    }
}

#[test]
fn a_queue_that_does_not_stop_as_it_should() {
    // Another queue's; not an index; one that was never used.
    let half = |high: u64, low: u64| high << 32 | low;
    for (value, patience, what) in [
        (
            half(0, 1),
            PATIENCE,
            "GET_VRING_BASE with 0x1, which is no index of that queue",
        ),
        (
            half(0x1_0000, 0),
            PATIENCE,
            "GET_VRING_BASE with 0x1000000000000, which is no index",
        ),
        (
            half(7, 0),
            Duration::from_secs(2),
            "stopped queue 0 at 7, and has finished only what is before 0",
        ),
    ] {
        let socket = Liar::new(11, Lie::Value(value)).serve();
        let mut guest = guest(socket, Options::block().with_patience(patience));
        let mut rings = guest.start(ALL, &[0]);
        guest.pause();
        guest.resume();
        let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
        guest.kick(0);
        assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
        let told = guest.told.lock().unwrap().clone();
        assert!(told.len() == 1 && told[0].contains(what), "{told:?}");
    }
}

#[test]
fn what_it_is_told_word_by_word() {
    let liar = Liar::new(99, Lie::HangUp);
    let heard = liar.heard.clone();
    let mut guest = guest(liar.serve(), Options::block().with_queues(2));
    let _rings = guest.start(ALL, &[0, 1]);
    guest.pause();
    let heard = heard.lock().unwrap();
    let numbers: Vec<_> = heard.iter().map(|(request, _)| *request).collect();
    let queues = [8, 10, 9, 8, 10, 9, 14, 13, 12, 14, 13, 12, 18, 18];
    let expected = [
        &[1, 15, 16, 3, 21, 17, 24, 2, 5, 31, 32][..],
        &queues,
        &[18, 11, 18, 11],
    ];
    assert_eq!(numbers, expected.concat());
    let told = |request: u32| -> Vec<u8> {
        let found = heard.iter().filter(|(number, _)| *number == request);
        found.flat_map(|(_, payload)| payload.clone()).collect()
    };
    let bytes = |words: &[u64]| {
        words
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect::<Vec<_>>()
    };
    // Only what both can do.
    assert_eq!(told(16), bytes(&[0x1229]));
    assert_eq!(told(2), bytes(&[1 << 32 | 1 << 30 | IN_ORDER]));
    // Offset 0, 60 bytes, no flags, and room for them.
    let mut config = [0u32, 60, 0].map(u32::to_ne_bytes).concat();
    config.extend([0; 60]);
    assert_eq!(told(24), config);
    // Two regions: the guest's address, length, ours, and where in the file.
    let table = told(5);
    assert_eq!(table.len(), 8 + 2 * 32);
    assert_eq!(table[..8], [2u32.to_ne_bytes(), [0; 4]].concat());
    let word = |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let ours = word(&table, 24);
    assert_eq!(
        [word(&table, 8), word(&table, 16), word(&table, 32)],
        [0, 0x10_0000, 0]
    );
    assert_eq!(
        [word(&table, 40), word(&table, 48), word(&table, 64)],
        [0x10_0000, 0x10_0000, 0x10_0000]
    );
    // Queue and flags, then descriptors, used ring, available ring by our addresses, and no log.
    let places = told(9);
    for (queue, place) in (0u16..).zip(places.chunks(40)) {
        let base = ring_at(queue);
        let available = base + 16 * 64;
        assert_eq!(
            place[..8],
            [u32::from(queue).to_ne_bytes(), [0; 4]].concat()
        );
        let used = (available + 6 + 2 * 64).next_multiple_of(4096);
        assert_eq!(
            [8, 16, 24, 32].map(|at| word(place, at)),
            [ours + base, ours + used, ours + available, 0]
        );
    }
    let state = |pairs: [[u32; 2]; 2]| {
        pairs
            .as_flattened()
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect::<Vec<_>>()
    };
    assert_eq!(told(8), state([[0, 64], [1, 64]]));
    assert_eq!(told(10), state([[0, 0], [1, 0]]));
    assert_eq!(told(11), state([[0, 0], [1, 0]]));
    assert_eq!(
        told(18),
        [state([[0, 1], [1, 1]]), state([[0, 0], [1, 0]])].concat()
    );
    // The queue's number, with a file beside it.
    for request in [12, 13, 14] {
        assert_eq!(told(request), bytes(&[0, 1]));
    }
}

/// What it had begun is told by the memory that outlives it: those first, in the order in which they were begun.
#[test]
fn what_was_begun_is_refused_first() {
    let mut liar = Liar::new(99, Lie::HangUp);
    liar.features &= !IN_ORDER;
    let (heard, in_flight) = (liar.heard.clone(), liar.in_flight.try_clone().unwrap());
    let (socket, theirs) = UnixStream::pair().unwrap();
    let hang_up = theirs.try_clone().unwrap();
    thread::spawn(move || liar.run(theirs));
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    let ring = &mut rings[0];
    let heads = [0; 3].map(|_| submit(&mut guest, ring, 0, 0, 512));
    guest.kick(0);
    assert_eq!(heads, [0, 3, 6]);
    // Version 1, 64 descriptors, nothing used; 3 was begun, then 0.
    let mut area = vec![0; 16 + 16 * 64];
    area[8] = 1;
    area[10] = 64;
    for (head, counter) in [(3, 1), (0, 2)] {
        area[16 + 16 * head] = 1;
        area[16 + 16 * head + 8] = counter;
    }
    in_flight.write_all_at(&area, 0).unwrap();
    assert!(
        heard
            .lock()
            .unwrap()
            .iter()
            .any(|(request, _)| *request == 32)
    );
    hang_up.shutdown(std::net::Shutdown::Both).unwrap();
    let order = [0; 3].map(|_| taken(&mut guest, ring).head);
    assert_eq!(order, [3, 0, 6]);
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn in_flight_memory_that_lies() {
    let mut liar = Liar::new(99, Lie::HangUp);
    liar.features &= !IN_ORDER;
    let in_flight = liar.in_flight.try_clone().unwrap();
    let (socket, theirs) = UnixStream::pair().unwrap();
    let hang_up = theirs.try_clone().unwrap();
    thread::spawn(move || liar.run(theirs));
    let mut guest = guest(socket, Options::block());
    let _rings = guest.start(ALL, &[0]);
    // Of another version: nobody knows.
    let mut area = vec![0; 16 + 16 * 64];
    area[8] = 2;
    area[10] = 64;
    in_flight.write_all_at(&area, 0).unwrap();
    hang_up.shutdown(std::net::Shutdown::Both).unwrap();
    until(&mut guest, "DEVICE_NEEDS_RESET", |guest| {
        (guest.status() & NEEDS_RESET != 0).then_some(())
    });
}

#[test]
fn what_nobody_asked_for_ends_it() {
    let (socket, mut theirs) = UnixStream::pair().unwrap();
    let liar = Liar::new(99, Lie::HangUp);
    let serving = theirs.try_clone().unwrap();
    thread::spawn(move || liar.run(serving));
    let mut guest = guest(socket, Options::block());
    let mut rings = guest.start(ALL, &[0]);
    theirs.write_all(&[1]).unwrap();
    let head = submit(&mut guest, &mut rings[0], 0, 0, 512);
    guest.kick(0);
    assert_eq!(taken(&mut guest, &mut rings[0]).head, u32::from(head));
    let told = guest.told.lock().unwrap().clone();
    assert!(
        told[0].ends_with("the back end sent what nobody asked for"),
        "{told:?}"
    );
}

/// Waits for the channel that the back end was given, and speaks to it in raw words.
fn own_channel(own: &Mutex<Option<UnixStream>>) -> UnixStream {
    let channel = own.lock().unwrap().take();
    channel.expect("no channel for its own requests")
}

#[test]
fn its_own_requests_are_answered() {
    let liar = Liar::new(99, Lie::HangUp);
    let own = liar.own.clone();
    let mut guest = guest(liar.serve(), Options::block());
    let _rings = guest.start(ALL, &[0]);
    assert_eq!(guest.config(0, 8), 1);
    guest.vectors.take();
    let mut channel = own_channel(&own);
    let mut ask = |request: u32, flags: u32, payload: &[u8]| {
        let head = [request, flags, payload.len() as u32]
            .map(u32::to_ne_bytes)
            .concat();
        channel.write_all(&[&head[..], payload].concat()).unwrap();
    };
    // The configuration has changed; it wants to know that we know.
    ask(2, 9, &[]);
    until(&mut guest, "interrupt for the configuration", |guest| {
        guest.vectors.delivered().contains(&0).then_some(())
    });
    assert_eq!(guest.config(0, 8), 2);
    // Nobody knows what 77 is, and nobody is asked for an answer at first.
    ask(77, 1, &[1, 2, 3]);
    ask(77, 9, &[0; 40]);
    guest.step();
    let mut answers = [0; 40];
    channel.read_exact(&mut answers).unwrap();
    let expected = [[2u32, 5, 8, 0, 0], [77, 5, 8, 1, 0]]
        .as_flattened()
        .to_vec();
    assert_eq!(
        answers.to_vec(),
        expected
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect::<Vec<_>>()
    );
    assert!(guest.told.lock().unwrap().is_empty());
    // What is no request ends it.
    channel
        .write_all(&[2u32, 1, u32::MAX].map(u32::to_ne_bytes).concat())
        .unwrap();
    until(&mut guest, "end", |guest| {
        (!guest.told.lock().unwrap().is_empty()).then_some(())
    });
    assert!(guest.told.lock().unwrap()[0].ends_with("the back end sent what nobody asked for"));
}
