// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! x86 paging as a stage: what a guest's entries come to in ours.
//!
//! The real processor always runs with CR0.WP and EFER.NXE set, and with the guest's CR4.SMEP and
//! CR4.SMAP. What a guest has otherwise is in the entries:
//!
//! ```text
//!  the guest's page        CR0.WP = 1      CR0.WP = 0, access is ...
//!  U/S R/W                                 a supervisor's write        any other
//!   1   1                  U W             U W                         U W
//!   1   0                  U               W, no U, XD if SMEP         U
//!   0   1                  W               W                           W
//!   0   0                  -               W                           W
//!  W only once the guest's D is set; nothing at all before its A is.
//! ```
//!
//! The second row flips between two forms. With SMAP it has only one: the supervisor's write is
//! emulated.

use core::convert::Infallible;

use hvkit_page_table::{Entry, Format, Root, Shape, ShapeError, Step, UpdateEntry};

use super::attributes::ShadowAttributes;
use super::format::{ShadowFormat, ShadowLayout};
use super::hardware::Processor;
use crate::guest::entry::{ACCESSED, DIRTY};
use crate::guest::{
    Access, AccessControl, GuestAttributes, GuestFault, Kind, Layout, PagingMode, direct, resolve,
};
use crate::mmu::{HostRights, Meaning, Path, Rights, Stage, Stopped, Table, Top};

/// One mode of x86 paging, without its root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    mode: PagingMode,
    shadow: ShadowFormat,
}

/// A feature that shadow tables cannot express. The guest's CPUID must not offer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// CR4.PKE or CR4.PKS: protection keys.
    #[error("protection keys")]
    ProtectionKeys,
    /// CR4.CET: shadow stacks.
    #[error("shadow stacks")]
    ShadowStacks,
    /// CR4.LA57, which the real processor lacks.
    #[error("5-level paging")]
    FiveLevelPaging,
    /// A processor without such a layout.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

const WRITE: u16 = 1 << 0;
const USER: u16 = 1 << 1;
const EXECUTE: u16 = 1 << 2;
const WRITTEN: u16 = 1 << 3;
const PAT_SHIFT: u32 = 4;
/// Bits that grant if every entry has them; the others are the last entry's.
const GRANTS: u16 = WRITE | USER | EXECUTE;

fn grants(attributes: GuestAttributes) -> Rights {
    let bit = |bit, set| if set { bit } else { 0 };
    Rights(
        bit(WRITE, attributes.writable())
            | bit(USER, attributes.user())
            | bit(EXECUTE, attributes.executable()),
    )
}

fn of_page(attributes: GuestAttributes, written: bool) -> Rights {
    let written = if written { WRITTEN } else { 0 };
    Rights(grants(attributes).0 | written | u16::from(attributes.pat()) << PAT_SHIFT)
}

impl Linear {
    /// What `mode` means on `processor`.
    ///
    /// # Errors
    ///
    /// The mode uses protection keys or shadow stacks, or 5-level paging that the processor lacks.
    pub fn new(mode: &PagingMode, processor: Processor) -> Result<Self, Unsupported> {
        let control = mode.control();
        if control.user_keys.is_some() || control.supervisor_keys.is_some() {
            return Err(Unsupported::ProtectionKeys);
        }
        let layout = match mode.format().map(|format| format.layout()) {
            None | Some(Layout::ThirtyTwoBit | Layout::Pae) => ShadowLayout::Pae,
            Some(Layout::FourLevel) => ShadowLayout::FourLevel,
            Some(Layout::FiveLevel) => ShadowLayout::FiveLevel,
        };
        if layout == ShadowLayout::FiveLevel && !processor.five_level_paging {
            return Err(Unsupported::FiveLevelPaging);
        }
        let bits = processor.physical_address_bits;
        let shadow = ShadowFormat::new(layout, bits, processor.largest())?;
        let mode = mode.rootless();
        Ok(Self { mode, shadow })
    }

    /// Where the tables of `mode` begin.
    #[must_use]
    pub fn top(mode: &PagingMode) -> Top {
        match mode.root() {
            Some(Root::Table(frame)) => Top::Table(frame),
            Some(Root::Registers(&[a, b, c, d])) => Top::Registers([a, b, c, d]),
            _ => Top::Direct,
        }
    }

    fn control(&self) -> &AccessControl {
        self.mode.control()
    }

    /// Whether a supervisor may write the page, and whether a user may.
    fn writers(&self, rights: Rights) -> (bool, bool) {
        let user = rights.0 & (WRITE | USER) == WRITE | USER;
        let supervisor = rights.0 & WRITE != 0 || !self.control().write_protect;
        (supervisor, user)
    }

    /// The form of a page that supervisors may write and users only read, while they write it.
    fn lent(&self, rights: Rights) -> Option<Rights> {
        let control = self.control();
        let apart = rights.0 & (WRITE | USER) == USER && !control.write_protect;
        let execute = if control.smep { 0 } else { EXECUTE };
        let rest = rights.0 & (execute | WRITTEN | 0b111 << PAT_SHIFT);
        (apart && !control.smap).then_some(Rights(rest | WRITE))
    }
}

