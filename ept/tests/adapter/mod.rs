// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's paging modes of hvkit-shadow-paging as hvkit-ept's `GuestPaging`: for users to copy, since neither crate
//! knows the other. `cargo xtask oracle ept` runs it against a processor model.

use hvkit_ept::access::ShadowStack;
use hvkit_ept::nested_walk::{self, GuestPage, GuestPaging};
use hvkit_ept::spec::{Accesses, Mode, PageRights};
use hvkit_page_table::UpdateEntry;
use hvkit_shadow_paging::guest::{Access, GuestFault, Kind, PagingMode, translate};

/// A guest in one of x86's paging modes.
pub(crate) struct X86(pub(crate) PagingMode);

impl GuestPaging for X86 {
    type Access = Access;
    type PageFault = GuestFault<()>;

    fn translate<M: UpdateEntry>(
        &self,
        memory: &M,
        linear: u64,
        access: Access,
    ) -> Result<GuestPage, nested_walk::GuestFault<Self::PageFault, M::Error>> {
        use nested_walk::GuestFault as Nested;
        let found = translate(&self.0, memory, linear, access).map_err(|fault| match fault {
            GuestFault::Memory { error, .. } => Nested::Memory(error),
            GuestFault::Page {
                linear,
                code,
                cause,
            } => Nested::Page(GuestFault::Page {
                linear,
                code,
                cause,
            }),
            GuestFault::NonCanonical { linear } => {
                Nested::Page(GuestFault::NonCanonical { linear })
            }
            GuestFault::TooWide { linear } => Nested::Page(GuestFault::TooWide { linear }),
            _ => Nested::Page(GuestFault::Contended { linear }),
        })?;
        let mode = if found.attributes.user() {
            Mode::User
        } else {
            Mode::Supervisor
        };
        Ok(GuestPage {
            physical: found.physical,
            accesses: match access.kind {
                Kind::Read | Kind::ShadowStackRead => Accesses::READ,
                Kind::Write | Kind::ShadowStackWrite => Accesses::WRITE,
                Kind::Fetch => Accesses::FETCH,
            },
            rights: PageRights {
                mode,
                writable: found.attributes.writable(),
                execute_disable: !found.attributes.executable(),
            },
            shadow_stack: match (access.kind.shadow_stack(), access.privilege.user()) {
                (false, _) => ShadowStack::No,
                (true, true) => ShadowStack::User,
                (true, false) => ShadowStack::Supervisor,
            },
        })
    }
}
