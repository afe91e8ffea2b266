//! The candidates in their order, and when one of them is named.

use std::time::Duration;

use super::case::{Case, Found, Requests};
use super::course::Member;
use super::machine::{self, Departure};
use super::terms::{Term, Terms};
use super::{Cause, CauseKind, Certainty, words};
use crate::finding::{Finding, Side, Statistic};
use crate::signal::catalog;
use skewtrap_trace::rank::Axis;
use skewtrap_trace::time::Time;

/// A change of so many standard errors is not explained by chance: of the dozen that are looked at for each
/// incident, one in thousands is as large without a cause.
const SURE: f64 = 4.0;
/// From here on a change is worth mentioning.
const NOTED: f64 = 2.5;
/// A change smaller than this makes no incident: a fifth.
const MATERIAL: f64 = 0.18;
/// A cause explains at least this share of the gap.
const EXPLAINS: f64 = 0.8;
/// Less than this share is not told: nothing of the gap is measured to be its doing.
const EXPLAINS_SOME: f64 = 0.05;
/// From this share on, a KV cache is full: admission keeps the rest free.
const FULL: f64 = 0.85;
/// A gauge shows what happened to it after so long at most.
const SEEN: Duration = Duration::from_secs(1);
/// A rank that is sent less holds at most this share of what it held.
const LESS_TO_DO: f64 = 0.8;
/// So many that wait are a backlog that chance does not explain; it is worked off once at most this share is left.
const LEAST_BACKLOG: f64 = 16.0;
const STILL_WAITING: f64 = 0.9;
/// The course of a factor tells its departure within this much, ...
const LATE: Duration = Duration::from_secs(2);
/// ... beside the error of the onset, as far as it is one of seconds.
const LATEST_ERROR_S: f64 = 1.0;
/// A profile this long before the onset may still be at work.
const RECENT: Duration = Duration::from_secs(15);

/// Ranks that step together and have kept at most this share of their speed got slower, ...
const SLOWED: f64 = 0.67;
/// ... alike, if their shares differ by at most this factor.
const ALIKE: f64 = 1.5;
/// Less than this part of a speed cannot be told from nothing.
const LEAST_KEPT: f64 = 0.01;

/// A factor of the load, measured.
struct Factor {
    kind: CauseKind,
    term: Term,
    /// What it adds to the logarithm of the load.
    adds: f64,
    departed: Option<Time>,
}

/// The first candidate that holds.
pub fn walk(case: &Case<'_>) -> Cause {
    let mut cause = words::empty(case.now);
    let stopped = stopped(case);
    let factors = factors(case);
    let machine: Vec<Departure> = machine::host(case).into_iter().chain(machine::clock(case)).collect();
    cause.host_slowdown = machine::slowest_host(case);
    cause.step_slowdown = step_slowdown(case);
    // Of a rank that was measured to be slow, and is too seldom busy to show it here, the machine knows more than what
    // else changed meanwhile.
    let by_machine = || is_speed_unmeasured(case, &factors).then(|| of_machine(case)).flatten();
    let first = stopped.or_else(|| peer_left(case)).or_else(by_machine).or_else(|| leading(case, &factors));
    let later = || {
        memory(case, &factors)
            .or_else(|| transfer(case))
            .or_else(|| of_machine(case))
            .or_else(|| host_of_peer(case))
            .or_else(|| captured(case))
    };
    let found = match first {
        Some(found) if found.certainty == Certainty::Likely => Some(found),
        // A likely cause farther down the tree says more than one that is merely consistent.
        Some(found) => later().filter(|l| l.certainty == Certainty::Likely).or(Some(found)),
        None => later(),
    };
    let found = found.or_else(|| told_as_slow(case));
    // What is named is not ruled out, also where the little that is looked at here does not show it.
    let named = found.as_ref().map_or(CauseKind::Unknown, |found| found.kind);
    let departed_not = machine.iter().filter(|d| !d.departed && kind_of(d) != named);
    cause.ruled_out.extend(departed_not.map(words::machine));
    let others =
        factors.iter().map(|f| (f.kind, f.term)).filter(|(kind, _)| !is_said(*kind, named, case.finding));
    words::rule_out(&mut cause, case, &others.collect::<Vec<_>>(), (NOTED, named != CauseKind::Memory));
    match found {
        Some(found) => write(found, case, &mut cause),
        None => words::unknown(&mut cause, case),
    }
    cause
}

