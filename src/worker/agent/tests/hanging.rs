//! What the kernel, or a registry, never finishes.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;

use axum::Router;
use axum::http::StatusCode;

use super::*;
use crate::core::kmod::order::Role::Named;
use crate::worker::testing::{file, intent, spec};

/// A registry that never answers, and one that has nothing.
#[derive(Debug, Default)]
struct Registries {
    asked: Mutex<BTreeSet<String>>,
}

impl Fetch for Registries {
    fn fetch(
        &self,
        wanted: Wanted,
        _: Option<String>,
        _: String,
        _: PathBuf,
    ) -> BoxFuture<'static, Result<(), Unready>> {
        let dead = wanted.spec.config.container_image.starts_with("dead.example/");
        self.asked.lock().unwrap().insert(wanted.spec.name);
        async move {
            if dead {
                std::future::pending::<()>().await;
            }
            Err(Trouble::new(NodeReason::ImageNotFound, "nothing here").into())
        }
        .boxed()
    }
}

fn agent(state: StateDir, kernel: Arc<SimulatedKernel>, fetch: Arc<dyn Fetch>, store_limit: u64) -> Agent {
    let client = Client::new(Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE), "default");
    let settings = WorkerSettings { store_limit, ..WorkerSettings::new("n") };
    Agent::new(settings, kernel.clone(), kernel, fetch, state, client, CancellationToken::new()).unwrap()
}

fn object(modules: Vec<NodeModuleSpec>) -> NodeModulesConfig {
    let mut object = NodeModulesConfig::new("n", NodeModulesConfigSpec { modules, ..Default::default() });
    (object.metadata.uid, object.metadata.generation) = (Some("u".into()), Some(1));
    object
}

#[tokio::test]
async fn registries_that_never_answer_delay_no_fetch_from_another() {
    let (_folder, state, kernel) = holding(&[]);
    let registries = Arc::new(Registries::default());
    let mut agent = agent(state, kernel, registries.clone(), 0);
    let mut modules = Vec::new();
    for digest in '0'..='9' {
        let name = format!("dead{digest}");
        let mut dead = spec(&name, &name, digest, 1);
        dead.config.container_image = dead.config.container_image.replace("registry.example", "dead.example");
        modules.push(dead);
    }
    modules.push(spec("gpu", "gpu", 'a', 1));
    agent.want(Some(object(modules)));
    agent.pass();
    let finished = agent.tasks.next().await.unwrap().unwrap();
    agent.finish(finished).unwrap();
    let asked = registries.asked.lock().unwrap().clone();
    assert!(asked.contains("gpu"), "{asked:?}");
    assert_eq!(asked.len(), 5, "one registry is not asked for everything at once: {asked:?}");
}

#[tokio::test]
async fn a_job_that_hangs_does_not_keep_the_disk_from_being_tidied() {
    let (folder, state, kernel) = holding(&["net"]);
    let mut agent = agent(state, kernel.clone(), Arc::new(NoRegistry), 0);
    let wanted = spec("gpu", "gpu", 'a', 1);
    let checked = crate::worker::plan::Desired::of(wanted.clone()).check(&agent.release).unwrap();
    let trees = folder.path().join("trees");
    let key = checked.identity.tree_key(&agent.release);
    let mut ready = Prepared::begun(checked, None, None);
    ready.end(Ok(LoadSet { files: vec![file("gpu", "gpu1", Named, &[])], ..LoadSet::default() }), Duration::ZERO);
    agent.prepared.insert(Owner::of(&wanted), ready);
    let hanging = kernel.hang("gpu");
    agent.want(Some(object(vec![wanted, spec("net", "net", 'a', 1)])));
    agent.pass();
    for tree in ["of-nobody", key.as_str()] {
        fs::create_dir_all(trees.join(tree)).unwrap();
        fs::write(trees.join(tree).join("file"), [1; 4096]).unwrap();
    }
    // Its image is of use as long as the job runs, whatever is wanted meanwhile.
    let mut next = object(vec![spec("net", "net", 'a', 1)]);
    (next.metadata.generation, next.spec.unload) = (Some(2), vec![intent("gpu", 2)]);
    agent.want(Some(next));
    agent.pass();
    assert_eq!(agent.tasks.running().len(), 1);
    let left = |tree: &str| trees.join(tree).is_dir();
    assert!(!left("of-nobody") && left(&key));
    drop(hanging);
}
