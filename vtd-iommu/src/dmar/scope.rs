// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device scopes: which devices a structure is about, by the path from a host bridge.

use super::DmarError;
use crate::spec::RequesterId;

/// Bytes of a scope before its path.
pub(super) const SCOPE_HEADER: usize = 6;

/// The type of a device scope. Open: tables newer than this crate have others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScopeKind(pub u8);

impl ScopeKind {
    /// A PCI endpoint.
    pub const ENDPOINT: Self = Self(1);
    /// A PCI bridge, and everything behind it.
    pub const SUB_HIERARCHY: Self = Self(2);
    /// An I/O APIC; the enumeration id is its APIC id.
    pub const IO_APIC: Self = Self(3);
    /// An HPET that sends messages; the enumeration id is its number.
    pub const HPET: Self = Self(4);
    /// A device of ACPI's name space; the enumeration id is that of its ANDD structure.
    pub const NAMED: Self = Self(5);
}

/// A path: device and function at each bridge, and of the device at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    bytes: &'a [[u8; 2]],
}

impl<'a> Path<'a> {
    /// How many steps it has.
    #[must_use]
    pub const fn len(self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no step, as no path should.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// Device and function of each step.
    pub fn steps(self) -> impl Iterator<Item = (u8, u8)> + 'a {
        self.bytes
            .iter()
            .map(|&[device, function]| (device, function))
    }
}

/// One device, or a bridge with all behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// What it is.
    pub kind: ScopeKind,
    /// Flags, of which SIDP structures have a use.
    pub flags: u8,
    /// Which of its kind it is.
    pub enumeration_id: u8,
    /// The bus at which the path begins.
    pub start_bus: u8,
    /// How to get there.
    pub path: Path<'a>,
}

impl Scope<'_> {
    /// The requester-id. `secondary` gives the secondary bus of the bridge at a requester-id, from its
    /// configuration space; it is asked for each bridge on the path.
    ///
    /// `None` for an empty path, a device or function that there cannot be, or a bridge that `secondary` does not
    /// know.
    pub fn requester(
        &self,
        mut secondary: impl FnMut(RequesterId) -> Option<u8>,
    ) -> Option<RequesterId> {
        let mut bus = self.start_bus;
        let mut here = None;
        for (device, function) in self.path.steps() {
            if let Some(bridge) = here {
                bus = secondary(bridge)?;
            }
            here = Some(RequesterId::new(bus, device, function)?);
        }
        here
    }
}

/// A scope for [`Builder`](super::Builder).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewScope<'a> {
    pub(super) kind: ScopeKind,
    pub(super) flags: u8,
    pub(super) enumeration_id: u8,
    pub(super) start_bus: u8,
    pub(super) path: &'a [(u8, u8)],
}

impl<'a> NewScope<'a> {
    /// A scope without flags. `path` is device and function of each step.
    #[must_use]
    pub const fn new(
        kind: ScopeKind,
        enumeration_id: u8,
        start_bus: u8,
        path: &'a [(u8, u8)],
    ) -> Self {
        Self {
            kind,
            flags: 0,
            enumeration_id,
            start_bus,
            path,
        }
    }
}

impl NewScope<'_> {
    /// The same with flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub(super) fn path_bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.path
            .iter()
            .flat_map(|&(device, function)| [device, function])
    }
}

/// The device scopes of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Scopes<'a> {
    bytes: &'a [u8],
    /// Where they begin in the table.
    offset: usize,
}

impl<'a> Scopes<'a> {
    pub(super) const fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset }
    }
}

/// Each scope, until the first that is malformed.
impl<'a> Iterator for Scopes<'a> {
    type Item = Result<Scope<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let offset = self.offset;
        let scope = self.take();
        if scope.is_none() {
            self.bytes = &[];
        }
        Some(scope.ok_or(DmarError::Scope { offset }))
    }
}

impl<'a> Scopes<'a> {
    fn take(&mut self) -> Option<Scope<'a>> {
        let length = usize::from(*self.bytes.get(1)?);
        let (scope, rest) = self.bytes.split_at_checked(length)?;
        let (header, path) = scope.split_at_checked(SCOPE_HEADER)?;
        let &[kind, _, flags, _, enumeration_id, start_bus] = header else {
            return None;
        };
        let (path, odd) = path.as_chunks::<2>();
        if !odd.is_empty() {
            return None;
        }
        self.bytes = rest;
        self.offset = self.offset.saturating_add(length);
        Some(Scope {
            kind: ScopeKind(kind),
            flags,
            enumeration_id,
            start_bus,
            path: Path { bytes: path },
        })
    }
}
