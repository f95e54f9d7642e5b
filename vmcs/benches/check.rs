// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VM-entry check costs, against the limit of loading the fields it reads.
//!
//! `cargo bench -p hvkit-vmcs --bench check [-- --json]`. Hot: one VMCS again and again. Cold: 4,096 VMCSs in turn. The
//! candidates take turns in every round of one run, so that a busy machine disturbs all of them alike; the table gives
//! the least and the median of the rounds.

use std::{cell::RefCell, collections::BTreeSet, hint::black_box, time::Instant};

use hvkit_vmcs::{
    Encoding, Vmcs,
    capability::presets,
    check::{Checker, Discard},
    controls::{Entry, ExitPrimary, PinBased, Primary, Secondary},
    fields as f,
    seed::Seed,
    store::{Fields, FieldsMut},
};

const ROUNDS: usize = 301;
const PER_ROUND: usize = 4096;

/// Loads, each kept, of exactly the fields that the check of [`usual`] reads.
macro_rules! limit {
    ($($field:ident)*) => {
        const LIMIT: &[Encoding] = &[$(f::$field.encoding()),*];
        #[inline(never)]
        fn load(vmcs: &Vmcs) {
            $(black_box(vmcs.get(f::$field.encoding()));)*
        }
    };
}

// The benchmark sees to it that this is the list of fields the check reads.
limit! {
    VPID
    GUEST_SS_SELECTOR
    GUEST_TR_SELECTOR
    HOST_ES_SELECTOR
    HOST_CS_SELECTOR
    HOST_SS_SELECTOR
    HOST_DS_SELECTOR
    HOST_FS_SELECTOR
    HOST_GS_SELECTOR
    HOST_TR_SELECTOR
    IO_BITMAP_A
    IO_BITMAP_B
    MSR_BITMAP
    VIRTUAL_APIC_ADDRESS
    EPT_POINTER
    VMREAD_BITMAP
    VMWRITE_BITMAP
    VMCS_LINK_POINTER
    GUEST_DEBUGCTL
    GUEST_PAT
    GUEST_EFER
    GUEST_PERF_GLOBAL_CTRL
    HOST_PAT
    HOST_EFER
    HOST_PERF_GLOBAL_CTRL
    PIN_BASED_CONTROLS
    PRIMARY_CONTROLS
    CR3_TARGET_COUNT
    PRIMARY_EXIT_CONTROLS
    EXIT_MSR_STORE_COUNT
    EXIT_MSR_LOAD_COUNT
    ENTRY_CONTROLS
    ENTRY_MSR_LOAD_COUNT
    INJECTED_EVENT
    TPR_THRESHOLD
    SECONDARY_CONTROLS
    GUEST_ES_LIMIT
    GUEST_CS_LIMIT
    GUEST_SS_LIMIT
    GUEST_DS_LIMIT
    GUEST_FS_LIMIT
    GUEST_GS_LIMIT
    GUEST_TR_LIMIT
    GUEST_GDTR_LIMIT
    GUEST_IDTR_LIMIT
    GUEST_ES_ACCESS_RIGHTS
    GUEST_CS_ACCESS_RIGHTS
    GUEST_SS_ACCESS_RIGHTS
    GUEST_DS_ACCESS_RIGHTS
    GUEST_FS_ACCESS_RIGHTS
    GUEST_GS_ACCESS_RIGHTS
    GUEST_LDTR_ACCESS_RIGHTS
    GUEST_TR_ACCESS_RIGHTS
    GUEST_INTERRUPTIBILITY
    GUEST_ACTIVITY
    GUEST_CR0
    GUEST_CR3
    GUEST_CR4
    GUEST_ES_BASE
    GUEST_CS_BASE
    GUEST_SS_BASE
    GUEST_DS_BASE
    GUEST_FS_BASE
    GUEST_GS_BASE
    GUEST_TR_BASE
    GUEST_GDTR_BASE
    GUEST_IDTR_BASE
    GUEST_DR7
    GUEST_RIP
    GUEST_RFLAGS
    GUEST_PENDING_DEBUG
    GUEST_SYSENTER_ESP
    GUEST_SYSENTER_EIP
    HOST_CR0
    HOST_CR3
    HOST_CR4
    HOST_FS_BASE
    HOST_GS_BASE
    HOST_TR_BASE
    HOST_GDTR_BASE
    HOST_IDTR_BASE
    HOST_SYSENTER_ESP
    HOST_SYSENTER_EIP
    HOST_RIP
}

