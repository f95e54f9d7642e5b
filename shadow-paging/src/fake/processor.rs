// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A processor that translates by shadow tables and forgets nothing that it need not.

use super::memory::FakeHost;
use super::tlb::FakeTlb;
use crate::guest::{Access, ErrorCode, Kind, Privilege, cr4};
use crate::mmu::Flush;
use crate::x86::{Hardware, ShadowAttributes, ShadowFormat};

/// A processor that walks shadow tables: a [`FakeTlb`], and the rules for who may do what.
#[derive(Debug, Default)]
pub struct FakeProcessor {
    caches: FakeTlb<ShadowFormat>,
}

impl FakeProcessor {
    /// Translates `linear` for `access`.
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
        let (root, format) = (hardware.cr3, format(hardware));
        if let Some(there) = self.caches.look(memory, &format, root, linear) {
            if allowed(hardware, there.attributes, access) {
                return Ok(there.target(linear));
            }
            code |= ErrorCode::PRESENT;
        }
        self.caches.forget(&format, root, linear);
        Err(code)
    }

    /// Fills the TLB for `linear`, as speculation may at any time.
    pub fn speculate(&mut self, memory: &FakeHost, hardware: &Hardware, linear: u64) {
        let format = format(hardware);
        self.caches.speculate(memory, &format, hardware.cr3, linear);
    }

    /// Forgets what `flush` names, and nothing else.
    pub fn flush(&mut self, flush: Flush) {
        self.caches.flush(flush);
    }

    /// Panics if anything cached leads to the page at host-physical `host` and admits accesses of `kind`.
    pub fn assert_forgot(&self, host: u64, kind: Kind) {
        self.caches.assert_forgot(host, |attributes| {
            !kind.writes() || attributes.is_writable()
        });
    }

    /// How many translations are cached.
    #[must_use]
    pub fn cached_translations(&self) -> usize {
        self.caches.len()
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
