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

include!("check_fields.rs");

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
        panic!("the limit must load what the check reads: replace benches/check_fields.rs");
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
