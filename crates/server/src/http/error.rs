//! The one error body, and what becomes one.

use crate::{runs, sync, tokens, twins, vms};
use api::ErrorBody;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::with_causes;
use std::collections::BTreeMap;

tokio::task_local! {
    /// Set by the outermost layer, so that an error can name the request it answers.
    pub(crate) static REQUEST_ID: String;
}

/// An answer that says no.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: BTreeMap<String, String>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: BTreeMap::new() }
    }

    pub(crate) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// The same, with what to do about it.
    pub(crate) fn and(mut self, advice: &str) -> Self {
        self.message = format!("{}; {advice}", self.message);
        self
    }

    pub(crate) fn with(mut self, name: &str, value: &dyn std::fmt::Display) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(
                request_id = request_id(),
                code = self.code,
                message = self.message,
                "answering with an error"
            );
        }
        self.untold()
    }
}

fn request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

impl ApiError {
    /// The answer, without a line in the log: for what may come in any number.
    pub(crate) fn untold(self) -> Response {
        let body = ErrorBody {
            status: "error".to_owned(),
            code: self.code.to_owned(),
            message: self.message,
            details: self.details,
            request_id: request_id(),
        };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        use store::Error;
        let message = with_causes(&error);
        match error {
            Error::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message),
            Error::Closed => Self::new(StatusCode::SERVICE_UNAVAILABLE, "closing", message),
            Error::Full { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", message),
            Error::UnknownHost { host } => unknown_host(host.as_str()),
            Error::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            Error::TooManyItems { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_items", message)
            }
            Error::DigestMismatch { .. } | Error::Inapplicable { .. } => {
                Self::new(StatusCode::CONFLICT, "base_mismatch", message)
            }
            Error::BaseMismatch { digest, version, sequence } => {
                let error = Self::new(StatusCode::CONFLICT, "base_mismatch", message)
                    .with("digest", &digest)
                    .with("version", &version.0);
                match sequence {
                    Some(sequence) => error.with("sequence", &sequence),
                    None => error,
                }
            }
            Error::Corrupt { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "corrupt", message)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", message),
        }
    }
}

impl From<runs::Error> for ApiError {
    fn from(error: runs::Error) -> Self {
        use runs::Error;
        let message = with_causes(&error);
        match error {
            Error::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown_run", message),
            Error::Busy { id, .. } => {
                Self::new(StatusCode::CONFLICT, "run_is_on", message).with("run", &id)
            }
            Error::Over { state, .. } => {
                Self::new(StatusCode::CONFLICT, "run_is_over", message).with("state", &state)
            }
            Error::Ahead { records, .. } => {
                Self::new(StatusCode::GONE, "ahead_of_log", message).with("records", &records)
            }
            Error::Full(_) | Error::Followers(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
            }
            Error::Closed => Self::new(StatusCode::SERVICE_UNAVAILABLE, "closing", message),
            Error::Damaged { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "corrupt", message)
            }
            Error::Read { .. } | Error::Write { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", message)
            }
        }
    }
}

impl From<vm::image::Error> for ApiError {
    fn from(error: vm::image::Error) -> Self {
        use vm::image::Error;
        let message = with_causes(&error);
        match error {
            Error::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, "unknown_image", message),
            Error::Ambiguous { .. } => Self::bad("ambiguous", message),
            Error::InUse { .. } => Self::new(StatusCode::CONFLICT, "in_use", message),
            Error::Damaged { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "corrupt", message)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "images", message),
        }
    }
}

impl From<vm::machine::Error> for ApiError {
    fn from(error: vm::machine::Error) -> Self {
        use vm::machine::Error;
        let message = with_causes(&error);
        let (status, code) = match error {
            Error::Unknown { .. } => (StatusCode::NOT_FOUND, "unknown_twin"),
            Error::UnknownSnapshot { .. } => (StatusCode::NOT_FOUND, "unknown_snapshot"),
            Error::Exists { .. } | Error::SnapshotExists { .. } | Error::Foreign { .. } => {
                (StatusCode::CONFLICT, "exists")
            }
            Error::Busy { .. } => (StatusCode::CONFLICT, "busy"),
            Error::NotRunning { .. } => (StatusCode::CONFLICT, "not_running"),
            Error::Running { .. } => (StatusCode::CONFLICT, "running"),
            Error::Cloned { .. } => (StatusCode::CONFLICT, "cloned"),
            Error::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            Error::TooOld { .. } | Error::Taken { .. } | Error::Job(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "no_hypervisor")
            }
            Error::Damaged { .. } | Error::Definition { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "corrupt")
            }
            Error::Image(error) => return error.into(),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "hypervisor"),
        };
        Self::new(status, code, message)
    }
}

