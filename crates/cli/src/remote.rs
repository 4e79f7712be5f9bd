//! The server's answers, asked for one by one. What each means for the user is decided by
//! the commands; what a refusal means, by [`Failure`].

use crate::failure::Failure;
use api::answer::{Diff, Host, Hosts, Loads, Log, State};
use api::client::{Body, Client, segment};
use api::twin::Twins;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Response, StatusCode};
use model::{ContentId, HostId, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::time::Duration;

/// What is asked for at once of a list.
const PAGE: usize = 500;

/// All changes of a version: more than any has.
pub(crate) const ALL_CHANGES: usize = 1_000_000;

/// Time until the first byte of a stream.
const OPENING: Duration = Duration::from_secs(30);

/// One server.
pub(crate) struct Remote {
    client: Client,
    /// As the user wrote it.
    url: String,
    token: Option<String>,
}

/// A path and its query; values are encoded here and nowhere else.
#[derive(Debug, Clone)]
pub(crate) struct Query(String);

impl Query {
    /// `/api/v1/…`, each segment encoded.
    pub(crate) fn of(segments: &[&str]) -> Self {
        let mut path = "/api/v1".to_owned();
        for one in segments {
            path.push('/');
            path.push_str(&segment(one));
        }
        Self(path)
    }

    /// One more segment.
    pub(crate) fn and(mut self, text: &str) -> Self {
        self.0.push('/');
        self.0.push_str(&segment(text));
        self
    }

    pub(crate) fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        let separator = if self.0.contains('?') { '&' } else { '?' };
        self.0.push(separator);
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&segment(&value.to_string()));
        self
    }

    pub(crate) fn with_some(self, key: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    pub(crate) fn with_each<T: fmt::Display>(self, key: &str, values: &[T]) -> Self {
        values.iter().fold(self, |query, value| query.with(key, value))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which part of a log.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogQuery {
    pub(crate) subjects: Vec<String>,
    pub(crate) since: Option<String>,
    pub(crate) until: Option<String>,
    pub(crate) before: Option<Version>,
    pub(crate) limit: usize,
    /// Changes told of one version, where that is not left to the server.
    pub(crate) changes: Option<usize>,
    pub(crate) major: bool,
    /// Seconds to either side in which other changes are told, too.
    pub(crate) around: Option<u64>,
    pub(crate) related: bool,
}

impl Remote {
    pub(crate) fn new(url: &str, token: Option<String>) -> Result<Self, Failure> {
        let client =
            Client::new(url, token.clone()).map_err(|error| Failure::from_client(url, error))?;
        Ok(Self { client, url: url.to_owned(), token })
    }

    /// The same server on a connection of its own, since a stream occupies one.
    pub(crate) fn another(&self) -> Result<Self, Failure> {
        Self::new(&self.url, self.token.clone())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> &str {
        self.client.authority()
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// What a refusal means that came some other way than as an answer to this.
    pub(crate) fn refused(&self, status: u16, body: Option<&Vec<u8>>) -> Failure {
        let status = StatusCode::from_u16(status).unwrap_or_default();
        let body = body.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let error = match body {
            Some(body) => api::client::Error::Refused(Box::new(body), status),
            None => api::client::Error::Answer { server: self.url.clone(), status },
        };
        Failure::from_client(&self.url, error)
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The same server, waited for as long as a slow machine may take to be looked at.
    pub(crate) fn patient(&self, deadline: Duration) -> Result<Self, Failure> {
        let mut another = self.another()?;
        another.client = another.client.with_deadline(deadline);
        Ok(another)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&mut self, query: &Query) -> Result<T, Failure> {
        let answer = self.client.get(query.as_str()).await;
        answer.map_err(|error| Failure::from_client(&self.url, error))
    }

    /// An answer whose body still comes in.
    pub(crate) async fn open(&mut self, path: &str) -> Result<Response<Body>, Failure> {
        let opening = self.client.open(Method::GET, path, "", Bytes::new());
        match tokio::time::timeout(OPENING, opening).await {
            Ok(answer) => answer.map_err(|error| Failure::from_client(&self.url, error)),
            Err(_elapsed) => Err(Failure::NoServer {
                server: self.url.clone(),
                reason: format!("no answer within {} s", OPENING.as_secs()),
            }),
        }
    }

    /// A stream of events, on a connection of its own, which it occupies for good. Nothing
    /// where the server says that none will come.
    pub(crate) async fn events(&self, query: &Query) -> Result<Option<Body>, Failure> {
        let response = self.another()?.open(query.as_str()).await?;
        match response.status() {
            StatusCode::OK => Ok(Some(response.into_body())),
            StatusCode::NO_CONTENT => Ok(None),
            status => Err(self.refusal(status, response.into_body()).await),
        }
    }

    async fn refusal(&self, status: StatusCode, body: Body) -> Failure {
        let body = http_body_util::Limited::new(body, 64 * 1024).collect();
        let bytes = tokio::time::timeout(Duration::from_secs(5), body).await;
        let bytes = bytes.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
        if status.is_server_error() {
            let server = self.url.clone();
            return Failure::NoServer { server, reason: format!("it answered {status}") };
        }
        let error = match serde_json::from_slice(&bytes.unwrap_or_default()) {
            Ok(body) => api::client::Error::Refused(Box::new(body), status),
            Err(_) => api::client::Error::Answer { server: self.url.clone(), status },
        };
        Failure::from_client(&self.url, error)
    }

    /// Posts a document, and gets one.
    pub(crate) async fn post<T: DeserializeOwned>(
        &mut self,
        query: &Query,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.give(Method::POST, query, body).await
    }

    async fn give<T: DeserializeOwned>(
        &mut self,
        method: Method,
        query: &Query,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let failed = |error| Failure::from_client(&self.url, error);
        let body = serde_json::to_vec(body).map_err(|error| Failure::Failed(error.to_string()))?;
        let sent = self.client.send(method, query.as_str(), "application/json", body.into()).await;
        serde_json::from_slice(&sent.map_err(failed)?).map_err(|_form| {
            let (server, status) = (self.url.clone(), StatusCode::OK);
            failed(api::client::Error::Answer { server, status })
        })
    }

    /// Puts a document in the place of the one that is there, and gets what is there then.
    pub(crate) async fn put<T: DeserializeOwned>(
        &mut self,
        query: &Query,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.give(Method::PUT, query, body).await
    }

    /// Asks without a document, and gets one.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        query: &Query,
    ) -> Result<T, Failure> {
        let failed = |error| Failure::from_client(&self.url, error);
        let sent = self.client.send(method, query.as_str(), "", Bytes::new()).await;
        serde_json::from_slice(&sent.map_err(failed)?).map_err(|_form| {
            let (server, status) = (self.url.clone(), StatusCode::OK);
            failed(api::client::Error::Answer { server, status })
        })
    }

    pub(crate) async fn delete(&mut self, query: &Query) -> Result<(), Failure> {
        let sent = self.client.send(Method::DELETE, query.as_str(), "", Bytes::new()).await;
        sent.map(drop).map_err(|error| Failure::from_client(&self.url, error))
    }

    /// The pages of a list, until there is no next one. `take` gives what the next begins after.
    async fn pages<P: DeserializeOwned>(
        &mut self,
        list: &str,
        page: usize,
        mut take: impl FnMut(P) -> Option<String>,
    ) -> Result<(), Failure> {
        let mut after: Option<String> = None;
        loop {
            let query = Query::of(&[list]).with("limit", page).with_some("after", after);
            after = take(self.get(&query).await?);
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The first hosts, at most `limit`, in the server's order.
    pub(crate) async fn hosts(&mut self, limit: usize) -> Result<Vec<Host>, Failure> {
        let mut hosts = Vec::new();
        let take = |answer: Hosts| {
            // A page without hosts would have this go on for ever.
            let next = answer.next.filter(|_| !answer.hosts.is_empty());
            hosts.extend(answer.hosts);
            next.filter(|_| hosts.len() < limit)
        };
        self.pages("hosts", PAGE.min(limit), take).await?;
        hosts.truncate(limit);
        Ok(hosts)
    }

    /// All twins, and those that can't be used.
    pub(crate) async fn twins(&mut self) -> Result<Twins, Failure> {
        let mut all = Twins::default();
        let take = |answer: Twins| {
            let is_empty = answer.twins.is_empty() && answer.unusable.is_empty();
            all.twins.extend(answer.twins);
            all.unusable.extend(answer.unusable);
            answer.next.filter(|_| !is_empty)
        };
        self.pages("twins", PAGE, take).await?;
        Ok(all)
    }

    /// `None` when the server knows no such host.
    pub(crate) async fn host(&mut self, host: &HostId) -> Result<Option<Host>, Failure> {
        match self.get(&Query::of(&["hosts", host.as_str()])).await {
            Ok(host) => Ok(Some(host)),
            Err(Failure::NotThere(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    pub(crate) async fn state(
        &mut self,
        host: &HostId,
        at: Option<&str>,
        kind: Option<&str>,
    ) -> Result<State, Failure> {
        let query = Query::of(&["hosts", host.as_str(), "state"])
            .with_some("at", at)
            .with_some("kind", kind);
        self.get(&query).await
    }

    pub(crate) async fn log(&mut self, host: &HostId, part: &LogQuery) -> Result<Log, Failure> {
        let query = Query::of(&["hosts", host.as_str(), "log"])
            .with_each("subject", &part.subjects)
            .with_some("since", part.since.as_deref())
            .with_some("until", part.until.as_deref())
            .with_some("before", part.before.map(|version| version.0))
            .with("limit", part.limit)
            .with_some("changes", part.changes)
            .with_some("significance", part.major.then_some("major"))
            .with_some("around", part.around)
            .with_some("related", part.related.then_some("true"));
        self.get(&query).await
    }

    pub(crate) async fn diff(
        &mut self,
        host: &HostId,
        from: &str,
        to: &str,
        with: Option<&HostId>,
    ) -> Result<Diff, Failure> {
        let query = Query::of(&["hosts", host.as_str(), "diff"])
            .with("from", from)
            .with("to", to)
            .with_some("with", with);
        self.get(&query).await
    }

    pub(crate) async fn load(
        &mut self,
        host: &HostId,
        from: Option<&str>,
        to: Option<&str>,
        points: Option<usize>,
    ) -> Result<Loads, Failure> {
        let query = Query::of(&["hosts", host.as_str(), "load"])
            .with_some("from", from)
            .with_some("to", to)
            .with_some("points", points);
        self.get(&query).await
    }

    /// The redacted text of a file; `None` when the server does not have it.
    pub(crate) async fn content(
        &mut self,
        host: &HostId,
        id: &ContentId,
    ) -> Result<Option<String>, Failure> {
        let query = Query::of(&["hosts", host.as_str(), "contents", &id.to_string()]);
        let answer = self.client.send(Method::GET, query.as_str(), "", Bytes::new()).await;
        match answer.map_err(|error| Failure::from_client(&self.url, error)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(Failure::NotThere(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::list::tests::host;
    use crate::fake_server::{FakeServer, Reply};
    use api::twin::UnusableTwin;

    #[test]
    fn lists_are_read_to_their_last_page() {
        fn twin(name: &str) -> UnusableTwin {
            let (hypervisor, reason) = ("qemu".into(), "it ends".into());
            UnusableTwin { name: name.into(), hypervisor, reason }
        }
        let page = |name: &str, next: Option<&str>| {
            let next = next.map(str::to_owned);
            Reply::json(&Twins { unusable: vec![twin(name)], next, ..Twins::default() })
        };
        let hosts = |name: &str, next: Option<&str>| {
            Reply::json(&Hosts { hosts: vec![host(name)], next: next.map(str::to_owned) })
        };
        let server = FakeServer::start(move |request, _nth| match request {
            "/api/v1/twins?limit=500" => page("a", Some("a")),
            "/api/v1/twins?limit=500&after=a" => page("b", None),
            "/api/v1/hosts?limit=2" => hosts("a", Some("a")),
            "/api/v1/hosts?limit=2&after=a" => hosts("b", Some("b")),
            _ => Reply::status(404),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut remote = Remote::new(&server.url(), None).unwrap();
            assert_eq!(remote.twins().await.unwrap().unusable, [twin("a"), twin("b")]);
            let names: Vec<String> =
                remote.hosts(2).await.unwrap().iter().map(|host| host.host.to_string()).collect();
            assert_eq!(names, ["a", "b"], "and no further page is asked for");
        });
    }

    #[test]
    fn values_do_not_leave_their_place() {
        let query = Query::of(&["hosts", "web01", "log"])
            .with_each("subject", &["unit:a@b.service", "/etc/x&y=?#"])
            .with_some("since", None::<&str>)
            .with("until", "@412");
        assert_eq!(
            query.as_str(),
            "/api/v1/hosts/web01/log?subject=unit%3Aa%40b.service&subject=%2Fetc%2Fx%26y%3D%3F%23&until=%40412"
        );
    }
}
