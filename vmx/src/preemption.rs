// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMX-preemption timer. SDM Vol. 3C, "VMX-Preemption Timer".

use hvkit_vmcs::capability::Misc;

/// How fast the VMX-preemption timer counts: down by one whenever a bit of the time-stamp counter changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreemptionTimer {
    shift: u8,
}

impl PreemptionTimer {
    /// The timer of a processor with this `IA32_VMX_MISC`.
    pub const fn new(misc: Misc) -> Self {
        Self {
            shift: misc.preemption_timer_shift(),
        }
    }

    /// The timer value after which no fewer than `tsc` ticks of the time-stamp counter have passed, or the greatest
    /// there is.
    pub const fn value_for(self, tsc: u64) -> u32 {
        let ticks = tsc.div_ceil(1 << self.shift);
        // The first change of the bit may come at once.
        let value = ticks.saturating_add(if self.shift == 0 { 0 } else { 1 });
        if value > u32::MAX as u64 {
            u32::MAX
        } else {
            value as u32
        }
    }

    /// How many ticks of the time-stamp counter a timer value lasts, at most.
    pub const fn tsc_of(self, value: u32) -> u64 {
        (value as u64) << self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_in_bits_4_to_0_of_ia32_vmx_misc() {
        let timer = PreemptionTimer::new(Misc(0x6004_01e5));
        assert_eq!(timer.tsc_of(10), 320);
        // 100 ticks are more than 3 times 32; and the first change may come at once.
        assert_eq!(timer.value_for(100), 5);
        assert_eq!(timer.value_for(96), 4);
        assert_eq!(timer.value_for(u64::MAX), u32::MAX);
        assert_eq!(timer.tsc_of(u32::MAX), 0x1f_ffff_ffe0);
        let each = PreemptionTimer::new(Misc(0));
        assert_eq!((each.value_for(7), each.tsc_of(7)), (7, 7));
        let slowest = PreemptionTimer::new(Misc(0x1f));
        assert_eq!(slowest.tsc_of(u32::MAX), 0x7fff_ffff_8000_0000);
    }
}
