//! An API server that is away for long, by a clock that does not wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::http::StatusCode;

use super::*;
use crate::worker::testing::{intent, spec};

/// Fetches nothing, and remembers for which container runtime it was to.
#[derive(Debug, Default)]
struct Asked(std::sync::Mutex<Vec<Option<String>>>);

impl Fetch for Asked {
    fn fetch(
        &self,
        wanted: Wanted,
        runtime: Option<String>,
        release: String,
        tree: PathBuf,
    ) -> BoxFuture<'static, Result<(), Unready>> {
        self.0.lock().unwrap().push(runtime.clone());
        NoRegistry.fetch(wanted, runtime, release, tree)
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_the_api_server_touches_nothing_and_asks_seldom() {
    // From the start, or after it has said once what is wanted.
    for answers in [0, 1] {
        // The orphan is neither wanted nor to go.
        let (folder, state, kernel) = holding(&["gpu", "orphan"]);
        let record = state.record("boot-1").unwrap().0;
        let wanted = NodeModulesConfigSpec { modules: vec![spec("gpu", "gpu", 'a', 1)], ..Default::default() };
        state.save_plan(&KeptPlan::new("u", 1, wanted.clone())).unwrap();

        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let server = Router::new().fallback(move || {
            let answered = count.fetch_add(1, Ordering::Relaxed) < answers;
            let mut object = NodeModulesConfig::new("n", wanted.clone());
            object.metadata.uid = Some("u".into());
            object.metadata.generation = Some(1);
            let list = serde_json::json!({"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "NodeModulesConfigList",
                "metadata": {"resourceVersion": "1"}, "items": [object]});
            let status = if answered { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            async move { (status, list.to_string()) }
        });
        let client = Client::new(server, "default");
        let shutdown = CancellationToken::new();
        let settings = WorkerSettings::new("n");
        let agent =
            Agent::new(settings, kernel.clone(), kernel.clone(), Arc::new(NoRegistry), state, client, shutdown.clone())
                .unwrap();
        let running = tokio::spawn(agent.run());
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert!(!running.is_finished());
        shutdown.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(kernel.take_calls(), [""; 0]);
        assert_eq!(kernel.names(), ["gpu", "orphan"]);
        // The watch every half minute, and the status that cannot be written every minute.
        let asked = asked.load(Ordering::Relaxed);
        assert!((110..250).contains(&asked), "{asked} questions");
        let kept = StateDir::open(folder.path()).unwrap().unwrap().record("boot-1").unwrap().0;
        assert_eq!(kept, record);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_at_boot_is_fetched_as_the_nodes_container_runtime_would() {
    let (_folder, state, kernel) = holding(&[]);
    let policy = Some(crate::api::LoadPolicy { load_at_boot: true, ..Default::default() });
    let wanted = NodeModulesConfigSpec {
        modules: vec![NodeModuleSpec { policy, ..spec("gpu", "gpu", 'a', 1) }],
        container_runtime: Some("containerd://2.1".into()),
        ..Default::default()
    };
    state.save_plan(&KeptPlan::new("u", 1, wanted)).unwrap();
    let client = Client::new(Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE), "default");
    let (settings, shutdown, fetch) = (WorkerSettings::new("n"), CancellationToken::new(), Arc::new(Asked::default()));
    let before = settings.kept_plan_after / 2;
    let agent = Agent::new(settings, kernel.clone(), kernel, fetch.clone(), state, client, shutdown.clone()).unwrap();
    let running = tokio::spawn(agent.run());
    tokio::time::sleep(before).await;
    assert_eq!(fetch.0.lock().unwrap()[0].as_deref(), Some("containerd://2.1"));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn orders_that_were_kept_wait_until_the_api_server_says_them_again() {
    let (_folder, state, kernel) = holding(&["gpu", "net"]);
    // The one is to be replaced, the other is to go.
    let wanted = NodeModulesConfigSpec {
        modules: vec![spec("gpu", "gpu", 'b', 2)],
        unload: vec![intent("gpu", 1), intent("net", 1)],
        ..Default::default()
    };
    state.save_plan(&KeptPlan::new("u", 1, wanted.clone())).unwrap();
    let back = Arc::new(AtomicBool::new(false));
    let is_back = Arc::clone(&back);
    let server = Router::new().fallback(move || {
        let status = if is_back.load(Ordering::Relaxed) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut object = NodeModulesConfig::new("n", wanted.clone());
        object.metadata.uid = Some("u".into());
        object.metadata.generation = Some(1);
        let list = serde_json::json!({"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "NodeModulesConfigList",
            "metadata": {"resourceVersion": "1"}, "items": [object]});
        async move { (status, list.to_string()) }
    });
    let shutdown = CancellationToken::new();
    let (settings, client) = (WorkerSettings::new("n"), Client::new(server, "default"));
    let agent =
        Agent::new(settings, kernel.clone(), kernel.clone(), Arc::new(NoRegistry), state, client, shutdown.clone())
            .unwrap();
    let running = tokio::spawn(agent.run());
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!((kernel.names(), kernel.take_calls()), (vec!["gpu".to_owned(), "net".to_owned()], vec![]));
    back.store(true, Ordering::Relaxed);
    let begun = std::time::Instant::now();
    while kernel.names().len() > 1 && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(kernel.take_calls(), ["-net"]);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
