//! The node's own credentials: the docker configuration of its kubelet, and what the kubelet's plugins answer.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::kubelet::Kubelet;
use crate::oci::auth::cache::Cache;
use crate::oci::auth::credentials::Credentials;
use crate::oci::auth::provider::{Answer, Provider, named_once, parse_config};
use crate::runtime::client::chain;
use crate::worker::kernel::command::{self, Given};
use crate::worker::settings::NodeCredentialSettings;

/// Longest time that a plugin may take, as in the kubelet.
const LIMIT: Duration = Duration::from_mins(1);
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 2 << 20;

/// Credentials for an image, in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) credentials: Credentials,
    /// What could not be used, and why.
    pub(super) passed_over: Vec<String>,
}

/// The node's own credentials, as its kubelet has them. Answers of plugins are kept for as long as they say.
#[derive(Debug)]
pub(super) struct NodeCredentials {
    proc: PathBuf,
    settings: NodeCredentialSettings,
    cache: Mutex<Cache>,
}

impl NodeCredentials {
    /// Of the node whose `/proc` is there.
    pub(super) fn new(proc: PathBuf, settings: NodeCredentialSettings) -> Self {
        Self { proc, settings, cache: Mutex::default() }
    }

    /// Those for an image, named by `registry/repository`. Nothing here keeps an image from being asked for without them.
    pub(super) async fn of(self: Arc<Self>, name: String) -> Found {
        let looked = match Kubelet::find(&self.proc) {
            Ok(kubelet) => kubelet.inside(move |kubelet| self.look(kubelet, &name)).await,
            Err(error) => Err(error),
        };
        looked.unwrap_or_else(|error| Found {
            passed_over: vec![format!(
                "the node's own credentials: the worker cannot see what the kubelet sees: {error}"
            )],
            ..Found::default()
        })
    }

    /// The files first, and then the plugins, as in the kubelet.
    fn look(&self, kubelet: &Kubelet, name: &str) -> Found {
        let (credentials, passed_over) = kubelet.places.docker_config(read);
        let mut found = Found { credentials, passed_over };
        let config = self.settings.provider_config.as_ref().or(kubelet.places.provider_config.as_ref());
        let folder = self.settings.provider_bin_dir.as_ref().or(kubelet.places.provider_bin_dir.as_ref());
        let (Some(config), Some(folder)) = (config, folder) else { return found };
        let providers = match providers(config) {
            Ok(providers) => providers,
            Err(why) => {
                found.passed_over.push(format!("the node's credential providers: {}: {why}", config.display()));
                return found;
            }
        };
        let mut answers = Credentials::anonymous();
        for provider in providers.into_iter().filter(|provider| provider.is_for(name)) {
            let told = format!("the node's credential provider {}", provider.name);
            match self.ask(provider, folder, &kubelet.environment, name) {
                Ok(credentials) => answers.extend(credentials),
                Err(why) => found.passed_over.push(format!("{told}: {why}")),
            }
        }
        found.credentials.extend_after(answers);
        found
    }

    /// What a plugin answers, now or within the time that an earlier answer holds.
    fn ask(
        &self,
        provider: Provider,
        folder: &Path,
        environment: &[(OsString, OsString)],
        name: &str,
    ) -> Result<Credentials, String> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = provider.unusable() {
            return Err(why.to_owned());
        }
        if let Some(kept) = cache().get(&provider, name, Instant::now()) {
            return Ok(kept.clone());
        }
        let answer = run(&provider, folder, environment, name)?;
        debug!(provider = provider.name, image = name, lasts = ?answer.lasts, "the plugin answered");
        let credentials = answer.credentials.clone();
        cache().keep(provider, name, answer, Instant::now());
        Ok(credentials)
    }
}

fn run(provider: &Provider, folder: &Path, environment: &[(OsString, OsString)], name: &str) -> Result<Answer, String> {
    let own = provider.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let given = Given { environment: environment.iter().cloned().chain(own).collect(), input: provider.question(name) };
    let program = folder.join(&provider.name);
    let finished = command::run_with(&program, &program.to_string_lossy(), &provider.args, &given, LIMIT)
        .map_err(|error| chain(&error))?;
    if !finished.success {
        // What it wrote is for those who may read the logs of the node.
        warn!(provider = provider.name, image = name, how = finished.how, "{}", finished.tail.join(" | "));
        return Err(format!("it left with {}; the worker's log has its last words", finished.how));
    }
    provider.answer(&finished.answer).map_err(|error| error.to_string())
}

