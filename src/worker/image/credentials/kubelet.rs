//! The node's kubelet, as a process of the host, and what it sees.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use crate::oci::auth::kubelet::Places;

/// Name of its process.
const COMMAND: &str = "kubelet";
/// The capability of whoever may do anything to a host, by its number in `linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;

/// The kubelet that runs on the node; where none is to be found (k3s has it inside another process), one with default
/// settings and no environment that sees what the host's first process sees.
#[derive(Debug)]
pub(super) struct Kubelet {
    /// Where it finds credentials.
    pub(super) places: Places,
    /// Its environment.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Its mount namespace.
    mounts: File,
}

impl Kubelet {
    /// Looks for it below the host's `/proc`.
    pub(super) fn find(proc: &Path) -> io::Result<Self> {
        let first = proc.join("1");
        let mut pids: Vec<u32> =
            fs::read_dir(proc)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        let mut named = pids
            .into_iter()
            .map(|pid| proc.join(pid.to_string()))
            .filter(|process| fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == COMMAND));
        // One that ends meanwhile, or is none of the host's, is passed over.
        let running = named.find_map(|process| Self::of(&process, &first).ok().flatten());
        match running {
            Some(kubelet) => Ok(kubelet),
            None => Ok(Self {
                places: Places::of([], Path::new("/"), None),
                environment: Vec::new(),
                mounts: File::open(first.join("ns/mnt"))?,
            }),
        }
    }

    fn of(process: &Path, first: &Path) -> io::Result<Option<Self>> {
        // Through an open folder it stays the same process, whatever becomes of its number.
        let folder = File::open(process)?;
        let process = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let same = |namespace: &str| -> io::Result<bool> {
            Ok(fs::read_link(process.join(namespace))? == fs::read_link(first.join(namespace))?)
        };
        // Its programs will run with all rights. Anybody can give a process this name, but only who has all rights on the
        // host already has a process like this one.
        let is_of_host =
            is_omnipotent(&fs::read_to_string(process.join("status"))?) && same("ns/user")? && same("ns/pid")?;
        if !is_of_host {
            return Ok(None);
        }
        let environment = environment(&fs::read(process.join("environ"))?);
        let arguments = fs::read(process.join("cmdline"))?;
        let arguments: Vec<&str> = arguments.split(|byte| *byte == 0).flat_map(std::str::from_utf8).collect();
        let home = environment.iter().find(|(name, value)| name == "HOME" && !value.is_empty());
        let home = home.map(|(_, value)| Path::new(value));
        let places = Places::of(arguments, &fs::read_link(process.join("cwd"))?, home);
        let mounts = File::open(process.join("ns/mnt"))?;
        Ok(Some(Self { places, environment, mounts }))
    }

    /// One that sees what this process sees.
    #[cfg(test)]
    pub(super) fn with(places: Places, environment: Vec<(OsString, OsString)>) -> Self {
        Self { places, environment, mounts: File::open("/proc/self/ns/mnt").unwrap() }
    }

    /// Does something on a thread that sees files as the kubelet does; what it starts does so, too.
    pub(super) async fn inside<T: Send + 'static>(
        self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, ended) = oneshot::channel();
        // A thread of its own: it never sees anything else again. Not one of the runtime's for blocking work: the process
        // could not end before it does.
        std::thread::Builder::new().name("kubelet's view".to_owned()).spawn(move || {
            let result = self.enter().map(|()| work(&self));
            // Nobody waits any more.
            let _ = done.send(result);
        })?;
        ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
    }

    fn enter(&self) -> io::Result<()> {
        // A thread that shares root and working directory with others cannot change its mounts.
        unshare(CloneFlags::CLONE_FS)?;
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
        Ok(())
    }
}

