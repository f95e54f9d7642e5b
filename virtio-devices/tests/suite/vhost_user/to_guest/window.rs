// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver finds, and what is shown where as the window moves.

use hvkit_virtio_devices::fake::Region;
use hvkit_virtio_devices::pci::PciFunction;
use rustix::fs::SealFlags;
use std::os::fd::AsRawFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::program::{MEMORY, Program, ROOM, WINDOW, memory_file, message, table};

#[test]
fn a_driver_finds_window_doorbells_notifications_and_memory() {
    let mut program = Program::new();
    let mut id = [0; 4];
    program.function().config_read(0, &mut id);
    // 0x1040 + 43.
    assert_eq!(u32::from_le_bytes(id), 0x106b_1af4);
    let place = |offset, length| Region {
        bar: 2,
        offset,
        length,
    };
    // Doorbells four bytes apart.
    assert_eq!(program.capability(6), (place(0, 64), vec![4, 0, 0, 0]));
    assert_eq!(program.capability(7), (place(0x1000, 4), vec![]));
    // Region 0, and the high halves of offset and length.
    assert_eq!(program.capability(8), (place(MEMORY, ROOM), vec![0; 8]));
    let mut bar = [0; 4];
    program.function().config_write(0x18, &[0xff; 4]);
    program.function().config_read(0x18, &mut bar);
    // 64 bits, prefetchable, 4 MiB.
    assert_eq!(u32::from_le_bytes(bar), 0xffc0_000c);
    // max_vhost_queues; no uuid; one vector a queue and notification, and one for configuration.
    assert_eq!(program.guest.config(4, 4), 16);
    assert_eq!(program.guest.config(8, 8), 0);
    let crate::support::guest::Bus::Pci(driver) = &mut program.guest.bus else {
        unreachable!("it is on PCI");
    };
    let control = driver.msix + 2;
    assert_eq!(driver.config(control, 2) & 0x7ff, 2 + 16);
}

#[test]
fn the_notification_structure_keeps_vectors_that_there_are() {
    let mut program = Program::new();
    let word = |program: &mut Program| {
        let mut raw = [0; 4];
        program.function().bar_read(2, 0x1000, &mut raw);
        u32::from_le_bytes(raw)
    };
    assert_eq!(word(&mut program), 0xffff_0000);
    // Both fields in one write; a vector that there is not; a notification that there is not; half a field.
    for (write, expected) in [
        (0x0012_0003u32, 0x0012_0003),
        (0x0013_0003, 0xffff_0003),
        (0x0001_0010, 0xffff_0010),
    ] {
        program
            .function()
            .bar_write(2, 0x1000, &write.to_le_bytes());
        assert_eq!(word(&mut program), expected);
    }
    program.function().bar_write(2, 0x1001, &[9, 9]);
    assert_eq!(word(&mut program), 0xffff_0010);
    // Around it nothing, doorbells included, and memory that is not shown.
    for at in [0, 0xffe, 0x1004, MEMORY, 0x40_0000 - 2, u64::MAX - 2] {
        let mut raw = [0xee; 2];
        program.function().bar_read(2, at, &mut raw);
        program.function().bar_write(2, at, &[1, 2]);
        assert_eq!(raw, [0, 0], "{at:#x}");
    }
    // A reset forgets them.
    program
        .function()
        .bar_write(2, 0x1000, &0x0004_0002u32.to_le_bytes());
    program.guest.set_status(0);
    assert_eq!(word(&mut program), 0xffff_0000);
}

