//! `skewtrap notify-test`: sends a sample message, to test a receiver before anything happens.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{config_path, wrong};
use crate::act::notify::Receiver;
use crate::act::notify::send::send;
use crate::agent::plan;
use crate::agent::receivers::ready;
use crate::clock::wall_time;
use crate::http::client::client;
use crate::observe::configuration;
use skewtrap_core::message::{Message, Origin, Update, sample};

/// Sends a sample message to a receiver of the configuration and says what it answered
#[derive(Debug, Args)]
pub struct NotifyTestArgs {
    /// The receiver's name
    receiver: String,
    /// The configuration [default: SKEWTRAP_CONFIG, else skewtrap.yaml here]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Sends the sample. Exit status 1 when the receiver did not take it.
///
/// # Errors
/// The configuration cannot be used, or has no such receiver.
pub fn run(args: &NotifyTestArgs) -> anyhow::Result<ExitCode> {
    let (receiver, page) = receiver_of(args)?;
    let mut message = Message::of(&sample(wall_time()), Update::Verdict, wall_time(), &origin(page));
    message.test = true;
    message.title = format!("[test] {}", message.title);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime
        .block_on(async { Ok::<_, anyhow::Error>(send(&client(None)?, &receiver, &message).await) })?
    {
        Ok(()) => {
            eprintln!("{} ({}) took the sample {}", receiver.name, receiver.means.word(), message.id);
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            eprintln!("{} ({}) did not take the sample: {failure}", receiver.name, receiver.means.word());
            Ok(ExitCode::FAILURE)
        }
    }
}

fn receiver_of(args: &NotifyTestArgs) -> anyhow::Result<(Receiver, Option<String>)> {
    let path = config_path::of(args.config.as_deref()).unwrap_or_else(|| "skewtrap.yaml".into());
    let name = path.display().to_string();
    let text = std::fs::read_to_string(&path).map_err(|e| {
        wrong(&format!("cannot read {name}: {e}; name the configuration of the agent with --config FILE"))
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let loaded = configuration::load_text(&name, &text, folder).0;
    let Some(config) = loaded.config else {
        return Err(wrong(&format!("{name} cannot be used; `skewtrap check {name}` says what is wrong")));
    };
    let Some(wanted) = config.receivers.iter().find(|r| *r.name == *args.receiver) else {
        let known: Vec<&str> = config.receivers.iter().map(|r| &*r.name).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(wrong(&format!("{name} has no receiver `{}`; it has {known}", args.receiver)));
    };
    let (ready, unusable) = ready(std::slice::from_ref(wanted));
    let receiver = ready.into_iter().next();
    let page = config.external_url.unwrap_or_else(|| plan::page(&config.listen, &plan::host()));
    let receiver = receiver.map(|receiver| (receiver, Some(page)));
    receiver.ok_or_else(|| {
        let why = unusable.first().map_or_else(|| "no receiver".into(), ToString::to_string);
        wrong(&why)
    })
}

fn origin(page: Option<String>) -> Origin {
    Origin { host: plan::host(), page, ..Origin::default() }
}
