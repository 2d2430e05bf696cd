//! Whether what notifiers need to reach anybody can be had: an address that is not set is noticed before there is something to say.

use crate::daemon::alarms::{self, Alarm, key_of};
use crate::daemon::status::ProblemKind;
use crate::error::Result;
use crate::ops::explain;
use crate::ops::resolve::Surroundings;
use crate::plan::{EnvironmentValue, NotifierKind, Plans, SecretRef};

const KEY: &str = "secret-notifier-";

/// Looks at the secrets of all notifiers once, raises and ends alarms. Secrets that a command prints are left out: it may ask somebody, or a vault that counts.
///
/// # Errors
/// When alarms cannot be read or written.
pub(super) fn look(plans: &Plans, surroundings: &Surroundings) -> Result<()> {
    let mut standing = Vec::new();
    for notifier in plans.notifiers.values() {
        let missing =
            secrets(&notifier.kind).filter(|secret| !matches!(secret, SecretRef::Command(_))).find_map(|secret| secret.resolve().err());
        let Some(error) = missing else { continue };
        let key = format!("{KEY}{}", key_of(notifier.name.as_str()));
        let message = format!("notifier {} reaches nobody: a secret of it cannot be had: {}", notifier.name, explain(&error));
        let alarm = Alarm { kind: ProblemKind::SecretUnavailable.word().to_owned(), plan: None, message, since: surroundings.clock.now() };
        alarms::raise(&surroundings.state, &key, &alarm)?;
        standing.push(key);
    }
    for key in alarms::keys(&surroundings.state)? {
        if key.starts_with(KEY) && !standing.contains(&key) {
            alarms::clear(&surroundings.state, &key)?;
        }
    }
    Ok(())
}

fn secrets(kind: &NotifierKind) -> impl Iterator<Item = &SecretRef> {
    let (first, values) = match kind {
        NotifierKind::Webhook { address, .. } | NotifierKind::Heartbeat { address, .. } => (Some(&address.url), Some(&address.headers)),
        NotifierKind::Email { credentials, .. } => (credentials.as_ref().map(|(_, secret)| secret), None),
        NotifierKind::Command { environment, .. } => (None, Some(environment)),
    };
    let values = values.into_iter().flat_map(|values| values.values()).filter_map(|value| match value {
        EnvironmentValue::Secret(secret) => Some(secret),
        EnvironmentValue::Plain(_) => None,
    });
    first.into_iter().chain(values)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;
    use crate::event::{Cancel, Silent};
    use crate::ops::CommitGate;

    #[test]
    fn a_secret_that_cannot_be_had_is_an_alarm_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("address");
        let text = format!(
            "version = 1\n[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = {{ env = \"NONE\" }}\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n\
             [notify.hook]\nkind = \"webhook\"\nurl = {{ file = \"{}\" }}\n[notify.asks]\nkind = \"webhook\"\nurl = {{ command = [\"/nowhere/vault\"] }}\n\
             [plan.p]\nsource = \"a\"\nrepository = \"main\"\nnotify = [\"hook\", \"asks\"]\n",
            secret.display()
        );
        let file = folder.path().join("plans.toml");
        std::fs::write(&file, text).unwrap();
        let plans = Plans::load(&[file]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().join("state"),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        std::fs::create_dir(&surroundings.state).unwrap();
        let told = || {
            look(&plans, &surroundings).unwrap();
            alarms::standing(&surroundings.state).unwrap()
        };
        let alarms = told();
        assert_eq!(alarms.iter().map(|alarm| alarm.kind.as_str()).collect::<Vec<_>>(), ["secret-unavailable"]);
        assert!(alarms[0].message.contains("notifier hook") && alarms[0].message.contains("address"), "{alarms:?}");
        std::fs::write(&secret, "https://hooks.example.com/x").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(told(), []);
    }
}
