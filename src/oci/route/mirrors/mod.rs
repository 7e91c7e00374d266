//! Mirrors and certificates of the node's container runtime.
//!
//! The files are read anew for every pull: they change without a restart. What the runtime passes over is passed over here
//! too, with a note; what keeps the runtime from pulling keeps this worker from it.
//!
//! | Runtime | Files, all below `/etc` |
//! |---|---|
//! | containerd | `containerd/config.toml` and what it imports, for `config_path`; there `<host[:port]>/` or `_default/` with `hosts.toml`, or with `*.crt`, `*.cert`, `*.key` |
//! | CRI-O | `containers/registries.conf`, `containers/registries.conf.d/*.conf`; `containers/certs.d/<host[:port]>/`, `docker/certs.d/<host[:port]>/` |
//! | any | the system's authorities |
//!
//! Two differences: credentials are never sent to another registry than the one that the pull secret names, and of
//! several client certificates the first is used.

mod config_path;
mod host_files;
mod hosts_toml;
mod registries_conf;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use self::host_files::HostFiles;
use self::hosts_toml::Host;
use self::registries_conf::{Registries, Source};
use crate::api::names::NodeReason;
use crate::core::image::ImageRef;
use crate::oci::route::endpoint::{Endpoint, RegistryOptions, Scheme, Tls};

const REGISTRIES_CONF: &str = "/etc/containers/registries.conf";
const REGISTRIES_CONF_D: &str = "/etc/containers/registries.conf.d";
/// Folders of certificates for CRI-O; the first that has one for the registry counts.
const CERTS_D: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];
/// Where systems keep the authorities that they trust; the first that is there counts. **Source**: Go's `crypto/x509`.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Most certificates of one file.
const MAX_CERTIFICATES: usize = 2048;

/// The runtime's configuration does not let the image be pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file that the runtime could not use either.
    #[error("the container runtime's configuration of the node cannot be used: {}: {why}; mend the file there", file.display())]
    Config {
        /// Its path on the node.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The registry is blocked.
    #[error("image {image}: {REGISTRIES_CONF} of the node, or a file beside it, blocks this registry")]
    Blocked {
        /// The image as asked for.
        image: String,
    },
}

impl Error {
    /// The reason on a node.
    pub fn reason(&self) -> NodeReason {
        match self {
            Self::Config { .. } => NodeReason::RegistryConfigInvalid,
            Self::Blocked { .. } => NodeReason::RegistryBlocked,
        }
    }
}

/// Where an image is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// In this order; never empty.
    pub list: Vec<Endpoint>,
    /// Files, or parts of them, that were passed over, and why.
    pub notes: Vec<String>,
}

/// The endpoints for an image on a node with this container runtime (`containerd://2.1.4`), whose `/etc` is mounted at `etc`.
///
/// Blocks while it reads files. `options` are the Module's: they hold for the registry itself, not for its mirrors.
/// Without a runtime, with one of another kind, and without the mount, the registry itself is the only endpoint.
pub fn endpoints(
    image: &ImageRef,
    options: RegistryOptions,
    runtime: Option<&str>,
    etc: &Path,
) -> Result<Endpoints, Error> {
    let files = HostFiles::new(etc);
    let mut notes = Vec::new();
    let kind = runtime.and_then(|runtime| runtime.split("://").next()).unwrap_or_default();
    let mut list = match kind {
        "containerd" => containerd(image, options, &files, &mut notes)?,
        "cri-o" => cri_o(image, options, &files)?,
        _ => vec![Endpoint::origin(image, options)],
    };
    let roots = system_roots(&files, &mut notes).map(Arc::new);
    for endpoint in &mut list {
        endpoint.tls.roots.clone_from(&roots);
    }
    Ok(Endpoints { list, notes })
}

fn config(file: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Config { file: file.to_owned(), why: why.to_string() }
}

