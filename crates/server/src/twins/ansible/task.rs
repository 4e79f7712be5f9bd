//! One task of Ansible: a module, what it is told, and when it runs.

use super::yaml::Yaml;
use std::time::Duration;

/// A task without its name, which is that of its step.
#[derive(Debug, Clone)]
pub(super) struct Task {
    module: &'static str,
    arguments: Vec<(&'static str, Yaml)>,
    keywords: Vec<(&'static str, Yaml)>,
}

impl Task {
    pub(super) fn new(module: &'static str, arguments: Vec<(&'static str, Yaml)>) -> Self {
        Self { module, arguments, keywords: Vec::new() }
    }

    /// A program and its words, which no shell sees.
    pub(super) fn program<'w>(words: impl IntoIterator<Item = &'w str>) -> Self {
        let words = words.into_iter().map(Yaml::data).collect();
        Self::new("ansible.builtin.command", vec![("argv", Yaml::List(words))])
    }

    fn keyword(mut self, key: &'static str, value: Yaml) -> Self {
        self.keywords.push((key, value));
        self
    }

    /// Only where this expression of ours holds.
    pub(super) fn when(self, expression: &str) -> Self {
        self.keyword("when", Yaml::own(expression))
    }

    /// Keeps what came of it, under this name.
    pub(super) fn register(self, name: &str) -> Self {
        self.keyword("register", Yaml::own(name))
    }

    /// What counts as a change.
    pub(super) fn changed_when(self, expression: &str) -> Self {
        self.keyword("changed_when", Yaml::own(expression))
    }

    /// It changes nothing.
    pub(super) fn looks(self) -> Self {
        self.keyword("changed_when", Yaml::Truth(false))
    }

    /// Whatever comes of it, what follows goes on.
    pub(super) fn never_fails(self) -> Self {
        self.keyword("failed_when", Yaml::Truth(false))
    }

    /// A value from outside that expressions compare with.
    pub(super) fn with(self, name: &'static str, value: &str) -> Self {
        self.keyword("vars", Yaml::Map(vec![(name, Yaml::data(value))]))
    }

    /// Values from outside, as a list.
    pub(super) fn with_all(self, name: &'static str, values: &[&str]) -> Self {
        let values = values.iter().copied().map(Yaml::data).collect();
        self.keyword("vars", Yaml::Map(vec![(name, Yaml::List(values))]))
    }

    pub(super) fn within(self, limit: Duration) -> Self {
        self.keyword("timeout", Yaml::Number(limit.as_secs()))
    }

    pub(super) fn named(self, name: &str) -> Yaml {
        let mut entries =
            vec![("name", Yaml::data(name)), (self.module, Yaml::Map(self.arguments))];
        entries.extend(self.keywords);
        Yaml::Map(entries)
    }
}
