//! Decides who gets which message: the rule's list, each receiver's route, the storm cap. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::storm::{Admission, Storm, StormCap};
use super::{Delivery, Receiver, Transport};
use skewtrap_core::incident::{Incident, Raised};
use skewtrap_core::message::{Message, Origin, Update, counted};
use skewtrap_core::rule::Severity;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// A raise of so short a time ago is told now.
const OF_NOW: Duration = Duration::from_secs(60);

/// Which messages a receiver takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Whether it also takes messages of rules that name no receiver.
    pub by_default: bool,
    /// The lowest severity it takes.
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
        let value_of = |name: &Arc<str>| {
            let own = incident.labels.get(name).or_else(|| incident.group.get(name));
            own.map(ToString::to_string)
                .or_else(|| (&**name == "target").then(|| incident.target.to_string()))
        };
        incident.severity >= self.min_severity
            && (self.updates.is_empty() || self.updates.iter().any(|wanted| update.tells(*wanted, incident)))
            && self.labels.0.iter().all(|(name, value)| value_of(name) == Some(value.to_string()))
    }
}

/// Makes deliveries, and remembers for the storm cap what each receiver was notified of lately.
#[derive(Debug)]
pub struct Planner {
    receivers: Vec<(Arc<str>, Route)>,
    cap: StormCap,
    storms: BTreeMap<Arc<str>, Storm>,
    /// Receivers that keep an alert open until it is resolved.
    keep_alerts: Vec<Arc<str>>,
    /// Open incidents of an earlier run of the agent: whom that told is known of receivers that keep alerts only.
    taken_over: BTreeSet<Arc<str>>,
    /// Warnings that were given.
    warned: BTreeSet<String>,
    origin: Origin,
}

impl Planner {
    /// A planner for these receivers.
    pub fn new(receivers: &[Receiver], cap: StormCap, origin: Origin) -> Self {
        let keep_alerts = receivers.iter().filter(|r| matches!(r.means, Transport::Alertmanager { .. }));
        let keep_alerts = keep_alerts.map(|r| r.name.clone()).collect();
        let receivers = receivers.iter().map(|r| (r.name.clone(), r.route.clone())).collect();
        Self {
            receivers,
            keep_alerts,
            cap,
            storms: BTreeMap::new(),
            taken_over: BTreeSet::new(),
            warned: BTreeSet::new(),
            origin,
        }
    }

    /// From now on messages lead to this page, or say why to none.
    pub fn set_page(&mut self, page: Result<String, String>) {
        (self.origin.page, self.origin.no_page) = match page {
            Ok(page) => (Some(page), None),
            Err(why) => (None, Some(why)),
        };
    }

    /// Takes over an incident that an earlier run of the agent announced: receivers that keep an alert
    /// open get its end, however many there are. For all others the storm cap counts it as usual.
    pub fn take_over(&mut self, incident: &Arc<str>) {
        for name in &self.keep_alerts {
            self.storms.entry(name.clone()).or_default().mark_announced(incident);
        }
        self.taken_over.insert(incident.clone());
    }

    fn knows(&self, name: &Arc<str>) -> bool {
        self.receivers.iter().any(|(known, _)| known == name)
    }

    /// A warning about receivers that a rule names and that do not exist or cannot be used. It is given
    /// once for each rule.
    pub fn unknown_receivers(&mut self, rule: &str, named: &[Arc<str>]) -> Option<String> {
        let unknown: Vec<&str> = named.iter().filter(|n| !self.knows(n)).map(|n| &**n).collect();
        if unknown.is_empty() {
            return None;
        }
        let instead = match unknown.len() == named.len() {
            true => "its messages go to the receivers of rules that name none",
            false => "its messages go to the others that it names",
        };
        let warning = format!(
            "rule {rule} names receiver {}, which this agent cannot reach: {instead}; a receiver that is new in the configuration, or whose secret was corrected, gets messages after a restart",
            unknown.join(", ")
        );
        self.warned.insert(warning.clone()).then_some(warning)
    }

