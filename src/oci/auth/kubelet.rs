//! Where a kubelet finds credentials: what its command line says, and the docker configuration that it reads.

use std::io;
use std::path::{Path, PathBuf};

use super::credentials::Credentials;

/// Folder of a kubelet that is told no other.
const ROOT_DIR: &str = "/var/lib/kubelet";

/// What a kubelet is told of credentials. Paths are those that it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Folders in which it looks for a docker configuration, in this order; those of the two forms.
    folders: [Vec<PathBuf>; 2],
    /// `--image-credential-provider-config`: a file, or a folder with files.
    pub provider_config: Option<PathBuf>,
    /// `--image-credential-provider-bin-dir`: the folder with the plugins.
    pub provider_bin_dir: Option<PathBuf>,
}

impl Places {
    /// Of a kubelet with these arguments (the first is its name), working directory and `HOME`.
    ///
    /// **Source**: `pkg/credentialprovider/config.go` and the flags of Kubernetes 1.36. Both ways of writing a flag are
    /// known, `_` is `-`, and the last of two counts.
    pub fn of<'a>(arguments: impl IntoIterator<Item = &'a str>, directory: &Path, home: Option<&Path>) -> Self {
        let [mut root_dir, mut provider_config, mut provider_bin_dir] = [None, None, None];
        let mut rest = arguments.into_iter().skip(1).take_while(|argument| *argument != "--");
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix("--") else { continue };
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let place = match name.replace('_', "-").as_str() {
                "root-dir" => &mut root_dir,
                "image-credential-provider-config" => &mut provider_config,
                "image-credential-provider-bin-dir" => &mut provider_bin_dir,
                _ => continue,
            };
            let value = value.or_else(|| rest.next()).filter(|value| !value.is_empty());
            *place = value.map(|value| directory.join(value));
        }
        let root_dir = root_dir.unwrap_or_else(|| ROOT_DIR.into());
        let home = home.map_or_else(|| directory.to_owned(), |home| directory.join(home));
        let folders =
            |of_home: PathBuf, of_root: &str| vec![root_dir.clone(), directory.to_owned(), of_home, of_root.into()];
        Self {
            folders: [folders(home.join(".docker"), "/.docker"), folders(home.clone(), "/")],
            provider_config,
            provider_bin_dir,
        }
    }

    /// The docker configuration that the kubelet uses: the first that can be read, one of the newer form before all of
    /// the older one. What is passed over before it is told.
    ///
    /// `read` gives the content of a file, if it is there.
    pub fn docker_config(&self, read: impl Fn(&Path) -> io::Result<Option<Vec<u8>>>) -> (Credentials, Vec<String>) {
        let [newer, older] = &self.folders;
        let newer = newer.iter().map(|folder| (folder.join("config.json"), true));
        let older = older.iter().map(|folder| (folder.join(".dockercfg"), false));
        let (mut seen, mut passed_over) = (Vec::new(), Vec::new());
        for (path, is_newer) in newer.chain(older) {
            if seen.contains(&path) {
                continue;
            }
            seen.push(path.clone());
            let parsed = match read(&path) {
                Ok(None) => continue,
                Ok(Some(content)) if is_newer => {
                    Credentials::from_docker_config_json(&content).map_err(|e| e.to_string())
                }
                Ok(Some(content)) => Credentials::from_docker_cfg(&content).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match parsed {
                Ok(credentials) => {
                    return (credentials.named(&format!("the node's {}", path.display())), passed_over);
                }
                Err(why) => passed_over.push(format!("the node's {}: {why}", path.display())),
            }
        }
        (Credentials::anonymous(), passed_over)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::image::ImageRef;

    fn of(arguments: &str) -> Places {
        Places::of(arguments.split(' '), Path::new("/run"), None)
    }

    #[test]
    fn flags_are_found_however_they_are_written() {
        let config = "/etc/eks/image-credential-provider/config.json";
        let bin = "/etc/eks/image-credential-provider";
        for arguments in [
            format!(
                "kubelet --v=2 --image-credential-provider-config={config} --image-credential-provider-bin-dir={bin}"
            ),
            format!(
                "kubelet --image-credential-provider-config {config} --image-credential-provider-bin-dir {bin} --v 2"
            ),
            format!("kubelet --image_credential_provider_config={config} --image-credential_provider-bin-dir {bin}"),
            format!(
                "hyperkube kubelet --image-credential-provider-config=/no --image-credential-provider-bin-dir={bin} \
                 --image-credential-provider-config={config}"
            ),
        ] {
            let places = of(&arguments);
            assert_eq!(places.provider_config.as_deref(), Some(Path::new(config)), "{arguments}");
            assert_eq!(places.provider_bin_dir.as_deref(), Some(Path::new(bin)), "{arguments}");
        }
        for arguments in [
            "",
            "kubelet",
            "--image-credential-provider-config=/a",
            "kubelet --image-credential-provider-config=",
            "kubelet --image-credential-provider-config",
            "kubelet -- --image-credential-provider-config=/a",
            "kubelet --image-credential-provider-config-map=/a",
            "kubelet --config=--image-credential-provider-config=/a",
        ] {
            assert_eq!(of(arguments).provider_config, None, "{arguments}");
        }
        let relative = of("kubelet --image-credential-provider-config=etc/a --root-dir lib");
        assert_eq!(relative.provider_config.as_deref(), Some(Path::new("/run/etc/a")));
        assert_eq!(relative.folders[0][0], Path::new("/run/lib"));
    }

    #[test]
    fn the_docker_configuration_is_the_first_that_can_be_read() {
        let places = Places::of(["kubelet", "--root-dir=/data"], Path::new("/run"), Some(Path::new("/root")));
        let order = [
            "/data/config.json",
            "/run/config.json",
            "/root/.docker/config.json",
            "/.docker/config.json",
            "/data/.dockercfg",
            "/run/.dockercfg",
            "/root/.dockercfg",
            "/.dockercfg",
        ];
        let image: ImageRef = "quay.io/a".parse().unwrap();
        let entry = r#"{"quay.io": {"username": "u", "password": "p"}}"#;
        let content = |path: &str| {
            if path.ends_with("/config.json") { format!(r#"{{"auths": {entry}}}"#) } else { entry.to_owned() }
        };
        let mut files: BTreeMap<PathBuf, String> =
            order.iter().map(|path| (PathBuf::from(path), content(path))).collect();
        for path in order {
            let read = |path: &Path| Ok(files.get(path).map(|content| content.clone().into_bytes()));
            let (credentials, passed_over) = places.docker_config(read);
            let sources: Vec<_> = credentials.candidates(&image).iter().map(|one| one.source.clone()).collect();
            assert_eq!(sources, [format!("the node's {path}")]);
            assert_eq!(passed_over, [""; 0]);

            files.insert(path.into(), "hunter2".to_owned());
            let read = |path: &Path| Ok(files.get(path).map(|content| content.clone().into_bytes()));
            let (_, passed_over) = places.docker_config(read);
            assert!(
                matches!(&passed_over[..], [why] if why.contains(path) && !why.contains("hunter2")),
                "{passed_over:?}"
            );
            files.remove(Path::new(path));
        }
        let unreadable = |_: &Path| Err(io::Error::other("a bad disk"));
        let (credentials, passed_over) = places.docker_config(unreadable);
        assert_eq!(credentials, Credentials::anonymous());
        assert_eq!(passed_over.len(), order.len());
    }
}
