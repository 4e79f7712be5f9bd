//! Has machines that run let go of files that merging removed or replaced: until then, their room
//! is not given back.
//!
//! ```text
//! open:   1 (gone) ◄─ 2 (replaced) ◄─ 4 (active)
//! then:          2 (as it is now)  ◄─ 4 (active)      the same disk, under the guest
//! ```

use super::Qemu;
use super::command::{self, node};
use super::home::{Home, LAYERS};
use super::power::{monitor, refused, running};
use super::process;
use super::qmp::{self, Qmp};
use crate::machine::Error;
use serde::Deserialize;
use serde_json::json;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DOING: &str = "let go of merged layers";
/// QEMU's names for what is opened anew: one is in use, the other is free.
const BELOW: [&str; 2] = ["below-0", "below-1"];

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "node-name")]
    name: String,
    #[serde(rename = "drv")]
    driver: String,
    file: String,
}

impl Qemu {
    /// The same for all clones that stand on this machine. One with which something is done lets
    /// go when it is saved the next time. What goes wrong takes room, and nothing else.
    pub(super) async fn let_go_with_clones(&self, home: &Home) -> Result<(), Error> {
        self.let_go_or_tell(home).await;
        let mut seen = BTreeSet::from([home.name.clone()]);
        let mut origins = vec![home.name.clone()];
        while let Some(origin) = origins.pop() {
            for clone in self.clones_of(&origin)?.into_keys() {
                if !seen.insert(clone.clone()) {
                    continue;
                }
                if let Ok(_turn) = self.turns.take(&clone) {
                    self.let_go_or_tell(&self.home(&clone)).await;
                }
                origins.push(clone);
            }
        }
        Ok(())
    }

    pub(super) async fn let_go_or_tell(&self, home: &Home) {
        if let Err(error) = self.let_go(home).await {
            tracing::warn!(machine = %home.name, error = %model::with_causes(&error), "layers that are gone take room until the machine stops");
        }
    }

    /// Has QEMU open what is below the layer that it writes to as it is now.
    async fn let_go(&self, home: &Home) -> Result<(), Error> {
        let definition = home.load()?;
        let Some((run, _process)) = running(home, &definition)? else { return Ok(()) };
        // Its own, or those of a machine that it began from.
        let is_layer = |path: &PathBuf| path.parent().is_some_and(|dir| dir.ends_with(LAYERS));
        if !process::removed_files(&home.run(run)).iter().any(is_layer) {
            return Ok(());
        }
        let Some(layer) = definition.layers.get(&definition.active) else { return Ok(()) };
        let (active, below) = (definition.active, self.below(home, &definition, layer));
        let mut qmp = monitor(home, run, DOING).await?;
        let done = open_anew(&mut qmp, active, &home.layer(active), &below).await;
        done.map_err(refused(home, DOING))
    }
}

/// Puts another node below the one that is written to, over the same file as it is called now.
async fn open_anew(
    qmp: &mut Qmp,
    active: u64,
    path: &Path,
    below: &Path,
) -> Result<(), qmp::Error> {
    let nodes: Vec<Node> = qmp.call("query-named-block-nodes", json!({ "flat": true })).await?;
    let is_there = |name: &str| nodes.iter().any(|node| node.name == name);
    let file = nodes.iter().find(|node| node.driver == "file" && Path::new(&node.file) == path);
    let new = BELOW.into_iter().find(|name| !is_there(name));
    let (Some(new), Some(file)) = (new, file) else {
        let text = "its disk is not open as it should be".to_owned();
        return Err(qmp::Error::Refused { command: "blockdev-reopen", text });
    };
    qmp.act("blockdev-add", command::below(new, below)).await?;
    let mut layer = command::layer(active, path);
    if let Some(layer) = layer.as_object_mut() {
        layer.insert("file".to_owned(), json!(file.name));
        layer.insert("backing".to_owned(), json!(new));
    }
    let reopened = qmp.act("blockdev-reopen", json!({ "options": [layer] })).await;
    let unused = match &reopened {
        Ok(()) => layers_below(&nodes, active),
        Err(_) => vec![new.to_owned()],
    };
    for name in unused {
        if let Err(error) = qmp.act("blockdev-del", json!({ "node-name": name })).await {
            tracing::debug!(%error, "while a machine lets go of merged layers");
        }
    }
    reopened
}

