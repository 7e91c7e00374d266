//! A first load that makes room, and fails or is taken back.

use axum::Router;
use axum::http::StatusCode;
use nix::errno::Errno;

use super::*;
use crate::api::{LoadPolicy, UnloadIntent, UnloadReason};
use crate::core::kmod::order::Role::Named;
use crate::worker::testing::{Loaded, SimulatedKernel, file, intent, spec};

fn object(generation: i64, spec: NodeModulesConfigSpec) -> NodeModulesConfig {
    let mut object = NodeModulesConfig::new("n", spec);
    (object.metadata.uid, object.metadata.generation) = (Some("u".into()), Some(generation));
    object
}

/// An agent that is about to load `gpu`, for which the kernel's own `old_gpu` makes room.
fn making_room() -> (tempfile::TempDir, Arc<SimulatedKernel>, Agent) {
    let (folder, state, kernel) = holding(&[]);
    kernel.own.lock().unwrap().insert("old_gpu".into(), vec![]);
    kernel.with(|modules| drop(modules.insert("old_gpu".into(), Loaded { id: "own".into(), ..Loaded::default() })));
    let client = Client::new(Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE), "default");
    let (settings, shutdown) = (WorkerSettings::new("n"), CancellationToken::new());
    let mut agent =
        Agent::new(settings, kernel.clone(), kernel.clone(), Arc::new(NoRegistry), state, client, shutdown).unwrap();

    let mut wanted = spec("gpu", "gpu", 'a', 1);
    wanted.config.in_tree_modules_to_remove = vec!["old_gpu".into()];
    wanted.policy = Some(LoadPolicy { restore_in_tree_modules: true, ..LoadPolicy::default() });
    let set = LoadSet { files: vec![file("gpu", "gpu1", Named, &[])], ..LoadSet::default() };
    let checked = crate::worker::plan::Desired::of(wanted.clone()).check(&agent.release).unwrap();
    let mut ready = Prepared::begun(checked, None, None);
    ready.end(Ok(set), Duration::ZERO);
    agent.prepared.insert(Owner::of(&wanted), ready);
    agent.want(Some(object(1, NodeModulesConfigSpec { modules: vec![wanted], ..Default::default() })));
    (folder, kernel, agent)
}

async fn end_of_jobs(agent: &mut Agent) {
    while !agent.tasks.running().is_empty() {
        let finished = agent.tasks.next().await.unwrap().unwrap();
        agent.finish(finished).unwrap();
    }
}

#[tokio::test]
async fn a_load_that_failed_is_tried_again_later_where_something_had_left_for_it() {
    for (errno, calls) in [(None, vec![]), (Some(Errno::ENODEV), vec!["-old_gpu", "+old_gpu"])] {
        let (_folder, kernel, mut agent) = making_room();
        match errno {
            Some(errno) => kernel.fail("gpu", errno),
            None => *kernel.memory.lock().unwrap() = Some(1),
        }
        agent.pass();
        end_of_jobs(&mut agent).await;
        assert_eq!(kernel.take_calls(), calls);
        let attempt = agent.attempts.get(&Owner::of(&spec("gpu", "gpu", 'a', 1))).unwrap();
        assert_eq!(attempt.retry_at > Duration::from_mins(29), !calls.is_empty(), "{attempt:?}");
    }
}

#[tokio::test]
async fn a_load_that_an_order_takes_back_while_it_runs_ends_with_what_the_node_had() {
    let (_folder, kernel, mut agent) = making_room();
    {
        let _hanging = kernel.hold();
        agent.pass();
        assert_eq!(agent.tasks.running().len(), 1);
        let unload = vec![UnloadIntent { reason: UnloadReason::Deleted, ..intent("gpu", 2) }];
        agent.want(Some(object(2, NodeModulesConfigSpec { unload, ..Default::default() })));
        agent.pass();
    }
    end_of_jobs(&mut agent).await;
    assert_eq!(kernel.names(), ["old_gpu"]);
    assert_eq!(agent.hands.recorded().entries, []);
}
