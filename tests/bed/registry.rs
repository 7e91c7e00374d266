//! Registries keep what is pushed, ask for passwords, and fail on request.

use std::time::Duration;

use anyhow::{Result, ensure};
use reqwest::StatusCode;

use crate::support::bed;
use crate::support::faulty::{Fault, FaultyRegistry};
use crate::support::images::{self, Entry, Image, Layer, LayerCompression};
use crate::support::kmods::{self, Compression};
use crate::support::process::output;
use crate::support::registry::{MANIFESTS, Registry, RegistryOptions};

async fn ask(address: &str, path: &str) -> Result<reqwest::Response> {
    let client = reqwest::Client::builder().tls_certs_only([]).timeout(Duration::from_secs(1)).build()?;
    Ok(client.get(format!("http://{address}{path}")).header("accept", MANIFESTS).send().await?)
}

fn two_layers(architecture: &str) -> Image {
    Image::new()
        .architecture(architecture)
        .layer(Layer::new().dir("opt").file("opt/a", "lower").file("opt/b", "lower").compressed(LayerCompression::None))
        .layer(Layer::new().whiteout("opt/a").symlink("opt/c", "b").hardlink("opt/d", "opt/b"))
        .layer(Layer::new().file("opt/e", architecture).compressed(LayerCompression::Zstd))
}

