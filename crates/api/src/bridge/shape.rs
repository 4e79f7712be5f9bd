//! Which fields have another type than they can have.
//!
//! Each is named once, and without the number of the thing it is of: what is named must not
//! change because a list has another order. So there are no more than the tables here have.

use super::{service_of, size_of, text};
use serde_json::Value;
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    Whole,
    /// In gigabytes.
    Size,
    List,
    /// A list, or one text.
    Words,
    /// A map, or a list.
    Pairs,
    Flag,
    Object,
}
use Shape::{Flag, List, Object, Pairs, Size, Text, Whole, Words};

type Fields = &'static [(&'static str, Shape)];

const SERVICE: Fields = &[
    ("environment", Pairs),
    ("id", Text),
    ("image", Text),
    ("is_llm_related", Flag),
    ("links", Words),
    ("pid", Whole),
    ("ports", List),
    ("restart_policy", Text),
    ("status", Text),
    ("type", Text),
    ("volumes", List),
];
const PROCESS: Fields = &[
    ("cmdline", Words),
    ("cwd", Text),
    ("is_llm_related", Flag),
    ("pid", Whole),
    ("username", Text),
];
const HARDWARE: Fields = &[
    ("cpu", Object),
    ("disks", List),
    ("kernel_version", Text),
    ("memory", Object),
    ("network", Object),
    ("os", Text),
    ("platform", Text),
    ("platform_version", Text),
];
const CPU: Fields = &[
    ("cores_physical", Whole),
    ("count", Whole),
    ("count_logical", Whole),
    ("logical_cores", Whole),
    ("model", Text),
    ("physical_cores", Whole),
];
const MEMORY: Fields = &[("swap_total_gb", Size), ("total_gb", Size)];
const DISK: Fields =
    &[("device", Text), ("fstype", Text), ("mountpoint", Text), ("total_gb", Size)];
const INTERFACE: Fields = &[("addresses", Words), ("flags", Words), ("mac", Text)];

impl Shape {
    fn fits(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null)
            | (Text, Value::String(_) | Value::Number(_))
            | (Whole, Value::Number(_))
            | (List, Value::Array(_))
            | (Words, Value::Array(_) | Value::String(_))
            | (Pairs, Value::Array(_) | Value::Object(_))
            | (Flag, Value::Bool(_))
            | (Object, Value::Object(_)) => true,
            // Nothing at all is how some say that there is none.
            (Whole, Value::String(text)) => {
                text.trim().is_empty() || text.trim().parse::<i64>().is_ok()
            }
            (Size, Value::String(text)) if text.trim().is_empty() => true,
            (Size, value) => size_of(value).is_some(),
            _ => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Text => "a text",
            Whole => "a whole number",
            Size => "a size that can be",
            List => "a list",
            Words => "a list or a text",
            Pairs => "a map or list",
            Flag => "true or false",
            Object => "an object",
        }
    }
}

/// `services[].pid is not a whole number`, and what was left out because of its name.
pub(super) fn misfits(
    services: &[Value],
    processes: &[Value],
    hardware: &Value,
) -> BTreeSet<String> {
    let mut found = Found::default();
    for one in services {
        found.look(one, SERVICE, "services[]");
        found.look_at_name(one, "services[]");
        if text(one, "name").is_some() && service_of(one).is_none() {
            found.0.insert("services[].name is not one a unit can have".to_owned());
        }
    }
    for one in processes {
        found.look(one, PROCESS, "processes[]");
        found.look_at_name(one, "processes[]");
    }
    found.look(hardware, HARDWARE, "hardware");
    let part = |name: &str| hardware.get(name).filter(|part| part.is_object());
    for (name, fields) in [("cpu", CPU), ("memory", MEMORY)] {
        found.look(part(name).unwrap_or(&Value::Null), fields, &format!("hardware.{name}"));
    }
    for disk in hardware.get("disks").and_then(Value::as_array).into_iter().flatten() {
        found.look(disk, DISK, "hardware.disks[]");
    }
    for one in part("network").and_then(Value::as_object).into_iter().flat_map(|all| all.values()) {
        found.look(one, INTERFACE, "hardware.network[]");
    }
    found.0
}

#[derive(Default)]
struct Found(BTreeSet<String>);

impl Found {
    fn look(&mut self, object: &Value, fields: Fields, whose: &str) {
        for (name, shape) in fields {
            if object.get(name).is_some_and(|value| !shape.fits(value)) {
                self.0.insert(format!("{whose}.{name} is not {}", shape.name()));
            }
        }
    }

    /// What names nothing is left out.
    fn look_at_name(&mut self, object: &Value, whose: &str) {
        match object.get("name") {
            _ if text(object, "name").is_some() => {}
            None | Some(Value::Null | Value::String(_)) => {
                self.0.insert(format!("{whose}.name is missing"));
            }
            Some(_) => {
                self.0.insert(format!("{whose}.name is not a text"));
            }
        }
    }
}
