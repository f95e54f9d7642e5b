// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One access, from its linear address to a physical one or to the fault a processor would report.

use hvkit_page_table::{
    Fault, Format, ReadEntry, Root, Step, Translation, UpdateEntry, Walk, visit, walk,
};

use super::access::{Access, Kind};
use super::attributes::GuestAttributes;
use super::error_code::ErrorCode;
use super::fault::{Cause, GuestFault};
use super::format::{GuestFormat, Layout};
use super::marks::{Unmarked, Use, mark};
use super::mode::PagingMode;
use super::reserved::Reserved;

/// How often entries may change under us before we give up. Each round loses only to someone else's
/// progress, so a few are plenty for processors and devices; only an adversary needs a bound.
const ATTEMPTS: u32 = 16;

/// The bytes that a direct map covers: every linear address outside IA-32e mode.
const DIRECT: u64 = 1 << 32;

/// Where an allowed access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestTranslation {
    /// The physical address of the byte at the linear address.
    pub physical: u64,
    /// Bytes of the page it is in; without paging, 4 GiB.
    pub size: u64,
    /// What the tables say of the page, for any access.
    pub attributes: GuestAttributes,
}

/// Translates `linear` for `access` and sets accessed and dirty flags in `memory`, as a processor does.
///
/// The access is to one page: one that crosses a boundary is two.
///
/// An access that faults sets no flag, see the crate's front page for what the manual says of it.
///
/// # Errors
///
/// The [`GuestFault`]: the exception to inject, or why the tables could not be used.
pub fn translate<M: UpdateEntry>(
    mode: &PagingMode,
    memory: &M,
    linear: u64,
    access: Access,
) -> Result<GuestTranslation, GuestFault<M::Error>> {
    let Some(root) = mode.root() else {
        return direct(linear);
    };
    let made = resolve(mode, memory, root, linear, access, &(), |(), _| ());
    made.map(|(there, ())| there)
}

/// [`translate`] from another root, where there are tables. `note` is told of the entries on the way, the root's first, and
/// writes down what is needed of them in a copy of `blank`.
#[inline]
pub(crate) fn resolve<M: UpdateEntry, N: Clone>(
    mode: &PagingMode,
    memory: &M,
    root: Root<'_, GuestAttributes>,
    linear: u64,
    access: Access,
    blank: &N,
    note: impl Fn(&mut N, Step<GuestAttributes>),
) -> Result<(GuestTranslation, N), GuestFault<M::Error>> {
    let Some(format) = mode.format() else {
        return Err(GuestFault::TooWide { linear });
    };
    // In the common case no flag is left to be set: of the path nothing is kept but what tells so.
    let (mut all, mut last, mut noted) = (u64::MAX, u64::MAX, blank.clone());
    let outcome = visit(format, memory, root, linear, |step| {
        if step.at.is_some() {
            all &= step.entry;
            last = step.entry;
        }
        note(&mut noted, step);
    });
    let allowed = answer(mode, format, outcome, linear, access)?;
    let marks = format.marks();
    let dirty = if access.kind.writes() { marks.dirty } else { 0 };
    if marks.accessed & !all | dirty & !last == 0 {
        return Ok((allowed, noted));
    }
    let (allowed, walk) = resolve_marking(mode, format, memory, root, (linear, access))?;
    let mut noted = blank.clone();
    walk.steps().iter().for_each(|&step| note(&mut noted, step));
    Ok((allowed, noted))
}

/// An allowed access, and the whole walk that it took in memory whose error is `E`.
type Marked<E> = (GuestTranslation, Walk<GuestAttributes, Reserved, E>);

/// Walks, judges, and sets what flags are not set.
#[inline(never)]
fn resolve_marking<M: UpdateEntry>(
    mode: &PagingMode,
    format: &GuestFormat,
    memory: &M,
    root: Root<'_, GuestAttributes>,
    (linear, access): (u64, Access),
) -> Result<Marked<M::Error>, GuestFault<M::Error>> {
    let page_use = if access.kind.writes() {
        Use::Write
    } else {
        Use::Read
    };
    for _ in 0..ATTEMPTS {
        let walk = walk(format, memory, root, linear);
        let there = match walk.outcome {
            Ok(there) => there,
            Err(fault) => return Err(ended(mode, format.layout(), fault, linear, access)),
        };
        let allowed = judge(mode, format, &there, linear, access)?;
        let width = format.shape().width();
        match mark(memory, walk.steps(), format.marks(), width, page_use) {
            Ok(()) => return Ok((allowed, walk)),
            Err(Unmarked::Changed) => {}
            Err(Unmarked::Memory { level, at, error }) => {
                return Err(GuestFault::Memory { level, at, error });
            }
        }
    }
    Err(GuestFault::Contended { linear })
}