/// Whether a factor is what the cause names, or what the rule measured by more than is looked at here.
fn is_said(factor: CauseKind, named: CauseKind, finding: &Finding) -> bool {
    let is_slow = matches!(named, CauseKind::Slower | CauseKind::SlowGpu | CauseKind::SlowHost);
    let by_rule = finding.measured.as_ref().filter(|m| m.statistic == Statistic::Factors);
    let of_rule = match factor {
        CauseKind::MoreRequests | CauseKind::FewerRequests => Some(crate::factor::Factor::Share),
        CauseKind::LongerPrompts | CauseKind::CacheMisses => Some(crate::factor::Factor::Work),
        CauseKind::Slower => Some(crate::factor::Factor::Speed),
        _ => None,
    };
    let is_of_rule = of_rule.zip(by_rule).is_some_and(|(of, by)| *by.signal == *of.word());
    factor == named || is_of_rule || factor == CauseKind::Slower && is_slow
}

/// What a departure of the machine's would be the cause of.
fn kind_of(departure: &Departure) -> CauseKind {
    match departure.signal == catalog::GPU_SM_CLOCK {
        true => CauseKind::SlowGpu,
        false => CauseKind::SlowHost,
    }
}

/// How many times as long the slowest rank needs for the same work; 1 where none is slower beyond chance. Ranks that
/// step together are all as slow as the slowest, so where all got slower alike they are compared with what they were.
fn step_slowdown(case: &Case<'_>) -> Option<f64> {
    let terms = (0..case.course.members.len()).map(|i| case.terms.slowness(i, usize::MAX));
    let known: Vec<Term> = terms.filter(|term| term.own != (0.0, 0.0)).collect();
    let slower = known.iter().filter(|term| term.z >= NOTED).map(|term| term.ln).fold(0.0, f64::max);
    let alike = slowed_alike(case).map_or(1.0, f64::recip);
    (known.len() >= 2).then(|| slower.exp().max(alike))
}

/// Which part of its speed the slowest rank kept, where all ranks got slower by about one factor.
fn slowed_alike(case: &Case<'_>) -> Option<f64> {
    let speed = case.terms.slowness(case.blamed, usize::MAX);
    let kept = |(before, after): (f64, f64)| (before > 0.0).then(|| after / before);
    let (own, peers) = (kept(speed.own)?, kept(speed.peers)?);
    let is_alike = own.max(peers) <= SLOWED && own.max(peers) <= ALIKE * own.min(peers);
    is_alike.then(|| own.min(peers).max(LEAST_KEPT))
}

/// Writes a candidate into the cause.
fn write(found: Found, case: &Case<'_>, cause: &mut Cause) {
    cause.statement = words::statement(case, &found);
    (cause.kind, cause.certainty, cause.explains) = (found.kind, found.certainty, found.explains);
    cause.support = found.support;
    cause.unknown = found.unknown;
}

/// The blamed rank stands still, is gone, or runs dry without saying so.
fn stopped(case: &Case<'_>) -> Option<Found> {
    let member = case.blamed();
    let most_move =
        case.peers().filter(|(_, m)| !case.is_silent(m)).count() * 2 > case.course.members.len() - 1;
    if !most_move {
        return None;
    }
    let running = member.of(catalog::RUNNING_REQS);
    let usual = running.mean(case.spans.before).unwrap_or(0.0);
    let last = running.at(case.now).unwrap_or(0.0);
    let since = member.last_report();
    if case.is_silent(member) {
        let told = words::last_told(since, last, usual);
        return Some(match (case.course.is_log, last >= 0.4 * usual && last >= 2.0) {
            // A rank that runs dry tells so batch by batch; this one fell silent in the middle of its work.
            (true, true) => Found {
                unknown: vec![words::STOPPED_BY_LOG.to_owned()],
                ..Found::new(CauseKind::Stuck, false, told)
            },
            (true, false) => Found {
                unknown: vec![words::UNTOLD_BY_LOG.to_owned()],
                ..Found::new(CauseKind::FewerRequests, false, told)
            },
            (false, _) if case.has_left(member) => {
                Found { peer: Some(case.blamed), ..Found::new(CauseKind::PeerLeft, true, told) }
            }
            (false, _) => publishes_no_more(told),
        });
    }
    let (tokens, covered) = done_lately(case, member);
    let has_counter = member.has(catalog::DECODE_TOKENS);
    let stands = has_counter && covered >= 1.9 && tokens == 0.0 && last >= 1.0;
    if stands && do_peers_work(case) {
        return Some(Found::new(CauseKind::Stuck, true, words::stands_still(last)));
    }
    // A rank that does not even say that it is idle is not merely sent less.
    let peers_publish = case.peers().all(|(_, peer)| case.publishes(peer));
    (peers_publish && case.publishes_no_more(member))
        .then(|| publishes_no_more(words::last_told(member.published, last, usual)))
}

