// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A server of bytes: one that asks for memory, and those that do not begin or go on as they should. What it sends and
//! gets is spelled here after the specification's figures.

use crate::machine::{Machine, device, until};
use crate::support::Folder;
use hvkit_vmm::passthrough::PhysicalFunction;
use hvkit_vmm::vfio_user::{Access, Astray, Given, check};
use hvkit_vmm::viommu::DmaTable;
use hvkit_vtd_iommu::emulation::Mapping;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use vm_memory::{Bytes, GuestAddress};

/// Command, flags, error number, and what follows.
type Message = (u16, u32, u32, Vec<u8>);

const REPLY: u32 = 1;
const FAILED: u32 = 0x21;

fn send(stream: &UnixStream, id: u16, (command, flags, error, body): Message) {
    let size = 16 + body.len() as u32;
    let mut bytes = [id.to_ne_bytes(), command.to_ne_bytes()].concat();
    for word in [size, flags, error] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(body);
    // The other end may have hung up.
    let _ = (&*stream).write_all(&bytes);
}

/// The next message and its identifier; none at the end.
fn receive(stream: &UnixStream) -> Option<(u16, Message)> {
    let mut head = [0; 16];
    (&*stream).read_exact(&mut head).ok()?;
    let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
    let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(4) as usize - 16];
    (&*stream).read_exact(&mut body).ok()?;
    Some((half(0), (half(2), word(8), word(12), body)))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What an honest server with one page of registers and one vector of MSI answers.
fn honest(command: u16, body: &[u8]) -> Message {
    let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
    let answer = match command {
        1 => [&[0, 0, 1, 0][..], b"{}\0"].concat(),
        4 => words(&[16, 3, 9, 5]),
        5 => {
            let length = if word(8) == 0 { 0x1000 } else { 0 };
            words(&[32, 3, word(8), 0, length, 0, 0, 0])
        }
        7 => words(&[16, 1, word(8), u32::from(word(8) == 1)]),
        9 => [&body[..16], &vec![0x5a; word(12) as usize]].concat(),
        _ => Vec::new(),
    };
    (command, REPLY, 0, answer)
}

/// Listens at `socket`, and answers each message by `answer`, or hangs up.
fn serve(
    socket: &Path,
    mut answer: impl FnMut(&UnixStream, u16, &[u8]) -> Option<Message> + Send + 'static,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        while let Some((id, (command, flags, _, body))) = receive(&stream) {
            match answer(&stream, command, &body) {
                Some(message) if flags & 0x10 == 0 => send(&stream, id, message),
                Some(_) => {}
                None => return,
            }
        }
    })
}

