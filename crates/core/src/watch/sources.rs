//! How the configured sources are, for the status: also those that never gave anything.

use super::Watch;
use crate::capture::facts::ServerKind;
use crate::signal::observation::Problem;
use crate::signal::sample::{Source, TargetId};
use crate::signal::source::WatchedSource;
use crate::status::SourceStatus;
use skewtrap_trace::time::Time;

/// Each with its server, in the order of the configuration.
pub(super) fn standing(watch: &Watch, now: Time) -> Vec<(TargetId, SourceStatus)> {
    let needed = watch.sources.iter().filter(|source| !is_foreign_to_its_engine(watch, source));
    needed.map(|source| (source.target, status_of(watch, source, now))).collect()
}

/// Loads are asked of every server; that vLLM has none is nothing to mend.
fn is_foreign_to_its_engine(watch: &Watch, source: &WatchedSource) -> bool {
    let server = watch.facts(source.target).and_then(|f| f.server.as_ref());
    source.kind == Source::Loads
        && server.is_some_and(|s| s.engine == ServerKind::Vllm)
        && matches!(watch.intake.problem_of(source.id), Some(Problem::NotFound { .. }))
}

fn status_of(watch: &Watch, source: &WatchedSource, now: Time) -> SourceStatus {
    let (given, problem) = (watch.intake.stats_of(source.id), watch.intake.problem_of(source.id));
    SourceStatus {
        kind: source.kind.word().into(),
        place: source.name.to_string(),
        state: given.state(problem, now),
        problem: problem.map(ToString::to_string),
        last: given.last,
        lag_s: given.lag.map(|lag| lag.as_secs_f64()),
        samples: given.samples,
        dropped: given.dropped,
    }
}
