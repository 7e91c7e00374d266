use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Item::{File, Link};
use super::*;
use crate::oci::pull::{Error, Keep, Limits, Platform, PullRequest, PulledTree, Skipped, pull};
use crate::oci::registry;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const KO: &str = "opt/lib/modules/6.1/a.ko";

impl TestRegistry {
    fn put_blob(&self, media_type: &str, blob: &[u8]) -> serde_json::Value {
        let digest = hash::of(Algorithm::Sha256, blob).to_string();
        self.content.lock().unwrap().blobs.insert(digest.clone(), blob.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": blob.len()})
    }

    /// An image for one architecture; `edit` changes its manifest.
    fn put_image(&self, architecture: &str, layers: &[Vec<u8>], edit: impl Fn(&mut serde_json::Value)) -> Digest {
        let config = json!({"os": "linux", "architecture": architecture}).to_string();
        let config = self.put_blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
        let layers: Vec<_> = layers.iter().map(|layer| self.put_blob(LAYER_TYPE, layer)).collect();
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers});
        edit(&mut manifest);
        self.put_manifest("image", MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    fn put_index(&self, images: &[(&str, &str, &Digest)]) -> Digest {
        let manifests: Vec<_> = images
            .iter()
            .map(|(os, architecture, digest)| {
                json!({
                    "mediaType": MANIFEST_TYPE, "digest": digest.to_string(), "size": 1,
                    "platform": {"os": os, "architecture": architecture},
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
        self.put_manifest("index", INDEX_TYPE, index.to_string().as_bytes())
    }
}

fn simple_layers() -> Vec<Vec<u8>> {
    vec![
        gzip(&layer(&[File(KO, "old"), File("opt/lib/modules/6.1/modules.dep", "")])),
        gzip(&layer(&[File(KO, "module"), Link("opt/lib/modules/6.1/host", "/host/lib/modules/6.1")])),
    ]
}

/// A pull with everything as usual.
struct Usual {
    folder: tempfile::TempDir,
    destination: std::path::PathBuf,
    image: ImageRef,
    platform: Platform,
    credentials: Credentials,
    keep: Keep,
    deadline: Duration,
}

impl Usual {
    fn new(registry: &TestRegistry, digest: &Digest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            destination: folder.path().join("image"),
            folder,
            image: registry.image("team/kmod").with_digest(digest).parse().unwrap(),
            platform: Platform { architecture: "amd64".to_owned() },
            credentials: Credentials::anonymous(),
            keep: Keep::new("/opt", &["6.1"], None),
            deadline: Duration::from_secs(20),
        }
    }

    fn request(&self) -> PullRequest<'_> {
        PullRequest {
            image: &self.image,
            platform: &self.platform,
            credentials: &self.credentials,
            options: plain_http(),
            destination: &self.destination,
            keep: &self.keep,
            limits: Limits::default(),
            deadline: self.deadline,
        }
    }

    /// Pulls; afterwards nothing but the destination, and that only on success, may be there.
    async fn pull(&self) -> Result<(PulledTree, Vec<(String, String)>), Error> {
        let pulled = pull(self.request()).await;
        assert_eq!(self.destination.exists(), pulled.is_ok());
        let left = entries(self.folder.path());
        assert_eq!(left.len(), usize::from(pulled.is_ok()), "{left:?}");
        if let Err(error) = &pulled {
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hunter2") && !text.contains("dXNlcjpodW50ZXIy"), "{text}");
        }
        Ok((pulled?, listing(&self.destination)))
    }
}

async fn pulled(registry: &TestRegistry, digest: &Digest) -> Result<(PulledTree, Vec<(String, String)>), Error> {
    Usual::new(registry, digest).pull().await
}

fn entries(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn simple_listing() -> Vec<(String, String)> {
    vec![(KO.to_owned(), "module".to_owned()), ("opt/lib/modules/6.1/modules.dep".to_owned(), String::new())]
}

#[tokio::test]
async fn an_image_arrives_as_a_complete_tree() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    let expected = PulledTree {
        manifest_digest: digest.clone(),
        files: 2,
        bytes: 6,
        skipped: vec![Skipped {
            path: "opt/lib/modules/6.1/host".into(),
            why: "symbolic link to /host/lib/modules/6.1, which is not kept".to_owned(),
        }],
    };
    assert_eq!(pulled(&registry, &digest).await.unwrap(), (expected, simple_listing()));
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index() {
    let registry = TestRegistry::start().await;
    let amd64 = registry.put_image("amd64", &simple_layers(), |_| {});
    let arm64 = registry.put_image("arm64", &[gzip(&layer(&[File(KO, "arm")]))], |_| {});
    let both =
        registry.put_index(&[("unknown", "unknown", &arm64), ("linux", "arm64", &arm64), ("linux", "amd64", &amd64)]);
    let (tree, files) = pulled(&registry, &both).await.unwrap();
    assert_eq!((tree.manifest_digest, files), (amd64, simple_listing()));
    let mut arm = Usual::new(&registry, &both);
    arm.platform = Platform { architecture: "arm64".to_owned() };
    assert_eq!(arm.pull().await.unwrap().0.manifest_digest, arm64);
}

#[tokio::test]
async fn an_image_for_other_platforms_says_for_which() {
    let registry = TestRegistry::start().await;
    let arm64 = registry.put_image("arm64", &simple_layers(), |_| {});
    let index = registry.put_index(&[
        ("linux", "arm64", &arm64),
        ("linux", "s390x", &arm64),
        ("linux", "arm64", &arm64),
        ("windows", "amd64", &arm64),
        ("unknown", "unknown", &arm64),
    ]);
    for (digest, expected) in [
        (index, "the image is not for linux/amd64, only for linux/arm64, linux/s390x, windows/amd64"),
        (arm64, "the image is not for linux/amd64, only for linux/arm64"),
    ] {
        let error = pulled(&registry, &digest).await.unwrap_err();
        assert_eq!((error.reason(), error.to_string().as_str()), ("PlatformMissing", expected));
    }
    let silent = registry.put_image("", &simple_layers(), |_| {});
    assert_eq!(pulled(&registry, &silent).await.unwrap().1, simple_listing());
}

#[tokio::test]
async fn only_images_named_by_digest_are_pulled() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    let mut tagged = Usual::new(&registry, &digest);
    tagged.image = registry.image("team/kmod:image");
    let error = tagged.pull().await.unwrap_err();
    assert_eq!(error.reason(), "InvalidReference");
    assert_eq!(registry.requests(), [""; 0]);
}

/// A registry whose first `times` answers for a layer are replaced.
async fn with_bad_layer(
    times: usize,
    bad: impl Fn(&[u8]) -> Response + Send + Sync + 'static,
) -> (TestRegistry, Digest, Result<Vec<(String, String)>, Error>) {
    let registry = TestRegistry::start().await;
    let layers = simple_layers();
    let digest = registry.put_image("amd64", &layers, |_| {});
    let layer = layers[1].clone();
    let path = format!("/v2/team/kmod/blobs/{}", hash::of(Algorithm::Sha256, &layer));
    registry.fault(move |seen, earlier| (seen.path == path && earlier < times).then(|| bad(&layer)));
    let result = pulled(&registry, &digest).await.map(|(_, files)| files);
    (registry, digest, result)
}

fn truncated(layer: &[u8]) -> Response {
    let body = Body::from(layer[..20].to_vec());
    reply(StatusCode::OK, &[], body)
}

fn cut_off(layer: &[u8]) -> Response {
    let first = Ok(bytes::Bytes::copy_from_slice(&layer[..20]));
    let broken = Err(std::io::Error::other("connection lost"));
    reply(StatusCode::OK, &[], Body::from_stream(futures::stream::iter([first, broken])))
}

fn corrupted(layer: &[u8]) -> Response {
    let mut layer = layer.to_vec();
    layer[30] ^= 1;
    reply(StatusCode::OK, &[], Body::from(layer))
}

fn failing(_: &[u8]) -> Response {
    reply(StatusCode::BAD_GATEWAY, &[], Body::empty())
}

fn limited(_: &[u8]) -> Response {
    reply(StatusCode::TOO_MANY_REQUESTS, &[("retry-after", "1")], Body::empty())
}

#[tokio::test]
async fn passing_faults_of_a_layer_are_survived() {
    for bad in [truncated, cut_off, corrupted, failing, limited] {
        let (_, _, result) = with_bad_layer(1, bad).await;
        assert_eq!(result.unwrap(), simple_listing());
    }
}

type Bad = fn(&[u8]) -> Response;

#[tokio::test]
async fn lasting_faults_of_a_layer_have_their_reasons() {
    let larger = |layer: &[u8]| reply(StatusCode::OK, &[], Body::from([layer, b"more"].concat()));
    let missing = |_: &[u8]| reply(StatusCode::NOT_FOUND, &[], Body::empty());
    let denied = |_: &[u8]| reply(StatusCode::FORBIDDEN, &[], Body::empty());
    let much_later = |_: &[u8]| reply(StatusCode::TOO_MANY_REQUESTS, &[("retry-after", "600")], Body::empty());
    let cases: [(Bad, &str, usize); 8] = [
        (truncated, "Unreachable", 4),
        (cut_off, "Unreachable", 4),
        (corrupted, "DigestMismatch", 4),
        (failing, "RegistryError", 4),
        (larger, "InvalidResponse", 1),
        (missing, "InvalidResponse", 1),
        (denied, "Forbidden", 1),
        (much_later, "RateLimited", 1),
    ];
    let cases = cases.map(|(bad, reason, attempts)| async move {
        let (registry, _, result) = with_bad_layer(usize::MAX, bad).await;
        let error = result.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        let requests = registry.requests();
        let last = requests.last().unwrap();
        assert_eq!(requests.iter().filter(|request| *request == last).count(), attempts, "{reason}");
    });
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn a_manifest_that_is_not_the_one_asked_for_is_refused() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    let other = registry.put_image("amd64", &simple_layers(), |manifest| manifest["annotations"] = json!({"a": "b"}));
    let wrong = registry.content.lock().unwrap().manifests[&other.to_string()].clone();
    registry.content.lock().unwrap().manifests.insert(digest.to_string(), wrong);
    match pulled(&registry, &digest).await.unwrap_err() {
        Error::DigestMismatch { what, expected, actual } => {
            assert_eq!((what, expected, actual), ("the manifest", digest, other));
        }
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_layer_that_hangs_costs_no_more_than_the_deadline() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    registry.fault(|seen, _| seen.path.contains("/blobs/").then(|| reply(StatusCode::OK, &[], hanging_body(b"x"))));
    let started = Instant::now();
    let mut short = Usual::new(&registry, &digest);
    short.deadline = Duration::from_millis(700);
    let error = short.pull().await.unwrap_err();
    assert_eq!(error.reason(), "Timeout");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn manifests_that_break_the_format_are_refused() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Edit, &str); 9] = [
        (|manifest| manifest["schemaVersion"] = json!(1), "InvalidResponse"),
        (|manifest| manifest["layers"] = json!("none"), "InvalidResponse"),
        (|manifest| manifest["layers"][0]["digest"] = json!("sha256:../../x"), "InvalidResponse"),
        (|manifest| manifest["layers"][0]["size"] = json!(-1), "InvalidResponse"),
        (|manifest| manifest["layers"][0]["size"] = json!(1_i64 << 40), "ImageTooLarge"),
        (|manifest| manifest["config"]["size"] = json!(1_i64 << 40), "ImageTooLarge"),
        (|manifest| manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 300]), "ImageTooLarge"),
        (|manifest| manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted"), {
            "InvalidResponse"
        }),
        (|manifest| manifest["layers"][0]["mediaType"] = json!("application/vnd.wasm"), "InvalidResponse"),
    ];
    for (edit, reason) in cases {
        let registry = TestRegistry::start().await;
        let digest = registry.put_image("amd64", &simple_layers(), edit);
        let error = pulled(&registry, &digest).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
    let registry = TestRegistry::start().await;
    let image = registry.put_image("amd64", &simple_layers(), |_| {});
    let inner = registry.put_index(&[("linux", "amd64", &image)]);
    let outer = registry.put_index(&[("linux", "amd64", &inner), ("linux", "amd64", &image)]);
    let error = pulled(&registry, &outer).await.unwrap_err();
    assert_eq!(error.to_string(), "the image cannot be read: its index leads to another index");
}

