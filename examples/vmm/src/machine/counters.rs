// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the devices' queues have done, at the [socket](super::line_socket) of `--counters`.
//!
//! ```text
//!   counters   {"devices":[{"device":"disk","at":"0000:00:01.0","queues":[{"chains":812,"bytes":3325952, ...}]}, ...]}
//! ```

use hvkit_virtio_devices::counters::{Counters, Counts};
use serde_json::{Value, json};

/// A device that the guest has.
#[derive(Debug)]
pub(super) struct Counted {
    /// What kind.
    pub(super) device: &'static str,
    /// Where the guest finds it.
    pub(super) at: String,
    /// The numbers of its queues, in order of index; none where another process serves them.
    pub(super) queues: Vec<Counters>,
}

/// The answer to a line: the numbers of all `devices` as they are now, on one line.
pub(super) fn obey(line: &str, devices: &[Counted]) -> String {
    match line {
        "counters" => {
            let devices: Vec<Value> = devices.iter().map(numbers).collect();
            json!({ "devices": devices }).to_string()
        }
        _ => format!("error: unknown command '{line}' (known: counters)"),
    }
}

fn numbers(Counted { device, at, queues }: &Counted) -> Value {
    let queues: Vec<Value> = queues
        .iter()
        .map(|queue| queue_numbers(queue.read()))
        .collect();
    json!({ "device": device, "at": at, "queues": queues })
}

fn queue_numbers(counts: Counts) -> Value {
    let Counts {
        chains,
        bytes,
        interrupts,
        errors,
        limited,
    } = counts;
    json!({
        "chains": chains,
        "bytes": bytes,
        "interrupts": interrupts,
        "errors": errors,
        "limited": limited,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_is_told_of() {
        let device = |device, queues: usize| Counted {
            device,
            at: "0000:00:01.0".to_owned(),
            queues: (0..queues).map(|_| Counters::default()).collect(),
        };
        let devices = [device("disk", 2), device("device of another process", 0)];
        assert_eq!(
            obey("counters", &devices[1..]),
            r#"{"devices":[{"at":"0000:00:01.0","device":"device of another process","queues":[]}]}"#
        );
        let told: Value = serde_json::from_str(&obey("counters", &devices)).unwrap();
        let queues = told["devices"][0]["queues"].as_array().unwrap();
        assert_eq!(queues.len(), 2);
        for word in ["chains", "bytes", "interrupts", "errors", "limited"] {
            assert_eq!(queues[1][word], 0, "{word}");
        }
        assert!(obey("reset", &devices).starts_with("error: unknown command 'reset'"));
    }
}
