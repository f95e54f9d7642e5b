// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `intel-iommu` as a peer, over its test socket: what a page-selective descriptor costs it.

use std::time::Instant;

use anyhow::{Result, ensure};
use hvkit_vtd_iommu::spec::registers::{GCMD, IQA, IQH, IQT, RTADDR};
use lab_kit::qtest::{Batch, Edu, Qtest, QtestOptions, VTD};

use crate::machine::{DESCRIPTORS, QUEUE, QUEUE_SIZE, TABLES, TOP};

/// Where every page leads.
const DATA: u64 = 0x8000;

/// A machine of theirs, whose unit keeps some pages.
pub struct Qemu {
    machine: Qtest,
    tail: u64,
}

impl Qemu {
    /// A unit that keeps `live` pages, at most 1,023: with one more QEMU's forgets all.
    ///
    /// # Errors
    ///
    /// No QEMU here, or one that does not do as it is told.
    pub fn new(live: u64) -> Result<Self> {
        if let Some(why) = lab_kit::qtest::missing() {
            anyhow::bail!("{why}");
        }
        let mut machine = QtestOptions::new().iommu("aw-bits=48").start()?;
        let edu = Edu::find(&mut machine)?;
        let address = edu.address();
        let function = u64::from(address.device) << 3 | u64::from(address.function);
        let mut batch = Batch::new();
        batch.writeq(0x1000, 0x2001);
        batch.writeq(0x2000 + 16 * function, TOP | 1);
        batch.writeq(0x2008 + 16 * function, 0x0702);
        batch.writeq(TOP, 0x4003);
        batch.writeq(0x4000, 0x5003);
        for table in 0..=live / 512 {
            batch.writeq(0x5000 + 8 * table, (TABLES + 0x1000 * table) | 3);
        }
        for page in 0..live {
            batch.writeq(TABLES + 8 * page, DATA | 3);
        }
        // Descriptors of a page that is not kept, in every slot, so that what is kept stays. IH: leaves only.
        let descriptor = [0x7_0032u64, (1 << 30) | 1 << 6].map(u64::to_le_bytes);
        let some = descriptor.concat().repeat(256);
        for at in (0..16 * DESCRIPTORS).step_by(some.len()) {
            batch.write(QUEUE + at, &some);
        }
        let register = |offset: u32| VTD + u64::from(offset);
        batch.writeq(register(RTADDR.offset()), 0x1000);
        batch.writeq(register(IQA.offset()), QUEUE | QUEUE_SIZE);
        for command in [1u32 << 30, 1 << 26, 1 << 26 | 1 << 31] {
            batch.writel(register(GCMD.offset()), command);
        }
        machine.run(&batch)?;
        for page in 0..live {
            edu.read_memory(&mut machine, page << 12, 0, 8)?;
        }
        Ok(Self { machine, tail: 0 })
    }

    /// Nanoseconds, by the clock on the wall, from the doorbell of `count` descriptors to the answer that they are done;
    /// the way through the socket is part of it.
    ///
    /// # Errors
    ///
    /// The queue stopped, or QEMU did.
    pub fn ring(&mut self, count: u64) -> Result<f64> {
        self.tail = (self.tail + 16 * count) % (16 * DESCRIPTORS);
        let mut batch = Batch::new();
        batch.writeq(VTD + u64::from(IQT.offset()), self.tail);
        let head = batch.readq(VTD + u64::from(IQH.offset()));
        let start = Instant::now();
        let answers = self.machine.run(&batch)?;
        let took = start.elapsed();
        ensure!(answers.value(head) == self.tail, "the queue stopped");
        Ok(took.as_nanos() as f64)
    }
}