impl From<twins::Error> for ApiError {
    fn from(error: twins::Error) -> Self {
        use twins::Error;
        let message = with_causes(&error);
        let (status, code) = match error {
            Error::Unknown { .. } => (StatusCode::NOT_FOUND, "unknown_twin"),
            Error::UnknownHost { .. } => (StatusCode::NOT_FOUND, "unknown_host"),
            Error::Made { .. } | Error::Taken { .. } => (StatusCode::CONFLICT, "exists"),
            Error::BeingMade { .. } => (StatusCode::CONFLICT, "busy"),
            Error::Elsewhere { .. } => (StatusCode::CONFLICT, "other_hypervisor"),
            Error::Lost { .. } => (StatusCode::CONFLICT, "machine_lost"),
            Error::NoImage | Error::NoSuchImage { .. } => (StatusCode::CONFLICT, "no_image"),
            Error::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            Error::NoMoment { .. } => (StatusCode::NOT_FOUND, "unknown_snapshot"),
            Error::UnknownVersion { .. } => (StatusCode::NOT_FOUND, "unknown_version"),
            Error::NoSnapshot { .. } => (StatusCode::CONFLICT, "no_snapshot"),
            Error::Value { .. } => (StatusCode::BAD_REQUEST, "bad_twin"),
            Error::Extra(_) => (StatusCode::BAD_REQUEST, "bad_extra"),
            Error::NotDeclared { .. } => (StatusCode::NOT_FOUND, "unknown_extra"),
            Error::Kept { .. } => (StatusCode::CONFLICT, "kept"),
            Error::Clone { .. } => (StatusCode::CONFLICT, "clone"),
            Error::Silent { .. } | Error::Strange { .. } | Error::Guest(_) => {
                (StatusCode::CONFLICT, "no_guest")
            }
            Error::ConsoleTaken { .. } => (StatusCode::CONFLICT, "console_taken"),
            Error::NoKeygen | Error::Keygen { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "no_ssh_keygen")
            }
            Error::Machine(error) => return error.into(),
            Error::Image(error) => return error.into(),
            Error::Store(error) => return error.into(),
            Error::Runs(error) => return error.into(),
            Error::File { .. } | Error::Random(_) => (StatusCode::INTERNAL_SERVER_ERROR, "storage"),
        };
        Self::new(status, code, message)
    }
}

impl From<vms::Error> for ApiError {
    fn from(error: vms::Error) -> Self {
        use vms::Error;
        let message = with_causes(&error);
        match error {
            Error::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown_vm", message),
            Error::Ambiguous { .. } => Self::bad("ambiguous", message),
            Error::NotOrphan(_) => Self::new(StatusCode::CONFLICT, "not_orphan", message),
            Error::NotOurs(_) | Error::NoNode { .. } => {
                Self::new(StatusCode::CONFLICT, "not_ours", message)
            }
            Error::NothingHeld(_) => Self::new(StatusCode::CONFLICT, "nothing_held", message),
            Error::Outbox(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "outbox", message),
            Error::Store(error) => error.into(),
        }
    }
}

impl From<sync::Error> for ApiError {
    fn from(error: sync::Error) -> Self {
        use sync::Error;
        let message = with_causes(&error);
        match error {
            Error::Off => Self::new(StatusCode::NOT_FOUND, "no_sync", message),
            Error::Already => Self::new(StatusCode::CONFLICT, "already_syncing", message),
            Error::StandsBy(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stands_by", message),
            Error::NothingHeld(_) => Self::new(StatusCode::CONFLICT, "nothing_held", message),
            Error::MoreIsHeld(_) => Self::new(StatusCode::CONFLICT, "more_is_held", message),
            Error::Unseen { .. } => Self::new(StatusCode::CONFLICT, "unseen", message),
            Error::NoEntry(_) => Self::new(StatusCode::NOT_FOUND, "unknown_entry", message),
            Error::Runs(error) => error.into(),
            Error::Vms(error) => error.into(),
            Error::Outbox(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "outbox", message),
        }
    }
}

impl From<tokens::Error> for ApiError {
    fn from(error: tokens::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "tokens", with_causes(&error))
    }
}

pub(crate) fn unknown_host(host: &str) -> ApiError {
    let shown: String = host.chars().take(80).collect();
    let message = format!("there is no host {shown:?}; GET /api/v1/hosts lists those there are");
    ApiError::new(StatusCode::NOT_FOUND, "unknown_host", message)
}
