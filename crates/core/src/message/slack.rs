//! A message as the body of a Slack incoming webhook.

use serde_json::{Value, json};

use super::{Message, Update};
use crate::rule::Severity;

/// The longest header that Slack accepts.
const HEADER_CHARS: usize = 150;
/// The longest fact, and how many a section has: Slack accepts 3000 characters in one.
const FACT_CHARS: usize = 600;
const FACTS_IN_SECTION: usize = 4;

/// The body to post. An incoming webhook cannot reply in a thread, so the context line has the
/// incident's id, by which all messages of an incident can be found.
pub fn slack(message: &Message) -> Value {
    let title = format!("{}{}", mark(message), message.title);
    let facts: Vec<String> = message
        .facts
        .lines()
        .iter()
        .filter(|(name, _)| is_shown(message.update, name))
        .map(|(name, text)| format!("*{name}*  {}", escaped_within(text, FACT_CHARS)))
        .collect();
    let mut blocks =
        vec![json!({"type": "header", "text": {"type": "plain_text", "text": cut(&title, HEADER_CHARS)}})];
    blocks.extend(facts.chunks(FACTS_IN_SECTION).map(section));
    if let Some(page) = &message.page {
        blocks.push(section(&[format!("<{}|Open the incident>", escaped(page))]));
    }
    let mut context = vec![format!("{} · {}", message.incident.severity.word(), message.id)];
    context.extend(message.notes.iter().cloned());
    let context = escaped(&cut(&context.join(" · "), FACT_CHARS));
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": context}]}));
    json!({ "text": escaped(&title), "blocks": blocks })
}

fn section(lines: &[String]) -> Value {
    json!({"type": "section", "text": {"type": "mrkdwn", "text": lines.join("\n")}})
}

/// The rule is described in the first message of an incident only.
fn is_shown(update: Update, name: &str) -> bool {
    update == Update::Fired || name != "rule"
}

fn mark(message: &Message) -> &'static str {
    match (message.test, message.update, message.incident.severity) {
        (true, ..) => "", // its title says so
        (_, Update::Resolved, _) => "✅ ",
        (_, Update::Died, _) | (_, _, Severity::Critical) => "🔴 ",
        (_, _, Severity::Warning) => "🟠 ",
        (_, _, Severity::Info) => "🔵 ",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// At most so many characters once it is escaped, and no escape cut in two.
fn escaped_within(text: &str, chars: usize) -> String {
    let text = cut(text, chars);
    let whole = escaped(&text);
    if whole.chars().count() <= chars {
        return whole;
    }
    let mut short = String::new();
    let mut left = chars - 1;
    for c in text.chars() {
        let next = escaped(c.encode_utf8(&mut [0; 4]));
        let Some(rest) = left.checked_sub(next.chars().count()) else { break };
        left = rest;
        short += &next;
    }
    short + "…"
}

fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some(_) => text.chars().take(chars - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}
