// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Second stages over second stages: L1's EPT over EPT, a guest's VT-d tables over the host's.

mod devices;
mod ept;
mod history;
mod scripted;
mod sizes;
mod unseen;
mod vtd;
