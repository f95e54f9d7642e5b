// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the keys of `--net user` mean.

use super::key_value::{Keys, OptionError, switch};
use super::options::{card, card_keys};
use crate::config::{Net, NetWire, Reach, UserNetwork};

/// The word that asks for it; a tap of that name is `tap=user`.
const WORD: &str = "user";

/// Whether `text`, the value of `--net`, speaks of a network that needs no privilege.
pub(super) fn is_meant(text: &str) -> bool {
    text.split(',').any(|part| part == WORD)
}

pub(super) fn net(text: &str) -> Result<Net, OptionError> {
    const KEYS: &[&str] = card_keys!(WORD, "tcp", "udp", "host_loopback");
    let keys = Keys::parse("net", KEYS, text)?;
    let ports = |key| {
        let wanted = "ports such as 2222:22 or 127.0.0.1/8080, with + between";
        Ok(keys.optional(key, wanted, ports)?.unwrap_or_default())
    };
    let loopback = keys.optional("host_loopback", "on or off", switch)?;
    let wire = NetWire::User(UserNetwork {
        tcp: ports("tcp")?,
        udp: ports("udp")?,
        host: match loopback {
            Some(true) => Reach::Loopback,
            Some(false) | None => Reach::Outside,
        },
    });
    card(&keys, wire)
}

/// Ports, each as passt has it: no option of its own, and no list.
fn ports(text: &str) -> Option<Vec<String>> {
    let is_one = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b":/.-%[]~".contains(&byte);
        part.bytes().any(|byte| byte.is_ascii_digit())
            && part.bytes().all(known)
            && !part.starts_with('-')
    };
    text.split('+')
        .map(|part| is_one(part).then(|| part.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> UserNetwork {
        assert!(is_meant(text), "{text}");
        match net(text).unwrap().wire {
            NetWire::User(network) => network,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn one_word_is_enough() {
        assert!(!is_meant("tap=user") && !is_meant("user0") && !is_meant("socket=/tmp/user"));
        assert_eq!(network("user"), UserNetwork::default());
        let card = net("mac=52:54:00:00:00:01,user,mtu=1400,speed=1000").unwrap();
        assert_eq!(card.speed, Some(1000));
        assert_eq!(card.mac, Some([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(
            (card.mtu, card.wire.to_string()),
            (Some(1400), "user".into())
        );
    }

    #[test]
    fn ports_and_the_host() {
        let asked = network("user,tcp=2222:22+127.0.0.1/8080,udp=5000-5009,host_loopback=on");
        assert_eq!(asked.tcp, ["2222:22", "127.0.0.1/8080"]);
        assert_eq!(asked.udp, ["5000-5009"]);
        assert_eq!(asked.host, Reach::Loopback);
        for (text, part) in [
            ("user,tcp=", "tcp= is not ports such as"),
            ("user,tcp=22+", "tcp=22+ is not"),
            ("user,udp=--pcap", "udp=--pcap is not"),
            ("user,tcp=22 23", "tcp=22 23 is not"),
            (
                "user,host_loopback=yes",
                "host_loopback=yes is not on or off",
            ),
            ("user,tap=t0", "--net: unknown key 'tap' (known: user, tcp"),
            ("user,num_queue_pairs=2", "unknown key 'num_queue_pairs'"),
        ] {
            let error = net(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