/// What was below a layer, from the top: what was written to before, then what was opened anew.
fn layers_below(nodes: &[Node], active: u64) -> Vec<String> {
    let number = |node: &Node| node.name.strip_prefix("layer-")?.parse().ok();
    let mut layers: Vec<u64> = nodes.iter().filter_map(number).filter(|at| *at < active).collect();
    layers.sort_unstable_by_key(|number| Reverse(*number));
    let anew = nodes.iter().map(|node| &node.name).filter(|name| BELOW.contains(&name.as_str()));
    layers.into_iter().map(node).chain(anew.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::fake;
    use crate::qemu::home::{Below, Layer};
    use serde_json::Value;
    use std::fs::{self, File};
    use std::process::Stdio;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn what_a_merge_removed_is_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = fake::qemu(dir.path());
        let home = fake::machine(&qemu, "web01", Below::Image);
        home.change(|definition| {
            let layer = Layer { below: Below::Layer(1), sealed: None, merged: None };
            definition.layers.insert(3, layer);
            definition.active = 3;
        })
        .unwrap();
        // It reads a layer that goes.
        let gone = home.layer(2);
        fs::write(&gone, "").unwrap();
        process::make(&home.run(1)).unwrap();
        let mut command = tokio::process::Command::new("sleep");
        command.arg("1000").kill_on_drop(true).stdin(Stdio::from(File::open(&gone).unwrap()));
        let reader = command.spawn().unwrap();
        process::write_down(&home.run(1), reader.id()).unwrap();
        home.change(|definition| definition.run = Some(1)).unwrap();
        let said: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let (heard, active) = (Arc::clone(&said), home.layer(3));
        let asked = fake::answer(&home, command::MONITOR, move |command, arguments| {
            heard.lock().unwrap().push((command.to_owned(), arguments.clone()));
            let node = |name: &str, driver: &str, file: &Path| json!({ "node-name": name, "drv": driver, "file": file });
            Some(match command {
                "query-named-block-nodes" => json!([
                    node("below-0", "qcow2", Path::new("1")),
                    node("layer-3", "qcow2", &active),
                    node("#block1", "file", &active),
                    node("layer-1", "qcow2", Path::new("1")),
                    node("layer-2", "qcow2", Path::new("2")),
                    node("seed", "raw", Path::new("seed")),
                ]),
                _ => json!({}),
            })
        });
        // What has its name is none of its business.
        qemu.let_go(&home).await.unwrap();
        assert!(asked.lock().unwrap().is_empty());
        fs::remove_file(&gone).unwrap();
        qemu.let_go(&home).await.unwrap();
        let said = said.lock().unwrap();
        let of = |wanted: &str| -> Vec<Value> {
            let some = said.iter().filter(|(command, _)| command == wanted);
            some.map(|(_, arguments)| arguments.clone()).collect()
        };
        assert_eq!(of("blockdev-add")[0]["node-name"], "below-1");
        assert_eq!(of("blockdev-add")[0]["file"]["filename"], json!(home.layer(1)));
        let reopened = &of("blockdev-reopen")[0]["options"][0];
        assert_eq!(reopened["node-name"], "layer-3");
        assert_eq!(
            (&reopened["file"], &reopened["backing"]),
            (&json!("#block1"), &json!("below-1"))
        );
        let unused: Vec<Value> =
            of("blockdev-del").iter().map(|one| one["node-name"].clone()).collect();
        assert_eq!(unused, ["layer-2", "layer-1", "below-0"]);
    }
}
