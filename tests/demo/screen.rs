//! What the person at the terminal sees.

use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

pub(crate) struct Screen {
    started: Instant,
    last: Mutex<String>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), last: Mutex::new(String::new()) }
    }

    fn write(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    /// The next thing to look at.
    pub(crate) fn step(&self, text: &str) {
        self.write(&format!("\n[{:6.1} s] {text}", self.started.elapsed().as_secs_f64()));
    }

    /// One line under the step.
    pub(crate) fn note(&self, text: &str) {
        self.write(&format!("[{:6.1} s]   {text}", self.started.elapsed().as_secs_f64()));
    }

    /// A line of progress, if it says anything new.
    pub(crate) fn progress(&self, text: &str) {
        let Ok(mut last) = self.last.lock() else { return };
        if *last != text {
            last.replace_range(.., text);
            self.note(text);
        }
    }

    /// A block of text, as it is.
    pub(crate) fn show(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.write(&format!("             {line}"));
        }
    }
}

/// Columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
