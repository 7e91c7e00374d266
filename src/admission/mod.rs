//! The admission policies that security rests on, kept by the manager under fixed names.
//!
//! They are part of no bundle and of no overlay: OLM carries no policies, and some releases of kustomize break the link
//! between a policy and its binding. Whoever changes or deletes one sees it come back. They go with the kind Module.
//!
//! A policy that stands in the API server is not yet one that is in force: it has to be bound, compiled, and admission
//! by policies may be switched off. So the manager asks, by a request that only this revision of the policy refuses.

mod apply;
mod observe;
mod plan;
mod policies;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::core::CustomResourceExt;
use kube::{Api, Client};
use kube_runtime::watcher::Config;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::Module;
use crate::core::hash;
use crate::runtime::client::{ApiError, Class, chain};
use crate::runtime::metrics::Metrics;
use crate::runtime::queue::{Failure, Outcome, Queue, backoff};
use crate::runtime::readiness::{Gate, Readiness};
use crate::runtime::store::{Change, ObjectKey, Projection, Store, drive, store};
use crate::runtime::tasks::Tasks;
use observe::{BindingView, PolicyView};
use plan::plan;
use policies::{Policy, Rendered};

/// Events about one object within this time cost one pass.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// First and longest pause between two questions: an API server takes a policy into force within about a second.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// A pass that failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("failed to render an admission policy")]
    Render(#[from] hash::Error),
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api(error) => error.class(),
            Self::Render(_) => Class::Invalid,
        }
    }
}

/// The controller of the policies: its watches run on every replica, the rest only on the one that leads.
pub struct Admission {
    client: Client,
    kept: BTreeMap<Policy, Kept>,
    queue: Queue<Policy>,
    readiness: Readiness,
    in_force: watch::Sender<bool>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("kept", &self.kept).finish_non_exhaustive()
    }
}

/// What is there of a policy.
#[derive(Debug)]
struct Kept {
    policies: Store<PolicyView>,
    bindings: Store<BindingView>,
}

impl Admission {
    /// Starts the watches as tasks; `managed` means that there is a Hub.
    pub fn start(managed: bool, client: Client, metrics: &Metrics, readiness: &Readiness, tasks: &mut Tasks) -> Self {
        let queue = Queue::new(DEBOUNCE, metrics.queue("admission"));
        let mut kept = BTreeMap::new();
        for policy in Policy::of(managed) {
            let policies = follow(*policy, "watch of an admission policy", &client, &queue, readiness, tasks);
            let bindings = follow(*policy, "watch of a binding of a policy", &client, &queue, readiness, tasks);
            kept.insert(*policy, Kept { policies, bindings });
        }
        Self { client, kept, queue, readiness: readiness.clone(), in_force: watch::Sender::new(false) }
    }

    /// Whether every policy is in force, as far as the API server has shown it to this replica while it leads.
    pub fn in_force(&self) -> watch::Receiver<bool> {
        self.in_force.subscribe()
    }

    /// Keeps the policies until `shutdown`; for the replica that holds the lease. A gate of its own says from now on what
    /// is not in force, and why.
    pub async fn lead(self, shutdown: CancellationToken) {
        let Self { client, kept, queue, readiness, in_force } = self;
        let workers = kept.len();
        let states = kept.keys().map(|policy| (*policy, State::default())).collect();
        for policy in kept.keys() {
            queue.add(*policy);
        }
        let gate = readiness.gate("admission policies");
        let controller =
            Arc::new(Controller { client, kept, user: OnceCell::new(), states: Mutex::new(states), gate, in_force });
        queue
            .run(workers, shutdown, move |policy| {
                let controller = Arc::clone(&controller);
                async move { controller.pass(policy).await }
            })
            .await;
    }
}

