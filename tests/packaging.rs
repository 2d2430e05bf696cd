//! What is shipped beside the program: alert rules, dashboard, unit, Debian package, container file, Kubernetes manifests. Each is held
//! against the tools of its field; a tool that is missing is a failure.

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]
#![expect(clippy::format_push_string, clippy::format_collect, reason = "texts of a test, made once")]

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::tool;
use workspace::{PASSPHRASE, text};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn packaged(path: &str) -> String {
    let path = root().join("packaging").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn succeeds(command: &mut Command) -> String {
    let output: Output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// The first word after each mention of a key.
fn values<'a>(document: &'a str, key: &str) -> BTreeSet<&'a str> {
    document.lines().filter_map(|line| line.trim_start_matches(['-', ' ']).strip_prefix(key)?.split_whitespace().next()).collect()
}

#[test]
fn alert_rules_are_valid_and_each_fires_and_clears() {
    let folder = root().join("packaging/prometheus");
    succeeds(Command::new(tool("promtool")).args(["check", "rules", "--lint-fatal"]).arg(folder.join("alerts.yml")));
    succeeds(Command::new(tool("promtool")).args(["test", "rules", "alerts_test.yml"]).current_dir(&folder));
    let (rules, tests) = (packaged("prometheus/alerts.yml"), packaged("prometheus/alerts_test.yml"));
    let alerts = values(&rules, "alert: ");
    assert!(alerts.len() >= 18, "{alerts:?}");
    assert_eq!(rules.matches("severity: page").count() + rules.matches("severity: ticket").count(), alerts.len());
    assert_eq!(rules.matches("summary: ").count(), alerts.len());
    assert_eq!(rules.matches("action: ").count(), alerts.len());
    for alert in alerts {
        let silent = format!("alertname: {alert}, exp_alerts: []");
        let firing = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels");
        assert!(tests.matches(&silent).count() >= 2, "{alert} is not tested before and after it fires");
        assert!(tests.contains(&firing), "{alert} is not tested to fire");
    }
}

#[test]
fn the_dashboard_is_one_and_its_queries_can_be_read() {
    let dashboard: Value = serde_json::from_str(&packaged("grafana/lifeboat.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let folder = tempfile::tempdir().unwrap();
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    let mut queries = 0;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["gridPos"]["x"].as_u64().unwrap() + panel["gridPos"]["w"].as_u64().unwrap() <= 24, "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            // Prometheus has no variables: any value stands for them.
            let query = target["expr"].as_str().unwrap().replace("$instance", "a").replace("$plan", "crm");
            rules.push_str(&format!("      - record: dashboard:query:{queries}\n        expr: {}\n", Value::from(query)));
            queries += 1;
        }
    }
    assert!(queries > 30, "{queries}");
    let file = folder.path().join("dashboard.yml");
    std::fs::write(&file, rules).unwrap();
    succeeds(Command::new(tool("promtool")).args(["check", "rules"]).arg(file));
}

