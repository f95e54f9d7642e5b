// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `--help` says.

use super::super::*;
use clap::CommandFactory;

#[test]
fn help_lists_keys_and_exit_statuses() {
    let help = Arguments::command().render_help().to_string();
    for part in [
        "boot=N",
        "size=BYTES",
        "readonly=on",
        "file=PATH",
        "Ctrl-A x",
    ] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
    for status in ExitStatus::ALL {
        assert!(help.contains(status.meaning()), "{status:?}");
    }
}

/// Whatever an option takes, its help names.
#[test]
fn help_names_every_key() {
    const NONE: &str = "no-such-key=1";
    let known = |error: Option<OptionError>| match error {
        Some(OptionError::UnknownKey { known, .. }) => known,
        other => panic!("{other:?}"),
    };
    let command = Arguments::command();
    for (option, keys) in [
        ("disk", known(disk(NONE).err())),
        ("disk", known(served::disk(NONE).err())),
        ("device", known(device(NONE).err())),
        ("user_device", known(served::user_device(NONE).err())),
        ("net", known(net(NONE).err())),
        ("net", known(user_network::net(NONE).err())),
        ("net", known(served::net(NONE).err())),
        ("fs", known(served::fs(NONE).err())),
        ("vhost_user_backend", known(peer::back_end(NONE).err())),
        ("rng", known(rng(NONE).err())),
        ("balloon", known(balloon(NONE).err())),
        ("vsock", known(vsock(NONE).err())),
        ("pmem", known(pmem(NONE).err())),
        ("vtd", known(vtd(NONE).err())),
        ("platform", known(platform(NONE).err())),
        ("dirty_log", known(dirty_log::dirty_log(NONE).err())),
        ("counters", known(counters::counters(NONE).err())),
    ] {
        let argument = command.get_arguments().find(|a| a.get_id() == option);
        let help = argument.unwrap().get_help().unwrap().to_string();
        for key in keys {
            // A word on its own, and limits that are as for disks.
            let elsewhere = *key == "user" || key.starts_with("bw_") || key.starts_with("ops_");
            assert!(
                help.contains(&format!("{key}=")) || option == "net" && elsewhere,
                "--{option}: {key} is not in: {help}"
            );
        }
    }
    let units = |option: &str| {
        let argument = command.get_arguments().find(|a| a.get_id() == option);
        let help = argument.unwrap().get_help().unwrap().to_string();
        help.contains("iommu=on|off|ID")
    };
    for option in ["disk", "device", "user_device", "net", "rng", "vsock"] {
        assert!(units(option), "{option}");
    }
}