/// Whether a process has all rights in its user namespace: root in every respect, with the capability that stands for all.
fn is_omnipotent(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let is_root = field("Uid").is_some_and(|ids| {
        let mut ids = ids.split_whitespace().peekable();
        ids.peek().is_some() && ids.all(|id| id == "0")
    });
    let capabilities = field("CapEff").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    is_root && capabilities.is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN) != 0)
}

/// The variables of `/proc/<pid>/environ`.
fn environment(content: &[u8]) -> Vec<(OsString, OsString)> {
    let variables = content.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        (at > 0).then(|| (text(&variable[..at]), text(&variable[at + 1..])))
    });
    variables.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Writes what `/proc` shows of a process.
    fn process(proc: &Path, pid: u32, name: &str, uid: u32, capabilities: &str, user_namespace: &str) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(folder.join("ns")).unwrap();
        fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
        let status = format!("Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapEff:\t{capabilities}\n");
        fs::write(folder.join("status"), status).unwrap();
        fs::write(folder.join("cmdline"), format!("/usr/bin/{name}\0--root-dir\0/data/{pid}\0")).unwrap();
        fs::write(folder.join("environ"), "HOME=/root\0EMPTY=\0=odd\0none\0HTTPS_PROXY=http://a=b\0").unwrap();
        symlink("/", folder.join("cwd")).unwrap();
        symlink(format!("user:[{user_namespace}]"), folder.join("ns/user")).unwrap();
        symlink("pid:[1]", folder.join("ns/pid")).unwrap();
        fs::write(folder.join("ns/mnt"), "").unwrap();
    }

    const ALL: &str = "000001ffffffffff";

    fn found(proc: &Path) -> Places {
        Kubelet::find(proc).unwrap().places
    }

    fn with_root(root: &str) -> Places {
        Places::of(["kubelet", "--root-dir", root], Path::new("/"), Some(Path::new("/root")))
    }

    #[test]
    fn only_a_process_that_has_all_rights_on_the_host_is_taken_for_its_kubelet() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        process(proc, 1, "systemd", 0, ALL, "1");
        process(proc, 20, "kubelet-like", 0, ALL, "1");
        process(proc, 30, "kubelet", 1000, ALL, "1");
        process(proc, 40, "kubelet", 0, "00000000a80425fb", "1");
        process(proc, 50, "kubelet", 0, ALL, "2");
        process(proc, 60, "kubelet", 0, ALL, "1");
        fs::remove_file(proc.join("60/ns/pid")).unwrap();
        symlink("pid:[2]", proc.join("60/ns/pid")).unwrap();
        fs::create_dir(proc.join("70")).unwrap();
        fs::write(proc.join("version"), "").unwrap();
        let none = Kubelet::find(proc).unwrap();
        assert_eq!((none.places, none.environment), (Places::of([], Path::new("/"), None), vec![]));
        process(proc, 100, "kubelet", 0, ALL, "1");
        process(proc, 90, "kubelet", 0, ALL, "1");
        assert_eq!(found(proc), with_root("/data/90"));
        fs::remove_file(proc.join("90/cmdline")).unwrap();
        assert_eq!(found(proc), with_root("/data/100"), "one that ends meanwhile is passed over");
        let variables = Kubelet::find(proc).unwrap().environment;
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap())).collect();
        assert_eq!(variables, [("HOME", "/root"), ("EMPTY", ""), ("HTTPS_PROXY", "http://a=b")]);
    }

    #[test]
    fn rights_are_read_from_the_status() {
        for (status, expected) in [
            (format!("Uid:\t0\t0\t0\t0\nCapEff:\t{ALL}\n"), true),
            (format!("Uid:\t0\t0\t0\t1000\nCapEff:\t{ALL}\n"), false),
            (format!("Uid:\t\nCapEff:\t{ALL}\n"), false),
            ("Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000000\n".to_owned(), false),
            ("Uid:\t0\t0\t0\t0\nCapEff:\tall\n".to_owned(), false),
            ("Uid:\t0\t0\t0\t0\n".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_omnipotent(&status), expected, "{status}");
        }
    }
}
