// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI function that another process serves by vfio-user: one that answers as it should but for some lies, and asks for memory
//! that it may or may not reach.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::vhost_user::channel::Channel;
use hvkit_vmm::config::{Dma, Place};
use hvkit_vmm::confine::{Confiner, Nursery, Starter};
use hvkit_vmm::machine::address_map::AddressMap;
use hvkit_vmm::machine::memory::{GuestRam, Sharing, reserve_as};
use hvkit_vmm::machine::stop::Stop;
use hvkit_vmm::passthrough::PhysicalFunction;
use hvkit_vmm::passthrough::hardware::Signals;
use hvkit_vmm::vfio_user::{Given, UserDevice, UserFunction, open};
use hvkit_vmm::viommu::DmaTable;
use hvkit_vtd_iommu::emulation::Mapping;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::peer::next;

/// The most that is done with the function.
const ACTIONS: usize = 16;
/// How long either end may take: neither lets the other wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a header.
const HEADER: usize = 16;
/// What the function may reach: addresses of its own, and where they lead.
const PIECE: Mapping = Mapping {
    first: 0x10_0000,
    last: 0x10_0fff,
    target: 0x6000,
    reads: true,
    writes: true,
};
/// What is looked at, to find what the process wrote where it must not.
const LOOKED_AT: usize = 0x1_0000;

/// What is wrong with an answer.
#[derive(Arbitrary, Clone, Debug)]
enum Lie {
    /// A word of what it has.
    Word(u8, u32),
    /// Its size, and how much of it comes.
    Size(i8, i8),
    /// Its header.
    Header(u16, u16, u8, u8),
    Files(u8),
    /// Before it, the process asks for something itself: command, where, how much, and what it has.
    Own(u8, u16, u16, Vec<u8>),
    /// What it says of itself, as text.
    Text(Vec<u8>),
    HangUp,
}

/// What is done with the function.
#[derive(Arbitrary, Clone, Debug)]
enum Action {
    Config(u8, u8, Option<u32>),
    Register(u8, u16, u8, Option<u64>),
    Map(u8),
    Signal(u8, u8),
    Reset,
    Remap,
}

struct Process {
    channel: Channel,
    lies: Vec<(u8, Lie)>,
    heard: u8,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Process {
    /// Until it hangs up, or the other end does.
    fn run(mut self) {
        while self.one().is_some() {}
    }

    fn one(&mut self) -> Option<()> {
        let heard = next::<4>(&self.channel, (1, HEADER), PATIENCE)?;
        let ([first, _, flags, _], payload, _) = heard;
        // To a question of ours.
        if flags & 0xf == 1 {
            return Some(());
        }
        let number = self.heard;
        self.heard = self.heard.wrapping_add(1);
        let (answer, beside) = honest(first >> 16, &payload);
        let lie = self.lies.iter().find(|(at, _)| *at == number);
        if flags & 0x10 != 0 {
            return Some(());
        }
        self.answer(first, answer, beside, lie.map(|(_, lie)| lie))
    }

    fn answer(
        &self,
        mut first: u32,
        mut answer: Vec<u8>,
        beside: Option<File>,
        lie: Option<&Lie>,
    ) -> Option<()> {
        let mut files: Vec<OwnedFd> = beside.into_iter().map(OwnedFd::from).collect();
        let (mut flags, mut error, mut more, mut last) = (1u32, 0u32, 0i8, false);
        match lie {
            None => {}
            Some(Lie::Word(at, value)) => {
                let at = usize::from(*at) * 4;
                if let Some(place) = answer.get_mut(at..at + 4) {
                    place.copy_from_slice(&value.to_ne_bytes());
                }
            }
            Some(Lie::Size(said, come)) => {
                let length = answer.len().saturating_add_signed((*come).into());
                more = *said;
                answer.resize(length, 0x5a);
                // Whoever waits for the rest waits for the end.
                last = more > 0;
            }
            Some(Lie::Header(id, command, bits, errno)) => {
                first ^= u32::from(*id) | u32::from(*command) << 16;
                flags ^= u32::from(*bits);
                error = u32::from(*errno);
                // It may be no answer to what was asked.
                last = true;
            }
            Some(Lie::Files(count)) => {
                let file = || memfd_create("fuzz", MemfdFlags::CLOEXEC).ok();
                files.extend((0..count % 8).filter_map(|_| file()));
                files.truncate(8);
            }
            Some(Lie::Own(command, at, count, data)) => self.ask(*command, *at, *count, data)?,
            Some(Lie::Text(text)) => {
                answer = [&[0, 0, 1, 0], &text[..text.len().min(200)]].concat();
            }
            Some(Lie::HangUp) => return None,
        }
        let size = (HEADER + answer.len()).saturating_add_signed(more.into());
        let head = words(&[first, size as u32, flags, error]);
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let end = Instant::now() + PATIENCE;
        let sent = self.channel.send(&[head, answer].concat(), &files, end);
        (sent.is_ok() && !last).then_some(())
    }

    /// Asks for memory: 16 bytes from the piece on, or others.
    fn ask(&self, command: u8, at: u16, count: u16, data: &[u8]) -> Option<()> {
        let place = [
            PIECE.first.wrapping_add_signed(i64::from(at as i16)),
            count.into(),
        ];
        let data = &data[..data.len().min(64)];
        let payload = [place.map(u64::to_ne_bytes).as_flattened(), data].concat();
        let first = 0x7777 | u32::from(8 + command % 8) << 16;
        let head = words(&[first, (HEADER + payload.len()) as u32, 0, 0]);
        let end = Instant::now() + PATIENCE;
        self.channel.send(&[head, payload].concat(), &[], end).ok()
    }
}

/// What an honest process answers: one page of registers, in a file that stays, and one vector of MSI-X.
fn honest(command: u32, payload: &[u8]) -> (Vec<u8>, Option<File>) {
    let word = |at: usize| {
        payload.get(at..at + 4).map_or(0, |word| {
            u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
        })
    };
    let answer = match command {
        1 => [
            &[0, 0, 1, 0][..],
            b"{\"capabilities\":{\"max_msg_fds\":8}}\0",
        ]
        .concat(),
        4 => words(&[16, 3, 9, 5]),
        5 if word(8) == 0 => {
            let file = registers().map(File::from);
            return (words(&[32, 7, 0, 0, 0x1000, 0, 0, 0]), file);
        }
        5 => words(&[32, 3, word(8), 0, 0, 0, 0, 0]),
        7 => words(&[16, 1, word(8), u32::from(word(8) == 2)]),
        9 => [payload, &vec![0x5a; word(12).min(0x1_0000) as usize]].concat(),
        _ => Vec::new(),
    };
    (answer, None)
}

fn registers() -> Option<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("fuzz", flags).ok()?);
    file.set_len(0x1000).ok()?;
    fcntl_add_seals(&file, SealFlags::SHRINK).ok()?;
    Some(file.into())
}

