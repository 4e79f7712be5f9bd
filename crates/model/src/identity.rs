//! Who a machine is: what no two machines may have in common.

use crate::checked;
use serde::{Deserialize, Serialize};

/// What makes a machine this one and not the one it was cloned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub hostname: HostName,
    pub machine_id: MachineId,
    /// Of its only network card; absent, it keeps the one it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

checked!(
    /// A host name: labels of letters, digits and inner hyphens, 64 in all, as Linux allows.
    HostName,
    "a host name",
    is_host_name
);
checked!(
    /// 32 hexadecimal digits, as `/etc/machine-id` has them.
    MachineId,
    "a machine id (32 hexadecimal digits in lower case, not all zero)",
    is_machine_id
);
checked!(
    /// Six bytes in hexadecimal, of one station, not of a group.
    MacAddress,
    "a MAC address (52:54:00:12:34:56)",
    is_mac
);

impl MacAddress {
    /// As the wire has them.
    #[must_use]
    pub fn octets(&self) -> [u8; 6] {
        let mut octets = [0; 6];
        for (octet, digits) in octets.iter_mut().zip(self.0.split(':')) {
            *octet = u8::from_str_radix(digits, 16).expect("digits were checked");
        }
        octets
    }
}

fn is_host_name(text: &str) -> bool {
    text.len() <= 64
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_digit(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(is_digit) && text.bytes().any(|b| b != b'0')
}

fn is_mac(text: &str) -> bool {
    let octet = |digits: &str| digits.len() == 2 && digits.bytes().all(is_digit);
    // The lowest bit of the first octet is a group's.
    let single = |digits: &str| u8::from_str_radix(digits, 16).is_ok_and(|octet| octet & 1 == 0);
    text.split(':').count() == 6
        && text.split(':').all(octet)
        && text.split(':').next().is_some_and(single)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_identity_is_refused() {
        for text in ["", "..", "../x", "a/b", "-a", "a-", "a b", "a\n", "ä", "a\0", "a..b", "a."] {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(65).parse::<HostName>().is_err());
        for text in ["", "0", &"0".repeat(32), &"A".repeat(32), &"a".repeat(33), "../../etc/passwd"]
        {
            assert!(text.parse::<MachineId>().is_err(), "{text:?}");
        }
        for text in [
            "",
            "52:54:00:12:34",
            "53:54:00:12:34:56",
            "52:54:00:12:34:5",
            "+2:54:00:12:34:56",
            "52:54:00:12:34:5G",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_identity_is_read_as_it_was_written() {
        let text = r#"{"hostname":"web-01.example.org","machine_id":"0123456789abcdef0123456789abcdef","mac":"52:54:00:12:34:ff"}"#;
        let identity: Identity = serde_json::from_str(text).unwrap();
        let octets = identity.mac.as_ref().map(MacAddress::octets);
        assert_eq!(octets, Some([0x52, 0x54, 0, 0x12, 0x34, 0xff]));
        assert_eq!(serde_json::to_string(&identity).unwrap(), text);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_one_plain_word(text in "[0-9a-f:.\n-]{0,34}") {
            let taken = [
                text.parse::<HostName>().is_ok(),
                text.parse::<MachineId>().is_ok(),
                text.parse::<MacAddress>().map(|mac| mac.octets()).is_ok(),
            ];
            if taken.contains(&true) {
                prop_assert!(!text.contains(['\n', '/']) && !text.starts_with(['.', '-', ':']));
            }
        }
    }
}
