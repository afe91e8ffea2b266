//! A store: a bucket with a prefix, or a folder.

use std::path::Path as FilePath;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;
use url::Url;

mod stamped;

use crate::client::OneClient;
use skewtrap_core::printable::printable;
use skewtrap_trace::hex;

/// Parts of this size are read into memory, sent and counted against the bounded rate; what is smaller is
/// sent whole. S3 takes no smaller parts than 5 MiB.
const PART: usize = 8 << 20;

/// The largest object that is read as a whole: a summary has some MB, a line or a lease far less.
pub(crate) const LARGEST: u64 = 64 << 20;

/// Variables of which one is set where the environment has a key.
const KEYS: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_FEDERATED_TOKEN_FILE",
];

/// Why something could not be brought into a store or read from it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is none.
    #[error(
        "`{address}` is no store: {why}; write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER"
    )]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The store refuses.
    #[error(
        "{store} refuses: {why}; check the credentials in the environment ({variables}) and what they allow"
    )]
    Refused {
        /// Its address.
        store: String,
        /// Its words.
        why: String,
        /// Where credentials are looked for.
        variables: &'static str,
    },
    /// The bucket, or an object, is not there.
    #[error("{store}: {what} is not there: {why}")]
    NotFound {
        /// Its address.
        store: String,
        /// What.
        what: String,
        /// Its words.
        why: String,
    },
    /// Anything else: no answer, no room.
    #[error("{store}: {why}")]
    Failed {
        /// Its address.
        store: String,
        /// What went wrong.
        why: String,
    },
    /// An object is larger than any that is read.
    #[error("{store}: {name} has {bytes} bytes, and more than {LARGEST} are not read")]
    TooLarge {
        /// Its address.
        store: String,
        /// The object.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The lease is in Kubernetes, and cannot be used there.
    #[error("{0}")]
    Kubernetes(String),
    /// What was stored is not what was sent.
    #[error("{store}: {name} has other bytes than were sent; it is sent again")]
    Differs {
        /// Its address.
        store: String,
        /// The object.
        name: String,
    },
    /// A file of the bundle cannot be read.
    #[error("cannot read {path}: {why}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        why: std::io::Error,
    },
}

/// A store, at a prefix.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) objects: Arc<dyn ObjectStore>,
    address: Arc<str>,
    variables: &'static str,
    /// Whether the environment has no key for it.
    keyless: bool,
    /// Parts that were sent, read back or found to be there so far.
    parts: Arc<AtomicU64>,
}

/// What was stored under a name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredObject {
    /// Its name, below the store's prefix.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of its content, hexadecimal.
    pub sha256: String,
}