#[test]
fn memory_and_doorbells_follow_the_window_and_stay_when_the_other_machine_is_gone() {
    let mut program = Program::ready();
    program.choose_vectors();
    let stream = program.connect();
    let file = memory_file(0x9000, SealFlags::SHRINK);
    let files = [file.as_raw_fd(), file.as_raw_fd()];
    // The second from the middle of its file: what is before it has room, and is not shown.
    let regions = [
        [0x10_0000, 0x2000, 0x7000_0000, 0],
        [0, 0x3000, 0x5000_0000, 0x4000],
    ];
    let raw = message(5, 1, &table(2, &regions));
    stream.send_with_fds(&[&raw[..]], &files).unwrap();
    let (request, flags, payload) = program.next_message();
    assert_eq!((request, flags, payload), (5, 1, table(2, &regions)));
    let at = |window: u64| {
        let memory = window + MEMORY;
        vec![(memory, 0, 0x2000), (memory + 0x6000, 0x4000, 0x3000)]
    };
    assert_eq!(program.host.places(), at(WINDOW));
    // Queue 15 has a doorbell; the same event twice is one.
    let call = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    for _ in 0..2 {
        let raw = message(13, 1, &15u64.to_ne_bytes());
        stream
            .send_with_fds(&[&raw[..]], &[call.as_raw_fd()])
            .unwrap();
        assert_eq!(
            program.next_message(),
            (13, 1, 15u64.to_ne_bytes().to_vec())
        );
    }
    assert_eq!(program.host.doorbells(), [WINDOW + 60]);
    assert!(program.host.ring(WINDOW + 60));
    assert_eq!(call.read().unwrap(), 1);
    // The driver moves the window.
    let away = Program::window(WINDOW);
    program.function().window_removed(away);
    assert!(program.host.places().is_empty() && program.host.doorbells().is_empty());
    let other = 0x30_0000_0000;
    program.place(other);
    assert_eq!(program.host.places(), at(other));
    assert_eq!(program.host.doorbells(), [other + 60]);
    // No event: no doorbell.
    let raw = message(13, 1, &(15u64 | 0x100).to_ne_bytes());
    stream.send_with_fds(&[&raw[..]], &[]).unwrap();
    program.next_message();
    assert!(program.host.doorbells().is_empty());
    // The other machine is killed: the driver is told, and memory stays until it wants the next.
    program.vectors();
    drop((stream, file));
    program.until("end", |program| (program.status() == 0).then_some(()));
    assert!(program.vectors().contains(&0));
    assert_eq!(program.host.places(), at(other));
    assert_eq!(*program.told.lock().unwrap(), ["", "it has hung up"]);
    program.want();
    assert!(program.host.places().is_empty());
    drop(program.connect());
}

#[test]
fn a_host_that_shows_nothing_ends_the_connection() {
    // At once, and when the window moves.
    for late in [false, true] {
        let mut program = Program::ready();
        let stream = program.connect();
        let file = memory_file(0x1000, SealFlags::SHRINK);
        let raw = message(5, 1, &table(1, &[[0, 0x1000, 0, 0]]));
        *program.host.refuse.lock().unwrap() = !late;
        stream
            .send_with_fds(&[&raw[..]], &[file.as_raw_fd()])
            .unwrap();
        if late {
            program.next_message();
            let call = EventFd::new(0).unwrap();
            let raw = message(13, 1, &[0; 8]);
            stream
                .send_with_fds(&[&raw[..]], &[call.as_raw_fd()])
                .unwrap();
            program.next_message();
            program.function().window_removed(Program::window(WINDOW));
            *program.host.refuse.lock().unwrap() = true;
            program.place(WINDOW);
        }
        program.until("end", |program| (program.status() == 0).then_some(()));
        let said = program.told.lock().unwrap().last().unwrap().clone();
        assert!(said.contains("Invalid argument"), "{said}");
    }
}

/// "The device MUST present at least one VIRTIO_PCI_CAP_PCI_CFG capability", and executes an access "at BAR selected by cap.bar"
/// (4.1.4.9.1): any that a capability names.
#[test]
fn the_window_is_reached_through_configuration_space() {
    let mut program = Program::new();
    let crate::support::guest::Bus::Pci(driver) = &mut program.guest.bus else {
        unreachable!("it is on PCI");
    };
    let at = driver.access;
    let place = |program: &mut Program, bar: u8, offset: u64, length: u32| {
        let function = program.function();
        function.config_write(at + 4, &[bar]);
        function.config_write(at + 8, &(offset as u32).to_le_bytes());
        function.config_write(at + 12, &length.to_le_bytes());
    };
    let read = |program: &mut Program| {
        let mut raw = [0; 4];
        program.function().config_read(at + 16, &mut raw);
        u32::from_le_bytes(raw)
    };
    // notification_select, then both fields.
    place(&mut program, 2, 0x1000, 2);
    program
        .function()
        .config_write(at + 16, &3u16.to_le_bytes());
    let mut raw = [0; 4];
    program.function().bar_read(2, 0x1000, &mut raw);
    assert_eq!(u32::from_le_bytes(raw), 0xffff_0003);
    program.function().bar_write(2, 0x1002, &4u16.to_le_bytes());
    place(&mut program, 2, 0x1000, 4);
    assert_eq!(read(&mut program), 0x0004_0003);
    // The last word there is, and none behind it: that leaves what was there.
    place(&mut program, 2, 0x40_0000 - 4, 4);
    assert_eq!(read(&mut program), 0);
    place(&mut program, 2, 0x1000, 4);
    assert_eq!(read(&mut program), 0x0004_0003);
    for (bar, offset) in [(2, 0x40_0000), (2, 0xffff_fffc), (1, 0x1000), (4, 0x1000)] {
        place(&mut program, bar, offset, 4);
        assert_eq!(read(&mut program), 0x0004_0003, "{bar} {offset:#x}");
    }
}
