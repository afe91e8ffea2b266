//! Who gets which message: the rule's list, each receiver's route, the storm cap. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::storm::{Admission, Storm, StormCap};
use super::{Delivery, Means, Receiver};
use skewtrap_core::incident::Incident;
use skewtrap_core::message::{Message, Origin, Update};
use skewtrap_core::rule::Severity;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Which messages a receiver takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Whether it also takes those of rules that name no receiver.
    pub by_default: bool,
    /// At least this bad.
    pub min_severity: Severity,
    /// The rule, the group or the incident's target must carry each of these.
    pub labels: Labels,
    /// Only these updates; all when empty.
    pub updates: Vec<Update>,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            by_default: true,
            min_severity: Severity::Info,
            labels: Labels::default(),
            updates: Vec::new(),
        }
    }
}

impl Route {
    fn takes(&self, incident: &Incident, update: Update) -> bool {
        let carries = |name: &Arc<str>| {
            let own = incident.labels.get(name).or_else(|| incident.group.get(name));
            own.map(ToString::to_string)
                .or_else(|| (&**name == "target").then(|| incident.target.to_string()))
        };
        incident.severity >= self.min_severity
            && (self.updates.is_empty() || self.updates.contains(&update))
            && self.labels.0.iter().all(|(name, value)| carries(name) == Some(value.to_string()))
    }
}

/// Makes deliveries; remembers, per receiver, how much it heard lately.
#[derive(Debug)]
pub struct Planner {
    receivers: Vec<(Arc<str>, Route)>,
    cap: StormCap,
    storms: BTreeMap<Arc<str>, Storm>,
    /// Those that keep an alert until it is resolved.
    keepers: Vec<Arc<str>>,
    /// Complaints that were made.
    complained: BTreeSet<String>,
    origin: Origin,
}

impl Planner {
    /// A planner for these receivers.
    pub fn new(receivers: &[Receiver], cap: StormCap, origin: Origin) -> Self {
        let keepers = receivers.iter().filter(|r| matches!(r.means, Means::Alertmanager { .. }));
        let keepers = keepers.map(|r| r.name.clone()).collect();
        let receivers = receivers.iter().map(|r| (r.name.clone(), r.route.clone())).collect();
        Self { receivers, keepers, cap, storms: BTreeMap::new(), complained: BTreeSet::new(), origin }
    }

    /// An incident that an agent before this one told of: whoever keeps an alert of it hears its end,
    /// however many there are. For people they count as any others.
    pub fn carry_on(&mut self, incident: &Arc<str>) {
        for name in &self.keepers {
            self.storms.entry(name.clone()).or_default().carry_on(incident);
        }
    }

    fn knows(&self, name: &Arc<str>) -> bool {
        self.receivers.iter().any(|(known, _)| known == name)
    }

    /// A sentence about the names of a rule that nobody bears who can be told; once for each rule.
    pub fn complaint(&mut self, rule: &str, named: &[Arc<str>]) -> Option<String> {
        let unknown: Vec<&str> = named.iter().filter(|n| !self.knows(n)).map(|n| &**n).collect();
        if unknown.is_empty() {
            return None;
        }
        let instead = match unknown.len() == named.len() {
            true => "its messages go to the receivers of rules that name none",
            false => "its messages go to the others that it names",
        };
        let complaint = format!(
            "rule {rule} tells {}, which this agent cannot tell: {instead}; a receiver that is new in the configuration, or whose secret was mended, is told after a restart",
            unknown.join(", ")
        );
        self.complained.insert(complaint.clone()).then_some(complaint)
    }

