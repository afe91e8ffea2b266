//! The store that agents share: a folder, and a real S3 server (moto) where there is one.

mod lease;
mod store;
mod support;
mod turns;
