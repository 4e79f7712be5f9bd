//! What a request brings, checked on the way in.

use super::error::{ApiError, unknown_host};
use axum::body::Bytes;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, RawPathParams, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use model::HostId;
use serde::de::DeserializeOwned;

/// `{host}` of the path.
pub(crate) struct Host(pub(crate) HostId);

impl<S: Send + Sync> FromRequestParts<S> for Host {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = segment(parts, state, "host").await?;
        // Nothing can be known of what is no host name; a sender is told what is wrong with it.
        HostId::new(&name).map(Self).map_err(|error| {
            if parts.method == axum::http::Method::GET {
                unknown_host(&name)
            } else {
                ApiError::bad("bad_host", error.to_string())
            }
        })
    }
}

/// A named part of the path.
pub(super) async fn segment<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &str,
) -> Result<String, ApiError> {
    let segments =
        RawPathParams::from_request_parts(parts, state).await.map_err(|_path| bad_path())?;
    let found = segments.iter().find(|(segment, _)| *segment == name);
    Ok(found.map(|(_, text)| text.to_owned()).unwrap_or_default())
}

fn bad_path() -> ApiError {
    ApiError::bad("bad_path", "the path is not valid UTF-8")
}

/// The parts of the path, as text that may be anything.
pub(crate) struct Segments<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments)).map_err(|_path| bad_path())
    }
}

/// A request to go on as a WebSocket.
pub(crate) struct Upgrade(pub(crate) WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
        let refused = |error: WebSocketUpgradeRejection| {
            ApiError::new(error.status(), "no_websocket", error.body_text())
        };
        upgrade.map(Self).map_err(refused)
    }
}

/// The query, of a form; unknown keys are refused by the form.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(query) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad("bad_query", error.body_text()))?;
        Ok(Self(query))
    }
}

/// The body, within the limit.
pub(crate) struct Body(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|error| {
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let limit = api::MAX_BODY >> 20;
                ApiError::new(error.status(), "too_large", format!("a body may have {limit} MiB"))
            } else {
                ApiError::bad("bad_body", "the body ended before it was whole")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::header::CONTENT_TYPE;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn what_is_refused_is_refused_in_json() {
        let router = Router::new()
            .route("/one/{name}", get(|_: Segments<String>| async {}))
            .route("/two/{host}/{id}", get(|_: Segments<(String, String)>| async {}))
            .route("/socket", get(|_: Upgrade| async {}));
        for (path, code) in
            [("/one/%ff", "bad_path"), ("/two/web01/%ff", "bad_path"), ("/socket", "no_websocket")]
        {
            let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json", "{path}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let told: api::ErrorBody = serde_json::from_slice(&body).unwrap();
            assert_eq!(told.code, code, "{path}");
        }
    }
}
