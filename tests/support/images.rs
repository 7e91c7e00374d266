//! Container images made in the test, byte for byte as asked for: also those that no builder would make.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::bed::{bed, hex};
use super::kmods::Kmod;
use super::process::output;

/// What stands at a path of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    File {
        bytes: Vec<u8>,
        mode: u32,
    },
    Dir,
    Symlink(String),
    Hardlink(String),
    /// Removes the path that lower layers have.
    Whiteout,
    /// Removes everything that lower layers have in this folder.
    Opaque,
    /// A device node (character, 1:3).
    Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerCompression {
    None,
    #[default]
    Gzip,
    Zstd,
}

/// One layer: entries in the order given. Paths are written as they are, so `../x` and `/x` can be tried too.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<(String, Entry)>,
    compression: LayerCompression,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn entry(mut self, path: impl Into<String>, entry: Entry) -> Self {
        self.entries.push((path.into(), entry));
        self
    }

    #[must_use]
    pub fn file(self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.entry(path, Entry::File { bytes: bytes.into(), mode: 0o644 })
    }

    #[must_use]
    pub fn program(self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.entry(path, Entry::File { bytes: bytes.into(), mode: 0o755 })
    }

    #[must_use]
    pub fn dir(self, path: impl Into<String>) -> Self {
        self.entry(path, Entry::Dir)
    }

    #[must_use]
    pub fn symlink(self, path: impl Into<String>, target: impl Into<String>) -> Self {
        self.entry(path, Entry::Symlink(target.into()))
    }

    #[must_use]
    pub fn hardlink(self, path: impl Into<String>, target: impl Into<String>) -> Self {
        self.entry(path, Entry::Hardlink(target.into()))
    }

    #[must_use]
    pub fn whiteout(self, path: impl Into<String>) -> Self {
        self.entry(path, Entry::Whiteout)
    }

    #[must_use]
    pub fn opaque(self, path: impl Into<String>) -> Self {
        self.entry(path, Entry::Opaque)
    }

    #[must_use]
    pub fn compressed(mut self, compression: LayerCompression) -> Self {
        self.compression = compression;
        self
    }

    /// All files, folders and links below a folder of this machine, under `prefix` (`opt/`).
    pub fn folder(mut self, folder: &Path, prefix: &str) -> Result<Self> {
        let mut names: Vec<PathBuf> =
            std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<Result<_>>().context("reading a folder")?;
        names.sort();
        for path in names {
            let inside = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
            let kind = std::fs::symlink_metadata(&path)?;
            self = if kind.is_symlink() {
                self.symlink(inside, std::fs::read_link(&path)?.display().to_string())
            } else if kind.is_dir() {
                self.dir(inside.clone()).folder(&path, &format!("{inside}/"))?
            } else {
                use std::os::unix::fs::PermissionsExt;
                self.entry(
                    inside,
                    Entry::File { bytes: std::fs::read(&path)?, mode: kind.permissions().mode() & 0o7777 },
                )
            };
        }
        Ok(self)
    }

    fn tar(&self) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_mode(0o755);
            header.set_size(0);
            let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(p, n)| (p, n));
            let slash = if parent.is_empty() { "" } else { "/" };
            let mut name = match entry {
                Entry::Whiteout => format!("{parent}{slash}.wh.{name}"),
                Entry::Opaque => format!("{path}/.wh..wh..opq"),
                _ => path.clone(),
            };
            let mut link = None;
            let mut data: &[u8] = &[];
            match entry {
                Entry::File { bytes, mode } => {
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    data = bytes;
                }
                Entry::Dir => {
                    header.set_entry_type(tar::EntryType::Directory);
                    name.push('/');
                }
                Entry::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    link = Some(target);
                }
                Entry::Hardlink(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    link = Some(target);
                }
                Entry::Device => {
                    header.set_entry_type(tar::EntryType::Char);
                    header.set_device_major(1)?;
                    header.set_device_minor(3)?;
                }
                Entry::Whiteout | Entry::Opaque => header.set_mode(0o644),
            }
            // The crate's own setters refuse the paths that a hostile image has.
            put_name(&mut builder, &mut header, b'L', &name)?;
            if let Some(link) = link {
                put_name(&mut builder, &mut header, b'K', link)?;
            }
            header.set_cksum();
            builder.append(&header, data)?;
        }
        Ok(builder.into_inner()?)
    }
}

