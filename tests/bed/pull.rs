//! Pulling with what only real parts have: certificates of both sides, a proxy, a disk that is full.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use kmm::api::names::NodeReason;
use kmm::core::image::ImageRef;
use kmm::oci::auth::credentials::Credentials;
use kmm::oci::error::PullError;
use kmm::oci::limits::{Keep, Limits, Platform};
use kmm::oci::pull::{PullRequest, pull};
use kmm::oci::route::endpoint::{Endpoint, RegistryOptions as Allowed};
use kmm::oci::route::mirrors;
use kmm::oci::route::proxies::Proxies;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::HOST;
use crate::support::images::{Image, Layer};
use crate::support::process::output;
use crate::support::registry::{Registry, RegistryOptions};

const KO: &str = "opt/lib/modules/6.1/a.ko";

/// How an image is asked for, apart from its name.
struct How {
    credentials: Credentials,
    endpoints: Vec<Endpoint>,
    proxies: Proxies,
}

async fn pulled(image: &ImageRef, how: &How, destination: &Path) -> Result<String, PullError> {
    let request = PullRequest {
        image,
        platform: &Platform { architecture: "amd64".into() },
        credentials: &how.credentials,
        endpoints: &how.endpoints,
        proxies: &how.proxies,
        destination,
        keep: &Keep::new("/opt", &["6.1"], None),
        limits: Limits::default(),
        patience: Duration::from_secs(30),
    };
    pull(request).await?;
    Ok(std::fs::read_to_string(destination.join(KO)).unwrap_or_default())
}

async fn pushed(registry: &Registry) -> Result<ImageRef> {
    let image = Image::new().layer(Layer::new().dir("opt").file(KO, "module"));
    let digest = registry.push("team/kmod", "1", &image.build()?).await?;
    Ok(format!("registry.example/team/kmod@{digest}").parse()?)
}

#[tokio::test]
async fn a_mirror_with_certificates_of_both_sides_is_used_as_the_runtime_would() -> Result<()> {
    let options = RegistryOptions { auth: Some(("me".into(), "secret".into())), tls: true, client_certificates: true };
    let registry = Registry::start(options).await?;
    let image = pushed(&registry).await?;
    let address = registry.address();
    let ca = registry.ca_pem().context("no authority")?;
    let (certificate, key) = registry.client_pem()?.context("no client")?;
    let hosts =
        format!("[host.\"https://{address}\"]\nca = \"own.pem\"\nclient = [[\"client.cert\", \"client.key\"]]\n");
    let conf =
        format!("[[registry]]\nlocation = \"registry.example\"\n[[registry.mirror]]\nlocation = \"{address}\"\n");
    let (containerd, certs) = ("containerd/certs.d/registry.example", format!("containers/certs.d/{address}"));
    let etc = tempfile::tempdir()?;
    for (folder, file, content) in [
        (containerd, "hosts.toml", &hosts),
        (containerd, "own.pem", &ca),
        (containerd, "client.cert", &certificate),
        (containerd, "client.key", &key),
        ("containers", "registries.conf", &conf),
        (&certs, "ca.crt", &ca),
        (&certs, "client.cert", &certificate),
        (&certs, "client.key", &key),
    ] {
        std::fs::create_dir_all(etc.path().join(folder))?;
        std::fs::write(etc.path().join(folder).join(file), content)?;
    }
    let credentials = Credentials::from_docker_config_json(registry.docker_config().as_bytes())?;
    let folder = tempfile::tempdir()?;
    let ask = async |runtime: &str, name: &str| -> Result<Result<String, PullError>> {
        let found = mirrors::endpoints(&image, Allowed::default(), Some(runtime), etc.path())?;
        let how = How { credentials: credentials.clone(), endpoints: found.list, proxies: Proxies::default() };
        Ok(pulled(&image, &how, &folder.path().join(name)).await)
    };
    for runtime in ["containerd://2.1.4", "cri-o://1.34.0"] {
        assert_eq!(ask(runtime, runtime.split(':').next().unwrap_or_default()).await??, "module", "{runtime}");
    }
    // Without the client's certificate the mirror does not talk, and without the authority it is not talked to.
    std::fs::write(etc.path().join(containerd).join("hosts.toml"), hosts.replace("client", "#client"))?;
    let without_client = ask("containerd://2.1.4", "c").await?.unwrap_err().to_string();
    std::fs::write(etc.path().join(containerd).join("hosts.toml"), format!("[host.\"https://{address}\"]\n"))?;
    let without_ca = ask("containerd://2.1.4", "d").await?.unwrap_err().to_string();
    for text in [&without_client, &without_ca] {
        assert!(text.contains("registry.example") && text.contains(&format!("the mirror {address}: ")), "{text}");
    }
    assert!(without_ca.contains("no trusted connection"), "{without_ca}");
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 2, "a failed pull left something");
    Ok(())
}

