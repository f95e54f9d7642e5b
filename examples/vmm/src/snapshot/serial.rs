// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial line's registers, and what was typed and not read.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState as Uart;

/// A serial line as it was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte first.
    pub divisor: [u8; 2],
    /// Interrupt enable, interrupt identification, line control, line status, modem control, modem status, scratch.
    pub registers: [u8; 7],
    /// Received, and not read by the guest.
    pub received: Vec<u8>,
}

impl From<Uart> for SerialState {
    fn from(uart: Uart) -> Self {
        SerialState {
            divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            registers: [
                uart.interrupt_enable,
                uart.interrupt_identification,
                uart.line_control,
                uart.line_status,
                uart.modem_control,
                uart.modem_status,
                uart.scratch,
            ],
            received: uart.in_buffer,
        }
    }
}

impl From<&SerialState> for Uart {
    fn from(state: &SerialState) -> Self {
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        let [
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        Uart {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.received.clone(),
        }
    }
}
