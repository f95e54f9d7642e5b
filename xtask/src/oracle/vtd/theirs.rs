// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Their side: QEMU's `intel-iommu`, its memory and its `edu` device, over the test socket.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Context, Result, ensure};
use hvkit_vtd_iommu::spec::interrupt::Message;
use hvkit_vtd_iommu::spec::registers::{Capability, ExtendedCapability, Version};

use super::messages::{self, Sent};
use super::ours::{data_word, pattern_word};
use super::program::{Program, Seen, Step, layout, start};
use lab_kit::qtest::{Answers, Batch, Bytes, Edu, Qtest, QtestOptions, VTD, Value};

const FSTS: u64 = VTD + 0x34;
const FECTL: u64 = VTD + 0x38;
const RECORD: u64 = VTD + 0x220;
const EDU_SOURCE: u64 = 0x80;
const EDU_DESTINATION: u64 = 0x88;
const EDU_COUNT: u64 = 0x90;
const EDU_COMMAND: u64 = 0x98;
const EDU_BUFFER: u64 = 0x4_0000;
const EDU_START: u64 = 1;
const EDU_TO_MEMORY: u64 = 2;

/// A machine of theirs.
pub(super) struct Theirs {
    options: QtestOptions,
    machine: Qtest,
    edu: Edu,
    /// Where its MSI capability is.
    msi: u8,
    /// What its messages came to, oldest first.
    sent: VecDeque<Sent>,
}

/// What the device is told.
#[derive(Clone, Copy)]
struct Transfer {
    from: u64,
    to: u64,
    length: u64,
    command: u64,
}

/// What will be seen when the batch has run.
enum Pending {
    Faults(Value, Value, Value, Value),
    Word(u64, Value),
    Words(u64, Bytes),
    Message(Message),
}

impl Theirs {
    pub(super) fn start(options: QtestOptions) -> Result<Self> {
        let mut machine = options.start()?;
        let edu = Edu::find(&mut machine)?;
        let mut batch = Batch::new();
        for slot in 0..layout::BUFFER_WORDS {
            batch.writeq(layout::PATTERN + 8 * slot, pattern_word(slot));
        }
        for (at, word) in layout::HANDLERS {
            batch.writeq(at, word);
        }
        machine.run(&batch)?;
        let msi = messages::enable(&mut machine, &edu)?;
        Ok(Self {
            options,
            machine,
            edu,
            msi,
            sent: VecDeque::new(),
        })
    }

    /// VER, CAP and ECAP.
    pub(super) fn capabilities(&mut self) -> Result<(Version, Capability, ExtendedCapability)> {
        Ok((
            Version(self.machine.readl(VTD)?),
            Capability(self.machine.readq(VTD + 8)?),
            ExtendedCapability(self.machine.readq(VTD + 16)?),
        ))
    }

    /// The device's source-id.
    pub(super) fn device(&self) -> (u8, u8, u8) {
        let address = self.edu.address();
        (address.bus, address.device, address.function)
    }

