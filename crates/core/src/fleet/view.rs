//! The view over the index of a pool: where trouble comes back, and what was captured at what cost.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::IndexLine;
use super::lease::LeaseState;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;

/// Incidents that have something in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// What they have in common.
    pub name: String,
    /// How many there are.
    pub incidents: u32,
    /// Of how many of them something was captured.
    pub captured: u32,
    /// Seconds of serving that their windows cost.
    pub stall_s: f64,
    /// Bytes that their windows captured.
    pub bytes: u64,
    /// When the last of them fired.
    pub last_at: Option<Time>,
}

impl Tally {
    fn add(&mut self, line: &IndexLine) {
        self.incidents += 1;
        self.captured += u32::from(line.windows > 0);
        self.stall_s += line.stall_s;
        self.bytes = self.bytes.saturating_add(line.bytes);
        self.last_at = self.last_at.max(Some(line.fired_at));
    }
}

/// A rank of a host that was blamed more than once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RepeatOffender {
    pub host: String,
    /// The server on it.
    pub target: String,
    /// The rank: one GPU of the host.
    pub rank: String,
    /// The rules that blamed it.
    pub rules: Vec<String>,
    /// Its incidents.
    #[serde(flatten)]
    pub tally: Tally,
}

/// What the index of a pool says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FleetView {
    /// All incidents together.
    pub all: Tally,
    /// Ranks that were blamed twice and more, the most often first.
    pub repeat_offenders: Vec<RepeatOffender>,
    /// By host, the most incidents first; so are all below.
    pub hosts: Vec<Tally>,
    /// By rule.
    pub rules: Vec<Tally>,
    /// By the kind of the cause.
    pub causes: Vec<Tally>,
    /// By the kind of the verdict of those that were compared.
    pub verdicts: Vec<Tally>,
    /// By the reason why no window opened.
    pub refusals: Vec<Tally>,
    /// What the lease of the pool says: the window that is open, and those of the last day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseState>,
}

impl FleetView {
    /// The view over these lines. Of two lines of one incident the last one counts.
    pub fn new(lines: impl IntoIterator<Item = IndexLine>) -> Self {
        let by_incident: BTreeMap<_, IndexLine> =
            lines.into_iter().map(|l| ((l.host.clone(), l.incident.clone()), l)).collect();
        let lines: Vec<&IndexLine> = by_incident.values().collect();
        let mut all = Tally { name: "all".into(), ..Tally::default() };
        lines.iter().for_each(|line| all.add(line));
        let by = |of: &dyn Fn(&IndexLine) -> Option<String>| {
            let mut found: BTreeMap<String, Tally> = BTreeMap::new();
            for line in &lines {
                let Some(name) = of(line) else { continue };
                let tally = found.entry(name.clone()).or_insert(Tally { name, ..Tally::default() });
                tally.add(line);
            }
            let mut tallies: Vec<Tally> = found.into_values().collect();
            tallies.sort_by(|a, b| b.incidents.cmp(&a.incidents).then_with(|| a.name.cmp(&b.name)));
            tallies
        };
        Self {
            repeat_offenders: repeat_offenders(&lines),
            hosts: by(&|l| Some(l.host.to_string())),
            rules: by(&|l| Some(l.rule.to_string())),
            causes: by(&|l| Some(l.cause.map_or("unknown", |c| c.word()).to_owned())),
            verdicts: by(&|l| l.verdict.map(|v| v.name().to_owned())),
            refusals: by(&|l| l.refused.clone()),
            lease: None,
            all,
        }
    }
}

fn repeat_offenders(lines: &[&IndexLine]) -> Vec<RepeatOffender> {
    let mut found: BTreeMap<(&str, &str, &str), (Tally, BTreeSet<&str>)> = BTreeMap::new();
    // A window that somebody asked for, or a server's death, is of no rank.
    let nobody = rank_name(&Labels::default());
    for line in lines.iter().filter(|line| line.rank != nobody) {
        let (tally, rules) = found.entry((&line.host, &line.target, &line.rank)).or_default();
        tally.add(line);
        rules.insert(&line.rule);
    }
    let mut offenders: Vec<RepeatOffender> = found
        .into_iter()
        .filter(|(_, (tally, _))| tally.incidents > 1)
        .map(|((host, target, rank), (tally, rules))| RepeatOffender {
            host: host.to_owned(),
            target: target.to_owned(),
            rank: rank.to_owned(),
            rules: rules.into_iter().map(str::to_owned).collect(),
            tally: Tally { name: format!("{host} {target} {rank}"), ..tally },
        })
        .collect();
    offenders.sort_by(|a, b| {
        b.tally.incidents.cmp(&a.tally.incidents).then_with(|| a.tally.name.cmp(&b.tally.name))
    });
    offenders
}
