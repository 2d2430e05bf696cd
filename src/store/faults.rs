//! A store that fails on command, for tests of everything above: [`Store::with_faults`](crate::store::Store::with_faults).
//!
//! Faults act below the façade, on single requests: an injected [`Kind::Unavailable`] is retried by the façade as a real one
//! would be (so one of them is survived, and [`Rule::always`] makes it last), a lie about success meets the façade's
//! confirmation, and a lost answer its comparison. [`Kind::Failed`] goes straight through to the caller.
//!
//! ```
//! # use lifeboat::{error::Kind, store::{Store, Verb, faults::{Effect, Faults, Rule}}};
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let faults = Faults::new();
//! let store = Store::with_faults(Store::in_memory(), faults.clone());
//! faults.add(Rule::on(Verb::Create).below("snapshots/").nth(2).then(Effect::Fail(Kind::Failed)));
//! assert!(store.create("snapshots/a", "1".into()).await.is_ok());
//! assert!(store.create("snapshots/b", "2".into()).await.is_err());
//! assert!(store.create("snapshots/b", "2".into()).await.is_ok());
//! # });
//! ```
//!
//! [`replace`], [`flip_byte`], [`truncate`] and [`remove`] damage what is stored, without any rule and past any log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::{Error, Kind, Result};
use crate::event::Pulse;
use crate::store::backend::{Backend, PutMode, Want};
use crate::store::metrics::Verb;
use crate::store::{MAX_OBJECT_BYTES, ObjectInfo, Store, check_key};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is not carried out, and fails.
    Fail(Kind),
    /// It is carried out, and then fails: the answer got lost.
    FailAfter(Kind),
    /// Create and delete: it is not carried out, and succeeds. Other verbs: carried out.
    Lie,
    /// Create: only so many first bytes are stored, and it succeeds.
    StoreOnly(usize),
    /// Create: the object is written even when one is there.
    IgnoreCondition,
    /// Get and get-range: so many bytes are missing at the end of the answer.
    Cut(usize),
    /// Get and get-range: this byte of the answer (modulo its length) has all its bits inverted.
    Flip(usize),
    /// Get, get-range, head: not found. List: objects that the rule's `below` matches are left out.
    Hide,
    /// It is carried out after this time.
    Delay(Duration),
    /// Create and delete: it fails as [`Kind::Unavailable`] at once, and is carried out after this time, whatever came since. Other verbs:
    /// carried out.
    Late(Duration),
}

/// Before or after a write took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The write did not happen.
    Before,
    /// The write happened; nobody heard of it.
    After,
}

/// Which requests are hit, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    verb: Option<Verb>,
    below: String,
    first: u64,
    last: u64,
    seen: u64,
    effect: Effect,
}

impl Rule {
    /// The next request of this verb; narrow or widen it with the methods below, and say what happens with [`Rule::then`].
    #[must_use]
    pub fn on(verb: Verb) -> Self {
        Self { verb: Some(verb), ..Self::any() }
    }

    /// The next request of any verb.
    #[must_use]
    pub fn any() -> Self {
        Self { verb: None, below: String::new(), first: 1, last: 1, seen: 0, effect: Effect::Fail(Kind::Failed) }
    }

    /// Only keys that start with this text. A listing matches when either its prefix or this text starts with the other.
    #[must_use]
    pub fn below(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.below);
        self
    }

    /// Only the `n`-th matching request from now on, counted from 1. Repetitions by the façade count.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        (self.first, self.last) = (n, n);
        self
    }

    /// The `n`-th matching request, counted from 1, and all after it.
    #[must_use]
    pub fn from(mut self, n: u64) -> Self {
        (self.first, self.last) = (n, u64::MAX);
        self
    }

    /// Every matching request.
    #[must_use]
    pub fn always(self) -> Self {
        self.from(1)
    }

    /// What happens.
    #[must_use]
    pub fn then(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    fn hits(&mut self, verb: Verb, key: &str) -> bool {
        let is_below = key.starts_with(&self.below) || (verb == Verb::List && self.below.starts_with(key));
        if self.verb.is_some_and(|wanted| wanted != verb) || !is_below {
            return false;
        }
        self.seen += 1;
        (self.first..=self.last).contains(&self.seen)
    }
}

/// One request that reached the faulty store, in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub verb: Verb,
    /// The key, or the prefix of a listing.
    pub key: String,
    /// Bytes to be written, or that were read (of a range that failed: asked for); else 0.
    pub bytes: u64,
    /// The kind of failure that was answered; `None` for success, and while it is under way.
    pub failed: Option<Kind>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    calls: Vec<Call>,
    /// Writes that still go through before the crash, and how the crash meets the one after them.
    crash: Option<(u64, When)>,
    crashed: bool,
    /// Requests that will still be carried out.
    late: usize,
}