/// Watches the one object of this kind that belongs to a policy.
fn follow<V: Projection>(
    policy: Policy,
    task: &'static str,
    client: &Client,
    queue: &Queue<Policy>,
    readiness: &Readiness,
    tasks: &mut Tasks,
) -> Store<V>
where
    V::Kind: kube::Resource<DynamicType = ()>,
{
    let (store, writer) = store::<V>();
    let config = Config::default().fields(&format!("metadata.name={policy}"));
    let gate = readiness.gate(&format!("{task}: {policy}"));
    let queue = queue.clone();
    let on_change = move |_: &Change<V>| queue.add(policy);
    tasks.spawn_endless(task, drive(Api::all(client.clone()), config, writer, gate, on_change));
    store
}

struct Controller {
    client: Client,
    kept: BTreeMap<Policy, Kept>,
    user: OnceCell<String>,
    states: Mutex<BTreeMap<Policy, State>>,
    gate: Gate,
    in_force: watch::Sender<bool>,
}

/// What is known of a policy.
#[derive(Debug)]
struct State {
    /// Why it is not in force; `None` if it is.
    missing: Option<String>,
    /// How often in a row it was not.
    tries: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { missing: Some("not looked at yet".to_owned()), tries: 0 }
    }
}

impl Controller {
    async fn pass(&self, policy: Policy) -> Result<Outcome, Error> {
        let result = self.keep(policy).await;
        let missing = result.as_ref().map_or_else(|error| Some(chain(error)), Clone::clone);
        let tries = self.tell(policy, missing);
        Ok(match result? {
            Some(_) => Outcome::Again(backoff(tries, FIRST, LONGEST, 0)),
            None => Outcome::Done,
        })
    }

    /// Writes what differs; why the policy is not in force, `None` if it is.
    async fn keep(&self, policy: Policy) -> Result<Option<String>, Error> {
        let Some(kept) = self.kept.get(&policy) else { return Ok(None) };
        if !(kept.policies.is_ready() && kept.bindings.is_ready()) {
            return Ok(Some("whether it is there is not known yet".to_owned()));
        }
        let Some(owner) = apply::owner(&self.client).await? else {
            return Ok(Some(format!("CustomResourceDefinition {} is not there", Module::crd_name())));
        };
        let user = self.user.get_or_try_init(|| apply::user(&self.client)).await?;
        let Rendered { policy: wanted, binding, question } = Rendered::new(policy, user)?;
        let (name, key) = (policy.name(), ObjectKey::cluster(policy.name()));

        let action = plan(&wanted, &owner.uid, kept.policies.get(&key).as_deref());
        let object = |metadata| ValidatingAdmissionPolicy { metadata, spec: Some(wanted), status: None };
        let mut written = apply::carry_out(&self.client, name, &owner, action, object).await?;
        let action = plan(&binding, &owner.uid, kept.bindings.get(&key).as_deref());
        let object = |metadata| ValidatingAdmissionPolicyBinding { metadata, spec: Some(binding) };
        written |= apply::carry_out(&self.client, name, &owner, action, object).await?;
        if written {
            return Ok(Some("it was written just now".to_owned()));
        }
        let refused = apply::is_in_force(&self.client, name, &question).await?;
        Ok((!refused).then(|| "the API server does not apply it yet".to_owned()))
    }
    /// Takes in what a pass has found and tells gate and listeners; gives how often in a row the policy was not in force.
    fn tell(&self, policy: Policy, missing: Option<String>) -> u32 {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.entry(policy).or_default();
        let tries = if missing.is_some() { state.tries.saturating_add(1) } else { 0 };
        *state = State { missing, tries };
        let missing =
            states.iter().filter_map(|(policy, state)| Some(format!("{policy}: {}", state.missing.as_ref()?)));
        let missing = missing.collect::<Vec<_>>().join("; ");
        let all = missing.is_empty();
        if self.in_force.send_if_modified(|before| std::mem::replace(before, all) != all) {
            if all {
                info!("every admission policy is in force");
            } else {
                warn!(missing, "an admission policy is not in force");
            }
        }
        if all {
            self.gate.open();
        } else {
            self.gate.close(missing);
        }
        tries
    }
}
