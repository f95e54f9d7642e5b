// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine to try the shadow MMU on, anywhere. Feature `fake`.
//!
//! [`FakeProcessor`] translates by shadow tables and keeps every translation that a flush does not name:
//! the worst TLB there can be ([`FakeTlb`], for any format). It panics where a real one would corrupt memory in silence: a walk
//! through a table that was freed, an access to a page that the host took away. [`Board`] puts it together
//! with memory, a guest and an exit handler; [`Cluster`] has several processors, and settles late.
//!
//! ```
//! use hvkit_page_table::Width;
//! use hvkit_shadow_paging::fake::{Board, Doing, Outcome};
//! use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers};
//!
//! let registers = Registers { cr0: 0x8001_0011, cr3: 0x1000, cr4: 0x10, ..Registers::default() };
//! let mut board = Board::new(32, Features::all(40));
//! board.set(0x1004, Width::Four, 0x2007); // a directory, a table, a page at 4 MiB
//! board.set(0x2000, Width::Four, 0x3007);
//! board.start(registers);
//! let write = Access::new(Kind::Write, Privilege::User);
//! assert_eq!(board.access(0x40_0010, write, Doing::Store(7)), Outcome::Done(0));
//! assert_eq!(board.get(0x3010, Width::Four), 7);
//! assert_eq!(board.get(0x2000, Width::Four), 0x3067, "A and D are set");
//! assert!(matches!(board.access(0x40_1000, write, Doing::Load), Outcome::Fault(_)));
//! board.audit();
//! ```

mod board;
mod cluster;
mod history;
mod memory;
mod processor;
mod remembered;
mod tlb;

pub use board::{Board, BoardMemory, BoardMmu, Doing, Instruction, Outcome};
pub use cluster::{Cluster, Seen};
pub use memory::{FakeHost, GuestView, NoMemory};
pub use processor::FakeProcessor;
pub use tlb::FakeTlb;
