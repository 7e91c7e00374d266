//! What stands on a node of Modules that are not there any more.

use std::collections::BTreeSet;

use crate::api::{ModuleConfig, NodeModuleSpec, OnChange, UnloadIntent, UnloadReason};
use crate::core::load::same_in_kernel;
use crate::runtime::store::ObjectKey;
use crate::spoke::view::Belongs;

use super::here::Here;
use super::observe::ModuleHere;
use super::share::Shares;

/// Adds to `shares`, which hold what the Modules that are there ask for and order, what stays of all others.
///
/// - The entry of a Module whose object vanished without having been deleted in order stays as it is.
/// - A Module made again under the same name takes the entry over, or what the policy of the earlier one kept in the kernel.
///   If it brings another file, that is the wish to have the old one replaced, now or, by its policy, at the next boot.
/// - An intent that was written stays until it is confirmed.
pub(super) fn keep(here: Here<'_>, modules: &[ModuleHere], shares: &mut Shares) {
    let known: BTreeSet<&str> = modules.iter().map(|module| &*module.facts.uid).collect();
    let (mut entries, mut orders) = (Vec::new(), Vec::new());
    for entry in here.entries() {
        if modules.iter().any(|module| entry.belongs_to(&module.facts)) {
            continue;
        }
        match successor(shares, &entry.namespace, &entry.name) {
            None => entries.push(entry.clone()),
            Some(next) => orders.extend(replaced(next, entry.module_uid.as_ref(), &entry.config, entry.generation)),
        }
    }
    for report in here.reports().iter().filter(|_| here.in_this_boot()) {
        let (Some(uid), Some(loaded)) = (&report.module_uid, &report.config) else { continue };
        let stands = here.entries().iter().any(|entry| entry.module_uid.as_ref() == Some(uid));
        if known.contains(uid.as_str()) || stands {
            continue;
        }
        let next = successor(shares, &report.namespace, &report.name);
        let of_kernel = next.filter(|next| next.config.kernel_version == loaded.kernel_version);
        orders.extend(of_kernel.and_then(|next| replaced(next, Some(uid), loaded, report.observed_generation)));
    }
    for intent in here.intents().iter().filter(|intent| !known.contains(intent.module_uid.as_str())) {
        let mut of_uid = here.reports().iter().filter(|report| report.module_uid.as_ref() == Some(&intent.module_uid));
        let confirmed = here.is_settled() && of_uid.next().is_none();
        let repeated = orders.iter().any(|other| other.module_uid == intent.module_uid);
        if !confirmed && !repeated {
            orders.push(intent.clone());
        }
    }
    for entry in entries {
        shares.ask(entry);
    }
    for order in orders {
        shares.order(order);
    }
}

/// The entry of the Module that was made again under this name.
fn successor<'a>(shares: &'a Shares, namespace: &str, name: &str) -> Option<&'a NodeModuleSpec> {
    shares.get(&ObjectKey::new(namespace, name)).and_then(|share| share.modules.first())
}

/// The intent by which what an earlier Module of the name loaded makes room at once, if `next` wants another file.
fn replaced(
    next: &NodeModuleSpec,
    uid: Option<&String>,
    loaded: &ModuleConfig,
    generation: Option<i64>,
) -> Option<UnloadIntent> {
    let at_once = next.policy.unwrap_or_default().on_change == OnChange::Reload;
    let uid = uid.filter(|_| at_once && !same_in_kernel(&next.config, loaded))?;
    Some(UnloadIntent {
        generation: generation.unwrap_or_default(),
        module_uid: uid.clone(),
        name: next.name.clone(),
        namespace: next.namespace.clone(),
        reason: UnloadReason::Changed,
    })
}
