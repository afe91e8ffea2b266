//! The object store that the agents of a pool share: [`Store`] is the store, [`upload`] brings an incident's
//! bundle into it, [`index`] reads what all agents brought, [`lease`] has them take turns.
//!
//! What is stored under which name, and what may leave a host at all, is decided in
//! [`skewtrap_core::fleet`].

#![warn(missing_docs)] // a library for others too

mod client;
pub mod index;
pub mod kubernetes;
pub mod lease;
mod store;
pub mod upload;

pub use self::store::{Store, StoreError};