#[test]
fn the_unit_is_valid_and_hardened() {
    let unit = root().join("packaging/systemd/lifeboat.service");
    // 15 of 100: the figure of docs/security.md.
    let said = succeeds(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=15", "--no-pager"]).arg(&unit));
    let figure = said.lines().rev().find(|line| line.contains("Overall exposure level")).unwrap();
    println!("{figure}");
    let documented = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let level = figure.split(": ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(documented.contains(&format!("exposure level {level}")), "docs/security.md does not say {level}");
}

#[test]
fn the_container_file_is_clean_and_copies_what_is_there() {
    let file = root().join("packaging/container/Containerfile");
    succeeds(Command::new(tool("hadolint")).arg(&file));
    let text = packaged("container/Containerfile");
    let ignored = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let mut stages = 0;
    for line in text.lines() {
        if line.starts_with("FROM ") {
            stages += 1;
        }
        let Some(words) = line.strip_prefix("COPY ") else { continue };
        let words: Vec<&str> = words.split_whitespace().collect();
        if words[0].starts_with("--from=") {
            assert!(text.contains(&format!("AS {}", &words[0]["--from=".len()..])), "{line}");
            continue;
        }
        for source in &words[..words.len() - 1] {
            assert!(root().join(source).exists(), "{line}: {source} is not there");
            assert!(ignored.lines().any(|kept| kept == format!("!{source}")), "{source} is kept out by .dockerignore");
        }
    }
    // What cargo needs is in: every target that Cargo.toml names by a path of its own.
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("[[bench]]") || text.contains("COPY benches"), "cargo refuses a manifest whose benches are missing");
    assert_eq!(stages, 2);
    let last = text.lines().rev().find(|line| line.starts_with("USER ")).unwrap();
    let user: u32 = last["USER ".len()..].split(':').next().unwrap().parse().expect("a number, so that runAsNonRoot can be checked");
    assert!(user > 0);
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().trim_end_matches('"');
    assert!(text.contains(&format!("rust:{rust}-")), "the image builds with another Rust than Cargo.toml asks for");
}

#[test]
fn kubernetes_manifests_fit_the_schema_and_give_no_rights_away() {
    let folder = root().join("packaging/kubernetes");
    let files: Vec<PathBuf> = ["config.yaml", "deployment.yaml", "cronjob.yaml"].iter().map(|name| folder.join(name)).collect();
    let said = succeeds(Command::new(tool("kubernetes-validate")).args(["--strict", "-k", "1.32"]).args(&files));
    assert_eq!(said.matches("passed for resource").count(), 7, "{said}");
    for name in ["deployment.yaml", "cronjob.yaml"] {
        let text = packaged(&format!("kubernetes/{name}"));
        for wanted in [
            "runAsNonRoot: true",
            "allowPrivilegeEscalation: false",
            "readOnlyRootFilesystem: true",
            "capabilities: {drop: [ALL]}",
            "automountServiceAccountToken: false",
            "seccompProfile: {type: RuntimeDefault}",
            "runAsUser: 9847",
        ] {
            assert!(text.contains(wanted), "{name}: {wanted}");
        }
    }
    assert!(packaged("container/Containerfile").contains("USER 9847:9847"));
    // Their arguments are ones that the program knows, and their plan is a valid one.
    let config = packaged("kubernetes/config.yaml");
    let plan = config.split("  crm.toml: |\n").nth(1).unwrap().split("\n---").next().unwrap();
    let plan: String = plan.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let plans = tempfile::tempdir().unwrap();
    std::fs::write(plans.path().join("crm.toml"), plan).unwrap();
    succeeds(workspace::bare(&["plan", "check"]).arg(plans.path()));
    let help = succeeds(&mut workspace::bare(&["serve", "--help"]));
    let deployment = packaged("kubernetes/deployment.yaml");
    let options = deployment.lines().filter_map(|line| line.trim().strip_prefix("- --"));
    for option in options {
        assert!(help.contains(&format!("--{option}")), "serve does not know --{option}");
    }
}

/// Runs in a mount and PID namespace whose root is this system seen through an overlay: what the package does to it is gone afterwards, and
/// can be looked at before.
const INSTALL: &str = r#"
set -eu
package=$1 scratch=$2
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/changed" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/changed,workdir=$scratch/work" "$scratch/root"
mount -t proc proc "$scratch/root/proc"
mount --rbind /dev "$scratch/root/dev"
mount -t tmpfs tmpfs "$scratch/root/run"
cp "$package" "$scratch/root/lifeboat.deb"
cp "$3" "$scratch/root/inside"
exec chroot "$scratch/root" sh /inside
"#;

/// Inside: installs, looks, starts as the unit would, removes, purges.
const INSIDE: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
say() { echo "== $*"; }
# The loopback of this namespace is down; ip(8) need not be installed.
python3 -c 'import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))'
listing() { find /etc /usr /lib/ /var /opt /srv /home /root -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache \) -prune -o -print | grep -Ev "^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$|^/etc/.pwd.lock$|__pycache__" | sort; }
listing >/before
dpkg -i /lifeboat.deb >/dpkg.log 2>&1 || { cat /dpkg.log; exit 1; }
dpkg -s lifeboat | grep -q '^Status: install ok installed$'
say installed
lifeboat --version
id lifeboat
test "$(stat -c '%U %a' /etc/lifeboat/credentials)" = 'root 700'
# Minimal images leave out manuals and documents on purpose.
dpkg --verify lifeboat | grep -Ev '/usr/share/(man|doc)/' >/broken || true
test ! -s /broken || { cat /broken; exit 1; }
test -s /usr/share/bash-completion/completions/lifeboat
systemd-analyze verify --man=no /lib/systemd/system/lifeboat.service
test -L /etc/systemd/system/multi-user.target.wants/lifeboat.service
say verified

