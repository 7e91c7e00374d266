use std::time::{Duration, Instant};

use super::*;
use crate::oci::error::RegistryError;
use crate::oci::http::registry::resolve;
use crate::oci::route::proxies::Proxies;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const DEADLINE: Duration = Duration::from_secs(10);

async fn ask(registry: &TestRegistry, image: &ImageRef, credentials: &Credentials) -> Result<Digest, RegistryError> {
    let answer = resolve(image, credentials, &plain_http(), &Proxies::default(), DEADLINE).await;
    if let Err(error) = &answer {
        let text = format!("{error} {error:?}");
        for secret in ["hunter2", "dXNlcjpodW50ZXIy", "token-value"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    assert!(!registry.requests().is_empty());
    answer
}

async fn with_fault(
    fault: impl Fn(&Seen, usize) -> Option<Response> + Send + Sync + 'static,
) -> Result<Digest, RegistryError> {
    let registry = TestRegistry::start().await;
    registry.put_manifest("v1", INDEX_TYPE, INDEX);
    registry.fault(fault);
    let mut answer = ask(&registry, &registry.image("team/app:v1"), &Credentials::anonymous()).await;
    // The port differs from run to run.
    if let Err(
        RegistryError::NotFound { image }
        | RegistryError::Unauthorized { image, .. }
        | RegistryError::Forbidden { image, .. }
        | RegistryError::RateLimited { image, .. }
        | RegistryError::ServerError { image, .. }
        | RegistryError::InvalidResponse { image, .. },
    ) = &mut answer
    {
        *image = image.replace(&registry.address, "registry");
    }
    answer
}

fn image() -> String {
    "registry/team/app:v1".to_owned()
}

fn invalid(why: &str) -> RegistryError {
    RegistryError::InvalidResponse { image: image(), why: why.to_owned() }
}

#[tokio::test]
async fn head_requests_tell_the_digest_of_the_index_and_that_the_registry_has_it() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("v1", INDEX_TYPE, INDEX);
    let image = registry.image("team/app:v1");
    assert_eq!(ask(&registry, &image, &Credentials::anonymous()).await, Ok(digest.clone()));
    let by_digest = format!("HEAD /v2/team/app/manifests/{digest}");
    assert_eq!(registry.requests(), ["HEAD /v2/team/app/manifests/v1", &by_digest]);
    let pinned: ImageRef = image.with_digest(&digest).parse().unwrap();
    assert_eq!(ask(&registry, &pinned, &Credentials::anonymous()).await, Ok(digest));
}

#[tokio::test]
async fn docker_manifests_are_accepted_too() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("v1", DOCKER_TYPE, MANIFEST);
    assert_eq!(ask(&registry, &registry.image("a:v1"), &Credentials::anonymous()).await, Ok(digest));
}

#[tokio::test]
async fn without_a_digest_header_the_digest_is_that_of_the_body() {
    let expected = Digest::of_bytes(Algorithm::Sha256, INDEX);
    for get_too in [false, true] {
        let answer = with_fault(move |seen, _| {
            let bare = seen.method == Method::HEAD || get_too;
            bare.then(|| {
                let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(INDEX) };
                reply(StatusCode::OK, &[("content-type", INDEX_TYPE)], body)
            })
        });
        assert_eq!(answer.await, Ok(expected.clone()));
    }
}

#[tokio::test]
async fn a_registry_that_refuses_head_requests_is_asked_with_get() {
    for status in [400, 403, 405, 501] {
        let answer = with_fault(move |seen, _| {
            let status = StatusCode::from_u16(status).unwrap();
            (seen.method == Method::HEAD).then(|| reply(status, &[], Body::empty()))
        });
        assert_eq!(answer.await, Ok(Digest::of_bytes(Algorithm::Sha256, INDEX)), "{status}");
    }
}

