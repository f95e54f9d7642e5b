// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The numbers of address spaces.

use alloc::vec;
use alloc::vec::Vec;

use super::sets::Tag;
use crate::spec::Pasid;

/// PASIDs whose numbers are known at a time; another in the same place gets a new number.
const PLACES: usize = 1024;

/// A domain's numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Domain {
    /// The generation that `space` is of.
    generation: u32,
    /// 0: none.
    space: u32,
    /// Moves when the numbers of its PASIDs are void.
    link: u32,
    /// Whether a PASID of it has a number since `link` moved.
    pasids: bool,
}

/// The number of one PASID of a domain.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    domain: u16,
    pasid: Pasid,
    generation: u32,
    link: u32,
    /// 0: nothing here.
    space: u32,
}

/// The numbers that a domain has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    /// Its own, or 0.
    pub(super) space: u32,
    /// Whether PASIDs of it may have some.
    pub(super) pasids: bool,
}

/// Who has which number.
#[derive(Clone, Debug)]
pub(super) struct Spaces {
    next: u32,
    /// Moves when every number is void.
    generation: u32,
    domains: Vec<Domain>,
    places: Vec<Place>,
    displaced: bool,
}

const fn place_of(domain: u16, pasid: Pasid) -> usize {
    let hash = pasid.get() ^ (pasid.get() >> 10) ^ (domain as u32).wrapping_mul(0x9e5);
    hash as usize & (PLACES - 1)
}

impl Spaces {
    /// No numbers given out, for `domains` domain-ids.
    pub(super) fn new(domains: u32) -> Self {
        Self {
            next: 1,
            generation: 0,
            domains: vec![Domain::default(); domains as usize],
            places: vec![Place::default(); PLACES],
            displaced: false,
        }
    }

    /// Takes all numbers back: nobody may hold one any more.
    pub(super) fn clear(&mut self) {
        self.next = 1;
        self.generation = 0;
        self.domains.fill(Domain::default());
        self.places.fill(Place::default());
    }

    fn new_number(&mut self) -> Option<u32> {
        if self.next >= Tag::SPACES {
            return None;
        }
        let number = self.next;
        self.next = number.saturating_add(1);
        Some(number)
    }

    /// The number of `domain`, a new one if it has none. `None` if no number is left. A domain-id that the unit
    /// does not have gets 0.
    pub(super) fn domain(&mut self, domain: u16) -> Option<u32> {
        if usize::from(domain) >= self.domains.len() {
            return Some(0);
        }
        match self.of_domain(domain).space {
            0 => {
                let space = self.new_number()?;
                if let Some(entry) = self.domains.get_mut(usize::from(domain)) {
                    entry.generation = self.generation;
                    entry.space = space;
                }
                Some(space)
            }
            space => Some(space),
        }
    }

    /// What `domain` has; nothing if it is a domain-id that the unit does not have.
    #[inline(always)]
    pub(super) fn of_domain(&self, domain: u16) -> Numbers {
        match self.domains.get(usize::from(domain)) {
            Some(entry) => Numbers {
                space: if entry.generation == self.generation {
                    entry.space
                } else {
                    0
                },
                pasids: entry.pasids,
            },
            None => Numbers::default(),
        }
    }

    /// The number of `pasid` of `domain`, a new one if it has none. `None` if no number is left.
    pub(super) fn pasid(&mut self, domain: u16, pasid: Pasid) -> Option<u32> {
        if let Some(space) = self.of_pasid(domain, pasid) {
            return Some(space);
        }
        let Some(entry) = self.domains.get_mut(usize::from(domain)) else {
            return Some(0);
        };
        entry.pasids = true;
        let link = entry.link;
        let space = self.new_number()?;
        if let Some(place) = self.places.get_mut(place_of(domain, pasid)) {
            self.displaced |= place.space != 0;
            *place = Place {
                domain,
                pasid,
                generation: self.generation,
                link,
                space,
            };
        }
        Some(space)
    }

    /// The number that `pasid` of `domain` has.
    pub(super) fn of_pasid(&self, domain: u16, pasid: Pasid) -> Option<u32> {
        let entry = self.domains.get(usize::from(domain))?;
        let place = self.places.get(place_of(domain, pasid))?;
        let valid = place.space != 0
            && place.generation == self.generation
            && place.link == entry.link
            && place.domain == domain
            && place.pasid == pasid;
        valid.then_some(place.space)
    }

    /// Whether the number of a PASID was displaced by another's since this was last asked: it can no longer be voided
    /// by name.
    pub(super) fn displaced(&mut self) -> bool {
        core::mem::take(&mut self.displaced)
    }

    /// Voids every number.
    pub(super) fn renew_all(&mut self) {
        match self.generation.checked_add(1) {
            Some(next) => self.generation = next,
            None => {
                // Old numbers stay out of use: only who has them is forgotten.
                self.generation = 0;
                self.domains.fill(Domain::default());
                self.places.fill(Place::default());
            }
        }
    }

    /// Voids the numbers of a domain and its PASIDs.
    pub(super) fn renew_domain(&mut self, domain: u16) {
        self.renew_pasids(domain);
        if let Some(entry) = self.domains.get_mut(usize::from(domain)) {
            entry.space = 0;
        }
    }

    /// Voids the numbers of a domain's PASIDs; says whether there may have been any.
    #[inline]
    pub(super) fn renew_pasids(&mut self, domain: u16) -> bool {
        match self.domains.get_mut(usize::from(domain)) {
            Some(entry) if entry.pasids => {
                entry.pasids = false;
                match entry.link.checked_add(1) {
                    Some(next) => entry.link = next,
                    None => self.renew_all(),
                }
                true
            }
            _ => false,
        }
    }

    /// Voids the number of one PASID.
    pub(super) fn renew_pasid(&mut self, domain: u16, pasid: Pasid) {
        if let Some(place) = self.places.get_mut(place_of(domain, pasid))
            && place.domain == domain
            && place.pasid == pasid
        {
            place.space = 0;
        }
    }
}
