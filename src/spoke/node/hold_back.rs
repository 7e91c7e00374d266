//! Consumers leave first: no kernel module is ordered out while pods of the Module's device plugin or DRA driver are on
//! the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::UnloadIntent;
use crate::api::names::{ModuleReason, ready_label};
use crate::runtime::store::ObjectKey;
use crate::spoke::outcome::Trouble;

use super::here::Here;
use super::observe::Consumer;
use super::share::{Share, Shares};

/// Modules that have to wait for their pods, and the words for it.
pub(super) type HeldBack = BTreeMap<ObjectKey, Arc<Trouble>>;

/// Most pods that are named.
const NAMED_PODS: usize = 3;

/// Takes every new order to unload back out of `shares` whose Module has pods on the node: what stands about that Module
/// stays, so that neither the order nor a new file reaches the worker. What was ordered already goes on.
pub(super) fn hold_back(here: Here<'_>, consumers: &[Consumer], shares: &mut Shares) -> HeldBack {
    let mut held = HeldBack::new();
    if consumers.is_empty() {
        return held;
    }
    let present = here.config.map(|config| Shares::of(&config.spec)).unwrap_or_default();
    for (module, share) in &mut shares.0 {
        let stands = present.get(module).cloned().unwrap_or_default();
        if !share.unload.iter().any(|intent| is_new_order(intent, &stands)) {
            continue;
        }
        let Some(trouble) = trouble(module, consumers) else { continue };
        held.insert(module.clone(), trouble);
        let is = |namespace: &str, name: &str| namespace == module.namespace && name == module.name;
        let told = here.reports().iter().any(|report| is(&report.namespace, &report.name));
        if told || !stands.is_empty() {
            *share = stands;
        } else {
            // Nothing but the label of the node, which has to go now, says that there is anything to unload.
            share.unload.iter_mut().for_each(|intent| intent.generation = UnloadIntent::QUESTION);
        }
    }
    held
}

/// Whether the intent takes more out of the kernel than what stands has ordered already.
fn is_new_order(intent: &UnloadIntent, stands: &Share) -> bool {
    let ordered = stands.unload.iter().filter(|other| other.module_uid == intent.module_uid);
    intent.generation > ordered.map(|other| other.generation).fold(UnloadIntent::QUESTION, i64::max)
}

fn trouble(module: &ObjectKey, consumers: &[Consumer]) -> Option<Arc<Trouble>> {
    let pods: Vec<_> = consumers.iter().filter(|consumer| consumer.module == *module).collect();
    if pods.is_empty() {
        return None;
    }
    let named: Vec<_> = pods.iter().take(NAMED_PODS).map(|consumer| consumer.pod.as_str()).collect();
    let more = pods.len() - named.len();
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    let way_out = if pods.iter().all(|consumer| consumer.deleting) {
        String::new()
    } else {
        let label = ready_label(&module.namespace, &module.name);
        format!(
            "; if one stays, give its DaemonSet the nodeSelector {label}: \"\", or delete the pod and what makes it"
        )
    };
    let named = named.join(", ");
    let message = format!("these pods use the module and have to leave first: {named}{more}{way_out}");
    Some(Trouble::new(ModuleReason::WaitingForConsumers.as_str(), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "kmm.node.kubernetes.io/drivers.gpu.ready";

    #[test]
    fn the_first_pods_are_named_with_the_way_out_for_those_that_stay() {
        let module = ObjectKey::new("drivers", "gpu");
        let consumer = |pod: &str| Consumer { module: module.clone(), pod: pod.to_owned(), deleting: false };
        let mut pods: Vec<_> = ["a", "b", "c", "d", "e"].map(consumer).into();
        let message = |pods: &[Consumer]| trouble(&module, pods).unwrap().message.clone();
        let named = "these pods use the module and have to leave first: a, b, c (and 2 more)";
        let out = format!(
            "; if one stays, give its DaemonSet the nodeSelector {READY}: \"\", or delete the pod and what makes it"
        );
        assert_eq!(message(&pods), format!("{named}{out}"));
        for pod in &mut pods {
            pod.deleting = true;
        }
        assert_eq!(message(&pods), named);
    }
}
