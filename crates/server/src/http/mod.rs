//! The one router: routes, limits, the document that describes them.

mod auth;
mod bridge;
mod bridge_twin;
mod console;
mod container_images;
mod error;
mod events;
mod extract;
mod health;
mod hosts;
mod images;
mod ingest;
mod log;
mod runs;
mod sync;
mod twin_extras;
mod twin_following;
mod twin_snapshots;
mod twins;
mod vm_checks;
mod vms;

use crate::app::App;
use crate::metrics::RequestLabels;
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use error::{ApiError, REQUEST_ID};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

/// How long a request may take that is not a stream.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of a request to the older sync service.
const MAX_OLDER_BODY: usize = 1 << 20;
/// The same of one for which a guest is looked at: that may be an emulated machine.
const LOOKING: Duration = Duration::from_secs(330);

#[derive(OpenApi)]
#[openapi(
    info(title = "SafetyTwin", description = "What is true of every host, what changed, and when.", license(name = "Apache-2.0")),
    tags(
        (name = "hosts", description = "Hosts, and their facts at any moment"),
        (name = "history", description = "What changed"),
        (name = "live", description = "What changes, as it happens"),
        (name = "agents", description = "Where agents send what they see"),
        (name = "runs", description = "What takes long: its log from the first line to the exit code"),
        (name = "images", description = "Base images that machines start from"),
        (name = "twins", description = "The machine that mirrors a host, its saved moments, its clones"),
        (name = "vms", description = "The VMs of all nodes: state, use, health"),
        (name = "sync", description = "VMs in step with vSpheres"),
        (name = "bridge", description = "The routes of the older bridge"),
        (name = "health", description = "For probes and monitoring"),
    )
)]
struct Document;

fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::show, hosts::forget))
        .routes(routes!(hosts::state))
        .routes(routes!(log::log))
        .routes(routes!(log::diff))
        .routes(routes!(log::load))
        .routes(routes!(log::content))
        .routes(routes!(events::host_events))
        .routes(routes!(events::host_socket))
        .routes(routes!(events::all_events))
        .routes(routes!(ingest::deltas))
        .routes(routes!(ingest::contents))
        .merge(container_images::routes())
        .routes(routes!(runs::list))
        .routes(routes!(runs::show))
        .routes(routes!(runs::log))
        .routes(routes!(runs::socket))
        .routes(routes!(runs::cancel))
        .routes(routes!(images::list, images::build))
        .routes(routes!(images::show, images::delete))
        .routes(routes!(twins::list))
        .routes(routes!(twins::show, twins::create, twins::delete))
        .routes(routes!(twins::start))
        .routes(routes!(twins::stop))
        .routes(routes!(twins::restart))
        .routes(routes!(twins::clone))
        .routes(routes!(twins::revert))
        .routes(routes!(twin_following::plan))
        .routes(routes!(twin_following::verify))
        .routes(routes!(twin_following::fidelity))
        .routes(routes!(twin_following::apply))
        .routes(routes!(twin_following::hold))
        .routes(routes!(twin_following::follow))
        .routes(routes!(twin_extras::list))
        .routes(routes!(twin_extras::declare, twin_extras::undeclare))
        .routes(routes!(console::console))
        .routes(routes!(twin_snapshots::list, twin_snapshots::create))
        .routes(routes!(twin_snapshots::show, twin_snapshots::delete))
        .routes(routes!(twin_snapshots::revert))
        .routes(routes!(vms::list))
        .routes(routes!(vms::events))
        .routes(routes!(vms::confirm))
        .routes(routes!(vms::show, vms::forget))
        .routes(routes!(vms::health))
        .routes(routes!(vms::checks, vms::declare))
        .routes(routes!(vms::recovery, vms::recover))
        .routes(routes!(vms::work))
        .routes(routes!(sync::standing))
        .routes(routes!(sync::now))
        .routes(routes!(sync::plan))
        .routes(routes!(sync::outbox))
        .routes(routes!(sync::retry_dead))
        .routes(routes!(sync::retry))
        .routes(routes!(sync::discard))
        .routes(routes!(sync::older_status))
        .routes(routes!(sync::older_now))
        .routes(routes!(sync::older_vms))
        .routes(routes!(bridge::update_state))
        .routes(routes!(bridge::snapshots))
        .routes(routes!(bridge::revert, bridge::delete))
        .routes(routes!(bridge::status))
        .routes(routes!(bridge::history))
        .routes(routes!(bridge_twin::info))
        .routes(routes!(bridge_twin::start))
        .routes(routes!(bridge_twin::stop))
        .routes(routes!(bridge_twin::restart))
        .routes(routes!(health::metrics))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
}

