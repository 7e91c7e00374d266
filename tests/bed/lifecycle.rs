//! The runner: what a test starts ends with it, whatever ends it, and beds do not meet.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

fn runner() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/testbed/run")
}

/// A runner with a script in place of a test binary, which has said `up` after it left processes behind.
struct Running {
    runner: Child,
    said: Vec<String>,
    /// Of its processes, and the script's number in it: told by the script, which may have ended when they are needed.
    namespace: PathBuf,
    script: String,
    _folder: tempfile::TempDir,
}

impl Running {
    /// `more` runs before the script says `up`, `last` after that.
    fn start(more: &str, last: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // The runner takes what lies in a folder `deps` for a test.
        let script = folder.path().join("deps/test");
        std::fs::create_dir(folder.path().join("deps"))?;
        let mut file = std::fs::File::create(&script)?;
        // One process that is a child, one that left its session and ignores signals.
        write!(
            file,
            "#!/bin/bash\nsleep 1000 &\n(trap '' INT TERM HUP; exec setsid sleep 1000) &\n{more}\n\
             echo up $(readlink /proc/self/ns/pid) $$\n{last}\n"
        )?;
        drop(file);
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        // A group of its own, as a terminal gives it: Ctrl-C goes to all of it.
        let mut runner =
            Command::new(runner()).arg(&script).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let mut said = Vec::new();
        for line in BufReader::new(runner.stdout.take().context("no output")?).lines() {
            let line = line?;
            let Some(up) = line.strip_prefix("up ") else {
                said.push(line);
                continue;
            };
            let (namespace, script) = up.split_once(' ').context("no number")?;
            return Ok(Self { runner, said, namespace: namespace.into(), script: script.into(), _folder: folder });
        }
        bail!("the script never came up: {said:?}")
    }

    fn processes(&self) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
            if std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == self.namespace) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The script itself, as it is called out here.
    fn script(&self) -> Result<i32> {
        let is_script = |pid: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some(&self.script))
        };
        self.processes()?.into_iter().find(is_script).context("the script has ended")
    }

    /// The runner's end, once nothing is left in the namespace.
    fn end(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            let status = self.runner.try_wait()?;
            let left = self.processes()?;
            if let (Some(status), true) = (status, left.is_empty()) {
                return Ok(status);
            }
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "after 20 s the runner is {status:?}, left are {left:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.runner.kill();
        let _ = self.runner.wait();
    }
}

fn pid_of(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

#[test]
fn nothing_is_left_after_a_test_that_ends_and_its_exit_code_is_passed_on() -> Result<()> {
    let mut running = Running::start("", "exit 7")?;
    assert_eq!(running.end()?.code(), Some(7));
    Ok(())
}

#[test]
fn nothing_is_left_after_a_test_that_is_killed() -> Result<()> {
    let mut running = Running::start("", "sleep 1000")?;
    ensure!(running.processes()?.len() >= 4, "too few processes to be a proof: {:?}", running.processes()?);
    kill(Pid::from_raw(running.script()?), Signal::SIGKILL)?;
    assert_eq!(running.end()?.code(), Some(137));
    Ok(())
}

#[test]
fn nothing_is_left_after_a_runner_that_is_killed() -> Result<()> {
    let mut running = Running::start("", "sleep 1000")?;
    kill(pid_of(&running.runner)?, Signal::SIGKILL)?;
    assert_eq!(running.end()?.signal(), Some(9));
    Ok(())
}

#[test]
fn nothing_is_left_after_ctrl_c() -> Result<()> {
    let mut running = Running::start("", "sleep 1000")?;
    killpg(pid_of(&running.runner)?, Signal::SIGINT)?;
    ensure!(!running.end()?.success(), "an interrupted test passed");
    Ok(())
}

#[test]
fn beds_side_by_side_have_the_same_address_and_do_not_see_each_other() -> Result<()> {
    // Both programs of this bed are begun, and may not be what they are to be yet.
    let look =
        "count() { ps ax -o comm= | grep -c '^sleep$'; }; for try in $(seq 500); do [ $(count) -lt 2 ] || break; done
        ip -o -4 addr show kmmbr | awk '{ print $4 }'; ls /run/kmm-bed; touch /run/kmm-bed/mine; count";
    let first = Running::start(look, "sleep 1000")?;
    let second = Running::start(look, "sleep 1000")?;
    assert_eq!(first.said, ["172.30.0.1/24", "2"]);
    assert_eq!(second.said, first.said);
    ensure!(first.namespace != second.namespace, "both run in one namespace");
    Ok(())
}

#[test]
fn a_program_that_is_no_test_runs_as_it_is() -> Result<()> {
    let here = std::fs::read_link("/proc/self/ns/net")?;
    let out = Command::new(runner()).args(["/usr/bin/readlink", "/proc/self/ns/net"]).output()?;
    assert_eq!(String::from_utf8(out.stdout)?.trim(), here.display().to_string());
    Ok(())
}
