// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another machine that lies, and a driver that does: the connection ends, and the device takes the next.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use hvkit_virtio_devices::fake::Buffer::Writable;
use rustix::fs::SealFlags;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::program::{Program, ROOM, memory_file, message, table};

const SHRINK: SealFlags = SealFlags::SHRINK;

/// What is said of a connection on which `raw` comes with `files`.
fn end(program: &mut Program, raw: &[u8], files: &[RawFd]) -> String {
    let mut stream = program.connect();
    // Some cases end it before all is sent.
    let _ = stream.send_with_fds(&[raw], files);
    program.until("end", |program| (program.status() == 0).then_some(()));
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "it is hung up");
    program.want();
    program.told.lock().unwrap().last().unwrap().clone()
}

#[test]
fn tables_that_make_no_sense() {
    let file = |length, seals| memory_file(length, seals);
    let sealed = || file(0x10_0000, SHRINK);
    let disk = || OwnedFd::from(tempfile::tempfile().unwrap());
    let good = [0, 0x1000, 0x5000_0000, 0];
    let cases: Vec<(Vec<u8>, Vec<OwnedFd>, &str)> = vec![
        (table(0, &[]), vec![], "with 8 bytes and 0 files"),
        (table(1, &[good]), vec![], "with 40 bytes and 0 files"),
        (
            table(1, &[good]),
            vec![sealed(), sealed()],
            "with 40 bytes and 2 files",
        ),
        (
            table(2, &[good]),
            vec![sealed(), sealed()],
            "with 40 bytes and 2 files",
        ),
        (
            table(u32::MAX, &[good]),
            vec![sealed()],
            "with 40 bytes and 1 files",
        ),
        (table(9, &[good; 9]), vec![], "with 296 bytes and 0 files"),
        (vec![1, 0, 0], vec![sealed()], "with 3 bytes and 1 files"),
        (
            table(1, &[good])[..39].to_vec(),
            vec![sealed()],
            "with 39 bytes",
        ),
        (
            table(1, &[[0, 0, 0, 0]]),
            vec![sealed()],
            "region 0 of 0x0 bytes",
        ),
        (
            table(1, &[[0, 0x1000, 0, !0xfff]]),
            vec![sealed()],
            "region 0 of 0x1000 bytes from 0xfffffffffffff000",
        ),
        (
            table(2, &[good, [0, 0x800, 0, 0x1000]]),
            vec![sealed(), sealed()],
            "region 1 of 0x800 bytes from 0x1000, which are not whole pages",
        ),
        (
            table(1, &[[0, 0x1000, 0, 0x800]]),
            vec![sealed()],
            "not whole pages",
        ),
        (
            table(1, &[[0, 0x1000, 0, 0x10_0000]]),
            vec![sealed()],
            "region 0 that ends at 0x101000 in a file of 0x100000 bytes",
        ),
        (
            table(2, &[[0, 0x8_0000, 0, 0], [0, 0x1000, 0, 0x8_0000]]),
            vec![sealed(), sealed()],
            "region 1 that does not fit: the window has 0x100000 bytes",
        ),
        // Files that can be made shorter: not sealed so, sealed otherwise, not in memory, no file.
        (
            table(1, &[good]),
            vec![file(0x1000, SealFlags::empty())],
            "region 0 in a file that is not in memory or not sealed",
        ),
        (
            table(1, &[good]),
            vec![file(0x1000, SealFlags::GROW)],
            "not sealed",
        ),
        (table(1, &[good]), vec![disk()], "not sealed"),
        (
            table(1, &[good]),
            vec![std::io::pipe().unwrap().0.into()],
            "not sealed",
        ),
    ];
    let mut program = Program::ready();
    for (payload, files, expected) in cases {
        let files: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let said = end(&mut program, &message(5, 1, &payload), &files);
        assert!(said.contains("SET_MEM_TABLE"), "{said}");
        assert!(said.contains(expected), "{said}, not {expected}");
        assert!(program.host.places().is_empty());
    }
    // And one that does, of the whole window.
    let stream = program.connect();
    let raw = message(5, 9, &table(1, &[[0, ROOM, 0, 0]]));
    stream
        .send_with_fds(&[&raw[..]], &[sealed().as_raw_fd()])
        .unwrap();
    assert_eq!(program.next_message().0, 5);
    assert_eq!(program.host.places().len(), 1);
    // A table that is refused leaves the one before.
    let raw = message(5, 9, &table(1, &[good]));
    stream
        .send_with_fds(&[&raw[..]], &[disk().as_raw_fd()])
        .unwrap();
    program.until("end", |program| (program.status() == 0).then_some(()));
    assert_eq!(program.host.places().len(), 1);
}

