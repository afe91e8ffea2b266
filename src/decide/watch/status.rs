//! What the core shows of itself.

/// A source, as the status shows it.
#[derive(Clone, Debug, Default)]
pub struct SourceInfo;