/// The tokens that a member generated and computed lately, and how many seconds of that were seen.
fn done_lately(case: &Case<'_>, member: &Member) -> (f64, f64) {
    let (generated, covered) = member.generated(case.lately());
    (generated + member.prompts(case.lately()).computed, covered)
}

/// Whether most peers that have work did some of it lately, or none has any: a page goes on telling of ranks
/// that all wait for one thing.
fn do_peers_work(case: &Case<'_>) -> bool {
    let has_work = |m: &Member| m.of(catalog::RUNNING_REQS).at(case.now).unwrap_or(0.0) >= 1.0;
    let (mut busy, mut moving) = (0, 0);
    for (_, peer) in case.peers().filter(|(_, peer)| has_work(peer)) {
        busy += 1;
        moving += usize::from(done_lately(case, peer).0 > 0.0);
    }
    moving * 2 >= busy
}

/// A rank that stamped what it published does so no more.
fn publishes_no_more(told: String) -> Found {
    let unknown = vec![words::PUBLISHES_NO_MORE.to_owned()];
    Found { unknown, ..Found::new(CauseKind::Stuck, false, told) }
}

/// A peer is gone, stands still or gets nothing any more, and the blamed rank merely has its part of that.
fn peer_left(case: &Case<'_>) -> Option<Found> {
    let all = usize::MAX;
    let blamed_publishes = case.publishes(case.blamed());
    let gone: Vec<usize> = case
        .peers()
        .filter(|(i, m)| {
            let term = case.terms.arrivals(*i, all);
            let had_work = m.of(catalog::RUNNING_REQS).mean(case.spans.before).unwrap_or(0.0) >= 1.0;
            // A rank that does not even say that it is idle needs no work to be missed.
            let is_gone = had_work && case.is_silent(m) || blamed_publishes && case.publishes_no_more(m);
            is_gone && term.z < -SURE
        })
        .map(|(i, _)| i)
        .collect();
    let &[gone] = &gone[..] else { return None };
    // Against those that are left its share must be what it was.
    if case.course.members.len() > 2 && case.terms.arrivals(case.blamed, gone).z.abs() > NOTED {
        return None;
    }
    let member = &case.course.members[gone];
    let found = |last, unknown| Found {
        peer: Some(gone),
        unknown,
        ..Found::new(CauseKind::PeerLeft, !case.course.is_log, words::last_told(last, 0.0, 0.0))
    };
    // What it is still listed by does not say that it has left.
    let is_known = case.is_silent(member) && (case.course.is_log || case.has_left(member));
    Some(match is_known {
        true => found(member.last_report(), Vec::new()),
        false => {
            let last = if case.is_silent(member) { member.last_report() } else { member.published };
            found(last, vec![words::PUBLISHES_NO_MORE.to_owned()])
        }
    })
}

/// Whether the compared ranks work on one batch together: all of its requests are every rank's.
fn share_batches(finding: &Finding) -> bool {
    let has = |axis: Axis| finding.rank.get(axis.label()).is_some();
    [Axis::Tp, Axis::Pp, Axis::Ep].into_iter().any(has)
        && !has(Axis::Dp)
        && finding.rank.get("target").is_none()
}

