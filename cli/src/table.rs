//! Tables of text: columns three spaces apart.

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Filled up with spaces on the right, also in the last column.
    Left,
    /// Filled up with spaces on the left.
    Right,
}

/// A column's name, alignment and least width.
#[derive(Debug, Clone)]
pub struct Column {
    /// What is above it.
    pub name: &'static str,
    /// How it is aligned.
    pub align: Align,
    /// Wider than its own cells, to line up with other tables.
    pub min_width: usize,
}

impl Column {
    /// A column that is as wide as its cells.
    pub fn new(name: &'static str, align: Align) -> Column {
        Column { name, align, min_width: 0 }
    }
}

/// Header and rows, each line ending with a line feed. Widths count characters.
pub fn render(columns: &[Column], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = columns.iter().map(|c| c.name.to_owned()).collect();
    let mut widths: Vec<usize> = columns.iter().map(|c| c.min_width).collect();
    for row in std::iter::once(&header).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&header).chain(rows) {
        for (at, ((cell, column), width)) in row.iter().zip(columns).zip(&widths).enumerate() {
            if at > 0 {
                out.push_str("   ");
            }
            let fill = " ".repeat(width.saturating_sub(cell.chars().count()));
            match column.align {
                Align::Left => out.extend([cell, fill.as_str()]),
                Align::Right => out.extend([fill.as_str(), cell]),
            }
        }
        out.push('\n');
    }
    out
}
