//! What a rename is to the two endpoints. Pure.

use serde::Serialize;

#[derive(Serialize)]
struct Group<'a> {
    vms: [Renamed<'a>; 1],
}

#[derive(Serialize)]
struct Renamed<'a> {
    old_name: &'a str,
    new_name: &'a str,
}

#[derive(Serialize)]
struct Auth<'a> {
    name: &'a str,
    new_name: &'a str,
}

/// The body for the groups of VMs: `{"vms":[{"old_name":…,"new_name":…}]}`.
#[must_use]
pub fn group(old: &str, new: &str) -> String {
    json(&Group { vms: [Renamed { old_name: old, new_name: new }] })
}

/// The body for the sessions' service: `{"name":…,"new_name":…}`.
#[must_use]
pub fn auth(old: &str, new: &str) -> String {
    json(&Auth { name: old, new_name: new })
}

fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("texts can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bodies_are_those_of_the_service_before() {
        assert_eq!(group("a", "b"), r#"{"vms":[{"old_name":"a","new_name":"b"}]}"#);
        assert_eq!(auth("a", "b"), r#"{"name":"a","new_name":"b"}"#);
    }

    #[test]
    fn a_name_stays_a_text() {
        let name = "a\",\"x\":\"\n\u{1b}é";
        let body: serde_json::Value = serde_json::from_str(&auth(name, name)).unwrap();
        assert_eq!(body, serde_json::json!({"name": name, "new_name": name}));
    }
}
