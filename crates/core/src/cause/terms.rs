//! How much each factor of a rank's load changed at the onset, against its peers.
//!
//! ```text
//! load of a rank ~ arrivals x seconds of work per request / speed
//! ```
//!
//! The logarithm of it is a sum, so the change of each factor is a part of the whole change (Little's law
//! 1961 for the product; Ang 2004 for the additive decomposition of logarithms). Each part has a standard
//! error of its own, and one that chance explains counts as nothing.

use std::time::Duration;

use super::course::{Course, Member, Span};
use super::speed::{self, Costs, Row};
use crate::factor::PromptTokens;
use crate::signal::catalog;
use skewtrap_trace::time::Time;

/// Length of the pieces by which the scatter of healthy time is measured.
const PIECE: Duration = Duration::from_secs(5);
/// Step in which the time of a departure is looked for.
const STEP: Duration = Duration::from_secs(1);
/// The mean speed of a row is never taken to be known better than this.
const LEAST_SPEED_ERROR: f64 = 0.1;

/// A change of one factor, in logarithms: `ln(after / before)` less its peers'.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// The change.
    pub ln: f64,
    /// In standard errors.
    pub z: f64,
    /// The rank's own value before and after.
    pub own: (f64, f64),
    /// Its peers' value before and after.
    pub peers: (f64, f64),
}

/// What a member got and needed in a span.
#[derive(Clone, Copy, Debug, Default)]
struct MemberWork {
    /// Less than nothing at times: a server tells its queue and whom it admitted at different moments, so that a batch
    /// may have left the queue a second before, or after, it is counted. Cut off at nothing second by second, that
    /// would add up to requests that never came.
    arrived: f64,
    admitted: f64,
    computed: f64,
    prompt: f64,
}

impl MemberWork {
    fn of(member: &Member, span: Span) -> Self {
        let total = |signal| member.of(signal).total(span).0;
        let queue = |at| member.of(catalog::QUEUE_REQS).at(at).unwrap_or(0.0);
        let admitted = total(catalog::ADMISSIONS);
        // What waits has arrived too, and what was thrown out of the batch arrives no second time.
        let again = match member.has(catalog::RETRACTIONS) {
            true => total(catalog::RETRACTIONS),
            false => member.of(catalog::RETRACTED_REQS).growth(span),
        };
        let PromptTokens { all: prompt, computed } = member.prompts(span);
        // What was thrown out is admitted and computed again, all of it: that is no request of a prompt that no
        // cache has.
        let twice = again.min(admitted);
        let tokens = if admitted > 0.0 { twice * prompt / admitted } else { 0.0 };
        Self {
            arrived: admitted + queue(span.1) - queue(span.0) - again,
            admitted: admitted - twice,
            computed: (computed - tokens).max(0.0),
            prompt: (prompt - tokens).max(0.0),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            arrived: self.arrived + other.arrived,
            admitted: self.admitted + other.admitted,
            computed: self.computed + other.computed,
            prompt: self.prompt + other.prompt,
        }
    }

    /// Requests that came in a span that is long enough for their number to be none of its ends'.
    fn came(self) -> f64 {
        self.arrived.max(0.0)
    }

    fn per_request(self) -> f64 {
        self.prompt / self.admitted
    }

    fn computed_share(self) -> f64 {
        (self.computed + 1.0) / (self.prompt + 1.0)
    }
}

/// The healthy time before the onset and the time since.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    pub before: Span,
    pub after: Span,
}

/// What is computed once for all members.
#[derive(Debug)]
pub struct Terms<'a> {
    course: &'a Course,
    spans: Spans,
    /// Variance of arrivals over a Poisson process's.
    dispersion: f64,
    /// Standard deviation of `ln` of prompt tokens of one request, and of the computed share.
    scatter: (f64, f64),
    costs: Option<Costs>,
    rows: Vec<(Vec<Row>, Vec<Row>)>,
}

impl<'a> Terms<'a> {
    /// Learns what is usual from the time before.
    pub fn new(course: &'a Course, spans: Spans, blamed: usize) -> Self {
        let of = |m: &Member| (speed::rows(m, spans.before), speed::rows(m, spans.after));
        let rows: Vec<_> = course.members.iter().map(of).collect();
        let peers_after = rows.iter().enumerate().filter(|(i, _)| *i != blamed).flat_map(|(_, r)| &r.1);
        let costs = Costs::fit(rows.iter().flat_map(|r| &r.0).chain(peers_after));
        let mut terms = Self { course, spans, dispersion: 1.0, scatter: (1.0, 0.3), costs, rows };
        terms.learn_scatter();
        terms
    }