/// An entry with exactly `rights`, less what the host withholds.
fn spelled(rights: Rights, host: HostRights) -> ShadowAttributes {
    let mut attributes = ShadowAttributes::read_only((rights.0 >> PAT_SHIFT) as u8);
    if rights.0 & (WRITE | WRITTEN) == WRITE | WRITTEN && host.write {
        attributes = attributes.writable();
    }
    if rights.0 & USER != 0 {
        attributes = attributes.of_user();
    }
    if rights.0 & EXECUTE != 0 && host.execute {
        attributes = attributes.executable();
    }
    attributes
}

/// Whether `attributes` are `most`, or less of W and X.
fn within(attributes: ShadowAttributes, most: ShadowAttributes) -> bool {
    attributes.is_user() == most.is_user()
        && attributes.pat() == most.pat()
        && (most.is_writable() || !attributes.is_writable())
        && (most.is_executable() || !attributes.is_executable())
}

/// What is needed of a guest's path: see [`Path`].
#[derive(Clone)]
struct Way {
    tables: [Table; 5],
    /// Granted by the entries so far.
    above: Rights,
    /// The last entry's level, and the entry.
    level: u8,
    entry: u64,
}

impl Way {
    #[inline(always)]
    fn note(&mut self, step: Step<GuestAttributes>) {
        if let Some(slot) = self.tables.get_mut(usize::from(step.level).wrapping_sub(1)) {
            let frame = step.at.unwrap_or(0) & !0xfff;
            let above = self.above;
            *slot = Table { frame, above };
        }
        self.above = step.attributes.map_or(self.above, grants);
        (self.level, self.entry) = (step.level, step.entry);
    }
}

impl Stage for Linear {
    type Shadow = ShadowFormat;
    type Access = Access;
    type Refusal = GuestFault<Infallible>;

    #[inline]
    fn shadow(&self) -> &ShadowFormat {
        &self.shadow
    }

    #[inline]
    fn guest(&self) -> Option<&Shape> {
        self.mode.format().map(Format::shape)
    }

    fn all(&self) -> Rights {
        match self.mode.format() {
            Some(_) => Rights(GRANTS),
            None => Rights(GRANTS | WRITTEN),
        }
    }

    fn root_bits(&self) -> u32 {
        match self.shadow.layout() {
            ShadowLayout::Pae => 32,
            ShadowLayout::FourLevel | ShadowLayout::FiveLevel => 52,
        }
    }

    fn resolve<M: UpdateEntry>(
        &self,
        top: &Top,
        memory: &M,
        address: u64,
        access: Access,
    ) -> Result<Path, Stopped<Self::Refusal, M::Error>> {
        let root = match top {
            Top::Table(frame) => Root::Table(*frame),
            Top::Registers(entries) => Root::Registers(entries),
            Top::Direct => {
                let there = direct(address).map_err(stopped)?;
                return Ok(Path {
                    tables: [Table::default(); 5],
                    target: there.physical,
                    level: self.shadow.shape().levels(),
                    shift: there.size.trailing_zeros(),
                    rights: self.all(),
                });
            }
        };
        let blank = Way {
            tables: [Table::default(); 5],
            above: self.all(),
            level: 1,
            entry: 0,
        };
        let made = resolve(&self.mode, memory, root, address, access, &blank, Way::note);
        let (there, way) = made.map_err(stopped)?;
        let written = access.kind.writes() || way.entry & DIRTY != 0;
        Ok(Path {
            tables: way.tables,
            target: there.physical,
            level: way.level,
            shift: there.size.trailing_zeros(),
            rights: of_page(there.attributes, written),
        })
    }

    fn meaning(&self, entry: u64, level: u8, above: Rights) -> Meaning {
        let Some(format) = self.mode.format() else {
            return Meaning::Nothing;
        };
        let register = format.layout() == Layout::Pae && level == 3;
        if entry & ACCESSED == 0 && !register {
            return Meaning::Nothing;
        }
        match format.decode(entry, level) {
            Entry::Table { frame, attributes } => Meaning::Table(Table {
                frame,
                above: Rights(above.0 & grants(attributes).0),
            }),
            Entry::Leaf { target, attributes } => {
                let here = of_page(attributes, entry & DIRTY != 0).0;
                let rights = Rights(here & (above.0 | !GRANTS));
                Meaning::Page { target, rights }
            }
            Entry::Empty | Entry::Malformed(_) => Meaning::Nothing,
        }
    }

    fn grant(
        &self,
        rights: Rights,
        host: HostRights,
        access: Option<Access>,
    ) -> Option<ShadowAttributes> {
        let (supervisor, _) = self.writers(rights);
        // Of a supervisor's page, nobody else can use the right.
        let usual = if supervisor && rights.0 & USER == 0 {
            Rights(rights.0 | WRITE)
        } else {
            rights
        };
        let usual = spelled(usual, host);
        let Some(access) = access else {
            return Some(usual);
        };
        match access.kind {
            Kind::Write if usual.is_writable() => Some(usual),
            Kind::Write => {
                let lent = spelled(self.lent(rights)?, host);
                lent.is_writable().then_some(lent)
            }
            Kind::Fetch => usual.is_executable().then_some(usual),
            _ => Some(usual),
        }
    }