    /// One delivery for each receiver of this update. `named` is the rule's own list (`Rule::notify`).
    /// Where no receiver has any of its names, it counts as empty: a message to too many is better than
    /// one to nobody.
    pub fn plan(
        &mut self,
        incident: &Incident,
        update: Update,
        named: &[Arc<str>],
        now: Time,
    ) -> Vec<Delivery> {
        self.planned(incident, update, named, now, false)
    }

    /// The same for an update after the three messages of an incident: only for receivers that renew
    /// what they were sent before, instead of telling people once more.
    pub fn plan_edits(
        &mut self,
        incident: &Incident,
        update: Update,
        named: &[Arc<str>],
        now: Time,
    ) -> Vec<Delivery> {
        self.planned(incident, update, named, now, true)
    }

    fn planned(
        &mut self,
        incident: &Incident,
        update: Update,
        named: &[Arc<str>],
        now: Time,
        only_edits: bool,
    ) -> Vec<Delivery> {
        let message = Message::of(incident, update, now, &self.origin);
        let is_named = named.iter().any(|name| self.knows(name));
        let chosen = self.receivers.iter().filter(|(name, route)| {
            let was_told = self.storms.get(name).is_some_and(|storm| storm.has_announced(&incident.id));
            // Another rule, of other receivers, may have taken it over since.
            let is_its_end = update == Update::Resolved && was_told;
            let is_candidate = if is_named { named.contains(name) } else { route.by_default };
            let can_edit = self.keep_alerts.contains(name);
            // A window that somebody asked for is nothing to be alerted of; asked for by an alert it would
            // answer itself.
            let is_alert = !can_edit || !incident.is_by_hand();
            // It was not grave enough for this one before, or was told by a rule of other receivers. What was
            // told before a restart is not known: then only a raise of this moment is news.
            let begins_here = || {
                let is_known = !self.taken_over.contains(&incident.id);
                let is_too_mild = |r: &Raised| r.from < route.min_severity && now.since(r.at) < OF_NOW;
                update == Update::Fired && !was_told && (is_known || incident.raised.iter().any(is_too_mild))
            };
            (is_candidate || is_its_end)
                && is_alert
                && route.takes(incident, update)
                && (!only_edits || can_edit || begins_here())
        });
        let chosen: Vec<Arc<str>> = chosen.map(|(name, _)| name.clone()).collect();
        if update == Update::Resolved {
            self.taken_over.remove(&incident.id);
        }
        let mut deliveries = Vec::new();
        for name in chosen {
            let storm = self.storms.entry(name.clone()).or_default();
            let admission = storm.admit(self.cap, &incident.id, now);
            if let Some(message) = admitted(&message, admission, self.cap) {
                deliveries.push(delivery(&name, message, now));
            }
        }
        deliveries
    }
}

/// The message for one receiver, with what the storm cap adds; `None` when it is held back.
fn admitted(message: &Message, admission: Admission, cap: StormCap) -> Option<Message> {
    let (held_back, last) = match admission {
        Admission::Hold => return None,
        Admission::Pass { held_back } => (held_back, false),
        Admission::Last { held_back } => (held_back, true),
    };
    let mut message = message.clone();
    if held_back > 0 {
        message.notes.push(match held_back {
            1 => "1 incident before this one was held back: see skewtrap incidents".to_owned(),
            n => format!("{n} incidents before this one were held back: see skewtrap incidents"),
        });
    }
    if last {
        let minutes = cap.per.as_secs().div_ceil(60);
        message.notes.push(format!(
            "{} in {minutes} min: further ones are held back until there are fewer",
            counted(cap.incidents as usize, "incident")
        ));
    }
    Some(message)
}

