//! A real image registry on [`HOST`].

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tokio::sync::OnceCell;

use super::bed::{bed, free_port};
use super::images::{Artifact, digest};
use super::pki::{Authority, Certificate};
use super::process::{Process, output};
use super::{HOST, eventually};

/// The `Accept` header for manifests: the registry answers 404 to who does not name the type of the manifest.
pub const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What kind of registry to start. The default is plain HTTP without a password.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// User and password that every request needs.
    pub auth: Option<(String, String)>,
    /// HTTPS with a certificate of an authority of its own, [`Registry::ca_pem`].
    pub tls: bool,
    /// Over HTTPS, only clients with a certificate of that authority are served, [`Registry::client_pem`].
    pub client_certificates: bool,
}

/// A running registry; dropping it ends it and its data.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    dir: PathBuf,
    options: RegistryOptions,
    authority: Option<Authority>,
    client: Option<Certificate>,
    process: Mutex<Option<Process>>,
}

impl Registry {
    pub async fn start(options: RegistryOptions) -> Result<Self> {
        let dir = bed()?.new_dir("registry")?;
        let mut this =
            Self { port: free_port()?, dir, options, authority: None, client: None, process: Mutex::new(None) };
        this.configure()?;
        this.resume().await?;
        Ok(this)
    }

