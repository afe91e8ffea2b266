//! The terminal of `skewtrap top`: keys in, pictures out, and a thread that asks the agent.

use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::super::agent_client::AgentArgs;
use super::screen::{Screen, draw};
use skewtrap_core::status::{History, Status};

/// How often the agent is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How often keys are looked for: an answer is shown no later than that.
const KEYS: Duration = Duration::from_millis(100);

/// What the agent answered.
type Answer = anyhow::Result<(Status, Vec<History>)>;

pub fn show(agent: &AgentArgs) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() {
        anyhow::bail!(super::super::wrong("`top` needs a terminal; `skewtrap status` prints the same once"));
    }
    // An agent that is not there is an error on the plain terminal, with its hint.
    let first = ask(agent)?;
    let (answers, answered) = mpsc::sync_channel::<Answer>(1);
    let asking = agent.clone();
    // It ends with the process, or with the channel.
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(EVERY);
            if answers.send(ask(&asking)).is_err() {
                return;
            }
        }
    });
    let mut screen = Screen::new(first);
    let mut terminal = ratatui::try_init()?;
    let shown = loop {
        if let Ok(answer) = answered.try_recv() {
            screen.take(answer);
        }
        if let Err(error) = terminal.draw(|frame| draw(frame, &mut screen)) {
            break Err(error.into());
        }
        match wants_to_end(&mut screen) {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(error) => break Err(error.into()),
        }
    };
    ratatui::restore();
    shown
}

fn ask(agent: &AgentArgs) -> Answer {
    Ok((agent.get("status")?, agent.get("history?signal=load")?))
}

/// Looks for a key; whether it ends the program.
fn wants_to_end(screen: &mut Screen) -> std::io::Result<bool> {
    if !event::poll(KEYS)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    if key.kind != KeyEventKind::Press {
        return Ok(false);
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(true),
        KeyCode::Down | KeyCode::Char('j') => screen.scroll_by(1),
        KeyCode::Up | KeyCode::Char('k') => screen.scroll_by(-1),
        KeyCode::PageDown => screen.scroll_by(10),
        KeyCode::PageUp => screen.scroll_by(-10),
        _ => {}
    }
    Ok(false)
}
