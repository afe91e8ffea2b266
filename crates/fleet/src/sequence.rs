//! Numbered objects in a folder of the store, each created once: the one with the highest number counts.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, PutMode, PutOptions, PutPayload};

use crate::store::{Store, StoreError};
use skewtrap_core::fleet::lease::lease_number;
use skewtrap_trace::time::Time;

/// The sequence in one folder.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) store: Store,
    folder: String,
    /// The newest object that was seen: what is older need not be listed.
    newest: u64,
}

/// An object of a sequence.
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) bytes: Bytes,
    /// When it was written, by the store's clock.
    pub(crate) stamped_at: Time,
}

/// What came of creating an object.
pub(crate) enum Creation {
    Created,
    /// There is one.
    Exists,
    /// Nobody knows, and why.
    Lost(String),
}

impl Sequence {
    pub(crate) fn new(store: Store, folder: String) -> Self {
        Self { store, folder, newest: 0 }
    }

    fn object(&self, number: u64) -> String {
        format!("{}/{number:012}.json", self.folder)
    }

    /// The newest object, if there is one.
    pub(crate) async fn latest(&mut self) -> Result<Option<Numbered>, StoreError> {
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
        Ok(Some(Numbered { number, name, bytes, stamped_at }))
    }

    async fn newest_after(&self, known: u64) -> Result<Option<u64>, StoreError> {
        let names = self.store.list_after(&self.folder, &self.object(known)).await?;
        Ok(names.iter().filter_map(|name| lease_number(name)).max())
    }

    /// Creates the object of that number, if there is none.
    pub(crate) async fn create(&self, number: u64, content: Vec<u8>) -> Creation {
        let name = self.object(number);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(Bytes::from(content));
        match self.store.objects.put_opts(&Path::from(&*name), payload, options).await {
            Ok(_) => Creation::Created,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Creation::Exists,
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => Creation::Lost(format!(
                "{} cannot create an object only where there is none (a conditional put), and a pool needs that",
                self.store.address()
            )),
            Err(error) => Creation::Lost(self.store.failed(&error, &name).to_string()),
        }
    }
}
