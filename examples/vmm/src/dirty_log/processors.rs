// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest's processors write, as KVM logs it: a bit for each page of a memory slot.

use super::{By, Pages, Writer};
use crate::machine::vm::{Logging, Vm};
use std::io;
use std::sync::Arc;

/// The processors of a machine.
#[derive(Debug)]
pub struct Processors(Arc<Vm>);

impl Processors {
    /// Those of `vm`.
    #[must_use]
    pub fn new(vm: Arc<Vm>) -> Self {
        Processors(vm)
    }
}

impl Writer for Processors {
    fn names(&self) -> Vec<String> {
        vec!["processors".to_owned()]
    }

    fn start(&mut self) -> io::Result<()> {
        self.0.log_writes(Logging::On)
    }

    fn pages(&mut self, pages: &mut Pages) -> io::Result<By> {
        self.0.written(|start, bits| pages.add_bits(start, bits))?;
        Ok(By::Kvm)
    }

    fn stop(&mut self) -> io::Result<()> {
        self.0.log_writes(Logging::Off)
    }
}
