use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Item::{File, Link};
use super::*;
use crate::oci::error::{PullError, RegistryError};
use crate::oci::limits::{Keep, Limits, Platform, Skipped};
use crate::oci::pull::{PullRequest, PulledTree, pull};
use crate::oci::route::endpoint::{Endpoint, Scheme};
use crate::oci::route::proxies::Proxies;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const KO: &str = "opt/lib/modules/6.1/a.ko";

impl TestRegistry {
    fn put_blob(&self, media_type: &str, blob: &[u8]) -> serde_json::Value {
        let digest = Digest::of_bytes(Algorithm::Sha256, blob).to_string();
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
    endpoints: Vec<Endpoint>,
    proxies: Proxies,
    keep: Keep,
    patience: Duration,
    limits: Limits,
}

impl Usual {
    fn new(registry: &TestRegistry, digest: &Digest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image: ImageRef = registry.image("team/kmod").with_digest(digest).parse().unwrap();
        Self {
            destination: folder.path().join("image"),
            folder,
            endpoints: vec![Endpoint::origin(&image, plain_http())],
            proxies: Proxies::default(),
            image,
            platform: Platform { architecture: "amd64".to_owned() },
            credentials: Credentials::anonymous(),
            keep: Keep::new("/opt", &["6.1"], None),
            patience: Duration::from_secs(20),
            limits: Limits::default(),
        }
    }

    fn request(&self) -> PullRequest<'_> {
        PullRequest {
            image: &self.image,
            platform: &self.platform,
            credentials: &self.credentials,
            endpoints: &self.endpoints,
            proxies: &self.proxies,
            destination: &self.destination,
            keep: &self.keep,
            limits: self.limits,
            patience: self.patience,
        }
    }

