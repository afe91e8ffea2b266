//! `skewtrap fleet`: the incidents of a pool, from the store that its agents share.

use std::path::PathBuf;
#[cfg(not(feature = "fleet"))]
use std::process::ExitCode;

use clap::Args;

use super::Format;

/// Shows the incidents of all agents of a pool, from their store: by host, rank, rule and cause
#[cfg_attr(
    not(feature = "fleet"),
    doc = "(not in this build: `cargo install --path . --features fleet`, or a package)"
)]
#[derive(Debug, Args)]
#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
pub struct FleetArgs {
    /// The store, as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER [default:
    /// that of the configuration]
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// The pool [default: that of the configuration, else `default`]
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// The configuration that names store and pool [default: SKEWTRAP_CONFIG, else skewtrap.yaml here]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only incidents of this day (UTC) and later, as 2026-11-24
    #[arg(long, value_name = "DAY")]
    since: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Says that it was built without it.
///
/// # Errors
/// Always.
#[cfg(not(feature = "fleet"))]
pub fn run(_: &FleetArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!(super::wrong(
        "this binary was built without stores; rebuild with `--features fleet` or install a package"
    ))
}

#[cfg(feature = "fleet")]
pub use self::view::run;

#[cfg(feature = "fleet")]
mod view {
    use std::fmt::Write as _;
    use std::process::ExitCode;

    use super::super::{config_path, wrong};
    use super::FleetArgs;
    use crate::agent::pool;
    use crate::agent::upload::destination;
    use crate::config::store::{DEFAULT_POOL, StoreConfig};
    use crate::observe::configuration;
    use skewtrap_core::fleet::lease::ReportedEnd;
    use skewtrap_core::fleet::{FleetView, Tally};
    use skewtrap_core::message::{bytes, counted, seconds, utc};
    use skewtrap_fleet::index;

    /// Prints the view.
    ///
    /// # Errors
    /// No store is named, or it cannot be read.
    pub fn run(args: &FleetArgs) -> anyhow::Result<ExitCode> {
        let config = store_of(args)?;
        let to = destination(&config).map_err(|e| wrong(&format!("{e:#}")))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let read = runtime.block_on(index::read(&to.store, &config.pool, args.since.as_deref()))?;
        let mut lease = pool::lease_of(&config, &to, &to.host);
        let lease = runtime.block_on(lease.latest())?.map(|latest| latest.state);
        let view = FleetView { lease, ..FleetView::new(read.lines) };
        match args.format.is_json() {
            true => outln!("{}", serde_json::to_string_pretty(&view)?)?,
            false => out!("{}", text_of(&view, to.store.address(), &config.pool))?,
        }
        if !read.unreadable.is_empty() {
            let (count, first) = (counted(read.unreadable.len(), "object"), &read.unreadable[0]);
            anstream::eprintln!("left out {count} of the index that this version cannot read, {first} first");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The store that is named on the command line, or in the configuration.
    fn store_of(args: &FleetArgs) -> anyhow::Result<StoreConfig> {
        let path = if args.store.is_some() && args.config.is_none() {
            None
        } else {
            config_path::of(args.config.as_deref())
        };
        let configured = match path {
            None => None,
            Some(path) => {
                let loaded = configuration::load(Some(&path)).map_err(|why| wrong(&why))?;
                let config = loaded.config.ok_or_else(|| {
                    wrong(&format!("{} has errors: `skewtrap check` tells them", path.display()))
                })?;
                config.store
            }
        };
        let pool = args.pool.clone().or_else(|| configured.as_ref().map(|c| c.pool.clone()));
        let lease = configured.as_ref().and_then(|c| c.lease.clone());
        let address = args.store.clone().or_else(|| configured.map(|c| c.address));
        let address = address
            .ok_or_else(|| wrong("no store is named: give --store, or `store:` in the configuration"))?;
        let pool = pool.unwrap_or_else(|| DEFAULT_POOL.to_owned());
        Ok(StoreConfig { lease, ..StoreConfig::of(&address, &pool) })
    }

    /// The most lines of each part.
    const MOST: usize = 12;

    fn text_of(view: &FleetView, address: &str, pool: &str) -> String {
        let mut text = String::new();
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        if view.all.incidents == 0 {
            line(format!("no incident of pool {pool} in {address}"));
            lease_of(view).into_iter().for_each(&mut line);
            return text;
        }
        line(format!("pool {pool} in {address}: {}", told(&view.all)));
        line(String::new());
        match view.repeat_offenders.is_empty() {
            true => line("no rank was blamed twice".into()),
            false => line("blamed again and again:".into()),
        }
        for o in view.repeat_offenders.iter().take(MOST) {
            line(format!(
                "  {} {} on {}: {} ({})",
                o.target,
                o.rank,
                o.host,
                told(&o.tally),
                o.rules.join(", ")
            ));
        }
        lease_of(view).into_iter().for_each(&mut line);
        let parts = [
            ("by host", &view.hosts),
            ("by rule", &view.rules),
            ("by cause", &view.causes),
            ("by verdict", &view.verdicts),
            ("not captured, because of", &view.refusals),
        ];
        for (title, tallies) in parts.into_iter().filter(|(_, t)| !t.is_empty()) {
            line(String::new());
            line(format!("{title}:"));
            tallies.iter().take(MOST).for_each(|t| line(format!("  {}: {}", t.name, told(t))));
            if tallies.len() > MOST {
                line(format!("  and {} more: --json has them all", tallies.len() - MOST));
            }
        }
        text
    }

    /// What the lease of the pool says: who has a window open, and which windows may still be.
    fn lease_of(view: &FleetView) -> Vec<String> {
        let Some(lease) = &view.lease else { return Vec::new() };
        let open = lease.open.as_ref().map(|open| match &open.unproven {
            None => format!("open now: a window on {}, by the agent on {}", open.target, open.host),
            Some(why) => {
                format!("may be open: a window on {}, by the agent on {}: {why}", open.target, open.host)
            }
        });
        let unknown = lease.windows.iter().filter(|w| w.end == ReportedEnd::Unknown);
        let unknown = unknown.map(|w| {
            format!(
                "nobody has said that the window of {} on {} is closed, by the agent on {}",
                utc(w.at),
                w.target,
                w.host
            )
        });
        open.into_iter().chain(unknown).collect()
    }

    fn told(tally: &Tally) -> String {
        let last = tally.last_at.map(|at| format!(", the last at {}", utc(at))).unwrap_or_default();
        let captured = match tally.captured {
            0 => "none captured".to_owned(),
            n => format!(
                "{n} captured for {} of stalled serving and {}",
                seconds(tally.stall_s),
                bytes(tally.bytes)
            ),
        };
        format!("{}, {captured}{last}", counted(tally.incidents as usize, "incident"))
    }
}