    /// One delivery for each receiver that is to hear of this update. `named` is the rule's own
    /// list (`Rule::notify`); where nobody bears any of its names, it counts as empty: a message to
    /// too many is better than one to nobody.
    pub fn plan(
        &mut self,
        incident: &Incident,
        update: Update,
        named: &[Arc<str>],
        now: Time,
    ) -> Vec<Delivery> {
        let message = Message::of(incident, update, now, &self.origin);
        let is_named = named.iter().any(|name| self.knows(name));
        let chosen = self.receivers.iter().filter(|(name, route)| {
            let candidate = if is_named { named.contains(name) } else { route.by_default };
            candidate && route.takes(incident, update)
        });
        let mut deliveries = Vec::new();
        for (name, _) in chosen {
            let storm = self.storms.entry(name.clone()).or_default();
            let admission = storm.admit(self.cap, &incident.id, now);
            if let Some(message) = admitted(&message, admission, self.cap) {
                deliveries.push(delivery(name, message, now));
            }
        }
        deliveries
    }
}

/// The message as it goes to one receiver; `None` when it is held back.
fn admitted(message: &Message, admission: Admission, cap: StormCap) -> Option<Message> {
    let (held_back, last) = match admission {
        Admission::Hold => return None,
        Admission::Pass { held_back } => (held_back, false),
        Admission::Last { held_back } => (held_back, true),
    };
    let mut message = message.clone();
    if held_back > 0 {
        message
            .notes
            .push(format!("{held_back} incidents before this one were held back: see skewtrap incidents"));
    }
    if last {
        let minutes = cap.per.as_secs().div_ceil(60);
        message.notes.push(format!(
            "{} incidents in {minutes} min: further ones are held back until there are fewer",
            cap.incidents
        ));
    }
    Some(message)
}