fn factors(case: &Case<'_>) -> Vec<Factor> {
    let (terms, blamed, nobody) = (case.terms, case.blamed, usize::MAX);
    let of_requests = |term: Term| if share_batches(case.finding) { Term::default() } else { term };
    let arrivals = of_requests(terms.arrivals(blamed, nobody));
    let prompts = of_requests(terms.prompts(blamed, nobody));
    let computed = of_requests(terms.computed(blamed, nobody));
    let slowness = terms.slowness(blamed, nobody);
    let kind = if arrivals.ln < 0.0 { CauseKind::FewerRequests } else { CauseKind::MoreRequests };
    let factor = |kind, term: Term, adds, departed| Factor { kind, term, adds, departed };
    // Longer prompts whose prefix is cached are no more work: what both add is counted once, where it
    // comes from.
    let (mut longer, mut missed) = (terms.weighed(blamed, prompts.ln), terms.weighed(blamed, computed.ln));
    if longer * missed < 0.0 {
        let net = terms.weighed(blamed, prompts.ln + computed.ln);
        (longer, missed) = if net * longer > 0.0 { (net, 0.0) } else { (0.0, net) };
    } else if longer > 0.0 {
        // What a longer prompt has beyond the usual is in no cache: that lowers the share that is found, and is no
        // miss. Missed is what was found before and is not any more.
        let (grown, missing) = tokens_grown_and_missing(prompts, computed);
        let both = longer + missed;
        longer = both * grown / (grown + missing);
        missed = both - longer;
    }
    vec![
        factor(kind, arrivals, arrivals.ln, terms.departed(blamed, Terms::share_in)),
        factor(CauseKind::LongerPrompts, prompts, longer, terms.departed(blamed, Terms::prompt_in)),
        factor(CauseKind::CacheMisses, computed, missed, terms.departed(blamed, Terms::computed_in)),
        factor(CauseKind::Slower, slowness, slowness.ln, terms.departed(blamed, Terms::speed_in)),
    ]
}

/// How many tokens longer a prompt got than its peers' did, and how many fewer of it are found in the cache.
fn tokens_grown_and_missing(prompts: Term, computed: Term) -> (f64, f64) {
    let (length, share) = (prompts.own.0, computed.own.0);
    let (now, share_now) = (length * prompts.ln.exp(), (share * computed.ln.exp()).min(1.0));
    let cached = |length: f64, share: f64| length * (1.0 - share);
    let missing = cached(length, share) - cached(now, share_now);
    ((now - length).max(f64::MIN_POSITIVE), missing.max(0.0))
}

/// Whether what is told is the rank's speed at equal work. What it showed before it was told anew came of that.
fn is_of_speed(finding: &Finding) -> bool {
    let told = finding.measured.as_ref().filter(|m| m.statistic == Statistic::Factors);
    told.is_some_and(|m| &*m.signal == crate::factor::Factor::Speed.word())
}

/// Whether the rule measured that the rank is slow, and its speed cannot be told here: a rank that is seldom busy.
fn is_speed_unmeasured(case: &Case<'_>, factors: &[Factor]) -> bool {
    let is_measured = factors.iter().any(|f| f.kind == CauseKind::Slower && f.term.own != (0.0, 0.0));
    is_of_speed(case.finding) && case.finding.side == Side::Low && !is_measured
}

/// On which side a factor makes what the rule saw: more load with more of it, less with less.
fn direction(finding: &Finding, kind: CauseKind) -> f64 {
    let signal = finding.measured.as_ref().map_or("", |m| &*m.signal);
    let is_output = signal.contains("throughput") || signal.contains("decode_tokens");
    let up = match finding.side {
        Side::High => 1.0,
        Side::Low => -1.0,
        Side::Both => 0.0,
    };
    // A slower rank holds more: less speed is more load, whatever makes it.
    if is_of_speed(finding) {
        return -up;
    }
    // A rank that puts out less is slower, or gets less.
    let is_offer = matches!(kind, CauseKind::MoreRequests | CauseKind::FewerRequests);
    if is_output && !is_offer { -up } else { up }
}

