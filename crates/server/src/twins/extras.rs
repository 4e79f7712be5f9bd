//! What was declared of twins, on top of what is observed on their hosts.

use super::Twins;
use super::error::Error;
use api::extras::{NewExtra, TwinExtra};
use model::Subject;
use model::spec::{Extra, ExtraKind, Extras};
use std::collections::BTreeMap;
use vm::image::MachineName;

/// Declarations for one twin.
const MAX: usize = 1000;

/// As it is kept: by subject.
pub(super) type Declared = BTreeMap<String, Extra>;

impl Twins {
    /// What was declared of a twin, in order of kind and name.
    ///
    /// # Errors
    /// When the server knows no such host.
    pub async fn extras(&self, name: &MachineName) -> Result<Vec<TwinExtra>, Error> {
        let name = name.clone();
        self.off_thread(move |this| {
            this.known_host(&name)?;
            let declared = this.inner.book.extras(&name)?;
            Ok(declared.into_iter().filter_map(|(subject, extra)| told(&subject, extra)).collect())
        })
        .await
    }

    /// Declares one thing of a twin, in the place of what was declared of it before.
    ///
    /// # Errors
    /// When the server knows no such host, or it can't be declared so.
    pub async fn declare(
        &self,
        name: &MachineName,
        (kind, thing): (ExtraKind, &str),
        wanted: NewExtra,
    ) -> Result<TwinExtra, Error> {
        let subject = kind.subject(thing)?;
        let extra = match wanted {
            NewExtra { gone: true, fields } if fields.is_empty() => Extra::Gone,
            NewExtra { gone: true, .. } => {
                let what = "what is gone has no fields".to_owned();
                return Err(Error::Value { key: "fields", what });
            }
            NewExtra { gone: false, fields } => Extra::There(fields),
        };
        extra.check(kind, &subject)?;
        let (name, kept) = (name.clone(), extra.clone());
        let (key, waker) = (subject.to_string(), name.clone());
        self.off_thread(move |this| {
            this.known_host(&name)?;
            this.inner.book.change_extras(&name, |declared| {
                if declared.len() >= MAX && !declared.contains_key(&key) {
                    let what = format!("{name} has {MAX} of them already");
                    return Err(Error::Value { key: "extras", what });
                }
                declared.insert(key, kept);
                Ok(())
            })
        })
        .await?;
        self.inner.wakers.wake(waker.as_str());
        told(&subject.to_string(), extra).ok_or(Error::NotDeclared { subject: subject.to_string() })
    }

    /// Takes back what was declared of one thing.
    ///
    /// # Errors
    /// When nothing was.
    pub async fn undeclare(
        &self,
        name: &MachineName,
        (kind, thing): (ExtraKind, &str),
    ) -> Result<(), Error> {
        let subject = kind.subject(thing)?.to_string();
        let (name, waker) = (name.clone(), name.clone());
        self.off_thread(move |this| {
            this.known_host(&name)?;
            this.inner.book.change_extras(&name, |declared| match declared.remove(&subject) {
                Some(_) => Ok(()),
                None => Err(Error::NotDeclared { subject }),
            })
        })
        .await?;
        self.inner.wakers.wake(waker.as_str());
        Ok(())
    }

    /// What was declared, as a spec takes it. Blocks.
    pub(super) fn declared(&self, name: &MachineName) -> Result<Extras, Error> {
        let declared = self.inner.book.extras(name)?.into_iter();
        Ok(Extras::of(declared.filter_map(|(subject, extra)| Some((subject.parse().ok()?, extra)))))
    }
}

fn told(subject: &str, extra: Extra) -> Option<TwinExtra> {
    let subject: Subject = subject.parse().ok()?;
    let kind = ExtraKind::of(&subject)?.to_string();
    let (gone, fields) = match extra {
        Extra::Gone => (true, model::Fields::new()),
        Extra::There(fields) => (false, fields),
    };
    Some(TwinExtra { kind, name: subject.id().to_owned(), gone, fields })
}
