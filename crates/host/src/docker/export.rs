//! An image as the engine hands it out, while it comes in.

use super::container::{Image as Inspected, Inspected as InspectedContainer};
use super::{Docker, Error, http, is_id};
use crate::unix_http::{Driver, drive};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use model::container_image::BlobDigest;
use model::spec::{ContainerName, Image};
use std::pin::pin;
use std::time::Duration;

/// For some more of an archive. Older engines write all of it to their disk before the first byte
/// comes.
const MORE: Duration = Duration::from_secs(900);

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub id: BlobDigest,
    /// As the engine counts them.
    pub bytes: u64,
}

/// An archive that comes in.
pub struct Export {
    request: String,
    body: Incoming,
    driver: Driver,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Docker {
    /// The image that this container was made from, if it was by that name; or else the one that
    /// has the name now. `None` when there is none.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub async fn image(
        &self,
        name: &Image,
        container: Option<&ContainerName>,
    ) -> Result<Option<Found>, Error> {
        if let Some(container) = container {
            let path = format!("/containers/{container}/json");
            match self.get::<InspectedContainer>(&path).await {
                Ok(seen) => match seen.made_from(name.as_str()) {
                    Some(id) if is_id(id) => return self.inspect_image(id).await,
                    _ => {}
                },
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        self.inspect_image(name.as_str()).await
    }

    async fn inspect_image(&self, name: &str) -> Result<Option<Found>, Error> {
        match self.get::<Inspected>(&format!("/images/{name}/json")).await {
            Ok(seen) => {
                let found = seen.id().parse().map(|id| Found { id, bytes: seen.bytes() });
                Ok(found.ok())
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the archive of an image.
    ///
    /// # Errors
    /// When Docker does not hand it out.
    pub async fn export(&self, id: &BlobDigest) -> Result<Export, Error> {
        let path = format!("/images/{id}/get");
        let request = format!("GET {path}");
        let opened = tokio::time::timeout(MORE, http::open(self.socket(), &path)).await;
        let late = || Error::Deadline { request: request.clone(), deadline: MORE };
        let (answer, driver) = opened.map_err(|_late| late())??;
        Ok(Export { request, body: answer.into_body(), driver })
    }
}

impl Export {
    /// Some more of it; nothing when it is whole. Cancel-safe.
    ///
    /// # Errors
    /// When the engine stops in the middle, or hangs.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = pin!(self.body.frame());
            let frame = tokio::time::timeout(MORE, drive(&mut self.driver, frame)).await;
            let frame = frame.map_err(|_late| Error::Deadline {
                request: self.request.clone(),
                deadline: MORE,
            })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame =
                frame.map_err(|source| Error::Request { request: self.request.clone(), source })?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }
}
