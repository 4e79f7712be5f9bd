//! The one error body, and what becomes one.

use crate::{runs, tokens};
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
        let request_id = REQUEST_ID.try_with(Clone::clone).unwrap_or_default();
        if self.status.is_server_error() {
            tracing::warn!(
                request_id,
                code = self.code,
                message = self.message,
                "answering with an error"
            );
        }
        let body = ErrorBody {
            status: "error".to_owned(),
            code: self.code.to_owned(),
            message: self.message,
            details: self.details,
            request_id,
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