fn containerd(
    image: &ImageRef,
    options: RegistryOptions,
    files: &HostFiles<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Endpoint>, Error> {
    let mut folder = None;
    for root in config_path::read(files, notes) {
        let found = folder_names(image.registry())
            .into_iter()
            .map(|name| root.join(name))
            .find_map(|path| files.is_folder(&path).map(|there| there.then_some(path)).transpose());
        match found {
            Some(Ok(path)) => {
                folder = Some(path);
                break;
            }
            Some(Err(error)) => notes.push(format!("{}: {error}", root.display())),
            None => {}
        }
    }
    let Some(folder) = folder else {
        return Ok(vec![of_containerd(image, options, files, Path::new("/"), Host::default())?]);
    };
    let hosts = hosts_of(&folder, files, notes)?;
    let pulling = hosts.into_iter().filter(|host| host.pulls);
    let list: Vec<_> =
        pulling.map(|host| of_containerd(image, options, files, &folder, host)).collect::<Result<_, _>>()?;
    if list.is_empty() {
        return Err(config(&folder.join("hosts.toml"), &"nothing may be pulled from any of its hosts"));
    }
    Ok(list)
}

/// Names of the folder of a registry, the first that is there counts.
fn folder_names(registry: &str) -> Vec<String> {
    let escaped = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    escaped.into_iter().chain([registry.to_owned(), "_default".to_owned()]).collect()
}

fn hosts_of(folder: &Path, files: &HostFiles<'_>, notes: &mut Vec<String>) -> Result<Vec<Host>, Error> {
    let file = folder.join("hosts.toml");
    let content = files.read(&file).map_err(|error| config(&file, &error))?.unwrap_or_default();
    if !content.is_empty() {
        let text = std::str::from_utf8(&content).map_err(|error| error.to_string());
        match text.and_then(hosts_toml::parse) {
            Ok(hosts) => return Ok(hosts),
            Err(why) => notes.push(format!("{}: {why}; containerd passes over such a file, too", file.display())),
        }
    }
    let (authorities, clients) = certificate_files(folder, files, false)?;
    Ok(vec![Host { pulls: true, authorities, clients, ..Host::default() }])
}

fn of_containerd(
    image: &ImageRef,
    options: RegistryOptions,
    files: &HostFiles<'_>,
    folder: &Path,
    host: Host,
) -> Result<Endpoint, Error> {
    let explicit = host.skip_verify.is_some() || !host.authorities.is_empty() || !host.clients.is_empty();
    let mut endpoint = match host.server {
        Some(server) => {
            let mut endpoint = Endpoint::at(image, server.host);
            endpoint.root = server.root;
            endpoint.scheme = server.scheme;
            if endpoint.scheme == Scheme::Http && explicit && !endpoint.host.ends_with(":80") {
                endpoint.scheme = Scheme::Either;
            }
            endpoint
        }
        None => itself(image),
    };
    if host.skip_verify.is_some() {
        endpoint.tls.skip_verify = host.skip_verify == Some(true);
    }
    endpoint.namespace = (!endpoint.is_origin).then(|| image.registry().to_owned());
    endpoint.headers = headers(host.headers, &folder.join("hosts.toml"))?;
    endpoint.connect_timeout = host.dial_timeout;
    endpoint.proxy = host.proxy;
    load_certificates(&mut endpoint.tls, files, folder, &host.authorities, &host.clients)?;
    Ok(with_options(endpoint, options))
}

/// The registry itself. As in containerd, one of the node's own is asked over plain HTTP, too.
fn itself(image: &ImageRef) -> Endpoint {
    let mut endpoint = Endpoint::at(image, image.registry_api().to_owned());
    let (name, port) = endpoint.host.rsplit_once(':').unwrap_or((endpoint.host.as_str(), ""));
    let is_here =
        name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if is_here {
        endpoint.tls.skip_verify = port != "80";
        endpoint.scheme = match port {
            "" | "443" => Scheme::Https,
            "80" => Scheme::Http,
            _ => Scheme::Either,
        };
    }
    endpoint
}

/// What the Module allows for the registry that its image names.
fn with_options(mut endpoint: Endpoint, options: RegistryOptions) -> Endpoint {
    if endpoint.is_origin {
        endpoint.tls.skip_verify |= options.insecure_skip_tls_verify;
        if options.insecure && endpoint.scheme == Scheme::Https {
            endpoint.scheme = Scheme::Either;
        }
    }
    endpoint
}

fn headers(all: Vec<(String, String)>, file: &Path) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        let known =
            HeaderName::try_from(&name).map_err(|_| config(file, &format!("{name:?} is no name of a header")))?;
        let value = HeaderValue::try_from(value)
            .map_err(|_| config(file, &format!("the value of the header {name:?} cannot be sent")))?;
        headers.append(known, value);
    }
    for value in headers.values_mut() {
        value.set_sensitive(true);
    }
    Ok(headers)
}