    fn learn_scatter(&mut self) {
        let (mut chi, mut freedom) = (0.0, 0.0);
        let (mut prompts, mut shares, mut count) = (0.0, 0.0, 0.0);
        let whole: Vec<MemberWork> =
            self.course.members.iter().map(|m| MemberWork::of(m, self.spans.before)).collect();
        let all: f64 = whole.iter().map(|t| t.came()).sum();
        let mut start = self.spans.before.0;
        while start + PIECE <= self.spans.before.1 {
            let span = (start, start + PIECE);
            start = start + PIECE;
            let piece: Vec<MemberWork> =
                self.course.members.iter().map(|m| MemberWork::of(m, span)).collect();
            let sum: f64 = piece.iter().map(|t| t.came()).sum();
            for (own, usual) in piece.iter().zip(&whole) {
                let expected = sum * usual.came() / all.max(1.0);
                if expected >= 1.0 {
                    chi += (own.came() - expected).powi(2) / expected;
                    freedom += 1.0;
                }
                if own.admitted >= 2.0 && own.prompt > 0.0 && usual.prompt > 0.0 {
                    prompts += own.admitted * (own.per_request() / usual.per_request()).ln().powi(2);
                    shares += own.admitted * (own.computed_share() / usual.computed_share()).ln().powi(2);
                    count += 1.0;
                }
            }
        }
        if freedom >= 4.0 {
            self.dispersion = (chi / freedom).clamp(1.0, 12.0);
        }
        if count >= 4.0 {
            self.scatter = (f64::sqrt(prompts / count).max(0.3), f64::sqrt(shares / count).max(0.15));
        }
    }

    fn sides(&self, member: usize, without: usize) -> [MemberWork; 4] {
        let took = |i: usize, span| MemberWork::of(&self.course.members[i], span);
        let peers = |span| {
            let others = (0..self.course.members.len()).filter(|i| *i != member && *i != without);
            others.map(|i| took(i, span)).fold(MemberWork::default(), MemberWork::and)
        };
        let Spans { before, after } = self.spans;
        [took(member, before), took(member, after), peers(before), peers(after)]
    }

    /// The member's share of arrivals, against all others but `without`.
    pub fn arrivals(&self, member: usize, without: usize) -> Term {
        self.share(self.sides(member, without).map(MemberWork::came))
    }

    /// The member's share of what the router sent, by the router's own counter; `None` where it is not read of all.
    pub fn sent(&self, member: usize) -> Option<Term> {
        let all_told = self.course.members.iter().all(|m| m.has(catalog::SENT_REQS));
        let total = |i: usize, span| self.course.members[i].of(catalog::SENT_REQS).total(span).0;
        let peers = |span| {
            (0..self.course.members.len()).filter(|i| *i != member).map(|i| total(i, span)).sum::<f64>()
        };
        let Spans { before, after } = self.spans;
        let sides = [total(member, before), total(member, after), peers(before), peers(after)];
        all_told.then(|| self.share(sides))
    }

    /// How a share changed: a count of the member's before and after, and of its peers'.
    fn share(&self, [b, a, pb, pa]: [f64; 4]) -> Term {
        let ln = ((a + 0.5) / (pa + 0.5)).ln() - ((b + 0.5) / (pb + 0.5)).ln();
        // The signed root of the deviance of the two-by-two table: exact also where nothing came.
        let all = a + b + pa + pb;
        let cell = |seen: f64, row: f64, column: f64| {
            if seen > 0.0 { seen * (seen * all / (row * column)).ln() } else { 0.0 }
        };
        let deviance = 2.0
            * (cell(a, a + pa, a + b)
                + cell(b, b + pb, a + b)
                + cell(pa, a + pa, pa + pb)
                + cell(pb, b + pb, pa + pb));
        let z = if all > 0.0 { (deviance.max(0.0) / self.dispersion).sqrt() * ln.signum() } else { 0.0 };
        let share = |own: f64, others: f64| own / (own + others).max(1.0);
        Term { ln, z, own: (share(b, pb), share(a, pa)), peers: (pb, pa) }
    }

    /// Prompt tokens per request.
    pub fn prompts(&self, member: usize, without: usize) -> Term {
        self.of_requests(member, without, self.scatter.0, MemberWork::per_request)
    }

    /// The share of prompt tokens that must be computed: the rest was found in the cache.
    pub fn computed(&self, member: usize, without: usize) -> Term {
        self.of_requests(member, without, self.scatter.1, MemberWork::computed_share)
    }

    fn of_requests(
        &self,
        member: usize,
        without: usize,
        scatter: f64,
        of: impl Fn(MemberWork) -> f64,
    ) -> Term {
        let sides = self.sides(member, without);
        if sides.iter().any(|t| t.admitted < 3.0 || t.prompt <= 0.0) {
            return Term::default();
        }
        let [b, a, pb, pa] = sides.map(of);
        let ln = (a / b).ln() - (pa / pb).ln();
        let error = scatter * sides.iter().map(|t| 1.0 / t.admitted).sum::<f64>().sqrt();
        Term { ln, z: ln / error, own: (b, a), peers: (pb, pa) }
    }

    /// What work per request adds to the load: the part of a request that goes into its prompt grows.
    pub fn weighed(&self, member: usize, ln: f64) -> f64 {
        let part = self.costs.map_or(0.5, |c| c.prompt_share(&self.rows[member].0));
        (part * ln.exp() + 1.0 - part).ln()
    }

