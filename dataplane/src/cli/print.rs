//! Terminal output: colour only for people, broken pipes are not errors.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::trouble::Trouble;

static COLOUR: AtomicBool = AtomicBool::new(true);

/// `--no-color` and `NO_COLOR` turn colour off.
pub(super) fn set_colour(wanted: bool) {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    COLOUR.store(wanted && !refused, Ordering::Relaxed);
}

/// A colour by meaning.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tone {
    Good,
    Warning,
    Bad,
    Quiet,
    Strong,
}

fn paint(text: &str, tone: Tone, terminal: bool) -> String {
    if !terminal || !COLOUR.load(Ordering::Relaxed) {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Good => "32",
        Tone::Warning => "33",
        Tone::Bad => "31",
        Tone::Quiet => "2",
        Tone::Strong => "1",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Paints text that goes to standard output.
pub(super) fn painted(text: &str, tone: Tone) -> String {
    paint(text, tone, std::io::stdout().is_terminal())
}

/// Writes to standard output; a reader that left (`| head`) ends the matter quietly.
pub(super) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Writes a diagnostic to standard error.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes what went wrong to standard error.
pub(super) fn trouble(trouble: &Trouble) {
    let terminal = std::io::stderr().is_terminal();
    let head = paint("error:", Tone::Bad, terminal);
    note(&format!("{head} {trouble}"));
}

/// Columns padded to the widest cell of each.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), "22".to_owned()]];
        assert_eq!(super::table(&["NAME", "N"], &rows), "NAME    N\na       1\nlonger  22\n");
    }
}
