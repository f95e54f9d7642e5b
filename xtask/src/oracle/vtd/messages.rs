// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages of their device, and what becomes of them by their own trace points: the local APIC is not seen over the test
//! socket.

use anyhow::Result;
use hvkit_vtd_iommu::emulation::Interrupt;
use hvkit_vtd_iommu::spec::interrupt::{Delivery, Message};
use lab_kit::qtest::{Batch, Edu, Qtest, QtestOptions};

/// A message comes to the unit.
const COMES: &str = "vtd_ir_remap_msi_req";
/// It goes on, as it is or remapped.
const GOES: &str = "vtd_ir_remap_msi";
/// A local APIC is asked for an interrupt.
const ARRIVES: &str = "apic_deliver_irq";

const CAPABILITIES: u8 = 0x34;
const MSI: u32 = 5;
const ENABLED: u32 = 1 << 16;

/// A machine whose messages can be read.
pub(super) fn heard(options: QtestOptions) -> QtestOptions {
    [COMES, GOES, ARRIVES]
        .iter()
        .fold(options, |options, event| options.trace(event))
}

/// Turns the device's messages on; where its capability is.
pub(super) fn enable(machine: &mut Qtest, edu: &Edu) -> Result<u8> {
    let mut at = (machine.config_read(edu.address(), CAPABILITIES)? & 0xfc) as u8;
    for _ in 0..48 {
        let header = machine.config_read(edu.address(), at)?;
        if header & 0xff == MSI {
            machine.config_write(edu.address(), at, header | ENABLED)?;
            return Ok(at);
        }
        at = (header >> 8 & 0xfc) as u8;
    }
    anyhow::bail!("the device has no MSI capability")
}

/// Has the device send `message`.
pub(super) fn raise(batch: &mut Batch, edu: &Edu, msi: u8, message: Message) {
    batch.config_write(edu.address(), msi + 4, message.address as u32);
    batch.config_write(edu.address(), msi + 12, message.data);
    batch.writel(edu.registers() + 0x60, 1);
    batch.writel(edu.registers() + 0x64, 1);
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) message: Message,
    pub(super) interrupt: Option<Interrupt>,
}

/// The messages that `lines` of the trace tell of.
pub(super) fn read(lines: &[String]) -> Vec<Sent> {
    let mut all: Vec<Sent> = Vec::new();
    // The address that the last message goes on with: the trace of the APIC does not show its redirection hint, nor, unless
    // software switched that APIC to x2APIC mode, the upper bits of its destination.
    let mut onward = None;
    for line in lines {
        let Some((event, text)) = line.split_once(' ') else {
            continue;
        };
        let numbers = numbers(text);
        match (event, numbers.as_slice()) {
            (COMES, &[address, data]) => {
                let data = data as u32;
                all.push(Sent {
                    message: Message { address, data },
                    interrupt: None,
                });
                onward = None;
            }
            (GOES, &[_, _, address, _]) => onward = Some(address),
            (ARRIVES, &[destination, logical, delivery, vector, level]) => {
                if let (Some(sent), Some(address)) = (all.last_mut(), onward.take()) {
                    sent.interrupt = Some(Interrupt {
                        vector: vector as u8,
                        delivery: Delivery(delivery as u8),
                        destination: (address >> 32) as u32 & !0xff | destination as u32 & 0xff,
                        logical: logical != 0,
                        redirection_hint: address & 8 != 0,
                        level_triggered: level != 0,
                    });
                }
            }
            _ => {}
        }
    }
    all
}

/// The numbers in `text`, hexadecimal ones and signed ones too.
fn numbers(text: &str) -> Vec<u64> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
    words.filter_map(number).collect()
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse::<i64>().ok().map(i64::cast_unsigned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read() {
        let lines = [
            "vtd_ir_remap_msi_req addr 0xfee00010 data 0x8531",
            "vtd_ir_remap_msi (addr 0xfee00010, data 0x8531) -> (addr 0xfee7700c, data 0x4031)",
            "apic_deliver_irq dest 119 dest_mode 1 delivery_mode 2 vector 49 trigger_mode 0",
            "vtd_ir_remap_msi_req addr 0xfee00030 data 0x0",
            "some warning",
            // An event of the unit's own, of no message.
            "apic_deliver_irq dest 0 dest_mode 0 delivery_mode 0 vector 1 trigger_mode 0",
            "vtd_ir_remap_msi_req addr 0xfee00050 data 0x1",
            "vtd_ir_remap_msi (addr 0xfee00050, data 0x1) -> (addr 0x12345000feeff000, data 0x0)",
            "apic_deliver_irq dest -1 dest_mode 0 delivery_mode 7 vector 0 trigger_mode 1",
        ]
        .map(str::to_owned);
        let sent = read(&lines);
        let first = Interrupt {
            vector: 49,
            delivery: Delivery::SMI,
            destination: 119,
            logical: true,
            redirection_hint: true,
            level_triggered: false,
        };
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[0].interrupt, Some(first));
        assert_eq!(
            (sent[0].message.address, sent[0].message.data),
            (0xfee0_0010, 0x8531)
        );
        assert_eq!(sent[1].interrupt, None);
        let last = sent[2].interrupt.unwrap();
        assert_eq!(
            (last.destination, last.level_triggered),
            (0x1234_50ff, true)
        );
    }
}