    /// A registry without password that all tests of this binary share; nodes know it. Use repositories of your own.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Registry> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::start(RegistryOptions::default())).await
    }

    fn configure(&mut self) -> Result<()> {
        let mut http = serde_json::json!({"addr": self.address(), "relativeurls": true, "secret": "bed"});
        if self.options.tls {
            let authority = Authority::new(&self.dir.join("pki"), "registry")?;
            let serving = authority.issue("registry", HOST, &[], &[format!("IP:{HOST}"), "DNS:localhost".into()])?;
            http["tls"] = serde_json::json!({"certificate": serving.certificate, "key": serving.key});
            if self.options.client_certificates {
                http["tls"]["clientcas"] = serde_json::json!([authority.certificate()]);
                self.client = Some(authority.issue("client", "client", &[], &[])?);
            }
            self.authority = Some(authority);
        }
        let mut config = serde_json::json!({
            "version": "0.1",
            "storage": {
                "filesystem": {"rootdirectory": self.dir.join("data")},
                "delete": {"enabled": true},
                "maintenance": {"uploadpurging": {"enabled": false}},
            },
            "http": http,
            "log": {"level": "warn"},
        });
        if let Some((user, password)) = &self.options.auth {
            let file = self.dir.join("htpasswd");
            // The registry reads only bcrypt, which Debian's libcrypt knows and perl gives access to.
            let hash = output(Command::new("perl").args([
                "-e",
                "print crypt($ARGV[0], q($2y$05$bedbedbedbedbedbedbedu))",
                password,
            ]))?;
            ensure!(hash.starts_with("$2y$"), "libcrypt gave no bcrypt hash: {hash}");
            std::fs::write(&file, format!("{user}:{hash}\n"))?;
            config["auth"] = serde_json::json!({"htpasswd": {"realm": "bed", "path": file}});
        }
        // JSON is YAML.
        std::fs::write(self.dir.join("config.yml"), serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }

    /// Ends the registry; connections are refused until [`resume`](Self::resume).
    pub fn pause(&self) -> Result<()> {
        self.process.lock().map_err(|_| anyhow!("a test died while it changed this registry"))?.take();
        Ok(())
    }

    /// Starts the registry again with the data that it had.
    pub async fn resume(&self) -> Result<()> {
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.dir.join("config.yml"));
        let process = Process::spawn("registry", &self.dir, command)?;
        *self.process.lock().map_err(|_| anyhow!("a test died while it changed this registry"))? = Some(process);
        eventually(Duration::from_mins(1), "the registry to answer", || async {
            if let Some(p) = self.process.lock().map_err(|_| anyhow!("a test died"))?.as_mut() {
                p.check()?;
            }
            let status = self.request(Method::GET, "/v2/")?.send().await?.status();
            Ok((status == StatusCode::OK).then_some(()))
        })
        .await
    }

    /// `172.30.0.1:<port>`: what stands before the first slash of a reference.
    pub fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    /// `http://…` or `https://…`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.options.tls { "https" } else { "http" }, self.address())
    }

    /// The authority of a registry with TLS.
    pub fn ca_pem(&self) -> Option<String> {
        self.authority.as_ref().and_then(|a| a.pem().ok())
    }

    /// Certificate and key of a client that is served.
    pub fn client_pem(&self) -> Result<Option<(String, String)>> {
        let Some(client) = &self.client else { return Ok(None) };
        Ok(Some((std::fs::read_to_string(&client.certificate)?, std::fs::read_to_string(&client.key)?)))
    }

    pub fn auth(&self) -> Option<&(String, String)> {
        self.options.auth.as_ref()
    }

    /// A pull secret's `.dockerconfigjson` for this registry.
    pub fn docker_config(&self) -> String {
        let auths = match &self.options.auth {
            Some((user, password)) => {
                use base64::Engine;
                let auth = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
                serde_json::json!({ self.address(): {"username": user, "password": password, "auth": auth} })
            }
            None => serde_json::json!({}),
        };
        serde_json::json!({ "auths": auths }).to_string()
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let mut client = reqwest::Client::builder().timeout(Duration::from_mins(1)).no_proxy();
        client = match self.ca_pem() {
            Some(pem) => client.tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes())?]),
            None => client.tls_certs_only([]),
        };
        if let Some((certificate, key)) = self.client_pem()? {
            client = client.identity(reqwest::Identity::from_pem(format!("{certificate}\n{key}").as_bytes())?);
        }
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.url()) };
        let mut request = client.build()?.request(method, url);
        if let Some((user, password)) = &self.options.auth {
            request = request.basic_auth(user, Some(password));
        }
        Ok(request)
    }

    /// Pushes blobs and manifests and gives the digest that `tag` now names.
    pub async fn push(&self, repository: &str, tag: &str, artifact: &Artifact) -> Result<String> {
        for blob in &artifact.blobs {
            self.push_blob(repository, blob).await?;
        }
        for manifest in &artifact.manifests {
            self.push_manifest(repository, &manifest.digest, &manifest.media_type, &manifest.bytes).await?;
        }
        let top = artifact.top()?;
        self.push_manifest(repository, tag, &top.media_type, &top.bytes).await?;
        Ok(top.digest.clone())
    }

    async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Result<()> {
        let digest = digest(bytes);
        let there = self.request(Method::HEAD, &format!("/v2/{repository}/blobs/{digest}"))?.send().await?;
        if there.status().is_success() {
            return Ok(());
        }
        let upload =
            expect(self.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/"))?.send().await?).await?;
        let location = upload.headers().get("location").context("no place for an upload")?.to_str()?.to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let request = self
            .request(Method::PUT, &format!("{location}{separator}digest={digest}"))?
            .header("content-type", "application/octet-stream")
            .body(bytes.to_vec());
        expect(request.send().await?).await?;
        Ok(())
    }

    /// Puts any bytes as a manifest under a tag or digest.
    pub async fn push_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let request = self.request(Method::PUT, &path)?.header("content-type", media_type).body(bytes.to_vec());
        expect(request.send().await?).await?;
        Ok(())
    }

    /// The digest that a tag names, `None` if there is no such tag.
    pub async fn digest(&self, repository: &str, tag: &str) -> Result<Option<String>> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.request(Method::HEAD, &path)?.header("accept", MANIFESTS).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = expect(answer).await?;
        Ok(Some(answer.headers().get("docker-content-digest").context("no digest")?.to_str()?.to_owned()))
    }

    /// The bytes of a manifest and their media type.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<(String, Vec<u8>)> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let answer = expect(self.request(Method::GET, &path)?.header("accept", MANIFESTS).send().await?).await?;
        let media = answer.headers().get("content-type").context("no media type")?.to_str()?.to_owned();
        Ok((media, answer.bytes().await?.to_vec()))
    }

    /// The bytes of a blob.
    pub async fn blob(&self, repository: &str, digest: &str) -> Result<Vec<u8>> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        Ok(expect(self.request(Method::GET, &path)?.send().await?).await?.bytes().await?.to_vec())
    }

    /// Removes the manifest that a tag or digest names, and with it every tag that names it.
    pub async fn delete_manifest(&self, repository: &str, reference: &str) -> Result<()> {
        let digest = if reference.starts_with("sha256:") {
            reference.to_owned()
        } else {
            self.digest(repository, reference).await?.with_context(|| format!("{repository} has no tag {reference}"))?
        };
        let path = format!("/v2/{repository}/manifests/{digest}");
        expect(self.request(Method::DELETE, &path)?.send().await?).await?;
        Ok(())
    }
}

async fn expect(answer: Response) -> Result<Response> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let (status, url) = (answer.status(), answer.url().clone());
    bail!("{url} was answered {status}: {}", answer.text().await.unwrap_or_default())
}
