// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device: the smallest thing that does DMA and raises interrupts.
//!
//! It holds a buffer of 4 KiB that only its own DMA reaches. (QEMU documentation, "EDU device".)

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use thiserror::Error;

use crate::process::Deadline;

use super::{Batch, PciAddress, Qtest, Value};

/// Vendor 0x1234, device 0x11e8, as configuration register 0 shows them.
const IDENTITY: u32 = 0x11e8_1234;
const COMMAND_REGISTER: u8 = 0x04;
/// Memory space and bus mastering on.
const ENABLE: u32 = 0x0006;
const BAR0: u8 = 0x10;
/// Where we put BAR0: in the hole below 4 GiB, above any memory these machines have.
const BAR0_ADDRESS: u32 = 0xe000_0000;

/// Register: what is written is read back complemented.
pub const LIVENESS: u64 = 0x04;
/// Register: why it has raised its interrupt.
pub const INTERRUPT_STATUS: u64 = 0x24;
/// Register: raises the interrupt, for the reasons that are written.
pub const INTERRUPT_RAISE: u64 = 0x60;
/// Register: takes reasons back.
pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
/// Register: where a transfer begins.
pub const DMA_SOURCE: u64 = 0x80;
/// Register: where it goes.
pub const DMA_DESTINATION: u64 = 0x88;
/// Register: how many bytes.
pub const DMA_COUNT: u64 = 0x90;
/// Register: [`START`] and how; [`START`] reads as set until the transfer is over.
pub const DMA_COMMAND: u64 = 0x98;
/// Of [`DMA_COMMAND`]: begins.
pub const START: u64 = 1;
/// Of [`DMA_COMMAND`]: to memory, not from it.
pub const TO_MEMORY: u64 = 2;
/// Of [`DMA_COMMAND`]: raises the interrupt at the end, for the reason [`TRANSFERRED`].
pub const TELL: u64 = 4;
/// Of [`INTERRUPT_STATUS`]: a transfer is over.
pub const TRANSFERRED: u32 = 0x100;
/// Where the device's own buffer appears in its DMA registers.
pub const BUFFER: u64 = 0x4_0000;

/// How long a transfer may take. It takes a few questions, unless the machine below is busy with something else.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many questions are asked without a pause; then the model needs its threads to run.
const AT_ONCE: u32 = 8;
const PAUSE: Duration = Duration::from_micros(250);

/// Why a transfer was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DmaError {
    /// QEMU aborts on such a transfer, so it is not even tried.
    #[error("{length} bytes at {offset:#x} do not lie in the device's buffer of {size} bytes", size = Edu::BUFFER_SIZE)]
    Outside {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// The device still says that it is busy.
    #[error("the transfer was not over after {seconds} s")]
    Busy {
        /// How long it was asked.
        seconds: u64,
    },
}

/// The device, found and enabled.
#[derive(Clone, Copy, Debug)]
pub struct Edu {
    address: PciAddress,
    bar: u64,
}

impl Edu {
    /// The size of the device's buffer in bytes.
    pub const BUFFER_SIZE: u64 = 4096;

    /// Finds the device on bus 0, gives it an address, and lets it do DMA.
    pub fn find(machine: &mut Qtest) -> Result<Self> {
        let mut batch = Batch::new();
        let places: Vec<(PciAddress, Value)> = (0..32)
            .map(|device| {
                let address = PciAddress {
                    bus: 0,
                    device,
                    function: 0,
                };
                (address, batch.config_read(address, 0))
            })
            .collect();
        let answers = machine.run(&batch)?;
        let (address, _) = places
            .into_iter()
            .find(|(_, value)| answers.value(*value) == u64::from(IDENTITY))
            .context("no edu device on bus 0")?;
        let mut batch = Batch::new();
        batch.config_write(address, BAR0, BAR0_ADDRESS);
        batch.config_write(address, COMMAND_REGISTER, ENABLE);
        machine.run(&batch)?;
        Ok(Edu {
            address,
            bar: BAR0_ADDRESS.into(),
        })
    }

    /// Where the device is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Where its registers are.
    pub fn registers(&self) -> u64 {
        self.bar
    }

    /// Lets the device read `length` bytes at DMA address `from` into its buffer at `offset`.
    ///
    /// A transfer that the VT-d unit refuses ends too: look at its fault records.
    pub fn read_memory(
        &self,
        machine: &mut Qtest,
        from: u64,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        self.transfer(machine, offset, length, |buffer| (from, buffer, START))
    }

    /// Lets the device write `length` bytes of its buffer at `offset` to DMA address `to`.
    pub fn write_memory(
        &self,
        machine: &mut Qtest,
        to: u64,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        self.transfer(machine, offset, length, |buffer| {
            (buffer, to, START | TO_MEMORY)
        })
    }

    /// Raises the device's interrupt, with `reason` in its status.
    pub fn raise_interrupt(&self, machine: &mut Qtest, reason: u32) -> Result<()> {
        machine.writel(self.bar + INTERRUPT_RAISE, reason)
    }

    /// Takes `reason` back from the device's interrupt status.
    pub fn acknowledge_interrupt(&self, machine: &mut Qtest, reason: u32) -> Result<()> {
        machine.writel(self.bar + INTERRUPT_ACKNOWLEDGE, reason)
    }

    fn transfer(
        &self,
        machine: &mut Qtest,
        offset: u64,
        length: u64,
        how: impl Fn(u64) -> (u64, u64, u64),
    ) -> Result<()> {
        if length > Self::BUFFER_SIZE || offset > Self::BUFFER_SIZE - length {
            bail!(DmaError::Outside { offset, length });
        }
        let (source, destination, command) = how(BUFFER + offset);
        let mut batch = Batch::new();
        batch.writeq(self.bar + DMA_SOURCE, source);
        batch.writeq(self.bar + DMA_DESTINATION, destination);
        batch.writeq(self.bar + DMA_COUNT, length);
        batch.writeq(self.bar + DMA_COMMAND, command);
        let status = batch.readq(self.bar + DMA_COMMAND);
        let status = machine.run(&batch)?.value(status);
        self.settle(machine, status)
    }

    /// Waits for the end of a transfer, whose `status` register read so last.
    pub fn settle(&self, machine: &mut Qtest, mut status: u64) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        for asked in 0..u32::MAX {
            if status & START == 0 {
                return Ok(());
            }
            if deadline.left().is_none() {
                break;
            }
            if asked >= AT_ONCE {
                thread::sleep(PAUSE);
            }
            status = machine.readq(self.bar + DMA_COMMAND)?;
        }
        bail!(DmaError::Busy {
            seconds: PATIENCE.as_secs()
        })
    }
}