/// The factor that explains the gap.
fn leading(case: &Case<'_>, factors: &[Factor]) -> Option<Found> {
    let towards = |f: &Factor| match direction(case.finding, f.kind) {
        0.0 => f.adds.abs(),
        direction => f.adds * direction,
    };
    let counts = |f: &&Factor| f.term.z.abs() >= NOTED && towards(f) > 0.0;
    let gap: f64 = factors.iter().filter(counts).map(towards).sum();
    // Shorter prompts and a quicker rank are no cause of anything that people ask about.
    let is_cause = |f: &&Factor| f.kind == CauseKind::FewerRequests || f.adds > 0.0;
    let found =
        factors.iter().filter(counts).filter(is_cause).max_by(|a, b| towards(a).total_cmp(&towards(b)))?;
    let is_material = found.term.ln.abs() >= MATERIAL && towards(found) >= 0.5 * MATERIAL;
    if !is_material {
        return None;
    }
    let explains = towards(found) / gap;
    // An onset that is known worse than that leaves open which came first: what departs seconds later may as well
    // be what a router made of the trouble.
    let late = LATE + Duration::from_secs_f64(case.finding.onset_error_s.clamp(0.0, LATEST_ERROR_S));
    let is_early = found.departed.is_none_or(|at| at <= case.finding.onset + late);
    let is_alone = !case.peers().any(|(i, _)| {
        let peer = of_peer(case, found.kind, i);
        peer.z.abs() >= SURE && peer.ln / found.term.ln >= 0.5
    });
    // Requests that share a prefix follow it: the cache of the rank that has it answers more.
    let cache = &factors[2].term;
    let is_cached_more = cache.z <= -NOTED && cache.own.1 < cache.own.0;
    let is_clear = match found.kind {
        // A request that was thrown out is computed again, and looks like a long prompt that no cache has.
        CauseKind::LongerPrompts => !may_throw_unseen(case),
        CauseKind::CacheMisses => !may_throw_unseen(case) && !was_full(case, found.departed),
        // A cache that is full answers no more than before.
        CauseKind::MoreRequests => is_cached_more || !was_full(case, found.departed),
        CauseKind::FewerRequests => has_less_to_do(case),
        _ => true,
    };
    let is_sure = found.term.z.abs() >= SURE && explains >= EXPLAINS && is_early && is_alone && is_clear;
    let mut support = vec![words::change(case, found.kind, found.term, found.departed)];
    let is_offer = matches!(found.kind, CauseKind::MoreRequests | CauseKind::FewerRequests);
    let sent = case.terms.sent(case.blamed).filter(|_| is_offer);
    support.extend(sent.as_ref().map(words::sent));
    let mut requests = Requests::Any;
    if found.kind == CauseKind::MoreRequests && is_cached_more {
        requests = Requests::Cached;
        support.push(words::change(case, CauseKind::CacheMisses, *cache, factors[2].departed));
    }
    // The router's counter takes precedence on what the router did.
    let is_unsent = sent.is_some_and(|sent| sent.own != (0.0, 0.0) && !agrees(sent, found.term));
    if is_unsent {
        requests = Requests::NotRouted;
    }
    // What the rule measured counts at equal work: what changed of the work is not all of it, for certain.
    let is_sure = is_sure && !is_unsent && !is_speed_unmeasured(case, factors);
    let mut result = Found { explains: Some(explains), ..Found::new(found.kind, is_sure, String::new()) };
    (result.support, result.requests) = (support, requests);
    if found.kind == CauseKind::Slower {
        gpu_or_host(case, found.term.ln, &mut result);
    }
    Some(result)
}

/// Whether what the router sent changed as the arrivals did: to the same side, and by half as much at least.
fn agrees(sent: Term, arrivals: Term) -> bool {
    sent.ln / arrivals.ln >= 0.5
}

fn of_peer(case: &Case<'_>, kind: CauseKind, peer: usize) -> Term {
    match kind {
        CauseKind::LongerPrompts => case.terms.prompts(peer, case.blamed),
        CauseKind::CacheMisses => case.terms.computed(peer, case.blamed),
        CauseKind::Slower => case.terms.slowness(peer, case.blamed),
        _ => case.terms.arrivals(peer, case.blamed),
    }
}

