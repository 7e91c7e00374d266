//! Kernel modules for tests, compiled from the sources here, once per kernel.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::bed::{Kernel, bed, hex};

// Each prints what it was given, so a test can find it in the kernel's log.
const PLAIN: &str = r#"#include <linux/module.h>
static int __init plain_init(void) { pr_info("kmm_plain: version %s\n", THIS_MODULE->version); return 0; }
static void __exit plain_exit(void) { pr_info("kmm_plain: bye\n"); }
module_init(plain_init);
module_exit(plain_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("a module of the test bed");
MODULE_VERSION("@VERSION@");
"#;

const DASH: &str = r#"#include <linux/module.h>
static int __init dash_init(void) { return 0; }
static void __exit dash_exit(void) { }
module_init(dash_init);
module_exit(dash_exit);
MODULE_LICENSE("GPL");
"#;

const BASE: &str = r#"#include <linux/module.h>
int kmm_base_answer(void);
int kmm_base_answer(void) { return 42; }
EXPORT_SYMBOL_GPL(kmm_base_answer);
MODULE_LICENSE("GPL");
"#;

const TOP: &str = r#"#include <linux/module.h>
int kmm_base_answer(void);
static int __init top_init(void) { pr_info("kmm_top: %d\n", kmm_base_answer()); return 0; }
static void __exit top_exit(void) { }
module_init(top_init);
module_exit(top_exit);
MODULE_LICENSE("GPL");
"#;

const SOFT: &str = r#"#include <linux/module.h>
static int __init soft_init(void) { return 0; }
static void __exit soft_exit(void) { }
module_init(soft_init);
module_exit(soft_exit);
MODULE_LICENSE("GPL");
MODULE_SOFTDEP("pre: kmm_plain post: kmm_dash");
"#;

const FAIL: &str = r#"#include <linux/module.h>
static int __init fail_init(void) { return -ENODEV; }
module_init(fail_init);
MODULE_LICENSE("GPL");
"#;

const PARAM: &str = r#"#include <linux/module.h>
static int number = 1;
module_param(number, int, 0644);
MODULE_PARM_DESC(number, "a number");
static char *text = "none";
module_param(text, charp, 0444);
MODULE_PARM_DESC(text, "a text");
static bool flag;
module_param(flag, bool, 0444);
static int list[4];
static int list_length;
module_param_array(list, int, &list_length, 0444);
static int __init param_init(void)
{
	pr_info("kmm_param: number=%d text=%s flag=%d list=%d\n", number, text, flag, list_length);
	return 0;
}
static void __exit param_exit(void) { }
module_init(param_init);
module_exit(param_exit);
MODULE_LICENSE("GPL");
"#;

const MAKEFILE: &str = "obj-m := kmm_plain.o kmm-dash.o kmm_base.o kmm_top.o kmm_soft.o kmm_fail.o kmm_param.o\n";

/// The modules of the bed for one kernel, as files.
#[derive(Debug, Clone)]
pub struct Kmods {
    dir: PathBuf,
    pub release: String,
}

/// One module file.
#[derive(Debug, Clone)]
pub struct Kmod {
    /// As `/proc/modules` has it.
    pub name: String,
    /// As it lies in a folder, `kmm-dash.ko`.
    pub file_name: String,
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// The modules of the bed for a kernel of the bed. The first call for a kernel compiles them; the result is kept in the
/// bed's cache under a hash of sources and kernel.
pub fn for_kernel(release: &str) -> Result<Kmods> {
    let bed = bed()?;
    let kernel = bed.kernel_named(release)?;
    let first = [
        ("kmm_plain.c", PLAIN.replace("@VERSION@", "1.0")),
        ("kmm-dash.c", DASH.to_owned()),
        ("kmm_base.c", BASE.to_owned()),
        ("kmm_top.c", TOP.to_owned()),
        ("kmm_soft.c", SOFT.to_owned()),
        ("kmm_fail.c", FAIL.to_owned()),
        ("kmm_param.c", PARAM.to_owned()),
        ("Makefile", MAKEFILE.to_owned()),
    ];
    let second =
        [("kmm_plain.c", PLAIN.replace("@VERSION@", "2.0")), ("Makefile", "obj-m := kmm_plain.o\n".to_owned())];
    let dir = compile(kernel, "bed", &[("1", &first), ("2", &second)])?;
    Ok(Kmods { dir, release: release.to_owned() })
}

/// Compiles modules for a kernel of the bed: each set is a folder of sources with a kbuild `Makefile`. Gives the folder
/// that holds a folder per set; it is kept in the cache, so it must not be written to.
pub fn compile(kernel: &Kernel, name: &str, sets: &[(&str, &[(&str, String)])]) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    hash.update(kernel.modules.display().to_string());
    for (set, files) in sets {
        for (file, text) in *files {
            hash.update(format!("\0{set}\0{file}\0{text}"));
        }
    }
    let key = hex(&hash.finalize()[..8]);
    let folder = bed()?.cache.join("kmods");
    std::fs::create_dir_all(&folder)?;
    let done = folder.join(format!("{name}-{}-{key}", kernel.release));
    // Test binaries run side by side; one compiles, the others wait.
    let lock = std::fs::File::create(folder.join("lock"))?;
    lock.lock().context("locking the folder of compiled modules")?;
    if done.exists() {
        return Ok(done);
    }
    // Renamed when complete, so an interrupted run leaves no half set.
    let work = tempfile::tempdir_in(&folder)?;
    for (set, files) in sets {
        let dir = work.path().join(set);
        std::fs::create_dir_all(&dir)?;
        for (file, text) in *files {
            std::fs::write(dir.join(file), text)?;
        }
        make(&kernel.headers, &dir)?;
    }
    std::fs::rename(work.keep(), &done)?;
    Ok(done)
}

fn make(headers: &Path, dir: &Path) -> Result<()> {
    let out = Command::new("make")
        .arg("-s")
        .arg("-C")
        .arg(headers)
        .arg(format!("M={}", dir.display()))
        .arg("modules")
        .stdin(Stdio::null())
        .output()
        .context("starting make")?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "make in {} failed ({}): {text}", dir.display(), out.status);
    Ok(())
}