    /// Pulls; afterwards nothing but the destination, and that only on success, may be there.
    async fn pull(&self) -> Result<(PulledTree, Vec<(String, String)>), PullError> {
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

async fn pulled(registry: &TestRegistry, digest: &Digest) -> Result<(PulledTree, Vec<(String, String)>), PullError> {
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
        assert_eq!((error.reason(), error.to_string().as_str()), (NodeReason::ImagePlatformMissing, expected));
        assert!(error.is_permanent());
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
    assert_eq!((error.reason(), error.is_permanent()), (NodeReason::ImageInvalidReference, true));
    assert_eq!(registry.requests(), [""; 0]);
}

/// A registry whose first `times` answers for a layer are replaced.
async fn with_bad_layer(
    times: usize,
    bad: impl Fn(&[u8]) -> Response + Send + Sync + 'static,
) -> (TestRegistry, Digest, Result<Vec<(String, String)>, PullError>) {
    let registry = TestRegistry::start().await;
    let layers = simple_layers();
    let digest = registry.put_image("amd64", &layers, |_| {});
    let layer = layers[1].clone();
    let path = format!("/v2/team/kmod/blobs/{}", Digest::of_bytes(Algorithm::Sha256, &layer));
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
    let cases: [(Bad, NodeReason, usize); 8] = [
        (truncated, NodeReason::ImageUnreachable, 4),
        (cut_off, NodeReason::ImageUnreachable, 4),
        (corrupted, NodeReason::DigestMismatch, 4),
        (failing, NodeReason::ImageRegistryError, 4),
        (larger, NodeReason::ImageInvalidResponse, 1),
        (missing, NodeReason::ImageInvalidResponse, 1),
        (denied, NodeReason::ImageForbidden, 1),
        (much_later, NodeReason::ImageRateLimited, 1),
    ];
    let cases = cases.map(|(bad, reason, attempts)| async move {
        let (registry, _, result) = with_bad_layer(usize::MAX, bad).await;
        let error = result.unwrap_err();
        assert_eq!((error.reason(), error.is_permanent()), (reason, false), "{error}");
        let requests = registry.requests();
        let last = requests.last().unwrap();
        assert_eq!(requests.iter().filter(|request| *request == last).count(), attempts, "{reason:?}");
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
        PullError::DigestMismatch { what, expected, actual } => {
            assert_eq!((what, expected, actual), ("the manifest", digest, other));
        }
        error => panic!("{error}"),
    }
}

/// A registry with an image of these layers, of which the last begins and never ends.
async fn with_hanging_layer(layers: &[Vec<u8>]) -> (TestRegistry, Digest) {
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", layers, |_| {});
    let last = Digest::of_bytes(Algorithm::Sha256, layers.last().unwrap()).to_string();
    registry.fault(move |seen, _| {
        seen.path.ends_with(&format!("/blobs/{last}")).then(|| reply(StatusCode::OK, &[], hanging_body(b"x")))
    });
    (registry, digest)
}

/// How long something may take that does not wait for what hangs, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(15);

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_layer_that_hangs_costs_no_more_than_the_patience() {
    let (registry, digest) = with_hanging_layer(&simple_layers()).await;
    let mut short = Usual::new(&registry, &digest);
    short.patience = Duration::from_millis(700);
    let pulled = tokio::time::timeout(SOON, pull(short.request())).await.expect("it ends");
    assert_eq!(pulled.unwrap_err().reason(), NodeReason::ImageTimeout);
    let last = registry.requests().pop().unwrap();
    assert!(last.contains("/blobs/"), "{last}");
    // The thread that waits for the layer ends, too, and takes the folder along.
    tokio::time::timeout(SOON, until(|| entries(short.folder.path()).is_empty())).await.unwrap();
}

#[tokio::test]
async fn a_slow_link_brings_an_image_in_any_time_as_long_as_enough_comes() {
    use futures::StreamExt;
    let registry = TestRegistry::start().await;
    let digest = registry.put_image("amd64", &simple_layers(), |_| {});
    let blobs = registry.content.lock().unwrap().blobs.clone();
    registry.fault(move |seen, _| {
        let blob = blobs.get(seen.path.rsplit('/').next()?)?;
        let pieces: Vec<_> = blob.chunks(blob.len() / 8 + 1).map(bytes::Bytes::copy_from_slice).collect();
        let slow = futures::stream::iter(pieces).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            Ok::<_, std::io::Error>(piece)
        });
        Some(reply(StatusCode::OK, &[], Body::from_stream(slow)))
    });
    let mut slow = Usual::new(&registry, &digest);
    slow.patience = Duration::from_secs(1);
    slow.limits.progress_bytes = 1;
    let started = Instant::now();
    assert_eq!(slow.pull().await.unwrap().1, simple_listing());
    assert!(started.elapsed() > slow.patience);
    slow.limits.progress_bytes = Limits::default().progress_bytes;
    std::fs::remove_dir_all(&slow.destination).unwrap();
    assert_eq!(slow.pull().await.unwrap_err().reason(), NodeReason::ImageTimeout);
}

#[tokio::test]
async fn manifests_that_break_the_format_are_refused() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Edit, NodeReason); 10] = [
        (|manifest| manifest["schemaVersion"] = json!(1), NodeReason::ImageInvalidResponse),
        // One reader may take it for an index, and another one for an image.
        (|manifest| manifest["manifests"] = json!([]), NodeReason::ImageInvalidResponse),
        (|manifest| manifest["layers"] = json!("none"), NodeReason::ImageInvalidResponse),
        (|manifest| manifest["layers"][0]["digest"] = json!("sha256:../../x"), NodeReason::ImageInvalidResponse),
        (|manifest| manifest["layers"][0]["size"] = json!(-1), NodeReason::ImageInvalidResponse),
        (|manifest| manifest["layers"][0]["size"] = json!(1_i64 << 40), NodeReason::ImageTooLarge),
        (|manifest| manifest["config"]["size"] = json!(1_i64 << 40), NodeReason::ImageTooLarge),
        (|manifest| manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 300]), NodeReason::ImageTooLarge),
        (|manifest| manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted"), {
            NodeReason::ImageInvalidResponse
        }),
        (
            |manifest| manifest["layers"][0]["mediaType"] = json!("application/vnd.wasm"),
            NodeReason::ImageInvalidResponse,
        ),
    ];
    for (edit, reason) in cases {
        let registry = TestRegistry::start().await;
        let digest = registry.put_image("amd64", &simple_layers(), edit);
        let error = pulled(&registry, &digest).await.unwrap_err();
        assert_eq!((error.reason(), error.is_permanent()), (reason, true), "{error}");
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
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { .. })), "{error}");
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
    assert!(matches!(&error, PullError::Storage { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists));
    assert_eq!(listing(&usual.destination), simple_listing());
    let nowhere = folder.join("missing/image");
    let error = pull(PullRequest { destination: &nowhere, ..usual.request() }).await.unwrap_err();
    assert_eq!(error.reason(), NodeReason::StoreFailed);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing() {
    // Large enough that the thread is still at it, and next to nothing on the way.
    let (registry, digest) = with_hanging_layer(&[zeros(128 << 20), gzip(&layer(&[File(KO, "late")]))]).await;
    let usual = Usual::new(&registry, &digest);
    let folder = usual.folder.path();
    let is_unpacking = || {
        let file = entries(folder).pop().map(|partial| folder.join(partial).join("tree").join(KO));
        file.and_then(|file| file.metadata().ok()).is_some_and(|metadata| metadata.len() > 0)
    };
    tokio::select! {
        pulled = pull(usual.request()) => panic!("{pulled:?}"),
        () = until(is_unpacking) => {}
    }
    tokio::time::timeout(SOON, until(|| entries(folder).is_empty())).await.unwrap();
    // Nothing writes there any more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(entries(folder), [""; 0]);
}

/// A layer with one file of zeros.
fn zeros(bytes: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(KO).unwrap();
    header.set_size(bytes);
    header.set_cksum();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let archive = std::io::Read::chain(&header.as_bytes()[..], std::io::Read::take(std::io::repeat(0), bytes + 1024));
    std::io::copy(&mut { archive }, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// Answers for a layer that honours ranges: at most `most` bytes of it each time, then the connection breaks.
fn in_pieces(layer: Vec<u8>, most: usize) -> impl Fn(&Seen) -> Response {
    move |seen: &Seen| {
        let from =
            seen.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = from.unwrap_or(0);
        let end = (from + most).min(layer.len());
        let piece = Ok(bytes::Bytes::copy_from_slice(&layer[from..end]));
        let breaks = end < layer.len();
        // What was sent arrives before the connection breaks.
        let rest = futures::stream::once(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if breaks { Err(std::io::Error::other("connection lost")) } else { Ok(bytes::Bytes::new()) }
        });
        let range = format!("bytes {from}-{}/{}", layer.len() - 1, layer.len());
        let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let body = futures::StreamExt::chain(futures::stream::iter([piece]), rest);
        reply(status, &[("content-range", &range)], Body::from_stream(body))
    }
}

/// A layer with one file that does not compress, so that its size on the way is known.
fn large_layer(bytes: usize) -> (Vec<u8>, String) {
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 60) as u8)
    };
    let content: String = (0..bytes).map(|_| letter()).collect();
    (layer(&[File(KO, &content)]), content)
}

