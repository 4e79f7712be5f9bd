//! A session at a source: logging in, listing all there is page by page, waiting for changes.
//!
//! ```text
//!   RetrieveServiceContent ─ Login ─ CreateContainerView ─┬─ RetrievePropertiesEx, Continue…
//!                                                         └─ CreatePropertyCollector ─ CreateFilter
//!                                                              └─ WaitForUpdatesEx, again and again
//! ```
//!
//! Waiting has a connection and a collector of its own, so that a listing need not wait for it.

use crate::channel::Channel;
use crate::objects::{Change, OF_MACHINES, OF_PLACES, Objects};
use crate::soap::{call, updates};
use crate::xml::{Element, escaped};
use crate::{Error, Settings};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// Objects of one page, or of one answer about changes, unless they are too large.
pub const PAGE: usize = 500;
/// VMs that are asked for one by one, of those that are not listed any more: when one of them is
/// hidden, so are the others taken to be.
const MAX_ASKED: usize = 50;
/// Pages of one listing.
const MAX_PAGES: usize = 10_000;

/// What a source says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// `VMware vCenter Server 8.0.2 build-…`.
    pub name: String,
    pub is_vcenter: bool,
}

#[derive(Debug)]
pub struct Session {
    channel: Channel,
    about: About,
    collector: String,
    sessions: String,
    view: String,
    page: usize,
}

impl Session {
    /// Connects and logs in. So many objects are asked for at once: [`PAGE`], or fewer where an
    /// answer [was too large](Error::is_too_large).
    ///
    /// # Errors
    /// When the server can't be reached, is not whom it should be, or refuses us.
    pub async fn open(settings: &Settings, page: usize) -> Result<Self, Error> {
        let mut channel = Channel::new(settings)?;
        let body = call("RetrieveServiceContent", ("ServiceInstance", "ServiceInstance"), "");
        let answer = channel.call("RetrieveServiceContent", &body).await?;
        let at = channel.at().to_owned();
        let content = answer.child("returnval");
        let id = |name: &'static str| {
            let found = content.and_then(|content| content.text_of(name)).map(str::to_owned);
            let lacks = || Error::Unexpected {
                at: at.clone(),
                call: "RetrieveServiceContent",
                lacks: name,
            };
            found.filter(|id| !id.is_empty()).ok_or_else(lacks)
        };
        let (root, collector) = (id("rootFolder")?, id("propertyCollector")?);
        let (views, sessions) = (id("viewManager")?, id("sessionManager")?);
        let about = content.and_then(|content| content.child("about"));
        let word = |name: &str| {
            let word = about.and_then(|about| about.text_of(name)).unwrap_or_default();
            word.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
        };
        let about =
            About { name: word("fullName"), is_vcenter: word("apiType") == "VirtualCenter" };
        let arguments = format!(
            "<userName>{}</userName><password>{}</password>",
            escaped(&settings.username),
            escaped(&settings.password.0)
        );
        let body = call("Login", ("SessionManager", &sessions), &arguments);
        channel.call("Login", &body).await?;
        let kinds: String = ["VirtualMachine", "HostSystem", "Folder", "Datacenter"].iter().fold(
            String::new(),
            |mut text, kind| {
                write!(text, "<type>{kind}</type>").ok();
                text
            },
        );
        let arguments = format!(
            r#"<container type="Folder">{}</container>{kinds}<recursive>true</recursive>"#,
            escaped(&root)
        );
        let body = call("CreateContainerView", ("ViewManager", &views), &arguments);
        let mut session = Self { channel, about, collector, sessions, view: String::new(), page };
        match session.look_at(&body).await {
            Ok(()) => Ok(session),
            Err(error) => {
                if let Err(also) = session.close().await {
                    tracing::debug!(error = %also, "could not log out");
                }
                Err(error)
            }
        }
    }

    async fn look_at(&mut self, body: &str) -> Result<(), Error> {
        let answer = self.channel.call("CreateContainerView", body).await?;
        self.view = returned(&self.channel, "CreateContainerView", &answer)?;
        Ok(())
    }

    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Everything there is, page by page.
    ///
    /// # Errors
    /// When one of the pages did not come: what came until then is no listing.
    pub async fn list(&mut self) -> Result<Objects, Error> {
        let arguments = format!(
            "<specSet>{}</specSet><options><maxObjects>{}</maxObjects></options>",
            self.specification(),
            self.page
        );
        let collector = self.collector.clone();
        let this = ("PropertyCollector", collector.as_str());
        let body = call("RetrievePropertiesEx", this, &arguments);
        let mut answer = self.channel.call("RetrievePropertiesEx", &body).await?;
        let mut objects = Objects::default();
        for _ in 0..MAX_PAGES {
            for change in updates(&answer) {
                objects.apply(change);
            }
            let token = answer.child("returnval").and_then(|page| page.text_of("token"));
            let Some(token) = token else { return Ok(objects) };
            let arguments = format!("<token>{}</token>", escaped(token));
            let body = call("ContinueRetrievePropertiesEx", this, &arguments);
            answer = self.channel.call("ContinueRetrievePropertiesEx", &body).await?;
        }
        let at = self.channel.at().to_owned();
        Err(Error::Unexpected { at, call: "ContinueRetrievePropertiesEx", lacks: "an end" })
    }

    /// Which of these VMs, which are not listed, are there and not to be seen by us.
    ///
    /// # Errors
    /// When that can't be found out.
    pub async fn hidden(&mut self, ids: &BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        hidden(&mut self.channel, &self.collector, ids).await
    }

    /// Begins to follow what changes. The first changes are everything there is.
    ///
    /// # Errors
    /// When the server can't be asked, or refuses.
    pub async fn watch(&mut self) -> Result<Watch, Error> {
        let mut channel = self.channel.beside();
        let this = ("PropertyCollector", self.collector.as_str());
        let body = call("CreatePropertyCollector", this, "");
        let answer = channel.call("CreatePropertyCollector", &body).await?;
        let collector = returned(&channel, "CreatePropertyCollector", &answer)?;
        let arguments =
            format!("<spec>{}</spec><partialUpdates>false</partialUpdates>", self.specification());
        let body = call("CreateFilter", ("PropertyCollector", &collector), &arguments);
        channel.call("CreateFilter", &body).await?;
        Ok(Watch { channel, collector, version: String::new(), page: self.page })
    }

    /// Logs out, so that the server need not keep the session until it runs out.
    ///
    /// # Errors
    /// When the server can't be told.
    pub async fn close(mut self) -> Result<(), Error> {
        let body = call("Logout", ("SessionManager", &self.sessions), "");
        self.channel.call("Logout", &body).await.map(drop)
    }

    /// Which objects, and what of them.
    fn specification(&self) -> String {
        let mut text = String::new();
        let sets = [
            ("VirtualMachine", OF_MACHINES),
            ("HostSystem", &["name"]),
            ("Folder", OF_PLACES),
            ("Datacenter", OF_PLACES),
        ];
        for (kind, paths) in sets {
            write!(text, "<propSet><type>{kind}</type>").ok();
            for path in paths {
                write!(text, "<pathSet>{path}</pathSet>").ok();
            }
            text.push_str("</propSet>");
        }
        write!(
            text,
            r#"<objectSet><obj type="ContainerView">{}</obj><skip>true</skip><selectSet xsi:type="TraversalSpec"><name>all</name><type>ContainerView</type><path>view</path><skip>false</skip></selectSet></objectSet>"#,
            escaped(&self.view)
        )
        .ok();
        text
    }
}

