//! Tables as kubectl and systemctl write them: columns, a heading, no borders.

use crate::view::{Paint, View};
use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, CellAlignment, Color, ContentArrangement};
use model::terminal::{plain, shorten};

pub(crate) struct Table {
    table: comfy_table::Table,
}

/// One field of a table, its text not yet made plain.
pub(crate) struct Cell {
    text: String,
    paint: Paint,
    right: bool,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), paint: Paint::None, right: false }
    }
}

impl Cell {
    pub(crate) fn painted(text: impl Into<String>, paint: Paint) -> Self {
        Self { paint, ..Self::from(text) }
    }

    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self { right: true, ..Self::from(text) }
    }
}

/// Characters a field may have; the whole is in `--json`.
const MAX_CELL: usize = 100;

impl Table {
    pub(crate) fn new(view: &View, heading: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        if view.color() {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let dim = |text: &&str| comfy_table::Cell::new(text).add_attribute(Attribute::Dim);
        if !heading.is_empty() {
            table.set_header(heading.iter().map(dim));
        }
        Self { table }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        let cells = cells.into_iter().map(|cell| {
            let text = plain(&cell.text);
            let out = comfy_table::Cell::new(shorten(&text, MAX_CELL));
            let out = match cell.paint {
                Paint::None => out,
                Paint::Bold => out.add_attribute(Attribute::Bold),
                Paint::Dim => out.add_attribute(Attribute::Dim),
                Paint::Red => out.fg(Color::DarkRed),
                Paint::Green => out.fg(Color::DarkGreen),
                Paint::Yellow => out.fg(Color::DarkYellow),
                Paint::Cyan => out.fg(Color::DarkCyan),
            };
            if cell.right { out.set_alignment(CellAlignment::Right) } else { out }
        });
        self.table.add_row(cells);
    }

    /// The lines, each ending in a line end, none in blanks.
    pub(crate) fn render(mut self, indent: &str) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut out = String::new();
        for line in self.table.lines() {
            out.push_str(indent);
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(&View::of_tests(), &["HOST", "VERSION"]);
        table.row([Cell::from("web01"), Cell::number("412")]);
        table.row([Cell::from("a\x1b[2J\nb"), Cell::number("1")]);
        assert_eq!(
            table.render(""),
            "HOST         VERSION\nweb01            412\na\\x1b[2J\\nb        1\n"
        );
    }
}