// A name of up to 100 bytes stands in the header, a longer one in an entry of its own before it (GNU).
fn put_name(builder: &mut tar::Builder<Vec<u8>>, header: &mut tar::Header, kind: u8, name: &str) -> Result<()> {
    if name.len() > 100 {
        let mut long = tar::Header::new_gnu();
        long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
        long.set_entry_type(tar::EntryType::new(kind));
        long.set_mode(0o644);
        long.set_size(name.len() as u64 + 1);
        long.set_cksum();
        let mut data = name.as_bytes().to_vec();
        data.push(0);
        builder.append(&long, data.as_slice())?;
    }
    let field = if kind == b'L' { &mut header.as_old_mut().name } else { &mut header.as_old_mut().linkname };
    let bytes = &name.as_bytes()[..name.len().min(100)];
    field[..bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<Layer>,
    architecture: String,
    entrypoint: Vec<String>,
    labels: BTreeMap<String, String>,
    docker: bool,
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

impl Image {
    /// For amd64, without layers or entrypoint.
    pub fn new() -> Self {
        Self {
            layers: Vec::new(),
            architecture: "amd64".into(),
            entrypoint: Vec::new(),
            labels: BTreeMap::new(),
            docker: false,
        }
    }

    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// As Go names it: `amd64`, `arm64`.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = architecture.into();
        self
    }

    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&w| w.to_owned()).collect();
        self
    }

    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// With Docker's media types instead of those of OCI.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Manifest, configuration and layers.
    pub fn build(&self) -> Result<Artifact> {
        let kind = |oci: &str, docker: &str| if self.docker { docker.to_owned() } else { oci.to_owned() };
        let (mut blobs, mut layers, mut diffs) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &self.layers {
            let tar = layer.tar()?;
            diffs.push(digest(&tar));
            let (media, bytes) = match layer.compression {
                LayerCompression::None => (
                    kind("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"),
                    tar,
                ),
                LayerCompression::Gzip => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(&tar)?;
                    let media = kind(
                        "application/vnd.oci.image.layer.v1.tar+gzip",
                        "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    );
                    (media, encoder.finish()?)
                }
                LayerCompression::Zstd => {
                    let media = kind(
                        "application/vnd.oci.image.layer.v1.tar+zstd",
                        "application/vnd.docker.image.rootfs.diff.tar.zstd",
                    );
                    (media, zstd::encode_all(tar.as_slice(), 1)?)
                }
            };
            layers.push(json!({"mediaType": media, "digest": digest(&bytes), "size": bytes.len()}));
            blobs.push(bytes);
        }
        let config = serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }))?;
        let media =
            kind("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json");
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": media,
            "config": {
                "mediaType": kind("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"),
                "digest": digest(&config),
                "size": config.len(),
            },
            "layers": layers,
        }))?;
        blobs.push(config);
        Ok(Artifact { blobs, manifests: vec![Manifest::new(media, manifest, &self.architecture)] })
    }
}

/// An index with one manifest per image.
pub fn index(images: &[Image]) -> Result<Artifact> {
    let mut all = Artifact { blobs: Vec::new(), manifests: Vec::new() };
    for image in images {
        let artifact = image.build()?;
        all.blobs.extend(artifact.blobs);
        all.manifests.extend(artifact.manifests);
    }
    let docker = images.iter().any(|i| i.docker);
    let media = if docker {
        "application/vnd.docker.distribution.manifest.list.v2+json"
    } else {
        "application/vnd.oci.image.index.v1+json"
    };
    let manifests: Vec<_> = all
        .manifests
        .iter()
        .map(|m| {
            json!({
                "mediaType": m.media_type,
                "digest": m.digest,
                "size": m.bytes.len(),
                "platform": {"os": "linux", "architecture": m.architecture},
            })
        })
        .collect();
    let bytes = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": media, "manifests": manifests}))?;
    all.manifests.push(Manifest::new(media.to_owned(), bytes, ""));
    Ok(all)
}

/// A manifest as a registry stores it.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub digest: String,
    architecture: String,
}

impl Manifest {
    fn new(media_type: String, bytes: Vec<u8>, architecture: &str) -> Self {
        Self { digest: digest(&bytes), media_type, bytes, architecture: architecture.into() }
    }
}

