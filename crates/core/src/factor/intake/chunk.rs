//! Prompts that are computed in several batches: who was counted in one is counted in the next once more.

use crate::factor::observation::Prefill;

/// So many batches of the same size are no chance, and a prompt has no more of them before its rest, on average.
const LEAST_CHUNKS: u32 = 3;
const MOST_CHUNKS: u32 = 16;
/// Batches that differ by no more than this part have the same size: a scheduler may round, or fill one by a
/// token more.
const SAME_SIZE: f64 = 0.002;
/// After so many batches the older half is forgotten.
const MOST_BATCHES: u32 = 512;

/// The largest batch of prompt tokens seen, which is where long prompts are cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Chunk {
    tokens: f64,
    /// Batches of that size, and smaller ones since the first of them.
    times: u32,
    smaller: u32,
    /// Whether the last batch had that size.
    is_full: bool,
}

impl Chunk {
    /// Notes a batch. Whether its first sequence goes on with a prompt of the batch before, which was cut
    /// off. Prompts that all have one length make equal batches too: one at a time, with nobody behind them,
    /// and they leave no rest.
    pub fn is_continued_by(&mut self, line: &Prefill) -> bool {
        let was_full = self.is_full;
        let near = 0.5 + SAME_SIZE * self.tokens;
        self.is_full = line.new_tokens > self.tokens - near;
        match () {
            () if line.new_tokens > self.tokens + near => {
                *self = Self { tokens: line.new_tokens, times: 1, smaller: 0, is_full: true };
            }
            () if self.is_full => self.times += 1,
            () => self.smaller += 1,
        }
        if self.times.max(self.smaller) > MOST_BATCHES {
            (self.times, self.smaller) = (self.times.div_ceil(2), self.smaller.div_ceil(2));
        }
        let is_alone = line.new_seqs <= 1.0 && line.queue.unwrap_or(0.0) < 1.0;
        let leaves_rests = self.smaller * MOST_CHUNKS >= self.times;
        was_full && self.times >= LEAST_CHUNKS && (leaves_rests || !is_alone)
    }
}