/// A slow GPU needs more of its own seconds for the same work; behind a slow host it waits.
fn gpu_or_host(case: &Case<'_>, slowness: f64, found: &mut Found) {
    let cpu = |span| {
        let (seconds, covered) = case.blamed().of(catalog::SCHEDULER_CPU).total(span);
        (covered > 0.0).then(|| seconds / covered)
    };
    let cpu = cpu(case.spans.before).zip(cpu(case.spans.after));
    if let Some((before, after)) = cpu.filter(|(before, after)| *after < 0.8 * before) {
        found.support.push(words::less_cpu(before, after));
    }
    let (hosts, clock) = (machine::host(case), machine::clock(case));
    let departed = hosts.iter().chain(&clock).filter(|d| d.departed);
    found.support.extend(departed.map(words::machine));
    let explains = |d: &Departure| d.departed && d.slows >= EXPLAINS * slowness;
    match case.terms.gpu_growth(case.blamed) {
        Some(growth) if growth >= EXPLAINS * slowness => {
            found.kind = CauseKind::SlowGpu;
            found.support.push(words::gpu_seconds(growth));
        }
        Some(growth) if growth <= (1.0 - EXPLAINS) * slowness => {
            found.kind = CauseKind::SlowHost;
            found.support.push(words::gpu_seconds(growth));
        }
        // Without a device timer, what the machine says of one of them alone.
        None if hosts.iter().any(explains) && !clock.as_ref().is_some_and(|c| c.departed) => {
            found.kind = CauseKind::SlowHost;
        }
        None if clock.as_ref().is_some_and(explains) && !hosts.iter().any(|h| h.departed) => {
            found.kind = CauseKind::SlowGpu;
        }
        Some(growth) => found.unknown.push(words::between(growth, slowness)),
        None => {
            found.unknown.push(words::NO_DEVICE_TIMER.to_owned());
            if hosts.is_empty() {
                found.unknown.push(words::NO_HOST.to_owned());
            }
        }
    }
}

/// The rule measured that the rank is slow at equal work, by a cost model of hours; the little time that is looked at
/// here, perhaps right after another trouble, need not show it.
fn told_as_slow(case: &Case<'_>) -> Option<Found> {
    let said =
        case.finding.departure().filter(|_| is_of_speed(case.finding) && case.finding.side == Side::Low)?;
    let mut found = Found::new(CauseKind::Slower, false, said.to_owned());
    found.unknown.push(words::UNSHOWN_SPEED.to_owned());
    Some(found)
}

/// Whether the KV cache of the blamed rank is full, and nothing tells what is thrown out of it.
fn may_throw_unseen(case: &Case<'_>) -> bool {
    let member = case.blamed();
    let tells = member.has(catalog::RETRACTIONS) || member.has(catalog::RETRACTED_REQS);
    !tells && member.of(catalog::KV_USAGE).mean(case.lately()).is_some_and(|usage| usage >= FULL)
}

/// Whether the KV cache of the blamed rank was full when a factor departed. What is thrown out of it then comes a
/// second time, and what it evicts is missed: both follow from the full cache, and do not fill it.
fn was_full(case: &Case<'_>, departed: Option<Time>) -> bool {
    let seen = departed.unwrap_or(case.finding.onset) + SEEN;
    case.blamed().of(catalog::KV_USAGE).at(seen.min(case.now)).is_some_and(|usage| usage >= FULL)
}

/// A rank that is sent less has less to do: at once, or as it works off those that had waited. One on which as much
/// runs, or more waits than before, is avoided by the router for something else.
fn has_less_to_do(case: &Case<'_>) -> bool {
    let mean = |signal, span| case.blamed().of(signal).mean(span).unwrap_or(0.0);
    let [before, lately] = [case.spans.before, case.lately()]
        .map(|span| (mean(catalog::RUNNING_REQS, span), mean(catalog::QUEUE_REQS, span)));
    let load = |(running, waiting): (f64, f64)| running + waiting;
    let waited = case.blamed().of(catalog::QUEUE_REQS).at(case.finding.onset).unwrap_or(0.0);
    let is_working_off = waited >= LEAST_BACKLOG && lately.1 < STILL_WAITING * waited;
    is_working_off || load(lately) < LESS_TO_DO * load(before) && lately.1 <= before.1 + 1.0
}

/// Requests thrown out of the batch since the onset: the blamed rank's, and the most of a peer's.
fn thrown(case: &Case<'_>) -> (f64, f64) {
    let of = |m: &Member| {
        let total = m.of(catalog::RETRACTIONS).total(case.spans.after).0;
        total.max(m.of(catalog::RETRACTED_REQS).growth(case.spans.after))
    };
    (of(case.blamed()), case.peers().map(|(_, m)| of(m)).fold(0.0, f64::max))
}

