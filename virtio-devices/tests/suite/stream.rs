// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network card whose wire is a stream socket: against the words of the protocol, and against passt.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::Ring;
use hvkit_virtio_devices::net::{FrameStream, Link, LinkState, Net, Options, Wire};

use crate::support::guest::{Guest, Transport};

/// A card, its rings for receiving and sending, its link, and what is at the other end.
fn card(socket: UnixStream, features: u64) -> (Guest, Vec<Ring>, Link) {
    let wire = Wire::Stream(FrameStream::new(socket).unwrap());
    let net = Net::new(Options::new(), wire);
    let link = net.link();
    let mut guest = Guest::new(Box::new(net), Transport::Pci);
    // CTRL_MAC_ADDR, GUEST_ANNOUNCE, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_RX, CTRL_VQ, STATUS and MRG_RXBUF alone: a stream does no part
    // of a frame's work.
    let filters = 1 << 23 | 1 << 20 | 1 << 19 | 1 << 18;
    let expected = filters | 1 << 21 | 1 << 17 | 1 << 16 | 1 << 15;
    assert_eq!(guest.offered() & 0xff_ffff, expected);
    let rings = guest.start(features, &[0, 1]);
    (guest, rings, link)
}

/// VIRTIO_NET_F_MRG_RXBUF, by its number (5.1.3).
const MRG_RXBUF: u64 = 1 << 15;

fn pair(features: u64) -> (Guest, Vec<Ring>, Link, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (guest, rings, link) = card(ours, features);
    (guest, rings, link, theirs)
}

#[test]
fn frames_go_behind_their_length() {
    for features in [u64::MAX, !MRG_RXBUF] {
        frames_behind_their_length(features);
    }
}

fn frames_behind_their_length(features: u64) {
    let (mut guest, mut rings, _, mut end) = pair(features);
    // 12 bytes of header, then 60 of a frame, cut anywhere.
    guest.write(0x8000, &[0; 12]);
    let frame: Vec<u8> = (1..=60).collect();
    guest.write(0x9000, &frame);
    rings[1].submit(&[
        Readable(0x8000, 12),
        Readable(0x9000, 7),
        Readable(0x9007, 53),
    ]);
    guest.run(1);
    assert!(rings[1].take().is_some());
    let mut got = [0; 64];
    end.read_exact(&mut got).unwrap();
    assert_eq!(got[..4], [0, 0, 0, 60]);
    assert_eq!(got[4..], frame);
    // And back: a length in pieces, a frame in pieces, two at once.
    rings[0].submit(&[Writable(0xa000, 10), Writable(0xa00a, 1600)]);
    rings[0].submit(&[Writable(0xb000, 1600)]);
    for part in [&[0, 0][..], &[0, 3], b"ab", b"c\0\0\0\x04defg"] {
        guest.run(0);
        assert_eq!(rings[0].take(), None);
        end.write_all(part).unwrap();
    }
    guest.run(0);
    assert_eq!(rings[0].take().unwrap().length, 15);
    assert_eq!(rings[0].take().unwrap().length, 16);
    // Nothing but `num_buffers`, which is 1.
    assert_eq!(guest.read(0xa000, 15), b"\0\0\0\0\0\0\0\0\0\0\x01\0abc");
    assert_eq!(guest.read(0xb00c, 4), b"defg");
    // One that the driver has no room for is lost, and the next is not.
    rings[0].submit(&[Writable(0xa000, 20)]);
    let long = format!("\0\0\x07\x08{}\0\0\0\x01x", "9".repeat(0x708));
    end.write_all(long.as_bytes()).unwrap();
    guest.run(0);
    // Without merging, the chain is used up for nothing.
    let place = match features & MRG_RXBUF {
        0 => {
            assert_eq!(rings[0].take().unwrap().length, 0);
            0xb000
        }
        _ => 0xa000,
    };
    rings[0].submit(&[Writable(0xb000, 20)]);
    guest.run(0);
    assert_eq!(rings[0].take().unwrap().length, 13);
    assert_eq!(guest.read(place + 12, 1), b"x");
}

