//! A kernel with a shell and modprobe, without containerd and kubelet: up in a few seconds.

use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::images::libraries;
use super::machine::{Machine, MachineOptions, number};

/// What the machine is to have. The default is the bed's usual kernel and nothing else.
#[derive(Debug, Clone, Default)]
pub struct KernelVmOptions {
    /// A release of the bed's kernels.
    pub kernel: Option<String>,
    /// Files written at every boot: path, mode, content.
    pub files: Vec<(String, u32, Vec<u8>)>,
    /// Programs of this machine, such as `env!("CARGO_BIN_EXE_kmm")`: each is at `/<name>`, its libraries where its loader
    /// looks for them.
    pub programs: Vec<PathBuf>,
    /// Words added to the kernel's command line, `module.sig_enforce=1`.
    pub append: String,
}

/// A running machine; everything that [`Machine`] can do. Dropping it kills it.
#[derive(Debug)]
pub struct KernelVm(Machine);

impl KernelVm {
    pub async fn start(options: KernelVmOptions) -> Result<Self> {
        let mut files = options.files;
        for program in &options.programs {
            let name = program.file_name().context("a program without a name")?.to_string_lossy().into_owned();
            files.push((
                name,
                0o755,
                std::fs::read(program).with_context(|| format!("reading {}", program.display()))?,
            ));
            for (path, bytes) in libraries(program)? {
                // On the disk, /lib and /lib64 are links into /usr.
                let path = if path.starts_with("/usr/") { path } else { format!("/usr{path}") };
                if !files.iter().any(|(p, _, _)| *p == path) {
                    files.push((path, 0o755, bytes));
                }
            }
        }
        let (number, _) = number()?;
        let machine = MachineOptions {
            name: format!("vm{number}"),
            kernel: options.kernel,
            memory_mib: 512,
            cpus: 1,
            mode: "kernel",
            append: options.append,
            files,
        };
        Ok(Self(Machine::start(machine, number).await?))
    }
}

impl Deref for KernelVm {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}