    /// Slowness at equal work: positive where the member needs longer than its costs say.
    pub fn slowness(&self, member: usize, without: usize) -> Term {
        let Some(costs) = &self.costs else { return Term::default() };
        let of = |i: usize| {
            let (before, after) = &self.rows[i];
            let mean = |rows: &[Row]| costs.mean_speed(rows, LEAST_SPEED_ERROR);
            Some((mean(before)?, mean(after)?))
        };
        let Some(own) = of(member) else { return Term::default() };
        let change = |s: ((f64, f64), (f64, f64))| (s.0.0.max(1e-3) / s.1.0.max(1e-3)).ln();
        let error = |s: ((f64, f64), (f64, f64))| {
            (s.0.1 / s.0.0.max(1e-3)).powi(2) + (s.1.1 / s.1.0.max(1e-3)).powi(2)
        };
        let others = (0..self.rows.len()).filter(|i| *i != member && *i != without);
        let peers: Vec<_> = others.filter_map(of).collect();
        let mut changes: Vec<f64> = peers.iter().map(|p| change(*p)).collect();
        if changes.is_empty() {
            return Term::default();
        }
        changes.sort_by(f64::total_cmp);
        let middle = changes[changes.len() / 2];
        let of_peers = peers.iter().map(|p| error(*p)).sum::<f64>() / (peers.len() as f64).powi(2);
        let ln = change(own) - middle;
        let usual = |pick: fn(&((f64, f64), (f64, f64))) -> f64| {
            peers.iter().map(pick).sum::<f64>() / peers.len() as f64
        };
        Term {
            ln,
            z: ln / (error(own) + of_peers).sqrt(),
            own: (own.0.0, own.1.0),
            peers: (usual(|p| p.0.0), usual(|p| p.1.0)),
        }
    }

    /// When a member's arrivals left its peers', its prompts grew, or its speed fell: the best place of
    /// one step in the seconds around the onset.
    pub fn departed(
        &self,
        member: usize,
        what: fn(&Self, usize, Span) -> Option<(f64, f64)>,
    ) -> Option<Time> {
        let (from, to) = (self.spans.after.0 - Duration::from_secs(20), self.spans.after.1);
        let mut points: Vec<(Time, f64, f64)> = Vec::new();
        let mut start = from.max(self.spans.before.0);
        while start + STEP <= to {
            if let Some((value, weight)) = what(self, member, (start, start + STEP)) {
                points.push((start, value, weight));
            }
            start = start + STEP;
        }
        let gain = |cut: usize| {
            let mean = |p: &[(Time, f64, f64)]| {
                let weight: f64 = p.iter().map(|x| x.2).sum();
                (p.iter().map(|x| x.1 * x.2).sum::<f64>() / weight.max(1e-9), weight)
            };
            let ((a, wa), (b, wb)) = (mean(&points[..cut]), mean(&points[cut..]));
            (a - b).powi(2) * wa * wb / (wa + wb).max(1e-9)
        };
        (1..points.len()).max_by(|a, b| gain(*a).total_cmp(&gain(*b))).map(|cut| points[cut].0)
    }

    /// For [`Self::departed`]: the member's share of arrivals.
    pub fn share_in(&self, member: usize, span: Span) -> Option<(f64, f64)> {
        let own = MemberWork::of(&self.course.members[member], span).arrived;
        let all: f64 = self.course.members.iter().map(|m| MemberWork::of(m, span).arrived).sum();
        (all > 0.0).then(|| (own / all, all))
    }

    /// For [`Self::departed`]: `ln` of its prompt tokens per request.
    pub fn prompt_in(&self, member: usize, span: Span) -> Option<(f64, f64)> {
        let own = MemberWork::of(&self.course.members[member], span);
        (own.admitted > 0.5 && own.prompt > 0.0).then(|| (own.per_request().ln(), own.admitted))
    }

    /// For [`Self::departed`]: its computed share.
    pub fn computed_in(&self, member: usize, span: Span) -> Option<(f64, f64)> {
        let own = MemberWork::of(&self.course.members[member], span);
        (own.admitted > 0.5 && own.prompt > 0.0).then(|| (own.computed_share(), own.admitted))
    }

    /// For [`Self::departed`]: its speed.
    pub fn speed_in(&self, member: usize, span: Span) -> Option<(f64, f64)> {
        let costs = self.costs.as_ref()?;
        let rows = speed::rows(&self.course.members[member], span);
        costs.mean_speed(&[&rows[..], &rows[..]].concat(), 0.0).map(|s| (s.0, 1.0))
    }

    /// `ln` of the growth of GPU seconds for the same work, where the device timer is exposed.
    pub fn gpu_growth(&self, member: usize) -> Option<f64> {
        let costs = self.costs.as_ref()?;
        let (before, after) = &self.rows[member];
        let per_work = |span: Span, rows: &[Row]| {
            let (busy, covered) = self.course.members[member].of(catalog::GPU_BUSY).total(span);
            let (work, _) = costs.mean_speed(rows, 0.0)?;
            (covered > 0.5 && busy > 0.0 && work > 0.0).then(|| busy / covered / work)
        };
        Some((per_work(self.spans.after, after)? / per_work(self.spans.before, before)?).ln())
    }
}
