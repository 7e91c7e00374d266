//! Where the bed's parts are, and the folder, ports and numbers that are this test binary's own.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

/// The files whose content names the environment file, in the order of `inputs` in `hack/testbed/setup`.
const INPUTS: [&str; 8] =
    ["setup", "pause.c", "guest/init", "guest/initramfs", "guest/agent", "kube/go.mod", "kube/go.sum", "kube/main.go"];

/// What `hack/testbed/setup` made.
#[derive(Debug)]
pub struct Bed {
    /// A folder in memory that is empty at the start of the test binary and gone after it.
    pub dir: PathBuf,
    /// Kept between runs; for what is expensive to make and named after its content.
    pub cache: PathBuf,
    /// Holds `kube-apiserver`, `etcd`, `kubectl` and the others.
    pub programs: PathBuf,
    pub pause: PathBuf,
    pub root_disk: PathBuf,
    /// Oldest first: two of one series, then, where Debian offers one, a release with a `+` in it.
    pub kernels: Vec<Kernel>,
}

/// One kernel release that machines can boot and modules can be compiled for.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` says in a machine that runs it.
    pub release: String,
    pub vmlinuz: PathBuf,
    pub initrd: PathBuf,
    /// The kernel's build configuration, `CONFIG_…=…` lines.
    pub config: PathBuf,
    /// `lib/modules/<release>` of the kernel itself, without the `build` link.
    pub modules: PathBuf,
    /// The headers, for `make -C`.
    pub headers: PathBuf,
}

impl Bed {
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The kernel that machines boot if a test asks for none.
    pub fn kernel(&self) -> &Kernel {
        &self.kernels[1]
    }

    /// An older kernel of the same series.
    pub fn older_kernel(&self) -> &Kernel {
        &self.kernels[0]
    }

    /// A kernel whose release holds a `+`.
    pub fn plus_kernel(&self) -> Result<&Kernel> {
        self.kernels
            .iter()
            .find(|k| k.release.contains('+'))
            .context("Debian offered no kernel with a `+` in its release when the bed was set up")
    }

    pub fn kernel_named(&self, release: &str) -> Result<&Kernel> {
        self.kernels.iter().find(|k| k.release == release).with_context(|| format!("the bed has no kernel {release}"))
    }

    /// A new folder of this test binary.
    pub fn new_dir(&self, prefix: &str) -> Result<PathBuf> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let dir = self.dir.join(format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }
}

/// A port that nobody in this network namespace listens on, and that no other call returned.
pub fn free_port() -> Result<u16> {
    static GIVEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());
    let mut given = GIVEN.lock().map_err(|_| anyhow!("a test died while it chose a port"))?;
    for _ in 0..100 {
        let port = TcpListener::bind("0.0.0.0:0").context("looking for a free port")?.local_addr()?.port();
        if !given.contains(&port) {
            given.push(port);
            return Ok(port);
        }
    }
    bail!("no free port")
}

/// The number of a new machine: its address is 172.30.0.(100+n), its pods live in 10.244.n.0/24.
pub fn next_machine() -> Result<u8> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    if n > 150 {
        bail!("150 machines were started by one test binary; split it");
    }
    Ok(n)
}

/// The bed, or one sentence that says what to do to get it.
pub fn bed() -> Result<&'static Bed> {
    static BED: OnceLock<Result<Bed, String>> = OnceLock::new();
    BED.get_or_init(|| load().map_err(|e| format!("{e:#}"))).as_ref().map_err(|e| anyhow!("{e}"))
}

// The harness is the settings layer of the tests.
#[allow(clippy::disallowed_methods)]
pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Where Cargo and `hack/image` put what they make.
pub fn target() -> PathBuf {
    variable("CARGO_TARGET_DIR").unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"))
}

fn load() -> Result<Bed> {
    let dir = variable("KMM_BED").context(
        "the test bed needs namespaces of its own: run the tests as root with cargo inside the repository, so that its runner hack/testbed/run is used",
    )?;
    let cache = variable("KMM_BED_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|d| d.join("kmm-testbed")))
        .or_else(|| variable("HOME").map(|d| d.join(".cache/kmm-testbed")))
        .context("neither KMM_BED_CACHE nor HOME is set, so the bed's cache cannot be found")?;
    let file =
        cache.join(format!("bed-{}.env", inputs_hash(&Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/testbed"))?));
    let text = std::fs::read_to_string(&file).map_err(|_| {
        anyhow!(
            "the test bed is not set up ({} is missing): run hack/testbed/setup as root on Debian 12",
            file.display()
        )
    })?;
    // Programs of the bed speak TLS in this process too; one provider for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    parse(&text, dir, cache).with_context(|| format!("reading {}; run hack/testbed/setup again", file.display()))
}

fn inputs_hash(folder: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for input in INPUTS {
        let path = folder.join(input);
        hash.update(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    Ok(hex(&hash.finalize()[..8]))
}

/// Two digits per byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn parse(text: &str, dir: PathBuf, cache: PathBuf) -> Result<Bed> {
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
    let value = |name: &str| values.get(name).copied().with_context(|| format!("{name} is missing"));
    let path = |name: &str| -> Result<PathBuf> {
        let path = PathBuf::from(value(name)?);
        if path.exists() { Ok(path) } else { bail!("{name} names {}, which is gone", path.display()) }
    };
    let mut kernels = Vec::new();
    for (i, release) in value("BED_KERNELS")?.split_whitespace().enumerate() {
        let folder = path(&format!("BED_KERNEL_{i}_DIR"))?;
        kernels.push(Kernel {
            release: release.to_owned(),
            vmlinuz: folder.join("vmlinuz"),
            initrd: path(&format!("BED_INITRD_{i}_FILE"))?,
            config: folder.join("config"),
            modules: folder.join("modules"),
            headers: path(&format!("BED_HEADERS_{i}_DIR"))?,
        });
    }
    if kernels.len() < 2 {
        bail!("BED_KERNELS names fewer than two kernels");
    }
    Ok(Bed {
        dir,
        cache,
        programs: path("BED_KUBE_DIR")?,
        pause: path("BED_PAUSE_FILE")?,
        root_disk: path("BED_ROOT_DISK_FILE")?,
        kernels,
    })
}