# As the unit says, without systemd as process 1: its user, its folders, its credential, its environment.
unit=/lib/systemd/system/lifeboat.service
cat >/etc/lifeboat/plans/crm.toml <<PLAN
version = 1
[repository.main]
url = "file:///var/lib/lifeboat/repository"
passphrase = { credential = "lifeboat_passphrase" }
[source.etc]
kind = "files"
path = "/etc/lifeboat/plans"
[plan.crm]
source = "etc"
repository = "main"
PLAN
install -d -o lifeboat -g lifeboat -m 0700 /var/lib/lifeboat
install -d -o lifeboat -g lifeboat -m 0700 /run/credentials
printf PASSPHRASE >/run/credentials/lifeboat_passphrase
chown lifeboat /run/credentials/lifeboat_passphrase; chmod 0400 /run/credentials/lifeboat_passphrase
as_unit() { setpriv --reuid lifeboat --regid lifeboat --init-groups --no-new-privs --bounding-set=-all env -i PATH=/usr/bin:/bin STATE_DIRECTORY=/var/lib/lifeboat CREDENTIALS_DIRECTORY=/run/credentials "$@"; }
as_unit /usr/bin/lifeboat repo init main --plans /etc/lifeboat/plans >/dev/null
start=$(sed -n 's/^ExecStart=//p' $unit)
environment=$(sed -n 's/^Environment=//p' $unit)
cat >/notify.py <<'PY'
import os, socket, sys, subprocess, time, urllib.request, signal
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); listener.bind('/run/notify'); os.chmod('/run/notify', 0o777); listener.settimeout(100)
environment = dict(os.environ, NOTIFY_SOCKET='/run/notify', WATCHDOG_USEC='120000000')
daemon = subprocess.Popen(sys.argv[1:], env=environment)
told = []
def wait(word):
    while word not in ''.join(told):
        told.append(listener.recv(65536).decode())
wait('READY=1')
token = open('/var/lib/lifeboat/api.token').read().strip()
asked = urllib.request.Request('http://127.0.0.1:9847/api/v1/plans', headers={'Authorization': 'Bearer ' + token})
assert b'crm' in urllib.request.urlopen(asked, timeout=30).read()
daemon.send_signal(signal.SIGTERM)
wait('STOPPING=1')
code = daemon.wait(100)
assert code == 0, code
print('told', sorted({line.split('=')[0] for line in ''.join(told).split()  if '=' in line}))
PY
# shellcheck disable=SC2086  # several words on purpose
as_unit env $environment python3 /notify.py $start
as_unit /usr/bin/lifeboat backup crm --plans /etc/lifeboat/plans --json >/dev/null
say ran

dpkg -r lifeboat >/dpkg.log 2>&1 || { cat /dpkg.log; exit 1; }
test ! -e /usr/bin/lifeboat; test -e /etc/default/lifeboat; test -e /etc/lifeboat/plans/crm.toml; test -e /var/lib/lifeboat/journal.sqlite
dpkg -i /lifeboat.deb >/dpkg.log 2>&1 || { cat /dpkg.log; exit 1; }
as_unit /usr/bin/lifeboat snapshots crm --plans /etc/lifeboat/plans --json | grep -q '"crm"'
say 'removed and installed again'
dpkg -P lifeboat >/dpkg.log 2>&1 || { cat /dpkg.log; exit 1; }
if getent passwd lifeboat || dpkg -s lifeboat >/dev/null 2>&1; then say 'user or package is left'; exit 1; fi
listing >/after
diff /before /after || { say 'something is left or missing'; exit 1; }
say purged
"#;

#[test]
fn the_debian_package_installs_starts_removes_and_purges_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let made = succeeds(
        Command::new(root().join("scripts/package-deb"))
            .arg("--quick")
            .arg("--program")
            .arg(env!("CARGO_BIN_EXE_lifeboat"))
            .arg("--out")
            .arg(folder.path()),
    );
    let package = PathBuf::from(made.trim().lines().last().unwrap());
    let contents = succeeds(Command::new("dpkg-deb").arg("--contents").arg(&package));
    for line in contents.lines() {
        assert!(line.contains(" root/root "), "not of root: {line}");
    }
    assert!(
        contents.contains("./usr/share/man/man1/lifeboat-serve.1.gz") || contents.contains("./usr/share/man/man1/lifeboat.1.gz"),
        "{contents}"
    );
    let fields = succeeds(Command::new("dpkg-deb").arg("--field").arg(&package));
    assert!(fields.contains("Package: lifeboat\n") && fields.contains("libc6 (>= 2."), "{fields}");

    let (scratch, outer, inside) = (folder.path().join("scratch"), folder.path().join("outer"), folder.path().join("inside"));
    std::fs::create_dir(&scratch).unwrap();
    std::fs::write(&outer, INSTALL).unwrap();
    std::fs::write(&inside, INSIDE.replace("PASSPHRASE", PASSPHRASE)).unwrap();
    let mut command = if rustix::process::getuid().is_root() { Command::new("unshare") } else { Command::new("sudo") };
    if !rustix::process::getuid().is_root() {
        command.arg("unshare");
    }
    let said = succeeds(
        command.args(["--mount", "--pid", "--net", "--fork", "--kill-child", "bash"]).arg(&outer).arg(&package).arg(&scratch).arg(&inside),
    );
    for step in ["installed", "verified", "ran", "removed and installed again", "purged"] {
        assert!(said.contains(&format!("== {step}")), "{step}: {said}");
    }
    assert!(said.contains("'READY'") && said.contains("'STOPPING'"), "{said}");
    assert!(!said.contains(PASSPHRASE));
}