impl Store {
    /// The store at `address`. Nothing is asked of it yet. `environment` is what the process has, as
    /// `std::env::vars`: credentials come from it, else from instance metadata; an address with credentials is
    /// refused.
    ///
    /// # Errors
    /// The address is none.
    pub fn open(
        address: &str,
        client: reqwest::Client,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StoreError> {
        let url = Url::parse(address).map_err(|e| wrong(address, &e.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            let why = "it has credentials or parameters; credentials belong into the environment";
            return Err(wrong("(not shown)", why));
        }
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let has_key = environment.iter().any(|(name, _)| KEYS.contains(&name.as_str()));
        let keyless = url.scheme() != "file" && !has_key;
        let fail = |e: object_store::Error| wrong(address, &words_of(&e));
        let (objects, variables): (Arc<dyn ObjectStore>, _) = match url.scheme() {
            "file" => (folder(address, &url)?, "none are needed for a folder"),
            "s3" | "s3a" => {
                let builder = AmazonS3Builder::new().with_url(address).with_retry(retry());
                let builder = settings(environment, "aws_")
                    .fold(builder, |b, (key, value)| b.with_config(key, value))
                    .with_http_connector(OneClient(client));
                let store = builder.build().map_err(fail)?;
                (Arc::new(store), "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL")
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::new().with_url(address).with_retry(retry());
                let builder = settings(environment, "google_")
                    .fold(builder, |b, (key, value)| b.with_config(key, value))
                    .with_http_connector(OneClient(client));
                let store = builder.build().map_err(fail)?;
                (Arc::new(store), "GOOGLE_SERVICE_ACCOUNT, GOOGLE_APPLICATION_CREDENTIALS")
            }
            "az" | "azure" => {
                let builder = MicrosoftAzureBuilder::new().with_url(address).with_retry(retry());
                let builder = settings(environment, "azure_")
                    .fold(builder, |b, (key, value)| b.with_config(key, value))
                    .with_http_connector(OneClient(client));
                let store = builder.build().map_err(fail)?;
                (Arc::new(store), "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY")
            }
            other => return Err(wrong(address, &format!("`{other}` is no kind of store"))),
        };
        let prefix = Path::from_url_path(url.path()).map_err(|e| wrong(address, &e.to_string()))?;
        let objects: Arc<dyn ObjectStore> = match url.scheme() == "file" || prefix.as_ref().is_empty() {
            true => objects,
            false => Arc::new(PrefixStore::new(objects, prefix)),
        };
        let address = address.trim_end_matches('/').into();
        Ok(Self { objects, address, variables, keyless, parts: Arc::default() })
    }

    /// Parts that were sent, read back or found to be there so far, by all copies: while this stands still nothing is
    /// uploaded.
    pub fn parts(&self) -> u64 {
        self.parts.load(Ordering::Relaxed)
    }

    /// The longest that one part takes at that rate.
    pub fn part_takes(rate: Option<u64>) -> Duration {
        let rate = rate.filter(|rate| *rate > 0);
        rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(PART as f64 / rate as f64))
    }

    fn has_moved(&self) {
        self.parts.fetch_add(1, Ordering::Relaxed);
    }

    /// Its address, which holds no secret.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether something can be written into it, read from it and deleted: an object of that name below `.skewtrap/`
    /// is.
    ///
    /// # Errors
    /// It cannot, and why.
    pub async fn try_out(&self, name: &str) -> Result<(), StoreError> {
        let path = Path::from(format!(".skewtrap/{name}"));
        self.put(path.as_ref(), Bytes::from_static(b"skewtrap was here\n")).await?;
        self.objects.delete(&path).await.map_err(|e| self.failed(&e, path.as_ref()))
    }

    /// The bytes of an object; `None` where it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let found = match self.objects.get(&Path::from(name)).await {
            Err(error) if Self::is_not_there(&error) => return Ok(None),
            other => other.map_err(|e| self.failed(&e, name))?,
        };
        self.is_read(found.meta.size, name)?;
        found.bytes().await.map(Some).map_err(|e| self.failed(&e, name))
    }

    /// Whether an object of that size is read: other hosts write into a store, too.
    pub(crate) fn is_read(&self, size: u64, name: &str) -> Result<(), StoreError> {
        match size <= LARGEST {
            true => Ok(()),
            false => Err(StoreError::TooLarge {
                store: self.address.to_string(),
                name: name.to_owned(),
                bytes: size,
            }),
        }
    }

    /// The names below a folder, sorted.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let below = Path::from(folder);
        let found = self.objects.list(Some(&below)).try_collect::<Vec<_>>().await;
        let mut names: Vec<String> =
            found.map_err(|e| self.failed(&e, folder))?.into_iter().map(|m| m.location.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// Stores bytes under a name, which appears when all of them are there, and reads them back. What is
    /// there already is not sent again.
    ///
    /// # Errors
    /// They cannot be stored, or come back as others.
    pub async fn put(&self, name: &str, content: Bytes) -> Result<StoredObject, StoreError> {
        self.put_at(name, content, None).await
    }

    /// The same at `rate` bytes a second at most, of what is sent and of what is read back.
    async fn put_at(
        &self,
        name: &str,
        content: Bytes,
        rate: Option<u64>,
    ) -> Result<StoredObject, StoreError> {
        let stored =
            StoredObject { name: name.to_owned(), bytes: content.len() as u64, sha256: digest(&content) };
        if self.has(&stored, rate).await? {
            return Ok(stored);
        }
        pause(content.len(), rate).await;
        self.objects
            .put(&Path::from(name), PutPayload::from(content))
            .await
            .map_err(|e| self.failed(&e, name))?;
        self.verified(stored, rate).await
    }

    /// Stores a file likewise, in parts where it is large; at most `rate` bytes a second, those that are read back
    /// among them.
    ///
    /// # Errors
    /// It cannot be read or stored, or comes back as another.
    pub async fn put_file(
        &self,
        name: &str,
        file: &FilePath,
        rate: Option<u64>,
    ) -> Result<StoredObject, StoreError> {
        let unreadable =
            |why| StoreError::File { path: printable(&file.to_string_lossy(), 400).into_owned(), why };
        let mut reader = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let first = part(&mut reader).await.map_err(unreadable)?;
        if first.len() < PART {
            return self.put_at(name, first.into(), rate).await;
        }
        let stored = self.digest_of(name, file).await.map_err(unreadable)?;
        if self.has(&stored, rate).await? {
            return Ok(stored);
        }
        let mut upload =
            self.objects.put_multipart(&Path::from(name)).await.map_err(|e| self.failed(&e, name))?;
        let mut next = first;
        while !next.is_empty() {
            pause(next.len(), rate).await;
            let sent = upload.put_part(PutPayload::from(Bytes::from(next))).await;
            if let Err(error) = sent {
                // What it leaves is charged for until a rule of the bucket removes it.
                let _ = upload.abort().await;
                return Err(self.failed(&error, name));
            }
            self.has_moved();
            next = part(&mut reader).await.map_err(unreadable)?;
        }
        upload.complete().await.map_err(|e| self.failed(&e, name))?;
        self.verified(stored, rate).await
    }

    async fn digest_of(&self, name: &str, file: &FilePath) -> std::io::Result<StoredObject> {
        let mut reader = tokio::fs::File::open(file).await?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        loop {
            let next = part(&mut reader).await?;
            if next.is_empty() {
                return Ok(StoredObject { name: name.to_owned(), bytes, sha256: hex(&hash.finalize()) });
            }
            bytes += next.len() as u64;
            hash.update(&next);
            self.has_moved();
        }
    }

    /// Whether these very bytes are there.
    async fn has(&self, wanted: &StoredObject, rate: Option<u64>) -> Result<bool, StoreError> {
        let path = Path::from(&*wanted.name);
        let found = self.objects.head(&path).await;
        self.has_moved();
        match found {
            Err(object_store::Error::NotFound { source, .. }) if !is_missing_bucket(&source.to_string()) => {
                Ok(false)
            }
            Err(error) => Err(self.failed(&error, &wanted.name)),
            Ok(found) if found.size != wanted.bytes => Ok(false),
            Ok(_) => {
                let mut hash = Sha256::new();
                let mut from = 0;
                while from < wanted.bytes {
                    let until = (from + PART as u64).min(wanted.bytes);
                    pause(usize::try_from(until - from).unwrap_or(PART), rate).await;
                    let bytes = self
                        .objects
                        .get_range(&path, from..until)
                        .await
                        .map_err(|e| self.failed(&e, &wanted.name))?;
                    hash.update(&bytes);
                    from = until;
                    self.has_moved();
                }
                Ok(hex(&hash.finalize()) == wanted.sha256)
            }
        }
    }

    async fn verified(&self, stored: StoredObject, rate: Option<u64>) -> Result<StoredObject, StoreError> {
        match self.has(&stored, rate).await? {
            true => Ok(stored),
            false => Err(StoreError::Differs { store: self.address.to_string(), name: stored.name }),
        }
    }

    pub(crate) fn is_not_there(error: &object_store::Error) -> bool {
        matches!(error, object_store::Error::NotFound { source, .. } if !is_missing_bucket(&source.to_string()))
    }

    pub(crate) fn failed(&self, error: &object_store::Error, name: &str) -> StoreError {
        let (store, why) = (self.address.to_string(), words_of(error));
        match error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreError::Refused { store, why, variables: self.variables }
            }
            object_store::Error::NotFound { .. } => {
                let what = if is_missing_bucket(&why) { "the bucket".to_owned() } else { name.to_owned() };
                StoreError::NotFound { store, what, why }
            }
            // Where a condition is put, or a listing asked for, it has no kind of its own.
            _ if is_missing_bucket(&why) => {
                StoreError::NotFound { store, what: "the bucket".to_owned(), why }
            }
            // What lists has no kind of error for it. Without a key the host is asked for one, and fails in
            // its own words.
            _ if is_refusal(&why) || self.keyless => {
                StoreError::Refused { store, why, variables: self.variables }
            }
            _ => StoreError::Failed { store, why },
        }
    }
}

