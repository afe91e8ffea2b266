//! A message as text for standard output: a title and a line per fact.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{Message, Update};
use crate::rule::Severity;

/// The text with styles for a terminal; `anstream` removes them where there is none.
pub fn terminal(message: &Message) -> String {
    let title = style(message);
    let dim = Style::new().dimmed();
    let mut text = format!("{title}{}{title:#}  {dim}{}{dim:#}\n", message.title, message.incident.id);
    for (name, sentence) in message.facts.lines() {
        let _ = writeln!(text, "  {dim}{name:<9}{dim:#} {sentence}");
    }
    for note in &message.notes {
        let _ = writeln!(text, "  {dim}{:<9}{dim:#} {note}", "note");
    }
    text
}

fn style(message: &Message) -> Style {
    let colour = match (message.update, message.incident.severity) {
        (Update::Resolved, _) => AnsiColor::Green,
        (Update::Died, _) | (_, Severity::Critical) => AnsiColor::Red,
        (_, Severity::Warning) => AnsiColor::Yellow,
        (_, Severity::Info) => AnsiColor::Blue,
    };
    Style::new().bold().fg_color(Some(colour.into()))
}