#[test]
fn a_server_without_files_reaches_what_is_mapped_and_nothing_else() {
    let folder = Folder::new();
    let socket = folder.path("socket");
    let answers = Arc::<Mutex<Vec<Message>>>::default();
    let seen = Arc::clone(&answers);
    // Asked to read at an offset, it asks for memory at that address before it answers; to write, likewise.
    serve(&socket, move |stream, command, body| {
        let long = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        let transfer = |count: u64, data: &[u8]| {
            let place = [long(0) << 12, count].map(u64::to_ne_bytes).concat();
            [&place[..], data].concat()
        };
        let asked = match (command, body.get(8)) {
            (9, Some(0)) => Some((11, 0, 0, transfer(4, &[]))),
            (10, _) => Some((12, 0, 0, transfer(4, b"abcd"))),
            _ => None,
        };
        if let Some(message) = asked {
            send(stream, 0x7777, message);
            let (id, answer) = receive(stream)?;
            assert_eq!(id, 0x7777);
            seen.lock().unwrap().push(answer);
        }
        Some(honest(command, body))
    });
    let machine = Machine::new();
    let function = machine.open(&socket).unwrap();
    let astray = Arc::<Mutex<Vec<Astray>>>::default();
    let tell = Arc::clone(&astray);
    function
        .news()
        .tell_astray(Box::new(move |one| tell.lock().unwrap().push(one)));
    machine
        .ram
        .write_slice(b"read", GuestAddress(0x6000))
        .unwrap();
    let piece = Mapping {
        first: 0x10_0000,
        last: 0x10_0fff,
        target: 0x6000,
        reads: true,
        writes: false,
    };
    let mut table = function.table(Given::Nothing);
    table.map(piece).unwrap();
    let mut byte = [0];
    let mut read = |offset| function.bar_read(0, offset, &mut byte);
    // The page that is mapped, and the one behind it.
    read(0x100);
    read(0x101);
    // Not to be written: a posted write, and a read after it, which comes when that is done.
    function.bar_write(0, 0x100, &[0]);
    until("the refusal", || answers.lock().unwrap().len() == 3);
    table.unmap(piece).unwrap();
    read(0x100);
    assert_eq!(byte, [0x5a]);
    let place = |address: u64| [address, 4].map(u64::to_ne_bytes).concat();
    let fault = libc::EFAULT as u32;
    let expected = [
        (11, REPLY, 0, [&place(0x10_0000)[..], b"read"].concat()),
        (11, FAILED, fault, Vec::new()),
        (12, FAILED, fault, Vec::new()),
        (11, FAILED, fault, Vec::new()),
    ];
    assert_eq!(*answers.lock().unwrap(), expected);
    let stray = |address, access| Astray { address, access };
    until("the reports", || astray.lock().unwrap().len() == 3);
    assert_eq!(
        *astray.lock().unwrap(),
        [
            stray(0x10_1000, Access::Read),
            stray(0x10_0000, Access::Write),
            stray(0x10_0000, Access::Read),
        ]
    );
    let word: u32 = machine.ram.read_obj(GuestAddress(0x6000)).unwrap();
    assert_eq!(word.to_ne_bytes(), *b"read");
}

#[test]
fn a_server_that_asks_for_too_much_is_told_so() {
    let folder = Folder::new();
    let socket = folder.path("socket");
    let answers = Arc::<Mutex<Vec<(u16, u32, u32)>>>::default();
    let seen = Arc::clone(&answers);
    serve(&socket, move |stream, command, body| {
        if command == 9 {
            let long = |longs: &[u64]| longs.iter().flat_map(|l| l.to_ne_bytes()).collect();
            for (command, body) in [
                (11, long(&[0, 1 << 32])),
                (11, vec![0; 7]),
                // More than there is.
                (12, long(&[0, 16])),
                // Nothing for a server to ask.
                (9, long(&[0, 0])),
                (99, Vec::new()),
            ] {
                send(stream, 1, (command, 0, 0, body));
                let (_, (command, flags, error, _)) = receive(stream)?;
                seen.lock().unwrap().push((command, flags, error));
            }
        }
        Some(honest(command, body))
    });
    let machine = Machine::new();
    let function = machine.open(&socket).unwrap();
    let mut byte = [0];
    function.bar_read(0, 0, &mut byte);
    assert_eq!(byte, [0x5a]);
    let errors = [
        (11, libc::E2BIG),
        (11, libc::EINVAL),
        (12, libc::EINVAL),
        (9, libc::EOPNOTSUPP),
        (99, libc::EOPNOTSUPP),
    ];
    let errors = errors.map(|(command, error)| (command, FAILED, error as u32));
    assert_eq!(*answers.lock().unwrap(), errors);
    assert!(!function.is_gone());
}

/// What opening a device says whose server answers `command` as `answer` does, and all else as it should. Whatever that is, the
/// server hears the end.
fn said(command: u16, answer: impl Fn(&[u8]) -> Option<Message> + Send + 'static) -> String {
    let folder = Folder::new();
    let socket = folder.path("socket");
    let server = serve(&socket, move |_, asked, body| {
        if asked == command {
            answer(body)
        } else {
            Some(honest(asked, body))
        }
    });
    let machine = Machine::new();
    let said = match machine.open(&socket) {
        Ok(_) => "fine".to_owned(),
        Err(error) => error.to_string(),
    };
    until("the server hears the end", || server.is_finished());
    said
}

