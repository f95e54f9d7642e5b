// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Performance monitoring, enhanced and virtual commands.

use super::access::register;

register! {
    /// Performance Monitoring Capability Register (PERFCAP_REG).
    pub struct PerformanceCapability(u64) {
        /// Number of counters.
        ro u16 [15:0] counters, with_counters;
        /// Counter width in bits.
        ro u8 [22:16] counter_bits, with_counter_bits;
        /// Number of event groups.
        ro u8 [28:24] event_groups, with_event_groups;
        /// Filters that counters support: requester, domain, PASID, address type, page table.
        ro u8 [36:32] filters, with_filters;
        /// Whether an overflow can interrupt.
        ro bool [50:50] interrupt, with_interrupt;
        /// Counters lie 2^X bytes apart (X + 10 where they have registers of their own).
        ro u8 [54:52] counter_stride, with_counter_stride;
    }
}

register! {
    /// Where performance-monitoring registers lie, in bytes from the base (PERFCFGOFF_REG, PERFOVFOFF_REG,
    /// PERFCNTROFF_REG).
    pub struct PerformanceOffset(u32) {
        /// The offset.
        ro u32 [31:0] offset, with_offset;
    }
}

register! {
    /// Performance Interrupt Status Register (PERFINTRSTS_REG).
    pub struct PerformanceStatus(u32) {
        /// PIS: a counter has overflowed.
        w1c bool [0:0] overflow, with_overflow;
    }
}

register! {
    /// Performance Event Capability Register (PERFEVNTCAP_REG), one for each event group.
    pub struct PerformanceEvents(u64) {
        /// The events of the group that exist.
        ro u32 [27:0] events, with_events;
    }
}

register! {
    /// Enhanced Command Register (ECMD_REG). Writing it begins a command.
    pub struct EnhancedCommand(u64) {
        /// CMD: the command.
        rw u8 [7:0] command, with_command;
        /// OA: operand A.
        rw u64 [63:16] operand, with_operand;
    }
}

register! {
    /// Enhanced Command Extended Operand Register (ECEO_REG).
    pub struct EnhancedOperand(u64) {
        /// OB: operand B.
        rw u64 [63:0] operand, with_operand;
    }
}

register! {
    /// Enhanced Command Response Register (ECRSP_REG), and Virtual Command Response Register (VCRSP_REG).
    pub struct CommandResponse(u64) {
        /// IP: the command is in progress.
        ro bool [0:0] in_progress, with_in_progress;
        /// SC: status code; 0 is success.
        ro u8 [7:1] status, with_status;
        /// RSLT: result.
        ro u64 [63:8] result, with_result;
    }
}

register! {
    /// Enhanced Command Capability Register (ECCAPn_REG), and Virtual Command Capability Register (VCCAP_REG): a
    /// bit for each command.
    pub struct CommandCapability(u64) {
        /// The commands that exist.
        ro u64 [63:0] commands, with_commands;
    }
}

register! {
    /// Virtual Command Register (VCMD_REG). Writing it begins a command.
    pub struct VirtualCommand(u64) {
        /// CMD: the command.
        rw u8 [7:0] command, with_command;
        /// OP: operand.
        rw u64 [63:8] operand, with_operand;
    }
}
