// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's VT-d unit over the test socket: registers, tables of raw words, faults.

use lab_kit::qtest::{Batch, DmaError, Edu, Level, Qtest, QtestError, QtestOptions, VTD};

// VT-d 4.1, "Register Descriptions": offsets.
const VERSION: u64 = VTD;
const CAPABILITY: u64 = VTD + 0x08;
const GLOBAL_COMMAND: u64 = VTD + 0x18;
const GLOBAL_STATUS: u64 = VTD + 0x1c;
const ROOT_TABLE: u64 = VTD + 0x20;
const CONTEXT_COMMAND: u64 = VTD + 0x28;
const FAULT_STATUS: u64 = VTD + 0x34;

// Where the test keeps its tables and pages.
const ROOT: u64 = 0x10_0000;
const CONTEXT: u64 = 0x10_1000;
const LEVEL4: u64 = 0x10_2000;
const LEVEL3: u64 = 0x10_3000;
const LEVEL2: u64 = 0x10_4000;
const LEVEL1: u64 = 0x10_5000;
const SOURCE: u64 = 0x20_0000;
const TARGET: u64 = 0x20_1000;

#[test]
fn the_unit_says_what_it_can() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let mut machine = QtestOptions::new().start().unwrap();
    let mut batch = Batch::new();
    let version = batch.readl(VERSION);
    let capability = batch.readq(CAPABILITY);
    let answers = machine.run(&batch).unwrap();
    // Major version 1 in bits 7:4, minor 0.
    assert_eq!(answers.value(version), 0x10);
    let capability = answers.value(capability);
    // SAGAW, bits 12:8: 3- and 4-level tables. MGAW, bits 21:16: 48 bits, less one.
    assert_eq!(capability >> 8 & 0x1f, 0b00110, "{capability:#x}");
    assert_eq!(capability >> 16 & 0x3f, 47, "{capability:#x}");
    // A narrower unit is one option away.
    let mut narrow = QtestOptions::new().iommu("aw-bits=39").start().unwrap();
    let capability = narrow.readq(CAPABILITY).unwrap();
    assert_eq!(capability >> 8 & 0x1f, 0b00010, "{capability:#x}");
    assert_eq!(capability >> 16 & 0x3f, 38, "{capability:#x}");
}

#[test]
fn without_translation_a_device_reaches_memory() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let mut machine = QtestOptions::new().start().unwrap();
    let edu = Edu::find(&mut machine).unwrap();
    assert_eq!(edu.address().requester_id(), 0x0018);
    machine.write(SOURCE, b"sixteen bytes...").unwrap();
    edu.read_memory(&mut machine, SOURCE, 8, 16).unwrap();
    edu.write_memory(&mut machine, TARGET, 8, 16).unwrap();
    assert_eq!(machine.read(TARGET, 17).unwrap(), b"sixteen bytes...\0");
}

#[test]
fn with_translation_a_device_reaches_what_the_tables_say() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let mut machine = QtestOptions::new().start().unwrap();
    let edu = Edu::find(&mut machine).unwrap();
    machine.write(SOURCE, b"through VT-d").unwrap();

    // Root entry of bus 0: present, context table. Context entry of 00:03.0: present, second-stage
    // only, 4 levels, domain 7. Then four levels, each with read and write in bits 1:0.
    let mut batch = Batch::new();
    batch.writeq(ROOT, CONTEXT | 1);
    batch.writeq(CONTEXT + 0x18 * 16, LEVEL4 | 1);
    batch.writeq(CONTEXT + 0x18 * 16 + 8, 7 << 8 | 2);
    batch.writeq(LEVEL4, LEVEL3 | 3);
    batch.writeq(LEVEL3, LEVEL2 | 3);
    batch.writeq(LEVEL2, LEVEL1 | 3);
    batch.writeq(LEVEL1 + 5 * 8, SOURCE | 1); // 0x5000: read only
    batch.writeq(LEVEL1 + 6 * 8, TARGET | 3); // 0x6000: both
    batch.writeq(LEVEL1 + 7 * 8, SOURCE | 1); // 0x7000: read only
    machine.run(&batch).unwrap();
    enable(&mut machine);

    edu.read_memory(&mut machine, 0x5000, 0, 12).unwrap();
    edu.write_memory(&mut machine, 0x6010, 0, 12).unwrap();
    assert_eq!(machine.read(TARGET + 0x10, 12).unwrap(), b"through VT-d");
    assert_eq!(machine.readl(FAULT_STATUS).unwrap(), 0);

    // VT-d 4.1, "Fault Recording Registers"; reasons 5, 6 and 4 of "Software Fault Reasons": a
    // write without write permission, a read without read permission, an address that is too wide.
    edu.write_memory(&mut machine, 0x7000, 4, 4).unwrap();
    assert_eq!(machine.read(SOURCE, 4).unwrap(), b"thro", "not written");
    // Fault event control: masked since reset, so the event is left pending.
    assert_eq!(machine.readl(VTD + 0x38).unwrap(), 0xc000_0000);
    assert_eq!(take_fault(&mut machine), (0x7000, 0x8000_0005_0000_0018));
    edu.read_memory(&mut machine, 0x9000, 0, 4).unwrap();
    assert_eq!(take_fault(&mut machine), (0x9000, 0xc000_0006_0000_0018));
    edu.read_memory(&mut machine, 1 << 50, 0, 4).unwrap();
    assert_eq!(take_fault(&mut machine), (1 << 50, 0xc000_0004_0000_0018));
}

