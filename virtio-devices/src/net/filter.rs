// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which of the frames that come the driver is given: by destination, and by VLAN.
//!
//! ```text
//!   promiscuous           all
//!   VLAN tag              not in the table: none              VIRTIO_NET_F_CTRL_VLAN
//!   broadcast             unless NOBCAST
//!   group address         unless NOMULTI; ALLMULTI, or in the table
//!   one card's address    unless NOUNI;   ALLUNI, the card's own, or in the table
//! ```
//!
//! Each line only for a driver that has accepted its feature; whoever accepts none is given all. Tables are bounded: one
//! that a driver makes longer than [`MOST`] lets all addresses of its kind through, as an unwanted frame may still arrive.
//!
//! "Packet Receive Filtering", "Setting MAC Address Filtering", "VLAN Filtering" of "Control Virtqueue" (5.1.6.5).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemory;

use super::{MacAddress, feature};
use crate::device::StateError;
use crate::features::Features;
use crate::queue::{Buffers, Reach};

/// The most addresses in a table.
const MOST: usize = 64;
/// VLANs that there are.
const VLANS: u16 = 1 << 12;

/// Bytes of a frame that say whether it is wanted: both addresses, and what may be a VLAN tag.
pub(super) const LOOKED_AT: usize = 16;

/// VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_MAC and VIRTIO_NET_CTRL_VLAN, and their commands.
const RX: u8 = 0;
const RX_LAST: u8 = 5;
const RX_EXTRA: u8 = 2;
const MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const VLAN: u8 = 2;
const VLAN_ADD: u8 = 0;
const VLAN_DEL: u8 = 1;

/// The type of a frame with a tag of a customer's VLAN (IEEE 802.1Q), and the part of the tag that is its number.
const TAGGED: [u8; 2] = [0x81, 0x00];
const VLAN_NUMBER: u16 = VLANS - 1;

bitflags::bitflags! {
    /// What is on of the class VIRTIO_NET_CTRL_RX: the bit of a command's number.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Modes: u8 {
        const PROMISC = 1 << 0;
        const ALLMULTI = 1 << 1;
        const ALLUNI = 1 << 2;
        const NOMULTI = 1 << 3;
        const NOUNI = 1 << 4;
        const NOBCAST = 1 << 5;
    }
}

type Address = [u8; 6];

/// Addresses that are let through.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Table {
    /// These, at most [`MOST`].
    Of(Vec<Address>),
    /// All: the driver named more.
    Over,
}

impl Default for Table {
    fn default() -> Self {
        Self::Of(Vec::new())
    }
}

/// As the number of addresses in a state.
const OVER: u8 = u8::MAX;

impl Table {
    fn has(&self, address: Address) -> bool {
        match self {
            Self::Of(addresses) => addresses.contains(&address),
            Self::Over => true,
        }
    }

    fn save(&self, state: &mut Vec<u8>) {
        match self {
            Self::Of(addresses) => {
                // At most MOST.
                state.push(addresses.len() as u8);
                state.extend(addresses.as_flattened());
            }
            Self::Over => state.push(OVER),
        }
    }

    /// Takes a table from the front of `state`.
    fn restore(state: &mut &[u8], is: fn(Address) -> bool) -> Option<Self> {
        let [count] = take(state)?;
        if count == OVER {
            return Some(Self::Over);
        }
        if usize::from(count) > MOST {
            return None;
        }
        let addresses = (0..count).map(|_| take(state).filter(|address| is(*address)));
        addresses.collect::<Option<_>>().map(Self::Of)
    }
}

fn take<const N: usize>(state: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = state.split_first_chunk()?;
    *state = rest;
    Some(*taken)
}

fn is_group(address: Address) -> bool {
    let [first, ..] = address;
    first & 1 != 0
}

fn is_one(address: Address) -> bool {
    !is_group(address)
}

/// What the driver has asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// What it has accepted.
    features: Features,
    modes: Modes,
    /// The address that it has given the card, if it has.
    given: Option<Address>,
    /// The address that the card had, if the driver knows of it.
    own: Option<Address>,
    /// Single cards, then groups.
    tables: [Table; 2],
    /// A bit for each VLAN; empty before the first.
    vlans: Vec<u64>,
}

impl Rules {
    fn lets_vlan(&self, vlan: u16) -> bool {
        let word = self.vlans.get(usize::from(vlan >> 6));
        word.is_some_and(|word| word >> (vlan & 63) & 1 != 0)
    }

    fn set_vlan(&mut self, vlan: u16, command: u8) {
        if self.vlans.is_empty() {
            self.vlans = vec![0; usize::from(VLANS >> 6)];
        }
        if let Some(word) = self.vlans.get_mut(usize::from(vlan >> 6)) {
            let bit = 1 << (vlan & 63);
            match command {
                VLAN_ADD => *word |= bit,
                _ => *word &= !bit,
            }
        }
    }

