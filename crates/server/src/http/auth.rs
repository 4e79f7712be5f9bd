//! Who may do what.
//!
//! On loopback everyone on the machine may do everything, unless `require_tokens` says
//! otherwise; but not every web page that a browser on the machine happens to show: requests
//! that carry a foreign `Origin`, or ask for a name that is not this server's, are refused.
//! Beyond loopback every request but the probes needs a token, and the token's role decides.

use super::error::ApiError;
use crate::app::App;
use crate::clock;
use crate::runs::Cause;
use crate::tokens::{Role, Token};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use model::HostId;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether the token of an open stream was revoked.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Somebody on this machine, of whom nothing is asked.
    Local,
    Known(Token),
}

impl Caller {
    /// The token the caller came with.
    pub(crate) fn token(&self) -> Option<&Token> {
        match self {
            Self::Local => None,
            Self::Known(token) => Some(token),
        }
    }

    /// For how long the caller may go on.
    pub(crate) fn allowed(&self, app: &Arc<App>) -> Allowed {
        Allowed { app: Arc::clone(app), token: self.token().map(|token| token.id.clone()) }
    }

    /// Whether the caller may write the history of this host.
    pub(crate) fn may_feed(&self, host: &HostId) -> Result<(), ApiError> {
        match self {
            Self::Known(Token { host: Some(own), .. }) if own != host => {
                Err(forbidden(format!("this token speaks for {own} alone, not for {host}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether the caller may be told what this host told before: an agent only with a token that
    /// is the host's own.
    pub(crate) fn may_recall(&self, host: &HostId) -> bool {
        match self {
            Self::Local => true,
            Self::Known(token) => token.role != Role::Agent || token.host.as_ref() == Some(host),
        }
    }

    /// Whether the caller may do what VMs of this host need, and say what came of it.
    pub(crate) fn may_work(&self, host: &HostId) -> Result<(), ApiError> {
        if self.may_recall(host) {
            return Ok(());
        }
        Err(forbidden(format!(
            "an agent needs a token of {host} alone for this: twin token create --host"
        )))
    }

    /// Whether the caller may have the server read its own machine's files.
    pub(crate) fn may_administer(&self, what: &str) -> Result<(), ApiError> {
        match self {
            Self::Known(token) if token.role != Role::Admin => {
                Err(forbidden(format!("{what} is for the role admin")))
            }
            _ => Ok(()),
        }
    }

    /// Why there is a run, when this caller asks for it.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Local => Cause::Local,
            Self::Known(token) => Cause::Token { id: token.id.clone(), name: token.name.clone() },
        }
    }
}

/// For how long a caller may go on with what does not end by itself: until its token is revoked.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    app: Arc<App>,
    /// The id of the token, where there is one.
    token: Option<String>,
}

impl Allowed {
    /// Returns when the token is revoked, or it can't be known that it is not.
    async fn ended(self) {
        let Some(token) = self.token else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !matches!(self.app.tokens.has(&token), Ok(true)) {
                tracing::info!(token, "a stream ends: its token was revoked");
                return;
            }
        }
    }

    /// The work, for as long as the caller may have it done. Also a socket whose other side
    /// takes nothing ends so.
    pub(crate) async fn only(self, work: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.ended() => {}
            () = work => {}
        }
    }

    /// The same of an answer, when it is a stream of events.
    pub(crate) fn only_stream(self, answer: Response) -> Response {
        let media = answer.headers().get(header::CONTENT_TYPE);
        let is_stream =
            media.is_some_and(|media| media.as_bytes().starts_with(b"text/event-stream"));
        if self.token.is_none() || !is_stream {
            return answer;
        }
        answer.map(|body| {
            Body::from_stream(body.into_data_stream().take_until(Box::pin(self.ended())))
        })
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Read,
    Feed,
    Operate,
    Administer,
}

fn need(method: &Method, path: &str) -> Need {
    if matches!(path, "/healthz" | "/readyz" | "/openapi.json" | "/docs")
        || path.starts_with("/docs/")
    {
        return Need::Nothing;
    }
    let feeds = path == "/api/v1/update_state"
        || path.ends_with("/deltas")
        || path.ends_with("/contents")
        || is_work(path);
    // Whoever types on it changes the twin.
    let types = path.starts_with("/api/v1/twins/") && path.ends_with("/console");
    match *method {
        // The older sync service began a sync so.
        Method::GET if types || path == "/sync/now" => Need::Operate,
        Method::GET | Method::HEAD | Method::OPTIONS => Need::Read,
        Method::POST if feeds => Need::Feed,
        Method::DELETE if path.starts_with("/api/v1/hosts/") => Need::Administer,
        _ => Need::Operate,
    }
}

/// Whether it is what a host's programs ask for work, or say of it.
fn is_work(path: &str) -> bool {
    let of_host = path.strip_prefix("/api/v1/hosts/").and_then(|rest| rest.split('/').nth(1));
    matches!(of_host, Some("vm-work" | "image-work"))
}

fn allows(role: Role, need: Need) -> bool {
    match need {
        Need::Nothing => true,
        Need::Read => role != Role::Agent,
        Need::Feed => role != Role::Viewer,
        Need::Operate => matches!(role, Role::Operator | Role::Admin),
        Need::Administer => role == Role::Admin,
    }
}

/// Refuses who may not ask for this, and tells the handler who asks. For how long the caller may
/// listen to the answer.
pub(crate) fn check(app: &Arc<App>, request: &mut Request) -> Result<Allowed, ApiError> {
    let need = need(request.method(), request.uri().path());
    let caller = if app.tokens_required {
        match (need, bearer(request.headers())) {
            (Need::Nothing, _) => Caller::Local,
            (_, None) => {
                return Err(unauthorized("this server wants a token: Authorization: Bearer TOKEN"));
            }
            (_, Some(text)) => {
                let token = app
                    .tokens
                    .check(text)?
                    .ok_or_else(|| unauthorized("this token is not known, or was revoked"))?;
                if !allows(token.role, need) {
                    let role = token.role.as_str();
                    return Err(forbidden(format!("the role {role} may not do this")));
                }
                note_use(app, &token);
                Caller::Known(token)
            }
        }
    } else {
        same_machine(request.headers(), &app.server_names)?;
        Caller::Local
    };
    let allowed = caller.allowed(app);
    request.extensions_mut().insert(caller);
    Ok(allowed)
}

fn note_use(app: &Arc<App>, token: &Token) {
    let now = clock::now();
    let fresh = token.last_used_at.is_some_and(|at| now.since(at).as_secs() < 3600);
    if fresh {
        return;
    }
    let (app, id) = (Arc::clone(app), token.id.clone());
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = app.tokens.note_use(&id, now) {
            tracing::debug!(%error, "could not note the use of a token");
        }
    }));
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Refuses what a foreign web page could have made a local browser send.
fn same_machine(headers: &HeaderMap, names: &[String]) -> Result<(), ApiError> {
    let text =
        |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    if let Some(host) = text(header::HOST)
        && !is_own(host, names)
    {
        return Err(forbidden("this server does not go by that name; list it under server_names"));
    }
    if let Some(origin) = text(header::ORIGIN) {
        let host = origin.split_once("://").map_or(origin, |(_, rest)| rest);
        if !is_own(host, names) {
            return Err(forbidden("requests from other sites' pages are refused"));
        }
    }
    Ok(())
}

