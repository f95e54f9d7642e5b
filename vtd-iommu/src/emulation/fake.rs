// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory and a world for tests. Feature `fake`.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};

use super::host::{Host, NoAnswer};
use super::memory::Memory;
use super::notify::Mapping;
use crate::spec::interrupt::Message;
use crate::spec::invalidation::{AtsRange, DeviceTlb};
use crate::spec::page_request::PageGroupResponse;
use crate::spec::{Pasid, RequesterId};

/// Memory from address 0, of atomic words: threads may share it.
#[derive(Debug)]
pub struct Ram(Vec<AtomicU64>);

/// There is no memory there, or the access is not aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory at {at:#x}")]
pub struct NoMemory {
    /// The address.
    pub at: u64,
}

impl Ram {
    /// `bytes` of zeroes, rounded up to words.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let words = bytes.div_ceil(8);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.len() as u64 * 8
    }

    /// The word at `at`.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn get(&self, at: u64) -> u64 {
        match self.read(at, Width::Eight) {
            Ok(word) => word,
            Err(error) => panic!("{error}"),
        }
    }

    /// Sets the word at `at`.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn set(&self, at: u64, word: u64) {
        if let Err(error) = self.write(at, Width::Eight, word) {
            panic!("{error}");
        }
    }

    /// Sets words from `at` on.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn set_all(&self, at: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.set(at + 8 * i as u64, *word);
        }
    }

    /// Its words, for who has a view of it of their own: a driver, say, to whom memory never fails.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        &self.0
    }

    /// Makes all of it zero again.
    pub fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// A number that any change of any word changes: to see that nothing was touched.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.0.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            (hash ^ word.load(Ordering::Relaxed))
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23)
        })
    }

    #[inline]
    fn slot(&self, at: u64, width: Width) -> Result<&AtomicU64, NoMemory> {
        if !at.is_multiple_of(width.bytes()) {
            return Err(NoMemory { at });
        }
        let index = usize::try_from(at / 8).map_err(|_| NoMemory { at })?;
        self.0.get(index).ok_or(NoMemory { at })
    }
}

impl ReadEntry for Ram {
    type Error = NoMemory;

    #[inline]
    fn read(&self, at: u64, width: Width) -> Result<u64, NoMemory> {
        let word = self.slot(at, width)?.load(Ordering::Acquire);
        Ok(match width {
            Width::Eight => word,
            Width::Four => word >> (8 * (at % 8)) & 0xffff_ffff,
        })
    }
}

impl UpdateEntry for Ram {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, NoMemory> {
        let slot = self.slot(at, width)?;
        let (shift, mask) = match width {
            Width::Eight => (0, u64::MAX),
            Width::Four => (8 * (at % 8), 0xffff_ffff),
        };
        let mut word = slot.load(Ordering::Acquire);
        loop {
            let found = word >> shift & mask;
            if found != current {
                return Ok(found);
            }
            let next = word & !(mask << shift) | (new & mask) << shift;
            match slot.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(found),
                Err(other) => word = other,
            }
        }
    }
}

impl Memory for Ram {
    fn write(&self, at: u64, width: Width, value: u64) -> Result<(), NoMemory> {
        match width {
            Width::Eight => self.slot(at, width)?.store(value, Ordering::Release),
            Width::Four => loop {
                let found = self.read(at, width)?;
                if self.compare_exchange(at, width, found, value)? == found {
                    break;
                }
            },
        }
        Ok(())
    }

    #[inline]
    fn read_words(&self, at: u64, words: &mut [u64]) -> Result<(), NoMemory> {
        self.slot(at, Width::Eight)?;
        let from = usize::try_from(at / 8).map_err(|_| NoMemory { at })?;
        let there = self.0.get(from..).unwrap_or_default();
        let there = there.get(..words.len()).ok_or(NoMemory { at })?;
        for (word, slot) in words.iter_mut().zip(there) {
            *word = slot.load(Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What a [`Journal`] was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Host::message`].
    Message(Message),
    /// [`Host::invalidate_device`].
    Device(DeviceTlb, Option<Pasid>, AtsRange),
    /// [`Host::respond`].
    Response(PageGroupResponse),
    /// [`Host::map`].
    Map(RequesterId, Mapping),
    /// [`Host::unmap`].
    Unmap(RequesterId, Mapping),
}

/// A world that remembers what it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// Everything since it was last emptied, oldest first.
    pub events: Vec<Event>,
    /// Whether devices do not answer.
    pub silent: bool,
}

impl Journal {
    /// Everything since this was last asked.
    pub fn take(&mut self) -> Vec<Event> {
        core::mem::take(&mut self.events)
    }
}

impl Host for Journal {
    fn message(&mut self, message: Message) {
        self.events.push(Event::Message(message));
    }

    fn invalidate_device(
        &mut self,
        device: DeviceTlb,
        pasid: Option<Pasid>,
        range: AtsRange,
    ) -> Result<(), NoAnswer> {
        self.events.push(Event::Device(device, pasid, range));
        if self.silent { Err(NoAnswer) } else { Ok(()) }
    }

    fn respond(&mut self, response: PageGroupResponse) {
        self.events.push(Event::Response(response));
    }

    fn map(&mut self, source: RequesterId, mapping: Mapping) {
        self.events.push(Event::Map(source, mapping));
    }

    fn unmap(&mut self, source: RequesterId, mapping: Mapping) {
        self.events.push(Event::Unmap(source, mapping));
    }
}
