//! What a rank is and what it measures.

pub mod rank;
pub mod sample;