/// A proxy for CONNECT that knows one way only: whatever is asked for, it connects to `target`. Gives what was asked.
async fn proxy(target: String) -> Result<(String, Arc<Mutex<Vec<String>>>)> {
    let listener = TcpListener::bind((HOST, 0)).await?;
    let address = listener.local_addr()?.to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(tunnel(client, target.clone(), Arc::clone(&heads)));
        }
    });
    Ok((address, asked))
}

async fn tunnel(mut client: TcpStream, target: String, heads: Arc<Mutex<Vec<String>>>) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let allowed = head.to_lowercase().contains("proxy-authorization: basic dxnlcjpodw50zxiy");
    let line = head.lines().next().unwrap_or_default().to_owned();
    heads.lock().map_err(|_| anyhow::anyhow!("a panic elsewhere"))?.push(line.clone());
    if !allowed || !line.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await?;
        return Ok(());
    }
    let mut server = TcpStream::connect(target).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn registries_are_reached_through_the_proxy_and_exceptions_are_not() -> Result<()> {
    let registry = Registry::start(RegistryOptions { tls: true, ..RegistryOptions::default() }).await?;
    let image = pushed(&registry).await?;
    let (address, asked) = proxy(registry.address()).await?;
    let folder = tempfile::tempdir()?;
    // The certificate is for the address behind the proxy, not for the name.
    let endpoints = vec![Endpoint::origin(&image, Allowed { insecure: false, insecure_skip_tls_verify: true })];
    let ask = async |https: &str, no_proxy: &str, name: &str| -> Result<Result<String, PullError>> {
        let proxies = Proxies::new("", https, no_proxy)?;
        let how = How { credentials: Credentials::anonymous(), endpoints: endpoints.clone(), proxies };
        Ok(pulled(&image, &how, &folder.path().join(name)).await)
    };
    let with_password = format!("http://user:hunter2@{address}");
    assert_eq!(ask(&with_password, "other.example", "a").await??, "module");
    let lines = std::mem::take(&mut *asked.lock().map_err(|_| anyhow::anyhow!("a panic elsewhere"))?);
    assert!(
        !lines.is_empty() && lines.iter().all(|line| line.starts_with("CONNECT registry.example:443 ")),
        "{lines:?}"
    );
    // The name means nothing without the proxy.
    for (https, no_proxy) in [("", ""), (with_password.as_str(), "10.0.0.0/8,registry.example"), (&address, "")] {
        let error = ask(https, no_proxy, "b").await?.unwrap_err();
        assert_eq!(error.reason(), NodeReason::ImageUnreachable, "{no_proxy}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_half_stays() -> Result<()> {
    let registry = Registry::start(RegistryOptions::default()).await?;
    let large = Layer::new().dir("opt").file(KO, vec![0; 16 << 20]);
    let many = (0..200).fold(Layer::new(), |layer, number| layer.file(format!("opt/lib/modules/6.1/{number}.ko"), ""));
    let packed = Layer::new().file(KO, vec![1; 12 << 20]).compressed(crate::support::images::LayerCompression::None);
    for (what, layer, reason, message) in [
        (
            "more than fits when unpacked",
            large,
            NodeReason::StoreFull,
            "needs 16777216 bytes at least, and there is room for ",
        ),
        ("more than fits when packed", packed, NodeReason::StoreFull, "bytes at least, and there is room for "),
        ("more files than fit", many, NodeReason::StoreFull, "cannot be written"),
    ] {
        let disk = tempfile::tempdir()?;
        let mount = ["-t", "tmpfs", "-o", "size=8m,nr_inodes=100", "tmpfs"];
        output(Command::new("mount").args(mount).arg(disk.path()))?;
        let digest = registry.push("full", "1", &Image::new().layer(layer).build()?).await?;
        let image: ImageRef = format!("{}/full@{digest}", registry.address()).parse()?;
        let endpoints = vec![Endpoint::origin(&image, Allowed { insecure: true, insecure_skip_tls_verify: false })];
        let how = How { credentials: Credentials::anonymous(), endpoints, proxies: Proxies::default() };
        let error = pulled(&image, &how, &disk.path().join("image")).await.unwrap_err();
        let left = std::fs::read_dir(disk.path())?.count();
        output(Command::new("umount").arg(disk.path()))?;
        assert_eq!((error.reason(), left), (reason, 0), "{what}: {error}");
        assert!(error.to_string().contains(message), "{what}: {error}");
    }
    Ok(())
}
