// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver sets up of one queue before it is live.

use crate::queue::{Layout, QueueConfig};

/// Which half of a 64-bit address a 32-bit write goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

impl Half {
    fn put(self, address: &mut u64, value: u32) {
        *address = match self {
            Self::Low => *address & !0xffff_ffff | u64::from(value),
            Self::High => *address & 0xffff_ffff | u64::from(value) << 32,
        };
    }
}

/// The registers of one queue. While it is enabled they keep their values.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    max: u16,
    config: QueueConfig,
    enabled: bool,
}

impl QueueRegisters {
    /// After a reset: the largest size, no addresses, not enabled.
    pub(super) fn new(max: u16) -> Self {
        Self {
            max,
            config: QueueConfig {
                size: max,
                ..QueueConfig::default()
            },
            enabled: false,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    pub(super) fn config(&self) -> &QueueConfig {
        &self.config
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn max(&self) -> u16 {
        self.max
    }

    /// A size that no queue of `layout` has, or above what the device offered, is not taken.
    pub(super) fn set_size(&mut self, size: u16, layout: Layout) {
        if !self.enabled && layout.allows(size) && size <= self.max {
            self.config.size = size;
        }
    }

    pub(super) fn set_descriptor_area(&mut self, half: Half, value: u32) {
        if !self.enabled {
            half.put(&mut self.config.descriptor_area, value);
        }
    }

    pub(super) fn set_driver_area(&mut self, half: Half, value: u32) {
        if !self.enabled {
            half.put(&mut self.config.driver_area, value);
        }
    }

    pub(super) fn set_device_area(&mut self, half: Half, value: u32) {
        if !self.enabled {
            half.put(&mut self.config.device_area, value);
        }
    }

    /// Whether `config` is one that a driver could have made.
    pub(super) fn could_be(&self, config: &QueueConfig, layout: Layout) -> bool {
        // The size after a reset is any that the device offers.
        config.size <= self.max && (layout.allows(config.size) || config.size == self.max)
    }

    /// Takes what was saved.
    pub(super) fn restore(&mut self, config: QueueConfig, enabled: bool) {
        (self.config, self.enabled) = (config, enabled);
    }

    pub(super) fn enable(&mut self) {
        self.enabled = true;
    }

    /// Takes the enabling back. The transport sees to it that nobody serves the queue.
    pub(super) fn disable(&mut self) {
        self.enabled = false;
    }
}