/// Everything that belongs to a reference: blobs, then manifests, the one that a tag names last.
#[derive(Debug, Clone)]
pub struct Artifact {
    pub blobs: Vec<Vec<u8>>,
    pub manifests: Vec<Manifest>,
}

impl Artifact {
    /// The manifest that a tag names.
    pub fn top(&self) -> Result<&Manifest> {
        self.manifests.last().context("an artifact without a manifest")
    }

    /// Writes an OCI image layout, whose index names the top manifest with `tag`.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let write = |bytes: &[u8]| {
            let digest = digest(bytes);
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)
        };
        self.blobs.iter().try_for_each(|b| write(b))?;
        self.manifests.iter().try_for_each(|m| write(&m.bytes))?;
        let top = self.top()?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": top.media_type,
                "digest": top.digest,
                "size": top.bytes.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }],
        });
        std::fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }
}

/// `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// The tree of a kmod image as a layer: `<dir_name>/lib/modules/<release>/extra/<file>` and depmod's files beside it.
/// `dir_name` is as in a Module, `/opt`. `files` are names below `extra/`, so compressed modules are possible.
pub fn kmod_layer(release: &str, files: &[(String, Vec<u8>)], dir_name: &str) -> Result<Layer> {
    let tree = tempfile::tempdir()?;
    let modules = tree.path().join("lib/modules").join(release);
    for (name, bytes) in files {
        let path = modules.join("extra").join(name);
        std::fs::create_dir_all(path.parent().context("a module without a folder")?)?;
        std::fs::write(path, bytes)?;
    }
    std::fs::write(modules.join("modules.order"), "")?;
    std::fs::write(modules.join("modules.builtin"), "")?;
    output(Command::new("depmod").arg("-b").arg(tree.path()).arg(release))?;
    let prefix = dir_name.trim_matches('/');
    Layer::new().folder(tree.path(), &if prefix.is_empty() { String::new() } else { format!("{prefix}/") })
}

/// A kmod image for one kernel: only module files and depmod's, no program.
pub fn kmod_image(release: &str, modules: &[Kmod], dir_name: &str) -> Result<Image> {
    let files: Vec<_> = modules.iter().map(|m| (m.file_name.clone(), m.bytes.clone())).collect();
    Ok(Image::new().layer(kmod_layer(release, &files, dir_name)?))
}

/// A small system with a shell: `/bin/sh` and busybox's other programs.
pub fn busybox() -> Result<Image> {
    let bytes = std::fs::read("/bin/busybox").context("busybox-static is not installed")?;
    let mut layer = Layer::new().dir("bin").dir("tmp").dir("etc").program("bin/busybox", bytes);
    for applet in output(Command::new("/bin/busybox").arg("--list"))?.lines().filter(|a| *a != "busybox") {
        layer = layer.symlink(format!("bin/{applet}"), "busybox");
    }
    Ok(Image::new().layer(layer).entrypoint(&["/bin/sh"]))
}

/// The image of a pod's infrastructure container.
pub fn pause() -> Result<Image> {
    Ok(Image::new().layer(Layer::new().program("pause", std::fs::read(&bed()?.pause)?)).entrypoint(&["/pause"]))
}

/// An image of one program of this machine with the libraries that it is linked to, at `/<name>`, as entrypoint.
/// `more` are further layers above it.
pub fn program(path: &Path, more: impl IntoIterator<Item = Layer>) -> Result<Image> {
    let name = path.file_name().context("a program without a name")?.to_string_lossy().into_owned();
    let mut layer = Layer::new().program(name.clone(), std::fs::read(path)?);
    for (inside, bytes) in libraries(path)? {
        layer = layer.program(inside.trim_start_matches('/'), bytes);
    }
    let image = more.into_iter().fold(Image::new().layer(layer), Image::layer);
    Ok(image.entrypoint(&[&format!("/{name}")]))
}

/// The shared libraries of a program, under the paths where its loader looks for them. None for a static program.
pub fn libraries(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let out = Command::new("ldd").arg(path).output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if text.contains("statically linked") || text.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(out.status.success(), "ldd {} failed: {text}", path.display());
    let mut libraries = Vec::new();
    for word in text.split_whitespace().filter(|w| w.starts_with('/')) {
        libraries.push((word.to_owned(), std::fs::read(word).with_context(|| format!("reading {word}"))?));
    }
    Ok(libraries)
}
