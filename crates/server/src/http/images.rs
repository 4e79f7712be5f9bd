//! Base images: made as runs, listed, deleted.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Segments};
use crate::app::App;
use crate::images::{Work, agent};
use api::answer::{self, NewImage};
use api::run::Begun;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use vm::image::{Builder, Error, Import, Listed, Manifest, Origin, Source, Store};

/// All base images, the newest first.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", operation_id = "list_images",
    responses((status = 200, body = answer::Images)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<answer::Images>, ApiError> {
    let listed = off_thread(&app, Store::list).await?;
    let images = listed.into_iter().map(|listed| shown(listed, false)).collect();
    Ok(Json(answer::Images { images }))
}

/// One image, by name, digest, or the first six or more digits of it; with its packages.
#[utoipa::path(get, path = "/api/v1/images/{id}", tag = "images", operation_id = "show_image", params(("id" = String, Path)),
    responses((status = 200, body = answer::Image), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Segments(name): Segments<String>,
) -> Result<Json<answer::Image>, ApiError> {
    let listed = off_thread(&app, move |store| {
        let id = store.find(&name)?;
        let mut listed = store.list()?.into_iter();
        listed.find(|one| one.id == id).ok_or(Error::Unknown { name: id.to_string() })
    });
    Ok(Json(shown(listed.await?, true)))
}

/// Deletes an image.
#[utoipa::path(delete, path = "/api/v1/images/{id}", tag = "images", operation_id = "delete_image", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = api::ErrorBody),
        (status = 409, body = api::ErrorBody, description = "a twin began from it")))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Segments(name): Segments<String>,
) -> Result<StatusCode, ApiError> {
    let used = app.twins.images_in_use().await?;
    off_thread(&app, move |store| store.delete(&store.find(&name)?, &used)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes an image, of packages or from a disk image elsewhere. It takes long: the answer names
/// the run. A path is read by the server, for the role admin alone.
#[utoipa::path(post, path = "/api/v1/images", tag = "images", operation_id = "build_image", request_body = NewImage,
    responses((status = 202, body = Begun), (status = 400, body = api::ErrorBody),
        (status = 409, body = api::ErrorBody, description = "a run for this name is on")))]
pub(crate) async fn build(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let asked: NewImage = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad("bad_json", error.to_string()))?;
    let work = work(asked)?;
    if work.reads_files() {
        caller.may_administer("an image from a file of the server's machine")?;
    }
    let (runs, store) = (app.runs.clone(), app.images.clone());
    let begun = tokio::task::spawn_blocking(move || work.begin(&runs, store, caller.cause()));
    let run = begun.await.unwrap_or(Err(crate::runs::Error::Closed))?;
    let place = format!("/api/v1/runs/{run}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(Begun { run })).into_response())
}

/// Checks what is asked for; nothing of it is used unchecked.
fn work(asked: NewImage) -> Result<Work, ApiError> {
    let NewImage { name, suite, mirror, packages, from, checksum } = asked;
    let name = parsed("name", &name)?;
    let Some(from) = from else {
        if checksum.is_some() {
            return Err(ApiError::bad("bad_image", "a checksum goes with from"));
        }
        let mut builder = Builder { agent: agent(), ..Builder::new(name) };
        if let Some(suite) = suite {
            builder.suite = parsed("suite", &suite)?;
        }
        builder.mirror = mirror.map(|mirror| parsed("mirror", &mirror)).transpose()?;
        let packages = packages.iter().map(|package| parsed("packages", package));
        builder.packages = packages.collect::<Result<_, _>>()?;
        return Ok(Work::Build(builder));
    };
    if suite.is_some() || mirror.is_some() || !packages.is_empty() {
        let message =
            "suite, mirror and packages are for an image of packages, not one from elsewhere";
        return Err(ApiError::bad("bad_image", message));
    }
    let source = parsed("from", &from)?;
    if matches!(&source, Source::File(path) if !path.is_absolute()) {
        return Err(ApiError::bad(
            "bad_image",
            "from: the server reads the file, so its path is absolute",
        ));
    }
    let checksum = checksum.map(|checksum| parsed("checksum", &checksum)).transpose()?;
    Ok(Work::Import(Import { name, source, checksum }))
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(key: &str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error: T::Err| ApiError::bad("bad_image", format!("{key}: {error}")))
}

fn shown(listed: Listed, whole: bool) -> answer::Image {
    let Listed { id, manifest, used_bytes } = listed;
    let empty = answer::Image {
        id: id.to_string(),
        names: Vec::new(),
        created_at: None,
        architecture: None,
        origin: None,
        disk_bytes: None,
        used_bytes,
        packages: BTreeMap::new(),
        damage: None,
    };
    match manifest {
        Ok(Manifest {
            names, created, architecture, origin, packages, virtual_size_bytes, ..
        }) => answer::Image {
            names: names.iter().map(ToString::to_string).collect(),
            created_at: Some(created),
            architecture,
            origin: Some(match origin {
                Origin::Built { suite, .. } => suite.to_string(),
                Origin::Imported { source, .. } => source,
            }),
            disk_bytes: Some(virtual_size_bytes),
            packages: if whole { packages } else { BTreeMap::new() },
            ..empty
        },
        Err(error) => answer::Image { damage: Some(model::with_causes(&error)), ..empty },
    }
}

async fn off_thread<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
) -> Result<T, ApiError> {
    let store = app.images.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    Ok(done.map_err(|_ended| crate::runs::Error::Closed)??)
}
