//! Which fields have another type than they can have.

use serde_json::Value;

/// Fields that are named.
const MAX: usize = 20;

#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    Whole,
    Number,
    List,
    /// A list, or one text.
    Words,
    /// A map, or a list.
    Pairs,
    Flag,
    Object,
}
use Shape::{Flag, List, Number, Object, Pairs, Text, Whole, Words};

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
const MEMORY: Fields = &[("swap_total_gb", Number), ("total_gb", Number)];
const DISK: Fields =
    &[("device", Text), ("fstype", Text), ("mountpoint", Text), ("total_gb", Number)];
const INTERFACE: Fields = &[("addresses", Words), ("flags", Words), ("mac", Text)];

impl Shape {
    fn fits(self, value: &Value) -> bool {
        let number = |text: &str| text.trim().parse::<f64>().is_ok_and(f64::is_finite);
        match (self, value) {
            (_, Value::Null)
            | (Text, Value::String(_) | Value::Number(_))
            | (Whole | Number, Value::Number(_))
            | (List, Value::Array(_))
            | (Words, Value::Array(_) | Value::String(_))
            | (Pairs, Value::Array(_) | Value::Object(_))
            | (Flag, Value::Bool(_))
            | (Object, Value::Object(_)) => true,
            // Nothing at all is how some say that there is none.
            (Whole, Value::String(text)) => {
                text.trim().is_empty() || text.trim().parse::<i64>().is_ok()
            }
            (Number, Value::String(text)) => text.trim().is_empty() || number(text),
            _ => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Text => "a text",
            Whole => "a whole number",
            Number => "a number",
            List => "a list",
            Words => "a list or a text",
            Pairs => "a map or list",
            Flag => "true or false",
            Object => "an object",
        }
    }
}

/// `services[3].pid is not a whole number`, the first of them.
pub(super) fn misfits(services: &[Value], processes: &[Value], hardware: &Value) -> Vec<String> {
    let mut found = Found::default();
    for (index, one) in services.iter().enumerate() {
        found.look(one, SERVICE, &|| format!("services[{index}]"));
    }
    for (index, one) in processes.iter().enumerate() {
        found.look(one, PROCESS, &|| format!("processes[{index}]"));
    }
    found.look(hardware, HARDWARE, &|| "hardware".to_owned());
    let part = |name: &str| hardware.get(name).filter(|part| part.is_object());
    for (name, fields) in [("cpu", CPU), ("memory", MEMORY)] {
        found.look(part(name).unwrap_or(&Value::Null), fields, &|| format!("hardware.{name}"));
    }
    let disks = hardware.get("disks").and_then(Value::as_array).into_iter().flatten();
    for (index, disk) in disks.enumerate() {
        found.look(disk, DISK, &|| format!("hardware.disks[{index}]"));
    }
    for (name, one) in part("network").and_then(Value::as_object).into_iter().flatten() {
        found.look(one, INTERFACE, &|| format!("hardware.network.{name}"));
    }
    if found.more > 0 {
        found.told.push(format!("and {} more", found.more));
    }
    found.told
}

#[derive(Default)]
struct Found {
    told: Vec<String>,
    more: usize,
}

impl Found {
    fn look(&mut self, object: &Value, fields: Fields, whose: &dyn Fn() -> String) {
        for (name, shape) in fields {
            if object.get(name).is_none_or(|value| shape.fits(value)) {
                continue;
            }
            if self.told.len() < MAX {
                self.told.push(format!("{}.{name} is not {}", whose(), shape.name()));
            } else {
                self.more += 1;
            }
        }
    }
}
