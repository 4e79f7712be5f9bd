//! Containers as tasks: the engine in the guest is asked over its socket, in the words that the
//! guest's agent would use.

use super::task::Task;
use super::yaml::Yaml;
use model::plan::Action;
use model::spec::{Container, ContainerName, Image};
use serde_json::json;

/// Seconds for an answer that is there at once, and for others.
const SOON: u64 = 60;
const LATER: u64 = 900;

const IS_MISSING: &str = "twin_seen.status == 404";

pub(super) fn of(action: &Action) -> Vec<Task> {
    match action {
        // The guest's agent had it come anew before.
        Action::PutImage(image) | Action::RenewImage(image) => put_image(image),
        Action::CreateContainer { name, container } => create(name, container),
        Action::StartContainer(name) => stand(name, "start", "['running']"),
        Action::StopContainer(name) => stand(name, "stop", "['exited', 'created', 'dead']"),
        Action::PauseContainer(name) => stand(name, "pause", "['paused']"),
        Action::UnpauseContainer(name) => stand(name, "unpause", "['running']"),
        Action::RemoveContainer(name) => {
            let path = format!("/containers/{name}?force=true");
            let removed = ask("DELETE", &path, &[204, 404], LATER).register("twin_seen");
            vec![removed.changed_when("twin_seen.status == 204")]
        }
        _ => Vec::new(),
    }
}

fn put_image(image: &Image) -> Vec<Task> {
    let path = format!("/images/{image}/json");
    let look = ask("GET", &path, &[200, 404], SOON).register("twin_seen");
    let fetch = ask("POST", &image.path_to_fetch(), &[200], LATER);
    // What fails while it is fetched is told in the answer's body, with status 200.
    let look_again = ask("GET", &path, &[200], SOON).when(IS_MISSING);
    vec![look, fetch.when(IS_MISSING).changed_when("true"), look_again]
}

fn create(name: &ContainerName, wanted: &Container) -> Vec<Task> {
    let mut tasks = Vec::new();
    for network in wanted.networks.iter().filter(|network| !network.is_given_network()) {
        let path = format!("/networks/{network}");
        let body = json!({"Name": network.as_str(), "Driver": "bridge"}).to_string();
        let made = tell("/networks/create", &body, &[201]);
        tasks.push(ask("GET", &path, &[200, 404], SOON).register("twin_seen"));
        tasks.push(made.when(IS_MISSING).changed_when("true"));
    }
    // The plan says when one is made anew; then the old one was removed before.
    let path = format!("/containers/{name}/json");
    tasks.push(ask("GET", &path, &[200, 404], SOON).register("twin_seen"));
    let path = format!("/containers/create?name={name}");
    let created = tell(&path, &wanted.form().to_string(), &[201]);
    tasks.push(created.when(IS_MISSING).changed_when("true"));
    for network in wanted.networks.iter().skip(1) {
        let path = format!("/networks/{network}/connect");
        let body = json!({"Container": name.as_str()}).to_string();
        tasks.push(tell(&path, &body, &[200]).when(IS_MISSING).changed_when("true"));
    }
    tasks
}

fn stand(name: &ContainerName, verb: &str, states: &str) -> Vec<Task> {
    let look = ask("GET", &format!("/containers/{name}/json"), &[200], SOON).register("twin_seen");
    let done = ask("POST", &format!("/containers/{name}/{verb}"), &[204, 304], LATER);
    let when = format!("twin_seen.json.State.Status not in {states}");
    vec![look, done.when(&when).changed_when("true")]
}

fn ask(method: &str, path: &str, statuses: &[u64], seconds: u64) -> Task {
    Task::new("ansible.builtin.uri", request(method, path, statuses, seconds))
}

fn tell(path: &str, body: &str, statuses: &[u64]) -> Task {
    let mut arguments = request("POST", path, statuses, SOON);
    // A text that is JSON already goes out as it is.
    arguments.extend([("body_format", Yaml::own("json")), ("body", Yaml::data(body))]);
    Task::new("ansible.builtin.uri", arguments)
}

fn request(method: &str, path: &str, statuses: &[u64], seconds: u64) -> Vec<(&'static str, Yaml)> {
    let statuses = statuses.iter().copied().map(Yaml::Number).collect();
    vec![
        ("url", Yaml::Data(format!("http://localhost{path}"))),
        ("unix_socket", Yaml::own("{{ docker_socket }}")),
        ("method", Yaml::own(method)),
        ("status_code", Yaml::List(statuses)),
        ("timeout", Yaml::Number(seconds)),
    ]
}