/// A delivery that is due now.
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
    use crate::http::Secret;
    use skewtrap_core::capture::refusal::Reason;
    use skewtrap_core::incident::{BY_HAND, CaptureOutcome, Refused};
    use skewtrap_core::message::sample;

    fn receiver(name: &str, route: Route) -> Receiver {
        Receiver { route, ..Receiver::new(name, Transport::Stdout { json: true }) }
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
        let warning = planner.unknown_receivers("skew", &nobody).expect("it is said");
        assert!(
            warning.starts_with("rule skew names receiver new, which this agent cannot reach"),
            "{warning}"
        );
        assert_eq!(planner.unknown_receivers("skew", &nobody), None, "it was said");
        assert!(planner.unknown_receivers("other", &nobody).is_some(), "once for each rule");
        let some = ["new".into(), "named".into()];
        assert_eq!(names(&planner.plan(&incident, Update::Captured, &some, now)), ["named"]);
        let warning = planner.unknown_receivers("skew", &some).expect("it is said");
        assert!(warning.contains("the others that it names"), "{warning}");
        assert_eq!(planner.unknown_receivers("skew", &["named".into()]), None);
    }

    #[test]
    fn a_receiver_hears_what_it_asked_for_in_whichever_message_it_stands() {
        let now = Time::from_epoch_s(1_795_492_126.1);
        let of = |wanted| Route { updates: vec![wanted], ..Route::default() };
        let receivers = [receiver("files", of(Update::Captured)), receiver("refusals", of(Update::Refused))];
        let mut planner = Planner::new(&receivers, StormCap::default(), Origin::default());
        let mut incident = sample(now);
        assert_eq!(names(&planner.plan(&incident, Update::Verdict, &[], now)), ["files"]);
        assert!(planner.plan(&incident, Update::Fired, &[], now).is_empty());
        let (reason, why) = (Reason::Cooldown, "it cools down".into());
        incident.capture = CaptureOutcome::Refused(Refused { reason, why });
        assert_eq!(names(&planner.plan(&incident, Update::Fired, &[], now)), ["refusals"]);
    }

    #[test]
    fn what_comes_after_the_three_messages_only_renews_alerts() {
        let url = Secret::new("http://alertmanager:9093");
        let am = Receiver::new("am", Transport::Alertmanager { url, bearer: None });
        let receivers = [am, receiver("all", Route::default())];
        let mut planner = Planner::new(&receivers, StormCap::default(), Origin::default());
        let now = Time::from_epoch_s(1_795_492_126.1);
        assert_eq!(names(&planner.plan_edits(&sample(now), Update::Captured, &[], now)), ["am"]);
    }

    #[test]
    fn whoever_was_told_of_an_incident_is_told_its_end_though_a_rule_of_other_receivers_took_it_over() {
        let url = Secret::new("http://alertmanager:9093");
        let am = Receiver::new("am", Transport::Alertmanager { url, bearer: None });
        let own = Receiver { route: Route { by_default: false, ..Route::default() }, ..am };
        let receivers = [own, receiver("all", Route::default())];
        let now = Time::from_epoch_s(1_795_492_126.1);
        let (incident, own) = (sample(now), ["am".into()]);
        let mut planner = Planner::new(&receivers, StormCap::default(), Origin::default());
        assert_eq!(names(&planner.plan(&incident, Update::Fired, &own, now)), ["am"]);
        assert_eq!(names(&planner.plan(&incident, Update::Verdict, &[], now)), ["all"]);
        assert_eq!(names(&planner.plan(&incident, Update::Resolved, &[], now)), ["am", "all"]);
        // Whom the rule that takes it over tells, was told nothing yet.
        let mut planner = Planner::new(&receivers, StormCap::default(), Origin::default());
        planner.plan(&incident, Update::Fired, &own, now);
        assert_eq!(names(&planner.plan_edits(&incident, Update::Fired, &[], now)), ["all"]);
        assert!(planner.plan_edits(&incident, Update::Fired, &[], now).is_empty(), "it was told");
        // Also by the agent after this one.
        let mut planner = Planner::new(&receivers, StormCap::default(), Origin::default());
        planner.take_over(&incident.id);
        assert!(
            planner.plan_edits(&incident, Update::Fired, &[], now).is_empty(),
            "the one before may have told it"
        );
        assert_eq!(names(&planner.plan(&incident, Update::Resolved, &[], now)), ["am", "all"]);
    }

    #[test]
    fn a_receiver_for_which_an_incident_was_too_mild_is_told_once_it_is_grave_enough() {
        let mut planner = planner(StormCap::default());
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut incident = sample(now);
        assert_eq!(names(&planner.plan(&incident, Update::Fired, &[], now)), ["all", "here"]);
        incident.raise(Severity::Critical, now);
        assert_eq!(names(&planner.plan_edits(&incident, Update::Fired, &[], now)), ["page"]);
        assert!(planner.plan_edits(&incident, Update::Fired, &[], now).is_empty(), "it was told");
    }

    #[test]
    fn a_window_that_somebody_asked_for_is_told_and_is_no_alert() {
        let url = Secret::new("http://alertmanager:9093");
        let am = Receiver::new("am", Transport::Alertmanager { url, bearer: None });
        let receivers = [am, receiver("all", Route::default())];
        let mut planner = Planner::new(&receivers, StormCap::default(), Origin::default());
        let now = Time::from_epoch_s(1_795_492_126.1);
        let by_rule = sample(now);
        assert_eq!(names(&planner.plan(&by_rule, Update::Verdict, &[], now)), ["am", "all"]);
        let by_hand = Incident { rule: BY_HAND.into(), id: "20261124T040000Z-by-hand".into(), ..by_rule };
        for update in [Update::Fired, Update::Verdict, Update::Resolved] {
            assert_eq!(names(&planner.plan(&by_hand, update, &[], now)), ["all"], "{update:?}");
        }
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
        let mut deliveries = Vec::new();
        for i in 0..50 {
            let mut incident = sample(now);
            incident.id = format!("20261124T0400{i:02}Z-by-hand").into();
            for update in [Update::Captured, Update::Verdict, Update::Resolved] {
                deliveries.extend(planner.plan(&incident, update, &["all".into()], now));
            }
        }
        let ids: Vec<&str> = deliveries.iter().map(|d| &*d.message.incident.id).collect();
        assert_eq!(ids.len(), 6, "{ids:?}");
        assert!(ids.iter().all(|id| id.starts_with("20261124T04000")), "{ids:?}");
    }

    #[test]
    fn after_a_restart_an_alertmanager_hears_the_end_of_every_incident_and_people_of_a_few() {
        let url = Secret::new("http://alertmanager:9093");
        let am = Receiver::new("am", Transport::Alertmanager { url, bearer: None });
        let cap = StormCap { incidents: 2, per: Duration::from_secs(600) };
        let mut planner = Planner::new(&[am, receiver("all", Route::default())], cap, Origin::default());
        let now = Time::from_epoch_s(1_795_492_126.1);
        let mut deliveries = Vec::new();
        for i in 0..50 {
            let mut incident = sample(now);
            incident.id = format!("20261124T0400{i:02}Z-skew").into();
            planner.take_over(&incident.id);
            deliveries.extend(planner.plan(&incident, Update::Resolved, &[], now));
        }
        let count = |name: &str| deliveries.iter().filter(|d| &*d.receiver == name).count();
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
            ["1 incident in 10 min: further ones are held back until there are fewer"]
        );
        assert!(planner.plan(&second, Update::Fired, &[], now).is_empty());
        let mut third = sample(now);
        third.id = "20261124T040000Z-third".into();
        let later = planner.plan(&third, Update::Fired, &[], now + Duration::from_secs(600));
        assert_eq!(
            later[0].message.notes[0],
            "1 incident before this one was held back: see skewtrap incidents"
        );
    }
}
