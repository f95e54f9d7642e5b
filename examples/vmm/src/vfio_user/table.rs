// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a server is told of the guest's memory, piece by piece.

use super::connection::Connection;
use super::message::{Command, sized};
use crate::passthrough::size;
use crate::viommu::DmaTable;
use hvkit_vtd_iommu::emulation::Mapping;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;

/// DMA_MAP: reads and writes are allowed.
const READ: u32 = 1;
const WRITE: u32 = 2;

/// What a server is given of the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Given {
    /// Its files: the server reads and writes by itself where it was told that it may.
    #[default]
    Files,
    /// Nothing: it asks for each transfer, and each is looked up.
    Nothing,
}

/// The memory that a server reaches, as it is told of it.
#[derive(Debug)]
pub struct UserTable {
    connection: Arc<Connection>,
    given: Given,
}

impl UserTable {
    pub(super) fn new(connection: Arc<Connection>, given: Given) -> Self {
        UserTable { connection, given }
    }

    pub(super) fn map_piece(&mut self, piece: Mapping) -> io::Result<()> {
        let dma = &self.connection.dma;
        let rights = if piece.reads { READ } else { 0 } | if piece.writes { WRITE } else { 0 };
        let size = size(piece)?;
        dma.add(piece);
        let told = match self.given {
            Given::Files => match dma.file(piece) {
                Some((file, offset)) => {
                    let payload = sized(rights, &[offset, piece.first, size]);
                    let files = [file.as_fd()];
                    let asked = self.connection.ask(Command::DMA_MAP, &payload, &files);
                    asked.map(drop).map_err(io::Error::from)
                }
                None => Err(ErrorKind::Unsupported.into()),
            },
            // What the server makes of it changes nothing: its requests are looked up here. So it is not waited for, with
            // the unit in hand that a request of its may need.
            Given::Nothing => {
                let payload = sized(rights, &[0, piece.first, size]);
                let told = self.connection.tell_soon(Command::DMA_MAP, &payload);
                told.map_err(io::Error::from)
            }
        };
        if told.is_err() {
            dma.remove(piece);
        }
        told
    }
}

impl DmaTable for UserTable {
    fn map(&mut self, piece: Mapping) -> io::Result<()> {
        self.map_piece(piece)
    }

    fn unmap(&mut self, piece: Mapping) -> io::Result<()> {
        self.connection.dma.remove(piece);
        let size = size(piece)?;
        let payload = sized(0, &[piece.first, size]);
        // A server that is gone was told of, and one that refuses is not believed to have the memory still: of one that
        // was given files, nobody but itself could say. What it asks for from now on is refused.
        match self.given {
            Given::Files => {
                if let Err(error) = self.connection.ask(Command::DMA_UNMAP, &payload, &[]) {
                    log::debug!("memory at {:#x}: {error}", piece.first);
                }
            }
            Given::Nothing => {
                let _ = self.connection.tell_soon(Command::DMA_UNMAP, &payload);
            }
        }
        Ok(())
    }
}