/// Memory and threads, the same for all inputs.
struct Machine {
    ram: GuestRam,
    starter: Starter,
    _nursery: Nursery,
}

fn machine() -> &'static Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let map = AddressMap::new(4 << 20, 40).expect("4 MiB");
        let stop = Stop::new().expect("an event");
        let nursery = Nursery::new(&Confiner::off(), &stop).expect("a thread");
        Machine {
            ram: reserve_as(&map, Sharing::Shared).expect("4 MiB"),
            starter: nursery.starter(),
            _nursery: nursery,
        }
    })
}

/// A path that nobody else has.
fn place() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("hvkit-fuzz-{}-user-{count}", std::process::id());
    std::env::temp_dir().join(name)
}

fn act(function: &UserFunction, table: &mut dyn DmaTable, action: &Action) {
    match action {
        Action::Config(at, length, value) => {
            let length = 1 << (length % 3);
            let at = u16::from(*at) & !(length as u16 - 1);
            match value {
                Some(value) => function.config_write(at, &value.to_le_bytes()[..length]),
                None => function.config_read(at, &mut [0; 4][..length]),
            }
        }
        Action::Register(bar, at, length, value) => {
            let length = 1 << (length % 4);
            match value {
                Some(value) => {
                    function.bar_write(bar % 6, u64::from(*at), &value.to_le_bytes()[..length]);
                }
                None => function.bar_read(bar % 6, u64::from(*at), &mut [0; 8][..length]),
            }
        }
        Action::Map(bar) => {
            let bar = bar % 6;
            for range in function.region(bar).mappable {
                // A process that says so much of itself may well be refused.
                if range.end - range.start <= 1 << 20 {
                    let _ = function.pages(bar, range);
                }
            }
        }
        Action::Signal(kind, count) => {
            let event = || EventFd::new(0).expect("an event");
            let events: Vec<EventFd> = (0..count % 4).map(|_| event()).collect();
            // Whether it is refused is the process's affair.
            let _ = function.signal(match kind % 3 {
                0 => Signals::Off,
                1 => Signals::Msi(&events),
                _ => Signals::Msix(&events),
            });
        }
        Action::Reset => drop(function.reset()),
        Action::Remap => {
            let _ = table.unmap(PIECE);
            let _ = table.map(PIECE);
        }
    }
}

/// No panic, an end, and memory that only changes where the process may write.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((shares, lies)) = <(bool, Vec<(u8, Lie)>)>::arbitrary(&mut input) else {
        return;
    };
    let socket = place();
    let listener = UnixListener::bind(&socket).expect("a path of ours");
    let process = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let channel = Channel::new(stream).expect("a socket");
        Process {
            channel,
            lies,
            heard: 0,
        }
        .run();
    });
    let given = if shares { Given::Files } else { Given::Nothing };
    let device = UserDevice {
        socket: socket.clone(),
        id: None,
        dma: Dma::Direct,
        given,
        place: Place::default(),
    };
    let machine = machine();
    let opened = open(&device, &machine.ram, &machine.starter);
    std::fs::remove_file(&socket).expect("ours");
    if let Ok(function) = opened {
        let mut table = function.table(given);
        let _ = table.map(PIECE);
        for _ in 0..ACTIONS {
            let Ok(action) = Action::arbitrary(&mut input) else {
                break;
            };
            act(&function, &mut table, &action);
        }
    }
    process.join().expect("no panic of ours");
    let mut memory = vec![0; LOOKED_AT];
    machine
        .ram
        .read_slice(&mut memory, GuestAddress(0))
        .expect("inside");
    memory[0x6000..0x7000].fill(0);
    assert!(memory.iter().all(|byte| *byte == 0), "memory of others");
}