/// The document that describes the routes, as it is checked in.
#[must_use]
pub fn openapi() -> String {
    let mut text = routes().to_openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

pub(crate) fn router(app: &Arc<App>) -> Router {
    let (router, document) = routes().split_for_parts();
    router
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .fallback(|| async {
            ApiError::not_found("there is no such route; /docs lists those there are")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route does not take that method; see /docs",
            )
        })
        // One layer, since each is a box and a copy of all within it for every request.
        .layer(from_fn_with_state(Arc::clone(app), identify))
        .with_state(Arc::clone(app))
}

/// What is answered when there are as many connections as there may be.
pub(crate) fn probes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .layer(from_fn_with_state(Arc::clone(app), identify))
        .with_state(Arc::clone(app))
        .merge(refusal())
}

/// What is answered then to all else, and to whoever asks where there are no probes.
pub(crate) fn refusal() -> Router {
    Router::new().fallback(async || {
        let refused = ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            "there are as many connections as the server may have; try again in a moment",
        );
        ([(header::RETRY_AFTER, "5")], refused.untold())
    })
}

/// What is served where the older sync service was.
pub(crate) fn older_sync(app: &Arc<App>) -> Router {
    sync::older(app).layer(from_fn_with_state(Arc::clone(app), identify_anybody))
}

/// Names the request, counts and times it.
async fn identify(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    counted(&app, request, |request| answer(&app, request, next)).await
}

/// The same where no token is asked for.
async fn identify_anybody(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    DefaultBodyLimit::max(MAX_OLDER_BODY).apply(&mut request);
    counted(&app, request, |request| caught(within(DEADLINE, next.run(request)))).await
}

async fn counted<A: Future<Output = Response>>(
    app: &Arc<App>,
    request: Request,
    answer: impl FnOnce(Request) -> A,
) -> Response {
    let id = uuid::Uuid::now_v7().to_string();
    let route =
        request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = request.method().as_str().to_owned();
    // Methods are the sender's to invent; labels are not.
    let method = if method.len() <= 7 { method } else { "OTHER".to_owned() };
    let begin = Instant::now();
    let mut response = REQUEST_ID.scope(id.clone(), answer(request)).await;
    let labels = RequestLabels { method, route, status: response.status().as_u16() };
    app.metrics.requests.get_or_create(&labels).inc();
    app.metrics.request_seconds.observe(begin.elapsed().as_secs_f64());
    let program = concat!("safetytwin/", env!("CARGO_PKG_VERSION"));
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static(program));
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
    }
    response
}

/// What is answered, also when a handler panics.
async fn answer(app: &Arc<App>, request: Request, next: Next) -> Response {
    caught(allowed(app, request, next)).await
}

async fn caught(answer: impl Future<Output = Response>) -> Response {
    let answer = AssertUnwindSafe(answer).catch_unwind();
    answer.await.unwrap_or_else(|_panic| {
        tracing::error!("a request handler panicked");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server made a mistake; its log says more",
        )
        .into_response()
    })
}

async fn within(deadline: Duration, answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(deadline, answer).await.unwrap_or_else(|_elapsed| {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the request took too long")
            .into_response()
    })
}

fn deadline(path: &str) -> Duration {
    let looks = ["/plan", "/verify", "/fidelity"].iter().any(|end| path.ends_with(end));
    if looks && path.starts_with("/api/v1/twins/") { LOOKING } else { DEADLINE }
}

/// What the handler answers, if the caller may ask. Bounds the body, and the time until an answer
/// begins, which includes reading the body.
async fn allowed(app: &Arc<App>, mut request: Request, next: Next) -> Response {
    DefaultBodyLimit::max(api::MAX_BODY).apply(&mut request);
    let allowed = match auth::check(app, &mut request) {
        Ok(allowed) => allowed,
        Err(refused) => return refused.into_response(),
    };
    let deadline = deadline(request.uri().path());
    allowed.only_stream(within(deadline, next.run(request)).await)
}