/// Answers every request alike.
fn always(
    status: u16,
    headers: &'static [(&str, &str)],
    body: &'static str,
) -> impl Fn(&Seen, usize) -> Option<Response> {
    move |seen, _| {
        let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(body) };
        Some(reply(StatusCode::from_u16(status).unwrap(), headers, body))
    }
}

/// Status, headers and body of every answer, and the error that it is.
type Case = (u16, &'static [(&'static str, &'static str)], &'static str, RegistryError);

#[tokio::test]
async fn every_refusal_has_its_own_reason() {
    const WITHOUT: &str = "asked without credentials";
    let html = "<html>gateway</html>";
    let unknown = r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#;
    let denied = r#"{"errors":[{"code":"DENIED"}]}"#;
    let limited =
        |secs: Option<u64>| RegistryError::RateLimited { image: image(), retry_after: secs.map(Duration::from_secs) };
    let failed = |status, secs: Option<u64>| RegistryError::ServerError {
        image: image(),
        status,
        retry_after: secs.map(Duration::from_secs),
    };
    let schema1 = "the manifest is of schema version 1, which is not supported: push the image again";
    let cases: Vec<Case> = vec![
        (404, &[], unknown, RegistryError::NotFound { image: image() }),
        (404, &[("docker-distribution-api-version", "registry/2.0")], "", RegistryError::NotFound { image: image() }),
        (404, &[], html, invalid("status 404 from something that is no registry")),
        (404, &[], denied, RegistryError::Forbidden { image: image(), tried: WITHOUT.to_owned() }),
        (401, &[], "", RegistryError::Unauthorized { image: image(), tried: WITHOUT.to_owned() }),
        (
            401,
            &[("www-authenticate", "Basic realm=\"x\"")],
            "",
            RegistryError::Unauthorized { image: image(), tried: WITHOUT.to_owned() },
        ),
        (
            401,
            &[("www-authenticate", "Bearer realm")],
            "",
            RegistryError::Unauthorized { image: image(), tried: WITHOUT.to_owned() },
        ),
        (403, &[], "", RegistryError::Forbidden { image: image(), tried: WITHOUT.to_owned() }),
        (429, &[], "", limited(None)),
        (429, &[("retry-after", "7")], "", limited(Some(7))),
        (429, &[("retry-after", "999999999")], "", limited(Some(3600))),
        (429, &[("retry-after", "soon")], "", limited(None)),
        (429, &[("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")], "", limited(Some(0))),
        (500, &[], "", failed(500, None)),
        (501, &[], "", failed(501, None)),
        (503, &[("retry-after", "3")], "", failed(503, Some(3))),
        (418, &[], "", invalid("status 418 for a manifest")),
        (204, &[], "", invalid("status 204 for a manifest")),
        (200, &[], html, invalid("the manifest is none")),
        (200, &[], "{\"schemaVersion\":1,\"fsLayers\":[]}", invalid(schema1)),
        (200, &[], "{\"schemaVersion\":2}", invalid("the manifest is neither that of an image nor an index")),
        (200, &[("docker-content-digest", "md5:1")], "{}", invalid("its digest header is no digest")),
    ];
    for (status, headers, body, expected) in cases {
        assert_eq!(with_fault(always(status, headers, body)).await, Err(expected), "{status} {headers:?} {body}");
    }
}

#[tokio::test]
async fn a_bare_404_counts_when_the_api_root_is_that_of_a_registry() {
    let answer = with_fault(|seen, _| {
        let manifest = seen.path.contains("/manifests/");
        manifest.then(|| reply(StatusCode::NOT_FOUND, &[], Body::empty()))
    });
    assert_eq!(answer.await, Err(RegistryError::NotFound { image: image() }));
}