#[tokio::test]
async fn an_index_with_all_kinds_of_layers_is_kept_and_read_by_skopeo() -> Result<()> {
    let registry = Registry::shared().await?;
    let artifact = images::index(&[two_layers("amd64"), two_layers("arm64")])?;
    let digest = registry.push("bed/index", "1", &artifact).await?;
    assert_eq!(registry.digest("bed/index", "1").await?, Some(digest.clone()));
    let reference = format!("docker://{}/bed/index:1", registry.address());
    let text = output(std::process::Command::new("skopeo").args(["inspect", "--tls-verify=false", &reference]))?;
    let seen: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!((&seen["Digest"], seen["Layers"].as_array().map(Vec::len)), (&digest.into(), Some(3)));
    // The layout is one that others read too.
    let layout = tempfile::tempdir()?;
    artifact.write_layout(layout.path(), "1")?;
    let reference = format!("oci:{}:1", layout.path().display());
    output(std::process::Command::new("skopeo").args(["inspect", &reference]))?;
    registry.delete_manifest("bed/index", "1").await?;
    assert_eq!(registry.digest("bed/index", "1").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_registry_with_password_and_certificate_serves_only_those_who_have_both() -> Result<()> {
    let options =
        RegistryOptions { auth: Some(("me".into(), "secret".into())), tls: true, ..RegistryOptions::default() };
    let registry = Registry::start(options).await?;
    let digest = registry.push("a/b", "1", &two_layers("amd64").docker().build()?).await?;
    assert_eq!(registry.digest("a/b", "1").await?, Some(digest));
    ensure!(ask(&registry.address(), "/v2/").await?.status() == StatusCode::BAD_REQUEST, "HTTP was answered");
    let ca = reqwest::Certificate::from_pem(registry.ca_pem().unwrap_or_default().as_bytes())?;
    let stranger = reqwest::Client::builder().tls_certs_only([ca]).build()?;
    let url = format!("{}/v2/a/b/manifests/1", registry.url());
    assert_eq!(stranger.get(url).send().await?.status(), StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_pauses_comes_back_with_its_images() -> Result<()> {
    let registry = Registry::start(RegistryOptions::default()).await?;
    let digest = registry.push("a", "1", &two_layers("amd64").build()?).await?;
    registry.pause()?;
    ensure!(registry.digest("a", "1").await.is_err(), "it still answers");
    registry.resume().await?;
    assert_eq!(registry.digest("a", "1").await?, Some(digest));
    Ok(())
}

#[tokio::test]
async fn a_front_answers_as_it_is_told_and_switches_at_once() -> Result<()> {
    let registry = Registry::shared().await?;
    let artifact = two_layers("amd64").build()?;
    let digest = registry.push("bed/faulty", "1", &artifact).await?;
    let front = FaultyRegistry::start(registry).await?;
    let path = "/v2/bed/faulty/manifests/1";
    let header =
        |r: &reqwest::Response| r.headers().get("docker-content-digest").map(|v| v.to_str().unwrap_or("").to_owned());

    let answer = ask(&front.address(), path).await?;
    assert_eq!((answer.status().as_u16(), header(&answer)), (200, Some(digest.clone())));
    assert_eq!(answer.bytes().await?, artifact.top()?.bytes);
    for code in [401, 404, 429, 500, 503] {
        front.set(Fault::Status(code));
        assert_eq!(ask(&front.address(), path).await?.status().as_u16(), code);
    }
    front.set(Fault::NoDigest);
    assert_eq!(header(&ask(&front.address(), path).await?), None);
    front.set(Fault::WrongDigest);
    ensure!(header(&ask(&front.address(), path).await?).is_some_and(|d| d != digest), "the digest is right");
    front.set(Fault::Corrupt);
    ensure!(ask(&front.address(), path).await?.bytes().await? != artifact.top()?.bytes, "the body is right");
    front.set(Fault::Truncate);
    ensure!(ask(&front.address(), path).await?.bytes().await.is_err(), "the body is complete");
    front.set(Fault::Hang);
    ensure!(ask(&front.address(), path).await.is_err_and(|e| e.to_string().contains("error sending")), "it answered");
    front.set_for("/blobs/", Fault::Hang);
    assert_eq!(ask(&front.address(), path).await?.status(), StatusCode::OK);
    assert_eq!(front.take_seen().len(), 12);
    assert_eq!(front.take_seen(), []);
    Ok(())
}

#[test]
fn modules_are_compiled_for_every_kernel_and_differ_by_version() -> Result<()> {
    for kernel in &bed()?.kernels {
        let kmods = kmods::for_kernel(&kernel.release)?;
        for (kmod, name) in [
            (kmods.plain()?, "kmm_plain"),
            (kmods.dash()?, "kmm_dash"),
            (kmods.base()?, "kmm_base"),
            (kmods.top()?, "kmm_top"),
            (kmods.soft()?, "kmm_soft"),
            (kmods.fail()?, "kmm_fail"),
            (kmods.param()?, "kmm_param"),
        ] {
            assert_eq!(kmod.name, name);
            let field = |f: &str| output(std::process::Command::new("modinfo").args(["-F", f]).arg(&kmod.path));
            assert_eq!(field("vermagic")?.split(' ').next(), Some(kernel.release.as_str()));
            assert_eq!(field("name")?.trim(), name);
        }
        ensure!(kmods.plain()?.bytes != kmods.plain_v2()?.bytes, "both versions are the same file");
    }
    Ok(())
}

#[test]
fn a_kmod_image_holds_what_modprobe_needs_also_for_compressed_modules() -> Result<()> {
    let kernel = bed()?.kernel();
    let kmods = kmods::for_kernel(&kernel.release)?;
    let mut files = Vec::new();
    for (kmod, how) in
        [(kmods.base()?, Compression::Xz), (kmods.dash()?, Compression::Gz), (kmods.soft()?, Compression::Zst)]
    {
        files.push((format!("{}{}", kmod.file_name, how.suffix()), kmods::compress(&kmod.bytes, how)?));
    }
    files.push((kmods.top()?.file_name, kmods.top()?.bytes));
    let layer = images::kmod_layer(&kernel.release, &files, "/opt/")?;
    let artifact = Image::new().layer(layer.entry("dev/null", Entry::Device)).build()?;
    // Unpacked by another program, it is a tree that modprobe understands.
    let dir = tempfile::tempdir()?;
    let blob = dir.path().join("layer");
    std::fs::write(&blob, &artifact.blobs[0])?;
    output(std::process::Command::new("tar").arg("-xzf").arg(&blob).arg("-C").arg(dir.path()).arg("opt"))?;
    let mut modprobe = std::process::Command::new("modprobe");
    modprobe.arg("-d").arg(dir.path().join("opt")).args(["-S", &kernel.release, "--show-depends", "kmm_top"]);
    let lines = output(&mut modprobe)?;
    let names: Vec<_> = lines.lines().filter_map(|l| l.trim().rsplit('/').next()).collect();
    assert_eq!(names, ["kmm_base.ko.xz", "kmm_top.ko"]);
    Ok(())
}
