//! In place of the driver, where the program is built without it: there is no such Redis.

use super::{Applied, RedisSettings};
use crate::error::Error;
use crate::lease::Lease;
use crate::session::Edit;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) enum Driver {}

impl Driver {
    pub(super) fn new(_settings: RedisSettings) -> Result<Self, Error> {
        Err(Error::NotBuilt("redis"))
    }

    pub(super) async fn apply(&self, _edits: &[Edit]) -> Result<Applied, Error> {
        match *self {}
    }

    pub(super) async fn forget(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(super) async fn renew(&self, _holder: &str, _ttl: Duration) -> Result<bool, Error> {
        match *self {}
    }

    pub(super) async fn lease(&self, _holder: &str, _ttl: Duration) -> Result<Lease, Error> {
        match *self {}
    }

    pub(super) async fn release(&self, _holder: &str) -> Result<(), Error> {
        match *self {}
    }
}
