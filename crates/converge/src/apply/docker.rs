//! Containers, over the engine's socket.
//!
//! Asked in HTTP/1.0: then the engine ends its answer by closing, and nothing of it is in chunks.

use super::images::Offered;
use super::{Error, Machine};
use model::plan::Action;
use model::spec::{Container, ContainerName, Image};
use serde_json::{Value, json};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Bytes of an answer.
const ANSWER_MAX: u64 = 4 << 20;

pub(super) async fn change(machine: &Machine, action: &Action) -> Result<bool, Error> {
    let engine = Engine { socket: &machine.docker };
    match action {
        Action::PutImage(image) => engine.put_image(image, machine.relay, false).await,
        Action::RenewImage(image) => engine.put_image(image, machine.relay, true).await,
        Action::CreateContainer { name, container } => engine.create(name, container).await,
        Action::StartContainer(name) => engine.stand(name, "start", &["running"]).await,
        Action::StopContainer(name) => {
            engine.stand(name, "stop", &["exited", "created", "dead"]).await
        }
        Action::PauseContainer(name) => engine.stand(name, "pause", &["paused"]).await,
        Action::UnpauseContainer(name) => engine.stand(name, "unpause", &["running"]).await,
        Action::RemoveContainer(name) => engine.remove(name).await,
        _ => Err(Error::Unclear("it is no change of a container".to_owned())),
    }
}

struct Engine<'e> {
    socket: &'e Path,
}

struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn is_success(&self) -> bool {
        (200..400).contains(&self.status)
    }

    fn accepted(self, doing: &str) -> Result<Value, Error> {
        if self.is_success() {
            return Ok(self.body);
        }
        let what =
            self.body.get("message").and_then(Value::as_str).unwrap_or("it does not say why");
        let what = crate::program::plain(what);
        Err(Error::Refused { by: "engine", doing: doing.to_owned(), what })
    }
}

impl Engine<'_> {
    /// `anew`: one that is there does not do.
    async fn put_image(
        &self,
        image: &Image,
        relay: Option<u16>,
        anew: bool,
    ) -> Result<bool, Error> {
        let before = self.image(image).await?;
        if let Some(port) = relay
            && let Some(offered) = Offered::ask(port, image).await?
        {
            if before.is_some() && before == *offered.id() {
                return Ok(false);
            }
            offered.load(self.socket).await?;
            return match self.image(image).await? {
                // Some engines know the same image by another digest.
                Some(after) => Ok(before != Some(after)),
                None => Err(Error::Unclear(format!("the engine loaded {image}, and has none"))),
            };
        }
        if before.is_some() && !anew {
            return Ok(false);
        }
        self.ask("POST", &image.path_to_fetch(), None).await?.accepted("fetch the image")?;
        // What fails while it is fetched is told in the answer's body, with status 200.
        match self.image(image).await? {
            Some(after) => Ok(before != Some(after)),
            None => {
                Err(Error::Unclear(format!("the engine has no image {image}, and can't get it")))
            }
        }
    }

    /// The id of an image, if there is one of the name.
    async fn image(&self, image: &Image) -> Result<Option<String>, Error> {
        let answer = self.ask("GET", &format!("/images/{image}/json"), None).await?;
        let id = answer.body.get("Id").and_then(Value::as_str).unwrap_or_default();
        Ok(answer.is_success().then(|| id.to_owned()))
    }

    async fn create(&self, name: &ContainerName, wanted: &Container) -> Result<bool, Error> {
        // The plan says when one is made anew; then the old one was removed before.
        if self.state(name).await?.is_some() {
            return Ok(false);
        }
        for network in &wanted.networks {
            self.put_network(network).await?;
        }
        let path = format!("/containers/create?name={name}");
        let created = self.ask("POST", &path, Some(&wanted.form())).await?;
        created.accepted(&format!("create {name}"))?;
        for network in wanted.networks.iter().skip(1) {
            let path = format!("/networks/{network}/connect");
            let body = json!({"Container": name.as_str()});
            let connected = self.ask("POST", &path, Some(&body)).await?;
            connected.accepted(&format!("connect {name} to {network}"))?;
        }
        match self.state(name).await? {
            Some(_) => Ok(true),
            None => Err(Error::Unchanged(name.to_string())),
        }
    }

    async fn put_network(&self, name: &ContainerName) -> Result<(), Error> {
        if name.is_given_network() {
            return Ok(());
        }
        if self.ask("GET", &format!("/networks/{name}"), None).await?.is_success() {
            return Ok(());
        }
        let body = json!({"Name": name.as_str(), "Driver": "bridge"});
        let made = self.ask("POST", "/networks/create", Some(&body)).await?;
        made.accepted(&format!("make the network {name}"))?;
        Ok(())
    }

    async fn stand(
        &self,
        name: &ContainerName,
        verb: &str,
        states: &[&str],
    ) -> Result<bool, Error> {
        let is_so = |state: Option<String>| state.is_some_and(|s| states.contains(&s.as_str()));
        if is_so(self.state(name).await?) {
            return Ok(false);
        }
        let path = format!("/containers/{name}/{verb}");
        self.ask("POST", &path, None).await?.accepted(&format!("{verb} {name}"))?;
        let after = self.state(name).await?;
        let told = after.clone().unwrap_or_else(|| "gone".to_owned());
        if is_so(after) { Ok(true) } else { Err(Error::Unchanged(told)) }
    }

    async fn remove(&self, name: &ContainerName) -> Result<bool, Error> {
        if self.state(name).await?.is_none() {
            return Ok(false);
        }
        let path = format!("/containers/{name}?force=true");
        self.ask("DELETE", &path, None).await?.accepted(&format!("remove {name}"))?;
        Ok(true)
    }

    /// `None` where there is no such container.
    async fn state(&self, name: &ContainerName) -> Result<Option<String>, Error> {
        let answer = self.ask("GET", &format!("/containers/{name}/json"), None).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let body = answer.accepted(&format!("look at {name}"))?;
        Ok(body.pointer("/State/Status").and_then(Value::as_str).map(str::to_owned))
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Error> {
        let failed = |source| Error::Engine { path: self.socket.to_owned(), source };
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = UnixStream::connect(self.socket).await.map_err(failed)?;
        stream.write_all(head.as_bytes()).await.map_err(failed)?;
        stream.write_all(body.as_bytes()).await.map_err(failed)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await.map_err(failed)?;
        read(&answer)
            .ok_or_else(|| Error::Unclear(format!("the engine's answer to {path} has no form")))
    }
}

fn read(answer: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // Some answers are several objects, and some none; those are looked at by nobody.
    Some(Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null) })
}