#[tokio::test]
async fn a_digest_header_that_does_not_fit_the_body_is_an_error() {
    let other = Digest::of_bytes(Algorithm::Sha256, MANIFEST);
    let actual = Digest::of_bytes(Algorithm::Sha256, INDEX);
    let header: &'static str = Box::leak(other.to_string().into_boxed_str());
    let answer = with_fault(move |seen, _| {
        Some(if seen.method == Method::HEAD {
            reply(StatusCode::OK, &[], Body::empty())
        } else {
            reply(StatusCode::OK, &[("docker-content-digest", header)], Body::from(INDEX))
        })
    });
    assert_eq!(answer.await, Err(invalid(&format!("the bytes of the manifest have the digest {actual}, not {other}"))));
}

#[tokio::test]
async fn a_digest_that_only_a_header_knows_is_not_believed() {
    let (other, actual) =
        (Digest::of_bytes(Algorithm::Sha256, b"something else"), Digest::of_bytes(Algorithm::Sha256, INDEX));
    let wrong: &'static str = Box::leak(other.to_string().into_boxed_str());
    for get_too in [false, true] {
        let answer = with_fault(move |seen, _| {
            let headers = &[("content-type", INDEX_TYPE), ("docker-content-digest", wrong)];
            let tag = seen.path.ends_with("/v1");
            let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(INDEX) };
            (tag && (get_too || seen.method == Method::HEAD)).then(|| reply(StatusCode::OK, headers, body))
        });
        let lie = format!("the bytes of the manifest have the digest {actual}, not {other}");
        assert_eq!(answer.await, if get_too { Err(invalid(&lie)) } else { Ok(actual.clone()) });
    }
}

#[tokio::test]
async fn another_digest_than_the_pinned_one_is_an_error() {
    let registry = TestRegistry::start().await;
    registry.put_manifest("v1", INDEX_TYPE, INDEX);
    let other = Digest::of_bytes(Algorithm::Sha256, b"other");
    let index = registry.content.lock().unwrap().manifests["v1"].clone();
    registry.content.lock().unwrap().manifests.insert(other.to_string(), index);
    let pinned: ImageRef = registry.image("a").with_digest(&other).parse().unwrap();
    let error = ask(&registry, &pinned, &Credentials::anonymous()).await.unwrap_err();
    assert_eq!(error.reason(), ImageReason::InvalidResponse);
}

#[tokio::test]
async fn a_registry_that_hangs_costs_no_more_than_the_deadline() {
    for in_body in [false, true] {
        let registry = TestRegistry::start().await;
        registry.fault(move |seen, _| {
            Some(match (seen.method == Method::HEAD, in_body) {
                (true, _) => reply(StatusCode::OK, &[], Body::empty()),
                (false, true) => reply(StatusCode::OK, &[("content-type", INDEX_TYPE)], hanging_body(b"{")),
                (false, false) => reply(StatusCode::OK, &[("content-length", "2")], hanging_body(b"")),
            })
        });
        let started = Instant::now();
        let deadline = Duration::from_millis(600);
        let image = registry.image("a:v1");
        let answer = resolve(&image, &Credentials::anonymous(), &plain_http(), &Proxies::default(), deadline).await;
        assert_eq!(answer, Err(RegistryError::Timeout { image: image.to_string(), after: deadline }));
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}

#[tokio::test]
async fn a_listener_that_never_speaks_is_a_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image: ImageRef = format!("{}/a", listener.local_addr().unwrap()).parse().unwrap();
    for insecure in [false, true] {
        let options = RegistryOptions { insecure, insecure_skip_tls_verify: false };
        let answer =
            resolve(&image, &Credentials::anonymous(), &options, &Proxies::default(), Duration::from_millis(500)).await;
        assert_eq!(answer.unwrap_err().reason(), ImageReason::Timeout);
    }
}

#[tokio::test]
async fn broken_connections_are_told_apart() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let registry = TestRegistry::start().await;
    for (host, insecure, reason) in [
        (closed.as_str(), false, ImageReason::Unreachable),
        (closed.as_str(), true, ImageReason::Unreachable),
        ("registry.invalid", false, ImageReason::Unreachable),
        (registry.address.as_str(), false, ImageReason::TlsError),
    ] {
        let image: ImageRef = format!("{host}/a:v1").parse().unwrap();
        let options = RegistryOptions { insecure, insecure_skip_tls_verify: false };
        let error =
            resolve(&image, &Credentials::anonymous(), &options, &Proxies::default(), DEADLINE).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{host}: {error}");
    }
}