/// Requests wait because the KV cache is full here, and nothing that was offered explains it.
fn memory(case: &Case<'_>, factors: &[Factor]) -> Option<Found> {
    let usage = |m: &Member, span| m.of(catalog::KV_USAGE).mean(span);
    let own = usage(case.blamed(), case.lately())?;
    let before = usage(case.blamed(), case.spans.before)?;
    let others: Vec<f64> = case.peers().filter_map(|(_, m)| usage(m, case.lately())).collect();
    let fullest = others.iter().copied().fold(0.0, f64::max);
    if own < FULL || fullest >= FULL || before >= FULL {
        return None;
    }
    // Where no room is, more waits and less gets done: no cause of a rank that is sent, or holds, less than usual.
    if direction(case.finding, CauseKind::Memory) < 0.0 {
        return None;
    }
    let waiting = |m: &Member| m.of(catalog::QUEUE_REQS).at(case.now).unwrap_or(0.0);
    let load = |m: &Member| waiting(m) + m.of(catalog::RUNNING_REQS).at(case.now).unwrap_or(0.0);
    let mean = |of: &dyn Fn(&Member) -> f64| {
        case.peers().map(|(_, m)| of(m)).sum::<f64>() / (case.course.members.len() - 1) as f64
    };
    let gap = load(case.blamed()) - mean(&load);
    let explains = ((waiting(case.blamed()) - mean(&waiting)) / gap.max(1.0)).clamp(0.0, 1.0);
    let (own_thrown, peers_thrown) = thrown(case);
    let is_thrown = own_thrown >= 3.0 && own_thrown > 2.0 * peers_thrown;
    if explains < 0.5 && !is_thrown {
        return None;
    }
    // A cache also fills where more is offered or less gets done: those must have been measured and be
    // as they were.
    let is_as_before = |f: &Factor| f.term.own != (0.0, 0.0) && (f.term.z < NOTED || f.adds <= 0.0);
    let is_all_else_equal = factors.iter().all(is_as_before);
    let is_sure = is_all_else_equal && explains >= EXPLAINS && own_thrown >= 2.0 * peers_thrown;
    let support = words::full(own, before, fullest, own_thrown, waiting(case.blamed()));
    // Requests that were thrown out show that it is full, and none of them need wait at this moment.
    let explains = Some(explains).filter(|part| *part >= EXPLAINS_SOME);
    Some(Found { explains, ..Found::new(CauseKind::Memory, is_sure, support) })
}

/// Requests wait for their KV cache to arrive from, or at, the other server.
fn transfer(case: &Case<'_>) -> Option<Found> {
    for signal in [catalog::DECODE_TRANSFER_REQS, catalog::PREFILL_INFLIGHT_REQS] {
        let of = |m: &Member, span| m.of(signal).mean(span).unwrap_or(0.0);
        let (before, after) = (of(case.blamed(), case.spans.before), of(case.blamed(), case.lately()));
        let most = case.peers().map(|(_, m)| of(m, case.lately())).fold(0.0, f64::max);
        if after >= 4.0 && after >= 3.0 * before.max(1.0) && after >= 3.0 * most.max(1.0) {
            let support = words::transfers(before, after, most);
            return Some(Found::new(CauseKind::Transfer, false, support));
        }
    }
    None
}

/// The machine keeps the blamed rank from running, though its speed at equal work cannot be told, or does not
/// show it (yet).
fn of_machine(case: &Case<'_>) -> Option<Found> {
    let of = |kind, d: &Departure| Found::new(kind, false, words::machine(d));
    let host = machine::host(case).into_iter().find(|d| d.departed);
    let clock = machine::clock(case).filter(|d| d.departed);
    host.map(|d| of(CauseKind::SlowHost, &d)).or_else(|| clock.map(|d| of(CauseKind::SlowGpu, &d)))
}

/// Ranks that step together (DP attention) are all as slow as the slowest host, so who is blamed is chance: the host
/// of a peer waits for a CPU, and all ranks got slower alike.
fn host_of_peer(case: &Case<'_>) -> Option<Found> {
    slowed_alike(case)?;
    let (peer, wait) = case
        .peers()
        .filter_map(|(i, _)| Some((i, machine::host_of(case, i).into_iter().find(|d| d.departed)?)))
        .max_by(|a, b| a.1.slows.total_cmp(&b.1.slows))?;
    let found = Found::new(CauseKind::SlowHost, false, words::machine_of_peer(case, peer, &wait));
    Some(Found { peer: Some(peer), ..found })
}

fn captured(case: &Case<'_>) -> Option<Found> {
    let at = case.capture_at?;
    let onset = case.finding.onset;
    let is_near = at <= onset + Duration::from_secs(2) && onset.since(at) <= RECENT;
    is_near.then(|| Found::new(CauseKind::Capture, false, words::profiled(at)))
}