    /// Whether the driver wants a frame that begins so.
    fn want(&self, frame: &[u8]) -> bool {
        let has = |feature| self.features.contains(feature);
        let (Some(to), false) = (
            frame.first_chunk(),
            self.modes.contains(Modes::PROMISC) && has(feature::CTRL_RX),
        ) else {
            return true;
        };
        if has(feature::CTRL_VLAN)
            && let Some([kind_high, kind_low, high, low]) = frame.get(12..LOOKED_AT)
            && [*kind_high, *kind_low] == TAGGED
        {
            let vlan = u16::from_be_bytes([*high, *low]) & VLAN_NUMBER;
            // Number 0 has a priority and no VLAN.
            if vlan != 0 && !self.lets_vlan(vlan) {
                return false;
            }
        }
        let on = |mode| self.modes.contains(mode);
        let [single, groups] = &self.tables;
        let (never, always, listed) = match *to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => (Modes::NOBCAST, true, false),
            to if is_group(to) => (Modes::NOMULTI, on(Modes::ALLMULTI), groups.has(to)),
            to => {
                // Before either side has named one, the card's is not known.
                let own = self.given.or(self.own).is_none_or(|own| own == to);
                (Modes::NOUNI, on(Modes::ALLUNI), own || single.has(to))
            }
        };
        // Without the table's feature, all is wanted that is not said to be unwanted.
        !on(never) && (always || listed || !has(feature::CTRL_RX))
    }
}

/// A card's filter: the control queue sets it, and those who receive go by it.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Rules>,
    /// How often they have changed.
    version: AtomicU64,
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obeyed {
    /// It was done.
    Done,
    /// The card is to have another address: [`Filter::give`].
    Address(MacAddress),
    /// It is none, or wrong.
    No,
}

impl Filter {
    fn lock(&self) -> MutexGuard<'_, Rules> {
        let rules = &self.0.rules;
        rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        let mut rules = self.lock();
        change(&mut rules);
        // Still under the lock: who sees the new number finds the new rules behind it.
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// A driver is there that has accepted `features`, and can say what it wants; `own` is the address that the card has.
    pub(super) fn begin(&self, features: Features, own: Option<MacAddress>) {
        self.change(|rules| {
            rules.features = features;
            let known = own.filter(|_| features.contains(feature::MAC));
            rules.own = known.map(|own| own.0);
        });
    }

    /// As after a reset.
    pub(super) fn clear(&self) {
        self.change(|rules| *rules = Rules::default());
    }

    /// The address that the driver has given the card.
    pub(super) fn given(&self) -> Option<MacAddress> {
        self.lock().given.map(MacAddress)
    }

    /// The driver gives the card an address.
    pub(super) fn give(&self, address: MacAddress) {
        self.change(|rules| rules.given = Some(address.0));
    }

    /// Does what a command of the classes of filters says.
    pub(super) fn obey<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        class: u8,
        command: u8,
        data: Buffers<'_>,
    ) -> Obeyed {
        let features = self.lock().features;
        let may = |any: Features| features.intersects(any);
        let obeyed = match (class, command) {
            (RX, RX_EXTRA..=RX_LAST) if may(feature::CTRL_RX_EXTRA) => {
                self.set_mode(reach, command, data)
            }
            (RX, 0..RX_EXTRA) if may(feature::CTRL_RX) => self.set_mode(reach, command, data),
            (MAC, MAC_TABLE_SET) if may(feature::CTRL_RX) => self.set_tables(reach, data),
            // Linux goes by the second feature, the text by the first.
            (MAC, MAC_ADDR_SET) if may(feature::CTRL_RX | feature::CTRL_MAC_ADDR) => {
                return self.set_address(reach, data).unwrap_or(Obeyed::No);
            }
            (VLAN, VLAN_ADD | VLAN_DEL) if may(feature::CTRL_VLAN) => {
                self.set_vlan(reach, command, data)
            }
            _ => None,
        };
        obeyed.map_or(Obeyed::No, |()| Obeyed::Done)
    }

    fn set_mode<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        command: u8,
        data: Buffers<'_>,
    ) -> Option<()> {
        let on = match exactly(reach, data)? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let mode = Modes::from_bits_retain(1 << command);
        self.change(|rules| rules.modes.set(mode, on));
        Some(())
    }

    /// "struct virtio_net_ctrl_mac", twice: of single cards, then of groups.
    fn set_tables<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        data: Buffers<'_>,
    ) -> Option<()> {
        let (single, rest) = table(reach, data, is_one)?;
        let (groups, rest) = table(reach, rest, is_group)?;
        if !rest.is_empty() {
            return None;
        }
        self.change(|rules| rules.tables = [single, groups]);
        Some(())
    }

    fn set_address<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        data: Buffers<'_>,
    ) -> Option<Obeyed> {
        let address: Address = exactly(reach, data)?;
        if is_group(address) || address == [0; 6] {
            return None;
        }
        Some(Obeyed::Address(MacAddress(address)))
    }

    fn set_vlan<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        command: u8,
        data: Buffers<'_>,
    ) -> Option<()> {
        let vlan = u16::from_le_bytes(exactly(reach, data)?);
        if vlan >= VLANS {
            return None;
        }
        self.change(|rules| rules.set_vlan(vlan, command));
        Some(())
    }

    /// What the driver has asked for, in bytes: none if it has asked for nothing; otherwise modes (8 bits), the card's address (48,
    /// zero if the driver has given none), each table (its length, 8 bits, or 255 for all; then addresses), and the VLANs (16 each).
    pub(super) fn save(&self) -> Vec<u8> {
        let rules = self.lock();
        let vlans: Vec<u16> = (0..VLANS).filter(|vlan| rules.lets_vlan(*vlan)).collect();
        let mut state = vec![rules.modes.bits()];
        state.extend(rules.given.unwrap_or_default());
        for table in &rules.tables {
            table.save(&mut state);
        }
        state.extend(vlans.into_iter().flat_map(u16::to_le_bytes));
        match state.iter().any(|byte| *byte != 0) {
            true => state,
            false => Vec::new(),
        }
    }

    /// Reads what [`save`](Self::save) gave, from byte `at` of a device's own state.
    pub(super) fn restored(state: &[u8], at: usize) -> Result<Rules, StateError> {
        match state {
            [] => Ok(Rules::default()),
            state => restored(state).ok_or(StateError::Content { at }),
        }
    }

    /// Goes by rules that were restored.
    pub(super) fn take(&self, rules: Rules) {
        self.change(|all| *all = rules);
    }
}