#[tokio::test]
async fn a_layer_listed_twice_is_fetched_once() {
    let registry = TestRegistry::start().await;
    let layers = simple_layers();
    let digest = registry.put_image("amd64", &[layers[0].clone(), layers[1].clone(), layers[1].clone()], |_| {});
    assert_eq!(pulled(&registry, &digest).await.unwrap().1, simple_listing());
    let blobs = registry.requests().iter().filter(|request| request.contains("/blobs/")).count();
    assert_eq!(blobs, 3, "the configuration and two layers");
}

#[tokio::test]
async fn docker_types_are_read_too() {
    let registry = TestRegistry::start().await;
    for kind in ["tar", "tar.gzip"] {
        let digest = registry.put_image("amd64", &simple_layers(), |manifest| {
            for layer in manifest["layers"].as_array_mut().unwrap() {
                layer["mediaType"] = json!(format!("application/vnd.docker.image.rootfs.diff.{kind}"));
            }
        });
        assert_eq!(pulled(&registry, &digest).await.unwrap().1, simple_listing());
    }
}

#[tokio::test]
async fn credentials_are_used_for_everything_and_tried_in_turn() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    registry.require_basic();
    let exact = format!("{}/team", registry.address);
    let both = credentials(&[(&exact, "user", "wrong"), (&registry.address, "user", "hunter2")]);
    let mut known = Usual::new(&registry, &digest);
    known.credentials = both;
    assert_eq!(known.pull().await.unwrap().1, simple_listing());
    let error = pulled(&registry, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Registry(registry::Error::Unauthorized { .. })), "{error}");
}

