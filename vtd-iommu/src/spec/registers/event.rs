// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults and events: status, the four registers of each event interrupt, fault records.

use super::access::register;
use crate::spec::fault::FaultRecord;

register! {
    /// Fault Status Register (FSTS_REG).
    pub struct FaultStatus(u32) {
        /// PFO: a fault found no free record.
        w1c bool [0:0] overflow, with_overflow;
        /// PPF: some fault record is pending.
        ro bool [1:1] pending, with_pending;
        /// AFO: advanced fault overflow (no longer in use).
        w1c bool [2:2] advanced_overflow, with_advanced_overflow;
        /// APF: advanced pending fault (no longer in use).
        w1c bool [3:3] advanced_pending, with_advanced_pending;
        /// IQE: invalidation queue error; [`QueueErrorRecord`](super::QueueErrorRecord) says which.
        w1c bool [4:4] queue_error, with_queue_error;
        /// ICE: a device-TLB answered an invalidation that nobody asked for.
        w1c bool [5:5] completion_error, with_completion_error;
        /// ITE: a device-TLB did not answer an invalidation in time.
        w1c bool [6:6] time_out_error, with_time_out_error;
        /// FRI: the first pending fault record, if PPF is set.
        ro u8 [15:8] record, with_record;
    }
}

register! {
    /// Fault, Invalidation or Page Request Event Control Register (FECTL_REG, IECTL_REG, PECTL_REG).
    pub struct EventControl(u32) {
        /// IP: a message waits for the mask to be cleared.
        ro bool [30:30] pending, with_pending;
        /// IM: no message is sent.
        rw bool [31:31] masked, with_masked;
    }
}

register! {
    /// Event Data Register (FEDATA_REG, IEDATA_REG, PEDATA_REG): data of the message.
    pub struct EventData(u32) {
        /// IMD: message data.
        rw u16 [15:0] data, with_data;
        /// EIMD: upper half, where 32-bit message data is supported.
        rw u16 [31:16] extended, with_extended;
    }
}

register! {
    /// Event Address Register (FEADDR_REG, IEADDR_REG, PEADDR_REG): lower half of the message address.
    pub struct EventAddress(u32) {
        /// MA: message address, in place.
        rw address [31:2] address, with_address;
    }
}

register! {
    /// Event Upper Address Register (FEUADDR_REG, IEUADDR_REG, PEUADDR_REG).
    pub struct EventUpperAddress(u32) {
        /// MUA: upper half of the message address.
        rw u32 [31:0] address, with_address;
    }
}

register! {
    /// Advanced Fault Log Register (AFLOG_REG; no longer in use).
    pub struct AdvancedFaultLog(u64) {
        /// FLS: size of the log, 2^X pages.
        rw u8 [11:9] size, with_size;
        /// FLA: the log, 4-KiB aligned.
        rw address [63:12] log, with_log;
    }
}

register! {
    /// Lower half of a fault-recording register (FRCD_REG, bits 63:0).
    pub struct FaultRecordLow(u64) {
        /// FI: fault information; an address or an interrupt index, see [`FaultRecord`].
        ro address [63:12] information, with_information;
    }
}

register! {
    /// Upper half of a fault-recording register (FRCD_REG, bits 127:64).
    pub struct FaultRecordHigh(u64) {
        /// SID: source-id.
        ro u16 [15:0] source, with_source;
        /// T2: type bit 2.
        ro bool [28:28] type_2, with_type_2;
        /// PRIV: supervisor privilege was asked for.
        ro bool [29:29] supervisor, with_supervisor;
        /// EXE: execute permission was asked for.
        ro bool [30:30] execute, with_execute;
        /// PP: PV is valid.
        ro bool [31:31] pasid_present, with_pasid_present;
        /// FR: fault reason.
        ro u8 [39:32] reason, with_reason;
        /// PV: PASID value.
        ro u32 [59:40] pasid, with_pasid;
        /// AT: address type of the request.
        ro u8 [61:60] address_type, with_address_type;
        /// T1: type bit 1.
        ro bool [62:62] type_1, with_type_1;
        /// F: a fault is recorded here.
        w1c bool [63:63] fault, with_fault;
    }
}

impl FaultRecord {
    /// From the two halves of a fault-recording register.
    #[must_use]
    pub const fn from_halves(low: FaultRecordLow, high: FaultRecordHigh) -> Self {
        Self((high.0 as u128) << 64 | low.0 as u128)
    }

    /// As the two halves of a fault-recording register.
    #[must_use]
    pub const fn halves(self) -> (FaultRecordLow, FaultRecordHigh) {
        (
            FaultRecordLow(self.0 as u64),
            FaultRecordHigh((self.0 >> 64) as u64),
        )
    }
}
