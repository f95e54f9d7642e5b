// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests of devices (ATS's page request interface), and the answers to a group of them.
//!
//! VT-d, "Page Request Descriptor", "Page Group Response Descriptor".

use crate::spec::word::word;
use crate::spec::{Pasid, RequesterId};

/// The size of a page request in the queue, in bytes.
pub const PAGE_REQUEST_BYTES: u32 = 32;

word! {
    /// The lower 128 bits of a page request; the upper 128 are reserved (page_req_dsc).
    pub struct PageRequestLayout(u128) {
        /// Type: 1.
        u8 [7:0] kind, with_kind;
        /// PP: the PASID is valid.
        bool [8:8] pasid_present, with_pasid_present;
        /// RID: requester-id.
        u16 [31:16] source, with_source;
        /// PASID.
        u32 [51:32] pasid, with_pasid;
        /// EXR: execute permission is asked for.
        bool [52:52] execute, with_execute;
        /// PMR: supervisor privilege is asked for.
        bool [53:53] supervisor, with_supervisor;
        /// RD: read permission is asked for.
        bool [64:64] read, with_read;
        /// WR: write permission is asked for.
        bool [65:65] write, with_write;
        /// LPIG: last request of its group.
        bool [66:66] last, with_last;
        /// PRGI: index of the group.
        u16 [75:67] group, with_group;
        /// ADDR: address, 4-KiB aligned.
        address [127:76] address, with_address;
    }
}

/// The type of a page request.
pub const PAGE_REQUEST: u8 = 1;

/// What a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct PageRequest {
    /// Who asks.
    pub source: RequesterId,
    /// For which PASID.
    pub pasid: Option<Pasid>,
    /// For which page.
    pub address: u64,
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// To execute. Valid with a PASID.
    pub execute: bool,
    /// With supervisor privilege. Valid with a PASID.
    pub supervisor: bool,
    /// Index of the group (9 bits).
    pub group: u16,
    /// The last of its group: it wants a response.
    pub last: bool,
}

/// Why words are no page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PageRequestError {
    /// Another type.
    #[error("{kind:#x} is not the type of a page request")]
    Kind {
        /// The type.
        kind: u8,
    },
}

impl PageRequest {
    /// Reads a request from the queue. Reserved fields are ignored: units of older specifications keep private
    /// data there.
    ///
    /// # Errors
    ///
    /// If it has another type.
    pub const fn decode(words: [u64; 4]) -> Result<Self, PageRequestError> {
        let word = PageRequestLayout((words[1] as u128) << 64 | words[0] as u128);
        if word.kind() != PAGE_REQUEST {
            return Err(PageRequestError::Kind { kind: word.kind() });
        }
        Ok(Self {
            source: RequesterId(word.source()),
            pasid: if word.pasid_present() {
                Some(Pasid::from_field(word.pasid()))
            } else {
                None
            },
            address: word.address(),
            read: word.read(),
            write: word.write(),
            execute: word.execute(),
            supervisor: word.supervisor(),
            group: word.group(),
            last: word.last(),
        })
    }

    /// The words. Of an address the page is kept, of a group nine bits.
    #[must_use]
    pub const fn encode(self) -> [u64; 4] {
        let (present, pasid) = match self.pasid {
            Some(pasid) => (true, pasid.get()),
            None => (false, 0),
        };
        let word = PageRequestLayout(0)
            .with_kind(PAGE_REQUEST)
            .with_pasid_present(present)
            .with_pasid(pasid)
            .with_source(self.source.0)
            .with_execute(self.execute)
            .with_supervisor(self.supervisor)
            .with_read(self.read)
            .with_write(self.write)
            .with_last(self.last)
            .with_group(self.group)
            .with_address(self.address);
        [word.0 as u64, (word.0 >> 64) as u64, 0, 0]
    }
}

/// RC: how a group of page requests was answered. Open: the other values are reserved, and a device takes
/// them as [`FAILURE`](Self::FAILURE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ResponseCode(pub u8);

impl ResponseCode {
    /// All pages of the group are there: try again.
    pub const SUCCESS: Self = Self(0x0);
    /// A page is not there, or not with that permission.
    pub const INVALID_REQUEST: Self = Self(0x1);
    /// Nobody can answer: the device must stop asking.
    pub const FAILURE: Self = Self(0xf);
}

/// The answer to a group of page requests, sent as an invalidation descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct PageGroupResponse {
    /// Who asked.
    pub source: RequesterId,
    /// For which PASID.
    pub pasid: Option<Pasid>,
    /// Index of the group (9 bits).
    pub group: u16,
    /// LPIG, as it was in the request.
    pub last: bool,
    /// The answer.
    pub code: ResponseCode,
}

impl PageRequest {
    /// The answer `code` to the group that this request is of.
    #[must_use]
    pub const fn response(self, code: ResponseCode) -> PageGroupResponse {
        PageGroupResponse {
            source: self.source,
            pasid: self.pasid,
            group: self.group,
            last: self.last,
            code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_spelled_as_in_the_figure() {
        let request = PageRequest {
            source: RequesterId(0x1234),
            pasid: Some(Pasid::from_field(0xa_bcde)),
            address: 0x0000_7fff_ffff_f000,
            read: true,
            write: true,
            execute: true,
            supervisor: true,
            group: 0x1ff,
            last: true,
        };
        let words = [0x003a_bcde_1234_0101, 0x0000_7fff_ffff_ffff, 0, 0];
        assert_eq!(request.encode(), words);
        assert_eq!(PageRequest::decode(words), Ok(request));
        let plain = PageRequest {
            pasid: None,
            read: false,
            write: true,
            execute: false,
            supervisor: false,
            group: 1,
            last: false,
            ..request
        };
        assert_eq!(
            plain.encode(),
            [0x0000_0000_1234_0001, 0x0000_7fff_ffff_f00a, 0, 0]
        );
    }

    #[test]
    fn another_type_is_refused() {
        assert_eq!(
            PageRequest::decode([2, 0, 0, 0]),
            Err(PageRequestError::Kind { kind: 2 })
        );
        // Private data of older units is no reason to refuse.
        assert!(PageRequest::decode([0x201, 0, !0, !0]).is_ok());
    }

    #[test]
    fn a_response_names_its_group() {
        let request = PageRequest::decode([0x003a_bcde_1234_0101, 0xfff, 0, 0]).unwrap();
        let response = request.response(ResponseCode::INVALID_REQUEST);
        assert_eq!((response.group, response.last), (0x1ff, true));
        assert_eq!(response.source, RequesterId(0x1234));
    }
}