#[tokio::test]
async fn a_token_that_expires_half_way_is_fetched_again() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, registry.address);
    let count = std::sync::atomic::AtomicU32::new(0);
    registry.fault(move |seen, earlier| {
        if seen.path.starts_with("/token") {
            count.store(0, std::sync::atomic::Ordering::SeqCst);
            return Some(reply(StatusCode::OK, &[], Body::from(format!(r#"{{"token":"t{earlier}"}}"#))));
        }
        let uses = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let refused = seen.authorization.is_none() || uses >= 2;
        refused.then(|| reply(StatusCode::UNAUTHORIZED, &[("www-authenticate", &challenge)], Body::empty()))
    });
    assert_eq!(pulled(&registry, &digest).await.unwrap().1, simple_listing());
    let tokens = registry.requests().iter().filter(|request| request.contains("/token")).count();
    assert_eq!(tokens, 2);
}

#[tokio::test]
async fn what_a_crash_left_goes_with_the_next_pull_and_a_finished_tree_stays() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    let usual = Usual::new(&registry, &digest);
    let folder = usual.folder.path();
    std::fs::create_dir_all(folder.join(".image.0123-0.partial/tree/opt")).unwrap();
    std::fs::create_dir_all(folder.join(".other.0123-0.partial")).unwrap();
    pull(usual.request()).await.unwrap();
    let mut left = entries(folder);
    left.sort();
    assert_eq!(left, [".other.0123-0.partial", "image"]);
    let error = pull(usual.request()).await.unwrap_err();
    assert!(matches!(&error, Error::Storage { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists));
    assert_eq!(listing(&usual.destination), simple_listing());
    let nowhere = folder.join("missing/image");
    let error = pull(PullRequest { destination: &nowhere, ..usual.request() }).await.unwrap_err();
    assert_eq!(error.reason(), "StoreFailed");
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    registry.fault(|seen, _| seen.path.contains("/blobs/").then(|| reply(StatusCode::OK, &[], hanging_body(b"x"))));
    let usual = Usual::new(&registry, &digest);
    let given_up = tokio::time::timeout(Duration::from_millis(500), pull(usual.request())).await;
    assert!(given_up.is_err());
    assert_eq!(entries(usual.folder.path()), [""; 0]);
}
