//! A virtual machine of the bed: QEMU, its disk, its network, and a line into it.
//!
//! One thread per machine owns QEMU. When the guest reboots or powers off, QEMU leaves and the thread starts it again on
//! the same disk: that is what a reboot is here, and it works the same for panics and power cuts.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::bed::{Kernel, bed, next_machine};
use super::process::{Process, output, tail};
use super::{HOST, eventually};

/// How long a machine may take until it obeys: the bed is meant to work on a busy machine too.
pub const BOOT: Duration = Duration::from_mins(3);

/// A request without an answer for so long may have been lost.
const LOST: Duration = Duration::from_secs(15);

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    pub name: String,
    /// A release of the bed's kernels; the bed's usual one if `None`.
    pub kernel: Option<String>,
    pub memory_mib: u32,
    pub cpus: u32,
    /// `node` or `kernel`, for the guest's init.
    pub(super) mode: &'static str,
    /// Words added to the kernel's command line.
    pub append: String,
    /// Files written to the disk at every boot: path, mode, content.
    pub files: Vec<(String, u32, Vec<u8>)>,
}

/// What a command in the machine wrote (both streams) and left with; 137 after a time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub code: i32,
    pub bytes: Vec<u8>,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A running machine. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Machine {
    name: String,
    number: u8,
    dir: PathBuf,
    shared: Arc<Shared>,
    orders: Sender<Order>,
    supervisor: Option<JoinHandle<()>>,
    line: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kernel: Kernel,
    /// Counts starts of QEMU.
    starts: u64,
    /// Why the supervisor gave up.
    failed: Option<String>,
    running: bool,
}

#[derive(Debug)]
enum Order {
    /// Kill QEMU and start it again.
    Cut,
    /// Kill QEMU; start it again when told to.
    Stop,
    Start,
    End,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// Makes disk and network and starts QEMU. On return the machine obeys [`exec`](Self::exec).
    pub(super) async fn start(options: MachineOptions, number: u8) -> Result<Self> {
        let bed = bed()?;
        let kernel = match &options.kernel {
            Some(release) => bed.kernel_named(release)?.clone(),
            None => bed.kernel().clone(),
        };
        let dir = bed.new_dir(&format!("machine-{}", options.name))?;
        write_files(&dir.join("files.tar"), number, &options.files)?;
        let mut image = Command::new("qemu-img");
        image.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&bed.root_disk).arg(dir.join("disk.qcow2"));
        output(&mut image)?;
        let tap = format!("kmmtap{number}");
        output(Command::new("ip").args(["tuntap", "add", "dev", &tap, "mode", "tap"]))?;
        output(Command::new("ip").args(["link", "set", &tap, "master", "kmmbr", "up"]))?;
        let pods = format!("10.244.{number}.0/24");
        output(Command::new("ip").args(["route", "replace", &pods, "via", &address(number), "dev", "kmmbr"]))?;

        let state = State { kernel, starts: 0, failed: None, running: false };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let (orders, received) = channel();
        let supervisor = {
            let (shared, dir, options) = (shared.clone(), dir.clone(), options.clone());
            std::thread::Builder::new()
                .name(format!("machine {}", options.name))
                .spawn(move || supervise(&shared, &dir, &options, number, &received))
                .context("starting the supervisor of a machine")?
        };
        let this = Self {
            name: options.name,
            number,
            dir,
            shared,
            orders,
            supervisor: Some(supervisor),
            line: tokio::sync::Mutex::new(()),
        };
        this.wait_started(0).await?;
        this.wait_obeys().await?;
        Ok(this)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// 172.30.0.(100+n).
    pub fn address(&self) -> String {
        address(self.number)
    }

    /// The release that QEMU starts.
    pub fn kernel(&self) -> String {
        self.shared.lock().kernel.release.clone()
    }

    /// The end of what the kernel and the guest's init wrote to the console since the first start.
    pub fn console_tail(&self, lines: usize) -> String {
        tail(&self.dir.join("console.log"), lines)
    }

    // ---- commands ---------------------------------------------------------------------------------------

    /// Runs a shell command in the machine, at most for a minute.
    pub async fn exec(&self, command: &str) -> Result<Output> {
        self.exec_for(Duration::from_mins(1), command).await
    }

