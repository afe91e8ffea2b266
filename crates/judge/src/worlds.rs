//! The healthy worlds and the incidents: those of `bench/worlds/worlds.py`, and some of our own.

use crate::spec::{Incident, Router, Traffic, Trouble, World};

/// A world by name.
pub type Named = (&'static str, World);

/// The shared healthy worlds.
pub fn healthy() -> Vec<Named> {
    let w = World::default;
    vec![
        ("rr poisson 4", World { router: Router::RoundRobin, ..w() }),
        ("random poisson 4", w()),
        ("random poisson 2", World { ranks: 2, ..w() }),
        ("random poisson 16", World { ranks: 16, ..w() }),
        (
            "p2c gamma-cv5 8",
            World { ranks: 8, router: Router::PowerOfTwo, traffic: Traffic::Gamma(50), ..w() },
        ),
        ("random mmpp 8", World { ranks: 8, traffic: Traffic::Mmpp, per_rank: 6.0, ..w() }),
        ("least mmpp 4", World { router: Router::Least, traffic: Traffic::Mmpp, per_rank: 6.0, ..w() }),
        ("cache-aware chat 8", World { ranks: 8, router: Router::CacheAware, turns: 5.0, ..w() }),
        ("near idle 4", World { per_rank: 0.5, ..w() }),
        ("diurnal random 4", World { traffic: Traffic::Diurnal, per_rank: 6.0, ..w() }),
        ("steps rr 4", World { traffic: Traffic::Step, router: Router::RoundRobin, per_rank: 7.0, ..w() }),
        ("batch jobs random 4", World { traffic: Traffic::Batch, ..w() }),
        (
            "one 1.3x slower, rr",
            World { router: Router::RoundRobin, slowness: vec![1.3, 1.0, 1.0, 1.0], per_rank: 6.0, ..w() },
        ),
        ("long 1 % least 4", World { router: Router::Least, long_share: 0.01, per_rank: 5.0, ..w() }),
        (
            "lockstep chat 8",
            World { ranks: 8, lockstep: true, router: Router::CacheAware, turns: 5.0, per_rank: 4.0, ..w() },
        ),
    ]
}

/// Healthy worlds of our own: other routers, sizes, lengths, machines.
pub fn own() -> Vec<Named> {
    let w = World::default;
    vec![
        ("own: hash chat 4", World { router: Router::Hash, turns: 4.0, per_rank: 5.0, ..w() }),
        (
            "own: least-tokens gamma 6",
            World {
                ranks: 6,
                router: Router::LeastTokens,
                traffic: Traffic::Gamma(30),
                per_rank: 6.0,
                ..w()
            },
        ),
        ("own: weighted random 4", World { weights: vec![2.0, 1.0, 1.0, 1.0], per_rank: 5.0, ..w() }),
        ("own: random 64", World { ranks: 64, per_rank: 4.0, ..w() }),
        ("own: hot and full 4", World { per_rank: 6.0, kv: 60_000.0, prompt: (1200.0, 1.0), ..w() }),
        ("own: mix change 4", World { mix_change: 7200.0, per_rank: 6.0, ..w() }),
        (
            "own: fast machine 8",
            World {
                ranks: 8,
                per_rank: 15.0,
                cost: [0.004, 1e-5, 5e-9, 0.004, 1e-5, 2e-11, 0.1],
                prompt: (400.0, 1.4),
                ..w()
            },
        ),
        ("own: lockstep random 4", World { lockstep: true, per_rank: 4.0, ..w() }),
        (
            "own: heavy outputs rr 2",
            World { ranks: 2, router: Router::RoundRobin, output: (250.0, 1.3), per_rank: 5.0, ..w() },
        ),
        (
            "own: one turn a second 3",
            World { ranks: 3, per_rank: 1.0, prompt: (3000.0, 1.2), output: (400.0, 1.0), ..w() },
        ),
    ]
}

/// Worlds whose imbalance is there from the first second on, with the rank to blame.
pub fn standing() -> Vec<(&'static str, World, usize)> {
    let w = World::default;
    let rr = || World { router: Router::RoundRobin, ..w() };
    vec![
        ("standing: 1.5x slower, rr", World { slowness: vec![1.0, 1.0, 1.5, 1.0], per_rank: 6.0, ..rr() }, 2),
        ("standing: 1.3x slower, rr", World { slowness: vec![1.3, 1.0, 1.0, 1.0], per_rank: 6.0, ..rr() }, 0),
        (
            "standing: sent twice as much",
            World { weights: vec![1.0, 2.0, 1.0, 1.0], per_rank: 5.0, ..w() },
            1,
        ),
        ("standing: taken out", World { weights: vec![1.0, 1.0, 1.0, 0.02], per_rank: 5.0, ..w() }, 3),
    ]
}

/// The servers on which incidents are tried.
pub fn bases() -> Vec<Named> {
    let w = World::default;
    vec![
        ("rr 4", World { router: Router::RoundRobin, ..w() }),
        ("random 8", World { ranks: 8, per_rank: 6.0, ..w() }),
        ("chat 4", World { router: Router::CacheAware, turns: 5.0, ..w() }),
    ]
}

/// Bases of our own.
pub fn own_bases() -> Vec<Named> {
    let w = World::default;
    vec![
        ("own: least 6", World { ranks: 6, router: Router::Least, per_rank: 6.0, ..w() }),
        ("own: random mmpp 4", World { traffic: Traffic::Mmpp, per_rank: 5.0, ..w() }),
        ("own: random 2", World { ranks: 2, per_rank: 6.0, ..w() }),
        (
            "own: fast 16",
            World { ranks: 16, per_rank: 8.0, cost: [0.004, 1e-5, 5e-9, 0.004, 1e-5, 2e-11, 0.1], ..w() },
        ),
    ]
}

/// An incident's name and parts.
pub type Script = (&'static str, Vec<Incident>);

/// The incidents, beginning at `a`.
pub fn incidents(a: f64) -> Vec<Script> {
    let b = a + 120.0;
    let one = |trouble, rank, until, ramp| vec![Incident { trouble, rank, from: a, until, ramp }];
    let redirect = |share| Trouble::Redirect { share };
    let mut two = one(redirect(0.25), 0, b, 0.0);
    two.extend(one(redirect(0.33), 3, b, 0.0));
    vec![
        ("redirect 50 %", one(redirect(0.5), 2, b, 0.0)),
        ("redirect 25 %", one(redirect(0.25), 2, b, 0.0)),
        ("redirect 10 %", one(redirect(0.1), 2, a + 200.0, 0.0)),
        ("slow 4x", one(Trouble::Slow { factor: 4.0 }, 1, b, 0.0)),
        ("slow 2x", one(Trouble::Slow { factor: 2.0 }, 1, b, 0.0)),
        ("slow 1.5x", one(Trouble::Slow { factor: 1.5 }, 1, b, 0.0)),
        ("drift 2 min", one(redirect(0.5), 0, a + 240.0, 120.0)),
        ("drift 10 min", one(redirect(0.5), 0, a + 700.0, 600.0)),
        ("hot prefix", one(Trouble::Hot { share: 0.5 }, 3, b, 0.0)),
        ("starved", one(Trouble::Exclude, 1, b, 0.0)),
        ("hung", one(Trouble::Hung, 2, a + 60.0, 0.0)),
        ("two ranks", two),
        ("oscillation", one(Trouble::Oscillate { share: 0.6, other: 3, period: 20.0 }, 1, b, 0.0)),
        (
            "soon after start",
            vec![Incident { trouble: redirect(0.5), rank: 2, from: 25.0, until: 145.0, ramp: 0.0 }],
        ),
        ("own: long prompts", one(Trouble::Long { factor: 4.0 }, 1, b, 0.0)),
    ]
}

/// The ranks that an incident may be blamed on.
pub fn guilty(script: &[Incident]) -> Vec<usize> {
    let mut ranks: Vec<usize> = Vec::new();
    for i in script {
        ranks.push(i.rank);
        if let Trouble::Oscillate { other, .. } = i.trouble {
            ranks.push(other);
        }
    }
    ranks
}
