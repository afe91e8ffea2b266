//! The routers: which rank gets a request.

use super::Engine;
use super::rank::Rank;
use crate::spec::Router;

impl Engine<'_> {
    fn random_but(&mut self, excluded: Option<usize>) -> usize {
        loop {
            let r = self.rng.below(self.ranks.len());
            if Some(r) != excluded {
                return r;
            }
        }
    }

    fn least_by<F: Fn(&Rank) -> f64>(&self, excluded: Option<usize>, key: F) -> usize {
        (0..self.ranks.len())
            .filter(|r| Some(*r) != excluded)
            .min_by(|a, b| key(&self.ranks[*a]).total_cmp(&key(&self.ranks[*b])))
            .expect("a rank is left")
    }

    pub(super) fn route(&mut self, session: Option<usize>, known: f64, excluded: Option<usize>) -> usize {
        let home = session.and_then(|s| self.homes[s]).filter(|h| Some(*h) != excluded);
        match self.world.router {
            Router::RoundRobin => {
                let mut total = 0.0;
                for r in (0..self.ranks.len()).filter(|r| Some(*r) != excluded) {
                    self.ranks[r].credit += self.weights[r];
                    total += self.weights[r];
                }
                let best = self.least_by(excluded, |r| -r.credit);
                self.ranks[best].credit -= total;
                best
            }
            Router::Random => loop {
                let mut u = self.rng.unit();
                let mut dest = self.ranks.len() - 1;
                for (r, w) in self.weights.iter().enumerate() {
                    u -= w;
                    if u < 0.0 {
                        dest = r;
                        break;
                    }
                }
                if Some(dest) != excluded {
                    break dest;
                }
            },
            Router::PowerOfTwo => {
                let (a, b) = (self.random_but(excluded), self.random_but(excluded));
                if self.ranks[a].inflight <= self.ranks[b].inflight { a } else { b }
            }
            Router::Hash => home.unwrap_or_else(|| self.random_but(excluded)),
            Router::CacheAware => {
                let most = (0..self.ranks.len())
                    .filter(|r| Some(*r) != excluded)
                    .map(|r| self.ranks[r].inflight)
                    .max()
                    .unwrap_or(0);
                let least = self.least_by(excluded, |r| r.inflight as f64);
                let few = self.ranks[least].inflight;
                if most - few > 32 && most as f64 > 1.1 * few as f64 {
                    return least;
                }
                match home {
                    Some(h) if known > 0.3 => h,
                    _ => self.least_by(excluded, |r| r.tree),
                }
            }
            Router::LeastTokens => self.least_by(excluded, |r| r.tokens_in),
            Router::Least => {
                let jitter: Vec<f64> = (0..self.ranks.len()).map(|_| 0.5 * self.rng.unit()).collect();
                (0..self.ranks.len())
                    .filter(|r| Some(*r) != excluded)
                    .min_by(|a, b| {
                        (self.ranks[*a].inflight as f64 + jitter[*a])
                            .total_cmp(&(self.ranks[*b].inflight as f64 + jitter[*b]))
                    })
                    .expect("a rank is left")
            }
        }
    }
}
