//! Figures as text, in the form of Prometheus or of OpenMetrics: of gauges both are the same but
//! for the end.

use super::http::Form;
use std::fmt::{Display, Write};

const PREFIX: &str = "safetytwin_";

/// Figures by their names, in the order in which they were first named.
#[derive(Debug, Default)]
pub(super) struct Page {
    gauges: Vec<Gauge>,
}

/// One name, with all its figures.
#[derive(Debug)]
pub(super) struct Gauge {
    name: &'static str,
    help: &'static str,
    lines: String,
}

/// A figure as it is written: numbers as they are, truth as 1 and 0.
pub(super) trait Figure {
    fn write(self, out: &mut String);
}

impl Page {
    /// Figures of a name, without the prefix.
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Gauge {
        let known = self.gauges.iter().position(|gauge| gauge.name == name);
        let place = known.unwrap_or_else(|| {
            self.gauges.push(Gauge { name, help, lines: String::new() });
            self.gauges.len() - 1
        });
        self.gauges.get_mut(place).expect("it was found, or put there")
    }

    /// Names that have no figure stay out.
    pub(super) fn text(&self, form: Form) -> String {
        let mut out = String::new();
        for Gauge { name, help, lines } in self.gauges.iter().filter(|one| !one.lines.is_empty()) {
            let head = format!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} gauge\n");
            out.push_str(&head);
            out.push_str(lines);
        }
        if form == Form::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

impl Gauge {
    pub(super) fn put(&mut self, labels: &[(&str, &str)], figure: impl Figure) -> &mut Self {
        self.lines.push_str(PREFIX);
        self.lines.push_str(self.name);
        let mut sign = '{';
        for (name, text) in labels {
            self.lines.push(sign);
            self.lines.push_str(name);
            self.lines.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.lines.push_str("\\\\"),
                    '"' => self.lines.push_str("\\\""),
                    '\n' => self.lines.push_str("\\n"),
                    c => self.lines.push(c),
                }
            }
            self.lines.push('"');
            sign = ',';
        }
        if !labels.is_empty() {
            self.lines.push('}');
        }
        self.lines.push(' ');
        figure.write(&mut self.lines);
        self.lines.push('\n');
        self
    }

    /// What is not known stays out.
    pub(super) fn put_some(&mut self, labels: &[(&str, &str)], figure: Option<impl Figure>) {
        if let Some(figure) = figure {
            self.put(labels, figure);
        }
    }
}

fn display(out: &mut String, figure: impl Display) {
    write!(out, "{figure}").expect("writing to a String does not fail");
}

impl Figure for f64 {
    fn write(self, out: &mut String) {
        display(out, self);
    }
}

impl Figure for u64 {
    fn write(self, out: &mut String) {
        display(out, self);
    }
}

impl Figure for i64 {
    fn write(self, out: &mut String) {
        display(out, self);
    }
}

impl Figure for i32 {
    fn write(self, out: &mut String) {
        display(out, self);
    }
}

impl Figure for usize {
    fn write(self, out: &mut String) {
        display(out, self);
    }
}

impl Figure for bool {
    fn write(self, out: &mut String) {
        out.push(if self { '1' } else { '0' });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_name_stand_together() {
        let mut page = Page::default();
        page.gauge("a", "First").put(&[("x", "1\"\\\n")], 0.5);
        page.gauge("b", "Second").put_some(&[], None::<u64>);
        page.gauge("c", "Third").put(&[], true);
        page.gauge("a", "First").put(&[("x", "2"), ("y", "")], 7_u64);
        let text = "# HELP safetytwin_a First\n# TYPE safetytwin_a gauge\n\
            safetytwin_a{x=\"1\\\"\\\\\\n\"} 0.5\nsafetytwin_a{x=\"2\",y=\"\"} 7\n\
            # HELP safetytwin_c Third\n# TYPE safetytwin_c gauge\nsafetytwin_c 1\n";
        assert_eq!(page.text(Form::Prometheus), text);
        assert_eq!(page.text(Form::OpenMetrics), format!("{text}# EOF\n"));
    }
}
