//! Writing to a terminal what others have written: nothing of it may command the terminal.

use std::io::{self, IsTerminal as _, Write};

/// One line without anything that a terminal would act on: control characters (ESC among them, and the C1 range that some
/// terminals take as escapes), line and paragraph separators, and the marks that turn the direction of text around and so could
/// make a line show something else than it says.
#[must_use]
pub fn clean_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut space = false;
    for c in text.chars() {
        match c {
            // What only separates becomes one space.
            '\t' | '\n' | '\r' | '\u{2028}' | '\u{2029}' | '\u{85}' => space = true,
            c if is_harmful(c) => {}
            c => {
                if space && !out.is_empty() && c != ' ' && !out.ends_with(' ') {
                    out.push(' ');
                }
                space = false;
                out.push(c);
            }
        }
    }
    out
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        // Invisible, and of no use in one line.
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// At most `most` characters, with an ellipsis if something was cut.
#[must_use]
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

/// How something stands out, where colours are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Of most interest.
    Bold,
    /// Of least interest.
    Dim,
    /// Good.
    Green,
    /// To be looked at.
    Yellow,
    /// Bad.
    Red,
    /// A mark.
    Cyan,
}

/// Whether to colour: only on a terminal, and not if the environment asks for none (<https://no-color.org>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// For standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self(io::stdout().is_terminal() && wanted())
    }

    /// For standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self(io::stderr().is_terminal() && wanted())
    }

    /// As it is said.
    #[must_use]
    pub const fn new(on: bool) -> Self {
        Self(on)
    }

    /// `text`, which must be clean, in a style.
    #[must_use]
    pub fn paint(self, style: Style, text: &str) -> String {
        if !self.0 || text.is_empty() {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Green => "32",
            Style::Yellow => "33",
            Style::Red => "31",
            Style::Cyan => "36",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

fn wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Rows in columns that line up, each cell cleaned. The first row is the heading.
///
/// # Errors
/// When it cannot be written.
pub fn table(out: &mut impl Write, paint: Paint, rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| clean_line(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let gap = width.saturating_sub(cell.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', gap));
        }
        let line = line.trim_end();
        let line = if number == 0 {
            paint.paint(Style::Bold, line)
        } else {
            line.to_owned()
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// A closed pipe ends a command quietly, as it does every other tool's; anything else is told.
///
/// # Errors
/// What the system said.
pub fn done(result: io::Result<()>) -> Result<(), crate::failure::Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(
            crate::failure::Failure::unavailable(format!("cannot write: {error}")),
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_commands_the_terminal() {
        for (given, shown) in [
            ("plain ü 日本 🎉", "plain ü 日本 🎉"),
            ("\u{1b}[2Jgone", "[2Jgone"),
            ("\u{1b}]0;title\u{7}x", "]0;titlex"),
            ("\u{9b}31mred", "31mred"),
            ("a\r\nb\tc\u{2028}d", "a b c d"),
            ("\n lead", " lead"),
            ("one\u{8}\u{8}\u{8}two\u{7f}", "onetwo"),
            ("safe\u{202e}exe.txt", "safeexe.txt"),
            ("\u{2066}a\u{2069}\u{feff}", "a"),
            ("\0", ""),
        ] {
            assert_eq!(clean_line(given), shown, "{given:?}");
        }
        let all: String = ('\0'..='\u{2fff}').collect();
        assert!(!clean_line(&all).chars().any(char::is_control));
    }

    #[test]
    fn what_is_cut_is_marked() {
        assert_eq!(shorten("häuser", 6), "häuser");
        assert_eq!(shorten("häuser", 5), "häus…");
        assert_eq!(shorten("one two", 5), "one…");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [
            row(["ID", "USER", "STATE"]),
            row(["1", "änne", "ok\n"]),
            row(["22", "b", "\u{1b}bad"]),
        ];
        let mut out = Vec::new();
        table(&mut out, Paint::new(false), &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ID  USER  STATE\n1   änne  ok\n22  b     bad\n"
        );
        assert_eq!(
            Paint::new(true).paint(Style::Red, "x"),
            "\u{1b}[31mx\u{1b}[0m"
        );
    }
}
