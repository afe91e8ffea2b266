//! Which incident folders to delete: a chooser that touches no file. What exists is read from the
//! folders anew each time (see `act::retention`), never remembered.

use std::time::Duration;

use crate::capture::refusal::Refusal;
use skewtrap_trace::time::Time;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// At most so many incidents.
    pub count: usize,
    /// No incident older than this.
    pub age: Duration,
    /// At most so many bytes, server-written files included.
    pub bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { count: 200, age: Duration::from_secs(30 * 86_400), bytes: 50 << 30 }
    }
}

/// One folder with a valid `incident.json` of this agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBundle {
    /// The incident's id, which is the folder's name.
    pub incident: String,
    /// When it fired.
    pub at: Time,
    /// Bytes in the folder and in the server-written files it lists, as far as they are unchanged.
    pub bytes: u64,
    /// Exempt, by a file named `pinned` in it.
    pub pinned: bool,
    /// Still being written, or permission forbids its deletion.
    pub undeletable: bool,
}

/// What to delete, and what that leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Incidents to delete, oldest first.
    pub delete: Vec<String>,
    /// Bytes that stay, pinned and undeletable ones included.
    pub bytes_left: u64,
    /// Whether even so the coming window would exceed the limit: then it must not open.
    pub over: bool,
}

/// What the bundles take, as the last sweep of their folder found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleSpace {
    /// Bytes that stayed.
    pub bytes: u64,
    /// The limit of those bytes.
    pub limit: u64,
    /// Bytes free on their disk; `None` when that is unknown.
    pub free: Option<u64>,
    /// The limit cannot be held with another window: what stayed may not be deleted.
    pub over: bool,
    /// The first path that permission forbade to delete, and why.
    pub stuck: Option<String>,
}

impl BundleSpace {
    /// Whether a window of `need` bytes may come in.
    ///
    /// # Errors
    /// What may not be deleted leaves no room for it.
    pub fn admits(&self, need: u64) -> Result<(), Refusal> {
        if !self.over {
            return Ok(());
        }
        let why = self.stuck.clone().unwrap_or_else(|| "pinned, or still being written".into());
        Err(Refusal::KeepFull { bytes: self.bytes, need, limit: self.limit, why })
    }
}

/// Chooses what to delete so that the limits hold with `coming` bytes more in one incident more.
pub fn choose(found: &[KeptBundle], keep: &Keep, coming: u64, now: Time) -> Choice {
    let mut sorted: Vec<&KeptBundle> = found.iter().collect();
    sorted.sort_by(|a, b| (a.at, &a.incident).cmp(&(b.at, &b.incident)));
    let mut choice = Choice {
        bytes_left: found.iter().fold(0, |sum, f| sum.saturating_add(f.bytes)),
        ..Choice::default()
    };
    let mut count = found.len();
    for folder in sorted.into_iter().filter(|f| !f.pinned && !f.undeletable) {
        let too_many = count + usize::from(coming > 0) > keep.count;
        let too_old = now.since(folder.at) > keep.age;
        let too_large = choice.bytes_left.saturating_add(coming) > keep.bytes;
        if too_many || too_old || too_large {
            count -= 1;
            choice.bytes_left -= folder.bytes;
            choice.delete.push(folder.incident.clone());
        }
    }
    choice.over = choice.bytes_left.saturating_add(coming) > keep.bytes;
    choice
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEEP: Keep = Keep { count: 3, age: Duration::from_secs(1000), bytes: 100 };

    fn kept(name: &str, s: f64, bytes: u64) -> KeptBundle {
        KeptBundle {
            incident: name.into(),
            at: Time::from_epoch_s(s),
            bytes,
            pinned: false,
            undeletable: false,
        }
    }

    fn now() -> Time {
        Time::from_epoch_s(2000.0)
    }

    #[test]
    fn the_oldest_go_first_and_only_as_many_as_it_takes() {
        let found = [kept("c", 1900.0, 30), kept("a", 1500.0, 30), kept("b", 1600.0, 30)];
        assert_eq!(choose(&found, &KEEP, 0, now()).delete, Vec::<String>::new());
        assert_eq!(choose(&found, &KEEP, 10, now()).delete, ["a"], "one more would be four");
        assert_eq!(choose(&found, &KEEP, 50, now()).delete, ["a", "b"]);
        assert_eq!(choose(&[kept("old", 999.0, 1)], &KEEP, 0, now()).delete, ["old"]);
    }

    #[test]
    fn pinned_and_undeletable_ones_stay_and_count() {
        let pinned = KeptBundle { pinned: true, ..kept("p", 1.0, 60) };
        let stuck = KeptBundle { undeletable: true, ..kept("s", 2.0, 39) };
        let choice = choose(&[pinned, stuck, kept("x", 1999.0, 10)], &KEEP, 2, now());
        assert_eq!((choice.delete, choice.bytes_left, choice.over), (vec!["x".to_owned()], 99, true));
    }

    prop_compose! {
        fn folders()(list in prop::collection::vec((0u32..3000, 0u64..60, any::<bool>(), any::<bool>()), 0..12)) -> Vec<KeptBundle> {
            list.into_iter().enumerate().map(|(i, (s, bytes, pinned, undeletable))| {
                KeptBundle { incident: i.to_string(), at: Time::from_epoch_s(s.into()), bytes, pinned: pinned && i % 3 == 0, undeletable: undeletable && i % 4 == 0 }
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn whatever_there_is_the_limits_hold_afterwards_or_it_says_over(found in folders(), coming in 0u64..60) {
            let choice = choose(&found, &KEEP, coming, now());
            let left: Vec<&KeptBundle> = found.iter().filter(|f| !choice.delete.contains(&f.incident)).collect();
            let free = || left.iter().filter(|f| !f.pinned && !f.undeletable);
            prop_assert_eq!(left.iter().map(|f| f.bytes).sum::<u64>(), choice.bytes_left);
            prop_assert!(choice.over == (choice.bytes_left + coming > KEEP.bytes));
            prop_assert!(!choice.over || free().next().is_none(), "something deletable stayed");
            prop_assert!(free().all(|f| now().since(f.at) <= KEEP.age));
            prop_assert!(left.len() + usize::from(coming > 0) <= KEEP.count || free().next().is_none());
            prop_assert!(found.iter().all(|f| !(f.pinned || f.undeletable) || left.contains(&f)));
        }
    }
}