impl Kmods {
    fn read(&self, set: &str, file: &str) -> Result<Kmod> {
        Kmod::read(&self.dir.join(set).join(file))
    }

    /// `kmm_plain`, version 1.0; depends on nothing.
    pub fn plain(&self) -> Result<Kmod> {
        self.read("1", "kmm_plain.ko")
    }

    /// `kmm_plain`, version 2.0: same name, other build id.
    pub fn plain_v2(&self) -> Result<Kmod> {
        self.read("2", "kmm_plain.ko")
    }

    /// File `kmm-dash.ko`, in the kernel `kmm_dash`.
    pub fn dash(&self) -> Result<Kmod> {
        self.read("1", "kmm-dash.ko")
    }

    /// Exports a symbol.
    pub fn base(&self) -> Result<Kmod> {
        self.read("1", "kmm_base.ko")
    }

    /// Needs the symbol of [`base`](Self::base).
    pub fn top(&self) -> Result<Kmod> {
        self.read("1", "kmm_top.ko")
    }

    /// Soft dependencies: `pre: kmm_plain post: kmm_dash`.
    pub fn soft(&self) -> Result<Kmod> {
        self.read("1", "kmm_soft.ko")
    }

    /// Its init refuses with ENODEV.
    pub fn fail(&self) -> Result<Kmod> {
        self.read("1", "kmm_fail.ko")
    }

    /// Parameters `number` (int, writable), `text` (charp), `flag` (bool), `list` (up to four ints).
    pub fn param(&self) -> Result<Kmod> {
        self.read("1", "kmm_param.ko")
    }
}

impl Kmod {
    /// A module from a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let file_name = path.file_name().context("a module file without a name")?.to_string_lossy().into_owned();
        let name = file_name.trim_end_matches(".ko").replace('-', "_");
        Ok(Self { name, file_name, path: path.to_owned(), bytes })
    }
}

/// How a module file is compressed, as Debian, Fedora or Ubuntu do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Xz,
    Gz,
    Zst,
}

impl Compression {
    /// What is added to the file's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Xz => ".xz",
            Self::Gz => ".gz",
            Self::Zst => ".zst",
        }
    }
}

/// The file compressed as the kernel's own build does it: xz with CRC32, which is all that the kernel can check itself.
pub fn compress(bytes: &[u8], how: Compression) -> Result<Vec<u8>> {
    match how {
        Compression::Gz => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes)?;
            Ok(encoder.finish()?)
        }
        Compression::Zst => Ok(zstd::encode_all(bytes, 19)?),
        Compression::Xz => {
            let mut child = Command::new("xz")
                .args(["--check=crc32", "--lzma2=dict=1MiB", "--stdout"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("starting xz")?;
            let mut input = child.stdin.take().context("xz has no standard input")?;
            let bytes = bytes.to_vec();
            let writer = std::thread::spawn(move || input.write_all(&bytes));
            let out = child.wait_with_output()?;
            writer.join().map_err(|_| anyhow::anyhow!("writing to xz panicked"))??;
            if !out.status.success() {
                bail!("xz failed ({})", out.status);
            }
            Ok(out.stdout)
        }
    }
}