/// The settings of one kind of store that the environment has.
fn settings<K: FromStr>(
    environment: impl IntoIterator<Item = (String, String)>,
    prefix: &'static str,
) -> impl Iterator<Item = (K, String)> {
    environment.into_iter().filter_map(move |(name, value)| {
        let name = name.to_ascii_lowercase();
        Some((name.starts_with(prefix).then_some(&*name)?.parse().ok()?, value))
    })
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(30), backoff: BackoffConfig::default() }
}

fn wrong(address: &str, why: &str) -> StoreError {
    StoreError::Address { address: printable(address, 200).into_owned(), why: why.to_owned() }
}

fn folder(address: &str, url: &Url) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let path = url.to_file_path().map_err(|()| wrong(address, "a folder of this host has three slashes"))?;
    if !path.is_dir() {
        return Err(StoreError::NotFound {
            store: address.to_owned(),
            what: "the folder".into(),
            why: "create it, or mount what belongs there".into(),
        });
    }
    Ok(Arc::new(LocalFileSystem::new_with_prefix(&path).map_err(|e| wrong(address, &words_of(&e)))?))
}

/// The next bytes of a file, at most [`PART`]; none at its end.
async fn part(reader: &mut tokio::fs::File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(PART as u64).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Waits for as long as so many bytes take at that rate.
async fn pause(bytes: usize, rate: Option<u64>) {
    if let Some(rate) = rate.filter(|r| *r > 0) {
        tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
    }
}

pub(crate) fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Whether the words are of a store that does not know who asks.
fn is_refusal(words: &str) -> bool {
    let known = [
        "SignatureDoesNotMatch",
        "InvalidAccessKeyId",
        "AccessDenied",
        "InvalidToken",
        "ExpiredToken",
        "403 Forbidden",
        "401 Unauthorized",
    ];
    known.iter().any(|w| words.contains(w))
}

pub(crate) fn is_missing_bucket(words: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "bucket does not exist", "container does not exist"]
        .iter()
        .any(|w| words.contains(w))
}

/// The words of an error without what a store repeats of the request: S3 answers a wrong signature with the string
/// that was signed and the key's id.
fn words_of(error: &object_store::Error) -> String {
    let mut chain: Vec<String> = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        chain.push(inner.to_string());
        source = inner.source();
    }
    let tagged = |text: &str, tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once(&format!("</{tag}>"))?.0.to_owned())
    };
    let answer = chain.iter().find_map(|text| {
        let code = tagged(text, "Code")?;
        Some(tagged(text, "Message").map_or_else(|| code.clone(), |message| format!("{code}: {message}")))
    });
    let words = answer.unwrap_or_else(|| chain.pop().unwrap_or_default());
    printable(&words, 300).into_owned()
}
