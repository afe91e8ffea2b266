//! What takes turns by a store needs of it: the store's own stamps, a sorted listing, names that are given once.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::{Store, StoreError};
use skewtrap_core::fleet::lease::StoreClock;
use skewtrap_trace::time::Time;

/// A store's stamps are whole seconds, at least in its answers.
const RESOLUTION: Duration = Duration::from_secs(1);
/// A folder's are far finer.
const OF_FOLDERS: Duration = Duration::from_millis(10);

impl Store {
    /// Writes an object over the one that is there, and measures the store's clock beside `now` by its stamp.
    ///
    /// # Errors
    /// Nothing can be written.
    pub async fn stamp(
        &self,
        name: &str,
        content: Vec<u8>,
        now: impl Fn() -> Time,
    ) -> Result<StoreClock, StoreError> {
        let path = Path::from(name);
        let sent = now();
        self.objects.put(&path, PutPayload::from(content)).await.map_err(|e| self.failed(&e, name))?;
        let answered = now();
        let found = self.objects.head(&path).await.map_err(|e| self.failed(&e, name))?;
        let resolution = if self.address().starts_with("file:") { OF_FOLDERS } else { RESOLUTION };
        Ok(StoreClock::measured(sent, answered, time_of(found.last_modified), resolution))
    }

    /// The bytes of an object and when the store stamped it, by its clock; `None` where it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn get_stamped(&self, name: &str) -> Result<Option<(Bytes, Time)>, StoreError> {
        let found = match self.objects.get(&Path::from(name)).await {
            Err(error) if Self::is_not_there(&error) => return Ok(None),
            other => other.map_err(|e| self.failed(&e, name))?,
        };
        let stamped_at = time_of(found.meta.last_modified);
        self.is_read(found.meta.size, name)?;
        let bytes = found.bytes().await.map_err(|e| self.failed(&e, name))?;
        Ok(Some((bytes, stamped_at)))
    }

    /// The names below a folder that come after `after`, sorted.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn list_after(&self, folder: &str, after: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_offset(Some(&Path::from(folder)), &Path::from(after));
        let found = listed.try_collect::<Vec<_>>().await.map_err(|e| self.failed(&e, folder))?;
        let mut names: Vec<String> = found.into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// Tries what the lease of a pool needs beside [`Self::try_out`]: that a name which is taken is not given twice.
    ///
    /// # Errors
    /// The store gives it twice, or cannot be asked.
    pub async fn try_conditional_put(&self, name: &str) -> Result<(), StoreError> {
        let name = format!(".skewtrap/{name}-once");
        let path = Path::from(&*name);
        let put = || {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.objects.put_opts(&path, PutPayload::from_static(b"once\n"), options)
        };
        match put().await {
            Ok(_) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(self.failed(&error, &name)),
        }
        let again = put().await;
        self.objects.delete(&path).await.map_err(|e| self.failed(&e, &name))?;
        match again {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error, &name)),
            Ok(_) => Err(StoreError::Failed {
                store: self.address().to_owned(),
                why: "it creates an object although there is one (it ignores If-None-Match), so agents of a pool cannot take turns: use a store with conditional puts, or a pool of one agent".into(),
            }),
        }
    }
}

fn time_of(stamp: chrono::DateTime<chrono::Utc>) -> Time {
    Time::from_nanos(stamp.timestamp_nanos_opt().unwrap_or_default())
}