/// What [`translate`] would answer; changes nothing.
///
/// # Errors
///
/// As [`translate`], of which [`GuestFault::Contended`] cannot happen.
pub fn probe<M: ReadEntry>(
    mode: &PagingMode,
    memory: &M,
    linear: u64,
    access: Access,
) -> Result<GuestTranslation, GuestFault<M::Error>> {
    let (Some(format), Some(root)) = (mode.format(), mode.root()) else {
        return direct(linear);
    };
    let outcome = walk::translate(format, memory, root, linear);
    answer(mode, format, outcome, linear, access)
}

/// Real mode, and protected mode without paging.
pub(crate) fn direct<E>(linear: u64) -> Result<GuestTranslation, GuestFault<E>> {
    if linear >= DIRECT {
        return Err(GuestFault::TooWide { linear });
    }
    Ok(GuestTranslation {
        physical: linear,
        size: DIRECT,
        attributes: GuestAttributes::ALL,
    })
}

/// The verdict on `access` after a walk with `outcome`.
#[inline(always)]
fn answer<E>(
    mode: &PagingMode,
    format: &GuestFormat,
    outcome: Result<Translation<GuestAttributes>, Fault<Reserved, E>>,
    linear: u64,
    access: Access,
) -> Result<GuestTranslation, GuestFault<E>> {
    match outcome {
        Ok(found) => judge(mode, format, &found, linear, access),
        Err(fault) => Err(ended(mode, format.layout(), fault, linear, access)),
    }
}

/// The verdict on `access` where the tables translate `linear`.
#[inline(always)]
fn judge<E>(
    mode: &PagingMode,
    format: &GuestFormat,
    found: &Translation<GuestAttributes>,
    linear: u64,
    access: Access,
) -> Result<GuestTranslation, GuestFault<E>> {
    let control = mode.control();
    if let Some(refusal) = control.refusal(found.attributes, access) {
        let key = control.key_refuses(found.attributes, access);
        return Err(GuestFault::Page {
            linear,
            code: describe(mode, access) | ErrorCode::PRESENT | ErrorCode::KEY.when(key),
            cause: Cause::Refused(refusal),
        });
    }
    Ok(GuestTranslation {
        physical: found.target,
        size: format.shape().size(found.level),
        attributes: found.attributes,
    })
}

/// What the guest is told of a walk that ended early.
#[cold]
fn ended<E>(
    mode: &PagingMode,
    layout: Layout,
    fault: Fault<Reserved, E>,
    linear: u64,
    access: Access,
) -> GuestFault<E> {
    let not_present = |level, entry| GuestFault::Page {
        linear,
        code: describe(mode, access),
        cause: Cause::NotPresent { level, entry },
    };
    match fault {
        Fault::NotPresent { level, entry } => not_present(level, entry),
        Fault::Malformed { level, entry, rule } => GuestFault::Page {
            linear,
            code: describe(mode, access) | ErrorCode::PRESENT | ErrorCode::RESERVED,
            cause: Cause::Reserved { level, entry, rule },
        },
        Fault::Unreadable { level, at, error } => GuestFault::Memory { level, at, error },
        Fault::Address { .. } => match layout {
            Layout::ThirtyTwoBit | Layout::Pae => GuestFault::TooWide { linear },
            Layout::FourLevel | Layout::FiveLevel => GuestFault::NonCanonical { linear },
        },
        // Neither can be: there are four PDPTEs for two bits of index, and level 1 has pages only. If
        // the engine grows a fault that we do not know, the address is not translated.
        _ => not_present(fault.level().unwrap_or(0), 0),
    }
}

/// The bits of an error code that tell of the access, whatever refuses it.
#[inline]
fn describe(mode: &PagingMode, access: Access) -> ErrorCode {
    ErrorCode::WRITE.when(access.kind.writes())
        | ErrorCode::USER.when(access.privilege.user())
        | ErrorCode::FETCH.when(access.kind == Kind::Fetch && mode.fetch_reported)
        | ErrorCode::SHADOW_STACK.when(access.kind.shadow_stack())
}