fn restored(state: &[u8]) -> Option<Rules> {
    let mut rest = state;
    let [modes] = take(&mut rest)?;
    let given: Address = take(&mut rest)?;
    let tables = [
        Table::restore(&mut rest, is_one)?,
        Table::restore(&mut rest, is_group)?,
    ];
    let mut rules = Rules {
        modes: Modes::from_bits(modes)?,
        given: (given != [0; 6]).then_some(given),
        tables,
        ..Rules::default()
    };
    if is_group(given) {
        return None;
    }
    while !rest.is_empty() {
        let vlan = u16::from_le_bytes(take(&mut rest)?);
        // Each once, and no more than there are.
        if vlan >= VLANS || rules.lets_vlan(vlan) {
            return None;
        }
        rules.set_vlan(vlan, VLAN_ADD);
    }
    Some(rules)
}

/// Data of just so many bytes.
pub(super) fn exactly<const N: usize, M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    data: Buffers<'_>,
) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let whole = data.len() == N as u64 && data.read(reach, &mut bytes).ok()? == N;
    whole.then_some(bytes)
}

/// Takes a table, each of whose addresses `is` of its kind, from the front of `data`.
fn table<'c, M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    data: Buffers<'c>,
    is: fn(Address) -> bool,
) -> Option<(Table, Buffers<'c>)> {
    let (head, rest) = data.split_at(4);
    let count = u32::from_le_bytes(exactly(reach, head)?);
    // 6 * 2^32 at most.
    let length = u64::from(count).saturating_mul(6);
    let (entries, rest) = rest.split_at(length);
    if entries.len() < length {
        return None;
    }
    let count = usize::try_from(count).ok()?;
    if count > MOST {
        return Some((Table::Over, rest));
    }
    let mut addresses = vec![[0; 6]; count];
    let bytes = addresses.as_flattened_mut();
    let whole = entries.read(reach, bytes).ok()? == bytes.len();
    let kind = addresses.iter().all(|address| is(*address));
    (whole && kind).then_some((Table::Of(addresses), rest))
}

/// What one who receives goes by: the rules as it last saw them.
#[derive(Debug)]
pub(super) struct Sieve {
    filter: Filter,
    seen: u64,
    rules: Rules,
}

impl Sieve {
    pub(super) fn new(filter: Filter) -> Self {
        let mut sieve = Self {
            seen: 0,
            rules: Rules::default(),
            filter,
        };
        sieve.renew();
        sieve
    }

    fn renew(&mut self) {
        let rules = self.filter.lock();
        self.seen = self.filter.0.version.load(Ordering::Acquire);
        self.rules.clone_from(&rules);
    }

    /// Whether a frame need not be looked at.
    #[inline]
    pub(super) fn is_open(&mut self) -> bool {
        if self.filter.0.version.load(Ordering::Acquire) != self.seen {
            self.renew();
        }
        let filters = feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN;
        !self.rules.features.intersects(filters)
    }

    /// Whether the driver wants a frame that begins with these bytes, at least [`LOOKED_AT`] of a frame that has as many.
    pub(super) fn wants(&mut self, frame: &[u8]) -> bool {
        self.is_open() || self.rules.want(frame)
    }
}