#[test]
fn messages_that_make_no_sense() {
    let event = EventFd::new(0).unwrap();
    let file = tempfile::tempfile().unwrap();
    let (event, file) = (event.as_raw_fd(), file.as_raw_fd());
    let long = [&[2, 0, 0, 0, 1, 0, 0, 0][..], &4097u32.to_ne_bytes()].concat();
    let number = |value: u64| value.to_ne_bytes();
    let mut program = Program::ready();
    for (raw, files, expected) in [
        (
            long,
            vec![],
            "it sent SET_FEATURES with flags 0x1 and 4097 bytes",
        ),
        (message(1, 0, &[]), vec![], "GET_FEATURES with flags 0x0"),
        (message(1, 2, &[]), vec![], "GET_FEATURES with flags 0x2"),
        (message(99, 5, &[]), vec![], "request 99 with flags 0x5"),
        (message(1, 1, &[]), vec![event], "GET_FEATURES with 1 files"),
        (
            message(21, 1, &[]),
            vec![event],
            "SET_BACKEND_REQ_FD with 1 files",
        ),
        (
            message(32, 1, &[]),
            vec![event; 2],
            "SET_INFLIGHT_FD with 2 files",
        ),
        (
            message(12, 1, &[]),
            vec![event],
            "SET_VRING_KICK with 1 files",
        ),
        (
            message(12, 1, &number(0)),
            vec![],
            "SET_VRING_KICK with 0 files",
        ),
        (
            message(12, 1, &number(0)),
            vec![event; 2],
            "SET_VRING_KICK with 2 files",
        ),
        (
            message(13, 1, &number(0x100)),
            vec![event],
            "SET_VRING_CALL with 1 files",
        ),
        (
            message(13, 1, &number(16)),
            vec![event],
            "SET_VRING_CALL for queue 16 of 16",
        ),
        (
            message(14, 1, &number(0x1_0000)),
            vec![event],
            "SET_VRING_ERR for queue 65536 of 16",
        ),
        (
            message(12, 1, &number(u64::MAX)),
            vec![],
            "SET_VRING_KICK for queue 18446744073709551359",
        ),
        // What no one can wait for.
        (
            message(12, 1, &number(0)),
            vec![file],
            "SET_VRING_KICK with a file that is no event",
        ),
        (message(1, 1, &[]), vec![event; 12], "invalid data"),
    ] {
        let said = end(&mut program, &raw, &files);
        assert!(said.contains(expected), "{said}, not {expected}");
        assert!(program.host.doorbells().is_empty());
    }
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let mut program = Program::ready();
    let mut stream = program.connect();
    for byte in message(2, 1, &7u64.to_ne_bytes()) {
        assert_eq!(program.message(), None);
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(program.next_message(), (2, 1, 7u64.to_ne_bytes().to_vec()));
    // Two at once are two; an unknown one is carried.
    let both = [message(3, 9, &[]), message(0x1234_5678, 1, &[1, 2, 3])].concat();
    stream.write_all(&both).unwrap();
    assert_eq!(program.next_message(), (3, 9, vec![]));
    assert_eq!(program.next_message(), (0x1234_5678, 1, vec![1, 2, 3]));
    // Half a one, and the end.
    stream.write_all(&message(3, 1, &[])[..5]).unwrap();
    drop(stream);
    program.until("end", |program| (program.status() == 0).then_some(()));
}

#[test]
fn only_one_at_a_time_is_connected_and_only_if_the_driver_wants() {
    let mut program = Program::new();
    let mut first = std::os::unix::net::UnixStream::connect(&program.socket).unwrap();
    let mut second = std::os::unix::net::UnixStream::connect(&program.socket).unwrap();
    for index in 0..8 {
        program.offer(index);
    }
    first.write_all(&message(1, 1, &[])).unwrap();
    second.write_all(&message(3, 1, &[])).unwrap();
    assert_eq!((program.message(), program.status()), (None, 0));
    program.want();
    assert_eq!(program.next_message().0, 1);
    assert_eq!((program.message(), program.status()), (None, 3));
    // The driver gives it up: it is hung up. A read-only bit of the status is nobody's to write.
    program.guest.set_config(0, &[2, 0, 0, 0]);
    program.until("end", |program| {
        (program.told.lock().unwrap().len() == 2).then_some(())
    });
    assert_eq!(program.status(), 0);
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    program.want();
    assert_eq!(program.next_message().0, 3);
    // So does a reset; the socket is there for the next.
    program.guest.set_status(0);
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    assert_eq!(program.status(), 0);
    assert!(program.socket.exists());
    let socket = program.socket.clone();
    drop(program);
    assert!(!socket.exists());
}

#[test]
fn answers_say_no_more_than_can_be_carried() {
    let mut program = Program::ready();
    let mut stream = program.connect();
    let mut heard = |program: &mut Program, raw: &[u8]| {
        program.send(raw);
        let mut answer = vec![0; raw.len()];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    let answer = |request, value: u64| message(request, 5, &value.to_ne_bytes());
    // Of the protocol's features MQ, REPLY_ACK and CONFIG; of queues 16; anything else as it is.
    assert_eq!(
        heard(&mut program, &answer(15, u64::MAX)),
        answer(15, 0x209)
    );
    assert_eq!(heard(&mut program, &answer(17, 64)), answer(17, 16));
    assert_eq!(heard(&mut program, &answer(17, 2)), answer(17, 2));
    assert_eq!(
        heard(&mut program, &answer(1, u64::MAX)),
        answer(1, u64::MAX)
    );
    let config = message(24, 5, &[7; 72]);
    assert_eq!(heard(&mut program, &config), config);
    // What is no answer ends the connection, and is dropped where there is none.
    for raw in [
        message(1, 1, &[0; 8]),
        message(1, 6, &[0; 8]),
        message(1, 5, &[0; 8])[..19].to_vec(),
        vec![1, 2, 3],
        message(1, 5, &[0; 4097]),
    ] {
        let mut stream = match program.status() {
            3 => None,
            _ => Some(program.connect()),
        };
        program.send(&raw);
        program.until("end", |program| (program.status() == 0).then_some(()));
        let said = program.told.lock().unwrap().last().unwrap().clone();
        let length = raw.len();
        assert_eq!(
            said,
            format!("the guest's program sent {length} bytes that are no answer")
        );
        if let Some(stream) = &mut stream {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        program.send(&raw);
        assert_eq!(program.status(), 0);
        program.want();
    }
}

#[test]
fn what_the_driver_has_no_room_for_waits_and_too_little_room_is_its_defect() {
    let mut program = Program::new();
    program.want();
    let mut stream = program.connect();
    for request in 1..4 {
        stream.write_all(&message(request, 1, &[])).unwrap();
    }
    for request in 1..4 {
        assert_eq!(program.message(), None);
        program.receive.submit(&[Writable(0x4_0000, 12)]);
        program.guest.kick(0);
        let used = program.until("message", |program| program.receive.take());
        assert_eq!(used.length, 12);
        assert_eq!(program.guest.read(0x4_0000, 1), [request as u8]);
    }
    let mut program = Program::new();
    program.want();
    let mut stream = program.connect();
    program.receive.submit(&[Writable(0x4_0000, 19)]);
    stream.write_all(&message(2, 1, &[0; 8])).unwrap();
    program.until("failure", |program| {
        (program.guest.status() & 0x40 != 0).then_some(())
    });
    assert_eq!(
        *program.guest.told.lock().unwrap(),
        ["queue 0: chain 0 has no room for an answer"]
    );
    // A queue that makes no sense, too.
    let mut program = Program::ready();
    program.transmit.offer(64);
    program.guest.kick(1);
    program.until("failure", |program| {
        (program.guest.status() & 0x40 != 0).then_some(())
    });
}

#[test]
fn a_socket_that_is_somebodys_is_refused() {
    use hvkit_virtio_devices::vhost_user::GuestBackEnd;
    use hvkit_virtio_devices::vhost_user::to_guest::Options;
    use std::sync::Arc;
    let made = |path: &std::path::Path| {
        let host = Arc::new(super::program::FakeHost::default());
        GuestBackEnd::new(path, Options::new(), host, |_| {}).map(drop)
    };
    let program = Program::new();
    let said = made(&program.socket).unwrap_err().to_string();
    assert_eq!(
        said,
        format!("{} is in use, or no socket", program.socket.display())
    );
    let absent = program.socket.join("absent");
    let said = made(&absent).unwrap_err().to_string();
    assert!(
        said.starts_with(&format!("cannot listen at {}: ", absent.display())),
        "{said}"
    );
}

/// What it says before it hangs up belongs to its connection, and not to the next.
#[test]
fn last_words_are_heard_at_once() {
    let mut program = Program::ready();
    let mut stream = program.connect();
    stream.write_all(&message(1, 1, &[])).unwrap();
    drop(stream);
    program.until("end", |program| (program.status() == 0).then_some(()));
    assert_eq!(program.message().map(|(request, ..)| request), Some(1));
    program.want();
    let mut stream = program.connect();
    stream.write_all(&message(15, 1, &[])).unwrap();
    assert_eq!(program.next_message().0, 15);
    // The same for what comes before nonsense.
    let nonsense = [message(1, 1, &[]), message(1, 0, &[])].concat();
    stream.write_all(&nonsense).unwrap();
    program.until("end", |program| (program.status() == 0).then_some(()));
    assert_eq!(program.message().map(|(request, ..)| request), Some(1));
    assert_eq!(program.message(), None);
}