/// A delivery that is due at once.
pub fn delivery(receiver: &Arc<str>, message: Message, now: Time) -> Delivery {
    Delivery {
        key: format!("{receiver}/{}", message.id).into(),
        receiver: receiver.clone(),
        created: now,
        due: now,
        attempts: 0,
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::act::notify::Secret;
    use skewtrap_core::message::sample;

    fn receiver(name: &str, route: Route) -> Receiver {
        Receiver { route, ..Receiver::new(name, Means::Stdout { json: true }) }
    }

    fn planner(cap: StormCap) -> Planner {
        let labels = |json| serde_json::from_str(json).expect("labels");
        Planner::new(
            &[
                receiver("all", Route::default()),
                receiver("page", Route { min_severity: Severity::Critical, ..Route::default() }),
                receiver("infra", Route { labels: labels(r#"{"team": "infra"}"#), ..Route::default() }),
                receiver("ends", Route { updates: vec![Update::Resolved], ..Route::default() }),
                receiver("named", Route { by_default: false, ..Route::default() }),
                receiver("here", Route { labels: labels(r#"{"target": "server"}"#), ..Route::default() }),
            ],
            cap,
            Origin::default(),
        )
    }

    fn names(deliveries: &[Delivery]) -> Vec<&str> {
        deliveries.iter().map(|d| &*d.receiver).collect()
    }

    #[test]
    fn severity_labels_updates_and_the_rules_list_choose_the_receivers() {
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut incident = sample(now);
        let mut planner = planner(StormCap::default());
        assert_eq!(names(&planner.plan(&incident, Update::Fired, &[], now)), ["all", "here"]);
        assert_eq!(names(&planner.plan(&incident, Update::Resolved, &[], now)), ["all", "ends", "here"]);
        incident.severity = Severity::Critical;
        incident.labels = serde_json::from_str(r#"{"team": "infra"}"#).expect("labels");
        assert_eq!(
            names(&planner.plan(&incident, Update::Fired, &[], now)),
            ["all", "page", "infra", "here"]
        );
        let named = ["named".into(), "ends".into()];
        assert_eq!(names(&planner.plan(&incident, Update::Fired, &named, now)), ["named"]);
    }

    #[test]
    fn a_rule_whose_receivers_nobody_knows_tells_the_default_ones_and_the_operator_once() {
        let now = Time::from_epoch_s(1_795_492_126.1);
        let (incident, mut planner) = (sample(now), planner(StormCap::default()));
        let nobody = ["new".into()];
        assert_eq!(names(&planner.plan(&incident, Update::Fired, &nobody, now)), ["all", "here"]);
        let complaint = planner.complaint("skew", &nobody).expect("it is said");
        assert!(complaint.starts_with("rule skew tells new, which this agent cannot tell"), "{complaint}");
        assert_eq!(planner.complaint("skew", &nobody), None, "it was said");
        assert!(planner.complaint("other", &nobody).is_some(), "once for each rule");
        let some = ["new".into(), "named".into()];
        assert_eq!(names(&planner.plan(&incident, Update::Captured, &some, now)), ["named"]);
        let complaint = planner.complaint("skew", &some).expect("it is said");
        assert!(complaint.contains("the others that it names"), "{complaint}");
        assert_eq!(planner.complaint("skew", &["named".into()]), None);
    }

    #[test]
    fn the_key_of_a_delivery_is_the_same_however_often_it_is_planned() {
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut planner = planner(StormCap::default());
        let first = planner.plan(&sample(now), Update::Fired, &[], now);
        let again = planner.plan(&sample(now), Update::Fired, &[], now + Duration::from_secs(5));
        assert_eq!(first[0].key, again[0].key);
        assert_eq!(&*first[0].key, "all/20261124T034846Z-dp-load-skew-test:fired");
    }

    #[test]
    fn a_loop_of_captures_that_are_asked_for_is_cut_as_well_though_none_of_them_fired() {
        let mut planner = planner(StormCap { incidents: 2, per: Duration::from_secs(600) });
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut told = Vec::new();
        for i in 0..50 {
            let mut incident = sample(now);
            incident.id = format!("20261124T0400{i:02}Z-by-hand").into();
            for update in [Update::Captured, Update::Verdict, Update::Resolved] {
                told.extend(planner.plan(&incident, update, &["all".into()], now));
            }
        }
        let ids: Vec<&str> = told.iter().map(|d| &*d.message.incident.id).collect();
        assert_eq!(ids.len(), 6, "{ids:?}");
        assert!(ids.iter().all(|id| id.starts_with("20261124T04000")), "{ids:?}");
    }

    #[test]
    fn after_a_restart_an_alertmanager_hears_the_end_of_every_incident_and_people_of_a_few() {
        let url = Secret::new("http://alertmanager:9093");
        let am = Receiver::new("am", Means::Alertmanager { url, bearer: None });
        let cap = StormCap { incidents: 2, per: Duration::from_secs(600) };
        let mut planner = Planner::new(&[am, receiver("all", Route::default())], cap, Origin::default());
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut told = Vec::new();
        for i in 0..50 {
            let mut incident = sample(now);
            incident.id = format!("20261124T0400{i:02}Z-skew").into();
            planner.carry_on(&incident.id);
            told.extend(planner.plan(&incident, Update::Resolved, &[], now));
        }
        let count = |name: &str| told.iter().filter(|d| &*d.receiver == name).count();
        assert_eq!((count("am"), count("all")), (50, 2));
    }

    #[test]
    fn in_a_storm_the_last_message_says_so_and_the_first_after_it_what_was_held_back() {
        let mut planner = planner(StormCap { incidents: 1, per: Duration::from_secs(600) });
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut second = sample(now);
        second.id = "20261124T034900Z-other".into();
        let first = planner.plan(&sample(now), Update::Fired, &[], now);
        assert_eq!(
            first[0].message.notes,
            ["1 incidents in 10 min: further ones are held back until there are fewer"]
        );
        assert!(planner.plan(&second, Update::Fired, &[], now).is_empty());
        let mut third = sample(now);
        third.id = "20261124T040000Z-third".into();
        let later = planner.plan(&third, Update::Fired, &[], now + Duration::from_secs(600));
        assert_eq!(
            later[0].message.notes[0],
            "1 incidents before this one were held back: see skewtrap incidents"
        );
    }
}