#[tokio::test]
async fn a_layer_that_breaks_off_is_taken_up_where_it_ended() {
    let registry = TestRegistry::start().await;
    let (layer, content) = large_layer(900_000);
    let digest = registry.put_image("amd64", std::slice::from_ref(&layer), |_| {});
    let path = format!("/v2/team/kmod/blobs/{}", Digest::of_bytes(Algorithm::Sha256, &layer));
    let answer = in_pieces(layer, 300_000);
    registry.fault(move |seen, _| (seen.path == path).then(|| answer(seen)));
    assert_eq!(pulled(&registry, &digest).await.unwrap().1, [(KO.to_owned(), content)]);
    let ranges: Vec<_> = registry.content.lock().unwrap().seen.iter().filter_map(|seen| seen.range.clone()).collect();
    let starts: Vec<u64> = ranges.iter().map(|range| range[6..range.len() - 1].parse().unwrap()).collect();
    // The last bytes before a break may be lost on the way; what arrived is never asked for again.
    assert!(starts.len() >= 2 && starts.is_sorted() && starts[0] > 0, "{starts:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_often_still_arrives() {
    let registry = TestRegistry::start().await;
    let (layer, content) = large_layer(9 << 20);
    let digest = registry.put_image("amd64", std::slice::from_ref(&layer), |_| {});
    let path = format!("/v2/team/kmod/blobs/{}", Digest::of_bytes(Algorithm::Sha256, &layer));
    let answer = in_pieces(layer, 3 << 19);
    registry.fault(move |seen, _| (seen.path == path).then(|| answer(seen)));
    assert!(pulled(&registry, &digest).await.unwrap().1 == [(KO.to_owned(), content)]);
}

#[tokio::test]
async fn a_blob_that_changes_half_way_is_never_believed() {
    let registry = TestRegistry::start().await;
    let (layer, content) = large_layer(600_000);
    let digest = registry.put_image("amd64", std::slice::from_ref(&layer), |_| {});
    let path = format!("/v2/team/kmod/blobs/{}", Digest::of_bytes(Algorithm::Sha256, &layer));
    let (good, bad) = (in_pieces(layer.clone(), 400_000), in_pieces(vec![b'x'; layer.len()], usize::MAX >> 1));
    // First the beginning of one, then the end of another; then whole again.
    registry.fault(move |seen, earlier| {
        (seen.path == path && earlier < 2).then(|| if earlier == 0 { good(seen) } else { bad(seen) })
    });
    assert!(pulled(&registry, &digest).await.unwrap().1 == [(KO.to_owned(), content)]);
}

#[tokio::test]
async fn an_answer_with_another_part_than_the_missing_one_is_not_used() {
    for status in [StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE] {
        let registry = TestRegistry::start().await;
        let (layer, content) = large_layer(600_000);
        let digest = registry.put_image("amd64", std::slice::from_ref(&layer), |_| {});
        let path = format!("/v2/team/kmod/blobs/{}", Digest::of_bytes(Algorithm::Sha256, &layer));
        let first = in_pieces(layer, 400_000);
        registry.fault(move |seen, earlier| match earlier {
            _ if seen.path != path => None,
            0 => Some(first(seen)),
            1 => Some(reply(status, &[("content-range", "bytes 5-9/10")], Body::from("wrong"))),
            _ => None,
        });
        assert!(pulled(&registry, &digest).await.unwrap().1 == [(KO.to_owned(), content)], "{status}");
    }
}

/// A pull whose first endpoints are these registries, as mirrors of one that nobody reaches.
async fn mirrored(mirrors: &[&TestRegistry], digest: &Digest) -> Result<Vec<(String, String)>, PullError> {
    let nowhere = TestRegistry { address: "registry.invalid".to_owned(), content: Arc::default() };
    let mut usual = Usual::new(&nowhere, digest);
    let at = |mirror: &&TestRegistry| {
        let mut endpoint = Endpoint::at(&usual.image, mirror.address.clone());
        endpoint.scheme = Scheme::Http;
        endpoint.namespace = Some("registry.invalid".to_owned());
        endpoint
    };
    let mut endpoints: Vec<_> = mirrors.iter().map(at).collect();
    endpoints.append(&mut usual.endpoints);
    usual.endpoints = endpoints;
    usual.credentials = credentials(&[("registry.invalid", "user", "hunter2")]);
    usual.pull().await.map(|(_, files)| files)
}

#[tokio::test]
async fn the_next_endpoint_is_asked_for_what_one_does_not_have() {
    type Break = fn(&TestRegistry);
    let breaks: [(&str, Break); 6] = [
        ("missing", |mirror| mirror.content.lock().unwrap().manifests.clear()),
        ("failing", |mirror| mirror.fault(|_, _| Some(reply(StatusCode::BAD_GATEWAY, &[], Body::empty())))),
        ("locked", TestRegistry::require_basic),
        ("without layers", |mirror| mirror.content.lock().unwrap().blobs.clear()),
        ("lying", |mirror| {
            let mut content = mirror.content.lock().unwrap();
            content.manifests.values_mut().for_each(|(_, body)| body.push(b' '));
        }),
        ("damaged", |mirror| {
            let mut content = mirror.content.lock().unwrap();
            content.blobs.values_mut().for_each(|blob| blob[20] ^= 1);
        }),
    ];
    for (what, damage) in breaks {
        let (first, second) = (TestRegistry::start().await, TestRegistry::start().await);
        let digest = first.put_image("amd64", &simple_layers(), |_| {});
        assert_eq!(second.put_image("amd64", &simple_layers(), |_| {}), digest);
        damage(&first);
        assert_eq!(mirrored(&[&first, &second], &digest).await.unwrap(), simple_listing(), "{what}");
        assert!(!first.requests().is_empty());
        let seen = second.content.lock().unwrap().seen.clone();
        assert!(seen.iter().all(|seen| seen.path.ends_with("?ns=registry.invalid")), "{seen:?}");
        let first = first.content.lock().unwrap().seen.clone();
        assert!(
            first.iter().chain(&seen).all(|seen| seen.authorization.is_none()),
            "another registry's password was sent"
        );
    }
}

#[tokio::test]
async fn what_tells_most_is_told_first_and_every_endpoint_is_named() {
    let mirror = TestRegistry::start().await;
    let digest = mirror.put_image("amd64", &simple_layers(), |_| {});
    mirror.content.lock().unwrap().manifests.clear();
    let error = mirrored(&[&mirror], &digest).await.unwrap_err();
    assert_eq!(error.reason(), NodeReason::ImageNotFound, "the registry itself did not answer");
    assert!(!error.is_permanent());
    let text = error.to_string();
    let start = format!(
        "image registry.invalid/team/kmod@{digest} does not exist in its registry (asked at the mirror {}; registry.invalid: ",
        mirror.address
    );
    assert!(text.starts_with(&start), "{text}");
}

#[tokio::test]
async fn what_a_mirror_began_another_one_ends() {
    let (first, second) = (TestRegistry::start().await, TestRegistry::start().await);
    let (layer, content) = large_layer(600_000);
    let digest = first.put_image("amd64", std::slice::from_ref(&layer), |_| {});
    second.put_image("amd64", std::slice::from_ref(&layer), |_| {});
    let is_layer = move |path: &str, layer: &[u8]| path.contains(Digest::of_bytes(Algorithm::Sha256, layer).hex());
    let (begins, all) = (in_pieces(layer.clone(), 400_000), layer.clone());
    first.fault(move |seen, earlier| {
        let gone = || reply(StatusCode::BAD_GATEWAY, &[], Body::empty());
        is_layer(&seen.path, &all).then(|| if earlier == 0 { begins(seen) } else { gone() })
    });
    let (ends, all) = (in_pieces(layer.clone(), usize::MAX >> 1), layer);
    second.fault(move |seen, _| is_layer(&seen.path, &all).then(|| ends(seen)));
    assert!(mirrored(&[&first, &second], &digest).await.unwrap() == [(KO.to_owned(), content)]);
    let seen = second.content.lock().unwrap().seen.clone();
    assert!(seen.iter().any(|seen| seen.range.is_some()), "{seen:?}");
}