    /// Runs a shell command in the machine; after `limit` it is killed there and its code is 137.
    pub async fn exec_for(&self, limit: Duration, command: &str) -> Result<Output> {
        let _line = self.line.lock().await;
        // The machine may be slow to start the command; its own clock ends it.
        let patience = limit + Duration::from_mins(1);
        tokio::time::timeout(patience, self.ask(limit, command))
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer")))
            .with_context(|| {
                let console = self.console_tail(15);
                format!("running `{command}` in machine {}; the end of its console:\n{console}", self.name)
            })
    }

    /// As [`exec`](Self::exec), and an error unless the command succeeds; gives what it wrote.
    pub async fn run(&self, command: &str) -> Result<String> {
        let out = self.exec(command).await?;
        ensure!(out.code == 0, "`{command}` in machine {} left with {}: {}", self.name, out.code, out.text());
        Ok(out.text())
    }

    async fn ask(&self, limit: Duration, command: &str) -> Result<Output> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = self.dir.join("agent");
        let stream =
            UnixStream::connect(&socket).await.with_context(|| format!("connecting to {}", socket.display()))?;
        let (read, mut write) = stream.into_split();
        let encoded = base64::prelude::BASE64_STANDARD.encode(command);
        let request = format!("\n{id} {} {encoded}\n", limit.as_secs().max(1));
        // The empty line ends whatever a broken request left on the line.
        write.write_all(request.as_bytes()).await?;
        let (begin, end) = (format!("@begin {id}"), format!("@end {id} "));
        let mut lines = BufReader::new(read).lines();
        let mut body: Option<String> = None;
        let mut asked_again = 0;
        // A busy host may lose part of the request too. Asking once more is safe: the agent answers one request after the
        // other, and one that it has just answered from memory.
        let mut again = [LOST, 2 * LOST, limit + LOST, limit + 2 * LOST].into_iter();
        let asked = tokio::time::Instant::now();
        let mut at = again.next();
        loop {
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(asked + at).await,
                    None => std::future::pending().await,
                }
            };
            let line = tokio::select! {
                line = lines.next_line() => line.context("reading the answer")?,
                () = due => {
                    write.write_all(request.as_bytes()).await?;
                    at = again.next();
                    continue;
                }
            };
            let Some(line) = line else { break };
            let line = line.trim_end_matches('\r');
            // The first bytes after a boot may follow the echo of a line that was sent before the agent listened.
            if line.ends_with(&begin) {
                body = Some(String::new());
            } else if let Some(code) = line.strip_prefix(&end) {
                let decoded = body.take().map(|text| base64::prelude::BASE64_STANDARD.decode(text));
                if let (Some(Ok(bytes)), Ok(code)) = (decoded, code.parse()) {
                    return Ok(Output { code, bytes });
                }
                // A busy host loses characters of the line; the agent keeps its last answer.
                ensure!(asked_again < 5, "an answer that is broken each time");
                asked_again += 1;
                write.write_all(request.as_bytes()).await?;
            } else if let Some(body) = &mut body {
                body.push_str(line);
            }
        }
        bail!("the machine left")
    }

    /// Waits for the output of `command` to satisfy `good`.
    pub async fn wait_for(&self, limit: Duration, command: &str, good: impl Fn(&Output) -> bool) -> Result<Output> {
        let what = format!("`{command}` in machine {}", self.name);
        eventually(limit, &what, || {
            let asked = self.exec(command);
            async {
                let out = asked.await?;
                if good(&out) { Ok(Some(out)) } else { bail!("it left with {} and wrote: {}", out.code, out.text()) }
            }
        })
        .await
    }

    /// Writes a file in the machine, replacing it at once; for anything from a few bytes to a program.
    pub async fn put(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let listener = TcpListener::bind((HOST, 0)).context("listening for a machine")?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let send = async {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(bytes).await?;
            stream.shutdown().await?;
            anyhow::Ok(())
        };
        let quoted = quote(path);
        let folder =
            quote(path.rsplit_once('/').map_or(".", |(folder, _)| if folder.is_empty() { "/" } else { folder }));
        let command = format!(
            "mkdir -p {folder} && nc {HOST} {port} </dev/null >{quoted}.new && chmod {mode:o} {quoted}.new && mv {quoted}.new {quoted} && wc -c <{quoted}"
        );
        let receive = self.run(&command);
        let (counted, sending) = tokio::join!(receive, async {
            tokio::time::timeout(Duration::from_mins(2), send)
                .await
                .map_err(|_| anyhow!("the machine did not fetch the file"))?
        });
        let written: usize = counted?.trim().parse().context("counting bytes")?;
        sending?;
        ensure!(written == bytes.len(), "{path} has {written} bytes in machine {}, not {}", self.name, bytes.len());
        Ok(())
    }

    /// The content of a file in the machine.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let out = self.exec(&format!("cat {}", quote(path))).await?;
        ensure!(out.code == 0, "reading {path} in machine {}: {}", self.name, out.text());
        Ok(out.bytes)
    }

    /// The kernel's random name for this boot.
    pub async fn boot_id(&self) -> Result<String> {
        Ok(self.run("cat /proc/sys/kernel/random/boot_id").await?.trim().to_owned())
    }

    // ---- boots ------------------------------------------------------------------------------------------

    /// Asks the guest to reboot, and waits until it obeys again. The disk is written before.
    pub async fn reboot(&self) -> Result<()> {
        let before = self.starts();
        // The answer may or may not arrive before the machine is gone.
        let asked = self.exec("sync; (sleep 0.2; reboot -f) >/dev/null 2>&1 &").await;
        self.wait_started(before).await.with_context(|| format!("asked to reboot: {asked:?}"))?;
        self.wait_obeys().await
    }

    /// As [`reboot`](Self::reboot), with another kernel of the bed.
    pub async fn reboot_into(&self, release: &str) -> Result<()> {
        let kernel = bed()?.kernel_named(release)?.clone();
        self.shared.lock().kernel = kernel;
        self.reboot().await
    }

    /// Takes the power away and gives it back: nothing is written before.
    pub async fn power_cut(&self) -> Result<()> {
        let before = self.starts();
        self.order(Order::Cut)?;
        self.wait_started(before).await?;
        self.wait_obeys().await
    }

    /// Takes the power away until [`resume`](Self::resume).
    pub async fn stop(&self) -> Result<()> {
        self.order(Order::Stop)?;
        eventually(BOOT, "QEMU to leave", || async { Ok((!self.shared.lock().running).then_some(())) }).await
    }

    /// Gives the power back.
    pub async fn resume(&self) -> Result<()> {
        let before = self.starts();
        self.order(Order::Start)?;
        self.wait_started(before).await?;
        self.wait_obeys().await
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders
            .send(order)
            .map_err(|_| anyhow!("the supervisor of machine {} is gone: {:?}", self.name, self.failure()))
    }

    fn starts(&self) -> u64 {
        self.shared.lock().starts
    }

    fn failure(&self) -> Option<String> {
        self.shared.lock().failed.clone()
    }

    async fn wait_started(&self, before: u64) -> Result<()> {
        let started = eventually(BOOT, &format!("QEMU of machine {} to start", self.name), || async {
            Ok((self.failure().is_some() || self.starts() > before).then_some(()))
        })
        .await;
        match self.failure() {
            Some(reason) => bail!("machine {}: {reason}", self.name),
            None => started,
        }
    }

    async fn wait_obeys(&self) -> Result<()> {
        let obeys = eventually(BOOT, &format!("machine {} to obey", self.name), || async {
            if let Some(reason) = self.failure() {
                return Ok(Some(Err(anyhow!("machine {}: {reason}", self.name))));
            }
            // A question that the machine missed is never answered: ask again soon.
            let _line = self.line.lock().await;
            let asked =
                tokio::time::timeout(Duration::from_millis(500), self.ask(Duration::from_secs(10), "true")).await;
            Ok(matches!(asked, Ok(Ok(_))).then_some(Ok(())))
        })
        .await;
        obeys.and_then(|o| o).with_context(|| format!("the end of its console:\n{}", self.console_tail(25)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
        let _ = Command::new("ip").args(["link", "del", &format!("kmmtap{}", self.number)]).output();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn address(number: u8) -> String {
    format!("172.30.0.{}", 100 + u16::from(number))
}

/// A word for the shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn write_files(path: &Path, number: u8, files: &[(String, u32, Vec<u8>)]) -> Result<()> {
    let mut tar = tar::Builder::new(std::fs::File::create(path)?);
    let machine_id = ("etc/machine-id".to_owned(), 0o444, format!("{number:032x}\n").into_bytes());
    for (name, mode, bytes) in std::iter::once(&machine_id).chain(files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        tar.append_data(&mut header, name.trim_start_matches('/'), bytes.as_slice())
            .with_context(|| format!("packing {name}"))?;
    }
    tar.finish()?;
    Ok(())
}

fn supervise(shared: &Shared, dir: &Path, options: &MachineOptions, number: u8, orders: &Receiver<Order>) {
    let mut qemu: Option<Process> = None;
    let mut wanted = true;
    loop {
        if wanted && qemu.is_none() {
            let kernel = shared.lock().kernel.clone();
            match Process::spawn("qemu", dir, command(dir, options, &kernel, number)) {
                Ok(process) => qemu = Some(process),
                Err(error) => {
                    shared.lock().failed = Some(format!("{error:#}"));
                    return;
                }
            }
            let mut state = shared.lock();
            state.starts += 1;
            state.running = true;
        }
        match orders.recv_timeout(Duration::from_millis(50)) {
            Ok(Order::Cut) => qemu = None,
            Ok(Order::Stop) => {
                wanted = false;
                qemu = None;
            }
            Ok(Order::Start) => wanted = true,
            Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // A guest that reboots or powers off ends QEMU well; anything else would only happen again.
        match qemu.as_mut().map(Process::ended) {
            Some(Ok(Some(status))) if status.success() => qemu = None,
            Some(Ok(Some(status))) => {
                let log = qemu.as_ref().map(|q| q.log_tail(10)).unwrap_or_default();
                shared.lock().failed = Some(format!("QEMU left ({status}): {log}"));
                return;
            }
            _ => {}
        }
        if qemu.is_none() {
            shared.lock().running = false;
        }
    }
}

fn command(dir: &Path, options: &MachineOptions, kernel: &Kernel, number: u8) -> Command {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-smp", &options.cpus.to_string(), "-m", &options.memory_mib.to_string()]);
    qemu.args(["-uuid", &format!("00000000-0000-4000-8000-{number:012}")]);
    // First port: what kernel and init say. Second port: the agent.
    qemu.args([
        "-chardev",
        &format!("file,id=console,path={},append=on", file("console.log")),
        "-serial",
        "chardev:console",
    ]);
    qemu.args([
        "-chardev",
        &format!("socket,id=agent,path={},server=on,wait=off", file("agent")),
        "-serial",
        "chardev:agent",
    ]);
    qemu.arg("-kernel").arg(&kernel.vmlinuz).arg("-initrd").arg(&kernel.initrd);
    qemu.arg("-append").arg(format!(
        "console=ttyS0 quiet loglevel=4 mitigations=off nokaslr audit=0 apparmor=0 tsc=reliable no_timer_check \
         cryptomgr.notests random.trust_cpu=on panic=-1 bed.mode={} bed.name={} bed.ip={}/24 bed.gw={HOST} {}",
        options.mode,
        options.name,
        address(number),
        options.append,
    ));
    let disk = format!("if=none,id=d0,file={},format=qcow2,cache=unsafe,discard=unmap", file("disk.qcow2"));
    qemu.args(["-drive", &disk, "-device", "virtio-blk-pci,drive=d0"]);
    let files = format!("if=none,id=d1,file={},format=raw,readonly=on", file("files.tar"));
    qemu.args(["-drive", &files, "-device", "virtio-blk-pci,drive=d1"]);
    qemu.args(["-netdev", &format!("tap,id=n0,ifname=kmmtap{number},script=no,downscript=no")]);
    qemu.args([
        "-device",
        &format!("virtio-net-pci,netdev=n0,mac=52:54:00:00:00:{number:02x}"),
        "-device",
        "virtio-rng-pci",
    ]);
    qemu
}

/// The number of the next machine; nodes need it before the machine starts, for their certificates.
pub(super) fn number() -> Result<(u8, String)> {
    let number = next_machine()?;
    Ok((number, address(number)))
}