    /// Runs a program, on a unit as after power-on.
    pub(super) fn run(&mut self, program: &Program) -> Result<Vec<Seen>> {
        self.reset()?;
        let mut batch = Batch::new();
        let (mut pending, mut seen) = (Vec::new(), Vec::new());
        let fill = Transfer {
            from: layout::PATTERN,
            to: EDU_BUFFER,
            length: 8 * layout::BUFFER_WORDS,
            command: EDU_START,
        };
        self.transfer(&mut batch, &mut pending, &mut seen, fill)?;
        for step in &program.steps {
            match *step {
                Step::Store { at, word } => batch.writeq(at, word),
                Step::Write32 { offset, value } => batch.writel(VTD + u64::from(offset), value),
                Step::Write64 { offset, value } => batch.writeq(VTD + u64::from(offset), value),
                Step::Read { address, slot } => {
                    let transfer = Transfer {
                        from: address,
                        to: EDU_BUFFER + 8 * slot,
                        length: 8,
                        command: EDU_START,
                    };
                    self.transfer(&mut batch, &mut pending, &mut seen, transfer)?;
                }
                Step::Write { address, slot } => {
                    let transfer = Transfer {
                        from: EDU_BUFFER + 8 * slot,
                        to: address,
                        length: 8,
                        command: EDU_START | EDU_TO_MEMORY,
                    };
                    self.transfer(&mut batch, &mut pending, &mut seen, transfer)?;
                }
                Step::Message { address, data } => {
                    let message = Message {
                        address: address.into(),
                        data,
                    };
                    if data >> 16 == 0 {
                        messages::raise(&mut batch, &self.edu, self.msi, message);
                    } else {
                        // More than its capability has data for: as DMA, which is what a message is.
                        let at = EDU_BUFFER + 8 * layout::BUFFER_WORDS;
                        batch.writel(layout::MESSAGE, data);
                        let fetch = Transfer {
                            from: layout::MESSAGE,
                            to: at,
                            length: 4,
                            command: EDU_START,
                        };
                        self.transfer(&mut batch, &mut pending, &mut seen, fetch)?;
                        let send = Transfer {
                            from: at,
                            to: message.address,
                            length: 4,
                            command: EDU_START | EDU_TO_MEMORY,
                        };
                        self.transfer(&mut batch, &mut pending, &mut seen, send)?;
                    }
                    pending.push(Pending::Message(message));
                }
                Step::Faults => pending.push(Pending::Faults(
                    batch.readl(FSTS),
                    batch.readl(FECTL),
                    batch.readq(RECORD),
                    batch.readq(RECORD + 8),
                )),
                Step::Look { offset, count } => {
                    for register in 0..count {
                        let at = u64::from(offset + 4 * register);
                        pending.push(Pending::Word(at, batch.readl(VTD + at)));
                    }
                }
                Step::Load { at } => pending.push(Pending::Word(at, batch.readq(at))),
            }
        }
        for frame in 0..layout::DATA_FRAMES {
            let at = layout::DATA + frame * 0x1000;
            let bytes = batch.read(at, layout::DATA_BYTES as usize);
            pending.push(Pending::Words(at, bytes));
        }
        let answers = self.machine.run(&batch)?;
        self.note(&answers, pending, &mut seen)?;
        Ok(seen)
    }

    /// Queues a transfer, runs the batch, notes what it brought, and waits for the device. What was to be seen before
    /// the transfer is read before it, in the same batch.
    fn transfer(
        &mut self,
        batch: &mut Batch,
        pending: &mut Vec<Pending>,
        seen: &mut Vec<Seen>,
        transfer: Transfer,
    ) -> Result<()> {
        let bar = self.edu.registers();
        batch.writeq(bar + EDU_SOURCE, transfer.from);
        batch.writeq(bar + EDU_DESTINATION, transfer.to);
        batch.writeq(bar + EDU_COUNT, transfer.length);
        batch.writeq(bar + EDU_COMMAND, transfer.command);
        let status = batch.readq(bar + EDU_COMMAND);
        let answers = self.machine.run(batch)?;
        *batch = Batch::new();
        // A transfer may be a message, and what comes of it is traced in several lines: they are read when all are there.
        self.edu.settle(&mut self.machine, answers.value(status))?;
        self.note(&answers, std::mem::take(pending), seen)
    }

