// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables that translate, as formats for the one walker and the one mapper of [`hvkit_page_table`].
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hvkit_page_table::{Mapper, fake::FakeTables};
//! use hvkit_vtd_iommu::tables::{LargePages, SecondStage, SecondStageAttributes};
//!
//! let format = SecondStage::new(4, 46)?.with_large_pages(LargePages::TWO_MIB);
//! let memory = FakeTables::new();
//! let mut mapper = Mapper::new(format, &memory, &memory)?;
//! mapper.map(0x20_0000..0x60_0000, 0x1_0000_0000, SecondStageAttributes::READ_WRITE)?;
//! assert_eq!(mapper.translate(0x20_1234)?.target, 0x1_0000_1234);
//! # Ok(()) }
//! ```

mod first_stage;
mod reserved;
mod second_stage;
#[cfg(test)]
mod tests;

pub use first_stage::{FirstStage, FirstStageAttributes, FirstStageRule};
pub use second_stage::{LargePages, SecondStage, SecondStageAttributes, SecondStageRule};

/// A table that no unit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Not a number of levels that this stage can have.
    #[error("a table of {0} levels")]
    Levels(u8),
    /// A host address width that is not 30 to 52 bits.
    #[error("a host address width of {0} bits")]
    HostBits(u32),
}