/// Sets the root table, flushes both caches, switches translation on.
fn enable(machine: &mut Qtest) {
    // ECAP.IRO, bits 17:8, times 16: the IOTLB registers; the command is the second of them.
    let extended = machine.readq(VTD + 0x10).unwrap();
    let iotlb_command = VTD + (extended >> 8 & 0x3ff) * 16 + 8;
    let mut batch = Batch::new();
    batch.writeq(ROOT_TABLE, ROOT);
    batch.writel(GLOBAL_COMMAND, 1 << 30);
    let root_set = batch.readl(GLOBAL_STATUS);
    batch.writeq(CONTEXT_COMMAND, 1 << 63 | 1 << 61);
    batch.writeq(iotlb_command, 1 << 63 | 1 << 60);
    batch.writel(GLOBAL_COMMAND, 1 << 31);
    let enabled = batch.readl(GLOBAL_STATUS);
    let answers = machine.run(&batch).unwrap();
    assert_eq!(answers.value(root_set) >> 30 & 1, 1, "RTPS");
    assert_eq!(answers.value(enabled) >> 31 & 1, 1, "TES");
}

/// The two words of the one recorded fault, which is then cleared.
fn take_fault(machine: &mut Qtest) -> (u64, u64) {
    // CAP.FRO, bits 33:24, times 16.
    let record = VTD + (machine.readq(CAPABILITY).unwrap() >> 24 & 0x3ff) * 16;
    let mut batch = Batch::new();
    let status = batch.readl(FAULT_STATUS);
    let low = batch.readq(record);
    let high = batch.readq(record + 8);
    batch.writel(record + 12, 1 << 31);
    batch.writel(FAULT_STATUS, 1);
    let after = batch.readl(FAULT_STATUS);
    let answers = machine.run(&batch).unwrap();
    // PPF, bit 1: a fault is pending; FRI, bits 15:8: in record 0.
    assert_eq!(answers.value(status) & 0xff02, 2, "fault status before");
    assert_eq!(answers.value(after), 0, "fault status after");
    // F, T, the reason, PP and the source id; the rest means nothing while PP (bit 31) is clear,
    // and QEMU leaves ones in the PASID value there.
    (
        answers.value(low),
        answers.value(high) & 0xc000_00ff_8000_ffff,
    )
}

#[test]
fn an_interrupt_line_can_be_watched() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let mut machine = QtestOptions::new().start().unwrap();
    let edu = Edu::find(&mut machine).unwrap();
    machine.intercept_interrupts("ioapic").unwrap();
    edu.raise_interrupt(&mut machine, 1).unwrap();
    edu.acknowledge_interrupt(&mut machine, 1).unwrap();
    machine.readl(VERSION).unwrap();
    let seen = machine.interrupts();
    // PCI lines are above the 16 of ISA, where the timer is seen too.
    let pci: Vec<_> = seen.iter().filter(|change| change.line >= 16).collect();
    let levels: Vec<Level> = pci.iter().map(|change| change.level).collect();
    assert_eq!(levels, [Level::High, Level::Low], "{seen:?}");
    assert_eq!(pci[0].line, pci[1].line);
}

#[test]
fn many_requests_go_in_one_flush() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let mut machine = QtestOptions::new().start().unwrap();
    let mut batch = Batch::new();
    let words: Vec<_> = (0..20_000u64)
        .map(|n| {
            batch.writeq(ROOT + n * 8, n * n);
            batch.readq(ROOT + n * 8)
        })
        .collect();
    let large: Vec<u8> = (0..1 << 20).map(|n: u32| (n >> 3) as u8).collect();
    batch.write(0x100_0000, &large);
    let back = batch.read(0x100_0000, large.len());
    let answers = machine.run(&batch).unwrap();
    for (n, word) in (0..).zip(words) {
        assert_eq!(answers.value(word), n * n);
    }
    assert!(answers.bytes(back) == large);
}

#[test]
fn what_goes_wrong_is_told_apart() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let error = QtestOptions::new().device("no-such").start().unwrap_err();
    match error.downcast_ref() {
        Some(QtestError::Ended { stderr }) => assert!(stderr.contains("no-such"), "{stderr}"),
        other => panic!("{other:?}"),
    }
    let error = QtestOptions::new().qemu("sleep").start().unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(QtestError::Ended { .. })),
        "{error:#}"
    );

    let mut machine = QtestOptions::new().start().unwrap();
    let error = machine.intercept_interrupts("/no/such/device").unwrap_err();
    match error.downcast_ref() {
        Some(QtestError::Refused { request, answer }) => {
            assert_eq!(request, "irq_intercept_in /no/such/device");
            assert!(answer.starts_with("FAIL"), "{answer}");
        }
        other => panic!("{other:?}"),
    }
    let edu = Edu::find(&mut machine).unwrap();
    let error = edu.read_memory(&mut machine, SOURCE, 4000, 97).unwrap_err();
    assert_eq!(
        error.downcast_ref(),
        Some(&DmaError::Outside {
            offset: 4000,
            length: 97
        })
    );
    // After a refusal the machine still answers.
    assert_eq!(machine.readl(VERSION).unwrap(), 0x10);
}
