//! Plans by hand: what leads one machine to what another is, from what `twin-agent --once` saw of
//! both.
//!
//! ```text
//! cargo run -p model --example plan -- HOST.json TWIN.json [BASE.json]   the plan, as JSON
//! cargo run -p model --example plan -- --paths HOST.json                 the files to look at
//! ```

use model::Facts;
use model::plan::{Own, plan};
use model::spec::{Extras, Spec};
use std::io::{self, Write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let spec = |path: &str| read(path).map(|facts| Spec::of(&facts, &Extras::default(), None));
    let text = match words.as_slice() {
        ["--paths", host] => {
            let spec = spec(host)?;
            let paths: Vec<_> = spec.paths().collect();
            serde_json::to_string(&paths)?
        }
        [host, twin] => serde_json::to_string(&plan(&spec(host)?, &read(twin)?, &Own::default()))?,
        [host, twin, base] => {
            let own = Own::of(&read(base)?);
            serde_json::to_string(&plan(&spec(host)?, &read(twin)?, &own))?
        }
        _ => return Err("usage: plan HOST.json TWIN.json [BASE.json] | --paths HOST.json".into()),
    };
    Ok(writeln!(io::stdout(), "{text}")?)
}

fn read(path: &str) -> Result<Facts, Box<dyn std::error::Error>> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}
