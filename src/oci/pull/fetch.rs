//! Fetching manifests and layers by digest, with retries.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher as _, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_distribution::manifest::{OciDescriptor, OciImageIndex, OciImageManifest};
use serde::Deserialize;

use super::download::{Blob, Download};
use super::partial::Partial;
use super::sources::Sources;
use crate::core::image::Digest;
use crate::oci::error::PullError;
use crate::oci::http::registry::{Form, MAX_MANIFEST, fetch_manifest, form};
use crate::oci::limits::{Limits, Platform};
use crate::oci::progress::Progress;

/// Wait before the second attempt; it doubles for each further one, and up to half of it is added by chance.
const BACKOFF: Duration = Duration::from_millis(400);
/// Longest wait for which a pull stays alive when a registry asks for one.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Bytes that an attempt must bring for the earlier ones to be forgotten: a connection that breaks often still arrives.
const PROGRESS: u64 = 1 << 20;

/// The layers of the image for one platform.
pub(crate) struct Layers {
    /// The digest of the manifest that lists them.
    pub(crate) manifest_digest: Digest,
    /// Lowest first.
    pub(crate) layers: Vec<Blob>,
}

impl Layers {
    /// Bytes to be fetched; a layer that is listed twice is fetched once.
    pub(crate) fn bytes(&self) -> u64 {
        let each: BTreeMap<_, _> = self.layers.iter().map(|layer| (&layer.digest, layer.size)).collect();
        each.values().sum()
    }
}

/// Fetches what belongs to one image.
pub(crate) struct Fetcher<'a> {
    sources: Sources<'a>,
    limits: &'a Limits,
    partial: Arc<Partial>,
    progress: Arc<Progress>,
    fetched: BTreeMap<Digest, PathBuf>,
}

impl<'a> Fetcher<'a> {
    pub(crate) fn new(
        sources: Sources<'a>,
        limits: &'a Limits,
        partial: Arc<Partial>,
        progress: Arc<Progress>,
    ) -> Self {
        Self { sources, limits, partial, progress, fetched: BTreeMap::new() }
    }

    /// Finds the manifest for the platform and what it lists, all of it proved by digest.
    pub(crate) async fn layers(&mut self, digest: &Digest, platform: &Platform) -> Result<Layers, PullError> {
        let body = self.manifest(digest).await?;
        if proved_form(&body)? == Form::Image {
            let manifest = image_manifest(&body)?;
            self.check_platform(&manifest, platform).await?;
            return Ok(Layers { manifest_digest: digest.clone(), layers: self.listed(&manifest)? });
        }
        let index: OciImageIndex = serde_json::from_slice(&body).map_err(|error| invalid("index", &error))?;
        let chosen = choose(&index, platform)?;
        let body = self.manifest(&chosen).await?;
        if proved_form(&body)? == Form::Index {
            return Err(PullError::InvalidImage { why: "its index leads to another index".to_owned() });
        }
        let manifest = image_manifest(&body)?;
        Ok(Layers { layers: self.listed(&manifest)?, manifest_digest: chosen })
    }

    async fn manifest(&mut self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        self.sources.begin();
        loop {
            match self.manifest_of_one(digest).await {
                Err(error) => self.sources.failed(error)?,
                answer => return answer,
            }
        }
    }

    async fn manifest_of_one(&mut self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        let attempts = self.sources.attempts();
        let mut attempt = 0;
        loop {
            let session = self.sources.session().await?;
            let fetched = fetch_manifest(session, &digest.to_string()).await;
            let proved = fetched.map_err(PullError::from).and_then(|manifest| {
                let actual = Digest::of_bytes(digest.algorithm(), &manifest.body);
                prove("the manifest", digest, actual).map(|()| manifest.body)
            });
            match proved {
                Ok(body) => return Ok(body),
                Err(error) => wait(error, &mut attempt, attempts).await?,
            }
        }
    }

