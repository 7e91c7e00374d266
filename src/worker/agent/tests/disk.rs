//! A disk that cannot be written, and an API server that keeps less than it is sent, by a clock that does not wait.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::Method;

use super::*;
use crate::api::NodeModulesConfigStatus;
use crate::core::kmod::elf::testing::module;
use crate::core::load;
use crate::worker::record::Firmware;
use crate::worker::store::manifest;
use crate::worker::testing::{RELEASE, SimulatedKernel, intent, spec};

/// An API server with one NodeModulesConfig, of generation 2.
struct Server {
    client: Client,
    told: Arc<Mutex<NodeModulesConfigStatus>>,
    writes: Arc<AtomicUsize>,
}

impl Server {
    /// Starts an agent of this server's node: what ends it, and its task.
    fn serve(
        &self,
        kernel: Arc<SimulatedKernel>,
        fetch: Arc<dyn Fetch>,
        state: StateDir,
    ) -> (CancellationToken, tokio::task::JoinHandle<Result<(), Error>>) {
        let shutdown = CancellationToken::new();
        let (settings, client) = (WorkerSettings::new("n"), self.client.clone());
        let agent = Agent::new(settings, kernel.clone(), kernel, fetch, state, client, shutdown.clone()).unwrap();
        (shutdown, tokio::spawn(agent.run()))
    }

    fn start(spec: NodeModulesConfigSpec, keep: fn(&mut NodeModulesConfigStatus)) -> Self {
        let (told, writes) = (Arc::new(Mutex::new(NodeModulesConfigStatus::default())), Arc::new(AtomicUsize::new(0)));
        let (status, count) = (Arc::clone(&told), Arc::clone(&writes));
        let server = Router::new().fallback(move |request: Request| {
            let (status, count, spec) = (Arc::clone(&status), Arc::clone(&count), spec.clone());
            async move {
                if request.uri().query().is_some_and(|query| query.contains("watch=")) {
                    return std::future::pending().await;
                }
                let is_list = request.method() == Method::GET;
                if !is_list {
                    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
                    let patch: NodeModulesConfig = serde_json::from_value({
                        let mut patch: serde_json::Value = serde_json::from_slice(&body).unwrap();
                        patch["spec"] = serde_json::json!({});
                        patch
                    })
                    .unwrap();
                    let mut told = patch.status.unwrap();
                    keep(&mut told);
                    *status.lock().unwrap() = told;
                    assert!(count.fetch_add(1, Ordering::Relaxed) < 1000, "writes again and again");
                }
                let mut object = NodeModulesConfig::new("n", spec);
                object.metadata.uid = Some("u".into());
                object.metadata.generation = Some(2);
                object.status = Some(status.lock().unwrap().clone());
                if !is_list {
                    return serde_json::to_string(&object).unwrap();
                }
                let list = serde_json::json!({"apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
                    "kind": "NodeModulesConfigList", "metadata": {"resourceVersion": "1"}, "items": [object]});
                list.to_string()
            }
        });
        Self { client: Client::new(server, "default"), told, writes }
    }

