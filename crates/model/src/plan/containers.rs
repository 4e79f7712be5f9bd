//! Containers: one that is to be another is made anew, as the engine can't change it.

use super::draft::Draft;
use super::step::Action;
use crate::Kind;
use crate::entity::{self, Entity};
use crate::spec::{Cause, Container, ContainerName, Image, Standing};
use std::collections::BTreeMap;

impl Draft<'_> {
    pub(super) fn containers(&mut self) {
        let spec = self.spec;
        let there: BTreeMap<ContainerName, (crate::Subject, Container)> = self
            .twin
            .entities::<entity::Container>()
            .filter_map(|seen| {
                let (name, container) = Container::of(&seen).ok()?;
                Some((name, (seen.to_item().0, container)))
            })
            .collect();
        if spec.containers.is_empty() && there.is_empty() || !self.sees(Kind::CONTAINER) {
            return;
        }
        let mut images = BTreeMap::new();
        for (name, wanted) in &spec.containers {
            let twin = there.get(name).map(|(_, container)| container);
            if twin.is_some_and(|twin| twin.has_form_of(wanted)) {
                let standing = twin.and_then(|twin| twin.standing);
                self.stand(name, wanted, standing, None);
            } else {
                self.make(name, wanted, &mut images);
            }
        }
        for (name, (subject, _)) in &there {
            let is_kept = spec.containers.contains_key(name) || self.stays(subject);
            if !is_kept && self.may_remove(Kind::CONTAINER) {
                let why = "the host does not have this container";
                self.add(subject, Action::RemoveContainer(name.clone()), why);
            }
        }
    }

    fn make(
        &mut self,
        name: &ContainerName,
        wanted: &Container,
        images: &mut BTreeMap<Image, usize>,
    ) {
        let subject = crate::Subject::escaped(Kind::CONTAINER, name.as_str());
        let there = self.made_of(&wanted.image);
        let renews = there.iter().any(|one| !one.has_image_of(wanted));
        if let Some(lack) = self.own.lacks_image(&wanted.image)
            && (there.is_empty() || renews)
        {
            self.gap(&subject, Cause::Isolated, &lack.what, &lack.remedy);
            return;
        }
        let image = match images.get(&wanted.image) {
            Some(at) => *at,
            None => {
                let image = wanted.image.clone();
                let at = match renews {
                    true => {
                        let why = "the host's container is made from another one of this name";
                        self.add(&subject, Action::RenewImage(image), why)
                    }
                    false => {
                        self.add(&subject, Action::PutImage(image), "a container is made from it")
                    }
                };
                images.insert(wanted.image.clone(), at);
                at
            }
        };
        // Also one of which not all is understood is in the way.
        let removed = self.twin.get(&subject).is_some().then(|| {
            let why = "the host's is another";
            let at = self.add(&subject, Action::RemoveContainer(name.clone()), why);
            // Without its image it could not be made again.
            self.need(at, Some(image));
            at
        });
        let container = Box::new(wanted.clone());
        let action = Action::CreateContainer { name: name.clone(), container };
        let at = self.add(&subject, action, "the host has this container");
        self.need(at, Some(image));
        self.need(at, removed);
        self.stand(name, wanted, Some(Standing::Stopped), Some(at));
    }

    /// The twin's containers that were made from an image of this name.
    fn made_of(&self, image: &Image) -> Vec<Container> {
        let there = self.twin.entities::<entity::Container>();
        let there = there.filter_map(|seen| Container::of(&seen).ok());
        there.map(|(_, one)| one).filter(|one| one.image == *image).collect()
    }

    /// Lets it run or not, as the host's does.
    fn stand(
        &mut self,
        name: &ContainerName,
        wanted: &Container,
        there: Option<Standing>,
        made: Option<usize>,
    ) {
        let (Some(wanted), Some(there)) = (wanted.standing, there) else { return };
        let subject = crate::Subject::escaped(Kind::CONTAINER, name.as_str());
        let start = || Action::StartContainer(name.clone());
        let pause = || Action::PauseContainer(name.clone());
        let actions = match (there, wanted) {
            (Standing::Stopped, Standing::Running) => vec![start()],
            (Standing::Stopped, Standing::Paused) => vec![start(), pause()],
            (Standing::Running, Standing::Paused) => vec![pause()],
            (Standing::Paused, Standing::Running) => vec![Action::UnpauseContainer(name.clone())],
            (Standing::Running | Standing::Paused, Standing::Stopped) => {
                vec![Action::StopContainer(name.clone())]
            }
            _ => Vec::new(),
        };
        let mut before = made;
        for action in actions {
            let at = self.add(&subject, action, "so is the host's");
            self.need(at, before);
            before = Some(at);
        }
    }
}