fn cri_o(image: &ImageRef, options: RegistryOptions, files: &HostFiles<'_>) -> Result<Vec<Endpoint>, Error> {
    let folder = Path::new(REGISTRIES_CONF_D);
    let names = files.names(folder).map_err(|error| config(folder, &error))?;
    let more = names.into_iter().filter(|name| has_ending(name, "conf")).map(|name| folder.join(name));
    let mut registries = Registries::default();
    for file in [PathBuf::from(REGISTRIES_CONF)].into_iter().chain(more) {
        let Some(content) = files.read(&file).map_err(|error| config(&file, &error))? else { continue };
        let text = std::str::from_utf8(&content).map_err(|error| config(&file, &error))?;
        registries.add(text).map_err(|why| config(&file, &why))?;
    }
    let name = image.name();
    let sources = match registries.find(&name) {
        Some(registry) if registry.blocked => return Err(Error::Blocked { image: image.to_string() }),
        Some(registry) => registry.sources(&name),
        None => vec![Source { name, insecure: false }],
    };
    let last = sources.len().saturating_sub(1);
    let mut list = Vec::with_capacity(sources.len());
    for (place, source) in sources.into_iter().enumerate() {
        let moved: ImageRef = source.name.parse().map_err(|error| config(Path::new(REGISTRIES_CONF), &error))?;
        let mut endpoint = Endpoint::at(&moved, moved.registry_api().to_owned());
        endpoint.is_origin = place == last && moved.registry() == image.registry();
        if source.insecure {
            endpoint.scheme = Scheme::Either;
            endpoint.tls.skip_verify = true;
        }
        for root in CERTS_D {
            let folder = Path::new(root).join(moved.registry());
            if files.is_folder(&folder).map_err(|error| config(&folder, &error))? {
                let (authorities, clients) = certificate_files(&folder, files, true)?;
                load_certificates(&mut endpoint.tls, files, &folder, &authorities, &clients)?;
                break;
            }
        }
        list.push(with_options(endpoint, options));
    }
    Ok(list)
}

fn has_ending(name: &str, ending: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == ending)
}

/// Files of authorities, and of client certificates with their keys.
type CertificateFiles = (Vec<String>, Vec<(String, Option<String>)>);

/// What a folder holds by the names that docker uses. `strict`: a certificate and its key must both be there, as CRI-O
/// wants it; for containerd one file may hold both.
fn certificate_files(folder: &Path, files: &HostFiles<'_>, strict: bool) -> Result<CertificateFiles, Error> {
    let names = files.names(folder).map_err(|error| config(folder, &error))?;
    let mut clients = Vec::new();
    for name in &names {
        if let Some(stem) = name.strip_suffix(".cert") {
            let key = Some(format!("{stem}.key")).filter(|key| names.contains(key));
            if strict && key.is_none() {
                return Err(config(&folder.join(name), &format!("its key {stem}.key is missing")));
            }
            clients.push((name.clone(), key));
        } else if let Some(stem) = name.strip_suffix(".key").filter(|_| strict)
            && !names.contains(&format!("{stem}.cert"))
        {
            return Err(config(&folder.join(name), &format!("its certificate {stem}.cert is missing")));
        }
    }
    Ok((names.into_iter().filter(|name| has_ending(name, "crt")).collect(), clients))
}

fn load_certificates(
    tls: &mut Tls,
    files: &HostFiles<'_>,
    folder: &Path,
    authorities: &[String],
    clients: &[(String, Option<String>)],
) -> Result<(), Error> {
    let read = |name: &str| {
        let path = folder.join(name);
        match files.read(&path) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err(config(&path, &"it is not there")),
            Err(error) => Err(config(&path, &error)),
        }
    };
    for name in authorities {
        let found = certificates(&read(name)?);
        if found.is_empty() {
            return Err(config(&folder.join(name), &"it holds no certificate of an authority"));
        }
        tls.authorities.extend(found);
    }
    if let Some((certificate, key)) = clients.first() {
        let mut both = read(certificate)?;
        if let Some(key) = key {
            both.push(b'\n');
            both.extend(read(key)?);
        }
        reqwest::Identity::from_pem(&both)
            .map_err(|_| config(&folder.join(certificate), &"it is no client certificate with a key"))?;
        tls.identity = Some(both);
    }
    Ok(())
}

/// The authorities in a file in PEM, in DER; what is no certificate is passed over, as in Go.
fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    let all = CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES).filter_map(Result::ok);
    let usable = all.filter(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
    usable.map(|certificate| certificate.to_vec()).collect()
}

/// What the node itself trusts; `None` if that cannot be told.
fn system_roots(files: &HostFiles<'_>, notes: &mut Vec<String>) -> Option<Vec<Vec<u8>>> {
    for path in SYSTEM_ROOTS {
        match files.read(Path::new(path)) {
            Ok(Some(content)) => {
                let roots = certificates(&content);
                if !roots.is_empty() {
                    return Some(roots);
                }
                notes.push(format!("{path}: it holds no certificate of an authority"));
            }
            Ok(None) => {}
            Err(error) => notes.push(format!("{path}: {error}")),
        }
    }
    None
}