/// Follows what changes.
#[derive(Debug)]
pub struct Watch {
    channel: Channel,
    collector: String,
    /// What was seen so far.
    version: String,
    page: usize,
}

/// What became of objects.
#[derive(Debug, Default)]
pub struct Updates {
    pub changes: Vec<Change>,
    /// The next are there already: what was told is not whole yet.
    pub more: bool,
}

impl Watch {
    /// As [`Session::hidden`].
    ///
    /// # Errors
    /// When that can't be found out.
    pub async fn hidden(&mut self, ids: &BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        hidden(&mut self.channel, &self.collector, ids).await
    }

    /// Waits for changes; there may be none within the time.
    ///
    /// # Errors
    /// When the server does not answer or ended the session. What changed meanwhile is not
    /// known then.
    pub async fn next(&mut self, at_most: Duration) -> Result<Updates, Error> {
        let arguments = format!(
            "<version>{}</version><options><maxWaitSeconds>{}</maxWaitSeconds><maxObjectUpdates>{}</maxObjectUpdates></options>",
            escaped(&self.version),
            at_most.as_secs(),
            self.page
        );
        let body = call("WaitForUpdatesEx", ("PropertyCollector", &self.collector), &arguments);
        let answer = self.channel.call_within("WaitForUpdatesEx", &body, at_most).await?;
        // Nothing changed within the time.
        let Some(value) = answer.child("returnval") else { return Ok(Updates::default()) };
        let Some(version) = value.text_of("version") else {
            let at = self.channel.at().to_owned();
            return Err(Error::Unexpected { at, call: "WaitForUpdatesEx", lacks: "a version" });
        };
        version.clone_into(&mut self.version);
        let more = value.text_of("truncated") == Some("true");
        Ok(Updates { changes: updates(&answer), more })
    }
}

/// A VM that is gone is not known there; of one that we lost the right to see we are told that.
async fn hidden(
    channel: &mut Channel,
    collector: &str,
    ids: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for id in ids.iter().take(MAX_ASKED) {
        let arguments = format!(
            r#"<specSet><propSet><type>VirtualMachine</type><pathSet>name</pathSet></propSet><objectSet><obj type="VirtualMachine">{}</obj></objectSet></specSet><options/>"#,
            escaped(id)
        );
        let body = call("RetrievePropertiesEx", ("PropertyCollector", collector), &arguments);
        let is_hidden = match channel.call("RetrievePropertiesEx", &body).await {
            Ok(answer) => updates(&answer).iter().any(|change| !change.denied.is_empty()),
            Err(Error::Fault { kind, .. }) if kind == "ManagedObjectNotFound" => false,
            Err(Error::Fault { kind, .. }) if kind == "NoPermission" => true,
            Err(error) => return Err(error),
        };
        if is_hidden {
            found.insert(id.clone());
        }
    }
    if !found.is_empty() {
        found.extend(ids.iter().skip(MAX_ASKED).cloned());
    }
    Ok(found)
}

fn returned(channel: &Channel, call: &'static str, answer: &Element) -> Result<String, Error> {
    let id = answer.text_of("returnval").filter(|id| !id.is_empty()).map(str::to_owned);
    id.ok_or_else(|| Error::Unexpected { at: channel.at().to_owned(), call, lacks: "an id" })
}