/// The host of `HOST`, `HOST:PORT` or `[HOST]:PORT`; anything behind it makes it no host.
fn bare_host(text: &str) -> Option<&str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(digits)).then_some(host)
}

fn is_own(text: &str, names: &[String]) -> bool {
    let Some(host) = bare_host(text) else { return false };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles() {
        let check = |method: Method, path: &str, expected: &str| {
            let need = need(&method, path);
            let allowed: String = [Role::Viewer, Role::Operator, Role::Admin, Role::Agent]
                .into_iter()
                .filter(|role| allows(*role, need))
                .map(|role| role.as_str().chars().next().unwrap())
                .map(|c| c.to_ascii_lowercase())
                .collect();
            assert_eq!(allowed, expected, "{method} {path}");
        };
        check(Method::GET, "/healthz", "voaa");
        check(Method::GET, "/api/v1/hosts", "voa");
        check(Method::GET, "/metrics", "voa");
        check(Method::POST, "/api/v1/hosts/a/deltas", "oaa");
        check(Method::POST, "/api/v1/update_state", "oaa");
        check(Method::POST, "/api/v1/hosts/a/vm-work", "oaa");
        check(Method::POST, "/api/v1/hosts/a/image-work", "oaa");
        check(Method::POST, "/api/v1/hosts/a/image-work/1/sha256:00", "oaa");
        check(Method::POST, "/api/v1/hosts/image-work/facts", "oa");
        check(Method::POST, "/api/v1/snapshots/x", "oa");
        check(Method::DELETE, "/api/v1/hosts/a", "a");
        check(Method::GET, "/api/v1/runs/x/ws", "voa");
        check(Method::POST, "/api/v1/runs/x/cancel", "oa");
        check(Method::POST, "/api/v1/images", "oa");
        check(Method::DELETE, "/api/v1/images/x", "oa");
        check(Method::GET, "/docsx", "voa");
        check(Method::GET, "/api/v1/twins/web01", "voa");
        check(Method::GET, "/api/v1/twins/web01/console", "oa");
        check(Method::POST, "/api/v1/twins/web01/start", "oa");
        check(Method::DELETE, "/api/v1/twins/web01", "oa");
    }

    #[test]
    fn foreign_pages_are_refused() {
        let check = |name: header::HeaderName, value: &str, expected: bool| {
            let headers: HeaderMap = [(name, value.parse().unwrap())].into_iter().collect();
            assert_eq!(
                same_machine(&headers, &["twin.example".into()]).is_ok(),
                expected,
                "{value}"
            );
        };
        check(header::HOST, "127.0.0.1:8470", true);
        check(header::HOST, "[::1]:8470", true);
        check(header::HOST, "LOCALHOST", true);
        check(header::HOST, "twin.example:1", true);
        check(header::HOST, "rebound.example", false);
        check(header::HOST, "localhost:1@evil.example", false);
        check(header::HOST, "localhost:", false);
        check(header::HOST, "[::1]evil.example", false);
        check(header::ORIGIN, "http://localhost:8470", true);
        check(header::ORIGIN, "https://evil.example", false);
        check(header::ORIGIN, "null", false);
    }
}
