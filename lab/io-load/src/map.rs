// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's kernel maps and unmaps: the module `lab/map-load`, which does as many pairs as are written to its parameter.

use std::fs::OpenOptions;
use std::io::{Result, Write};
use std::path::Path;

use crate::mark::around;

/// Part of the pairs that are done before the count begins: the driver's caches are then full.
const WARM: u64 = 8;

/// Has `pairs` pairs done between marks.
pub(crate) fn run(name: &str, parameter: &Path, pairs: u64) -> Result<()> {
    let ask = |pairs: u64| {
        // Opened anew, and written at once: the kernel takes each write for a whole number.
        let mut file = OpenOptions::new().write(true).open(parameter)?;
        file.write_all(pairs.to_string().as_bytes())
    };
    ask(pairs / WARM)?;
    around(name, || ask(pairs).map(|()| pairs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_number_is_written_whole_and_a_missing_module_is_told() {
        let path = std::env::temp_dir().join(format!("io-load-map-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        run("test", &path, 800).unwrap();
        // A parameter takes what comes; a file keeps what came last over what came first.
        assert_eq!(fs::read_to_string(&path).unwrap(), "800");
        fs::remove_file(&path).unwrap();
        assert!(run("test", &path, 800).is_err());
    }
}