#[tokio::test]
async fn an_endless_manifest_is_not_read() {
    let answer = with_fault(|seen, _| {
        let endless =
            futures::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[b' '; 4096])));
        let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from_stream(endless) };
        Some(reply(StatusCode::OK, &[], body))
    });
    assert_eq!(answer.await, Err(invalid("an answer of more than 4194304 bytes")));
}

#[tokio::test]
async fn basic_authentication_is_used_where_the_registry_asks_for_it() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("v1", INDEX_TYPE, INDEX);
    registry.require_basic();
    let image = registry.image("team/app:v1");
    let host = registry.address.clone();
    assert_eq!(ask(&registry, &image, &credentials(&[(&host, "user", "hunter2")])).await, Ok(digest));
    let error = ask(&registry, &image, &credentials(&[(&host, "user", "wrong")])).await.unwrap_err();
    assert_eq!(error.reason(), ImageReason::Unauthorized);
    let error = ask(&registry, &image, &credentials(&[("other", "user", "hunter2")])).await.unwrap_err();
    assert_eq!(error.reason(), ImageReason::Unauthorized);
    let anonymous = registry.content.lock().unwrap().seen.last().unwrap().authorization.clone();
    assert_eq!(anonymous, None, "credentials of another registry were sent");
}

#[tokio::test]
async fn every_matching_credential_is_tried_and_one_refusal_makes_a_404_uncertain() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("v1", INDEX_TYPE, INDEX);
    registry.require_basic();
    let host = registry.address.clone();
    let exact = format!("{host}/team");
    let both = credentials(&[(&exact, "user", "wrong"), (&host, "user", "hunter2")]);
    assert_eq!(ask(&registry, &registry.image("team/app:v1"), &both).await, Ok(digest));
    let error = ask(&registry, &registry.image("team/app:none"), &both).await.unwrap_err();
    assert_eq!(error.reason(), ImageReason::Unauthorized);
    let valid = credentials(&[(&host, "user", "hunter2")]);
    let error = ask(&registry, &registry.image("team/app:none"), &valid).await.unwrap_err();
    assert_eq!(error.reason(), ImageReason::NotFound);
}

