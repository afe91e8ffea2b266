//! The leader's part of a window whose ranks write on several nodes: says in the store that it is open, and fetches
//! what the agents of the nodes brought.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::agent::upload::LazyDestination;
use crate::clock::wall_time;
use skewtrap_core::fleet::gather::{
    Gathered, NODE_EVERY, NodePresence, NodeReport, WindowManifest, manifest_object, nodes_folder,
    reports_folder,
};
use skewtrap_core::fleet::lease::clock_object;
use skewtrap_fleet::upload::Destination;
use skewtrap_trace::rank::Rank;

/// Between two looks at what the nodes have reported.
const EVERY: Duration = Duration::from_secs(1);
/// Who the nodes are is asked for so long: many pools have none, and their verdict waits for this.
const WHO_LIMIT: Duration = Duration::from_secs(15);
/// How long the store may take for the summaries of ranks that have come.
const SUMMARY_LIMIT: Duration = Duration::from_secs(10);
/// What saying that a window is open may take.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// Says that a window is open. It costs the window nothing: nobody waits for it.
pub(super) async fn announce(to: &LazyDestination, manifest: &WindowManifest) {
    let said = async {
        let to = to.get().await?;
        let text = serde_json::to_vec_pretty(manifest)?;
        to.store.put(&manifest_object(&to.pool, &manifest.mark), text.into()).await?;
        anyhow::Ok(())
    };
    match tokio::time::timeout(STORE_LIMIT, said).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("the agents of other nodes do not hear of this window: {error:#}"),
        Err(_) => warn!("the agents of other nodes do not hear of this window: the store does not answer"),
    }
}

/// Waits for the ranks that are not `here` until all have come or their time is over, and writes their summaries into
/// `folder`. `None` where the pool has no node agent.
///
/// # Errors
/// The store did not answer all the time, or the folder cannot be used.
pub async fn gather(
    to: &Destination,
    manifest: &WindowManifest,
    here: &[Rank],
    folder: &Path,
    until: Instant,
) -> anyhow::Result<Option<Gathered>> {
    let nodes = answered(until.min(Instant::now() + WHO_LIMIT), || nodes_of(to)).await?;
    if !nodes.found && nodes.remarks.is_empty() {
        return Ok(None);
    }
    // Nobody who could be asked is waited for in vain.
    let until = if nodes.found { until } else { Instant::now() };
    let reports = reports_folder(&to.pool, &manifest.mark);
    let mut read = Vec::new();
    let (mut gathered, trouble) = loop {
        // One answer that does not come costs this look, not what the next one finds.
        let trouble = match reports_of(to, &reports).await {
            Ok(latest) => {
                read = latest;
                None
            }
            Err(error) => Some(error),
        };
        let gathered = Gathered::new(manifest, here, &read);
        if gathered.is_complete() || Instant::now() >= until {
            break (gathered, trouble);
        }
        tokio::time::sleep(EVERY).await;
    };
    gathered.remarks.extend(
        trouble.map(|error| {
            format!("what the agents of other nodes reported last could not be read ({error:#})")
        }),
    );
    gathered.remarks.extend(nodes.remarks);
    let (mut files, mut lost) = (Vec::new(), Vec::new());
    let until = until.max(Instant::now() + SUMMARY_LIMIT);
    for (rank, object) in gathered.summaries() {
        // Where it comes from is named by another host: it is fetched only from this window's own folder.
        let own =
            object.starts_with(&format!("{}/windows/{}/", to.pool, manifest.mark)) && !object.contains("..");
        let bytes = if own { answered(until, || to.store.get(object)).await } else { Ok(None) };
        match bytes {
            Ok(Some(bytes)) => files.push((format!("{}.summary.json", word_of(*rank)), bytes)),
            Ok(None) => {
                lost.push(format!("the summary of {rank} that its node reported is not in the store"))
            }
            Err(error) => lost.push(format!("the summary of {rank} could not be fetched ({error})")),
        }
    }
    gathered.remarks.extend(lost);
    let folder = folder.to_owned();
    let written = crate::world::blocking(move || -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        files.iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
    });
    written.await??;
    info!(window = %manifest.mark, "summaries of {} ranks came from {} nodes", gathered.summaries().count(), gathered.hosts.len());
    Ok(Some(gathered))
}

/// Asks until the store answers, or until then.
async fn answered<T, E, F>(until: Instant, ask: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    loop {
        match ask().await {
            Err(_) if Instant::now() < until => tokio::time::sleep(EVERY).await,
            answer => return answer,
        }
    }
}

async fn reports_of(to: &Destination, folder: &str) -> anyhow::Result<Vec<NodeReport>> {
    let mut read = Vec::new();
    for name in to.store.list(folder).await? {
        let Some(bytes) = to.store.get(&name).await? else { continue };
        match NodeReport::read(&bytes) {
            Ok(report) => read.push(report),
            Err(why) => warn!("what a node agent reports cannot be read: {name}: {why}"),
        }
    }
    Ok(read)
}

fn word_of(rank: Rank) -> String {
    skewtrap_trace::rank::RankId::Rank(rank).word()
}

/// What the node agents of a pool say of themselves.
#[derive(Default)]
struct Nodes {
    /// Whether one has said lately that it is there, and can be asked.
    found: bool,
    /// Sentences about those that cannot be asked.
    remarks: Vec<String>,
}

async fn nodes_of(to: &Destination) -> anyhow::Result<Nodes> {
    let mut nodes = Nodes::default();
    let names = to.store.list(&nodes_folder(&to.pool)).await?;
    if names.is_empty() {
        return Ok(nodes);
    }
    let own = clock_object(&to.pool, &to.host);
    let clock =
        to.store.stamp(&own, b"written to measure the clock of the store\n".to_vec(), wall_time).await?;
    for name in names {
        let Some((bytes, stamped_at)) = to.store.get_stamped(&name).await? else { continue };
        if clock.age_at_most(stamped_at, wall_time()) > NODE_EVERY * 3 {
            continue;
        }
        let Ok(presence) = serde_json::from_slice::<NodePresence>(&bytes) else { continue };
        match presence.complaint(env!("CARGO_PKG_VERSION")) {
            Some(remark) => nodes.remarks.push(remark),
            None => nodes.found = true,
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_once_is_asked_again_as_long_as_ranks_are_waited_for() {
        let asked = Cell::new(0);
        let third = || {
            asked.set(asked.get() + 1);
            std::future::ready(if asked.get() < 3 { Err("no answer") } else { Ok(asked.get()) })
        };
        assert_eq!(answered(Instant::now() + Duration::from_secs(120), third).await, Ok(3));
        let never = || std::future::ready(Err::<(), _>("no answer"));
        let begun = Instant::now();
        assert_eq!(answered(begun + Duration::from_secs(120), never).await, Err("no answer"));
        assert_eq!(begun.elapsed(), Duration::from_secs(120));
    }
}
