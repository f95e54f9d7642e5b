// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end carried into a guest: our own front end as the other machine, one that lies, and a driver that does.

mod hostile;
mod program;
mod served;
mod window;
