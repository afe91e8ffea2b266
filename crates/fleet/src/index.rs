//! Reads what all agents of a pool brought.

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::store::{Store, StoreError};
use skewtrap_core::fleet::{IndexLine, index_folder};

/// Objects that are asked for at once: each is small, and far away.
const AT_ONCE: usize = 16;

/// The index of a pool as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    /// Its lines, in the order of their names.
    pub lines: Vec<IndexLine>,
    /// Objects that are no line which this version can read.
    pub unreadable: Vec<String>,
}

/// Reads the index of a pool; `since` is the first day that is wanted, `2026-11-24`.
///
/// # Errors
/// The store cannot be read.
pub async fn read(store: &Store, pool: &str, since: Option<&str>) -> Result<Index, StoreError> {
    let folder = index_folder(pool);
    let mut names = store.list(&folder).await?;
    names.retain(|name| {
        let day = name.strip_prefix(&folder).and_then(|n| n.trim_start_matches('/').split('/').next());
        since.is_none_or(|since| day.is_none_or(|day| day >= since))
    });
    let read = |name: String| async move {
        let line = store.get(&name).await?;
        Ok::<_, StoreError>((name, line.as_deref().and_then(IndexLine::read)))
    };
    let mut found = stream::iter(names).map(read).buffered(AT_ONCE);
    let mut index = Index::default();
    while let Some((name, line)) = found.try_next().await? {
        match line {
            Some(line) => index.lines.push(line),
            None => index.unreadable.push(name),
        }
    }
    Ok(index)
}