    /// `generation: module state reason, …`, as soon as it is `good`.
    async fn tells(&self, good: impl Fn(&str) -> bool) -> String {
        let begun = std::time::Instant::now();
        loop {
            let status = self.told.lock().unwrap().clone();
            let mut modules: Vec<String> = status
                .modules
                .iter()
                .map(|module| {
                    let reason = module.reason.clone().unwrap_or_default();
                    format!("{} {:?} {reason}", module.name, module.state.unwrap_or_default())
                })
                .collect();
            modules.sort();
            let told = format!("{}: {}", status.observed_generation.unwrap_or_default(), modules.join(", "));
            // By a real clock: jobs are on real threads.
            if good(&told) || begun.elapsed() > Duration::from_secs(10) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn orders_that_cannot_be_kept_are_told_and_carried_out_as_soon_as_they_can() {
    let (folder, state, kernel) = holding(&["gpu", "net"]);
    let before = NodeModulesConfigSpec {
        modules: vec![spec("gpu", "gpu", 'a', 1), spec("net", "net", 'a', 1)],
        ..NodeModulesConfigSpec::default()
    };
    state.save_plan(&KeptPlan::new("u", 1, before)).unwrap();
    let in_the_way = ["plan.json.new", "lock"].map(|name| folder.path().join(name));
    fs::remove_file(&in_the_way[1]).unwrap();
    for path in &in_the_way {
        fs::create_dir(path).unwrap();
    }
    state.sign(false);

    let wanted = NodeModulesConfigSpec {
        modules: vec![spec("gpu", "gpu", 'a', 1)],
        unload: vec![intent("net", 1)],
        ..NodeModulesConfigSpec::default()
    };
    let server = Server::start(wanted, |_| {});
    let (shutdown, running) = server.serve(kernel.clone(), Arc::new(NoRegistry), state);
    let told = server.tells(|told| told.contains("net UnloadFailed")).await;
    assert_eq!(told, "1: gpu Loaded Loaded, net UnloadFailed StoreFailed");
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(kernel.names(), ["gpu", "net"]);
    // What somebody else does is seen all the same.
    kernel.with(|modules| drop(modules.remove("gpu")));
    let told = server.tells(|told| told.contains("gpu Failed")).await;
    assert_eq!(told, "1: gpu Failed StoreFailed, net UnloadFailed StoreFailed");

    fs::remove_dir(&in_the_way[0]).unwrap();
    let told = server.tells(|told| !told.contains("net")).await;
    assert!(told.starts_with("2: gpu "), "{told}");
    assert_eq!(kernel.names(), [""; 0]);
    assert_eq!(kernel.take_calls(), ["-net"]);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// A registry whose image makes good what the kernel could not read.
struct Registry {
    kernel: Arc<SimulatedKernel>,
    asked: AtomicUsize,
}

impl Fetch for Registry {
    fn fetch(&self, _: Wanted, _: Option<String>, _: String, tree: PathBuf) -> BoxFuture<'static, Result<(), Unready>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.kernel.lost.lock().unwrap().clear();
        unpack(&tree);
        async { Ok(()) }.boxed()
    }
}

fn unpack(tree: &Path) -> PathBuf {
    let folder = tree.join("opt/lib/modules").join(RELEASE);
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("gpu.ko");
    fs::write(&file, module(&format!("vermagic={RELEASE} SMP \0"), &[1])).unwrap();
    file
}

/// What becomes of an unpacked image after `fault`, with the module `gpu` to be loaded from it: what is told when it is
/// `good`, and an hour later how often it was fetched.
async fn damaged(
    record: impl FnOnce(&Path) -> Option<Record>,
    fault: impl FnOnce(&Path, &SimulatedKernel),
    good: &str,
) -> (String, usize) {
    let (_folder, state, kernel) = holding(&[]);
    let wanted = spec("gpu", "gpu", 'a', 1);
    let tree = state.tree(&load::identity(&wanted.config).unwrap().tree_key(RELEASE));
    let file = unpack(&tree);
    manifest::write(&tree).unwrap();
    fault(&file, &kernel);
    if let Some(record) = record(&tree) {
        state.save_record(&record).unwrap();
    }
    // The simulated kernel takes no file of a real folder: what it refuses was read.
    kernel.fail("gpu", nix::errno::Errno::ENODEV);
    let server =
        Server::start(NodeModulesConfigSpec { modules: vec![wanted], ..NodeModulesConfigSpec::default() }, |_| {});
    let registry = Arc::new(Registry { kernel: kernel.clone(), asked: AtomicUsize::new(0) });
    let (shutdown, running) = server.serve(kernel.clone(), registry.clone(), state);
    let told = server.tells(|told| told.contains(good)).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    (told, registry.asked.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn an_unpacked_image_that_is_whole_or_whose_disk_fails_or_whose_firmware_is_in_use_stays() {
    let whole = damaged(|_| None, |_, _| {}, "KernelRefused").await;
    assert_eq!(whole, ("2: gpu Failed KernelRefused".to_owned(), 0));
    let failing = |file: &Path, kernel: &SimulatedKernel| {
        kernel.fail(&file.display().to_string(), nix::errno::Errno::EIO);
    };
    assert_eq!(damaged(|_| None, failing, "StoreFailed").await, ("2: gpu Failed StoreFailed".to_owned(), 0));
    let in_use = |tree: &Path| {
        let firmware = Firmware { folder: tree.join("firmware"), files: BTreeMap::new() };
        let mut record = Record::new("boot-1");
        record.put(Entry { firmware: Some(firmware), ..Entry::of(spec("gpu", "gpu", 'b', 0)) });
        Some(record)
    };
    let missing = |file: &Path, _: &SimulatedKernel| fs::remove_file(file).unwrap();
    assert_eq!(damaged(in_use, missing, "NotFound").await, ("2: gpu Failed ModuleNotFound".to_owned(), 0));
}

#[tokio::test(start_paused = true)]
async fn an_unpacked_image_with_a_damaged_file_is_fetched_again_once() {
    type Fault = fn(&Path, &SimulatedKernel);
    let faults: [Fault; 4] = [
        |file, _| fs::remove_file(file).unwrap(),
        |file, _| fs::write(file, "").unwrap(),
        // As good a module as the other, for all that can be read of it.
        |file, _| fs::write(file, module(&format!("vermagic={RELEASE} SMP \0"), &[2])).unwrap(),
        // What was unpacked by a worker that did not write it down.
        |file, _| {
            let tree = file.ancestors().nth(5).unwrap();
            fs::remove_file(tree.join(".kmm-files.json")).unwrap();
            fs::write(file, "").unwrap();
        },
    ];
    for fault in faults {
        let told = damaged(|_| None, fault, "KernelRefused").await;
        assert_eq!(told, ("2: gpu Failed KernelRefused".to_owned(), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_does_not_keep_is_sent_seldom_and_everything_new_at_once() {
    let (_folder, state, kernel) = holding(&["gpu"]);
    let wanted =
        NodeModulesConfigSpec { modules: vec![spec("gpu", "gpu", 'a', 1)], ..NodeModulesConfigSpec::default() };
    // By a webhook.
    let server = Server::start(wanted, |status| {
        status.worker_version = None;
        status.modules.iter_mut().for_each(|module| module.build_id = None);
    });
    let (shutdown, running) = server.serve(kernel.clone(), Arc::new(NoRegistry), state);
    assert_eq!(server.tells(|told| told.contains("gpu Loaded")).await, "2: gpu Loaded Loaded");
    tokio::time::sleep(Duration::from_hours(2)).await;
    let writes = server.writes.load(Ordering::Relaxed);
    assert!((2..=14).contains(&writes), "{writes} writes in two hours");
    kernel.with(|modules| drop(modules.remove("gpu")));
    let told = server.tells(|told| told.contains("gpu Failed")).await;
    assert_eq!(told, "2: gpu Failed ImageUnreachable");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
