//! A bucket of the S3 API as a target.
//!
//! The calls run on the control thread's runtime; the thread that makes a backup waits for each. Keys, region and
//! endpoint come from the environment of the process, under the names that all tools use (AWS_ACCESS_KEY_ID,
//! AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP).

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_storage::{Budget, Object, Target, TargetError};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectStore, PutMode, PutOptions, PutPayload, RetryConfig};

use super::chain;
use crate::control::Control;

/// Longest time of one request: 8 MiB within it is 28 KiB a second.
const REQUEST_MAX: Duration = Duration::from_secs(300);
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Tries of one call, and how long they may take together.
const RETRIES_MAX: usize = 4;
const RETRY_MAX: Duration = Duration::from_secs(120);
/// How soon a call notices that it shall stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Where a process may have its keys from; without one of them the client would ask the network around it.
const IDENTITIES: [&str; 4] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
];

pub(super) struct S3 {
    store: AmazonS3,
    prefix: String,
    url: String,
    runtime: tokio::runtime::Handle,
    stopped: Arc<AtomicBool>,
}

impl S3 {
    pub fn open(
        bucket: &str,
        prefix: &str,
        url: String,
        control: &Control,
        stopped: Arc<AtomicBool>,
    ) -> Result<Self, String> {
        let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let has = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let keys = [AmazonS3ConfigKey::AccessKeyId, AmazonS3ConfigKey::SecretAccessKey];
        let keys = keys.iter().all(|key| builder.get_config_value(key).is_some_and(|value| !value.is_empty()));
        if !keys && !IDENTITIES.into_iter().any(has) {
            return Err("there are no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment".into());
        }
        let plain =
            builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some_and(|url| url.starts_with("http://"));
        let allowed = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1");
        if plain && !allowed {
            return Err("the endpoint speaks plain HTTP: set AWS_ALLOW_HTTP=true if that is meant".into());
        }
        let client =
            ClientOptions::new().with_timeout(REQUEST_MAX).with_connect_timeout(CONNECT_MAX).with_allow_http(plain);
        let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_MAX, ..RetryConfig::default() };
        let store = builder.with_client_options(client).with_retry(retry).build().map_err(|error| error.to_string())?;
        Ok(Self { store, prefix: prefix.to_owned(), url, runtime: control.runtime(), stopped })
    }

    fn path(&self, name: &str) -> Path {
        if self.prefix.is_empty() { Path::from(name) } else { Path::from(format!("{}/{name}", self.prefix)) }
    }

    /// Waits for a call on the control thread, or until it shall stop.
    fn wait<T>(&self, call: impl Future<Output = object_store::Result<T>>) -> Result<T, TargetError> {
        self.runtime.block_on(async {
            let mut call = pin!(call);
            loop {
                match tokio::time::timeout(LOOK_EVERY, &mut call).await {
                    Ok(outcome) => return outcome.map_err(failed),
                    Err(_) if self.stopped.load(Ordering::Relaxed) => return Err(TargetError::Stopped),
                    Err(_) => {}
                }
            }
        })
    }

    fn put_mode(&self, name: &str, bytes: PutPayload, mode: PutMode) -> Result<(), TargetError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.wait(self.store.put_opts(&self.path(name), bytes, options)).map(drop)
    }
}

fn failed(error: Error) -> TargetError {
    match error {
        Error::NotFound { .. } => TargetError::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => TargetError::Exists,
        other => TargetError::Failed(chain(&other)),
    }
}

impl Target for S3 {
    fn place(&self) -> String {
        self.url.clone()
    }

    fn put(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        budget.spend(bytes.len() as u64)?;
        self.put_mode(name, bytes.into(), PutMode::Overwrite)
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        budget.spend(bytes.len() as u64)?;
        let payload = PutPayload::from(bytes);
        match self.wait(self.store.put_opts(&self.path(name), payload.clone(), PutMode::Create.into())) {
            Ok(_) => Ok(()),
            // Some servers do not know conditional writes. A line has one writer, so looking first is enough there.
            Err(TargetError::Failed(text))
                if text.contains("NotImplemented") || text.contains("not yet implemented") =>
            {
                match self.wait(self.store.head(&self.path(name))) {
                    Ok(_) => Err(TargetError::Exists),
                    Err(TargetError::NotFound) => self.put_mode(name, payload, PutMode::Overwrite),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn get(&self, name: &str, bytes_max: u64, budget: &Budget) -> Result<Vec<u8>, TargetError> {
        let path = self.path(name);
        let bytes = self.wait(async {
            let found = self.store.get(&path).await?;
            if found.meta.size > bytes_max {
                let source = format!("it has {} bytes, at most {bytes_max} are expected", found.meta.size).into();
                return Err(Error::Generic { store: "S3", source });
            }
            found.bytes().await
        })?;
        budget.spend(bytes.len() as u64)?;
        Ok(bytes.into())
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, TargetError> {
        self.wait(self.store.get_range(&self.path(name), range)).map(Into::into)
    }

    fn list(&self, folder: &str) -> Result<Vec<Object>, TargetError> {
        let prefix = self.path(folder);
        let mut found = Vec::new();
        let mut after: Option<Path> = None;
        loop {
            // A page at a time, so that a stop is noticed and no stream is held over calls.
            let page = self.wait(self.page(&prefix, after.as_ref())).map_err(|error| match error {
                // An empty listing is no error, so it is the bucket that is not there.
                TargetError::NotFound => TargetError::Failed("there is no such bucket".into()),
                other => other,
            })?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            after = Some(last.clone());
            let own = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
            let named = page
                .into_iter()
                .filter_map(|(path, bytes)| Some(Object { name: path.as_ref().get(own..)?.to_owned(), bytes }));
            found.extend(named);
        }
    }

    fn remove(&self, name: &str) -> Result<(), TargetError> {
        match self.wait(self.store.delete(&self.path(name))) {
            Err(TargetError::NotFound) => Ok(()),
            other => other,
        }
    }
}

/// Objects of one page of a listing.
const PAGE_OBJECTS: usize = 1_000;

impl S3 {
    async fn page(&self, prefix: &Path, after: Option<&Path>) -> object_store::Result<Vec<(Path, u64)>> {
        let mut objects = match after {
            Some(after) => self.store.list_with_offset(Some(prefix), after),
            None => self.store.list(Some(prefix)),
        };
        let mut page = Vec::new();
        while page.len() < PAGE_OBJECTS
            && let Some(object) = std::future::poll_fn(|context| objects.as_mut().poll_next(context)).await
        {
            let object = object?;
            page.push((object.location, object.size));
        }
        Ok(page)
    }
}
