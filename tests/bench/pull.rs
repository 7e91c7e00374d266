//! Fetching and unpacking an image of 300 MiB, against `skopeo copy` and `tar`, and the memory that it takes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kmm::core::image::ImageRef;
use kmm::oci::auth::credentials::Credentials;
use kmm::oci::limits::{Keep, Limits, Platform};
use kmm::oci::pull::{PullRequest, pull};
use kmm::oci::route::endpoint::{Endpoint, RegistryOptions};
use kmm::oci::route::proxies::Proxies;

use crate::MIB;
use crate::support::images::{Image, Layer, LayerCompression};
use crate::support::process::output;
use crate::support::registry::{self, Registry};

/// First argument of the process that is measured: this executable again.
pub(crate) const CHILD: &str = "--pull-child";
/// Where the image has its files.
const FOLDER: &str = "opt/lib/modules/6.1";
/// Turns of both sides.
const TURNS: usize = 5;

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Pulled {
    pub(crate) product_seconds: Vec<f64>,
    pub(crate) tools_seconds: Vec<f64>,
    pub(crate) peak_mib: Vec<f64>,
}

pub(crate) async fn run() -> Result<Pulled> {
    let registry = Registry::start(registry::RegistryOptions::default()).await?;
    let digest = registry.push("bench", "1", &image().build()?).await?;
    let image = format!("{}/bench@{digest}", registry.address());
    // On a disk, not in the bed's memory.
    let work = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-pull");
    let fresh = |name: &str| -> Result<PathBuf> {
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir_all(&work)?;
        // Nobody pays for what the other one left to be written.
        output(Command::new("sync").arg("-f").arg(&work))?;
        Ok(work.join(name))
    };
    let mut pulled = Pulled::default();
    for _ in 0..TURNS {
        let tree = fresh("tree")?;
        let started = Instant::now();
        let told = output(Command::new(std::env::current_exe()?).arg(CHILD).arg(&image).arg(&tree))?;
        pulled.product_seconds.push(started.elapsed().as_secs_f64());
        let peak: u64 = told.trim().parse().context("no figure of the child")?;
        pulled.peak_mib.push(peak as f64 / MIB);
        let product = files(&tree)?;

        let folder = fresh("layout")?;
        let started = Instant::now();
        let unpacked = by_tools(&image, &folder)?;
        pulled.tools_seconds.push(started.elapsed().as_secs_f64());
        ensure!(files(&unpacked)? == product, "the two trees differ");
    }
    std::fs::remove_dir_all(&work)?;
    Ok(pulled)
}

/// Fetches and unpacks with the tools that everybody has.
fn by_tools(image: &str, layout: &Path) -> Result<PathBuf> {
    let from = format!("docker://{image}");
    let to = format!("oci:{}:latest", layout.display());
    output(Command::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &from, &to]))?;
    let read = |path: PathBuf| -> Result<serde_json::Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let blob = |digest: &serde_json::Value| -> Result<PathBuf> {
        let digest = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:")).context("no digest")?;
        Ok(layout.join("blobs/sha256").join(digest))
    };
    let manifest = read(blob(&read(layout.join("index.json"))?["manifests"][0]["digest"])?)?;
    let out = layout.join("out");
    std::fs::create_dir(&out)?;
    for layer in manifest["layers"].as_array().context("no layers")? {
        output(Command::new("tar").arg("-x").arg("-f").arg(blob(&layer["digest"])?).arg("-C").arg(&out))?;
    }
    Ok(out)
}

/// Number of files and their bytes.
fn files(folder: &Path) -> Result<(u64, u64)> {
    let mut found = (0, 0);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let (count, bytes) = if metadata.is_dir() { files(&entry.path())? } else { (1, metadata.len()) };
        found = (found.0 + count, found.1 + bytes);
    }
    Ok(found)
}

/// 300 MiB in two thousand files and a few large ones; half of them does not compress.
fn image() -> Image {
    let mut state = 7_u64;
    let mut content = |bytes: usize| {
        let mut content = Vec::with_capacity(bytes);
        while content.len() < bytes / 2 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            content.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
        }
        let mut line = 0_u64;
        while content.len() < bytes {
            line += 1;
            content.extend_from_slice(
                format!("symbol_{:x} = {line};\n", state.rotate_left((line % 64) as u32) & 0xffff).as_bytes(),
            );
        }
        content.truncate(bytes);
        content
    };
    let mut image = Image::new();
    for (number, compression) in [LayerCompression::Gzip, LayerCompression::Zstd].into_iter().enumerate() {
        let mut small = Layer::new().dir("opt").dir(FOLDER).compressed(compression);
        for file in 0..1000 {
            small = small.file(format!("{FOLDER}/small-{number}/{}/{file}.ko", file % 20), content(48 << 10));
        }
        let mut large = Layer::new().compressed(compression);
        for file in 0..3 {
            large = large.file(format!("{FOLDER}/large-{number}-{file}.ko"), content(34 << 20));
        }
        image = image.layer(small).layer(large);
    }
    image
}

/// The measured process: pulls as the worker does, and tells its highest resident size in bytes.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [image, destination] = arguments else { anyhow::bail!("an image and a folder are wanted") };
    let image: ImageRef = image.parse()?;
    let endpoints = [Endpoint::origin(&image, RegistryOptions { insecure: true, insecure_skip_tls_verify: false })];
    let request = PullRequest {
        image: &image,
        platform: &Platform::of_this_machine(),
        credentials: &Credentials::anonymous(),
        endpoints: &endpoints,
        proxies: &Proxies::default(),
        destination: Path::new(destination),
        keep: &Keep::new("/opt", &["6.1"], None),
        limits: Limits::default(),
        patience: Duration::from_mins(5),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(pull(request))?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    let kib: u64 = peak.context("no VmHWM")?.parse()?;
    println!("{}", kib * 1024);
    Ok(())
}
