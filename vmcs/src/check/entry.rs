// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Basic VM-entry checks: may the instruction begin at all?
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use super::{
    CurrentVmcs, EntryInstruction, LaunchState,
    context::Run,
    memory::PhysicalMemory,
    report::{Expected, Place, Sink},
    rule::{Area, declare},
};
use crate::store::Fields;

declare! { RULES: Area::NoVmcs, "Basic VM-Entry Checks";
    NO_CURRENT_VMCS = "entry.current-vmcs", [],
        "There must be a current VMCS.";
    SHADOW_VMCS = "entry.not-shadow", [],
        "The current VMCS must not be a shadow VMCS.";
    MOV_SS = "entry.mov-ss" (Area::Basic(26)), [],
        "There must be no blocking by MOV SS.";
    LAUNCH_CLEAR = "entry.launch-clear" (Area::Basic(4)), [],
        "VMLAUNCH needs a VMCS whose launch state is clear.";
    RESUME_LAUNCHED = "entry.resume-launched" (Area::Basic(5)), [],
        "VMRESUME needs a VMCS whose launch state is launched.";
}

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>) {
    let now = run.now;
    let broken = [
        (now.current_vmcs == CurrentVmcs::None, &NO_CURRENT_VMCS),
        (now.current_vmcs == CurrentVmcs::Shadow, &SHADOW_VMCS),
        (now.mov_ss_blocking, &MOV_SS),
        (
            now.instruction == EntryInstruction::Launch
                && now.launch_state == LaunchState::Launched,
            &LAUNCH_CLEAR,
        ),
        (
            now.instruction == EntryInstruction::Resume && now.launch_state == LaunchState::Clear,
            &RESUME_LAUNCHED,
        ),
    ];
    for (is_broken, rule) in broken {
        if is_broken {
            run.broken(rule, Place::Processor, 0, Expected::AsTheRuleSays);
        }
    }
}
