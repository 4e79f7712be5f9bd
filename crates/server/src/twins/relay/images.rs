//! Images of containers for a twin's engine: what a plan wants of them is had from the twin's host
//! before the plan is carried out, and is handed on while it is.

use super::super::Twins;
use super::super::reach::Reach;
use super::{Lent, Relay, Repositories};
use crate::container_images::{Bundle, ContainerImages, Held, Missing};
use crate::runs::{Failure, Handle, Stream as Says};
use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use model::HostId;
use model::plan::{Action, Plan};
use model::spec::Image;
use std::collections::BTreeMap;

/// What a guest asks for an image below.
const PATH: &str = "/images/";
/// Tells what the host's engine knows the image by.
const IMAGE_ID: &str = "image-id";

/// Images for one plan.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    here: BTreeMap<Image, Held>,
    /// Those that may come the next time, and why they did not.
    broken: BTreeMap<Image, String>,
    /// Whether some don't come, for which the plan is another.
    pub(in crate::twins) is_lacking: bool,
}

impl Gathered {
    pub(in crate::twins) fn is_empty(&self) -> bool {
        self.here.is_empty() && self.broken.is_empty()
    }

    /// What a guest gets that asks for this path; nothing where it asks for no image.
    pub(super) fn answer(&self, path: &str) -> Option<Response> {
        let image: Image = path.strip_prefix(PATH)?.parse().ok()?;
        if let Some(why) = self.broken.get(&image) {
            return Some((StatusCode::BAD_GATEWAY, why.clone()).into_response());
        }
        let Some(held) = self.here.get(&image) else {
            let what = "this image is not handed on";
            return Some((StatusCode::NOT_FOUND, what).into_response());
        };
        let bundle = Bundle::new(held, image.tag().as_deref());
        let head = [
            (CONTENT_LENGTH, bundle.bytes().to_string()),
            (CONTENT_TYPE, "application/x-tar".to_owned()),
            (HeaderName::from_static(IMAGE_ID), held.id().to_string()),
        ];
        Some((head, Body::from_stream(bundle.read())).into_response())
    }
}

impl Twins {
    /// Images of containers, from hosts for their twins.
    pub(crate) fn container_images(&self) -> &ContainerImages {
        &self.inner.container_images
    }

    /// A host's agent says that it hands out images: twins that did without are led there anew.
    pub(crate) fn hands_out_images(&self, host: &HostId) {
        if self.inner.container_images.came(host)
            && let Ok(name) = self.name(host)
        {
            self.inner.wakers.touch(&name);
        }
    }

    /// Has the images of a plan come from a host, and opens a way to them into a machine that may be
    /// none of ours.
    ///
    /// # Errors
    /// When it was cancelled, or SSH lets us not in.
    pub async fn lend_images(
        &self,
        reach: &Reach,
        (host, plan): (&HostId, &Plan),
        handle: &Handle,
    ) -> Result<Lent, Failure> {
        let images = self.gather_images(host, plan, handle).await?;
        let relay = Relay::new(self.inner.repositories.clone(), Repositories::default());
        relay.lend_with(reach, images).await
    }

    /// Has the images come that a plan puts into a twin of this host.
    pub(in crate::twins) async fn gather_images(
        &self,
        host: &HostId,
        plan: &Plan,
        handle: &Handle,
    ) -> Result<Gathered, Failure> {
        let mut gathered = Gathered::default();
        if !self.inner.settings.relays_images {
            return Ok(gathered);
        }
        let lacking = self.inner.container_images.lacking(host);
        for image in plan.steps().iter().filter_map(|step| step.action.image()) {
            if image.is_of_registry() || lacking.contains_key(image) {
                continue;
            }
            let container = plan.steps().iter().find_map(|step| match &step.action {
                Action::CreateContainer { name, container } if container.image == *image => {
                    Some(name)
                }
                _ => None,
            });
            let fetched = self.inner.container_images.fetch(host, image, container, handle);
            let cancelled = handle.cancelled();
            let fetched = tokio::select! {
                biased;
                () = cancelled.cancelled() => return Err(Failure::new("cancelled")),
                fetched = crate::runs::aside(fetched) => fetched,
            };
            match fetched {
                Ok(held) => {
                    gathered.here.insert(image.clone(), held);
                }
                Err(Missing::Lacking(lack)) => {
                    handle.line(Says::Stderr, &format!("{image}: {}; {}", lack.what, lack.remedy));
                    gathered.is_lacking = true;
                }
                Err(Missing::Broken(why)) => {
                    let why = format!("the image did not come from the host: {why}");
                    handle.line(Says::Stderr, &format!("{image}: {why}"));
                    gathered.broken.insert(image.clone(), why);
                }
            }
        }
        Ok(gathered)
    }
}
