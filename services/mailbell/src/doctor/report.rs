//! Findings, and how they are told.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use crate::terminal::{Paint, Style, clean_line};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was not looked at, and what was found says why.
    Skipped,
    /// Nothing to do.
    Ok,
    /// It works, and will not for ever.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub said: String,
    /// What to do; empty if there is nothing.
    pub advice: String,
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn ok(&mut self, name: &str, said: impl Into<String>) {
        self.add(name, Verdict::Ok, said.into(), String::new());
    }

    pub(super) fn skipped(&mut self, name: &str, why: impl Into<String>) {
        self.add(name, Verdict::Skipped, why.into(), String::new());
    }

    pub(super) fn warn(&mut self, name: &str, said: impl Into<String>, advice: impl Into<String>) {
        self.add(name, Verdict::Warn, said.into(), advice.into());
    }

    pub(super) fn fail(&mut self, name: &str, said: impl Into<String>, advice: impl Into<String>) {
        self.add(name, Verdict::Fail, said.into(), advice.into());
    }

    pub(super) fn add(&mut self, name: &str, verdict: Verdict, said: String, advice: String) {
        self.findings.push(Finding {
            name: name.to_owned(),
            verdict,
            said,
            advice,
        });
    }

    /// The worst of all.
    #[must_use]
    pub fn worst(&self) -> Verdict {
        let verdicts = self.findings.iter().map(|finding| finding.verdict);
        verdicts.max().unwrap_or(Verdict::Ok)
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "verdict": self.worst(), "findings": self.findings })
    }

    pub(super) fn print(&self, out: &mut impl Write, paint: Paint) -> io::Result<()> {
        for finding in &self.findings {
            let (word, style) = match finding.verdict {
                Verdict::Skipped => ("skip", Style::Dim),
                Verdict::Ok => ("ok  ", Style::Green),
                Verdict::Warn => ("warn", Style::Yellow),
                Verdict::Fail => ("FAIL", Style::Red),
            };
            let word = paint.paint(style, word);
            let (name, said) = (clean_line(&finding.name), clean_line(&finding.said));
            writeln!(out, "{word}  {name:<16}  {said}")?;
            if !finding.advice.is_empty() {
                writeln!(
                    out,
                    "                        -> {}",
                    clean_line(&finding.advice)
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_advice_is_told() {
        let mut report = Report::default();
        assert_eq!(report.worst(), Verdict::Ok);
        report.ok("one", "is well");
        report.skipped("none", "was not looked at");
        assert_eq!(report.worst(), Verdict::Ok);
        report.fail("two", "is \u{1b}[31mnot", "do this");
        report.warn("three", "may be", "do that");
        assert_eq!(report.worst(), Verdict::Fail);
        let mut out = Vec::new();
        report.print(&mut out, Paint::new(false)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("ok    one") && text.contains("-> do this"));
        assert!(text.contains("\nskip  none"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert_eq!(report.json()["findings"][1]["verdict"], "skipped");
        assert_eq!(report.json()["findings"][2]["verdict"], "fail");
    }
}
