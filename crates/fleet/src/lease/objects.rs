//! The lease of a pool in its store: numbered objects in a folder, each created once; the one with the highest number
//! counts.

use object_store::path::Path;
use object_store::{Error, PutMode, PutOptions, PutPayload};

use crate::store::{Store, StoreError};
use skewtrap_core::fleet::lease::{Answer, Latest, LeaseState, lease_folder, lease_number};

/// The objects of one pool's lease.
#[derive(Clone, Debug)]
pub(super) struct LeaseObjects {
    pub(super) store: Store,
    folder: String,
    /// The newest object that was seen: what is older need not be listed.
    newest: u64,
}

impl LeaseObjects {
    pub(super) fn new(store: Store, pool: &str) -> Self {
        Self { store, folder: lease_folder(pool), newest: 0 }
    }

    fn object(&self, number: u64) -> String {
        format!("{}/{number:012}.json", self.folder)
    }

    /// What the newest object says, if there is one.
    pub(super) async fn latest(&mut self) -> Result<Option<Latest>, StoreError> {
        let found = match self.newest {
            0 => None,
            known => self.newest_after(known - 1).await?,
        };
        // What was known may have been removed by a rule of the bucket.
        let found = match found {
            Some(found) => Some(found),
            None => self.newest_after(0).await?,
        };
        let Some(number) = found else { return Ok(None) };
        self.newest = number;
        let name = self.object(number);
        let Some((bytes, stamped_at)) = self.store.get_stamped(&name).await? else { return Ok(None) };
        let state = LeaseState::read(&bytes).ok_or_else(|| StoreError::Failed {
            store: self.store.address().to_owned(),
            why: LeaseState::unreadable(&name),
        })?;
        Ok(Some(Latest { number, state, stamped_at }))
    }

    async fn newest_after(&self, known: u64) -> Result<Option<u64>, StoreError> {
        let names = self.store.list_after(&self.folder, &self.object(known)).await?;
        Ok(names.iter().filter_map(|name| lease_number(name)).max())
    }

    /// Creates the object of that number, if there is none.
    pub(super) async fn create(&self, number: u64, state: &LeaseState) -> Answer {
        let name = self.object(number);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(state.object());
        match self.store.objects.put_opts(&Path::from(&*name), payload, options).await {
            Ok(_) => Answer::Created,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Answer::Exists,
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => Answer::Lost(format!(
                "{} cannot create an object only where there is none (a conditional put), and a pool needs that",
                self.store.address()
            )),
            Err(error) => Answer::Lost(self.store.failed(&error, &name).to_string()),
        }
    }
}
