// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices whose DMA goes through the shadow, by a unit that keeps all that it may.

use std::convert::Infallible;

use hvkit_page_table::Span;
use hvkit_shadow_paging::fake::{FakeHost, FakeTlb, GuestView};
use hvkit_shadow_paging::mmu::{Cause, Machine, Mmu, Owed, Space, Top, Tuning};
use hvkit_shadow_paging::nested::{Grants, Nested, SecondStage as _};
use hvkit_vtd_iommu::tables::{LargePages, SecondStage};

type Engine<'a> = Mmu<Nested<SecondStage>, &'a FakeHost, &'a FakeHost>;
pub(crate) type Domain = Space<Nested<SecondStage>>;

pub(crate) fn unit(levels: u8) -> SecondStage {
    let large = LargePages::TWO_MIB | LargePages::ONE_GIB;
    SecondStage::new(levels, 46)
        .unwrap()
        .with_large_pages(large)
}

/// Devices behind a unit of the host's.
pub(crate) struct Devices<'a> {
    pub(crate) host: &'a FakeHost,
    format: SecondStage,
    pub(crate) iotlb: FakeTlb<SecondStage>,
    pub(crate) mmu: Engine<'a>,
}

impl<'a> Devices<'a> {
    pub(crate) fn new(host: &'a FakeHost, budget: u32) -> Self {
        Self::tuned(host, budget, Tuning::DEVICES)
    }

    pub(crate) fn tuned(host: &'a FakeHost, budget: u32, tuning: Tuning) -> Self {
        Self {
            host,
            format: unit(4),
            iotlb: FakeTlb::default(),
            mmu: Mmu::new(host, host, budget, tuning).unwrap(),
        }
    }

    pub(crate) fn settle(&mut self, owed: Owed) {
        let iotlb = &mut self.iotlb;
        let settled = self.mmu.settle(owed, |flush| {
            iotlb.flush(flush);
            Ok::<(), Infallible>(())
        });
        settled.unwrap();
    }

    pub(crate) fn open(&mut self, guest: SecondStage, root: u64) -> Domain {
        let (host, view) = (self.host, self.host.guest());
        let stage = Nested::new(guest, self.format).unwrap();
        let (domain, owed) = self
            .mmu
            .open(stage, Top::Table(root), machine(host, &view))
            .unwrap();
        self.settle(owed);
        domain
    }

    /// Follows an invalidation; `meanwhile` is what happens before the real unit has forgotten.
    pub(crate) fn follow(
        &mut self,
        domain: &Domain,
        span: Span,
        mut meanwhile: impl FnMut(&mut Self),
    ) {
        for _ in 0..100 {
            let view = self.host.guest();
            let followed = self.mmu.follow(domain, machine(self.host, &view), span);
            meanwhile(self);
            match followed {
                Ok(owed) => return self.settle(owed),
                Err(failed) => {
                    assert!(matches!(failed.cause, Cause::OutOfFrames), "{failed}");
                    assert!(!failed.owed.is_empty(), "frames for all that is mapped");
                    self.settle(failed.owed);
                }
            }
        }
        panic!("frames do not come back");
    }

    /// Where a DMA goes: host-physical, with the rights.
    pub(crate) fn dma(&mut self, domain: &Domain, at: u64) -> Option<(u64, Grants)> {
        let there = self
            .iotlb
            .translate(self.host, &self.format, domain.root(), at);
        let (target, attributes) = there?;
        Some((target, self.format.grants(attributes)))
    }

    pub(crate) fn audit(&self) {
        let view = self.host.guest();
        let machine = machine(self.host, &view);
        self.mmu.audit(machine, |finding| panic!("{finding:x?}"));
    }
}

pub(crate) fn machine<'a>(
    host: &'a FakeHost,
    view: &'a GuestView<'a>,
) -> Machine<'a, GuestView<'a>, FakeHost> {
    Machine {
        memory: view,
        map: host,
    }
}
