// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMAR tables as firmware might hand them over, and the same written again.

use hvkit_vtd_iommu::dmar::{
    Builder, Dmar, DmarError, HEADER, NewScope, Oem, Scope, Scopes, Structure,
};

/// One scope, with what it takes to write it again.
type Copied = (Vec<(u8, u8)>, hvkit_vtd_iommu::dmar::ScopeKind, u8, u8, u8);

fn copy(scope: Scope<'_>) -> Copied {
    (
        scope.path.steps().collect(),
        scope.kind,
        scope.flags,
        scope.enumeration_id,
        scope.start_bus,
    )
}

/// The scopes before the first that is malformed.
fn scopes_of(scopes: Scopes<'_>) -> Vec<Copied> {
    let mut all = Vec::new();
    let mut ended = false;
    for scope in scopes {
        assert!(!ended, "an error is the last item");
        match scope {
            Ok(scope) => {
                let mut asked = 0;
                let requester = scope.requester(|_| {
                    asked += 1;
                    Some(asked as u8)
                });
                assert!(asked < scope.path.len().max(1));
                assert!(requester.is_none() || !scope.path.is_empty());
                all.push(copy(scope));
            }
            Err(DmarError::Scope { offset }) => {
                assert!(offset >= HEADER);
                ended = true;
            }
            Err(error) => panic!("{error}"),
        }
    }
    all
}

fn renew(scopes: &[Copied]) -> Vec<NewScope<'_>> {
    scopes
        .iter()
        .filter(|(path, ..)| !path.is_empty())
        .map(|(path, kind, flags, id, bus)| {
            NewScope::new(*kind, *id, *bus, path).with_flags(*flags)
        })
        .collect()
}

/// Walks `table` and writes what is in it again; what was found, in words.
fn walk(table: &Dmar<'_>) -> (Builder, Vec<String>) {
    let mut builder = Builder::new(table.host_address_bits(), table.flags());
    let mut found = Vec::new();
    let mut ended = false;
    for structure in table.structures() {
        assert!(!ended, "an error is the last item");
        let structure = match structure {
            Ok(structure) => structure,
            Err(DmarError::Structure { offset, .. }) => {
                assert!(offset >= HEADER && offset < table.bytes().len());
                ended = true;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        macro_rules! with_scopes {
            ($add:ident, $head:expr, $scopes:expr) => {{
                let mut copied = scopes_of($scopes);
                copied.retain(|(path, ..)| !path.is_empty());
                found.push(format!("{:?} {copied:?}", $head));
                builder.$add($head, &renew(&copied))
            }};
        }
        builder = match structure {
            Structure::Drhd(head, scopes) => with_scopes!(drhd, head, scopes),
            Structure::Rmrr(head, scopes) => {
                if let Some(span) = head.span() {
                    assert!(span.length > 0 && span.last() == head.limit);
                }
                with_scopes!(rmrr, head, scopes)
            }
            Structure::Atsr(head, scopes) => with_scopes!(atsr, head, scopes),
            Structure::Satc(head, scopes) => with_scopes!(satc, head, scopes),
            Structure::Sidp(head, scopes) => with_scopes!(sidp, head, scopes),
            Structure::Rhsa(rhsa) => {
                found.push(format!("{rhsa:?}"));
                builder.rhsa(rhsa)
            }
            Structure::Andd(andd) => {
                found.push(format!("{andd:?}"));
                builder.andd(andd)
            }
            Structure::Unknown { kind, bytes } => {
                found.push(format!("{kind:?} {bytes:?}"));
                builder.raw(bytes)
            }
        };
    }
    (builder, found)
}

/// `structures` as a table of firmware's.
pub(crate) fn with_header(width: u8, flags: u8, structures: &[u8]) -> Vec<u8> {
    let mut table = vec![0; HEADER];
    table[..4].copy_from_slice(b"DMAR");
    (table[36], table[37]) = (width, flags);
    table.extend(structures);
    let length = u32::try_from(table.len()).expect("inputs are short");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    table[9] = sum.wrapping_neg();
    table
}

/// Reads `data` as a table: as it is, and with a header that makes it one.
pub fn run(data: &[u8]) {
    // Nothing is believed, so nothing can happen.
    if let Ok(table) = Dmar::parse(data) {
        walk(&table);
    }
    let Some((&[width, flags], structures)) = data.split_first_chunk() else {
        return;
    };
    let table = with_header(width, flags, structures);
    let dmar = Dmar::parse(&table).expect("the header is right");
    let (builder, mut found) = walk(&dmar);
    let again = builder
        .build(Oem::default())
        .expect("what was read can be written");
    let again = Dmar::parse(&again).expect("what was written can be read");
    assert_eq!(again.host_address_bits(), dmar.host_address_bits());
    // The builder puts structures into the specification's order.
    let (_, mut renewed) = walk(&again);
    found.sort();
    renewed.sort();
    assert_eq!(found, renewed);
}