    /// Notes what a batch brought. Nothing is under way.
    fn note(
        &mut self,
        answers: &Answers,
        pending: Vec<Pending>,
        seen: &mut Vec<Seen>,
    ) -> Result<()> {
        self.sent.extend(messages::read(&self.machine.traced()?));
        for pending in pending {
            match pending {
                Pending::Message(message) => {
                    let sent = std::iter::from_fn(|| self.sent.pop_front())
                        .find(|sent| sent.message == message);
                    let sent = sent.with_context(|| format!("{message:x?} was not sent"))?;
                    seen.push(Seen::Interrupt(sent.interrupt));
                }
                Pending::Faults(status, control, low, high) => seen.push(Seen::Faults {
                    status: answers.value(status) as u32,
                    control: answers.value(control) as u32,
                    low: answers.value(low),
                    high: answers.value(high),
                }),
                Pending::Word(at, value) => seen.push(Seen::Word {
                    at,
                    value: answers.value(value),
                }),
                Pending::Words(at, bytes) => {
                    for (at, word) in (at..).step_by(8).zip(answers.bytes(bytes).as_chunks().0) {
                        let value = u64::from_le_bytes(*word);
                        seen.push(Seen::Word { at, value });
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes words 0 that DMA went to, those apart that each program finds set up.
    pub(super) fn restore(&mut self, astray: &BTreeSet<u64>) -> Result<()> {
        let mut batch = Batch::new();
        for at in astray {
            let slot = at.wrapping_sub(layout::PATTERN) / 8;
            let pattern = slot < layout::BUFFER_WORDS;
            batch.writeq(*at, if pattern { pattern_word(slot) } else { 0 });
        }
        self.machine.run(&batch).map(drop)
    }

    /// Brings unit and memory back to what they are after power-on, or starts another machine.
    fn reset(&mut self) -> Result<()> {
        for _ in 0..2 {
            if self.tidy()? {
                return Ok(());
            }
            *self = Self::start(self.options.clone())?;
        }
        ensure!(
            self.tidy()?,
            "the unit of a new machine is not as after power-on"
        );
        Ok(())
    }

    /// Whether everything could be brought back.
    fn tidy(&mut self) -> Result<bool> {
        let mut batch = Batch::new();
        let (head, queue, status) = (
            batch.readq(VTD + 0x80),
            batch.readq(VTD + 0x90),
            batch.readl(VTD + 0x1c),
        );
        let answers = self.machine.run(&batch)?;
        let (head, queue) = (answers.value(head), answers.value(queue));
        let status = answers.value(status) as u32;
        let mut batch = Batch::new();
        batch.writel(FSTS, 0x7f);
        batch.writeq(RECORD + 8, 1 << 63);
        if status & 1 << 26 != 0 {
            // The unit leaves its queue only after a wait.
            let (base, size) = (queue & !0xfff, 4096u64 << (queue & 7));
            let step = if queue & 0x800 == 0 { 16 } else { 32 };
            batch.writeq(base + head, 0x25);
            batch.writeq(base + head + 8, layout::STATUS);
            batch.writeq(VTD + 0x88, (head + step) % size);
            batch.writel(FSTS, 0x7f);
        }
        batch.writel(VTD + 0x18, 0);
        for step in start() {
            match step {
                Step::Store { at, word } => batch.writeq(at, word),
                Step::Write32 { offset, value } => batch.writel(VTD + u64::from(offset), value),
                Step::Write64 { offset, value } => batch.writeq(VTD + u64::from(offset), value),
                _ => {}
            }
        }
        for event in [0x38u64, 0xa0] {
            batch.writel(VTD + event, 1 << 31);
            for word in 1..4 {
                batch.writel(VTD + event + 4 * word, 0);
            }
        }
        batch.writel(VTD + 0x9c, 1);
        batch.writel(FSTS, 0x7f);
        batch.fill(layout::START, (layout::END - layout::START) as usize, 0);
        for frame in 0..layout::DATA_FRAMES {
            for at in (0..layout::DATA_BYTES).step_by(8) {
                batch.writeq(layout::DATA + frame * 0x1000 + at, data_word(frame, at));
            }
        }
        let checks = [
            (batch.readl(VTD + 0x1c), 0xbe80_0000u64),
            (batch.readl(FSTS), !0),
            (batch.readl(FECTL), 1 << 30),
            (batch.readq(VTD + 0x80), !0),
            (batch.readl(VTD + 0x9c), !0),
        ];
        let answers = self.machine.run(&batch)?;
        Ok(checks
            .iter()
            .all(|(value, mask)| answers.value(*value) & mask == 0))
    }
}
