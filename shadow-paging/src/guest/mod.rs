// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's own paging does with an address: the processor's half of shadow paging.
//!
//! ```text
//!  CR0 CR3 CR4 EFER PKRU PKRS      PDPTEs (PAE)          linear address, Access
//!            |                       |                             |
//!            '----> PagingMode <-----'                             |
//!                   |   |    '-- AccessControl --.                 |
//!        GuestFormat'   'Root                    |                 |
//!               |         |                      v                 v
//!   memory --> page_table::walk --> path --> may this access? --> A and D set --> GuestTranslation
//!                  |                             |                     |
//!                  '--- not present, reserved ---+---- refused --------+--> GuestFault
//! ```
//!
//! [`translate`] does all of it, as a processor would. [`probe`] gives the same answer and leaves the
//! tables alone. [`PagingMode::walk`] shows every entry on the way, whatever it says.
//!
//! What a processor remembers between accesses (TLBs, paging-structure caches) is not here: each call
//! reads the tables anew.

mod access;
mod attributes;
pub(crate) mod entry;
mod error_code;
mod fault;
mod format;
pub(crate) mod marks;
mod mode;
mod pdpte;
mod registers;
mod reserved;
mod rights;
mod translate;

pub use access::{Access, Kind, Privilege};
pub use attributes::GuestAttributes;
pub use error_code::ErrorCode;
pub use fault::{Cause, GuestFault};
pub use format::{GuestFormat, Layout};
pub use mode::{LoadError, PagingMode};
pub use pdpte::{PdpteError, Pdptes};
pub use registers::{Features, ModeError, Registers, cr0, cr4, efer};
pub use reserved::Reserved;
pub use rights::{AccessControl, KeyRights, Refusal};
pub use translate::{GuestTranslation, probe, translate};
pub(crate) use translate::{direct, resolve};
