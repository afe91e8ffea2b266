//! From a key in a log line to the signal that it means: small hash tables, built once from the
//! catalog, so that reading a line costs one lookup a key.

use std::sync::LazyLock;

use crate::signal::catalog::{self, Entry, Signal};

/// A fixed hash table with linear probing.
#[derive(Debug)]
pub struct KeyTable {
    slots: Vec<Option<(&'static [u8], Signal)>>,
}

/// Keys of `Decode batch` lines.
pub static DECODE: LazyLock<KeyTable> = LazyLock::new(|| KeyTable::of(|e| [e.log, e.decode].concat()));

/// Keys of `Prefill batch` lines.
pub static PREFILL: LazyLock<KeyTable> = LazyLock::new(|| KeyTable::of(|e| [e.log, e.prefill].concat()));

/// Keys of vLLM's lines.
pub static VLLM: LazyLock<KeyTable> = LazyLock::new(|| KeyTable::of(|e| e.vllm.to_vec()));

impl KeyTable {
    /// The keys in one column of the catalog.
    fn of(column: impl Fn(&Entry) -> Vec<&'static str>) -> Self {
        let words: Vec<_> = catalog::built_in()
            .flat_map(|(signal, e)| column(e).into_iter().map(move |w| (w.as_bytes(), signal)))
            .collect();
        let mut slots = vec![None; (words.len() * 4).next_power_of_two()];
        for (word, signal) in words {
            let mut at = hash(word) & (slots.len() - 1);
            while slots[at].is_some() {
                at = (at + 1) & (slots.len() - 1);
            }
            slots[at] = Some((word, signal));
        }
        Self { slots }
    }

    /// The signal that `word` means.
    pub fn get(&self, word: &[u8]) -> Option<Signal> {
        let mut at = hash(word) & (self.slots.len() - 1);
        while let Some((known, signal)) = self.slots[at] {
            if known == word {
                return Some(signal);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        None
    }
}

/// Length and three letters tell these few dozen words apart well enough.
fn hash(word: &[u8]) -> usize {
    let at = |i: usize| usize::from(*word.get(i).unwrap_or(&0));
    word.len().wrapping_mul(0x9e37)
        ^ at(1).wrapping_mul(31)
        ^ at(word.len() / 2).wrapping_mul(257)
        ^ at(word.len().wrapping_sub(1)).wrapping_mul(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::catalog;

    #[test]
    fn one_word_means_different_things_in_decode_and_prefill_lines() {
        assert_eq!(DECODE.get(b"#prealloc-req"), Some(catalog::DECODE_PREALLOC_REQS));
        assert_eq!(PREFILL.get(b"#prealloc-req"), Some(catalog::PREFILL_BOOTSTRAP_REQS));
        assert_eq!(DECODE.get(b"#new-seq"), None);
        assert_eq!(DECODE.get(b""), None);
        assert_eq!(DECODE.get(b"gen throughput (token/s)"), Some(catalog::GEN_THROUGHPUT));
    }
}