#[test]
fn an_end_that_is_gone_or_mad_is_a_link_down() {
    for bytes in [&b""[..], b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\x01\0\x13"] {
        let (mut guest, mut rings, link, mut end) = pair(u64::MAX);
        rings[0].submit(&[Writable(0xa000, 1600)]);
        end.write_all(bytes).unwrap();
        if bytes.is_empty() {
            drop(end);
        }
        guest.run(0);
        assert_eq!(link.state(), LinkState::Down, "{bytes:?}");
        assert_eq!(guest.config(6, 2), 0);
        assert_eq!(rings[0].take(), None);
        // It is told once, and the guest goes on.
        guest.run(0);
        assert_eq!(guest.told.lock().unwrap().len(), 1);
        guest.write(0x8000, &[0; 72]);
        rings[1].submit(&[Readable(0x8000, 72)]);
        guest.run(1);
        assert!(rings[1].take().is_some());
        assert_eq!(guest.status(), 0xf);
    }
}

#[test]
fn a_slow_end_loses_whole_frames_only() {
    let (mut guest, mut rings, _, mut end) = pair(u64::MAX);
    guest.write(0x8000, &[0; 12]);
    let mut sent = 0u32;
    for _ in 0..60 {
        guest.write(0x1_8000, &vec![sent as u8; 60_000]);
        rings[1].submit(&[Readable(0x8000, 12), Readable(0x1_8000, 60_000)]);
        guest.run(1);
        assert!(rings[1].take().is_some());
        sent += 1;
    }
    end.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let error = end.read_to_end(&mut all).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let mut rest = &all[..];
    let mut frames = 0;
    while rest.len() >= 4 + 60_000 {
        assert_eq!(rest[..4], 60_000u32.to_be_bytes());
        let frame = &rest[4..4 + 60_000];
        assert!(frame.iter().all(|byte| *byte == frame[0]));
        rest = &rest[4 + 60_000..];
        frames += 1;
    }
    // Some were lost, and the last may be on its way.
    assert!(frames > 0 && frames < sent, "{frames} of {sent}");
}

/// A passt of our own, which ends with the value.
struct Passt(Child);

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's passt answers a question for a hardware address, as a guest's first frame asks it.
#[test]
fn passt_answers() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/passt"]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passt");
    // It gives up being root, and must be able to make its socket.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let started = Command::new("passt")
        .args([
            "--foreground",
            "--quiet",
            "--address",
            "192.0.2.2",
            "--netmask",
            "24",
        ])
        .args(["--gateway", "192.0.2.1", "--no-map-gw", "-4", "--socket"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut passt = Passt(started.unwrap());
    let began = Instant::now();
    let socket = loop {
        if let Ok(socket) = UnixStream::connect(&path) {
            break socket;
        }
        if let Some(status) = passt.0.try_wait().unwrap() {
            let mut why = String::new();
            passt
                .0
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut why)
                .unwrap();
            // Without user namespaces, or a route to anywhere, it refuses.
            return lab_kit::skip::skip(&format!("passt cannot run here ({status}): {why}"));
        }
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "passt makes no socket"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    let (mut guest, mut rings, _) = card(socket, u64::MAX);
    // ARP: who has 192.0.2.1, tell 192.0.2.2.
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([192, 0, 2, 2]);
    frame.extend([0; 6]);
    frame.extend([192, 0, 2, 1]);
    frame.resize(60, 0);
    guest.write(0x8000, &[0; 12]);
    guest.write(0x9000, &frame);
    for i in 0..8 {
        rings[0].submit(&[Writable(0x2_0000 + 0x1000 * i, 0x1000)]);
    }
    rings[1].submit(&[Readable(0x8000, 12), Readable(0x9000, 60)]);
    guest.run(1);
    let mut place = 0x2_0000;
    let began = Instant::now();
    loop {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "passt does not answer"
        );
        guest.run(0);
        let Some(used) = rings[0].take() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let frame = guest.read(place + 12, used.length as usize - 12);
        place += 0x1000;
        // An answer, for us, of the one that was asked for.
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            assert_eq!(frame[..6], mac);
            assert_eq!(frame[28..32], [192, 0, 2, 1]);
            assert_eq!(frame[38..42], [192, 0, 2, 2]);
            return;
        }
    }
}
