//! In place of the driver, where the program is built without it: there is no such collection.

use super::{Loaded, MongoSettings, Written};
use crate::document::VmDocument;
use crate::error::Error;
use crate::lease::Lease;
use crate::outbox::Known;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) enum Driver {}

impl Driver {
    pub(super) fn new(_settings: MongoSettings) -> Result<Self, Error> {
        Err(Error::NotBuilt("mongodb"))
    }

    pub(super) async fn load(&self, _hosts: &[String]) -> Result<Loaded, Error> {
        match *self {}
    }

    pub(super) async fn write(&self, _documents: &[VmDocument]) -> Result<Written, Error> {
        match *self {}
    }

    pub(super) async fn known(&self) -> Result<Vec<Known>, Error> {
        match *self {}
    }

    pub(super) async fn note(&self, _known: &[Known], _only_new: bool) -> Result<(), Error> {
        match *self {}
    }

    pub(super) async fn renew(&self, _: &str, _: Duration) -> Result<bool, Error> {
        match *self {}
    }

    pub(super) async fn lease(&self, _: &str, _: Duration) -> Result<Lease, Error> {
        match *self {}
    }

    pub(super) async fn release(&self, _holder: &str) -> Result<(), Error> {
        match *self {}
    }
}