#[tokio::test]
async fn of_several_secrets_the_one_for_the_registry_counts_whatever_its_type_and_place() {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("v1", INDEX_TYPE, INDEX);
    registry.require_basic();
    let old_type = format!(r#"{{"{}":{{"auth":"dXNlcjpodW50ZXIy"}}}}"#, registry.address);
    let mut all = credentials(&[("registry-a.example", "user", "wrong")]);
    let image = registry.image("team/app:v1");
    assert_eq!(ask(&registry, &image, &all).await.unwrap_err().reason(), ImageReason::Unauthorized);
    all.extend(Credentials::from_docker_cfg(old_type.as_bytes()).unwrap());
    assert_eq!(ask(&registry, &image, &all).await, Ok(digest));
    let sent: Vec<_> =
        registry.content.lock().unwrap().seen.iter().filter_map(|seen| seen.authorization.clone()).collect();
    assert!(!sent.is_empty() && sent.iter().all(|sent| sent == "Basic dXNlcjpodW50ZXIy"), "{sent:?}");
}

/// A registry that wants a bearer token; `token` answers the token server's requests.
async fn with_tokens(token: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> (TestRegistry, Digest) {
    let registry = TestRegistry::start().await;
    let digest = registry.put_manifest("v1", INDEX_TYPE, INDEX);
    let challenge = format!(r#"Bearer realm="http://{}/token",service="the registry""#, registry.address);
    registry.fault(move |seen, _| {
        if seen.path.starts_with("/token") {
            return Some(token(seen));
        }
        let allowed = seen.authorization.as_deref() == Some("Bearer token-value");
        (!allowed).then(|| reply(StatusCode::UNAUTHORIZED, &[("www-authenticate", &challenge)], Body::empty()))
    });
    (registry, digest)
}

#[tokio::test]
async fn a_bearer_token_is_fetched_once_with_the_credentials() {
    for body in [
        r#"{"token":"token-value"}"#,
        r#"{"access_token":"token-value"}"#,
        r#"{"token":"","access_token":"token-value"}"#,
    ] {
        let (registry, digest) = with_tokens(move |seen| {
            let known = seen.authorization.as_deref() == Some("Basic dXNlcjpodW50ZXIy");
            reply(if known { StatusCode::OK } else { StatusCode::UNAUTHORIZED }, &[], Body::from(body))
        })
        .await;
        let known = credentials(&[(&registry.address, "user", "hunter2")]);
        assert_eq!(ask(&registry, &registry.image("team/app:v1"), &known).await, Ok(digest.clone()));
        assert_eq!(
            registry.requests(),
            [
                "HEAD /v2/team/app/manifests/v1",
                "GET /token?service=the+registry&scope=repository%3Ateam%2Fapp%3Apull",
                "HEAD /v2/team/app/manifests/v1",
                &format!("HEAD /v2/team/app/manifests/{digest}"),
            ]
        );
        let error = ask(&registry, &registry.image("team/app:v1"), &Credentials::anonymous()).await.unwrap_err();
        assert_eq!(error.reason(), ImageReason::Unauthorized);
    }
}

#[tokio::test]
async fn a_failing_token_server_is_not_a_missing_image() {
    let cases: [(u16, &str, ImageReason); 9] = [
        (401, "", ImageReason::Unauthorized),
        (403, "", ImageReason::Forbidden),
        (404, "", ImageReason::InvalidResponse),
        (429, "", ImageReason::RateLimited),
        (500, "", ImageReason::RegistryError),
        (200, "no json", ImageReason::InvalidResponse),
        (200, "{}", ImageReason::InvalidResponse),
        (200, r#"{"token":"line\nfeed"}"#, ImageReason::InvalidResponse),
        (200, r#"{"token":"another"}"#, ImageReason::Unauthorized),
    ];
    for (status, body, reason) in cases {
        let status = StatusCode::from_u16(status).unwrap();
        let (registry, _) = with_tokens(move |_| reply(status, &[], Body::from(body))).await;
        let error = ask(&registry, &registry.image("team/app:v1"), &Credentials::anonymous()).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{status} {body}: {error}");
    }
}

#[tokio::test]
async fn redirections_do_not_carry_credentials_to_another_host() {
    let other = TestRegistry::start().await;
    let digest = other.put_manifest("v1", INDEX_TYPE, INDEX);
    let registry = TestRegistry::start().await;
    let target = format!("http://{}/v2/team/app/manifests/v1", other.address);
    registry.fault(move |seen, _| {
        Some(match seen.authorization {
            None => reply(StatusCode::UNAUTHORIZED, &[("www-authenticate", "Basic realm=x")], Body::empty()),
            Some(_) => reply(StatusCode::TEMPORARY_REDIRECT, &[("location", &target)], Body::empty()),
        })
    });
    let known = credentials(&[(&registry.address, "user", "hunter2")]);
    assert_eq!(ask(&registry, &registry.image("team/app:v1"), &known).await, Ok(digest));
    assert_eq!(other.content.lock().unwrap().seen[0].authorization, None);
}

#[tokio::test]
async fn endless_redirections_end() {
    let answer = with_fault(|seen, _| Some(reply(StatusCode::FOUND, &[("location", &seen.path)], Body::empty())));
    assert_eq!(answer.await, Err(invalid("too many redirections")));
}