/// The programme of a faulty store; clones share it, and it may be changed while the store is in use.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// No faults yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule. Of several that hit a request the one added first acts; the others count it too.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Forgets all rules and heals a crash. The log stays.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.crash = None;
        state.crashed = false;
    }

    /// The `n`-th create or delete from now on, counted from 1, and everything after it fails with [`Kind::Failed`], as if the
    /// process had been killed there; `when` says whether that write itself took effect. [`Faults::clear`] ends it.
    pub fn crash_at_write(&self, n: u64, when: When) {
        let mut state = self.state();
        state.crash = Some((n.saturating_sub(1), when));
        state.crashed = false;
    }

    /// Whether the crash has happened.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.state().crashed
    }

    /// How many requests that were answered already will still be carried out (see [`Effect::Late`]).
    #[must_use]
    pub fn late(&self) -> usize {
        self.state().late
    }

    fn come_late(&self, time: Duration, action: impl Future<Output = ()> + Send + 'static) {
        self.state().late += 1;
        let faults = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            action.await;
            faults.state().late -= 1;
        });
    }

    /// Everything that was asked so far, the façade's own looks and repetitions included.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Keys of successful requests of one verb, in the order of their arrival.
    #[must_use]
    pub fn keys(&self, verb: Verb) -> Vec<String> {
        self.state().calls.iter().filter(|call| call.verb == verb && call.failed.is_none()).map(|call| call.key.clone()).collect()
    }

    /// Empties the log.
    pub fn forget_calls(&self) {
        self.state().calls.clear();
    }

    /// The wrapper.
    pub(crate) fn around(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(Faulty { inner, faults: self.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a request and says what befalls it.
    fn begin(&self, verb: Verb, key: &str, bytes: u64) -> (usize, Option<(Effect, String)>) {
        let mut state = self.state();
        state.calls.push(Call { verb, key: key.to_owned(), bytes, failed: None });
        let index = state.calls.len() - 1;
        let mut effect = None;
        for rule in &mut state.rules {
            if rule.hits(verb, key) && effect.is_none() {
                effect = Some((rule.effect, rule.below.clone()));
            }
        }
        if state.crashed {
            effect = Some((Effect::Fail(Kind::Failed), String::new()));
        } else if matches!(verb, Verb::Create | Verb::Delete) {
            match &mut state.crash {
                Some((0, when)) => {
                    let when = *when;
                    state.crashed = true;
                    let crash = if when == When::Before { Effect::Fail(Kind::Failed) } else { Effect::FailAfter(Kind::Failed) };
                    effect = Some((crash, String::new()));
                }
                Some((left, _)) => *left -= 1,
                None => {}
            }
        }
        (index, effect)
    }

    /// `read`: the bytes of what was answered.
    fn end<T>(&self, index: usize, result: Result<T>, read: impl FnOnce(&T) -> u64) -> Result<T> {
        if let Some(call) = self.state().calls.get_mut(index) {
            match &result {
                Ok(answer) => call.bytes = call.bytes.max(read(answer)),
                Err(error) => call.failed = Some(error.kind()),
            }
        }
        result
    }

    /// Carries one request out, under its effect.
    async fn during<T>(
        &self,
        (verb, key, bytes): (Verb, &str, u64),
        action: impl AsyncFnOnce(Option<(Effect, String)>) -> Result<T>,
        read: impl FnOnce(&T) -> u64,
    ) -> Result<T> {
        let (index, effect) = self.begin(verb, key, bytes);
        let injected = |kind| Err(Error::new(kind, format!("injected fault: {} {key}", verb.word())));
        let result = match &effect {
            Some((Effect::Fail(kind), _)) => injected(*kind),
            Some((Effect::FailAfter(kind), _)) => match action(None).await {
                Ok(_) => injected(*kind),
                Err(error) => Err(error),
            },
            Some((Effect::Hide, _)) if matches!(verb, Verb::Get | Verb::GetRange | Verb::Head) => injected(Kind::NotFound),
            Some((Effect::Delay(time), _)) => {
                tokio::time::sleep(*time).await;
                action(None).await
            }
            _ => action(effect).await,
        };
        self.end(index, result, read)
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn Backend>,
    faults: Faults,
}

impl Backend for Faulty {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes, mode: PutMode) -> BoxFuture<'a, Result<()>> {
        let size = bytes.len() as u64;
        let action = async move |effect: Option<(Effect, String)>| match effect {
            Some((Effect::Lie, _)) => Ok(()),
            Some((Effect::StoreOnly(first), _)) => self.inner.put(key, bytes.slice(..first.min(bytes.len())), mode).await,
            Some((Effect::IgnoreCondition, _)) => self.inner.put(key, bytes, PutMode::Overwrite).await,
            Some((Effect::Late(time), _)) => {
                let (inner, own) = (Arc::clone(&self.inner), key.to_owned());
                // Nobody waits for its answer.
                self.faults.come_late(time, async move { drop(inner.put(&own, bytes, mode).await) });
                Err(late(Verb::Create, key))
            }
            _ => self.inner.put(key, bytes, mode).await,
        };
        async move { self.faults.during((Verb::Create, key, size), action, |()| 0).await }.boxed()
    }

    fn get<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Bytes>> {
        let (verb, size) = match &want {
            Want::All { .. } => (Verb::Get, 0),
            Want::Range(range) => (Verb::GetRange, range.end - range.start),
        };
        let action = async move |effect: Option<(Effect, String)>| {
            let bytes = self.inner.get(key, want).await?;
            Ok(match effect {
                Some((Effect::Cut(missing), _)) => bytes.slice(..bytes.len().saturating_sub(missing)),
                Some((Effect::Flip(at), _)) => flipped(&bytes, at),
                _ => bytes,
            })
        };
        async move { self.faults.during((verb, key, size), action, |bytes| bytes.len() as u64).await }.boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectInfo>> {
        let action = async move |_| self.inner.head(key).await;
        async move { self.faults.during((Verb::Head, key, 0), action, |_| 0).await }.boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, pulse: &'a Pulse) -> BoxFuture<'a, Result<Vec<ObjectInfo>>> {
        let action = async move |effect: Option<(Effect, String)>| {
            let mut objects = self.inner.list(prefix, pulse).await?;
            if let Some((Effect::Hide, below)) = effect {
                objects.retain(|object| !object.key.starts_with(&below));
            }
            Ok(objects)
        };
        async move { self.faults.during((Verb::List, prefix, 0), action, |_| 0).await }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        let action = async move |effect: Option<(Effect, String)>| match effect {
            Some((Effect::Lie, _)) => Ok(()),
            Some((Effect::Late(time), _)) => {
                let (inner, own) = (Arc::clone(&self.inner), key.to_owned());
                self.faults.come_late(time, async move { drop(inner.delete(&own).await) });
                Err(late(Verb::Delete, key))
            }
            _ => self.inner.delete(key).await,
        };
        async move { self.faults.during((Verb::Delete, key, 0), action, |()| 0).await }.boxed()
    }
}

fn late(verb: Verb, key: &str) -> Error {
    Error::new(Kind::Unavailable, format!("injected fault: {} {key}: it comes late", verb.word()))
}

fn flipped(bytes: &Bytes, at: usize) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    let mut damaged = bytes.to_vec();
    let at = at % damaged.len();
    damaged[at] = !damaged[at];
    damaged.into()
}

/// Puts `bytes` in the place of an object, or makes one. Damage for tests; works on any store.
///
/// # Errors
/// Those of the store.
pub async fn replace(store: &Store, key: &str, bytes: Bytes) -> Result<()> {
    check_key(key)?;
    store.beneath().put(key, bytes, PutMode::Overwrite).await
}

/// Inverts the byte `at` (modulo the size) of a stored object.
///
/// # Errors
/// Those of the store.
pub async fn flip_byte(store: &Store, key: &str, at: usize) -> Result<()> {
    let bytes = stored(store, key).await?;
    replace(store, key, flipped(&bytes, at)).await
}

/// Keeps only the first `size` bytes of a stored object.
///
/// # Errors
/// Those of the store.
pub async fn truncate(store: &Store, key: &str, size: usize) -> Result<()> {
    let bytes = stored(store, key).await?;
    replace(store, key, bytes.slice(..size.min(bytes.len()))).await
}

/// Makes a stored object disappear; one that is not there is an error, so that a test does not damage nothing.
///
/// # Errors
/// [`Kind::NotFound`], and those of the store.
pub async fn remove(store: &Store, key: &str) -> Result<()> {
    check_key(key)?;
    store.beneath().head(key).await?;
    store.beneath().delete(key).await
}

async fn stored(store: &Store, key: &str) -> Result<Bytes> {
    check_key(key)?;
    store.beneath().get(key, Want::All { limit: MAX_OBJECT_BYTES }).await
}
