// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A processor that translates by shadow tables and forgets nothing that it need not.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hvkit_page_table::{Format, Root, walk};

use super::memory::FakeHost;
use crate::guest::{Access, ErrorCode, Kind, Privilege, cr4};
use crate::mmu::Flush;
use crate::x86::{Hardware, ShadowAttributes, ShadowFormat};

/// A translation, cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cached {
    root: u64,
    linear: u64,
    size: u64,
    target: u64,
    attributes: ShadowAttributes,
}

/// Caches of translations and of upper entries, tagged by root. SDM 3A, "Caching Translation
/// Information".
#[derive(Debug, Default)]
pub struct FakeProcessor {
    tlb: Vec<Cached>,
    /// By root, level and the address bits above it: the table that is there.
    tables: BTreeMap<(u64, u8, u64), u64>,
}

impl FakeProcessor {
    /// Translates `linear` for `access`: by the TLB if it has the page, by the tables otherwise, begun at
    /// the lowest one that is cached.
    ///
    /// # Errors
    ///
    /// The page fault's error code. What is cached of `linear` is forgotten then, as on a processor.
    pub fn translate(
        &mut self,
        memory: &FakeHost,
        hardware: &Hardware,
        linear: u64,
        access: Access,
    ) -> Result<u64, ErrorCode> {
        let mut code = ErrorCode::WRITE.when(access.kind.writes())
            | ErrorCode::USER.when(access.privilege.user())
            | ErrorCode::FETCH.when(access.kind == Kind::Fetch);
        let root = hardware.cr3;
        let cached = self.cached(root, linear);
        if let Some(there) = cached.or_else(|| self.walk(memory, hardware, linear)) {
            if allowed(hardware, there.attributes, access) {
                return Ok(there.target + (linear - there.linear));
            }
            code |= ErrorCode::PRESENT;
        }
        self.tlb
            .retain(|one| one.root != root || !one.covers(linear));
        let shape = *format(hardware).shape();
        self.tables
            .retain(|&(of, level, prefix), _| of != root || linear >> shape.shift(level) != prefix);
        Err(code)
    }

    /// Fills the TLB for `linear`, as speculation may at any time.
    pub fn speculate(&mut self, memory: &FakeHost, hardware: &Hardware, linear: u64) {
        if self.cached(hardware.cr3, linear).is_none() {
            self.walk(memory, hardware, linear);
        }
    }

    fn cached(&self, root: u64, linear: u64) -> Option<Cached> {
        self.tlb
            .iter()
            .find(|one| one.root == root && one.covers(linear))
            .copied()
    }

    fn walk(&mut self, memory: &FakeHost, hardware: &Hardware, linear: u64) -> Option<Cached> {
        let format = format(hardware);
        let shape = *format.shape();
        let root = hardware.cr3;
        let cached = (1..shape.levels()).find_map(|level| {
            let prefix = linear >> shape.shift(level + 1);
            Some((level, *self.tables.get(&(root, level + 1, prefix))?))
        });
        let begin = match cached {
            Some((level, table)) => Root::Inner {
                table,
                level,
                attributes: ShadowAttributes::read_only(0),
            },
            None => Root::Table(root),
        };
        // Panics if a table on the way is not one any more.
        let walk = walk(&format, memory, begin, linear);
        for pair in walk.steps().windows(2) {
            let (Some(level), Some(at)) = (pair.first().map(|step| step.level), pair[1].at) else {
                continue;
            };
            let prefix = linear >> shape.shift(level);
            self.tables.insert((root, level, prefix), at & !0xfff);
        }
        let found = walk.outcome.ok()?;
        let size = shape.size(found.level);
        let there = Cached {
            root,
            linear: linear & !(size - 1),
            size,
            target: found.target & !(size - 1),
            attributes: found.attributes,
        };
        self.tlb.push(there);
        Some(there)
    }

    /// Forgets what `flush` names, and nothing else.
    pub fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::Nothing => (),
            Flush::Span(span) => {
                self.tlb.retain(|one| {
                    let last = one.linear + (one.size - 1);
                    last < span.start || one.linear > span.last()
                });
                // INVLPG forgets all upper entries; INVVPID of an address need not.
            }
            Flush::Everything => {
                self.tlb.clear();
                self.tables.clear();
            }
        }
    }

    /// Panics if anything cached leads to the page at host-physical `host` and admits accesses of `kind`.
    pub fn assert_forgot(&self, host: u64, kind: Kind) {
        for one in &self.tlb {
            let there = (one.target..one.target + one.size).contains(&host);
            assert!(
                !there || kind.writes() && !one.attributes.is_writable(),
                "{host:#x} is still in the TLB: {one:x?}"
            );
        }
    }

    /// How many translations are cached.
    #[must_use]
    pub fn cached_translations(&self) -> usize {
        self.tlb.len()
    }
}

impl Cached {
    fn covers(&self, linear: u64) -> bool {
        linear.wrapping_sub(self.linear) < self.size
    }
}

fn format(hardware: &Hardware) -> ShadowFormat {
    let format = ShadowFormat::new(hardware.layout, 52, 3);
    #[expect(clippy::expect_used, reason = "a shape of the manual's")]
    format.expect("a shape of the manual's")
}

/// Access rights with CR0.WP and EFER.NXE set. SDM 3A, "Determination of Access Rights".
fn allowed(hardware: &Hardware, page: ShadowAttributes, access: Access) -> bool {
    let user = access.privilege == Privilege::User;
    if user && !page.is_user() {
        return false;
    }
    let to_user = !user && page.is_user();
    match access.kind {
        Kind::Fetch => page.is_executable() && !(to_user && hardware.cr4 & cr4::SMEP != 0),
        kind => {
            let prevented = to_user
                && hardware.cr4 & cr4::SMAP != 0
                && access.privilege != Privilege::SupervisorAc;
            !prevented && (page.is_writable() || !kind.writes())
        }
    }
}