/// A 64-bit guest as hypervisors run it: EPT, VPID, TPR shadow, MSR and I/O bitmaps, MSR loading by fields.
fn usual() -> Vmcs {
    let mut vmcs = Seed::LongMode.vmcs(&presets::core_i7_5600u());
    let mut or = |field: Encoding, bits: u64| {
        let old = vmcs.get(field).unwrap();
        vmcs.set(field, old | bits).unwrap();
    };
    let pin =
        PinBased::EXTERNAL_INTERRUPT_EXITING | PinBased::VIRTUAL_NMIS | PinBased::PREEMPTION_TIMER;
    or(f::PIN_BASED_CONTROLS.encoding(), pin.bits().into());
    let primary = Primary::TPR_SHADOW | Primary::MSR_BITMAPS | Primary::IO_BITMAPS;
    or(f::PRIMARY_CONTROLS.encoding(), primary.bits().into());
    let secondary = Secondary::ENABLE_EPT
        | Secondary::ENABLE_VPID
        | Secondary::UNRESTRICTED_GUEST
        | Secondary::ENABLE_RDTSCP
        | Secondary::VMCS_SHADOWING;
    or(f::SECONDARY_CONTROLS.encoding(), secondary.bits().into());
    or(
        f::PRIMARY_EXIT_CONTROLS.encoding(),
        ExitPrimary::LOAD_PERF_GLOBAL_CTRL.bits().into(),
    );
    or(
        f::ENTRY_CONTROLS.encoding(),
        Entry::LOAD_PERF_GLOBAL_CTRL.bits().into(),
    );
    or(f::VPID.encoding(), 1);
    vmcs
}

/// A store that writes down what is read.
struct Recorder<'a>(&'a Vmcs, RefCell<BTreeSet<Encoding>>);

impl Fields for Recorder<'_> {
    fn get(&self, encoding: Encoding) -> Option<u64> {
        self.1.borrow_mut().insert(encoding);
        self.0.get(encoding)
    }
}

struct Timing {
    name: &'static str,
    nanoseconds: Vec<f64>,
}

impl Timing {
    fn least_and_median(&mut self) -> (f64, f64) {
        self.nanoseconds.sort_by(f64::total_cmp);
        (
            self.nanoseconds[0],
            self.nanoseconds[self.nanoseconds.len() / 2],
        )
    }
}

fn time(run: impl Fn(usize)) -> f64 {
    let start = Instant::now();
    for turn in 0..PER_ROUND {
        run(turn);
    }
    start.elapsed().as_nanos() as f64 / PER_ROUND as f64
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let processor = presets::core_i7_5600u();
    let checker = Checker::new(&processor);
    let vmcs = usual();
    let recorder = Recorder(&vmcs, RefCell::default());
    assert!(
        checker.check(&recorder, &mut Discard).enters(),
        "the VMCS of the benchmark enters"
    );
    let read = recorder.1.into_inner();
    let limit: BTreeSet<_> = LIMIT.iter().copied().collect();
    if read != limit {
        for encoding in &read {
            eprintln!("{}", f::find(*encoding).unwrap().id);
        }
        panic!("the limit must load the fields above, which the check reads");
    }

    let many = vec![vmcs.clone(); 4096];
    let checked = |vmcs: &Vmcs| {
        black_box(checker.check(black_box(vmcs), &mut Discard));
    };
    let mut timings =
        ["limit, hot", "check, hot", "limit, cold", "check, cold"].map(|name| Timing {
            name,
            nanoseconds: Vec::new(),
        });
    for _ in 0..ROUNDS {
        timings[0]
            .nanoseconds
            .push(time(|_| load(black_box(&vmcs))));
        timings[1].nanoseconds.push(time(|_| checked(&vmcs)));
        timings[2]
            .nanoseconds
            .push(time(|turn| load(black_box(&many[turn]))));
        timings[3]
            .nanoseconds
            .push(time(|turn| checked(&many[turn])));
    }
    let results = timings.each_mut().map(Timing::least_and_median);
    if json {
        let entry = |(timing, (least, median)): (&Timing, &(f64, f64))| {
            format!(
                "{{\"name\":\"{}\",\"least_ns\":{least:.1},\"median_ns\":{median:.1}}}",
                timing.name
            )
        };
        let entries: Vec<_> = timings.iter().zip(&results).map(entry).collect();
        println!(
            "{{\"fields\":{},\"results\":[{}]}}",
            LIMIT.len(),
            entries.join(",")
        );
        return;
    }
    println!(
        "VM-entry check of {} fields; nanoseconds, {ROUNDS} rounds",
        LIMIT.len()
    );
    println!("{:<14}{:>8}{:>8}", "", "least", "median");
    for (timing, (least, median)) in timings.iter().zip(&results) {
        println!("{:<14}{least:>8.1}{median:>8.1}", timing.name);
    }
    let ratio = |ours: (f64, f64), limit: (f64, f64)| (ours.0 / limit.0, ours.1 / limit.1);
    for (name, (least, median)) in [
        ("hot / limit", ratio(results[1], results[0])),
        ("cold / limit", ratio(results[3], results[2])),
    ] {
        println!("{name:<14}{least:>8.2}{median:>8.2}");
    }
}