    fn admits(&self, attributes: ShadowAttributes, rights: Rights, host: HostRights) -> bool {
        let usual = self.grant(rights, host, None);
        usual.is_some_and(|usual| within(attributes, usual))
            || self
                .lent(rights)
                .is_some_and(|lent| within(attributes, spelled(lent, host)))
    }

    #[inline]
    fn includes(&self, now: Rights, then: Rights) -> bool {
        now == then || now.0 == then.0 | WRITTEN
    }

    fn protect(&self, attributes: ShadowAttributes) -> Option<ShadowAttributes> {
        // A lent page without its write would be a page that no access asks for, but a right one.
        Some(attributes.protected())
    }

    #[inline]
    fn writes(&self, access: Access) -> bool {
        access.kind.writes()
    }
}

/// What stopped the walk: the guest's business or not.
fn stopped<E>(fault: GuestFault<E>) -> Stopped<GuestFault<Infallible>, E> {
    match fault {
        GuestFault::Page {
            linear,
            code,
            cause,
        } => Stopped::Refused(GuestFault::Page {
            linear,
            code,
            cause,
        }),
        GuestFault::NonCanonical { linear } => {
            Stopped::Refused(GuestFault::NonCanonical { linear })
        }
        GuestFault::TooWide { linear } => Stopped::Refused(GuestFault::TooWide { linear }),
        GuestFault::Memory { level, at, error } => Stopped::Memory { level, at, error },
        GuestFault::Contended { .. } => Stopped::Contended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Features, Registers, cr0, cr4, efer};

    /// What one leaf permits: user mode, supervisor mode; each reading, writing, fetching.
    type Permits = [[bool; 3]; 2];

    /// Of a page of these rights. SDM Vol. 3A, "Determination of Access Rights".
    fn permits(write: bool, user: bool, execute: bool, [wp, smep, smap]: [bool; 3]) -> Permits {
        let reaches = !(user && smap);
        let fetches = execute && !(user && smep);
        [
            [user, user && write, user && execute],
            [reaches, reaches && (write || !wp), fetches],
        ]
    }

    fn mode(wp: bool, smep: bool, smap: bool) -> Linear {
        let features = Features::all(40);
        let bit = |bit, set| if set { bit } else { 0 };
        let registers = Registers {
            cr0: cr0::PG | cr0::PE | bit(cr0::WP, wp),
            cr4: cr4::PAE | bit(cr4::SMEP, smep) | bit(cr4::SMAP, smap),
            efer: efer::LME | efer::NXE,
            ..Registers::default()
        };
        let mode = PagingMode::with_pdptes(&registers, &features, [0; 4]).unwrap();
        Linear::new(&mode, Processor::like(&features)).unwrap()
    }

    /// Of every right in every mode: no leaf that is taken for right grants what guest or host refuse, and each access that
    /// both grant is granted by some such leaf. The real processor has WP set, and the guest's SMEP and SMAP.
    #[test]
    fn leaves_grant_what_guest_and_host_do_and_no_more() {
        let all = || (0u32..1 << 9).map(|bits| move |bit: u32| bits >> bit & 1 == 1);
        for is in all() {
            let (wp, smep, smap) = (is(0), is(1), is(2));
            let linear = mode(wp, smep, smap);
            let (write, user, execute, dirty) = (is(3), is(4), is(5), is(6));
            let host = HostRights {
                write: is(7),
                execute: is(8),
            };
            let bit = |bit, set| if set { bit } else { 0 };
            let rights = Rights(
                bit(WRITE, write) | bit(USER, user) | bit(EXECUTE, execute) | bit(WRITTEN, dirty),
            );
            let mut granted = permits(write, user, execute, [wp, smep, smap]);
            for mode in &mut granted {
                // A write to a page whose dirty flag is clear has to be seen.
                mode[1] &= host.write && dirty;
                mode[2] &= host.execute;
            }
            let mut reached: Permits = Default::default();
            for (w, u, x) in (0u8..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
                let mut leaf = ShadowAttributes::read_only(0);
                if w {
                    leaf = leaf.writable();
                }
                if u {
                    leaf = leaf.of_user();
                }
                if x {
                    leaf = leaf.executable();
                }
                if !linear.admits(leaf, rights, host) {
                    continue;
                }
                let there = permits(w, u, x, [true, smep, smap]);
                for (mode, kind) in (0..6).map(|at| (at / 3, at % 3)) {
                    assert!(
                        granted[mode][kind] || !there[mode][kind],
                        "{rights:?}, {host:?}, {:?}: {leaf:?} grants {mode}/{kind}",
                        [wp, smep, smap]
                    );
                    reached[mode][kind] |= there[mode][kind];
                }
            }
            // Under SMAP no leaf lends a user's page to a supervisor.
            let lends = granted[1][1] && user && !write;
            if !(lends && smap) {
                assert_eq!(
                    reached,
                    granted,
                    "{rights:?}, {host:?}, {:?}",
                    [wp, smep, smap]
                );
            }
        }
    }
}