    /// An image without an index says in its configuration what it is for.
    async fn check_platform(&mut self, manifest: &OciImageManifest, platform: &Platform) -> Result<(), PullError> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            os: String,
            #[serde(default)]
            architecture: String,
        }
        let blob = blob(&manifest.config)?;
        if blob.size > MAX_MANIFEST as u64 {
            return Err(PullError::ImageTooLarge { what: "bytes of configuration", limit: MAX_MANIFEST as u64 });
        }
        let path = self.blob("the configuration", &blob).await?;
        let config = tokio::fs::read(&path).await.map_err(|source| PullError::Storage { path, source })?;
        let config: Config = serde_json::from_slice(&config).map_err(|error| invalid("configuration", &error))?;
        // Artifacts and images of simple tools do not say it; then the author knows best.
        let fits = |value: &str, wanted: &str| value.is_empty() || value == wanted;
        if fits(&config.os, "linux") && fits(&config.architecture, &platform.architecture) {
            Ok(())
        } else {
            let offered = vec![format!("{}/{}", config.os, config.architecture)];
            Err(PullError::PlatformMissing { wanted: platform.clone(), offered })
        }
    }

    fn listed(&self, manifest: &OciImageManifest) -> Result<Vec<Blob>, PullError> {
        if manifest.layers.len() as u64 > self.limits.layers {
            return Err(PullError::ImageTooLarge { what: "layers", limit: self.limits.layers });
        }
        let mut total = 0_u64;
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            if !is_layer_type(&layer.media_type) {
                let why = format!("a layer is of the type {:?}, which is not supported", layer.media_type);
                return Err(PullError::InvalidImage { why });
            }
            let blob = blob(layer)?;
            total = total.saturating_add(blob.size);
            layers.push(blob);
        }
        if total > self.limits.fetched_bytes {
            return Err(PullError::ImageTooLarge {
                what: "bytes in all layers as fetched",
                limit: self.limits.fetched_bytes,
            });
        }
        Ok(layers)
    }

    /// Fetches a layer into a file and proves it.
    pub(crate) async fn layer(&mut self, blob: &Blob) -> Result<PathBuf, PullError> {
        self.blob("a layer", blob).await
    }

    async fn blob(&mut self, what: &'static str, blob: &Blob) -> Result<PathBuf, PullError> {
        if let Some(path) = self.fetched.get(&blob.digest) {
            return Ok(path.clone());
        }
        let path = self.partial.layer(blob.digest.hex());
        let mut download = Download::new(what, blob, path, Arc::clone(&self.progress));
        self.sources.begin();
        while let Err(error) = self.blob_of_one(&mut download).await {
            self.sources.failed(error)?;
        }
        let path = download.path().to_owned();
        self.fetched.insert(blob.digest.clone(), path.clone());
        Ok(path)
    }

    async fn blob_of_one(&mut self, download: &mut Download<'_>) -> Result<(), PullError> {
        let attempts = self.sources.attempts();
        let mut attempt = 0;
        loop {
            let before = download.size();
            let session = self.sources.session().await?;
            let Err(error) = download.attempt(session).await else { return Ok(()) };
            if download.size() >= before + PROGRESS {
                attempt = 0;
            }
            wait(error, &mut attempt, attempts).await?;
        }
    }
}

fn prove(what: &'static str, expected: &Digest, actual: Digest) -> Result<(), PullError> {
    if *expected == actual {
        Ok(())
    } else {
        Err(PullError::DigestMismatch { what, expected: expected.clone(), actual })
    }
}

/// Waits before another attempt, or gives the error back when another one is of no use.
async fn wait(error: PullError, attempt: &mut u32, attempts: u32) -> Result<(), PullError> {
    let asked = match &error {
        PullError::Registry(error) if error.is_passing() => error.retry_after(),
        // A broken proxy in between may be circumvented the next time; a wrong image stays wrong.
        PullError::DigestMismatch { .. } => None,
        _ => return Err(error),
    };
    *attempt += 1;
    if *attempt >= attempts || asked.is_some_and(|asked| asked > MAX_WAIT) {
        return Err(error);
    }
    let backoff = BACKOFF * 2_u32.pow(*attempt - 1);
    let chance = RandomState::new().build_hasher().finish() % 1000;
    let backoff = backoff + backoff / 2 * u32::try_from(chance).unwrap_or(0) / 1000;
    tracing::debug!(reason = error.reason().as_str(), attempt = *attempt, "pull is retried");
    tokio::time::sleep(asked.unwrap_or(backoff).max(backoff)).await;
    Ok(())
}

fn proved_form(body: &[u8]) -> Result<Form, PullError> {
    form(body).map_err(|why| PullError::InvalidImage { why: why.to_owned() })
}

fn image_manifest(body: &[u8]) -> Result<OciImageManifest, PullError> {
    serde_json::from_slice(body).map_err(|error| invalid("manifest", &error))
}

fn invalid(what: &str, error: &serde_json::Error) -> PullError {
    PullError::InvalidImage { why: format!("its {what} breaks the format: {error}") }
}

fn blob(descriptor: &OciDescriptor) -> Result<Blob, PullError> {
    let digest = descriptor.digest.parse().map_err(|error| PullError::InvalidImage { why: format!("{error}") })?;
    let size = u64::try_from(descriptor.size)
        .map_err(|_| PullError::InvalidImage { why: format!("something in it has {} bytes", descriptor.size) })?;
    Ok(Blob { digest, size })
}

/// The first entry for the platform.
fn choose(index: &OciImageIndex, platform: &Platform) -> Result<Digest, PullError> {
    let mut offered: Vec<String> = Vec::new();
    for entry in &index.manifests {
        let Some(listed) = &entry.platform else { continue };
        let (os, architecture) = (listed.os.to_string(), listed.architecture.to_string());
        if os == "linux" && architecture == platform.architecture {
            return entry.digest.parse().map_err(|error| PullError::InvalidImage { why: format!("{error}") });
        }
        let name = format!("{os}/{architecture}");
        // Attestations are listed beside images, for an unknown platform.
        if os != "unknown" && !offered.contains(&name) && offered.len() < 32 {
            offered.push(name);
        }
    }
    Err(PullError::PlatformMissing { wanted: platform.clone(), offered })
}

/// The types of layers that are archives: of OCI and docker, plain or compressed, also those not to be passed on.
fn is_layer_type(media_type: &str) -> bool {
    let Some(kind) = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar"))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar"))
    else {
        return false;
    };
    matches!(kind, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd")
}