/// The plugins of a file, or of all files of a folder together.
fn providers(config: &Path) -> Result<Vec<Provider>, String> {
    let words = |error: io::Error| error.to_string();
    let mut files = vec![config.to_owned()];
    if fs::metadata(config).map_err(words)?.is_dir() {
        let entries = fs::read_dir(config).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(words)?;
        let is_config = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("json" | "yaml" | "yml")) && !path.is_dir()
        };
        files = entries.into_iter().map(|entry| entry.path()).filter(is_config).collect();
        files.sort();
    }
    let mut providers = Vec::new();
    for file in files {
        let content = read(&file).map_err(words)?.unwrap_or_default();
        let parsed = parse_config(&String::from_utf8_lossy(&content));
        providers.extend(parsed.map_err(|error| format!("{}: {error}", file.display()))?);
    }
    named_once(&providers).map_err(|error| error.to_string())?;
    Ok(providers)
}

/// The content of a file, if it is there.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // Neither a pipe nor a device is ever waited for.
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::Error::other(format!("it is no regular file of at most {MAX_FILE} bytes")));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::{Value, json};

    use super::*;
    use crate::core::image::ImageRef;
    use crate::oci::auth::kubelet::Places;

    /// A host with a kubelet whose plugins are shells: what they do stands in their arguments.
    struct Host {
        folder: tempfile::TempDir,
        node: NodeCredentials,
        kubelet: Kubelet,
    }

    fn host(providers: &[Value]) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": providers,
        });
        fs::write(at("providers.yaml"), config.to_string()).unwrap();
        fs::create_dir(at("bin")).unwrap();
        symlink("/bin/sh", at("bin/plugin")).unwrap();
        symlink("/bin/sh", at("bin/other")).unwrap();
        fs::write(at("bin/data"), "").unwrap();
        fs::write(at("config.json"), r#"{"auths": {"quay.io": {"username": "file", "password": "x"}}}"#).unwrap();
        let arguments = [
            "kubelet".to_owned(),
            format!("--root-dir={}", folder.path().display()),
            format!("--image-credential-provider-config={}", at("providers.yaml").display()),
            format!("--image-credential-provider-bin-dir={}", at("bin").display()),
        ];
        let places = Places::of(arguments.iter().map(String::as_str), Path::new("/none"), None);
        let variables = [
            ("PATH", std::ffi::OsStr::new("/usr/bin:/bin")),
            ("MARKS", folder.path().as_os_str()),
            ("MODE", "kubelet".as_ref()),
        ];
        let environment = variables.map(|(name, value)| (name.into(), value.into())).into();
        let node = NodeCredentials::new("/proc".into(), NodeCredentialSettings::default());
        Host { kubelet: Kubelet::with(places, environment), node, folder }
    }

    impl Host {
        fn look(&self, image: &str) -> (Vec<String>, Vec<String>) {
            let image: ImageRef = image.parse().unwrap();
            let Found { credentials, passed_over } = self.node.look(&self.kubelet, &image.name());
            let users = credentials.candidates(&image).iter().map(|one| one.username.clone()).collect();
            (users, passed_over)
        }

        fn mark(&self, name: &str) -> String {
            fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
        }
    }

    fn provider(name: &str, script: &str) -> Value {
        json!({
            "name": name, "matchImages": ["quay.io", "*.quay.io"], "defaultCacheDuration": "1h",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": ["-c", script, "zero", "a b", "$(id)"],
            "env": [{"name": "MODE", "value": "own"}],
        })
    }

    fn answering(user: &str, more: &str) -> String {
        let auth = json!({"quay.io": {"username": user, "password": "hunter2"}, "*.quay.io": {"username": user, "password": "x"}});
        format!(
            r#"printf '%s' '{{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "auth": {auth}{more}}}'"#
        )
    }

    #[test]
    fn a_plugin_is_run_as_the_kubelet_runs_it_and_its_answer_is_kept() {
        let answer = answering("plugin", r#", "cacheKeyType": "Registry""#);
        let script = format!(
            r#"cat >>$MARKS/asked; echo "$1|$2|$MODE" >>$MARKS/how; env >$MARKS/env; pwd >>$MARKS/env; {answer}"#
        );
        let host = host(&[provider("plugin", &script)]);
        assert_eq!(host.look("quay.io/team/app:v1"), (vec!["file".to_owned(), "plugin".to_owned()], vec![]));
        let asked: Value = serde_json::from_str(&host.mark("asked")).unwrap();
        assert_eq!(asked["image"], "quay.io/team/app");
        assert_eq!(host.mark("how"), "a b|$(id)|own\n");
        let given = host.mark("env");
        let names: std::collections::BTreeSet<_> =
            given.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // A shell has some of its own.
        let known = ["MARKS", "MODE", "OLDPWD", "PATH", "PWD", "SHLVL", "_"];
        assert!(names.iter().all(|name| known.contains(name)) && given.ends_with("\n/\n"), "{given}");

        assert_eq!(host.look("quay.io/other").0, ["file", "plugin"]);
        assert_eq!(host.mark("how").lines().count(), 1, "it was run again for the same registry");
        assert_eq!(host.look("eu.quay.io/other").0, ["plugin"]);
        assert_eq!(host.mark("how").lines().count(), 2);
        assert_eq!(host.look("docker.io/a"), (vec![], vec![]));
        assert_eq!(host.mark("how").lines().count(), 2, "it was run for an image that it is not for");
    }

    #[test]
    fn what_fails_is_told_without_secrets_and_keeps_nothing_else_back() {
        let good = provider("other", &answering("other", r#", "cacheKeyType": "Image", "cacheDuration": "0s""#));
        let mut with_token = provider("plugin", "exit 0");
        with_token["tokenAttributes"] = json!({"serviceAccountTokenAudience": "a", "requireServiceAccount": false});
        for (bad, expected) in [
            (provider("plugin", "echo hunter2 >&2; echo hunter2; exit 3"), "exit status: 3"),
            (provider("plugin", "echo hunter2"), "no CredentialProviderResponse"),
            (provider("plugin", "exec <&-; sleep 0"), "no CredentialProviderResponse"),
            (provider("plugin", &answering("plugin", "")), "cacheKeyType"),
            (provider("plugin", "kill -9 $$"), "signal: 9"),
            (provider("plugin", "head -c 5000000 /dev/zero"), "wrote more than"),
            (provider("missing", ""), "failed to start"),
            (provider("data", ""), "failed to start"),
            (provider("../bin/plugin", ""), "its name"),
            (with_token, "tokenAttributes"),
        ] {
            let host = host(&[bad, good.clone()]);
            let (users, passed_over) = host.look("quay.io/a");
            assert_eq!(users, ["file", "other"], "{expected}");
            let [why] = &passed_over[..] else { panic!("{expected}: {passed_over:?}") };
            assert!(why.starts_with("the node's credential provider ") && why.contains(expected), "{expected}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
        let host = host(&[]);
        for (content, expected) in
            [(b"[".as_slice(), "CredentialProviderConfig"), (&[0xff], "CredentialProviderConfig")]
        {
            fs::write(host.folder.path().join("providers.yaml"), content).unwrap();
            let (users, passed_over) = host.look("quay.io/a");
            assert_eq!(users, ["file"]);
            assert!(
                matches!(&passed_over[..], [why] if why.contains(expected) && why.contains("providers.yaml")),
                "{passed_over:?}"
            );
        }
        fs::remove_file(host.folder.path().join("providers.yaml")).unwrap();
        assert!(matches!(&host.look("quay.io/a").1[..], [why] if why.contains("No such file")));
        fs::write(host.folder.path().join("config.json"), "hunter2").unwrap();
        assert!(host.look("quay.io/a").1.iter().any(|why| why.contains("config.json") && !why.contains("hunter2")));
    }

    #[test]
    fn a_folder_of_files_is_read_as_one_and_a_setting_is_stronger_than_the_command_line() {
        let mut host = host(&[]);
        let folder = host.folder.path().join("folder");
        fs::create_dir_all(folder.join("sub.yaml")).unwrap();
        let file = |name: &str, provider: &Value| {
            let config = json!({
                "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [provider],
            });
            fs::write(folder.join(name), config.to_string()).unwrap();
        };
        let provider = |name, user| provider(name, &answering(user, r#", "cacheKeyType": "Global""#));
        file("b.json", &provider("plugin", "second"));
        file("a.yml", &provider("other", "first"));
        file("c.txt", &provider("plugin", "none"));
        host.node.settings.provider_config = Some(folder.clone());
        assert_eq!(host.look("quay.io/a"), (vec!["file".to_owned(), "first".to_owned(), "second".to_owned()], vec![]));
        host.node.settings.provider_bin_dir = Some("/nowhere".into());
        host.node.cache = Mutex::default();
        assert_eq!(host.look("quay.io/a").1.len(), 2);
        file("d.yaml", &provider("plugin", "twice"));
        assert!(matches!(&host.look("quay.io/a").1[..], [why] if why.contains("twice")));
    }
}
