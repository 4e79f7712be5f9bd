//! Carries out a plan by Ansible, as the server does it, on any machine that SSH leads to.
//!
//! ```text
//! cargo run -p server --example by_ansible -- PLAN.json FILES NAME PORT LOGIN KNOWN_HOSTS [RELAY]
//! ```
//!
//! What its files hold lies below the directory FILES. The machine is at PORT of 127.0.0.1, and
//! shows a key that KNOWN_HOSTS has for NAME; its apt asks at the port RELAY of its loopback. What
//! Ansible says goes to the standard error; the outcomes go out as JSON, as the guest's agent tells
//! them.

mod reach;

use model::ContentId;
use model::plan::{Action, Plan, PutFile};
use model::spec::Source;
use server::twins::ansible::{Ansible, Said};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [plan, files, name, port, login, known_hosts, rest @ ..] = words.as_slice() else {
        return Err("usage: by_ansible PLAN.json FILES NAME PORT LOGIN KNOWN_HOSTS [RELAY]".into());
    };
    let relay = rest.first().map(|port| port.parse()).transpose()?;
    let plan: Arc<Plan> = Arc::new(serde_json::from_str(&std::fs::read_to_string(plan)?)?);
    let reach = reach::of_words([name, port, login, known_hosts])?;
    let place = tempfile::tempdir()?;
    let directory = place.path().join("ansible");
    let ansible = Ansible { directory: &directory, playbook: None, reach: &reach, relay };
    let events = Arc::new(Mutex::new(Vec::new()));
    let say = {
        let events = Arc::clone(&events);
        move |said: Said| match said {
            Said::Line(line) => {
                // Whoever does not listen misses it.
                let _unheard = writeln!(io::stderr(), "{line}");
            }
            Said::Event(event) => {
                events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        }
    };
    let contents = contents(&plan, Path::new(files));
    let begun = std::time::Instant::now();
    let outcomes = ansible.carry_out(&plan, contents, say, Default::default()).await;
    let outcomes = outcomes.map_err(|failure| failure.message().to_owned())?;
    let events = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
    let answer = serde_json::json!({"outcomes": outcomes, "events": events});
    let ms = begun.elapsed().as_millis().to_string();
    Ok(writeln!(io::stdout(), "{{\"ms\": {ms}, \"answer\": {answer}}}")?)
}

/// Those that are there; the steps that need the others will say so.
fn contents(plan: &Plan, files: &Path) -> BTreeMap<ContentId, String> {
    let content = |step: &model::plan::Step| match &step.action {
        Action::PutFile(PutFile { path, source: Source::Stored(id), .. }) => {
            let path = files.join(path.as_str().trim_start_matches('/'));
            Some((*id, std::fs::read_to_string(path).ok()?))
        }
        _ => None,
    };
    plan.steps().iter().filter_map(content).collect()
}
