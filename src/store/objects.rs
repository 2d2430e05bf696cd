//! Any `object_store` client as a [`Backend`]: S3, Google, Azure, memory, and the reading half of local folders.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutOptions};

use crate::error::{Error, Kind, Result};
use crate::event::Pulse;
use crate::store::ObjectInfo;
use crate::store::backend::{Backend, PutMode, Want};
use crate::store::bucket::LockedWriter;
use crate::store::limits::Rate;
use crate::store::refusal::{READ, Refusals};

/// One bucket or folder below a prefix.
#[derive(Debug)]
pub(crate) struct Objects {
    /// Puts go through this client, whose read timeout is as long as an upload may take.
    ///
    /// reqwest 0.13 starts the read timeout when the request is sent, so it covers the whole upload
    /// (`async_impl/client.rs`, `PendingRequest::poll`).
    pub writer: Arc<dyn ObjectStore>,
    /// Puts of what is kept under retention.
    pub locked: Option<LockedWriter>,
    /// Everything else: silence is noticed soon.
    pub reader: Arc<dyn ObjectStore>,
    /// The repository's root in the bucket; empty for none.
    pub prefix: Path,
    /// Turns foreign errors into ours.
    pub refusals: Refusals,
    /// Paces bodies as they arrive.
    pub download: Option<Arc<Rate>>,
}

impl Objects {
    /// The place of a key.
    fn path(&self, key: &str) -> Result<Path> {
        let full = if self.prefix.as_ref().is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        // Prefix and key were validated, so this cannot fail; the error is kept for whoever loosens that.
        Path::parse(&full).map_err(|_| Error::new(Kind::Bug, format!("not a path for an object store: {full:?}")))
    }

    fn info(&self, meta: &ObjectMeta) -> Option<ObjectInfo> {
        let full = meta.location.as_ref();
        let key = match self.prefix.as_ref() {
            "" => full,
            prefix => full.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Some(ObjectInfo { key: key.to_owned(), size: meta.size, modified: meta.last_modified })
    }

    async fn read(&self, key: &str, want: Want) -> Result<Bytes> {
        let refused = |error| self.refusals.error(READ, key, error);
        let path = self.path(key)?;
        let range = match &want {
            Want::All { .. } => None,
            Want::Range(range) => Some(GetRange::Bounded(range.clone())),
        };
        let answer = match self.reader.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.outside(key, &want, refused(error)).await),
        };
        let expected = match &want {
            Want::All { limit } if answer.meta.size > *limit => {
                let size = answer.meta.size;
                return Err(self.damaged(key, format!("it has {size} bytes, more than the greatest object ({limit})")));
            }
            Want::All { .. } => answer.meta.size,
            Want::Range(range) if answer.range != *range => return Err(self.too_short(key, range, answer.meta.size)),
            Want::Range(range) => range.end - range.start,
        };
        let bytes = match &self.download {
            None => answer.bytes().await.map_err(refused)?,
            Some(rate) => {
                let mut body = answer.into_stream();
                let mut bytes = BytesMut::new();
                while let Some(piece) = body.next().await {
                    let piece = piece.map_err(refused)?;
                    rate.take(piece.len() as u64).await;
                    bytes.extend_from_slice(&piece);
                }
                bytes.freeze()
            }
        };
        if bytes.len() as u64 == expected {
            Ok(bytes)
        } else {
            let message = self.refusals.message("read", key);
            Err(Error::new(Kind::Unavailable, format!("{message}: {} of {expected} bytes arrived", bytes.len())))
        }
    }

    /// A range that starts at or after the end is refused in a different way by each store; the size tells.
    async fn outside(&self, key: &str, want: &Want, error: Error) -> Error {
        match want {
            Want::Range(range) if error.kind() == Kind::Failed => match self.head(key).await {
                Ok(info) if info.size < range.end => self.too_short(key, range, info.size),
                _ => error,
            },
            _ => error,
        }
    }

    fn too_short(&self, key: &str, range: &Range<u64>, size: u64) -> Error {
        self.damaged(key, format!("bytes {}..{} were asked for but it has only {size}", range.start, range.end))
    }

    /// A key that is none for the client ends its listing: then the error says which it is, and what to do about it.
    fn unlisted(&self, folder: &str, error: object_store::Error) -> Error {
        use object_store::path::Error as Name;
        let key = match &error {
            object_store::Error::InvalidPath { source: Name::BadSegment { path, .. } | Name::EmptySegment { path } } => Some(path.clone()),
            _ => None,
        };
        let refused = self.refusals.error("list", folder, error);
        match key {
            Some(key) => refused.hint(format!(
                "somebody has put the object {key:?} into the bucket, and a control character or an empty name in a key (as `Icon\\r`, which macOS puts into folders) keeps \
                 everything beside it from being listed: it is none of the repository's, take it out with the store's own tools"
            )),
            None => refused,
        }
    }

    fn damaged(&self, key: &str, what: String) -> Error {
        Error::new(Kind::Damaged, format!("{}: {what}", self.refusals.message("read", key)))
    }
}

impl Backend for Objects {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes, mode: PutMode) -> BoxFuture<'a, Result<()>> {
        async move {
            let mode = match mode {
                PutMode::Create => object_store::PutMode::Create,
                PutMode::Overwrite => object_store::PutMode::Overwrite,
            };
            let options = PutOptions { mode, ..PutOptions::default() };
            let writer = match self.locked.as_ref().and_then(|locked| Some((locked, locked.lock.of(key)?))) {
                Some((locked, retention)) => locked.client(retention, chrono::Utc::now())?,
                None => self.writer.clone(),
            };
            let put = writer.put_opts(&self.path(key)?, bytes.into(), options).await;
            put.map(|_| ()).map_err(|error| self.refusals.error("write", key, error))
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Bytes>> {
        self.read(key, want).boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectInfo>> {
        async move {
            let meta = self.reader.head(&self.path(key)?).await.map_err(|error| self.refusals.error("look at", key, error))?;
            Ok(ObjectInfo { key: key.to_owned(), size: meta.size, modified: meta.last_modified })
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, pulse: &'a Pulse) -> BoxFuture<'a, Result<Vec<ObjectInfo>>> {
        async move {
            let path = if prefix.is_empty() { self.prefix.clone() } else { self.path(prefix)? };
            let folder = if path.as_ref().is_empty() { None } else { Some(&path) };
            self.reader
                .list(folder)
                .map_err(|error| self.unlisted(prefix, error))
                .inspect_ok(|_| pulse.beat())
                .try_filter_map(|meta| futures::future::ok(self.info(&meta)))
                .try_collect()
                .await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            match self.reader.delete(&self.path(key)?).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.refusals.error("delete", key, error)),
            }
        }
        .boxed()
    }
}
