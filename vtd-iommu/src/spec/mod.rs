// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the words of the VT-d specification mean: registers, tables, descriptors, records.