#[test]
fn servers_that_do_not_begin_as_they_should() {
    let reply = |command, body: &[u8]| {
        let body = body.to_vec();
        move |_: &[u8]| Some((command, REPLY, 0, body.clone()))
    };
    let info = |words_of: &[u32]| reply(4, &words(words_of));
    let line = |text: &str| format!("--user-device: edu: {text}");
    let no_server = |text: &str| line(&format!("this is no vfio-user server: {text}"));
    assert_eq!(said(99, |_| None), "fine");
    assert_eq!(said(1, |_| None), no_server("it hung up"));
    assert_eq!(
        said(1, reply(2, &[])),
        no_server("it answers something else")
    );
    let other = "it speaks version 1.0 of the protocol, and this is 0.1";
    assert_eq!(said(1, reply(1, &[1, 0, 0, 0])), line(other));
    let text = "its capabilities are no JSON that says so much";
    assert_eq!(said(1, reply(1, &[0, 0, 1, 0, b'{'])), line(text));
    assert_eq!(
        said(4, info(&[16, 0, 9, 5])),
        line("it is not a PCI device")
    );
    assert_eq!(
        said(4, info(&[16, 2, 7, 5])),
        line("it is not a PCI device")
    );
    let none = "it has neither MSI nor MSI-X, and pins are not supported";
    assert_eq!(said(4, info(&[16, 2, 9, 1])), line(none));
    // More vectors, of both kinds, than a number can add up.
    let many = |body: &[u8]| {
        let answer = [
            &16u32.to_ne_bytes(),
            &1u32.to_ne_bytes(),
            &body[8..12],
            &[0xff; 4],
        ];
        Some((7, REPLY, 0, answer.concat()))
    };
    assert_eq!(said(7, many), "fine");
    // One vector of another kind than was asked for.
    let senseless = line("the answer to DEVICE_GET_IRQ_INFO makes no sense");
    assert_eq!(said(7, reply(7, &words(&[16, 1, 4, 1]))), senseless);
    let senseless = line("the answer to DEVICE_GET_INFO makes no sense");
    assert_eq!(said(4, info(&[16, 2, 9])), senseless);
    let refused = line("DEVICE_RESET was answered with error 5");
    assert_eq!(said(13, |_| Some((13, FAILED, 5, Vec::new()))), refused);
    // Of another command; of registers that were not asked for; with a list of areas that leads nowhere.
    let senseless = line("the answer to DEVICE_GET_REGION_INFO makes no sense");
    assert_eq!(said(5, reply(4, &[0; 32])), senseless);
    assert_eq!(
        said(5, reply(5, &words(&[32, 3, 7, 0, 0, 0, 0, 0]))),
        senseless
    );
    assert_eq!(said(5, |_| None), line("the other process has hung up"));
}

#[test]
fn devices_that_cannot_be_had() {
    let folder = Folder::new();
    let absent = folder.path("absent");
    let error = Machine::new().open(&absent).unwrap_err().to_string();
    let said = format!("--user-device: cannot connect to {}: ", absent.display());
    assert!(error.starts_with(&said), "{error}");
    let (one, other) = (device(Path::new("/a")), device(Path::new("/b")));
    let twice = check(&[one.clone(), other]).unwrap_err().to_string();
    assert_eq!(twice, "--user-device: edu is given twice");
    assert!(check(std::slice::from_ref(&one)).is_ok());
}

#[test]
fn a_server_that_talks_nonsense_is_given_up() {
    for (size, what) in [(8u32, "too short"), (1 << 30, "too long")] {
        let folder = Folder::new();
        let socket = folder.path("socket");
        serve(&socket, move |stream, command, body| {
            if command == 9 {
                let mut raw = vec![0; 16];
                raw[4..8].copy_from_slice(&size.to_ne_bytes());
                raw[8] = 1;
                let _ = (&*stream).write_all(&raw);
            }
            Some(honest(command, body))
        });
        let function = Machine::new().open(&socket).unwrap();
        let mut bytes = [0; 2];
        function.bar_read(0, 0, &mut bytes);
        assert_eq!(bytes, [0xff; 2], "{what}");
        assert!(function.is_gone(), "{what}");
    }
}
